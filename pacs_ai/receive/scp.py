"""Listen for peers: decide who may associate, take C-ECHO and C-STORE, and answer each with what really happened."""

from __future__ import annotations

import errno
import ipaddress
import logging
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping  # noqa: TC003 - dataclass fields
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from pynetdicom import evt

from pacs_ai.dicom import status
from pacs_ai.dicom.arrival import AssociationInfo
from pacs_ai.dicom.attributes import is_uid
from pacs_ai.dicom.contexts import DEFAULT_TRANSFER_SYNTAXES, acceptor_contexts
from pacs_ai.errors import Mismatch, NotUnderstood, PacsAiError, Transient, UserError
from pacs_ai.log import shown
from pacs_ai.receive import guard
from pacs_ai.receive.acceptor import Acceptor, Bounds, PatientSocket
from pacs_ai.receive.dimse import Answer, StoreRequest
from pacs_ai.receive.ingest import Ingest, ReceivedInstance

if TYPE_CHECKING:
    import socket

    from pynetdicom.association import Association

LOGGER = logging.getLogger(__name__)

#: An association that was quiet for so long is not waited for when the node stops.
_QUIET_SECONDS = 1.0
#: Type of error -> status and Error Comment (0000,0902): LO, so at most 64 characters, and never a peer's text.
_ANSWERS: tuple[tuple[type[Exception], Answer], ...] = (
    (Transient, Answer(status.OUT_OF_RESOURCES, "cannot store now; try again later")),
    (Mismatch, Answer(status.DATA_SET_MISMATCH, "command and data set name different SOP classes or instances")),
    (NotUnderstood, Answer(status.CANNOT_UNDERSTAND, "not a whole and sound DICOM data set")),
    (PacsAiError, Answer(status.CANNOT_UNDERSTAND, "cannot be stored")),
)


def always() -> bool:
    """Return True: there is room for another instance."""
    return True


@dataclass(frozen=True)
class Listen:
    """How one receive process listens.

    Parameters
    ----------
    bind, port
        Address and TCP port; port 0 takes a free one (`Receiver.port`).
    ae_titles
        Called AE titles that are answered; the first is the node's own.
    callers
        Calling AE title -> addresses and networks ("10.1.2.0/24") it may come from, None for any; None as a whole lets
        anyone call.
    transfer_syntaxes, further_sop_classes
        As `pacs_ai.dicom.contexts.acceptor_contexts` takes them.
    bounds
        What one association may cost.
    waiting
        What connections without an association may cost.
    maximum_associations, maximum_associations_per_peer
        At one time, in this process; the latter of one calling AE title.
    reuse_port
        Share the port with other receive processes.
    has_free_space
        Asked before each instance is stored; False answers "out of resources" without writing.
    """

    bind: str = "127.0.0.1"
    port: int = 11112
    ae_titles: tuple[str, ...] = ("PACS_AI",)
    callers: Mapping[str, frozenset[str] | None] | None = None
    transfer_syntaxes: tuple[str, ...] = DEFAULT_TRANSFER_SYNTAXES
    further_sop_classes: tuple[str, ...] = ()
    bounds: Bounds = field(default_factory=Bounds)
    waiting: guard.Limits = field(default_factory=guard.Limits)
    maximum_associations: int = 200
    maximum_associations_per_peer: int = 32
    reuse_port: bool = False
    has_free_space: Callable[[], bool] = always


def judge(
    listen: Listen, request: guard.AssociationRequest, address: str, running: Counter[str]
) -> guard.Rejection | None:
    """Return why an association is rejected (PS3.8 9.3.4), None where it may go on.

    Parameters
    ----------
    running
        Associations at this time by calling AE title.
    """
    calling = request.calling_ae_title
    if request.called_ae_title not in listen.ae_titles:
        return guard.CALLED_AE_TITLE_NOT_RECOGNISED
    if calling is None or not _may_call(listen, calling, address):
        return guard.CALLING_AE_TITLE_NOT_RECOGNISED
    if running.total() >= listen.maximum_associations or running[calling] >= listen.maximum_associations_per_peer:
        return guard.LOCAL_LIMIT_EXCEEDED
    return None


def _may_call(listen: Listen, calling: str, address: str) -> bool:
    if listen.callers is None:
        return True
    if calling not in listen.callers:
        return False
    allowed = listen.callers[calling]
    if allowed is None:
        return True
    caller = ipaddress.ip_address(address.partition("%")[0])
    mapped = caller.ipv4_mapped if isinstance(caller, ipaddress.IPv6Address) else None
    return any((mapped or caller) in ipaddress.ip_network(network, strict=False) for network in allowed)


