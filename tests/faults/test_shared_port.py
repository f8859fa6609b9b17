"""Two receive processes on one port: one is killed amid its work, and the other serves on and ends in order."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa
from free_ports import free_port
from raw_peer import PATIENCE, RawPeer, data_set, store
from running_node import as_toml, until

from pacs_ai.store import schema
from pacs_ai.store.database import Database
from pacs_ai.store.files import Files

if TYPE_CHECKING:
    from collections.abc import Iterator

#: All of one process with a probability of one in eight million.
_PEERS = 24


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def two(tmp_path: Path, sqlite_template: Path, port: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Two receive processes of one node, listening."""
    (tmp_path / "data").mkdir()
    shutil.copy(sqlite_template, tmp_path / "data" / "pacs_ai.sqlite")
    receive = {"bind": "127.0.0.1", "port": port, "processes": 2, "grace_seconds": 20.0}
    path = tmp_path / "pacs-ai.toml"
    path.write_text(as_toml({"store": {"folder": "data", "min_free_gb": 0, "min_free_percent": 0}, "receive": receive}))
    command = [sys.executable, "-m", "pacs_ai", "--config", str(path), "run", "receive"]
    started = [subprocess.Popen(command) for _ in range(2)]
    try:
        until(lambda: _listeners(port) == 2, what="two listeners")
        yield started
    finally:
        for process in started:
            process.kill()
            process.wait()


def _listeners(port: int) -> int:
    """Count the sockets that listen on a port (proc(5): state 0A)."""
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(words[1].endswith(f":{port:04X}") and words[3] == "0A" for words in lines)


def _answer(peer: RawPeer) -> int | None:
    """Return the status that a peer is answered, None where its connection is gone."""
    try:
        return peer.status()
    except (AssertionError, OSError):
        return None


def test_NET_20_of_two_processes_on_one_port_one_is_killed_and_the_other_serves_on(two, port, tmp_path):
    peers = [RawPeer(port).associate() for _ in range(_PEERS)]
    uids = [f"1.2.3.{number}" for number in range(_PEERS)]
    whole = [store(data_set(uid, pixels=200_000), uid) for uid in uids]
    for peer, raw in zip(peers, whole, strict=True):
        peer.send(raw[:100_000])
    killed, survivor = two
    killed.kill()
    killed.wait()
    stored = []
    for peer, raw, uid in zip(peers, whole, uids, strict=True):
        try:
            peer.send(raw[100_000:])
        except OSError:
            continue
        if _answer(peer) == 0x0000:
            stored.append(uid)
    assert 0 < len(stored) < _PEERS, "those of the survivor go on, those of the other are told by their connection"
    for uid, raw in zip(uids, whole, strict=True):
        if uid not in stored:  # its sender sends it again: nobody is sent to the dead one any more
            with RawPeer(port) as again:
                again.associate().send(raw)
                assert again.status() == 0x0000
    with RawPeer(port) as amid:
        amid.associate().send(store(data_set("1.2.4", pixels=200_000), "1.2.4")[:100_000])
        survivor.send_signal(signal.SIGTERM)
        until(lambda: _listeners(port) == 0)
        amid.send(store(data_set("1.2.4", pixels=200_000), "1.2.4")[100_000:])
        assert amid.status() == 0x0000
    for peer in peers:
        peer.close()
    assert survivor.wait(PATIENCE) == 0
    _all_kept(tmp_path / "data", {*uids, "1.2.4"})


def _all_kept(folder: Path, uids: set[str]) -> None:
    database = Database(f"sqlite:///{folder / 'pacs_ai.sqlite'}")
    files = Files(folder / "files")
    try:
        with database.read() as connection:
            rows = connection.execute(sa.select(schema.instance.c.sop_instance_uid, schema.instance.c.sha256)).all()
        assert {uid for uid, _ in rows} == uids
        assert all(files.verify(sha256) for _, sha256 in rows)
    finally:
        database.close()
