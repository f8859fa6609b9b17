"""One running node and one small PACS for all readings that the collected tests name in ``READINGS``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from reading_bed import install, running

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from reading_bed import Journey, ReadingBed

PUBLISHED = Path(__file__).resolve().parents[3] / "shared" / "models"


@pytest.fixture(scope="session")
def reading_bed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ReadingBed]:
    """Install the weights of the readings named by the session's test modules, and start the node with their routes."""
    wanted = sorted({name for item in request.session.items for name in getattr(item.module, "READINGS", ())})
    folder = tmp_path_factory.mktemp("readings")
    models = request.config.cache.mkdir("models")  # kept from one run to the next
    reasons = install(wanted, PUBLISHED, models)
    with running(folder, [name for name in wanted if name not in reasons], models, reasons) as bed:
        yield bed


@pytest.fixture
def journey(reading_bed: ReadingBed) -> Callable[..., Journey]:
    """Send a study to a reading through the running node, and return what the PACS got: `ReadingBed.journey`."""
    return reading_bed.journey