@dataclass(eq=False)
class _Running:
    """One association that was let in."""

    info: AssociationInfo
    assoc: Association | None = None
    released: bool = False
    told: bool = False
    instances: int = 0
    failures: int = 0

    def is_over(self) -> bool:
        return self.assoc is None or not (self.assoc.is_alive() or self.assoc.dul.is_alive())

    @property
    def socket(self) -> PatientSocket | None:
        return None if self.assoc is None else self.assoc.dul.socket


class Receiver:
    """The listening side of the node: an AE on a port, in threads of its own.

    Parameters
    ----------
    listen
        How to listen.
    ingest
        Where instances go.

    Raises
    ------
    UserError
        The port is taken or may not be used, or a transfer syntax or SOP class is none.
    """

    def __init__(self, listen: Listen, ingest: Ingest) -> None:
        self._listen = listen
        self._ingest = ingest
        self._running: dict[Association, _Running] = {}
        self._admitting: _Running | None = None
        self._untold: list[_Running] = []
        self._lock = threading.Lock()
        self._acceptor = self._bind()
        self._antechamber = guard.Antechamber(self._acceptor.socket, listen.waiting, self._admit, self._look_after)
        self._thread = threading.Thread(target=self._antechamber.serve, name="antechamber", daemon=True)

    @property
    def port(self) -> int:
        """The TCP port listened on."""
        return int(self._acceptor.server_address[1])

    @property
    def associations(self) -> int:
        """How many associations are open."""
        with self._lock:
            return len(self._running)

    def start(self) -> None:
        """Let peers in; returns at once."""
        self._thread.start()
        titles = ", ".join(self._listen.ae_titles)
        LOGGER.info("listening as %s on %s port %d", titles, self._listen.bind, self.port)

    def stop(self, grace_seconds: float = 20.0) -> None:
        """Let nobody in any more, give open associations time to end, abort those that do not."""
        self._antechamber.close()
        self._thread.join()
        deadline = time.monotonic() + grace_seconds
        while self.associations and time.monotonic() < deadline:
            self._cut(lambda running: running.socket is not None and running.socket.quiet_seconds > _QUIET_SECONDS)
            self._wait_for_one_end(0.05)
        self._cut(lambda _: True)
        deadline = time.monotonic() + 5.0
        while self.associations and time.monotonic() < deadline:
            self._wait_for_one_end(0.05)
        if self.associations:
            LOGGER.warning("%d associations did not end in time", self.associations)

    def _bind(self) -> Acceptor:
        listen = self._listen
        contexts = acceptor_contexts(listen.transfer_syntaxes, listen.further_sop_classes)
        try:
            return Acceptor(
                (listen.bind, listen.port),
                listen.ae_titles[0],
                contexts,
                listen.bounds,
                self._serve,
                [(evt.EVT_RELEASED, self._on_released)],
                self._on_started,
                reuse_port=listen.reuse_port,
            )
        except OSError as error:
            advice = {
                errno.EADDRINUSE: "another program has it: stop that one, or set another [receive] port",
                errno.EACCES: "ports below 1024 need a privilege: set another [receive] port",
                errno.EADDRNOTAVAIL: "this machine has no such address: correct [receive] bind",
            }.get(error.errno or 0, error.strerror or "the operating system refused")
            raise UserError(f"cannot listen on {listen.bind} port {listen.port}: {advice}") from error

    def _admit(self, connection: socket.socket, address: str, associate_rq: bytes) -> None:
        """Reject, or start an association; called in the antechamber's thread, one at a time."""
        try:
            request = guard.examine(associate_rq)
        except guard.MalformedRequest as error:
            LOGGER.warning("association request from %s is malformed: %s", address, error)
            guard.turn_away(connection, guard.abort(6))
            return
        with self._lock:
            running = Counter(other.info.calling_ae_title for other in self._running.values())
        rejection = judge(self._listen, request, address, running)
        if rejection is None:
            rejection = self._begin(connection, address, request, associate_rq)
        if rejection is not None:
            names = (shown(request.raw_calling), address, shown(request.raw_called))
            LOGGER.warning("rejected association of '%s' at %s to '%s': %s", *names, rejection.words)
            guard.turn_away(connection, rejection.encode())

    def _begin(
        self, connection: socket.socket, address: str, request: guard.AssociationRequest, associate_rq: bytes
    ) -> guard.Rejection | None:
        """Start an association; return why it could not be started."""
        assert request.calling_ae_title is not None
        assert request.called_ae_title is not None
        info = AssociationInfo(
            uuid.uuid4().hex, request.calling_ae_title, request.called_ae_title, address, datetime.now(UTC)
        )
        running = _Running(info)
        try:
            self._ingest.opened(info)
        except Transient as error:
            LOGGER.warning("association cannot be noted: %s", error)
            return guard.TEMPORARY_CONGESTION
        self._admitting = running
        try:
            self._acceptor.begin(connection, associate_rq)
        except (OSError, RuntimeError) as error:  # the peer is gone already, or no thread can be started
            LOGGER.warning("association of %s at %s did not start: %s", info.calling_ae_title, address, error)
            self._tell_end(running)
            return guard.TEMPORARY_CONGESTION
        return None

    def _on_started(self, assoc: Association) -> None:
        running = self._admitting
        assert running is not None
        running.assoc = assoc
        with self._lock:
            self._running[assoc] = running
        info = running.info
        LOGGER.info("association of %s at %s to %s opened", info.calling_ae_title, info.address, info.called_ae_title)

    def _on_released(self, event: evt.Event) -> None:
        running = self._running[event.assoc]
        running.released = True
        self._tell_end(running)

    def _look_after(self) -> None:
        """Forget associations that ended in whatever way, and tell what could not be told before."""
        with self._lock:
            over = [running for running in self._running.values() if running.is_over()]
            self._running = {assoc: running for assoc, running in self._running.items() if running not in over}
            untold = [running for running in (*self._untold, *over) if not running.told]
            self._untold = []
        for running in untold:
            self._tell_end(running)

    def _tell_end(self, running: _Running) -> None:
        """Tell the ingest that an association ended, again later where that fails for now."""
        info = running.info
        running.told = True
        try:
            self._ingest.ended(info.assoc_id, running.released)
        except Transient as error:
            LOGGER.warning("end of an association cannot be noted yet: %s", error)
            with self._lock:
                running.told = False
                self._untold.append(running)
            return
        how = "released" if running.released else "aborted or lost"
        counts = (running.instances, running.failures)
        LOGGER.info("association of %s %s: %d instances stored, %d not", info.calling_ae_title, how, *counts)

    def _cut(self, which: Callable[[_Running], bool]) -> None:
        with self._lock:
            chosen = [running for running in self._running.values() if which(running)]
        for running in chosen:
            if running.socket is not None:
                running.socket.cut(0)

    def _wait_for_one_end(self, seconds: float) -> None:
        with self._lock:
            assoc = next(iter(self._running), None)
        if assoc is not None:
            assoc.join(seconds)
        self._look_after()

    def _serve(self, assoc: Association, request: StoreRequest) -> Answer:
        """Answer one C-STORE; the outermost place where whatever goes wrong becomes a status (PS3.4 B.2.3)."""
        running = self._running[assoc]
        try:
            answer = self._store(request, running.info)
        except PacsAiError as error:
            answer = next(answer for kind, answer in _ANSWERS if isinstance(error, kind))
            LOGGER.warning("instance from %s not stored: %s", running.info.calling_ae_title, shown(error))
        except Exception as error:  # noqa: BLE001 - outermost: never Success after a fault
            answer = Answer(status.PROCESSING_FAILURE, "internal error; see the node's log")
            names = (running.info.calling_ae_title, type(error).__name__, guard.where(error))
            LOGGER.error("instance from %s not stored: %s in %s", *names)  # noqa: TRY400 - its text may hold PHI
        if answer.status == status.SUCCESS:
            running.instances += 1
        else:
            running.failures += 1
        return answer

    def _store(self, request: StoreRequest, info: AssociationInfo) -> Answer:
        if request.data_set is None:
            return Answer(status.OUT_OF_RESOURCES, "longer than this node accepts")
        if request.sop_class_uid != request.abstract_syntax:
            return Answer(status.DATA_SET_MISMATCH, "SOP class is not that of the presentation context")
        if not is_uid(request.sop_instance_uid):
            return Answer(status.INVALID_SOP_INSTANCE, "Affected SOP Instance UID is no UID")
        if not self._listen.has_free_space():
            LOGGER.warning("instance from %s not stored: free space is below the watermark", info.calling_ae_title)
            return Answer(status.OUT_OF_RESOURCES, "free disk space is below the watermark")
        self._ingest.store(
            ReceivedInstance(
                data_set=request.data_set,
                sop_class_uid=request.sop_class_uid,
                sop_instance_uid=request.sop_instance_uid,
                transfer_syntax_uid=request.transfer_syntax,
                calling_ae_title=info.calling_ae_title,
                called_ae_title=info.called_ae_title,
                address=info.address,
                assoc_id=info.assoc_id,
                priority=request.priority,
            )
        )
        return Answer(status.SUCCESS)
