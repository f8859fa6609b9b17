"""One connection of a peer, from its first byte to its last, as the state table says and within its limits."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, cast

from pacs_ai.log import where
from pacs_ai.receive import framing, guard
from pacs_ai.receive.dimse import ProtocolFault, fragments
from pacs_ai.receive.framing import Framer, Lengths, Malformed
from pacs_ai.receive.machine import Action, Event, State, step

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pacs_ai.receive.exchange import Exchange
    from pacs_ai.receive.negotiation import Agreement

LOGGER = logging.getLogger(__name__)

#: After its last PDU the node gives the peer so long to close, in seconds (ARTIM of Sta13, PS3.8 9.1.5).
ENDING_SECONDS = 1.0
_RELEASE_RP = framing.HEADER.pack(framing.RELEASE_RP, 4) + bytes(4)

_EVENTS: Mapping[int, Event] = {
    framing.ASSOCIATE_RQ: Event.REQUEST_PDU,
    framing.ASSOCIATE_AC: Event.ACCEPTANCE_PDU,
    framing.ASSOCIATE_RJ: Event.REJECTION_PDU,
    framing.P_DATA: Event.DATA_PDU,
    framing.RELEASE_RQ: Event.RELEASE_REQUEST_PDU,
    framing.RELEASE_RP: Event.RELEASE_RESPONSE_PDU,
    framing.ABORT: Event.ABORT_PDU,
}
#: PDUs whose bodies are read; any other is an event as soon as its type is known.
_EXPECTED: Mapping[State, frozenset[int]] = {
    State.AWAITING_REQUEST: frozenset({framing.ASSOCIATE_RQ, framing.ABORT}),
    State.DECIDING: frozenset(),
    State.ESTABLISHED: frozenset({framing.P_DATA, framing.RELEASE_RQ, framing.ABORT}),
}


class Door(Protocol):
    """What connections share: who decides about them, and who keeps them."""

    buffer: memoryview
    bounds: guard.Bounds
    limits: guard.Limits
    now: Callable[[], float]

    def ask(self, connection: Connection, length: int) -> guard.Rejection | None:
        """Have `Connection.decide` called when it is its turn; returns why not, where too many wait for theirs."""

    def decide(self, connection: Connection, request: bytes) -> tuple[Agreement, Exchange] | guard.Rejection:
        """Return what an A-ASSOCIATE-RQ is answered with; raises `guard.MalformedRequest`."""

    def refused(self, connection: Connection, words: str) -> None:
        """Take note that a peer was turned away."""

    def forget(self, connection: Connection) -> None:
        """Take note that a connection is no more."""

    def soon(self, go_on: Callable[[], None]) -> None:
        """Have a function called after the others' turn."""


