"""Every harness by name, in sizes: a few seconds, what a build does, and a night."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from prove import bugs, errors, kill, late, points, power

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

#: Longest time for one seeded bug to be found.
FIND_SECONDS = 180.0


def _calm(folder: Path, seed: int, bug: str, seconds: float) -> kill.Outcome:
    return kill.run(folder, 12, seed, seconds, bug=bug, twin=False, per_check=4)


def _rude(folder: Path, seed: int, bug: str, seconds: float) -> kill.Outcome:
    return kill.run(folder, 120, seed, seconds, bug=bug, twin=False, per_check=10)


def _points(folder: Path, seed: int, bug: str, seconds: float) -> kill.Outcome:
    return points.run(folder, seed, seconds, bug=bug)


def _power_points(folder: Path, seed: int, bug: str, seconds: float) -> kill.Outcome:
    return points.run(folder, seed, seconds, bug=bug, cut="random", only=("replace", "rename"), rounds=10)


def _recovery(folder: Path, seed: int, bug: str, seconds: float) -> kill.Outcome:
    return points.run(folder, seed, seconds, bug=bug, story=points.tell_recovery)


def _written(folder: Path, seed: int, bug: str, seconds: float) -> kill.Outcome:
    return points.run(folder, seed, seconds, bug=bug, only=("pwritev",))


def _let_go(folder: Path, seed: int, bug: str, seconds: float) -> kill.Outcome:
    only = ("commit", "pwritev", "fdatasync")
    return points.run(folder, seed, seconds, bug=bug, story=points.tell_recovery, only=only)


def _torn(folder: Path, seed: int, bug: str, seconds: float) -> kill.Outcome:
    return points.run(folder, seed, seconds, bug=bug, cut="tear", only=("pwritev", "fdatasync"), rounds=6)


def _power(folder: Path, seed: int, bug: str, seconds: float) -> kill.Outcome:
    return power.run(folder, 60, seed, seconds, bug=bug, per_check=4)


def _late(folder: Path, seed: int, bug: str, seconds: float) -> kill.Outcome:
    return late.run(folder, seed, seconds, bug=bug)


def _frozen(folder: Path, seed: int, bug: str, _seconds: float) -> kill.Outcome:
    return points.frozen(folder, seed, bug)


def _errors(folder: Path, seed: int, bug: str, seconds: float) -> kill.Outcome:
    return errors.run(folder, seed, seconds, bug=bug, at_random=0)


#: What finds a seeded bug: the same harnesses that the node itself has to pass, smaller.
FINDERS: dict[str, Callable[[Path, int, str, float], kill.Outcome]] = {
    "calm": _calm,
    "rude": _rude,
    "points": _points,
    "power": _power,
    "power-points": _power_points,
    "recovery": _recovery,
    "let-go": _let_go,
    "torn": _torn,
    "written": _written,
    "frozen": _frozen,
    "late": _late,
    "errors": _errors,
}


def find(folder: Path, name: str, seed: int, seconds: float = FIND_SECONDS) -> kill.Outcome:
    """Have the harness that must find a seeded bug look for it; the outcome's violations say that it did not.

    A node that is wrong may also take for ever, or break in another way than its bug's own first: that proves nothing,
    and it looks on from another seed.
    """
    bug = bugs.BUGS[name]
    begin = time.monotonic()
    found = FINDERS[bug.harness](folder, seed, name, seconds)
    seen = list(found.violations)
    while found.violations and not _signs(seen, bug) and (left := begin + seconds - time.monotonic()) > 0:
        again = FINDERS[bug.harness](folder / f"from{found.done}", seed + found.done, name, left)
        found = replace(again, done=found.done + again.done, wanted=found.done + again.wanted)
        seen += found.violations
    signs, besides = _signs(seen, bug), [words for words in seen if not words.startswith("I4 ")]
    words = []
    if not signs and besides:
        words = [f"it broke the node in another way, so nothing is proved: {besides[0]}"]
    elif not signs and (seen or found.done < found.wanted):
        wanted = max(found.wanted, found.done + 1)
        told = ["not looked for long enough"]
        return replace(found, name=f"bug {name}", wanted=wanted, figures={}, violations=[], told=told)
    elif not signs:
        words = [f"not found by {found.name} in {found.done} of {found.wanted}: {bug.words}"]
    return replace(
        found,
        name=f"bug {name}",
        figures={"after": found.done},
        seconds=time.monotonic() - begin,
        violations=words,
        told=(signs or besides)[:1],
    )


def _signs(seen: list[str], bug: bugs.Bug) -> list[str]:
    return [words for words in seen if re.search(bug.shows, words)]
