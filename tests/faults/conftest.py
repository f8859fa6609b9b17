"""What the fault stories share: nodes with the story pipelines, peers that keep what they get, small series."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pytest
import running_node
import story_pipelines
from keeping_peer import KeepingPeer

from pacs_ai.testing import Phantom
from pacs_ai.testing.series import iterate_phantom

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from running_node import RunningNode


@pytest.fixture(scope="session")
def plugins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of installed packages with the story pipelines."""
    return story_pipelines.install(tmp_path_factory.mktemp("plugins"))


@pytest.fixture(scope="module")
def make_node(tmp_path_factory: pytest.TempPathFactory, plugins: Path) -> Iterator[Callable[..., RunningNode]]:
    """Make nodes that offer the pipeline ``story``; keyword arguments are those of `RunningNode`."""
    with running_node.nodes(tmp_path_factory.mktemp("nodes")) as make:
        yield lambda **tables: make(python_path=[plugins], **tables)


@pytest.fixture(scope="module")
def make_peer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., KeepingPeer]]:
    """Start storage SCPs: keyword arguments are the fields of `KeepingPeer`."""
    peers: list[KeepingPeer] = []

    def make(**fields: object) -> KeepingPeer:
        peers.append(KeepingPeer(folder=tmp_path_factory.mktemp("peer"), **fields))
        peers[-1].start()
        return peers[-1]

    yield make
    for peer in peers:
        peer.gate.set()
        peer.stop()


def _write_series(
    folder: Path, seed: int, slices: int = 12, size: int = 32, **attributes: str
) -> tuple[str, list[Path]]:
    """Write a small series of a patient of its own; returns Study Instance UID and files, feet first."""
    folder = folder / f"series{seed}"
    folder.mkdir()
    paths = []
    phantom = Phantom(slices, size, size, seed=seed)
    for number, ds in enumerate(iterate_phantom(phantom)):
        for keyword, value in attributes.items():
            setattr(ds, keyword, value)
        paths.append(folder / f"{number:04d}.dcm")
        ds.save_as(paths[-1], enforce_file_format=True)
    return phantom.study_instance_uid, paths


@pytest.fixture
def make_series(tmp_path: Path) -> Callable[..., tuple[str, list[Path]]]:
    """Write small series: seed, slices=12, size=32, attributes by keyword; gives Study Instance UID and files."""
    return partial(_write_series, tmp_path)


@pytest.fixture(scope="module")
def make_module_series(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[str, list[Path]]]:
    """As `make_series`, for a module's fixtures."""
    return partial(_write_series, tmp_path_factory.mktemp("series"))
