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

    A node that is wrong may also take for ever, and its store be in order as far as it is: then it looks on.
    """
    bug = bugs.BUGS[name]
    begin = time.monotonic()
    found = FINDERS[bug.harness](folder, seed, name, seconds)
    while _took_long(found, bug) and (left := begin + seconds - time.monotonic()) > 0:
        again = FINDERS[bug.harness](folder / f"from{found.done}", seed + found.done, name, left)
        found = replace(again, done=found.done + again.done, wanted=found.done + again.wanted)
    if _took_long(found, bug) or (not found.violations and found.done < found.wanted):  # nothing is proved
        wanted = max(found.wanted, found.done + 1)
        told = ["not looked for long enough"]
        return replace(found, name=f"bug {name}", wanted=wanted, figures={}, violations=[], told=told)
    words = []
    signs = _signs(found, bug)
    if not found.violations:
        words = [f"not found by {found.name} in {found.done} of {found.wanted}: {bug.words}"]
    elif not signs:
        words = [f"it broke the node in another way, so nothing is proved: {found.violations[0]}"]
    figures = {"after": found.done}
    return replace(
        found,
        name=f"bug {name}",
        figures=figures,
        seconds=time.monotonic() - begin,
        violations=words,
        told=(signs or found.violations)[:1],
    )


def _signs(found: kill.Outcome, bug: bugs.Bug) -> list[str]:
    return [violation for violation in found.violations if re.search(bug.shows, violation)]


def _took_long(found: kill.Outcome, bug: bugs.Bug) -> bool:
    """Whether a node did not come to rest, and nothing else is wrong."""
    is_late = bool(found.violations) and all(violation.startswith("I4 ") for violation in found.violations)
    return is_late and not _signs(found, bug)
