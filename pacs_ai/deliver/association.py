"""One association with a peer as its requestor, in which every step ends by its deadline (PS3.8).

pynetdicom's own requestor waits without limit where a peer stops reading, and takes any answer for the one it asked
for. So the connection is driven here, on a plain blocking socket: one step after the other, without threads.
"""

from __future__ import annotations

import socket
import ssl
import struct
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, Self

from pacs_ai import tls
from pacs_ai.deliver import command, pdus
from pacs_ai.errors import Unavailable, UserError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import TracebackType

    from pynetdicom.presentation import PresentationContext

    from pacs_ai.network_sections import Tls

#: Longest A-ASSOCIATE-AC and longest command set that are read.
MAX_ASSOCIATE_LENGTH = 65_536
MAX_COMMAND_LENGTH = 16_384
#: Longest P-DATA-TF that is sent to a peer that would take any length.
MAX_SENT_PDU = 131_072
#: Bytes that are gathered into one write.
WRITE_SIZE = 262_144
#: Bytes of a presentation data value before its fragment, PS3.8 9.3.5.1.
VALUE_HEADER = 6
#: The farewell is a courtesy; no one waits longer for it.
RELEASE_SECONDS = 5.0


@dataclass(frozen=True)
class Remote:
    """A peer and how long to wait for it.

    Parameters
    ----------
    ae_title, host, port
        Whom to call.
    calling_ae_title
        Who calls.
    connect_seconds
        Limit for the TCP connection, and once more for the TLS handshake.
    acse_seconds
        Limit for the answer to an association request.
    dimse_seconds
        Limit for the answer to a request, from its last byte on.
    network_seconds
        Limit for the peer to take the next bytes; the association is lost when it takes none for so long.
    slowest_bytes_per_second
        A data set may take `network_seconds` plus its length over this rate; a peer that reads drop by drop ends there.
    maximum_pdu_size
        Longest PDU that is taken from the peer, in bytes.
    tls
        The node's certificate, for a peer that is called over TLS.
    certificate_name
        Name that the peer's certificate must bear; "" for `host`.
    """

    ae_title: str
    host: str
    port: int
    calling_ae_title: str
    connect_seconds: float = 10.0
    acse_seconds: float = 30.0
    dimse_seconds: float = 60.0
    network_seconds: float = 60.0
    slowest_bytes_per_second: int = 32_768
    maximum_pdu_size: int = 131_072
    tls: Tls | None = None
    certificate_name: str = ""

    def __str__(self) -> str:
        return f"{self.ae_title} at {self.host}:{self.port}"


@dataclass(frozen=True)
class Deadline:
    """A moment of the monotonic clock; steps of the wall clock do not move it."""

    at: float

    @classmethod
    def after(cls, seconds: float) -> Deadline:
        """Return the moment `seconds` from now."""
        return cls(time.monotonic() + seconds)

    def left(self) -> float:
        """Return the seconds that remain; TimeoutError when none do."""
        seconds = self.at - time.monotonic()
        if seconds <= 0:
            raise TimeoutError
        return seconds


