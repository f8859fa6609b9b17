"""A receive process is killed between Success and row, and its successor comes long after the series was quiet.

The router is another process and lives on. It must not call the series complete without what was answered Success, not
even where successors stand still or are killed while they recover; and when all is in the index, there is one revision.
"""

from __future__ import annotations

import random
import sqlite3
import time
from contextlib import closing
from typing import TYPE_CHECKING

from prove import bench, kill, wire

if TYPE_CHECKING:
    from pathlib import Path

STORIES = 6
SLICES = 6
#: Steps of the router, each longer than a sixth of the node's quiet time.
_LOOKS = 30
#: A successor dies at one of its first so many calls.
_CALLS = 40


def run(folder: Path, seed: int, seconds: float, *, stories: int = STORIES, bug: str = "") -> kill.Outcome:
    """Tell so many stories, or as many as fit into the time; stop at the first broken promise."""
    outcome, begin = kill.Outcome("H2 late recovery", stories), time.monotonic()
    choice = random.Random(seed)
    made = bench.Bench(folder, bug)
    try:
        while outcome.done < stories and time.monotonic() - begin < seconds and not outcome.violations:
            outcome.violations += _tell(made, choice, outcome)
            outcome.done += 1
    except bench.Stuck as stuck:
        outcome.violations.append(f"I4 {stuck}")
    outcome.seconds = time.monotonic() - begin
    return outcome


def _tell(made: bench.Bench, choice: random.Random, outcome: kill.Outcome) -> list[str]:
    store, peers = made.new_store(), made.new_peers(choice.getrandbits(32))
    router = None
    try:
        series = peers.begin_series(SLICES)
        _receive(made, store, peers, series, SLICES // 2, {})
        _receive(made, store, peers, series, SLICES, {"first": "sendfile"})
        outcome.count(acknowledged=len(peers.acked), kills=2)
        router = made.fork(store, peers, story="routing")
        bench.port_of(router)
        found = _stand_still(made, router, store, peers)
        outcome.count(kills=1)
        if found:
            return found
        for _ in range(choice.randrange(3)):
            if found := _look(made, router, store, peers):
                return found
            # a successor that dies at a call of its recovery, or when that is over
            bench.recover(made, store, peers, points={"kill": choice.randrange(1, _CALLS)})
            outcome.count(kills=1)
        if found := _look(made, router, store, peers):
            return found
        router.end()
        made.settle(store, peers)
        return made.violations(store, peers) + _revisions(store)
    finally:
        if router is not None:
            router.end()
        peers.close()


def _receive(made: bench.Bench, store: Path, peers: bench.Peers, series: str, upto: int, points: dict) -> None:
    """Send until so many are answered Success; then kill the receiver, at the point, or when all have rows."""
    victim = made.fork(store, peers, story="receiving", points=points)
    try:
        port = bench.port_of(victim)
        if port is None:
            raise bench.Stuck(f"the node does not start: {made.tail()}")
        association = wire.Sender(port)
        for instance in list(peers.unacked[series])[: upto - len(peers.acked)]:
            peers.store(association, instance)
        association.close()
        limit = time.monotonic() + bench.PATIENCE_SECONDS
        if points:
            if victim.hear() is not None:
                raise bench.Stuck("the node lives on")
            return
        while left := bench.unrecorded(store, peers.acked):
            if time.monotonic() > limit:
                raise bench.Stuck(left)
            time.sleep(bench.PAUSE_SECONDS)
    finally:
        victim.end()


def _stand_still(made: bench.Bench, router: bench.Victim, store: Path, peers: bench.Peers) -> list[str]:
    """Have a successor stand still before it gives anything its file, and the router look; kill it."""
    victim = made.fork(store, peers, story="recovered", points={"first": "sendfile", "hang": True})
    try:
        if bench.port_of(victim) is None:
            raise bench.Stuck(f"the node does not start: {made.tail()}")
        return _look(made, router, store, peers)
    finally:
        victim.end()


def _look(made: bench.Bench, router: bench.Victim, store: Path, peers: bench.Peers) -> list[str]:
    """Have the router look for much longer than a series is to be quiet."""
    router.say(looks=_LOOKS)
    if router.hear() is None:
        raise bench.Stuck(f"the router ended: {made.tail()}")
    left = bench.unrecorded(store, peers.acked)
    with closing(sqlite3.connect(store / "pacs_ai.sqlite")) as database:
        states = [state for (state,) in database.execute("SELECT state FROM series")]
    if left and states != ["receiving"]:
        return [f"I4 a series is {states[0]} without what was answered Success: {left}"]
    return []


def _revisions(store: Path) -> list[str]:
    with closing(sqlite3.connect(store / "pacs_ai.sqlite")) as database:
        (revision,) = database.execute("SELECT max(revision) FROM series").fetchone()
    return [f"I4 a series came in {revision} revisions without a sender that was late"] if revision != 1 else []
