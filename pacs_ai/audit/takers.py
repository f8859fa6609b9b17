"""Who takes audit events: a file, one event on each line, and a repository by syslog over TLS (RFC 5425)."""

from __future__ import annotations

import logging
import os
import socket
import ssl
import time
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Protocol

from pacs_ai import tls
from pacs_ai.errors import OutOfResources, Unavailable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from pacs_ai.audit.syslog import Envelope
    from pacs_ai.credentials import Credentials
    from pacs_ai.store.trail import Event

_log = logging.getLogger(__name__)

FILE, REPOSITORY = "file", "repository"
_NAME = "audit.log"
#: Of a repository that ends a connection by itself within so long after the last event it is not known what it read.
_LISTENED_SECONDS = 0.2
_ANSWER_BYTES = 4096
#: A repository that reads less than so many in a second gets less at a time.
_SLOWEST_BYTES_PER_SECOND = 8192
_APPEND = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC


class Taker(Protocol):
    """Someone who is to have every event."""

    name: str

    def take(self, events: Sequence[Event]) -> None:
        """Take events; return only when they are safe there.

        Raises
        ------
        Transient
            They are not, or that is not known: they are offered again.
        """


class AuditFile:
    """`audit.log` in a folder, 0600: synced before `take` returns, set aside once it is long.

    Parameters
    ----------
    folder
        Made with mode 0700 where it is missing.
    max_bytes
        A longer file is set aside as ``audit-20260131T235959Z.log``.
    """

    name = FILE

    def __init__(self, folder: Path, envelope: Envelope, max_bytes: int) -> None:
        self._folder = folder
        self._envelope = envelope
        self._max_bytes = max_bytes
        self._told = False  # that it cannot be set aside

    @property
    def path(self) -> Path:
        """Where it lies."""
        return self._folder / _NAME

    def take(self, events: Sequence[Event]) -> None:
        """See `Taker.take`."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._keep_short()
            self._append(b"".join(map(self._envelope.line, events)))
        except OSError as error:
            raise OutOfResources(f"{self.path} cannot be written: {error.strerror}") from error

    def _append(self, lines: bytes) -> None:
        handle = os.open(self.path, _APPEND, 0o600)
        try:
            size = os.fstat(handle).st_size
            if size and os.pread(handle, 1, size - 1) != b"\n":
                lines = b"\n" + lines  # the line before was cut off when this machine lost its power
            while lines:
                lines = lines[os.write(handle, lines) :]
            os.fsync(handle)
            if size == 0:
                _sync_folder(self._folder)
        finally:
            os.close(handle)

    def _keep_short(self) -> None:
        """Set aside what is long, before more is written; a file that cannot be goes on, however long it becomes."""
        try:
            if self.path.lstat().st_size > self._max_bytes:
                self._set_aside()
                self._told = False
        except FileNotFoundError:
            return  # it is about to be made
        except OSError as error:
            if not self._told:
                _log.warning("%s cannot be set aside, and becomes longer: %s", self.path, error.strerror)
            self._told = True

    def _set_aside(self) -> None:
        at = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        names = (f"audit-{at}{'' if n == 0 else f'-{n}'}.log" for n in range(1_000_000))
        target = next(path for name in names if not (path := self._folder / name).exists())
        self.path.rename(target)
        _sync_folder(self._folder)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class Repository:
    """An Audit Record Repository: a TLS connection for each parcel, closed in order, so that it is known to be read.

    Syslog acknowledges nothing. A TLS stack that answers our close_notify has read what came before it (RFC 5425
    4.4), so `take` waits for that; a repository that closes without a word counts as having read it. One that resets
    the connection does not, nor one that closes before we do: a repository that was stopped, or what ends TLS in front
    of one that is away.

    Parameters
    ----------
    credentials
        What the node shows; see `pacs_ai.credentials.calling`.
    address
        Host and port.
    certificate_name
        DNS name or common name that its certificate must bear.
    seconds
        Time limit for the connection, and, beside what its length needs at 8 KiB/s, for a parcel to be read.
    """

    name = REPOSITORY

    def __init__(
        self,
        credentials: Credentials,
        address: tuple[str, int],
        certificate_name: str,
        seconds: float,
        envelope: Envelope,
    ) -> None:
        self._credentials = credentials
        self._address = address
        self._certificate_name = certificate_name
        self._seconds = seconds
        self._envelope = envelope

    def take(self, events: Sequence[Event]) -> None:
        """See `Taker.take`."""
        self._send(b"".join(map(self._envelope.frame, events)))

    def greet(self) -> None:
        """Connect and close, without a message; Unavailable where that fails."""
        self._send(b"")

    @property
    def _where(self) -> str:
        return f"audit repository at {self._address[0]}:{self._address[1]}"

    def _send(self, stream: bytes) -> None:
        limit = self._seconds + len(stream) / _SLOWEST_BYTES_PER_SECOND
        with self._connection() as connection:
            until = time.monotonic() + limit
            try:
                _write(connection, stream, until)
                self._end(connection, until)
            except TimeoutError as error:
                words = f"did not take {len(stream)} bytes and end the connection within {limit:.0f} s"
                raise Unavailable(f"{self._where} {words}") from error

    @contextmanager
    def _connection(self) -> Iterator[ssl.SSLSocket]:
        where = self._where
        self._credentials.renew()
        try:
            with (
                socket.create_connection(self._address, timeout=self._seconds) as plain,
                self._credentials.context().wrap_socket(plain, server_hostname=None) as connection,
            ):
                self._prove(connection)
                yield connection
        except ssl.SSLError as error:
            raise Unavailable(f"{where}: {tls.fault_words(error)}") from error
        except OSError as error:
            raise Unavailable(f"{where} cannot be reached ({error.strerror or error})") from error
        except UnicodeError as error:  # of the name, as it is looked up (RFC 3490)
            raise Unavailable(f"{where} cannot be reached (that is no host name)") from error

    def _prove(self, connection: ssl.SSLSocket) -> None:
        certificate = connection.getpeercert() or {}
        if not tls.bears(certificate, self._certificate_name):
            names = ", ".join(tls.names_in(certificate)) or "no name"
            raise Unavailable(
                f"{self._where}: its certificate bears {names}, not {self._certificate_name}: "
                "correct audit.repository_name"
            )

    def _end(self, connection: ssl.SSLSocket, until: float) -> None:
        """Close a connection that is still open at the other end; Unavailable where it is not."""
        listened_until = time.monotonic() + _LISTENED_SECONDS
        connection.settimeout(_LISTENED_SECONDS)
        with suppress(TimeoutError):
            while connection.recv(_ANSWER_BYTES):  # there are no answers in syslog: nothing is made of them
                if time.monotonic() >= listened_until:
                    break
            else:
                raise Unavailable(
                    f"{self._where} ended the connection by itself, so it is not known what it has read: look at it, "
                    "and at what stands in front of it"
                )
        connection.settimeout(_left(until))
        try:
            connection.unwrap()
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError):
            return  # it closed without close_notify, after what it was sent


def _write(connection: ssl.SSLSocket, stream: bytes, until: float) -> None:
    """Write all of it by then; `sendall` begins its time anew with whatever the other end takes."""
    rest = memoryview(stream)
    while rest:
        connection.settimeout(_left(until))
        rest = rest[connection.send(rest) :]


def _left(until: float) -> float:
    """Return the seconds that remain; TimeoutError when none do."""
    seconds = until - time.monotonic()
    if seconds <= 0:
        raise TimeoutError
    return seconds
