"""What no row names goes where it was seen so twice, with a while between; what may be about to get its row stays."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import pytest
from stations import Clock

from pacs_ai.store import sweeping
from pacs_ai.store.files import Files

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def files(tmp_path: Path, clock: Clock) -> Files:
    return Files(tmp_path / "store", clock)


def grow_old(*paths: Path) -> None:
    an_hour_ago = time.time() - 3600
    for path in paths:
        os.utime(path, (an_hour_ago, an_hour_ago))


def everything(files: Files) -> list[Path]:
    return sorted(path for path in files.folder.rglob("*") if path.is_file())


def nobody(_sha256: str) -> bool:
    return False


def look(files: Files, keep=nobody) -> None:
    files.sweeper.look(keep, older_than_seconds=600)


def test_what_is_left_over_or_named_by_no_row_goes_but_nothing_young_or_kept(files, clock):
    kept, orphan, young = (files.write([name]) for name in (b"kept", b"orphan", b"young"))
    left_over = files.folder / ".new" / "left"
    left_over.write_bytes(b"half")
    stranger = kept.path.parent / "README"
    stranger.write_bytes(b"not ours")
    grow_old(kept.path, orphan.path, left_over, stranger)
    look(files, lambda sha256: sha256 == kept.sha256)
    clock.forward(600)
    assert files.sweeper.take(lambda sha256: sha256 == kept.sha256) == [orphan.sha256]
    assert everything(files) == sorted([kept.path, young.path, stranger])


def test_a_file_whose_row_comes_after_the_wall_clock_was_set_forward_stays(files, clock, monkeypatch):
    """Between a file and its row lies a moment, which the wall clock may take for hours."""
    stored, left_over = files.write([b"its row is not committed yet"]), files.folder / ".new" / "not whole yet"
    left_over.write_bytes(b"half")
    hours_later = time.time_ns() + 7200 * 10**9
    monkeypatch.setattr(sweeping.time, "time_ns", lambda: hours_later)
    look(files)
    assert files.sweeper.take(nobody) == []
    clock.forward(599)
    assert not files.sweeper.is_due
    assert files.sweeper.take(nobody) == []
    assert everything(files) == sorted([stored.path, left_over])
    clock.forward(1)
    assert files.sweeper.is_due
    assert files.sweeper.take(lambda sha256: sha256 == stored.sha256) == []  # it has its row now
    assert everything(files) == [stored.path]
    assert not files.sweeper.is_due


def test_a_look_in_between_does_not_put_it_off(files, clock):
    stored = files.write([b"orphan"])
    grow_old(stored.path)
    look(files)
    clock.forward(400)
    look(files)
    clock.forward(200)
    assert files.sweeper.take(nobody) == [stored.sha256]


def test_what_came_again_since_it_was_seen_stays(files, clock):
    stored = files.write([b"again"])
    grow_old(stored.path)
    look(files)
    clock.forward(600)
    files.write([b"again"])
    assert files.sweeper.take(nobody) == []
    assert files.verify(stored.sha256)


def test_an_orphan_that_comes_again_while_it_is_taken_is_not_lost(files, clock):
    stored = files.write([b"again"])
    grow_old(stored.path)
    look(files)
    clock.forward(600)

    def comes_again(_sha256: str) -> bool:
        files.write([b"again"])
        return False

    assert files.sweeper.take(comes_again) == []
    assert files.verify(stored.sha256)


def test_of_very_many_some_wait_for_a_later_look(files, clock, monkeypatch):
    monkeypatch.setattr(sweeping, "_MOST_SEEN", 3)
    grow_old(*(files.write([bytes([number])]).path for number in range(5)))
    taken = []
    while not taken or taken[-1]:
        look(files)
        clock.forward(600)
        taken.append(len(files.sweeper.take(nobody)))
    assert taken == [3, 2, 0]
    assert everything(files) == []
