"""The command `scripts/prove.py`: harnesses side by side, and a table of what was tried and what was found."""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable  # noqa: TC003 - a dataclass's field
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from prove import bugs, errors, kill, late, points, postgres, power, suite

TESTS = Path(__file__).resolve().parents[1]

#: The fuzz tests by name: module, and pytest's choice within it.
FUZZERS = {
    "data-sets": ("test_fuzz_data_sets.py", ""),
    "pdus": ("test_fuzz_pdus.py", "not over_sockets"),
    "sockets": ("test_fuzz_pdus.py", "over_sockets"),
}
#: So much longer than its time a fuzz test may take to begin and to end; who is still at one case then hangs.
_FUZZ_GRACE_SECONDS = 120.0
#: What each harness has to do of what it was asked, or the whole proves too little.
LEAST_SHARE = 0.25
#: What takes longest: it begins first, and takes half of the time at most.
_LONGEST = ("kill", "power")
_SKIPPED = "not begun: the time was over"
#: What each harness gets that is begun, however late it is: the whole ends so much after its limit, and what the last
#: ones need to settle.
_LEAST_SECONDS = 30.0


@dataclass(frozen=True)
class Task:
    """One harness to run.

    Parameters
    ----------
    seconds
        Its time limit.
    run
        Runs it, in a folder, from a seed and within so many seconds.
    part
        So much of its time limit it gets at most where all harnesses run.
    """

    name: str
    seconds: float
    run: Callable[[Path, int, float], Any]
    part: float = 1.0

    @property
    def names(self) -> set[str]:
        """By what it is asked for."""
        kind, own = self.name.split()[0], self.name.split()[-1]
        return {self.name, own, {"bug": "bugs"}.get(kind, kind)}


@dataclass(frozen=True)
class Sizes:
    """How much of everything, and within how many seconds in all."""

    kills: int
    cuts: int
    deaths: int
    fuzz: int
    seconds: float


BUILD = Sizes(2_000, 1_000, 8, 1, 1_140.0)
NIGHT = Sizes(10_000, 10_000, 400, 10, 4.5 * 3_600)
#: Calls at which the power is cut before and after.
_CUT_AT = ("replace", "fsync", "write", "commit", "pwritev", "fdatasync", "sendfile")


def tasks(sizes: Sizes) -> list[Task]:
    """Return everything there is, the longest first: what is begun last is what a slow machine does least of."""
    found = [
        Task("kill", sizes.seconds, lambda folder, seed, limit: kill.run(folder, sizes.kills, seed, limit), 0.5),
        Task("power", sizes.seconds, lambda folder, seed, limit: power.run(folder, sizes.cuts, seed, limit), 0.5),
    ]
    found += [
        Task(
            f"bug {name}",
            suite.FIND_SECONDS,
            lambda folder, seed, limit, name=name: suite.find(folder, name, seed, limit),
        )
        for name in bugs.BUGS
    ]
    found += [
        *(
            Task(
                f"fuzz {name}",
                sizes.seconds,
                lambda folder, seed, limit, name=name: fuzz(folder, name, sizes.fuzz, seed, limit),
                0.25,
            )
            for name in FUZZERS
        ),
        Task("frozen", 60.0, lambda folder, seed, _: points.frozen(folder, seed)),
        Task("late", 120.0, late.run),
        Task("errors", 150.0, errors.run),
        Task("errors-ahead", 150.0, errors.run_ahead),
        Task("full", 120.0, errors.full),
        Task(
            "postgres", sizes.seconds / 15, lambda folder, seed, limit: postgres.run(folder, sizes.deaths, seed, limit)
        ),
        Task("points", 420.0, points.run),
        Task(
            "power-points",
            420.0,
            lambda folder, seed, limit: points.run(folder, seed, limit, cut="random", only=_CUT_AT),
        ),
        Task(
            "recovery", 300.0, lambda folder, seed, limit: points.run(folder, seed, limit, story=points.tell_recovery)
        ),
        Task(
            "power-recovery",
            300.0,
            lambda folder, seed, limit: points.run(folder, seed, limit, story=points.tell_recovery, cut="random"),
        ),
    ]
    why = power.missing()
    needs = {
        "power",
        "power-points",
        "power-recovery",
        "full",
        *(f"bug {name}" for name, bug in bugs.BUGS.items() if bug.harness in {"power", "power-points", "torn"}),
    }
    lacking = dict.fromkeys(needs if why else (), why)
    if why := postgres.missing():
        lacking["postgres"] = why
    return [
        replace(task, run=_skipped(task.name, lacking[task.name])) if task.name in lacking else task for task in found
    ]


