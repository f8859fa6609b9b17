"""Keep connections that have not yet asked for an association apart from those that have.

Health checks, port scanners, web browsers and broken peers connect to a DICOM port too. They wait here, in one
thread and without costing an association, until their whole A-ASSOCIATE-RQ has come (PS3.8 9.3.2) or their time is up.
"""

from __future__ import annotations

import contextlib
import logging
import selectors
import socket
import struct
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

LOGGER = logging.getLogger(__name__)

HEADER = struct.Struct(">BBL")
_ASSOCIATE_RQ = 0x01
_ABORT = 0x07
#: Protocol version, two reserved bytes, the two AE titles, 32 reserved bytes (PS3.8 Table 9-11).
_FIXED = struct.Struct(">H2x16s16s32x")

#: How often what is due is looked at, in seconds.
_TICK_SECONDS = 0.25


class Rejection(NamedTuple):
    """An A-ASSOCIATE-RJ (PS3.8 Table 9-21) and its reason in words."""

    result: int
    source: int
    reason: int
    words: str

    def encode(self) -> bytes:
        """Return the PDU."""
        return struct.pack(">BxLxBBB", 0x03, 4, self.result, self.source, self.reason)


CALLING_AE_TITLE_NOT_RECOGNISED = Rejection(1, 1, 3, "calling AE title not recognised")
CALLED_AE_TITLE_NOT_RECOGNISED = Rejection(1, 1, 7, "called AE title not recognised")
LOCAL_LIMIT_EXCEEDED = Rejection(2, 3, 2, "local limit exceeded")
TEMPORARY_CONGESTION = Rejection(2, 3, 1, "temporary congestion")


def abort(reason: int) -> bytes:
    """Return an A-ABORT PDU of the service provider, PS3.8 Table 9-26: reason 2 unexpected PDU, 6 invalid value."""
    return struct.pack(">BxLxxBB", _ABORT, 4, 2, reason)


class MalformedRequest(Exception):  # noqa: N818 - named after what came
    """The A-ASSOCIATE-RQ breaks PS3.8 9.3.2."""


@dataclass(frozen=True)
class AssociationRequest:
    """What an A-ASSOCIATE-RQ says of its two ends, without padding; None where an AE title is none (PS3.5 6.2, AE)."""

    calling_ae_title: str | None
    called_ae_title: str | None
    raw_calling: str
    raw_called: str


def examine(pdu: bytes) -> AssociationRequest:
    """Return the AE titles of a whole A-ASSOCIATE-RQ PDU, having checked its presentation contexts.

    Raises
    ------
    MalformedRequest
        Items that overrun, no or more than 128 presentation contexts, context IDs that are even or repeated, a context
        without abstract or transfer syntax (PS3.8 9.3.2.2).
    """
    if len(pdu) < HEADER.size + _FIXED.size:
        raise MalformedRequest("too short")
    _, called, calling = _FIXED.unpack_from(pdu, HEADER.size)
    contexts = [item for kind, item in _items(memoryview(pdu)[HEADER.size + _FIXED.size :]) if kind == 0x20]
    if not 1 <= len(contexts) <= 128:
        raise MalformedRequest(f"{len(contexts)} presentation contexts")
    for context in contexts:
        kinds = [kind for kind, _ in _items(context[4:])]
        if kinds.count(0x30) != 1 or kinds.count(0x40) < 1 or context[0] % 2 == 0:
            raise MalformedRequest("a presentation context with an even ID or without its syntaxes")
    if len({context[0] for context in contexts}) < len(contexts):
        raise MalformedRequest("presentation contexts with the same ID")
    return AssociationRequest(
        _ae_title(calling), _ae_title(called), calling.decode("latin-1"), called.decode("latin-1")
    )


def _items(view: memoryview) -> list[tuple[int, memoryview]]:
    """Return type and value of the items or sub-items that a view is made of."""
    found = []
    offset = 0
    while offset < len(view):
        end = offset + 4 + int.from_bytes(view[offset + 2 : offset + 4], "big")
        if end > len(view) or offset + 4 > len(view) or (view[offset] == 0x20 and end - offset < 8):
            raise MalformedRequest("an item runs beyond its end")
        found.append((view[offset], view[offset + 4 : end]))
        offset = end
    return found


def _ae_title(raw: bytes) -> str | None:
    title = raw.decode("latin-1").strip(" ")
    return title if title and title.isascii() and title.isprintable() and "\\" not in title else None


@dataclass(frozen=True)
class Limits:
    """What the antechamber bears.

    Parameters
    ----------
    connections, connections_per_address
        Waiting at one time; beyond that the one that has waited longest (of that address) is closed.
    request_seconds
        From connecting to the last byte of the A-ASSOCIATE-RQ.
    request_bytes
        Longest A-ASSOCIATE-RQ.
    """

    connections: int = 1000
    connections_per_address: int = 64
    request_seconds: float = 10.0
    request_bytes: int = 65536


@dataclass(eq=False)
class _Guest:
    socket: socket.socket
    address: str
    deadline: float
    received: bytearray = field(default_factory=bytearray)

    def missing(self) -> int:
        """Return how many bytes complete the header, or the PDU whose header is there."""
        if len(self.received) < HEADER.size:
            return HEADER.size - len(self.received)
        return HEADER.size + int(HEADER.unpack_from(self.received)[2]) - len(self.received)


