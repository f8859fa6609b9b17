"""One series through a whole node in this process, so that what is imported or compiled late is there before any fork.

What a node compiles on its way (SQL statements, encoders) is handed on to the forked ones: without it each would spend
its short life compiling, and be killed there again and again.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from pacs_ai.store.database import Database
from prove import bench, victim

if TYPE_CHECKING:
    from pathlib import Path

_LIMIT_SECONDS = 60.0


def share_statements() -> None:
    """Have all SQLite databases of this process and its forks share one cache of compiled statements."""
    shared: list[Database] = []
    opened = Database.__init__

    def init(database: Database, url: str) -> None:
        opened(database, url)
        if not database.is_sqlite:
            return
        shared.append(database)
        first = shared[0].engine
        database.engine.dialect = database.engine.pool._dialect = first.dialect
        database.engine._compiled_cache = first._compiled_cache
        del shared[1:]

    Database.__init__ = init  # type: ignore[method-assign]


def warm(folder: Path) -> None:
    """Receive, route, analyse and deliver one series; every thread has ended when this returns."""
    share_statements()
    victim.make_store(folder / "store")
    peers = bench.Peers(folder / "peers", 0, is_rude=False)
    node = victim.Node(folder / "store", peers.keeper.port)
    node.receiver.start()
    stop = threading.Event()
    thread = threading.Thread(target=node.run, args=(stop,))
    thread.start()
    limit = time.monotonic() + _LIMIT_SECONDS
    for _ in range(2):
        series = peers.begin_series(victim.LEAST_SLICES)
        while not peers.send_series(node.receiver.port, series, asks=True):
            assert time.monotonic() < limit, "nothing is received"
    while bench.unsettled(folder / "store", peers.acked) or peers.kept_objects < 4:
        assert time.monotonic() < limit, bench.unsettled(folder / "store", peers.acked)
        time.sleep(0.02)
    stop.set()
    thread.join()
    peers.close()
    while threading.active_count() > 1:
        assert time.monotonic() < limit, threading.enumerate()
        time.sleep(0.01)
