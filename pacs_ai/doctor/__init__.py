"""Examines an installation from its configuration to its peers, and says what to do about each fault."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pacs_ai.doctor import configuration, machine, network, storage
from pacs_ai.doctor.findings import Finding, Level

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pacs_ai.config import Config

__all__ = ["Finding", "Level", "examine"]


def examine(config: Config) -> Iterator[Finding]:
    """Look at one thing after the other and yield what is found, in the order of the journey.

    Nothing is changed: no folder and no database is made, nothing is sent but C-ECHO and association requests.
    """
    yield from configuration.examine(config)
    yield from machine.examine_libraries()
    yield from storage.examine_folder(config)
    yield from storage.examine_database(config)
    yield from machine.examine_decoders(config)
    yield from machine.examine_device(config)
    yield network.examine_port(config)
    for peer in config.peer:
        yield from network.examine_peer(config, peer)