def _skipped(name: str, why: str) -> Callable[[Path, int, float], kill.Outcome]:
    return lambda _folder, _seed, _limit: kill.Outcome(name, 0, told=[why])


def fuzz(
    folder: Path, name: str, factor: int, seed: int, seconds: float, *, grace: float = _FUZZ_GRACE_SECONDS
) -> kill.Outcome:
    """Run one of the long fuzz tests; a case that does not end is a finding, also where the time was over in it."""
    outcome, begin = kill.Outcome(f"fuzz {name}", 0), time.monotonic()
    module, choice = FUZZERS[name]
    under_way = folder / "under_way"
    command = [sys.executable, "-m", "pytest", "-q", "-W", "error", "-m", "not nightly", "--timeout=0", "-k", choice]
    environment = {**os.environ, "PACS_AI_PROVE": str(factor), "PACS_AI_SEED": str(seed)}
    environment |= {"PACS_AI_SECONDS": str(seconds), "PACS_AI_UNDER_WAY": str(under_way)}
    arguments = {"env": environment, "cwd": TESTS.parent, "capture_output": True, "text": True}
    is_odd = False
    try:
        done = subprocess.run(
            [*command, str(TESTS / "rows" / module)], timeout=seconds + grace, check=False, **arguments
        )
    except subprocess.TimeoutExpired:
        is_odd, outcome.violations = True, [f"it did not end {grace:.0f} s after its time was over"]
    else:
        lines = done.stdout.strip().splitlines()
        outcome.told = lines[-1:]
        if done.returncode:
            told = [line for line in lines if line.startswith(("E  ", "FAILED", "ERROR"))]
            is_odd, outcome.violations = done.returncode != 1, (told or lines or [f"status {done.returncode}"])[-7:]
    said = json.loads(under_way.read_text()) if under_way.exists() else {"done": 0, "wanted": 1, "case": ""}
    outcome.done, outcome.wanted = said["done"], said["wanted"]
    if is_odd:
        outcome.violations.append(f"under way: {said['case'] or 'no case'}")
    outcome.seconds = time.monotonic() - begin
    return outcome


def share(task: Task, waiting: list[Task], left: float, at_once: int) -> float:
    """Return for how long a task may run so that those that are still waiting get their part of the time, too."""
    most = min(task.part * task.seconds, left)
    if task.name in _LONGEST:
        return most
    all_of_them = sum(other.part * other.seconds for other in (task, *waiting))
    return min(most, left * at_once * task.part * task.seconds / all_of_them)


def prove(task: Task, seed: int, until: float, limit_of: Callable[[Task, float], float], console: Console) -> Any:
    """Run one task, no longer than until then; an exception of the harness itself is a failure too."""
    left = until - time.monotonic()
    limit = max(_LEAST_SECONDS, limit_of(task, left))
    if left <= 0:
        return kill.Outcome(task.name, 1, told=[_SKIPPED])
    console.print(f"{task.name}: begins, seed {seed}", highlight=False)
    with tempfile.TemporaryDirectory(prefix="prove-", ignore_cleanup_errors=True) as folder:
        try:
            outcome = task.run(Path(folder), seed, limit)
        except Exception as error:  # noqa: BLE001 - the outermost frame of a harness
            outcome = kill.Outcome(task.name, 0, violations=[f"the harness broke: {type(error).__name__}: {error}"])
    for words in outcome.violations[:8]:
        console.print(f"{task.name}: {words}", style="red", highlight=False, markup=False)
    console.print(f"{task.name}: ended after {outcome.seconds:.0f} s", highlight=False)
    return outcome


def shortfall(task: Task, outcome: kill.Outcome, *, is_night: bool) -> str:
    """Say in how far a harness that found nothing did too little to prove anything; "" where it did enough.

    A seeded bug is looked for until it is found; by night, a long look is enough.
    """
    is_bug = task.name.startswith("bug ")
    if outcome.violations or (is_bug and outcome.figures):
        return ""
    if not outcome.done and outcome.wanted:
        return "not begun" if outcome.told == [_SKIPPED] else f"did none of {outcome.wanted:,}"
    least = outcome.wanted if is_bug and not is_night else LEAST_SHARE * outcome.wanted
    return f"did {outcome.done:,} of {outcome.wanted:,}, needs {least:,.0f}" if outcome.done < least else ""


