"""Listen for peers: decide who may associate, take C-ECHO and C-STORE, and answer each with what really happened."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import logging
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from pacs_ai.dicom.arrival import AssociationInfo, Refusal
from pacs_ai.dicom.contexts import DEFAULT_TRANSFER_SYNTAXES, acceptor_contexts
from pacs_ai.errors import Transient, UserError
from pacs_ai.log import shown
from pacs_ai.receive import guard
from pacs_ai.receive.acceptor import Acceptor, Port, listening, new_event_loop
from pacs_ai.receive.desk import SERVICE_THREADS, THREADS, Desk
from pacs_ai.receive.exchange import Exchange
from pacs_ai.receive.negotiation import Agreement, Negotiator, service_contexts
from pacs_ai.tls import bears

if TYPE_CHECKING:
    import asyncio
    import socket
    import ssl
    from collections.abc import Callable, Collection, Mapping

    from pacs_ai.receive.connection import Connection
    from pacs_ai.receive.ingest import Ingest
    from pacs_ai.receive.service import Services

LOGGER = logging.getLogger(__name__)

#: What could not be noted is tried again after so long, in seconds.
_AGAIN_SECONDS = 0.25


def always() -> bool:
    """Return True: there is room for another instance."""
    return True


def ignore(_refusal: Refusal) -> None:
    """Tell nobody."""


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
    maximum_associations, maximum_associations_per_peer, maximum_associations_per_address
        At one time, in this process; in all, of one calling AE title, and from one address.
    reuse_port
        Share the port with other receive processes.
    has_free_space
        Asked before each instance, in the event loop's thread, so it must not wait; False, or None where it is not
        known, answers "out of resources" and keeps nothing of it.
    tls, tls_port
        What tells how TLS is spoken by now, on a second port; None for no such port. Port 0 takes a free one
        (`Receiver.tls_port`).
    certificate_names
        Calling AE title -> the name that its certificate must bear, for callers by TLS; others may bear any.
    plain
        Whether the port without TLS is opened.
    services
        What is served beside storing.
    on_refusal
        Told of every peer that was turned away; called in the event loop's thread, so it must not wait.
    event_loop
        Makes the loop to run in.
    """

    bind: str = "127.0.0.1"
    port: int = 11112
    ae_titles: tuple[str, ...] = ("PACS_AI",)
    callers: Mapping[str, frozenset[str] | None] | None = None
    transfer_syntaxes: tuple[str, ...] = DEFAULT_TRANSFER_SYNTAXES
    further_sop_classes: tuple[str, ...] = ()
    bounds: guard.Bounds = field(default_factory=guard.Bounds)
    waiting: guard.Limits = field(default_factory=guard.Limits)
    maximum_associations: int = 500
    maximum_associations_per_peer: int = 32
    maximum_associations_per_address: int = 250
    reuse_port: bool = False
    has_free_space: Callable[[], bool | None] = always
    tls: Callable[[], ssl.SSLContext] | None = None
    tls_port: int | None = None
    certificate_names: Mapping[str, str] = field(default_factory=dict)
    plain: bool = True
    services: Services = field(default_factory=dict)
    on_refusal: Callable[[Refusal], None] = ignore
    event_loop: Callable[[], asyncio.AbstractEventLoop] = new_event_loop


def judge(
    listen: Listen, request: guard.AssociationRequest, address: str, running: Collection[AssociationInfo]
) -> guard.Rejection | None:
    """Return why an association is rejected (PS3.8 9.3.4), None where it may go on.

    Parameters
    ----------
    running
        The associations of this time.
    """
    calling = request.calling_ae_title
    if not request.speaks_version_1:
        return guard.PROTOCOL_VERSION_NOT_SUPPORTED
    if request.called_ae_title not in listen.ae_titles:
        return guard.CALLED_AE_TITLE_NOT_RECOGNISED
    if calling is None or not _may_call(listen, calling, address):
        return guard.CALLING_AE_TITLE_NOT_RECOGNISED
    return _too_many(listen, calling, address, running)


