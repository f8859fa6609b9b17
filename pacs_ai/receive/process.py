"""A receive process: the listener with the durable ingest behind it, set up from the configuration."""

from __future__ import annotations

import logging
import resource
import sys
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING

from pacs_ai.audit.tally import FIRST_SECONDS, Tally
from pacs_ai.credentials import Credentials
from pacs_ai.dicom import contexts
from pacs_ai.receive import commitment
from pacs_ai.receive.callers import Callers
from pacs_ai.receive.guard import Bounds, Limits
from pacs_ai.receive.ingest import DurableIngest
from pacs_ai.receive.problem import Problems
from pacs_ai.receive.scp import Listen, Receiver
from pacs_ai.receive.space import FreeSpace
from pacs_ai.store.ahead import SEGMENTS, Ahead
from pacs_ai.store.files import Files
from pacs_ai.store.index import Index
from pacs_ai.store.life import receiving
from pacs_ai.tls import server_context

if TYPE_CHECKING:
    import threading
    from collections.abc import Mapping

    from pacs_ai.config import Config
    from pacs_ai.network_sections import Receive
    from pacs_ai.receive.service import Services

LOGGER = logging.getLogger(__name__)

#: After so long a thread that computes lets the one that reads the network go on, in seconds; Python has 0.005.
SWITCH_SECONDS = 0.0005
#: Files open beside connections and what they write: database, segments, log, libraries.
_OTHER_FILES = 256


def run(config: Config, stop: threading.Event) -> None:
    """Listen until `stop` is set."""
    sys.setswitchinterval(SWITCH_SECONDS)
    allow_files(config.receive)
    credentials = None if config.receive.tls_port is None else Credentials(config.tls, server_context)
    files = Files(config.store.folder / "files")
    with receiving(config, files.disk) as (database, receives):
        index = Index(database, files.path, receives.owner)
        tally = Tally(database)

        def ended(assoc_id: str, released: bool) -> None:
            tally.ended(assoc_id, brought=index.association_ended(assoc_id, released))

        ahead = _ahead(config, files)
        ingest = DurableIngest(
            files,
            index.record,
            ahead=ahead,
            is_recorded=index.is_recorded,
            note_opened=tally.opened,
            note_ended=ended,
        )
        receives.owes_nothing = lambda: ingest.owes_nothing
        receives.say(settled=ingest.is_settled)
        settings = listen(config, commitment.services(config, database, receives.owner), credentials)
        space = FreeSpace(files, config.store.min_free_gb * 1e9, config.store.min_free_percent / 100)
        receiver = Receiver(replace(settings, on_refusal=tally.refused, has_free_space=space), ingest)
        space.start()
        receiver.start()
        problems = Problems(ingest, receiver)
        try:
            while not stop.wait(FIRST_SECONDS):
                tally.write()
                if credentials is not None:
                    credentials.renew()
                receives.say(settled=ingest.is_settled, problem=problems.look())
        finally:
            receiver.stop(config.receive.grace_seconds)
            ingest.close()
            space.stop()
            tally.write(whole=True)


def allow_files(receive: Receive) -> None:
    """Let this process open as many files as its connections may need; a shell's limit is often 1024.

    Each association may be writing a file beside its connection.
    """
    needed = receive.max_connections + 2 * receive.max_associations + _OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    if most < needed:
        LOGGER.warning("%d files may be open, and the connections that [receive] allows may need %d", most, needed)


def _ahead(config: Config, files: Files) -> Ahead:
    """Return where short instances are written ahead to; no room at all where the configuration wants none.

    What lies there from before is indexed all the same: it was answered Success.
    """
    segment_bytes = (config.receive.ahead_mb << 20) // SEGMENTS
    most = SEGMENTS if segment_bytes else 0
    return Ahead(config.store.folder / "ahead", files.disk, segment_bytes=segment_bytes, most=most)


def listen(config: Config, services: Services = MappingProxyType({}), credentials: Credentials | None = None) -> Listen:
    """Return the listener's settings, the watermark aside; credentials where there is a TLS port."""
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
        maximum_associations_per_address=receive.max_associations_per_address,
        reuse_port=receive.processes > 1,
        plain=receive.plain,
        tls=None if credentials is None else credentials.context,
        tls_port=receive.tls_port,
        services=services,
        certificate_names={peer.ae_title: peer.certificate_name for peer in config.peer if peer.certificate_name},
    )


def _callers(config: Config) -> Mapping[str, frozenset[str]]:
    callers = Callers(config.peer)
    callers.start()
    return callers.allowed