def verdict(task: Task, outcome: kill.Outcome, *, is_night: bool, is_whole: bool = True) -> str:
    """Return the table's last word on a harness."""
    if outcome.violations:
        return "FAILED"
    if is_whole and shortfall(task, outcome, is_night=is_night):
        return "TOO LITTLE"
    if task.name.startswith("bug ") and outcome.figures:
        return "found"
    return "time limit" if outcome.done < outcome.wanted else "ok" if outcome.wanted else "SKIPPED"


def table_of(results: list[tuple[Task, int, kill.Outcome]], *, is_night: bool, is_whole: bool) -> Table:
    table = Table("harness", "seed", "done", "s", "what it came to", "verdict")
    for task, seed, outcome in results:
        words = ", ".join(f"{number:,} {name}" for name, number in outcome.figures.items())
        if outcome.told:
            words = "; ".join([*([words] if words else []), outcome.told[0][:90]])
        done = f"{outcome.done:,} of {outcome.wanted:,}"
        last = verdict(task, outcome, is_night=is_night, is_whole=is_whole)
        table.add_row(task.name, str(seed), done, f"{outcome.seconds:.0f}", words, last)
    return table


def conclusion(results: list[tuple[Task, int, kill.Outcome]], *, is_night: bool, is_whole: bool) -> list[str]:
    """Say why the proof failed; nothing where it holds.

    Parameters
    ----------
    is_whole
        All harnesses were to run. Who names some wants to see what these do, however much that is.
    """
    broken = [task.name for task, _, outcome in results if outcome.violations]
    words = [f"FAILED: {', '.join(broken)}"] if broken else []
    short = [(task.name, shortfall(task, outcome, is_night=is_night)) for task, _, outcome in results]
    fell_short = [f"{name} ({why})" for name, why in short if why]
    if is_whole and fell_short:
        words.append(f"PROVED TOO LITTLE: {', '.join(fell_short)}")
        words.append("Of these nothing is known to be broken: give them more time (--limit, make prove LIMIT=).")
    return words


def main(words: str | None) -> int:
    parser = argparse.ArgumentParser(description=(words or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", help="some harnesses only; bugs: every seeded bug; `bug NAME`: one")
    parser.add_argument("--night", action="store_true", help="the long run")
    parser.add_argument("--seed", type=int, help="to repeat a run (a build: 1; by night: another each time)")
    parser.add_argument("--limit", type=float, default=0.0, help="seconds for all of it")
    parser.add_argument("--at-once", type=int, default=3, help="harnesses side by side")
    arguments = parser.parse_args()
    console = Console(width=150)
    begin = time.monotonic()
    sizes = NIGHT if arguments.night else BUILD
    if arguments.seed is None:
        arguments.seed = random.SystemRandom().randrange(1 << 31) if arguments.night else 1
    sizes = replace(sizes, seconds=arguments.limit or sizes.seconds)
    until = begin + sizes.seconds
    wanted = tasks(sizes)
    if names := set(arguments.names):
        wanted = [task for task in wanted if names & task.names]
    waiting = list(wanted)

    def limit_of(task: Task, left: float) -> float:
        waiting.remove(task)
        return min(task.seconds, left) if names else share(task, list(waiting), left, arguments.at_once)

    with ThreadPoolExecutor(arguments.at_once) as pool:
        seeds = range(arguments.seed, arguments.seed + len(wanted))
        begun = [
            (task, seed, pool.submit(prove, task, seed, until, limit_of, console))
            for task, seed in zip(wanted, seeds, strict=True)
        ]
        results = [(task, seed, one.result()) for task, seed, one in begun]
    console.print(table_of(results, is_night=arguments.night, is_whole=not names))
    console.print(
        f"{len(results)} harnesses in {time.monotonic() - begin:.0f} s, seed {arguments.seed}", highlight=False
    )
    why = conclusion(results, is_night=arguments.night, is_whole=not names)
    for words in why:
        console.print(words, style="red", highlight=False, markup=False)
    return 1 if why else 0
