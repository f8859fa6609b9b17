"""Progress on standard error: a bar where a person looks on, nothing where a program does."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from pacs_ai.cli import words

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.progress import TaskID


@contextmanager
def counted(doing: str, total: int) -> Iterator[Callable[[], None]]:
    """Yield what is called after each of `total` things; the bar goes when all are done."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = words.console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(doing, total=total)
        yield lambda: bar.advance(task)


@contextmanager
def steps(*, transient: bool = False) -> Iterator[Callable[[str], None]]:
    """Yield what is called as each step begins; it stands there with the time that it takes, or goes at the end."""
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = words.console(stderr=True)
    columns = (SpinnerColumn(finished_text="✓"), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=transient, disable=not console.is_terminal) as bar:

        def begin(name: str) -> None:
            finish()
            bar.add_task(name, total=1)

        def finish() -> None:
            for task in bar.tasks:
                bar.update(task.id, completed=1)

        yield begin
        finish()


@contextmanager
def transfer() -> Iterator[Callable[[str, int, int | None], None]]:
    """Yield what is told how many bytes of which file are here, and how many there will be where that is known."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    console = words.console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        tasks: dict[str, TaskID] = {}

        def told(name: str, done: int, total: int | None) -> None:
            if name not in tasks:
                tasks[name] = bar.add_task(name, total=total)
            bar.update(tasks[name], completed=done, total=total)

        yield told
