"""H6: the disk fails at one call after the other, and the sender hears of it; what it was told is stored, is.

First a node that only receives: each kind of failure at the first, second and third call of each kind. Then a whole
node at work, into which failures fall at random.
"""

from __future__ import annotations

import itertools
import random
import time
from typing import TYPE_CHECKING, Any

from prove import bench, checker, faults, kill, power, wire
from prove.peers import OUT_OF_RESOURCES

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

#: Calls of one instance: the file's own come first, a commit writes some dozens of pages.
_CALLS = (*range(1, 16), *range(18, 130, 12))
#: Call -> what it may fail with.
_FAILURES = {
    "open": ("ENOSPC", "EMFILE", "EDQUOT", "EROFS", "EIO", "ENOMEM"),
    "write": ("ENOSPC", "EIO", "EDQUOT"),
    "fsync": ("ENOSPC", "EIO"),
    "replace": ("ENOSPC", "EIO", "EROFS"),
    faults.COMMIT: ("ENOSPC",),
}
#: The same where instances are written ahead: most of it is behind the answer, and tried again.
_AHEAD_FAILURES = {
    "pwritev": ("ENOSPC", "EIO", "EDQUOT"),
    "fdatasync": ("ENOSPC", "EIO"),
    "open": ("ENOSPC", "EMFILE"),
    "sendfile": ("ENOSPC", "EIO"),
    "fsync": ("ENOSPC", "EIO"),
    "replace": ("ENOSPC",),
    faults.COMMIT: ("ENOSPC",),
}
_SYNCS = ("fsync", "fdatasync")
#: Series that are sent until a failure strikes.
_TRIES = 5


def run(
    folder: Path,
    seed: int,
    seconds: float,
    *,
    bug: str = "",
    rounds: int = 3,
    at_random: int = 40,
    is_ahead: bool = False,
) -> kill.Outcome:
    """Have every call fail in every way, `rounds` times over (at the first, the second … such call).

    Parameters
    ----------
    at_random
        So many failures more, at random into a whole node at work.
    is_ahead
        Instances are written ahead before they have files and rows.
    """
    failures, shorts = (_AHEAD_FAILURES, ("pwritev", "sendfile")) if is_ahead else (_FAILURES, ("write",))
    cases = [(call, name, at) for call, names in failures.items() for name in names for at in range(1, rounds + 1)]
    cases += [(call, "short", at) for call in shorts for at in range(1, rounds + 1)]
    outcome, begin = kill.Outcome("H6 failing disk", len(cases) + at_random), time.monotonic()
    made = bench.Bench(folder, bug)
    store, peers = made.new_store(), made.new_peers(seed)
    receiver = _Receiver(made, store, peers, is_ahead=is_ahead)
    try:
        for case in cases:
            if outcome.violations or time.monotonic() - begin > seconds:
                break
            outcome.violations += _one(receiver, *case, outcome)
            outcome.done += 1
        receiver.end()
        if not outcome.violations:
            made.settle(store, peers)
            outcome.violations += checker.violations(store, peers.journals)
        if not outcome.violations and at_random:
            _at_random(made, store, peers, random.Random(seed), at_random, outcome)
    except bench.Stuck as stuck:
        outcome.violations.append(f"I4 {stuck}")
    finally:
        receiver.end()
        peers.close()
    outcome.seconds = time.monotonic() - begin
    return outcome


def run_ahead(folder: Path, seed: int, seconds: float, *, bug: str = "") -> kill.Outcome:
    """Have every call fail of a node that writes ahead."""
    return run(folder, seed, seconds, bug=bug, at_random=0, is_ahead=True)


