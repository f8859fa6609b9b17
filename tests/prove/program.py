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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from prove import bugs, errors, kill, points, power, suite

TESTS = Path(__file__).resolve().parents[1]

#: Ends a harness that hangs: its own limit and so much more.
_GRACE_SECONDS = 150.0


@dataclass(frozen=True)
class Task:
    """One harness to run: its name, its time limit in seconds, and how."""

    name: str
    seconds: float
    run: Callable[[Path, int, float], Any]


@dataclass(frozen=True)
class Sizes:
    """How much of everything."""

    kills: int
    kill_seconds: float
    cuts: int
    cut_seconds: float


BUILD = Sizes(2_000, 540.0, 1_000, 420.0)
NIGHT = Sizes(10_000, 4_500.0, 10_000, 6_000.0)


def tasks(sizes: Sizes, seed: int) -> list[Task]:
    """Return everything there is, the longest first."""
    found = [
        Task("kill", sizes.kill_seconds, lambda folder, seed, limit: kill.run(folder, sizes.kills, seed, limit)),
        Task("power", sizes.cut_seconds, lambda folder, seed, limit: power.run(folder, sizes.cuts, seed, limit)),
        Task("points", 300.0, points.run),
        Task(
            "power-points",
            150.0,
            lambda folder, seed, limit: points.run(
                folder, seed, limit, cut=True, only=("replace", "fsync", "write", "commit")
            ),
        ),
        Task("errors", 120.0, errors.run),
        Task("frozen", 60.0, lambda folder, seed, _: points.frozen(folder, seed)),
    ]
    found += [
        Task(f"bug {name}", suite.FIND_SECONDS, lambda folder, seed, _, name=name: suite.find(folder, name, seed))
        for name in bugs.BUGS
    ]
    needs = {"power": "", "power-points": ""}
    needs |= {f"bug {name}": "" for name, bug in bugs.BUGS.items() if bug.harness.startswith("power")}
    if why := power.missing():
        found = [Task(t.name, 1.0, _skipped(t.name, why)) if t.name in needs else t for t in found]
    return found


def _skipped(name: str, why: str) -> Callable[[Path, int, float], kill.Outcome]:
    return lambda _folder, _seed, _limit: kill.Outcome(name, 0, told=[why])


def fuzz() -> kill.Outcome:
    """Run the long fuzz tests, where there are any."""
    outcome, begin = kill.Outcome("fuzz", 0), time.monotonic()
    modules = sorted((TESTS / "rows").glob("test_fuzz*.py"))
    outcome.wanted = outcome.done = len(modules)
    if modules:
        command = [sys.executable, "-m", "pytest", "-q", "-W", "error", "-m", "not nightly", "--timeout=900"]
        done = subprocess.run(
            [*command, *map(str, modules)],
            env={**os.environ, "PACS_AI_PROVE": "1"},
            cwd=TESTS.parent,
            capture_output=True,
            text=True,
            check=False,
        )
        lines = done.stdout.strip().splitlines()
        outcome.told = lines[-1:]
        if done.returncode:
            outcome.violations = [*(line for line in lines if line.startswith(("FAILED", "ERROR"))), *lines[-3:]]
    outcome.seconds = time.monotonic() - begin
    return outcome


def prove(task: Task, seed: int, limit: float, console: Console) -> kill.Outcome:
    """Run one task; an exception of the harness itself is a failure too."""
    console.print(f"{task.name}: begins, seed {seed}", highlight=False)
    with tempfile.TemporaryDirectory(prefix="prove-", ignore_cleanup_errors=True) as folder:
        try:
            outcome = task.run(Path(folder), seed, limit or task.seconds)
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
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 31))
    parser.add_argument("--limit", type=float, default=0.0, help="seconds for each harness, in place of its own limit")
    parser.add_argument("--at-once", type=int, default=2, help="harnesses side by side")
    arguments = parser.parse_args()
    console = Console(width=150)
    begin = time.monotonic()
    wanted = tasks(NIGHT if arguments.night else BUILD, arguments.seed)
    wanted.append(Task("fuzz", 900.0, lambda _folder, _seed, _limit: fuzz()))
    if arguments.names:
        names = set(arguments.names)
        wanted = [
            t for t in wanted if t.name in names or t.name.split()[-1] in names or t.name.split()[0] + "s" in names
        ]
    # the two long ones start together; fuzz goes third, so that nothing long is left for the end
    wanted.sort(key=lambda task: -task.seconds)
    with ThreadPoolExecutor(arguments.at_once) as pool:
        begun = [
            pool.submit(prove, task, arguments.seed + number, arguments.limit, console)
            for number, task in enumerate(wanted)
        ]
        results = [
            (task, arguments.seed + number, one.result())
            for number, (task, one) in enumerate(zip(wanted, begun, strict=True))
        ]
    console.print(table_of(results))
    broken = [task.name for task, _, outcome in results if outcome.violations]
    console.print(
        f"{len(results)} harnesses in {time.monotonic() - begin:.0f} s, seed {arguments.seed}", highlight=False
    )
    if broken:
        console.print(f"FAILED: {', '.join(broken)}", style="red", highlight=False)
    return 1 if broken else 0
