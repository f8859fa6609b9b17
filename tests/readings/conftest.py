"""One running node and one small PACS for all readings that the collected tests name in ``READINGS``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from keeping_peer import KeepingPeer
from reading_bed import PROFILE, ReadingBed, ae_title, install, routes
from running_node import RunningNode, peer_table

from pacs_ai.models.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from reading_bed import Journey

PUBLISHED = Path(__file__).resolve().parents[3] / "shared" / "models"


@pytest.fixture(scope="session")
def reading_bed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ReadingBed]:
    """Install the weights of the readings named by the session's test modules, and start the node with their routes."""
    wanted = sorted({name for item in request.session.items for name in getattr(item.module, "READINGS", ())})
    folder = tmp_path_factory.mktemp("readings")
    models = request.config.cache.mkdir("models")  # kept from one run to the next
    reasons = install(wanted, PUBLISHED, models)
    available = tuple(name for name in wanted if name not in reasons)
    peer = KeepingPeer(folder / "pacs")
    peer.folder.mkdir()
    peer.start()
    node = RunningNode(
        folder / "node",
        peer=[peer_table("pacs", peer.ae_title, peer.port, profile=PROFILE["name"])],
        profile=[PROFILE],
        route=routes(available, Registry(models=models), "pacs"),
        models={"folder": models},
        receive={"ae_titles": [RunningNode.ae_title, *(ae_title(name) for name in available)]},
    )
    try:
        yield ReadingBed(node.start(), peer, available, reasons)
        node.account()
    finally:
        node.close()
        peer.stop()


@pytest.fixture
def journey(reading_bed: ReadingBed) -> Callable[..., Journey]:
    """Send a study to a reading through the running node, and return what the PACS got: `ReadingBed.journey`."""
    return reading_bed.journey
