"""Examines an installation from its configuration to its peers, and says what to do about each fault."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pacs_ai.doctor import configuration, machine, network, packages, storage
from pacs_ai.doctor.findings import Finding, Level

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from pacs_ai.config import Config
    from pacs_ai.network_sections import Peer

__all__ = ["Finding", "Level", "examinations"]


def examinations(config: Config) -> Iterator[tuple[str, Callable[[], Iterable[Finding]]]]:
    """Yield what there is to look at, in the order of the journey: its name, and what looks and finds.

    Nothing is changed: no folder and no database is made, nothing is sent but C-ECHO and association requests.
    """
    yield "configuration", lambda: configuration.examine(config)
    yield "models", lambda: packages.examine(config)
    yield "libraries", machine.examine_libraries
    yield "data folder", lambda: storage.examine_folder(config)
    yield "database", lambda: storage.examine_database(config)
    yield "audit trail", lambda: storage.examine_audit(config)
    yield "decoders", lambda: machine.examine_decoders(config)
    yield "device", lambda: machine.examine_device(config)
    yield "ports", lambda: network.examine_ports(config)
    for peer in config.peer:
        yield f"peer {peer.name}", _of_peer(config, peer)


def _of_peer(config: Config, peer: Peer) -> Callable[[], Iterable[Finding]]:
    return lambda: network.examine_peer(config, peer)
