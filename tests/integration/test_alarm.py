"""What keeps a receive process from its work shows in `pacs-ai status`, with what to do."""

from __future__ import annotations

import errno
import os
import socket
import sys
import threading
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from free_ports import free_port
from listening_bed import until
from raw_peer import RawPeer, data_set, store
from running_node import as_toml
from stations import Clock

from pacs_ai.cli import glance
from pacs_ai.cli.session import Session
from pacs_ai.config import load
from pacs_ai.errors import Unavailable
from pacs_ai.receive import process
from pacs_ai.receive.problem import Problems
from pacs_ai.store import processes
from pacs_ai.store.database import Database
from pacs_ai.store.disk import Disk
from pacs_ai.store.owners import this_process

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


# -- the words


@dataclass
class Ingest:
    """What is looked at of an ingest."""

    disk: Any = field(default_factory=lambda: SimpleNamespace(is_broken=False, short=""))
    trouble: Exception | None = None
    is_unreadable: bool = False
    is_settled: bool = True

    @property
    def files(self) -> Any:
        return self


@pytest.mark.parametrize(
    ("change", "seconds", "words", "advice"),
    [
        ({"disk": SimpleNamespace(is_broken=True, short="x")}, 0, "failed to sync", "restart the node"),
        ({"hangs": True}, 0, "answers to no write", "kernel's log"),
        ({"disk": SimpleNamespace(is_broken=False, short="the disk is full")}, 5, "the disk is full", "tries again"),
        ({"trouble": Unavailable("the database does not answer")}, 5, "database does not answer", "tries again"),
        ({"is_unreadable": True}, 0, "may hold received instances", "its log names it"),
        ({"is_settled": False}, 60, "lags", "keep up"),
    ],
)
def test_what_lasts_is_told_with_what_to_do_and_what_mends_itself_is_not(change, seconds, words, advice):
    clock, ingest, receiver = Clock(), Ingest(), SimpleNamespace(hangs=False)
    problems = Problems(ingest, receiver, clock)
    assert problems.look() == ""
    for name, value in change.items():
        setattr(receiver if name == "hangs" else ingest, name, value)
    assert bool(problems.look()) is (seconds == 0)
    clock.forward(seconds)
    what, _, to_do = problems.look().rpartition("; ")
    assert words in what
    assert advice in to_do
    receiver.hangs = False
    problems._ingest = Ingest()
    assert problems.look() == ""
    problems._ingest = ingest
    receiver.hangs = "hangs" in change
    assert bool(problems.look()) is (seconds == 0), "it counts anew"


def test_a_disk_that_was_short_is_looked_at_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    disk = Disk(tmp_path)
    disk.look_again()
    assert not disk.short
    disk.shortage(OSError(errno.ENOSPC, ""))
    assert "the disk is full" in disk.short
    with monkeypatch.context() as patch:
        patch.setattr("pacs_ai.store.disk.write", failing(errno.ENOSPC))
        disk.look_again()
    assert "the disk is full" in disk.short
    disk.look_again()
    assert not disk.short
    assert list(tmp_path.iterdir()) == []


# -- through the process itself


@dataclass
class Node:
    """A receive process in a thread, beside which the others are said to run."""

    place: Path
    port: int

    def send(self, uid: str, pixels: int = 300) -> int:
        with RawPeer(self.port) as peer:
            peer.associate()
            peer.send(store(data_set(uid, pixels=pixels), uid))
            status = peer.status()
            peer.release()
            return status

    def look(self) -> glance.Look:
        return glance.take(Session(self.place, "status"))

    def troubles(self) -> list[glance.Trouble]:
        return [one for one in self.look().troubles if one.subject.startswith("receive process")]


@pytest.fixture
def node(tmp_path: Path, sqlite_template: Path) -> Iterator[Node]:
    port, place = free_port(), tmp_path / "pacs-ai.toml"
    place.write_text(
        as_toml(
            {
                "store": {"folder": "data", "min_free_gb": 0, "min_free_percent": 0},
                "receive": {"bind": "127.0.0.1", "port": port, "ahead_mb": 8, "grace_seconds": 1.0},
            }
        )
    )
    config = load(place)
    config.store.folder.mkdir(mode=0o700)
    (config.store.folder / "pacs_ai.sqlite").write_bytes(sqlite_template.read_bytes())
    database = Database(config.database_url)
    for kind in ("route", "infer", "deliver"):
        processes.register(database, this_process(kind), kind)
    stop, interval = threading.Event(), sys.getswitchinterval()
    thread = threading.Thread(target=process.run, args=(config, stop))
    thread.start()
    found = Node(place, port)

    def is_up() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    until(is_up)
    try:
        yield found
    finally:
        stop.set()
        thread.join(60)
        sys.setswitchinterval(interval)
        database.close()


def failing(number: int) -> Callable[..., None]:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


def test_STO_03_a_disk_that_failed_to_sync_is_an_alarm_until_the_restart(node: Node, monkeypatch: pytest.MonkeyPatch):
    assert node.send("1.2.1") == 0x0000
    assert node.look().as_table()["healthy"]
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", failing(errno.EIO))
        assert node.send("1.2.2") & 0xFF00 == 0xA700
    assert node.send("1.2.3") & 0xFF00 == 0xA700
    until(node.troubles)
    (trouble,) = node.troubles()
    assert "0xA700" in trouble.words
    assert "restart the node" in trouble.advice
    table = node.look().as_table()
    assert not table["healthy"]
    assert any("failed to sync" in one.problem for one in table["processes"])
    assert "SENDER" not in str(table["processes"])


def test_STO_01_a_disk_that_takes_nothing_is_an_alarm_until_it_does(node: Node, monkeypatch: pytest.MonkeyPatch):
    """Quota, inodes, read-only: what free space does not show; nothing waits, and nobody sends any more."""
    monkeypatch.setattr("pacs_ai.receive.problem._BRIEF_SECONDS", 1.0)
    assert node.send("1.2.1") == 0x0000
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwritev", failing(errno.EROFS))
        patch.setattr(os, "write", failing(errno.EROFS))
        assert node.send("1.2.2") & 0xFF00 == 0xA700
        until(node.troubles)
        (trouble,) = node.troubles()
        assert "mounted read-only" in trouble.words
        assert not node.look().as_table()["healthy"]
    until(lambda: node.look().as_table()["healthy"])
    assert node.send("1.2.3") == 0x0000


def test_STO_09_what_cannot_be_indexed_is_an_alarm_while_it_waits(node: Node, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("pacs_ai.receive.problem._BRIEF_SECONDS", 1.0)

    def away(*_: object) -> None:
        raise Unavailable("the index does not answer")

    with monkeypatch.context() as patch:
        patch.setattr("pacs_ai.store.index._Recording.record", away)
        assert node.send("1.2.1") == 0x0000
        until(node.troubles)
        (trouble,) = node.troubles()
        assert "the index does not answer" in trouble.words
        assert "by itself" in trouble.advice
    until(lambda: node.look().as_table()["healthy"])