class Antechamber:
    """Accepts connections on a listening socket and lets in those that ask for an association.

    Parameters
    ----------
    listener
        Bound and listening; closed by `serve` when it ends.
    limits
        What is borne.
    admit
        Called with the socket, the peer's address and the whole A-ASSOCIATE-RQ; owns the socket from then on.
    tick
        Called about every quarter of a second from the same thread.
    """

    def __init__(
        self,
        listener: socket.socket,
        limits: Limits,
        admit: Callable[[socket.socket, str, bytes], None],
        tick: Callable[[], None],
    ) -> None:
        self._listener = listener
        self._limits = limits
        self._admit = admit
        self._tick = tick
        self._guests: dict[_Guest, None] = {}  # in the order of their deadlines
        self._selector = selectors.DefaultSelector()
        self._wake, self._woken = socket.socketpair()
        self._closing = False
        self._listening = False

    def close(self) -> None:
        """Make `serve` end."""
        self._closing = True
        with contextlib.suppress(OSError):
            self._wake.send(b"\0")

    def serve(self) -> None:
        """Work until `close`; then close the listener and whoever still waits."""
        self._listener.setblocking(False)
        self._selector.register(self._woken, selectors.EVENT_READ)
        next_tick = 0.0
        try:
            while not self._closing:
                if time.monotonic() >= next_tick:
                    self._listen()
                    self._survive(self._tick)
                    next_tick = time.monotonic() + _TICK_SECONDS
                self._expire()
                for key, _ in self._selector.select(_TICK_SECONDS):
                    self._survive(self._serve_one, key.data)
        finally:
            for guest in list(self._guests):
                self._dismiss(guest)
            for each in (self._listener, self._wake, self._woken, self._selector):
                each.close()

    def _survive(self, act: Callable[..., None], *arguments: object) -> None:
        """Act, and go on whatever happens: this loop is the outermost, and without it nobody is let in any more."""
        try:
            act(*arguments)
        except Exception as error:  # noqa: BLE001 - see above
            LOGGER.error("the antechamber goes on after %s in %s", type(error).__name__, where(error))  # noqa: TRY400

    def _serve_one(self, who: _Guest | str | None) -> None:
        if isinstance(who, _Guest):
            if who in self._guests:
                self._read(who)
        elif who == "listener":
            self._accept()

    def _listen(self) -> None:
        if not self._listening:
            self._selector.register(self._listener, selectors.EVENT_READ, "listener")
            self._listening = True

    def _accept(self) -> None:
        try:
            connection, address = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError as error:  # out of file descriptors or memory: rest until the next tick
            LOGGER.warning("cannot accept a connection: %s", error.strerror)
            self._selector.unregister(self._listener)
            self._listening = False
            self._dismiss_oldest(lambda _: True)
            return
        guest = _Guest(connection, address[0], time.monotonic() + self._limits.request_seconds)
        if Counter(other.address for other in self._guests)[guest.address] >= self._limits.connections_per_address:
            self._dismiss_oldest(lambda other: other.address == guest.address)
        if len(self._guests) >= self._limits.connections:
            self._dismiss_oldest(lambda _: True)
        connection.setblocking(False)
        self._selector.register(connection, selectors.EVENT_READ, guest)
        self._guests[guest] = None

    def _read(self, guest: _Guest) -> None:
        try:
            piece = guest.socket.recv(guest.missing())
        except BlockingIOError:
            return
        except OSError:
            piece = b""
        guest.received += piece
        if not piece or not self._is_plausible(guest):
            self._dismiss(guest)
        elif guest.missing() == 0:
            self._forget(guest)
            self._admit(guest.socket, guest.address, bytes(guest.received))

    def _is_plausible(self, guest: _Guest) -> bool:
        """Tell whether what came may yet become an A-ASSOCIATE-RQ; tell a peer that speaks DICOM otherwise."""
        kind = guest.received[0]
        if kind != _ASSOCIATE_RQ:
            if kind <= _ABORT:
                _tell(guest.socket, abort(2))
            return False
        if len(guest.received) < HEADER.size:
            return True
        length = HEADER.unpack_from(guest.received)[2]
        if _FIXED.size <= length <= self._limits.request_bytes:
            return True
        _tell(guest.socket, abort(6))
        return False

    def _expire(self) -> None:
        now = time.monotonic()
        while self._guests and (guest := next(iter(self._guests))).deadline <= now:
            self._dismiss(guest)

    def _dismiss_oldest(self, which: Callable[[_Guest], bool]) -> None:
        oldest = next((guest for guest in self._guests if which(guest)), None)
        if oldest is not None:
            self._dismiss(oldest)

    def _dismiss(self, guest: _Guest) -> None:
        LOGGER.debug("closed a connection from %s that asked for no association", guest.address)
        self._forget(guest)
        guest.socket.close()

    def _forget(self, guest: _Guest) -> None:
        del self._guests[guest]
        self._selector.unregister(guest.socket)


def where(error: BaseException) -> str:
    """Return in which line of code an error arose, without its text, which may hold a patient's data."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{last.name} ({last.filename.rpartition('/')[2]}:{last.lineno})"


def turn_away(connection: socket.socket, answer: bytes) -> None:
    """Send a last PDU to a peer that is not let in, and close."""
    _tell(connection, answer)
    connection.close()


def _tell(connection: socket.socket, answer: bytes) -> None:
    with contextlib.suppress(OSError):
        connection.send(answer)