def _too_many(
    listen: Listen, calling: str, address: str, running: Collection[AssociationInfo]
) -> guard.Rejection | None:
    if len(running) >= listen.maximum_associations:
        return guard.TOO_MANY
    if sum(one.calling_ae_title == calling for one in running) >= listen.maximum_associations_per_peer:
        return guard.TOO_MANY_OF_TITLE
    if sum(one.address == address for one in running) >= listen.maximum_associations_per_address:
        return guard.TOO_MANY_FROM_ADDRESS
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


class Receiver:
    """The listening side of the node: an AE on one or two ports, in threads of its own.

    Parameters
    ----------
    listen
        How to listen.
    ingest
        Where instances go.

    Raises
    ------
    UserError
        A port is taken or may not be used, or a transfer syntax or SOP class is none.
    """

    def __init__(self, listen: Listen, ingest: Ingest) -> None:
        self._listen = listen
        self._ingest = ingest
        contexts = acceptor_contexts(listen.transfer_syntaxes, listen.further_sop_classes)
        self._negotiator = Negotiator([*contexts, *service_contexts(listen.services)], listen.bounds.pdu_bytes)
        self._open: set[Exchange] = set()
        self._plain, self._tls = self._bind()
        self._loop = listen.event_loop()
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="intake")
        self._service_pool = ThreadPoolExecutor(SERVICE_THREADS, thread_name_prefix="service")
        self._desk = Desk(
            ingest=ingest,
            pool=self._pool,
            service_pool=self._service_pool,
            later=self._later,
            instance_bytes=listen.bounds.instance_bytes,
            answer_seconds=listen.bounds.answer_seconds,
            has_free_space=listen.has_free_space,
            services=listen.services,
            ended=self._ended,
        )
        ports = [port for port in (self._plain, self._tls) if port is not None]
        self._acceptor = Acceptor(
            ports, listen.waiting, listen.bounds, self._decide, self._turned_away, self._look_at_leaving, self._loop
        )

    @property
    def port(self) -> int:
        """The TCP port listened on without TLS."""
        return _number(self._plain)

    @property
    def tls_port(self) -> int:
        """The TCP port listened on with TLS."""
        return _number(self._tls)

    @property
    def associations(self) -> int:
        """How many associations are open, or have something under way."""
        return len(self._open)

    @property
    def hangs(self) -> bool:
        """Whether every thread that writes may hang, so that all is refused."""
        return self._desk.hangs

    def start(self) -> None:
        """Let peers in; returns at once."""
        for port, how in ((self._plain, "port"), (self._tls, "TLS port")):
            if port is not None:
                titles = ", ".join(self._listen.ae_titles)
                LOGGER.info("listening as %s on %s %s %d", titles, self._listen.bind, how, _number(port))
        self._acceptor.start()

    def stop(self, grace_seconds: float = 20.0) -> None:
        """Let nobody in any more, give open associations time to end, abort those that do not."""
        self._acceptor.stop(grace_seconds)
        self._pool.shutdown()
        self._service_pool.shutdown(cancel_futures=True)  # what was not begun was not answered either
        if self._open:
            LOGGER.warning("%d associations did not end in time", len(self._open))
        for exchange in tuple(self._open):  # the loop ended before it could hear of their end
            self._note_end(exchange)
            self._tell_end(exchange.info.assoc_id, exchange.is_released)

    def _bind(self) -> tuple[Port | None, Port | None]:
        listen = self._listen
        plain = Port(self._listening(listen.port)) if listen.plain else None
        if listen.tls is None or listen.tls_port is None:
            return plain, None
        try:
            return plain, Port(self._listening(listen.tls_port), listen.tls)
        except UserError:
            if plain is not None:
                plain.socket.close()
            raise

    def _listening(self, port: int) -> socket.socket:
        listen = self._listen
        try:
            return listening(listen.bind, port, reuse_port=listen.reuse_port)
        except OSError as error:
            advice = {
                errno.EADDRINUSE: "another program has it: stop that one, or set another [receive] port",
                errno.EACCES: "ports below 1024 need a privilege: set another [receive] port",
                errno.EADDRNOTAVAIL: "this machine has no such address: correct [receive] bind",
            }.get(error.errno or 0, error.strerror or "the operating system refused")
            raise UserError(f"cannot listen on {listen.bind} port {port}: {advice}") from error

    def _decide(self, connection: Connection, request: bytes) -> tuple[Agreement, Exchange] | guard.Rejection:
        """Judge a peer and its request; called in the loop's thread, one at a time."""
        asked = guard.examine(request)
        running = [exchange.info for exchange in self._open]
        decided = (
            judge(self._listen, asked, connection.address, running)
            or self._judge_certificate(asked, connection)
            or self._negotiator.agree(request)
        )
        if isinstance(decided, guard.Rejection):
            names = (shown(asked.raw_calling), shown(asked.raw_called))
            LOGGER.warning(
                "rejected association of '%s' at %s to '%s': %s", names[0], connection.address, names[1], decided.words
            )
            self._listen.on_refusal(
                Refusal("association", connection.address, *names, decided.words, datetime.now(UTC))
            )
            return decided
        assert asked.calling_ae_title is not None
        assert asked.called_ae_title is not None
        info = AssociationInfo(
            uuid.uuid4().hex, asked.calling_ae_title, asked.called_ae_title, connection.address, datetime.now(UTC)
        )
        exchange = Exchange(info, decided, self._desk, connection)
        self._ingest.opened(info)
        self._open.add(exchange)
        LOGGER.info("association of %s at %s to %s opened", info.calling_ae_title, info.address, info.called_ae_title)
        return decided, exchange

    def _judge_certificate(self, asked: guard.AssociationRequest, connection: Connection) -> guard.Rejection | None:
        wanted = self._listen.certificate_names.get(asked.calling_ae_title or "")
        certificate = connection.certificate
        if wanted and certificate is not None and not bears(certificate, wanted):
            return guard.CERTIFICATE_OF_ANOTHER
        return None

    def _turned_away(self, address: str, words: str) -> None:
        self._listen.on_refusal(Refusal("connection", address, "", "", words, datetime.now(UTC)))

    def _look_at_leaving(self, now: float) -> None:
        """Look at the clocks of those whose peers have gone and of which something is under way."""
        for exchange in tuple(self._open):
            if exchange.is_over:
                exchange.tick(now)

    def _ended(self, exchange: Exchange) -> None:
        """Take note, in the loop's thread, that an association is over; the rest of the node is told by another."""
        self._note_end(exchange)
        self._pool.submit(self._tell_end, exchange.info.assoc_id, exchange.is_released)

    def _note_end(self, exchange: Exchange) -> None:
        self._open.discard(exchange)
        how = "released" if exchange.is_released else "aborted or lost"
        why = "".join(f"; {times}: {words}" for words, times in exchange.failures.items())
        counts = (exchange.stored, exchange.failed, why)
        LOGGER.info("association of %s %s: %d instances stored, %d not%s", exchange.info.calling_ae_title, how, *counts)
        for words, times in exchange.failures.items():
            titles = (exchange.info.calling_ae_title, exchange.info.called_ae_title)
            self._listen.on_refusal(
                Refusal("instance", exchange.info.address, *titles, words, datetime.now(UTC), times)
            )

    def _tell_end(self, assoc_id: str, is_released: bool) -> None:
        """Tell the ingest that an association ended, again later where that fails for now."""
        try:
            self._ingest.ended(assoc_id, is_released)
        except Transient as error:
            LOGGER.warning("end of an association cannot be noted yet: %s", error)
            self._later(self._loop.call_later, _AGAIN_SECONDS, self._pool.submit, self._tell_end, assoc_id, is_released)

    def _later(self, act: Callable[..., object], *arguments: object) -> None:
        """Have a function called in the loop's thread; once the loop has ended nobody waits for it any more."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(act, *arguments)


def _number(port: Port | None) -> int:
    assert port is not None, "no such port was asked for"
    return int(port.socket.getsockname()[1])
