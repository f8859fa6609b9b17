"""Run associations on pynetdicom over sockets that bound what a peer may do to this node.

pynetdicom by itself waits for ever for the rest of a PDU, believes any length, queues requests without end, and closes
idle associations by the wall clock. `PatientSocket` bounds all four, and sleeps instead of polling while the peer has
the word. An acceptor of our own may replace this module; `scp` would not change.
"""

from __future__ import annotations

import contextlib
import queue
import select
import socket
import time
from collections.abc import Callable  # noqa: TC003 - dataclass field
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pynetdicom import AE, _config
from pynetdicom.transport import AssociationServer, AssociationSocket, RequestHandler

from pacs_ai.dicom.identifiers import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from pacs_ai.receive.dimse import Dimse, Serve
from pacs_ai.receive.guard import HEADER, abort

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pynetdicom.association import Association
    from pynetdicom.presentation import PresentationContext

#: Longest PDU other than P-DATA-TF.
_MAX_OTHER_BYTES = 65536
_P_DATA_TF = 0x04
#: While the peer has the word the reading thread sleeps, and looks after itself so often, in seconds.
_REST_SECONDS = 0.25
#: The same while an association begins or ends.
_SHORT_REST_SECONDS = 0.02
_UNLIMITED = 1 << 30


@dataclass(frozen=True)
class Bounds:
    """What one association may cost.

    Parameters
    ----------
    pdu_bytes
        Advertised Maximum Length: a longer P-DATA-TF is a protocol error (PS3.8 D.1).
    instance_bytes
        A longer data set is read and thrown away.
    network_seconds
        Silence that ends an association; also the longest pause inside a PDU or while sending one.
    bytes_per_second
        Slowest average pace within one PDU.
    """

    pdu_bytes: int = 131072
    instance_bytes: int = 4 << 30
    network_seconds: float = 60.0
    bytes_per_second: int = 8192


class PatientSocket(AssociationSocket):  # type: ignore[misc]
    """The socket of one association whose A-ASSOCIATE-RQ was read already.

    Parameters
    ----------
    assoc, client_socket
        As for pynetdicom's.
    request
        The whole A-ASSOCIATE-RQ PDU, which pynetdicom then reads from here.
    bounds
        What the association may cost.
    """

    def __init__(self, assoc: Association, client_socket: socket.socket, request: bytes, bounds: Bounds) -> None:
        super().__init__(assoc, client_socket=client_socket)
        client_socket.settimeout(bounds.network_seconds)
        client_socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._bounds = bounds
        self._request = request
        self._kind = 0
        self._owes_answer = True
        self._last_active = time.monotonic()
        self._poll = select.poll()
        self._poll.register(client_socket, select.POLLIN)

    @property
    def quiet_seconds(self) -> float:
        """Time since the last byte went either way; 0 while a message is under way or unanswered."""
        return 0.0 if self._is_busy() else time.monotonic() - self._last_active

    @property
    def ready(self) -> bool:
        """Tell whether there is something to read that may be read now; rests while the peer has the word."""
        if self.socket is None or not self._is_connected or self.socket.fileno() < 0:
            return False
        if self._request:
            return True
        if self.assoc.dimse.msg_queue.qsize():
            return False  # one request at a time: the next one waits in the peer's TCP window
        may_rest = self.assoc.dimse.is_amid_message or not self._owes_answer
        rest = (_REST_SECONDS if self.assoc.is_established else _SHORT_REST_SECONDS) if may_rest else 0.0
        if self._poll.poll(rest * 1000):
            return True
        patience = self._bounds.network_seconds * (1 if may_rest else 2)
        if time.monotonic() - self._last_active > patience:
            self.cut(0)
        return False

    def recv(self, nr_bytes: int) -> bytearray:
        """Return the six bytes of a PDU's header, or what follows; fewer where the peer is gone.

        Raises
        ------
        OSError
            The PDU is too long, or comes too slowly; the peer was sent an A-ABORT.
        """
        if self._request:
            taken, self._request = self._request[:nr_bytes], self._request[nr_bytes:]
            return bytearray(taken)
        if nr_bytes != HEADER.size or self._kind:
            self._check_length(nr_bytes)
        received = self._receive(nr_bytes)
        # the first call reads a header and notes its kind, the second the rest
        self._kind = 0 if self._kind or len(received) < HEADER.size else received[0]
        self._last_active = time.monotonic()
        self._owes_answer = True
        return received

    def send(self, bytestream: bytes) -> None:
        """Send a PDU; then the peer has the word."""
        super().send(bytestream)
        self._last_active = time.monotonic()
        self._owes_answer = False

    def close(self) -> None:
        """Close, also where the peer was faster."""
        connection = self.socket
        super().close()
        if connection is not None:
            connection.close()

    def cut(self, reason: int) -> None:
        """Abort from this side at once (PS3.8 9.3.8), whatever pynetdicom is about to do; from any thread."""
        connection = self.socket
        if connection is not None:
            with contextlib.suppress(OSError):
                connection.send(abort(reason), socket.MSG_DONTWAIT)
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _is_busy(self) -> bool:
        dimse = self.assoc.dimse
        return self._owes_answer or dimse.is_amid_message or bool(dimse.msg_queue.qsize())

    def _receive(self, nr_bytes: int) -> bytearray:
        assert self.socket is not None
        received = bytearray(nr_bytes)
        view = memoryview(received)
        deadline = time.monotonic() + self._bounds.network_seconds + nr_bytes / self._bounds.bytes_per_second
        count = 0
        while count < nr_bytes:
            try:
                got = self.socket.recv_into(view[count:])
            except TimeoutError:
                got = -1
            if got < 0 or time.monotonic() > deadline:
                self.cut(0)
                raise TimeoutError("the peer stopped amid a PDU, or sent it too slowly")
            if got == 0:
                break
            count += got
        view.release()
        del received[count:]
        return received

    def _check_length(self, nr_bytes: int) -> None:
        """Refuse a PDU that is too long before reading it."""
        if nr_bytes > (self._bounds.pdu_bytes if self._kind == _P_DATA_TF else _MAX_OTHER_BYTES):
            self.cut(6)
            raise OSError("a PDU is longer than was agreed")


