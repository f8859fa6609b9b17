"""Whom a configured peer's name means: its AE title, address and time limits."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pacs_ai.deliver.connection import Remote
from pacs_ai.errors import Unavailable

if TYPE_CHECKING:
    from pacs_ai.config import Config
    from pacs_ai.network_sections import Peer


def remote(config: Config, peer: Peer) -> Remote:
    """Return how the node calls the peer."""
    return Remote(
        ae_title=peer.ae_title,
        host=peer.host,
        port=peer.port,
        calling_ae_title=config.calling_ae_title,
        connect_seconds=peer.connect_seconds,
        acse_seconds=peer.answer_seconds,
        dimse_seconds=peer.answer_seconds,
        network_seconds=peer.answer_seconds,
        tls=config.tls if peer.tls else None,
        certificate_name=peer.certificate_name,
    )


def remote_at(config: Config, name: str, ae_title: str, host: str, port: int) -> Remote:
    """Return how the node calls a peer at the address that a delivery keeps.

    Raises
    ------
    Unavailable
        The peer was removed or renamed, so nothing says any more whether it is called over TLS or asked whose a study
        is: it is not called.
    """
    peer = next((one for one in config.peer if one.name == name), None)
    if peer is None:
        words = f"there is no [[peer]] called {name} in the configuration any more, so {ae_title} is not called"
        raise Unavailable(f"{words}; put it back, or `pacs-ai cancel` the jobs of `pacs-ai deliveries --peer {name}`")
    return replace(remote(config, peer), ae_title=ae_title, host=host, port=port)
