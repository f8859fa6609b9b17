"""The listening side: one event loop that accepts connections, watches their clocks, and lets nobody hurt another.

Health checks, port scanners, web browsers and broken peers connect to a DICOM port too. Until its whole A-ASSOCIATE-RQ
has come (and, on the TLS port, until its handshake is done) a connection is only waiting, and costs no association.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
import threading
import time
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pacs_ai.log import unexpected, where
from pacs_ai.receive.connection import Connection
from pacs_ai.receive.guard import CONGESTED
from pacs_ai.receive.rotation import Rotation
from pacs_ai.tls import fault_words

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Sequence
    from typing import Any

    from pacs_ai.receive.exchange import Exchange
    from pacs_ai.receive.guard import Bounds, Limits, Rejection
    from pacs_ai.receive.negotiation import Agreement

LOGGER = logging.getLogger(__name__)

#: How often clocks are looked at, in seconds.
_TICK_SECONDS = 0.25
#: What one read of a connection may bring, in bytes.
_READ_BYTES = 1 << 18
#: Connections taken at one go, so that those that are there already have their turn.
_AT_ONE_GO = 16
#: So long a turn of the loop decides association requests; one that takes longer ends it.
_DECIDE_SECONDS = 0.005
#: An association that was quiet for so long is not waited for when the node stops.
_QUIET_SECONDS = 1.0
#: What is being made durable when the node stops may take so long more, in seconds.
_LAST_SECONDS = 5.0
_BACKLOG = 1024


@dataclass(frozen=True)
class Port:
    """A bound socket, and what tells how TLS is spoken on it by now; None for not at all."""

    socket: socket.socket
    tls: Callable[[], ssl.SSLContext] | None = None


@dataclass
class _Opening:
    """A connection on its way: its socket until the event loop has it, and the task that brings it there."""

    socket: socket.socket | None
    task: asyncio.Task[None] | None = None


def listening(bind: str, port: int, *, reuse_port: bool) -> socket.socket:
    """Return a listening socket; OSError where the system refuses."""
    family = socket.AF_INET6 if ":" in bind else socket.AF_INET
    found = socket.create_server((bind, port), family=family, backlog=_BACKLOG, reuse_port=reuse_port)
    found.setblocking(False)
    return found


def new_event_loop() -> asyncio.AbstractEventLoop:
    """Return an event loop: uvloop's where it is installed, else Python's own."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop


def _handshake_words(error: Exception) -> str:
    """Return why a connection never came to speak, without the text of an error that nobody foresaw."""
    if isinstance(error, ssl.SSLError):
        return fault_words(error)
    if isinstance(error, OSError):
        return "it ended the TLS handshake, or took too long"
    if isinstance(error, UnicodeDecodeError):
        return "a name in its certificate is not UTF-8"
    return unexpected(error)


