"""How a peer is reached: where it is, how long it is waited for, and the connection to it, with or without TLS."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from pacs_ai import tls
from pacs_ai.credentials import calling
from pacs_ai.errors import Unavailable, UserError

if TYPE_CHECKING:
    from typing import Any

    from pacs_ai.network_sections import Tls


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
        Limit for finding the host's address, for the TCP connection, and for the TLS handshake, each.
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


def connect(remote: Remote) -> socket.socket:
    """Return a connection to the peer; Unavailable where there is none, with the reason in words."""
    return _secured(_connected(remote), remote)


def _connected(remote: Remote) -> socket.socket:
    addresses = _addresses(remote)
    deadline = Deadline.after(remote.connect_seconds)
    fault = ""
    for family, kind, protocol, _, address in addresses:
        try:
            sock = socket.socket(family, kind, protocol)
        except OSError as error:  # of an address that this machine cannot call, what another one answered says more
            fault = fault or f"this machine opens no connection to {address[0]}: {error.strerror}"
            continue
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


def _addresses(remote: Remote) -> list[Any]:
    """Return what `socket.getaddrinfo` finds; it takes no deadline, so a thread asks that nobody waits for longer."""
    found: SimpleQueue[list[Any] | Exception] = SimpleQueue()

    def ask() -> None:
        try:
            found.put(list(socket.getaddrinfo(remote.host, remote.port, type=socket.SOCK_STREAM)))
        except (OSError, UnicodeError) as error:
            found.put(error)

    threading.Thread(target=ask, name="resolver", daemon=True).start()
    try:
        answer = found.get(timeout=remote.connect_seconds)
    except Empty:
        words = f"the host name of {remote} was not resolved within {remote.connect_seconds:g} s"
        raise Unavailable(f"{words}; does the name server answer?") from None
    if isinstance(answer, Exception):
        raise Unavailable(f"the host name of {remote} cannot be resolved; is it right?") from answer
    return answer


def _secured(plain: socket.socket, remote: Remote) -> socket.socket:
    """Return the connection under TLS where the peer is called so, once its certificate bears its name."""
    if remote.tls is None:
        return plain
    name = remote.certificate_name or remote.host
    try:
        plain.settimeout(remote.connect_seconds)  # of the handshake as a whole
        credentials = calling(remote.tls)
        credentials.renew()
        sock = credentials.context().wrap_socket(plain, server_hostname=remote.host or None)
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