class _WakingQueue(queue.Queue[Any]):
    """What comes for the association's own thread: also wakes it, should it sleep in `Dimse.get_msg`."""

    def __init__(self, wakes: queue.Queue[Any]) -> None:
        super().__init__()
        self._wakes = wakes

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        super().put(item, block, timeout)
        self._wakes.put((None, None))


class _SharedContexts(list["PresentationContext"]):
    """Presentation contexts that pynetdicom need not copy for each association: negotiation only reads them."""

    def __deepcopy__(self, memo: dict[int, Any]) -> _SharedContexts:
        return self


class _Handler(RequestHandler):  # type: ignore[misc]
    """Makes an association of a socket and the A-ASSOCIATE-RQ that came over it."""

    server: Acceptor
    request: Any

    def setup(self) -> None:
        self.request, self._associate_rq = self.request

    def handle(self) -> None:
        assoc = self._create_association()
        assoc.dul.event_queue.get_nowait()  # pynetdicom's own socket announced itself; ours does so again
        assoc.dul.socket = PatientSocket(assoc, self.request, self._associate_rq, self.server.bounds)
        assoc.dul.daemon = True
        assoc.dimse = Dimse(assoc, self.server.serve, self.server.bounds.instance_bytes)
        assoc.dul.to_user_queue = _WakingQueue(assoc.dimse.msg_queue)
        self.server.started(assoc)
        assoc.start()


class Acceptor(AssociationServer):  # type: ignore[misc]
    """A bound and listening socket, and the associations on what came in by it; somebody else accepts.

    Parameters
    ----------
    address
        Host and port; port 0 takes a free one.
    ae_title
        Ours.
    contexts
        Accepted, in order of preference.
    bounds
        What each association may cost.
    serve
        Answers a C-STORE, in the thread that reads the association; must not raise.
    handlers
        (event, function) pairs for pynetdicom.
    started
        Called with each association just before it runs.
    reuse_port
        Let several processes listen on the same port (SO_REUSEPORT), the kernel sharing out the connections.
    """

    request_queue_size = 256

    def __init__(
        self,
        address: tuple[str, int],
        ae_title: str,
        contexts: Sequence[PresentationContext],
        bounds: Bounds,
        serve: Serve,
        handlers: Sequence[tuple[Any, Callable[..., Any]]],
        started: Callable[[Association], None],
        *,
        reuse_port: bool,
    ) -> None:
        _config.LOG_HANDLER_LEVEL = "none"  # documented; its handlers format every PDU, and log peers' text as it came
        self.bounds = bounds
        self.serve = serve
        self.started = started
        self._reuse_port = reuse_port
        ae = AE(ae_title=ae_title)
        ae.implementation_class_uid = IMPLEMENTATION_CLASS_UID
        ae.implementation_version_name = IMPLEMENTATION_VERSION_NAME
        ae.maximum_pdu_size = bounds.pdu_bytes
        ae.maximum_associations = _UNLIMITED  # the caller of `begin` counts
        ae.network_timeout = None  # wall clock; PatientSocket has a monotonic one
        super().__init__(ae, address, ae_title, _SharedContexts(contexts), None, list(handlers), _Handler)

    def server_bind(self) -> None:
        """Bind, sharing the port where that is asked for."""
        if self._reuse_port:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        super().server_bind()

    def begin(self, connection: socket.socket, associate_rq: bytes) -> None:
        """Run an association on a connection in threads of its own; owns the connection.

        Raises
        ------
        RuntimeError
            No further thread can be started.
        """
        self.process_request((connection, associate_rq), connection.getpeername())