class Connection(asyncio.BufferedProtocol):
    """A connection; all methods are called in the event loop's thread.

    Parameters
    ----------
    door
        Whose it is.
    address
        The peer's.
    """

    def __init__(self, door: Door, address: str) -> None:
        self.address = address
        self.exchange: Exchange | None = None
        self.is_released = False
        self._door = door
        self._state = State.IDLE
        self._transport: asyncio.Transport | None = None
        self._framer = Framer(self, Lengths(door.limits.request_bytes, door.bounds.pdu_bytes))
        self._request = b""  # while it is not decided
        self._maximum_length = 0
        self._carry = bytearray()  # read, and not taken apart while a request is being answered
        self._paused = False
        self._goes_on = False  # another turn is due
        self._due = door.now() + door.limits.request_seconds  # end of waiting for a request, or for the peer to close
        self._last_active = door.now()
        self._window_start, self._window_bytes = self._last_active, 0
        self._stalled_since: float | None = None

    # -- what the transport tells

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one in all but name
        # Not high=0: over TLS both event loops pause at `size >= high` and resume at `size <= low`, so that with no
        # byte waiting each read and each write would turn the one into the other.
        self._transport.set_write_buffer_limits(high=1, low=0)
        self._do(Event.OPENED)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - whatever it was
        """Take note that the connection is no more."""
        if self._state is not State.IDLE:
            self._do(Event.CLOSED)
        self._door.forget(self)

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - one for all: it is emptied at once
        """Return where to put what comes next."""
        return self._door.buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Take apart what came; the outermost place where a peer's bytes may do something unforeseen."""
        received = self._door.buffer[:nbytes]
        if self._carry:
            self._carry += received
            self._pause()
        else:
            self._feed(received)

    def eof_received(self) -> bool:
        """Close this half too: an association needs both."""
        return False

    def pause_writing(self) -> None:
        """Take note that the peer does not read."""
        self._stalled_since = self._door.now()

    def resume_writing(self) -> None:
        """Take note that it reads again."""
        self._stalled_since = None
        self.resume()

    # -- what the framer tells (`framing.Sink`)

    @property
    def is_full(self) -> bool:
        """Whether nothing more is taken apart for now: at the end, or while a request is being answered."""
        if self._stalled_since is not None:
            return True
        if self._state is State.ESTABLISHED:
            assert self.exchange is not None
            return self.exchange.is_full
        return self._state is not State.AWAITING_REQUEST

    def begins(self, kind: int) -> None:
        """Act on the type of a PDU, unless its body has to be read first."""
        if kind == framing.P_DATA or kind not in _EXPECTED.get(self._state, frozenset()):
            self._do(_EVENTS[kind], guard.UNEXPECTED_PDU)

    def body(self, kind: int, content: bytes) -> None:
        """Act on a whole PDU."""
        self._do(_EVENTS[kind], framing.HEADER.pack(kind, len(content)) + content)

    def fragment(self, context_id: int, control: int, piece: memoryview, complete: bool) -> None:
        """Hand on a piece of a message; one of no bytes is no sign of life."""
        assert self.exchange is not None
        if len(piece):
            self._last_active = self._door.now()
            self._window_bytes += len(piece)
        self.exchange.fragment(context_id, control, piece, complete=complete)

    # -- what an exchange asks for

    def send(self, command: bytes, context_id: int) -> None:
        """Send a command set; what follows the request that it answers has another turn."""
        self._framer.enough()
        if self._state is State.ESTABLISHED:
            self._do(Event.SEND_DATA, fragments(command, context_id, self._maximum_length))

    def resume(self) -> None:
        """Go on reading, what was put aside first."""
        self._restart_pace()
        self._go_on()

    def _go_on(self) -> None:
        if self._carry and not self.is_full:
            aside, self._carry = self._carry, bytearray()
            with memoryview(aside) as view:
                self._feed(view)
        if self._paused and not self._carry and not self.is_full:
            self._paused = False
            if self._transport is not None and not self._transport.is_closing():
                self._transport.resume_reading()

    # -- what the door asks for

    def decide(self) -> None:
        """Answer the association request, now that it is its turn, and go on with what came behind it."""
        try:
            self._do(*self._decided())
        except Exception as error:  # noqa: BLE001 - as in `_feed`
            self._fault(f"{type(error).__name__} in {where(error)}", guard.NOT_SPECIFIED)
        else:
            self._go_on()

    # -- time

    @property
    def is_open(self) -> bool:
        """Whether it may speak: not before the TLS handshake, not after its end."""
        return self._transport is not None

    @property
    def certificate(self) -> Mapping[str, Any] | None:
        """The certificate that the peer proved itself with; None without TLS."""
        found: Mapping[str, Any] | None = (
            None if self._transport is None else self._transport.get_extra_info("peercert")
        )
        return found

    @property
    def quiet_seconds(self) -> float:
        """Time since the last byte of a message came; 0 while a message is under way or unanswered."""
        return 0.0 if self._is_busy() else self._door.now() - self._last_active

    def tick(self, now: float) -> None:
        """End what lasts too long."""
        if self._state is State.ESTABLISHED:
            words = self._overdue(now)
            if words:
                LOGGER.warning("aborted an association with %s: %s", self.address, words)
                self.abort()
        elif self._stalled_since is not None and now - self._stalled_since > self._door.bounds.write_seconds:
            self.drop()
        elif now > self._due and self._state is not State.DECIDING:  # the request came in time; its turn comes
            if self._state is State.AWAITING_REQUEST and self._framer.is_amid_pdu:  # a health check says nothing
                self._tell_refused("half an association request, and no time left")
            if self._state in {State.AWAITING_REQUEST, State.ENDING}:
                self._do(Event.TIME_UP)
            else:
                self.drop()

    def _overdue(self, now: float) -> str:
        """Return why an association is at its end; "" where it is not."""
        bounds, exchange = self._door.bounds, self.exchange
        assert exchange is not None
        if self._stalled_since is not None and now - self._stalled_since > bounds.write_seconds:
            return "it does not read its answers"
        if exchange.is_full or self._carry:  # the node's turn
            self._last_active = now
            self._restart_pace()
            exchange.tick(now)
            return ""
        if now - self._last_active > bounds.network_seconds:
            return "silence"
        if not self._is_busy():
            self._restart_pace()
        elif now - self._window_start > bounds.pace_seconds:
            if self._window_bytes < bounds.bytes_per_second * bounds.pace_seconds:
                return f"slower than {bounds.bytes_per_second} bytes per second"
            self._restart_pace()
        return ""

    def _restart_pace(self) -> None:
        self._window_start, self._window_bytes = self._door.now(), 0

    def _is_busy(self) -> bool:
        return self._framer.is_amid_pdu or (self.exchange is not None and self.exchange.is_amid_message)

    # -- ends

    def abort(self) -> None:
        """End an association from this side."""
        if self._state is State.ESTABLISHED:
            self._do(Event.ABORT, guard.NOT_SPECIFIED)

    def drop(self) -> None:
        """Close at once, whatever is under way."""
        if self._transport is not None:
            self._transport.abort()

    # -- the state table at work

    def _feed(self, received: memoryview) -> None:
        try:
            taken = self._framer.feed(received)
        except Malformed as fault:
            self._fault(str(fault), guard.INVALID_PARAMETER if fault.is_pdu else None)
        except ProtocolFault as fault:
            self._fault(str(fault), guard.INVALID_PARAMETER)
        except Exception as error:  # noqa: BLE001 - outermost for one connection: the others must not feel it
            self._fault(f"{type(error).__name__} in {where(error)}", guard.NOT_SPECIFIED)
        else:
            if taken < len(received) and self._state in _EXPECTED:
                self._carry += received[taken:]
                self._pause()  # so that no more than one read is put aside
                if not self.is_full and not self._goes_on:
                    self._goes_on = True
                    self._door.soon(self._next_turn)

    def _next_turn(self) -> None:
        self._goes_on = False
        self._go_on()

    def _fault(self, words: str, reason: int | None) -> None:
        self._tell_refused(words)
        if self._state not in {State.IDLE, State.ENDING}:
            self._do(Event.NO_PDU, reason)

    def _tell_refused(self, words: str) -> None:
        LOGGER.warning("ended a connection with %s: %s", self.address, words)
        self._door.refused(self, words)

    def _do(self, event: Event, detail: Any = None) -> None:
        action, self._state = step(self._state, event)
        done = self._DONE.get(action)
        if done is not None:
            done(self, detail)

    def _ask(self, request: bytes) -> None:
        congested = self._door.ask(self, len(request))
        if congested is None:
            self._request = request
        else:
            self._tell_refused(congested.words)
            self._do(Event.REJECT, congested)

    def _decided(self) -> tuple[Event, Any]:
        request, self._request = self._request, b""
        try:
            decided = self._door.decide(self, request)
        except guard.MalformedRequest as fault:
            LOGGER.warning("association request from %s is malformed: %s", self.address, fault)
            self._door.refused(self, f"malformed association request: {fault}")
            return Event.NO_PDU, guard.INVALID_PARAMETER
        return (Event.REJECT if isinstance(decided, guard.Rejection) else Event.ACCEPT), decided

    def _accept(self, decided: tuple[Agreement, Exchange]) -> None:
        agreement, self.exchange = decided
        self._maximum_length = agreement.maximum_length
        self._write(agreement.acceptance)
        self._restart_pace()

    def _reject(self, rejection: guard.Rejection) -> None:
        self._last_word(rejection.encode())

    def _write(self, pdus: bytes) -> None:
        assert self._transport is not None
        self._transport.write(pdus)
        self._last_active = self._door.now()

    def _release(self, _request: bytes) -> None:
        self.is_released = True
        self._do(Event.RELEASE)

    def _answer_release(self, _detail: None) -> None:
        self._last_word(_RELEASE_RP)

    def _abort(self, reason: int | None) -> None:
        """Send an A-ABORT; to what speaks no DICOM say nothing and close."""
        if reason is None:
            self._over()
            self.drop()
        else:
            self._last_word(guard.abort(reason))

    def _last_word(self, pdu: bytes) -> None:
        """Send the last PDU, then read on without looking until the peer closes, for otherwise it may not get it."""
        assert self._transport is not None
        self._over()
        if not self._transport.is_closing():
            self._transport.write(pdu)
            if self._transport.can_write_eof():
                self._transport.write_eof()
            self._resume_reading()
        self._due = self._door.now() + ENDING_SECONDS

    def _close(self, _detail: object = None) -> None:
        self._over()
        self.drop()

    def _over(self, _detail: object = None) -> None:
        """Leave what the association was about."""
        self._carry.clear()
        if self.exchange is not None:
            self.exchange.end(is_released=self.is_released)

    def _pause(self) -> None:
        if not self._paused and self._transport is not None and not self._transport.is_closing():
            self._paused = True
            self._transport.pause_reading()

    def _resume_reading(self) -> None:
        if self._paused and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()

    #: What each action does; the others are a change of state only.
    _DONE: ClassVar[Mapping[Action, Callable[[Connection, Any], None]]] = {
        Action.DECIDE: _ask,
        Action.SEND_ACCEPTANCE: _accept,
        Action.SEND_REJECTION: _reject,
        Action.SEND_DATA: _write,
        Action.TAKE_RELEASE: _release,
        Action.ANSWER_RELEASE: _answer_release,
        Action.ABORT: _abort,
        Action.ABORT_AND_TELL: _abort,
        Action.ABORT_AGAIN: _abort,
        Action.CLOSE: _close,
        Action.TAKE_ABORT: _close,
        Action.TAKE_LOSS: _over,
    }
