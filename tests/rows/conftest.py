"""What the threat rows share: a node that listens, and what must be true of it whatever was done to it."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from event_loops import loop_for
from listening_bed import Bed, open_files, until
from own_memory import own_bytes

from pacs_ai.receive.ingest import DurableIngest
from pacs_ai.receive.scp import Listen, Receiver
from pacs_ai.store.files import Files

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

#: By how much the process may have grown when a test is over.
GROWTH_BYTES = 64 << 20


@pytest.fixture
def make_bed(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Callable[..., Bed]]:
    """Start nodes; keyword arguments are fields of `Listen`. Afterwards nothing may be left."""
    beds: list[Bed] = []
    before = (threading.active_count(), open_files(), own_bytes())

    def make(**fields: object) -> Bed:
        bed = Bed(Files(tmp_path / f"files{len(beds)}"))
        bed.ingest = DurableIngest(bed.files, bed.record)
        bed.receiver = Receiver(replace(Listen(port=0, event_loop=loop_for(request.node.name)), **fields), bed.ingest)
        bed.receiver.start()
        beds.append(bed)
        return bed

    yield make
    for bed in beds:
        for peer in bed.peers:
            peer.close()
        until(lambda bed=bed: bed.receiver.associations == 0)
        assert bed.has_stopped or bed.is_served()
        bed.receiver.stop(0.0)
        bed.ingest.close()
        assert len(bed.stored()) <= len(bed.arrivals), "a file is left that nobody was told of"
    until(lambda: threading.active_count() <= before[0])
    until(lambda: open_files() <= before[1] + 4)
    assert own_bytes() < before[2] + GROWTH_BYTES


@pytest.fixture
def bed(make_bed: Callable[..., Bed]) -> Bed:
    """One node with the default limits."""
    return make_bed()
