"""A receive process holds a file while it lives; one that died is found, whatever host or boot it was of."""

from __future__ import annotations

import subprocess
import sys

import pytest

from pacs_ai.store.disk import Disk
from pacs_ai.store.presence import Presence


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "receiving"


@pytest.fixture
def enter(folder, tmp_path):
    made = []

    def enter(owner):
        made.append(Presence(folder, owner, Disk(tmp_path)))
        return made[-1]

    yield enter
    for one in made:
        one.close()


def _names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_nobody_is_gone_while_all_live(enter, folder):
    assert [enter(name).gone for name in ("receive:a:1:1", "receive:a:2:2")] == [(), ()]
    assert _names(folder) == ["receive:a:1:1", "receive:a:2:2"]


def test_one_that_left_is_not_gone(enter, folder):
    first = enter("one")
    first.leave()
    assert enter("two").gone == ()
    assert _names(folder) == ["two"]


def test_one_that_was_killed_is_gone_and_found_by_one_successor(enter, folder, tmp_path):
    program = (
        "import os, sys, pathlib; from pacs_ai.store.disk import Disk; from pacs_ai.store.presence import Presence\n"
        "folder = pathlib.Path(sys.argv[1]); Presence(folder, 'killed', Disk(folder.parent)); os.kill(os.getpid(), 9)"
    )
    killed = subprocess.run([sys.executable, "-c", program, str(folder)], timeout=60, check=False)
    assert killed.returncode == -9
    first, second = enter("first"), enter("second")
    assert (first.gone, second.gone) == (("killed",), ())
    assert _names(folder) == ["first", "killed", "second"], "until its row was taken over"
    first.succeed()
    assert _names(folder) == ["first", "second"]
    assert enter("third").gone == ()


def test_a_successor_that_dies_before_it_took_over_leaves_its_predecessor_to_be_found(enter, folder):
    Presence(folder, "one", Disk(folder.parent)).close()
    two = Presence(folder, "two", Disk(folder.parent))
    assert two.gone == ("one",)
    two.close()
    assert enter("three").gone == ("one", "two")