class _Receiver:
    """A node that only receives, kept over many cases; after a failed sync it distrusts the disk, so it is replaced."""

    def __init__(self, made: bench.Bench, store: Path, peers: bench.Peers, *, is_ahead: bool = True) -> None:
        self.store, self.peers, self.is_ahead = store, peers, is_ahead
        self._made = made
        self._victim: bench.Victim | None = None
        self.port = 0
        self._killed_amid: set[str] = set()

    @property
    def victim(self) -> bench.Victim:
        """The node, started where it is not there."""
        if self._victim is None:
            self._victim = self._made.fork(self.store, self.peers, story="receiving", is_ahead=self.is_ahead)
            port = bench.port_of(self._victim)
            if port is None:
                raise bench.Stuck(f"the node does not start: {self._made.tail()}")
            self.port = port
        return self._victim

    def until_recorded(self) -> str:
        """Wait until all that was answered Success has its row; say what is left where that takes too long."""
        limit = self._limit()
        while (left := bench.unrecorded(self.store, self.peers.acked)) and time.monotonic() < limit:
            time.sleep(0.01)
        return left

    def _limit(self) -> float:
        return time.monotonic() + (bench.BUG_PATIENCE_SECONDS if self._made.bug else bench.PATIENCE_SECONDS)

    def count(self) -> dict[str, int]:
        """End the failure when it has struck, or all is done that it could have struck; say how often it did."""
        limit = self._limit()
        while not self._ask("look")["hit"] and bench.unrecorded(self.store, self.peers.acked):
            if time.monotonic() > limit:
                break
            time.sleep(0.005)
        said = self._ask("end")
        return said if self.is_ahead else {**said, "behind": 0}  # without what is ahead, the answer waits for all of it

    def _ask(self, what: str) -> dict[str, int]:
        self.victim.say(do=what)
        return self.victim.hear() or {"hit": 0, "behind": 0}

    def end(self) -> None:
        """Kill it, where it is there."""
        if self._victim is not None:
            self._victim.end()
            self._victim = None
            self._killed_amid = self._half_written()

    def half_written(self) -> int:
        """Return how many files are left half written, those aside that a kill of this harness cut off."""
        return len(self._half_written() - self._killed_amid)

    def _half_written(self) -> set[str]:
        return {path.name for path in (self.store / "files" / ".new").iterdir()}


def _strike(receiver: _Receiver, call: str, name: str, at: int) -> tuple[str, list[int | None], dict[str, int]]:
    """Send a series while one call fails, and a longer one where it did not come to that call.

    What is written ahead is indexed together: a busy machine may need but one commit for a short series.

    Returns the series, what it was answered, and how often the failure struck, also where nobody waited for it.
    """
    series, statuses, said = "", [], {"hit": 0, "behind": 0}
    for turn in range(_TRIES):
        if not said["hit"]:
            victim, series = receiver.victim, receiver.peers.begin_series(3 << turn)
            victim.say(do="arm", call=call, at=at, error=faults.ERRORS.get(name, 0), short=name == "short")
            victim.hear()
            statuses = _send(receiver.peers, receiver.port, series)
            said = receiver.count()
    return series, statuses, said


def _one(receiver: _Receiver, call: str, name: str, at: int, outcome: kill.Outcome) -> list[str]:
    """Send a series while one call fails; then one without a failure."""
    peers, what = receiver.peers, f"{call} {at} failing with {name}"
    series, statuses, said = _strike(receiver, call, name, at)
    hit = said["hit"]
    outcome.count(failures=hit, behind=said["behind"])
    refused = [status for status in statuses if status not in (0, None)]
    found = unanswered(what, statuses)
    if not hit:
        found.append(f"{what}: it never struck, so nothing is proved")
    if hit > said["behind"] and name != "short" and not refused:
        found.append(f"{what}: Success and no A7xx, though it struck before the answer")
    if name == "short" and refused:
        found.append(f"{what}: refused, though the rest could be written")
    distrusts = call in _SYNCS and name == "EIO" and hit
    if not distrusts and (left := receiver.until_recorded()):
        found.append(f"{what}: {left} though it was answered Success")
    if distrusts:
        more = _send(peers, receiver.port, peers.begin_series(3))
        if 0 in more:
            found.append(f"{what}: Success after it, without a start of the node")
    if number := receiver.half_written():
        found.append(f"{what}: {number} files are left half written")
    found += checker.damaged_names(receiver.store)
    if distrusts:
        receiver.end()
    elif not found and any(status != 0 for status in _send(peers, receiver.port, series)):
        found.append(f"{what}: refused again after the failure was over")
    return found


