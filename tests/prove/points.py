"""H2: one story of three images, killed before and after every call that makes anything durable, one after the other.

The calls are counted in a first run; then each gets a run of its own: kill there, recover, check. The peers add their
own points: killed when a response has arrived, when an object has arrived, and when its response has gone out.
"""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from prove import bench, checker, held, kill, power, wire

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SLICES = 3
#: Returns the calls of the node where it came to the end; see `tell`.
Story = Callable[[bench.Bench, "Path", bench.Peers, dict[str, Any]], list[str] | None]
#: Longest time for the node to come to rest after one kill.
SETTLE_SECONDS = 45.0
#: Peers' points: what happened when the node is killed, and for the how manieth time.
PEERS = [
    {what: n} for what, count in (("heard", 3), ("asked", 1), ("kept", 2), ("answered", 2)) for n in range(1, count + 1)
]


def tell(made: bench.Bench, store: Path, peers: bench.Peers, point: dict[str, Any]) -> list[str] | None:
    """Tell the story until the node is killed at the point; returns its calls where it came to the end."""
    victim = made.fork(store, peers, story="whole", points=point)
    seen = {"kept": 0, "answered": 0}

    def strike(what: str) -> None:
        seen[what] += 1
        if seen[what] == point.get(what):
            victim.kill()

    peers.on_keep = lambda uid: strike("kept")
    peers.on_answered = lambda uid: strike("answered")
    try:
        port = bench.port_of(victim)
        if port is None:
            return None
        for series in list(peers.unacked):
            if point.get("heard"):
                _send_some(peers, port, series, point["heard"])
                victim.kill()
            else:
                peers.send_series(port, series, asks=True)
            if point.get("asked"):
                victim.kill()
        victim.say(do="go on", instances=len(peers.acked), asked=len(peers.asked))
        word = victim.hear()
        return None if word is None else word["calls"]
    finally:
        peers.on_keep = peers.on_answered = None
        victim.end()


def tell_recovery(made: bench.Bench, store: Path, peers: bench.Peers, point: dict[str, Any]) -> list[str] | None:
    """Kill the node when it has answered all and given none its file, then, at the point, its successor."""
    tell(made, store, peers, {"first": "sendfile"})
    victim = made.fork(store, peers, story="recovered", points=point)
    try:
        if bench.port_of(victim) is None:
            return None
        victim.say(do="go on", instances=len(peers.acked))
        word = victim.hear()
        return None if word is None else word["calls"]
    finally:
        victim.end()


def _send_some(peers: bench.Peers, port: int, series: str, count: int) -> None:
    with suppress(wire.Gone):
        association = wire.Sender(port)
        for instance in list(peers.unacked[series])[:count]:
            peers.store(association, instance)
        association.close()


def run(
    folder: Path,
    seed: int,
    seconds: float,
    *,
    story: Story = tell,
    bug: str = "",
    cut: str = "",
    most: int = 0,
    rounds: int = 1,
    only: tuple[str, ...] = (),
) -> kill.Outcome:
    """Kill at every point, or at as many as fit into the time; stop at the first broken promise.

    Parameters
    ----------
    story
        `tell`, or `tell_recovery`.
    cut
        The store lies on a file system whose power is cut at the kill, in this mode (`prove.powerfs`); "" for no cut.
    most
        At most so many points, spread at random; 0 for all.
    rounds
        All of it so often.
    only
        Only points at these calls.
    """
    name = f"H2 {'recovery' if story is tell_recovery else 'crash points'}{', power cut' if cut else ''}"
    outcome, begin = kill.Outcome(name, 0), time.monotonic()
    made = bench.Bench(folder)
    place = _Place(made, cut, seed)
    try:
        twin, calls = _twin(made, place, story)
        if bug:
            made = bench.Bench(folder / "bug", bug)
        points = [{"kill": k + 1, "after": after} for k in range(len(calls)) for after in (False, True)]
        points = [p for p in points if not only or calls[p["kill"] - 1] in only] * rounds
        points += PEERS if story is tell and not only else []
        choice = random.Random(seed)
        choice.shuffle(points)  # so that what a time limit leaves out is not always the same
        points = points[: most or len(points)]
        outcome.wanted = len(points)
        outcome.count(calls=len(calls))
        for point in points:
            if time.monotonic() - begin > seconds or outcome.violations:
                break
            where = calls[point["kill"] - 1] if "kill" in point else "peer"
            found = _one(made, place, story, point, twin, choice)
            outcome.violations += [f"{words} [{where} {point}]" for words in found]
            outcome.done += 1
    finally:
        place.close()
    outcome.seconds = time.monotonic() - begin
    return outcome