class Acceptor:
    """Accepts on ports, in an event loop in a thread of its own.

    Parameters
    ----------
    ports
        Owned from now on.
    limits, bounds
        What connections without and with an association may cost.
    decide
        Called with a connection and its whole A-ASSOCIATE-RQ: what it is answered with; raises
        `guard.MalformedRequest`.
    refused
        Told of each peer that was turned away: its address, and why.
    ticked
        Told of the time whenever clocks are looked at, monotonic, in seconds.
    loop
        To run in.
    """

    def __init__(
        self,
        ports: Sequence[Port],
        limits: Limits,
        bounds: Bounds,
        decide: Callable[[Connection, bytes], tuple[Agreement, Exchange] | Rejection],
        refused: Callable[[str, str], None],
        ticked: Callable[[float], None],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.limits = limits
        self.bounds = bounds
        self.buffer = memoryview(bytearray(_READ_BYTES))
        self.now = time.monotonic
        self.loop = loop
        self._ports = ports
        self._decide = decide
        self._refused = refused
        self._ticked = ticked
        self._connections: dict[Connection, _Opening] = {}
        # those that have not asked for an association, in the order in which they came: all, and by address
        self._waiting: dict[Connection, None] = {}
        self._waiting_from: defaultdict[str, dict[Connection, None]] = defaultdict(dict)
        # those whose request is here and not decided: nobody else's connecting ends them
        self._asking = Rotation(limits.connections, limits.asking_bytes, limits.connections_per_address)
        self._decides_soon = False
        self._deaf: list[Port] = []
        self._fails_to_listen = False
        self._closing = False
        self._one_less = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="acceptor", daemon=True)

    def start(self) -> None:
        """Accept from now on; returns at once."""
        self._thread.start()

    def stop(self, grace_seconds: float) -> None:
        """Accept nobody any more, give associations time to end, abort those that do not, and end the loop."""
        if self._thread.is_alive():
            self.call(self._drain(grace_seconds))
            self.loop.call_soon_threadsafe(self.loop.stop)
            self._thread.join()
        for port in self._ports:
            port.socket.close()

    def call(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine in the loop's thread and wait for its end."""
        asyncio.run_coroutine_threadsafe(work, self.loop).result()

    # -- `connection.Door`

    def ask(self, connection: Connection, length: int) -> Rejection | None:
        """See `connection.Door`; a request may take milliseconds, so each turn of the loop decides a few only."""
        self._stop_waiting(connection)
        if not self._asking.add(connection, length):
            return CONGESTED
        self._decide_soon()
        return None

    def decide(self, connection: Connection, request: bytes) -> tuple[Agreement, Exchange] | Rejection:
        """See `connection.Door`."""
        self._stop_waiting(connection)
        return self._decide(connection, request)

    def refused(self, connection: Connection, words: str) -> None:
        """See `connection.Door`."""
        self._refused(connection.address, words)

    def forget(self, connection: Connection) -> None:
        """See `connection.Door`."""
        self._stop_waiting(connection)
        self._connections.pop(connection, None)
        self._one_less.set()

    def soon(self, go_on: Callable[[], None]) -> None:
        """See `connection.Door`."""
        self.loop.call_soon(go_on)

    # -- the loop

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        for port in self._ports:
            self._listen(port)
        self.loop.call_soon(self._tick)
        try:
            self.loop.run_forever()
        finally:
            self.loop.run_until_complete(self.loop.shutdown_asyncgens())
            self.loop.close()

    def _listen(self, port: Port) -> None:
        self.loop.add_reader(port.socket.fileno(), self._accept, port)

    def _accept(self, port: Port) -> None:
        for _ in range(_AT_ONE_GO):
            try:
                connected, address = port.socket.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:  # out of file descriptors or memory: rest until the next tick
                LOGGER.warning("cannot accept a connection: %s", error.strerror)
                self.loop.remove_reader(port.socket.fileno())
                self._deaf.append(port)
                self._dismiss_oldest(self._waiting)
                return
            self._begin(port, connected, str(address[0]))

    def _begin(self, port: Port, connected: socket.socket, address: str) -> None:
        connected.setblocking(False)
        with contextlib.suppress(OSError):  # the peer may be gone already
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if len(self._waiting_from[address]) >= self.limits.connections_per_address:
            self._dismiss_oldest(self._waiting_from[address])
        if len(self._waiting) >= self.limits.connections:
            self._dismiss_oldest(self._waiting)
        connection = Connection(self, address)
        self._waiting[connection] = self._waiting_from[address][connection] = None
        opening = self._connections[connection] = _Opening(connected)
        opening.task = self.loop.create_task(self._open(connection, opening, port.tls and port.tls()))

    async def _open(self, connection: Connection, opening: _Opening, tls: ssl.SSLContext | None) -> None:
        """Bring a connection to where it may speak; on the TLS port that is after the handshake."""
        limits: dict[str, Any] = {} if tls is None else {"ssl_handshake_timeout": self.limits.handshake_seconds}
        connected, opening.socket = opening.socket, None
        assert connected is not None
        try:
            await self.loop.connect_accepted_socket(lambda: connection, connected, ssl=tls, **limits)
        except Exception as error:  # noqa: BLE001 - outermost in its task: whatever it was, the place is free again
            words = _handshake_words(error)
            LOGGER.warning("no connection with %s: %s", connection.address, words)
            self._refused(connection.address, f"TLS: {words}")
            self.forget(connection)

    def _decide_soon(self) -> None:
        if self._asking and not self._decides_soon:
            self._decides_soon = True
            self.loop.call_soon(self._decide_next)

    def _decide_next(self) -> None:
        self._decides_soon = False
        until = self.now() + _DECIDE_SECONDS
        while self._asking:  # they may have left
            self._asking.next().decide()
            if self.now() >= until:
                break
        self._decide_soon()

    def _stop_waiting(self, connection: Connection) -> None:
        self._asking.discard(connection)
        if connection in self._waiting:
            del self._waiting[connection]
            del self._waiting_from[connection.address][connection]
            if not self._waiting_from[connection.address]:
                del self._waiting_from[connection.address]

    def _dismiss_oldest(self, waiting: Iterable[Connection]) -> None:
        """Close the connection that has waited longest for its request."""
        oldest = next(iter(waiting), None)
        if oldest is not None:
            LOGGER.debug("closed a connection from %s that asked for no association", oldest.address)
            self._dismiss(oldest)

    def _dismiss(self, connection: Connection) -> None:
        if connection.is_open:
            self._stop_waiting(connection)
            connection.drop()
        else:
            self._discard(connection)

    def _discard(self, connection: Connection) -> None:
        """Forget a connection that never came to speak."""
        opening = self._connections[connection]
        self.forget(connection)
        if opening.task is not None:
            opening.task.cancel()
        if opening.socket is not None:
            opening.socket.close()

    def _tick(self) -> None:
        """Look at every clock; nothing that goes wrong with one connection or port may stop it."""
        self.loop.call_later(_TICK_SECONDS, self._tick)
        now = self.now()
        for connection in list(self._connections):
            try:
                connection.tick(now)
            except Exception as error:  # noqa: BLE001 - outermost loop, see above
                LOGGER.error("ended a connection after %s in %s", type(error).__name__, where(error))  # noqa: TRY400
                with contextlib.suppress(Exception):
                    connection.drop()
        if not self._closing:
            self._deaf = [port for port in self._deaf if not self._listens_again(port)]
        self._ticked(now)

    def _listens_again(self, port: Port) -> bool:
        """Accept from a port that rested; False where that fails, and it rests on."""
        try:
            self._listen(port)
        except Exception as error:  # noqa: BLE001 - outermost loop, see `_tick`
            if not self._fails_to_listen:
                LOGGER.error("cannot listen on a port again: %s", unexpected(error))  # noqa: TRY400
            self._fails_to_listen = True
            return False
        self._fails_to_listen = False
        return True

    async def _drain(self, grace_seconds: float) -> None:
        self._closing = True
        for port in self._ports:
            self.loop.remove_reader(port.socket.fileno())
            port.socket.close()
        for connection in [*self._waiting, *self._asking]:
            self._dismiss(connection)
        deadline = self.now() + grace_seconds
        while self._connections and self.now() < deadline:
            for connection in list(self._connections):
                if connection.quiet_seconds > _QUIET_SECONDS:
                    connection.abort()
            await self._until_one_less()
        for connection in list(self._connections):
            connection.abort()
        deadline = self.now() + _LAST_SECONDS
        while self._connections and self.now() < deadline:
            await self._until_one_less()
        for connection in list(self._connections):
            connection.drop()
        while self._connections and self.now() < deadline + _LAST_SECONDS:
            await self._until_one_less()

    async def _until_one_less(self) -> None:
        """Wait until a connection is gone, or a moment."""
        self._one_less.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_TICK_SECONDS):
                await self._one_less.wait()