def full(folder: Path, seed: int, seconds: float, *, at: Sequence[int] = _CALLS) -> kill.Outcome:
    """Have a whole disk fail, under the database too: from the first, second … write on, until space returns."""
    cases = [(name, call) for call in at for name in ("ENOSPC", "EIO")]
    outcome, begin = kill.Outcome("H6 disk that is full", len(cases)), time.monotonic()
    made = bench.Bench(folder)
    peers = made.new_peers(seed)
    with power.mounted(folder / "mount") as mount:
        store = made.new_store(mount.tree / "store")
        receiver = _Receiver(made, store, peers)
        try:
            for name, at in cases:
                if outcome.violations or time.monotonic() - begin > seconds:
                    break
                outcome.violations += _fill(receiver, mount, name, at, outcome)
                outcome.done += 1
            receiver.end()
            made.settle(store, peers)
            outcome.violations += checker.violations(store, peers.journals)
        except bench.Stuck as stuck:
            outcome.violations.append(f"I4 {stuck}")
        finally:
            receiver.end()
            peers.close()
    outcome.seconds = time.monotonic() - begin
    return outcome


def _fill(receiver: _Receiver, mount: power.Mount, name: str, at: int, outcome: kill.Outcome) -> list[str]:
    """Send a series while the disk fails from the at-th call on; then, with a node that trusts it, once more."""
    peers, what = receiver.peers, f"{name} from call {at} on"
    series = peers.begin_series(3)
    assert receiver.victim
    mount.fail(faults.ERRORS[name], at)
    statuses = _send(peers, receiver.port, series)
    mount.fail(0)
    refused = [status for status in statuses if status not in (0, None)]
    outcome.count(refused=len(refused), stored=statuses.count(0))
    found = unanswered(what, statuses)
    if name == "EIO":
        receiver.end()  # it may have seen a sync fail, and then trusts this disk no more
        assert receiver.victim
    if left := receiver.until_recorded():
        found.append(f"{what}: {left} though it was answered Success")
    if any(status != 0 for status in _send(peers, receiver.port, series)):
        found.append(f"{what}: refused again after the failure was over")
    if left := list((receiver.store / "files" / ".new").iterdir()):
        outcome.count(left_for_the_sweep=len(left))
    return found + checker.damaged_names(receiver.store)


def unanswered(what: str, statuses: Sequence[int | None]) -> list[str]:
    """Say which of these is no answer of a node whose disk fails: that is Success, or A7xx."""
    odd = [status for status in statuses if status is None or (status and status not in OUT_OF_RESOURCES)]
    return [f"{what}: not answered" if status is None else f"{what}: answered {status:#06x}" for status in odd]


def _send(peers: bench.Peers, port: int, series: str) -> list[int | None]:
    """Send what of a series is not acknowledged; returns the statuses, None where the association ended instead."""
    statuses: list[int | None] = []
    association = None
    for instance in list(peers.unacked.get(series, ())):
        try:
            association = association or wire.Sender(port)
            statuses.append(peers.store(association, instance))
        except wire.Gone:
            statuses.append(None)
            association = None
    if association is not None:
        association.close()
    return statuses


def _at_random(
    made: bench.Bench, store: Path, peers: bench.Peers, choice: random.Random, count: int, outcome: kill.Outcome
) -> None:
    """Let so many failures fall into a whole node at work; then it must come to rest with everything kept."""
    kinds: list[tuple[str, str]] = [
        (c, n) for failures in (_FAILURES, _AHEAD_FAILURES) for c, names in failures.items() for n in names
    ]
    victim, port, struck = None, 0, 0
    for _ in itertools.repeat(None, 50 + _TRIES * count):
        if struck == count or outcome.violations:
            break
        if victim is None:
            victim = made.fork(store, peers)
            port = bench.port_of(victim) or 0
        series = peers.begin_series(3)
        call, name = choice.choice(kinds)
        word: dict[str, Any] = {"call": call, "at": choice.randrange(1, 6), "error": faults.ERRORS[name]}
        victim.say(do="arm", **word)
        victim.hear()
        outcome.violations += unanswered(f"{call} failing with {name} at random", _send(peers, port, series))
        victim.say(do="end")
        said = victim.hear()
        hit = int(said["hit"]) if said else 0
        outcome.count(failures=hit)
        struck += hit
        if said is None:
            outcome.violations.append(f"{call} failing with {name} at random: the node ended: {made.tail()}")
        if said is None or choice.randrange(8) == 0:
            victim.end()
            victim = None
    if victim is not None:
        victim.end()
    outcome.done += struck  # what did not come to its call is no case
    made.settle(store, peers)
    outcome.violations += checker.violations(store, peers.journals)