class Association:
    """An established association; a context manager that releases, or aborts after an error.

    Parameters
    ----------
    remote
        The peer.
    contexts
        What is proposed, at most 128.

    Raises
    ------
    Unavailable
        By every method: the peer could not be reached, refused, answered nonsense, stayed silent past its limit, or
        ended the association. The message says which, for an administrator. The association is over then.
    """

    def __init__(self, remote: Remote, contexts: Sequence[PresentationContext]) -> None:
        self.remote = remote
        self._socket = _secured(_connect(remote), remote)
        #: (SOP Class UID, Transfer Syntax UID) -> Presentation Context ID, PS3.8 9.3.2.2.
        self.accepted: dict[tuple[str, str], int] = {}
        #: The same for those that were refused -> result, PS3.8 Table 9-18.
        self.refused: dict[tuple[str, str], int] = {}
        #: Released or aborted.
        self.over = False
        self._fragment_length = 0
        try:
            self._negotiate(contexts)
        except BaseException:
            self.abort()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None or kind is GeneratorExit:
            self.release()
        else:
            self.abort()

    def request(self, context_id: int, command_set: bytes) -> None:
        """Send a command set (PS3.7 6.3.1)."""
        with self._explained("stopped reading"):
            self._send(
                self._data_pdus(context_id, pdus.COMMAND_FRAGMENT, command_set, last=True),
                Deadline.after(self.remote.network_seconds),
            )

    def send_data_set(self, context_id: int, file: BinaryIO, length: int) -> None:
        """Send `length` bytes of `file` from where it stands, as they are.

        Raises
        ------
        OSError
            The file could not be read, or is shorter than `length`; the association has to be aborted.
        """
        remote = self.remote
        deadline = Deadline.after(remote.network_seconds + length / remote.slowest_bytes_per_second)
        block = max(WRITE_SIZE // self._fragment_length, 1) * self._fragment_length
        while length > 0:
            chunk = file.read(min(block, length))
            if not chunk:
                raise OSError("the file is shorter than it was")
            length -= len(chunk)
            with self._explained("stopped reading"):
                self._send(self._data_pdus(context_id, 0, chunk, last=length == 0), deadline)

    def answer(self) -> tuple[int, command.Answer]:
        """Wait for the response to what was asked last and return it with its Presentation Context ID."""
        deadline = Deadline.after(self.remote.dimse_seconds)
        encoded = b""
        with self._explained(f"did not answer within {self.remote.dimse_seconds:g} s"):
            while True:
                for context_id, control, fragment in self._fragments(deadline):
                    if not control & pdus.COMMAND_FRAGMENT or len(encoded) + len(fragment) > MAX_COMMAND_LENGTH:
                        raise self._ended("sent something else than the answer to the request")
                    encoded += fragment
                    if control & pdus.LAST_FRAGMENT:
                        return context_id, self._decoded(encoded)

    def release(self) -> None:
        """Ask for the release and wait a little; whatever happens now does not change what was answered before."""
        deadline = Deadline.after(min(self.remote.acse_seconds, RELEASE_SECONDS))
        with suppress(OSError, Unavailable):
            self._send([pdus.RELEASE_RQ_PDU], deadline)
            while self._pdu(deadline)[0] != pdus.RELEASE_RP:
                pass
        self._close()

    def abort(self) -> None:
        """End the association at once (PS3.8 9.3.8)."""
        with suppress(OSError):
            self._socket.settimeout(0)
            self._socket.send(pdus.ABORT_PDU)
        self._close()

    def _close(self) -> None:
        self.over = True
        self._socket.close()

    def _negotiate(self, contexts: Sequence[PresentationContext]) -> None:
        remote = self.remote
        proposed = _numbered(contexts)
        request = pdus.associate_request(remote.ae_title, remote.calling_ae_title, proposed, remote.maximum_pdu_size)
        deadline = Deadline.after(remote.acse_seconds)
        with self._explained(f"did not answer the association request within {remote.acse_seconds:g} s"):
            self._send([request], deadline)
            kind, body = self._pdu(deadline)
        if kind == pdus.ASSOCIATE_RJ:
            raise self._ended(pdus.rejection_words(body, remote.ae_title, remote.calling_ae_title))
        if kind != pdus.ASSOCIATE_AC:
            raise self._ended("answered the association request with something else")
        try:
            acceptance = pdus.read_acceptance(body)
        except ValueError as error:
            raise self._ended(f"answered the association request with a malformed PDU ({error})") from error
        for context in proposed:
            self._note(context, *acceptance.contexts.get(context.context_id, (pdus.NO_REASON, "")))
        length = min(acceptance.maximum_length or MAX_SENT_PDU, MAX_SENT_PDU)
        # Even, as all lengths of a data set are (PS3.5 7.1).
        self._fragment_length = (length - VALUE_HEADER) & ~1
        if self._fragment_length <= 0:
            raise self._ended(f"takes PDUs of at most {length} bytes, which holds no data")

    def _note(self, context: PresentationContext, result: int, syntax: str) -> None:
        """Keep what the peer said to one context; it may choose only among the proposed transfer syntaxes."""
        sop_class_uid = str(context.abstract_syntax)
        if result == pdus.ACCEPTED and syntax in context.transfer_syntax:
            self.accepted[sop_class_uid, syntax] = context.context_id
            return
        for refused in context.transfer_syntax:
            self.refused[sop_class_uid, str(refused)] = result

    def _decoded(self, encoded: bytes) -> command.Answer:
        try:
            answer = command.decode(encoded)
        except ValueError as error:
            raise self._ended(f"sent an answer that cannot be read ({error})") from error
        if answer.has_data_set:
            raise self._ended("sent an answer with a data set where none belongs")
        return answer

    def _data_pdus(self, context_id: int, kind: int, content: bytes, *, last: bool) -> Iterator[bytes | memoryview]:
        return pdus.data_pdus(context_id, kind, content, self._fragment_length, last=last)

    def _send(self, parts: Iterator[bytes | memoryview] | Sequence[bytes], deadline: Deadline) -> None:
        view = memoryview(b"".join(parts))
        try:
            while view:
                self._socket.settimeout(min(deadline.left(), self.remote.network_seconds))
                view = view[self._socket.send(view) :]
        except TimeoutError:
            raise
        except OSError:
            # The peer hung up; an A-ABORT or a TLS alert that it sent before says why.
            try:
                self._pdu(Deadline.after(1.0))
            except ssl.SSLError:
                raise
            except OSError:
                pass
            raise

    def _fragments(self, deadline: Deadline) -> list[tuple[int, int, bytes]]:
        kind, body = self._pdu(deadline)
        if kind != pdus.P_DATA:
            raise self._ended("sent something else than the answer to the request")
        try:
            return pdus.read_fragments(body)
        except ValueError as error:
            raise self._ended(f"sent a malformed P-DATA-TF PDU ({error})") from error

    def _pdu(self, deadline: Deadline) -> tuple[int, bytes]:
        """Return type and body of the next PDU; one that ends the association raises Unavailable with its reason."""
        kind, length = struct.unpack(">BxL", self._receive(6, deadline))
        limits = {pdus.ASSOCIATE_AC: MAX_ASSOCIATE_LENGTH, pdus.P_DATA: self.remote.maximum_pdu_size}
        if kind not in range(pdus.ASSOCIATE_AC, pdus.ABORT + 1) or length > limits.get(kind, 4):
            raise self._ended("sent bytes that are no DICOM PDU; is the port that of a DICOM service?")
        body = self._receive(length, deadline)
        if kind == pdus.ABORT:
            raise self._ended(pdus.abort_words(body))
        if kind == pdus.RELEASE_RQ:
            self._send([pdus.RELEASE_RP_PDU], deadline)
            raise self._ended("ended the association before it had answered")
        return kind, body

    def _receive(self, count: int, deadline: Deadline) -> bytes:
        received = bytearray()
        while len(received) < count:
            self._socket.settimeout(deadline.left())
            piece = self._socket.recv(count - len(received))
            if not piece:
                raise ConnectionResetError
            received += piece
        return bytes(received)

    def _ended(self, words: str) -> Unavailable:
        return Unavailable(f"{self.remote} {words}")

    @contextmanager
    def _explained(self, silence: str) -> Iterator[None]:
        """Turn socket errors into words."""
        try:
            yield
        except TimeoutError as error:
            raise self._ended(silence) from error
        except ssl.SSLError as error:
            raise self._ended(f"ended the connection: {tls.fault_words(error)}") from error
        except OSError as error:
            raise self._ended("closed the connection without an answer") from error


def _connect(remote: Remote) -> socket.socket:
    deadline = Deadline.after(remote.connect_seconds)
    try:
        addresses = socket.getaddrinfo(remote.host, remote.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise Unavailable(f"the host name of {remote} cannot be resolved; is it right?") from error
    fault = ""
    for family, kind, protocol, _, address in addresses:
        sock = socket.socket(family, kind, protocol)
        try:
            sock.settimeout(deadline.left())
            sock.connect(address)
            # A small PDU never waits for the acknowledgement of the one before: 14 -> 140 instances/s.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except TimeoutError:
            fault = f"no connection within {remote.connect_seconds:g} s; is a firewall between?"
        except OSError as error:
            fault = f"{error.strerror}; is it running, and are host and port right?"
        else:
            return sock
        sock.close()
    raise Unavailable(f"{remote} cannot be reached ({fault})")


def _secured(plain: socket.socket, remote: Remote) -> socket.socket:
    """Return the connection under TLS where the peer is called so, once its certificate bears its name."""
    if remote.tls is None:
        return plain
    name = remote.certificate_name or remote.host
    try:
        plain.settimeout(remote.connect_seconds)  # of the handshake as a whole
        context = tls.client_context(remote.tls)
        sock = context.wrap_socket(plain, server_hostname=remote.host or None)
        certificate = sock.getpeercert() or {}
        if tls.bears(certificate, name):
            return sock
        sock.close()
        found = ", ".join(tls.names_in(certificate)) or "nobody"
        fault = f"its certificate is for {found}, not for {name}; is it the right host, or is certificate_name missing?"
    except UserError as error:
        fault = str(error)
    except TimeoutError:
        fault = f"no TLS handshake within {remote.connect_seconds:g} s; does it speak TLS on this port?"
    except ssl.SSLError as error:
        fault = tls.fault_words(error)
    except OSError:
        fault = "it ended the connection amid the TLS handshake; does it speak TLS on this port?"
    plain.close()
    raise Unavailable(f"{remote} cannot be spoken to ({fault})")


def _numbered(contexts: Sequence[PresentationContext]) -> list[PresentationContext]:
    for number, context in enumerate(contexts):
        context.context_id = 2 * number + 1
    return list(contexts)