class _Place:
    """A store, empty again and with peers of its own for each story; on a file system whose power can be cut, or not.

    Parameters
    ----------
    seed
        Of the images: each story sends the same.
    """

    def __init__(self, made: bench.Bench, cut: str, seed: int) -> None:
        self._made, self._seed, self.cut = made, seed, cut
        self.mount = power.Mount(made.folder / "mount") if cut else None
        self._plain = None if cut else made.new_store()
        if self.mount is not None:
            made.new_store(self.store)
            self.mount.keep()

    @property
    def store(self) -> Path:
        return self._plain if self.mount is None else self.mount.tree / "store"

    @contextmanager
    def story(self) -> Iterator[bench.Peers]:
        """Give the peers, one series to send, and an empty store."""
        peers = self._made.new_peers(self._seed, is_rude=False)
        peers.begin_series(SLICES)
        if self.mount is None:
            self._made.renew_store(self.store)
        else:
            self.mount.reset()
        try:
            yield peers
        finally:
            peers.close()

    def close(self) -> None:
        """Unmount."""
        if self.mount is not None:
            self.mount.close()


def _twin(made: bench.Bench, place: _Place, story: Story) -> tuple[dict[str, list[str]], list[str]]:
    """Tell the story without a kill; returns its results and its calls."""
    with place.story() as peers:
        calls = story(made, place.store, peers, {})
        made.settle(place.store, peers, SETTLE_SECONDS)
        found = checker.violations(place.store, peers.journals)
        if found or calls is None:
            raise bench.Stuck(f"the story fails without any kill: {found} {made.tail()}")
        return checker.results_of(held.Store(place.store)), calls


def _one(
    made: bench.Bench,
    place: _Place,
    story: Story,
    point: dict[str, Any],
    twin: dict[str, list[str]],
    choice: random.Random,
) -> list[str]:
    with place.story() as peers:
        try:
            story(made, place.store, peers, point)
            if place.mount is not None:
                place.mount.cut(choice.getrandbits(32), place.cut)
            found = checker.damaged_names(place.store)
            if place.cut == "tear":  # before anything is sent again: a file that is damaged may be written anew then
                bench.recover(made, place.store, peers)
                found += checker.damaged_names(place.store)
            made.settle(place.store, peers, SETTLE_SECONDS)
            if story is tell_recovery:  # recovery is what it is about: once more must change nothing
                return found + made.violations(place.store, peers, twin)
        except bench.Stuck as stuck:
            return made.broken_by(stuck, place.store, peers)
        return found + peers.wrong() + checker.violations(place.store, peers.journals, twin)


def frozen(folder: Path, seed: int, bug: str = "") -> kill.Outcome:
    """Stop a worker (SIGSTOP) that holds a job, have another take it over, and wake the first amid the other's work."""
    outcome, begin = kill.Outcome("H2 frozen worker", 1), time.monotonic()
    made = bench.Bench(folder, bug)
    try:
        place = _Place(made, "", seed)
        with place.story() as peers:
            outcome.violations += _freeze(made, place.store, peers)
            outcome.done = 1
    except bench.Stuck as stuck:
        outcome.violations.append(f"I4 {stuck}")
    outcome.seconds = time.monotonic() - begin
    return outcome


def _freeze(made: bench.Bench, store: Path, peers: bench.Peers) -> list[str]:
    sleeper = made.fork(store, peers, story="frozen")
    other = None
    try:
        port = bench.port_of(sleeper)
        for series in list(peers.unacked):
            peers.send_series(port, series)
        sleeper.say(do="go on")
        if sleeper.hear() is None:
            raise bench.Stuck(made.tail())
        sleeper.kill(signal.SIGSTOP)
        other = made.fork(store, peers, story="takeover")
        if bench.port_of(other) is None or other.hear() is None:
            raise bench.Stuck(made.tail())
        sleeper.kill(signal.SIGCONT)
        sleeper.say(do="go on")
        sleeper.hear()  # it has tried to finish
        other.say(do="go on")
        other.hear()
    finally:
        for victim in (sleeper, other):
            if victim is not None:
                victim.end()
    made.settle(store, peers, SETTLE_SECONDS)
    return checker.violations(store, peers.journals)
