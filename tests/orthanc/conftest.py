"""A real PACS for the stories."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from orthanc_bed import Orthanc, missing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture(scope="session")
def make_orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Orthanc]]:
    """Start further Orthancs: `autoroute`, `stable_seconds`; they end with the session."""
    if missing():
        pytest.skip(missing())
    running: list[Orthanc] = []

    def make(**options: Any) -> Orthanc:
        running.append(Orthanc(tmp_path_factory.mktemp("orthanc"), **options))
        running[-1].start()
        return running[-1]

    yield make
    for one in running:
        one.stop()


@pytest.fixture(scope="session")
def orthanc_server(make_orthanc: Callable[..., Orthanc]) -> Orthanc:
    """The session's Orthanc, with whatever earlier tests left in it."""
    return make_orthanc()


@pytest.fixture
def orthanc(orthanc_server: Orthanc) -> Orthanc:
    """The session's Orthanc, running and empty; it auto-routes CT and MR to its `node_port`."""
    if orthanc_server._process is None:
        orthanc_server.start()
    orthanc_server.delete_all()
    return orthanc_server
