"""A receive process: the listener with the durable ingest behind it, set up from the configuration."""

from __future__ import annotations

import ipaddress
import socket
import sys
import time
from contextlib import suppress
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING

from pacs_ai.audit.tally import FIRST_SECONDS, Tally
from pacs_ai.credentials import Credentials
from pacs_ai.dicom import contexts
from pacs_ai.errors import Transient, UserError
from pacs_ai.receive import commitment
from pacs_ai.receive.connection import Bounds
from pacs_ai.receive.guard import Limits
from pacs_ai.receive.ingest import DurableIngest
from pacs_ai.receive.scp import Listen, Receiver
from pacs_ai.store import processes
from pacs_ai.store.ahead import SEGMENTS, Ahead
from pacs_ai.store.files import Files
from pacs_ai.store.index import Index
from pacs_ai.store.life import entered
from pacs_ai.store.owners import BEAT_SECONDS
from pacs_ai.tls import server_context

if TYPE_CHECKING:
    import threading
    from collections.abc import Mapping

    from pacs_ai.config import Config
    from pacs_ai.receive.service import Services

#: After so long a thread that computes lets the one that reads the network go on, in seconds; Python has 0.005.
SWITCH_SECONDS = 0.0005


def run(config: Config, stop: threading.Event) -> None:
    """Listen until `stop` is set."""
    sys.setswitchinterval(SWITCH_SECONDS)
    credentials = None if config.receive.tls_port is None else Credentials(config.tls, server_context)
    with entered(config, "receive", config.receive.where) as (database, owner):
        files = Files(config.store.folder / "files")
        index = Index(database, files.path, owner)
        tally = Tally(database)

        def ended(assoc_id: str, released: bool) -> None:
            tally.ended(assoc_id, brought=index.association_ended(assoc_id, released))

        ingest = DurableIngest(
            files,
            index.record,
            ahead=_ahead(config, files),
            is_recorded=index.is_recorded,
            note_opened=tally.opened,
            note_ended=ended,
        )
        settings = listen(config, files, commitment.services(config, database, owner), credentials)
        receiver = Receiver(replace(settings, on_refusal=tally.refused), ingest)
        receiver.start()
        beat_at = time.monotonic()
        try:
            while not stop.wait(FIRST_SECONDS):
                tally.write()
                if credentials is not None:
                    credentials.renew()
                if time.monotonic() - beat_at >= BEAT_SECONDS:
                    beat_at = time.monotonic()
                    with suppress(Transient):
                        processes.seen(database, owner)
        finally:
            receiver.stop(config.receive.grace_seconds)
            ingest.close()
            tally.write(whole=True)


def _ahead(config: Config, files: Files) -> Ahead:
    """Return where short instances are written ahead to; no room at all where the configuration wants none.

    What lies there from before is indexed all the same: it was answered Success.
    """
    segment_bytes = (config.receive.ahead_mb << 20) // SEGMENTS
    most = SEGMENTS if segment_bytes else 0
    return Ahead(config.store.folder / "ahead", files.disk, segment_bytes=segment_bytes, most=most)


def listen(
    config: Config, files: Files, services: Services = MappingProxyType({}), credentials: Credentials | None = None
) -> Listen:
    """Return the listener's settings, with what it serves beside storing; credentials where there is a TLS port."""
    receive = config.receive
    return Listen(
        bind=receive.bind,
        port=receive.port,
        ae_titles=receive.ae_titles,
        callers=_callers(config) if receive.accept == "peers" else None,
        transfer_syntaxes=contexts.transfer_syntaxes(receive.transfer_syntaxes),
        further_sop_classes=receive.further_sop_classes,
        bounds=Bounds(
            pdu_bytes=receive.max_pdu_bytes,
            instance_bytes=int(receive.max_instance_gb * 1e9),
            network_seconds=receive.network_seconds,
            bytes_per_second=receive.min_bytes_per_second,
            write_seconds=receive.write_seconds,
            answer_seconds=receive.answer_seconds,
        ),
        waiting=Limits(
            connections=receive.max_connections,
            connections_per_address=receive.max_connections_per_address,
            request_seconds=receive.association_request_seconds,
            handshake_seconds=receive.handshake_seconds,
        ),
        maximum_associations=receive.max_associations,
        maximum_associations_per_peer=receive.max_associations_per_peer,
        reuse_port=receive.processes > 1,
        has_free_space=FreeSpace(config, files),
        plain=receive.plain,
        tls=None if credentials is None else credentials.context,
        tls_port=receive.tls_port,
        services=services,
        certificate_names={peer.ae_title: peer.certificate_name for peer in config.peer if peer.certificate_name},
    )


class FreeSpace:
    """Tells whether there is room above the watermark; asks the file system twice a second at most."""

    def __init__(self, config: Config, files: Files) -> None:
        self._files = files
        self._bytes = config.store.min_free_gb * 1e9
        self._share = config.store.min_free_percent / 100
        self._asked = 0.0
        self._answer = True

    def __call__(self) -> bool:
        """Tell whether an instance may be stored."""
        now = time.monotonic()
        if now - self._asked >= 0.5:
            self._asked = now
            self._answer = self._files.free_bytes() >= self._bytes and self._files.free_fraction() >= self._share
        return self._answer


def _callers(config: Config) -> Mapping[str, frozenset[str]]:
    """Return calling AE title -> addresses, host names resolved; several peers may share a title."""
    allowed: dict[str, frozenset[str]] = {}
    for peer in config.peer:
        found = set(peer.addresses)
        try:
            ipaddress.ip_address(peer.host)
            found.add(peer.host)
        except ValueError:
            try:
                found |= {str(entry[4][0]) for entry in socket.getaddrinfo(peer.host, None)}
            except OSError as error:
                raise UserError(f"peer {peer.name}: host {peer.host} cannot be resolved: {error.strerror}") from error
        allowed[peer.ae_title] = allowed.get(peer.ae_title, frozenset()) | found
    return allowed
