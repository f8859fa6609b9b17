"""The command `scripts/prove.py`: harnesses side by side, and a table of what was tried and what was found."""

from __future__ import annotations

import argparse
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

#: What each harness gets that is begun, however late it is: the whole ends so much after its limit, and what the last
#: ones need to settle.
_LEAST_SECONDS = 30.0


@dataclass(frozen=True)
class Task:
    """One harness to run: its name, its time limit in seconds, and how."""

    name: str
    seconds: float
    run: Callable[[Path, int, float], Any]


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
    """Return everything there is: the fixed amounts first, then the two that fill what time is left."""
    found = [Task("fuzz", sizes.seconds, lambda _folder, seed, limit: fuzz(sizes.fuzz, seed, limit))]
    found += [
        Task(
            f"bug {name}",
            suite.FIND_SECONDS,
            lambda folder, seed, limit, name=name: suite.find(folder, name, seed, limit),
        )
        for name in bugs.BUGS
    ]
    found += [
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
        Task("kill", sizes.seconds, lambda folder, seed, limit: kill.run(folder, sizes.kills, seed, limit)),
        Task("power", sizes.seconds, lambda folder, seed, limit: power.run(folder, sizes.cuts, seed, limit)),
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


def fuzz(factor: int, seed: int, seconds: float) -> kill.Outcome:
    """Run the long fuzz tests, where there are any."""
    outcome, begin = kill.Outcome("fuzz", 0), time.monotonic()
    modules = sorted((TESTS / "rows").glob("test_fuzz*.py"))
    outcome.wanted = outcome.done = len(modules)
    if modules:
        command = [sys.executable, "-m", "pytest", "-q", "-W", "error", "-m", "not nightly", "--timeout=3600"]
        environment = {**os.environ, "PACS_AI_PROVE": str(factor), "PACS_AI_SEED": str(seed)}
        arguments = {"env": environment, "cwd": TESTS.parent, "capture_output": True, "text": True}
        try:
            done = subprocess.run([*command, *map(str, modules)], timeout=seconds, check=False, **arguments)
        except subprocess.TimeoutExpired:
            outcome.done, outcome.told = 0, [f"not through after {seconds:.0f} s"]
        else:
            lines = done.stdout.strip().splitlines()
            outcome.told = lines[-1:]
            if done.returncode:
                told = [line for line in lines if line.startswith(("E  ", "FAILED", "ERROR"))]
                outcome.violations = (told or lines)[-8:]
    outcome.seconds = time.monotonic() - begin
    return outcome


def prove(task: Task, seed: int, until: float, console: Console) -> kill.Outcome:
    """Run one task, no longer than until then; an exception of the harness itself is a failure too."""
    left = until - time.monotonic()
    if left <= 0:
        return kill.Outcome(task.name, 1, told=["not begun: the time was over"])
    limit = max(_LEAST_SECONDS, min(task.seconds, left))
    console.print(f"{task.name}: begins, seed {seed}", highlight=False)
    with tempfile.TemporaryDirectory(prefix="prove-", ignore_cleanup_errors=True) as folder:
        try:
            outcome = task.run(Path(folder), seed, limit)
        except (AssertionError, OSError, RuntimeError) as error:
            outcome = kill.Outcome(task.name, 0, violations=[f"the harness broke: {type(error).__name__}: {error}"])
    for words in outcome.violations[:8]:
        console.print(f"{task.name}: {words}", style="red", highlight=False, markup=False)
    console.print(f"{task.name}: ended after {outcome.seconds:.0f} s", highlight=False)
    return outcome


def table_of(results: list[tuple[Task, int, kill.Outcome]]) -> Table:
    table = Table("harness", "seed", "done", "s", "what it came to", "verdict")
    for task, seed, outcome in results:
        words = ", ".join(f"{number:,} {name}" for name, number in outcome.figures.items())
        if outcome.told:
            words = "; ".join([*([words] if words else []), outcome.told[0][:90]])
        done = f"{outcome.done:,} of {outcome.wanted:,}"
        is_bug = task.name.startswith("bug ") and bool(outcome.figures)
        fewer = outcome.done < outcome.wanted and not is_bug
        verdict = "FAILED" if outcome.violations else "time limit" if fewer else "found" if is_bug else "ok"
        table.add_row(task.name, str(seed), done, f"{outcome.seconds:.0f}", words, verdict)
    return table


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
    until = begin + (arguments.limit or sizes.seconds)
    wanted = tasks(sizes)
    if names := set(arguments.names):
        wanted = [t for t in wanted if names & {t.name, t.name.split()[-1], t.name.split()[0] + "s"}]
    with ThreadPoolExecutor(arguments.at_once) as pool:
        begun = [
            (task, arguments.seed + number, pool.submit(prove, task, arguments.seed + number, until, console))
            for number, task in enumerate(wanted)
        ]
        results = [(task, seed, one.result()) for task, seed, one in begun]
    console.print(table_of(results))
    broken = [task.name for task, _, outcome in results if outcome.violations]
    console.print(
        f"{len(results)} harnesses in {time.monotonic() - begin:.0f} s, seed {arguments.seed}", highlight=False
    )
    if broken:
        console.print(f"FAILED: {', '.join(broken)}", style="red", highlight=False)
    return 1 if broken else 0
