"""The demo's progress display: one row per step with its time; plain lines where there is no terminal."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from types import TracebackType

    from rich.console import Console, RenderableType

#: Without a terminal, a step that takes longer says so every so often.
_SAY_SECONDS = 5.0
_MARKS = {"done": ("✔", "green"), "failed": ("✘", "red"), "waiting": ("·", "dim")}


@dataclass
class Row:
    """One step of the journey."""

    title: str
    total: int = 0
    done: int = 0
    words: str = ""
    state: str = "waiting"
    began: float = field(default_factory=time.monotonic)
    seconds: float | None = None

    @property
    def elapsed(self) -> float:
        """Seconds that it took, or takes so far."""
        return time.monotonic() - self.began if self.seconds is None else self.seconds


class Board:
    """Rows by their titles; what is not shown by a terminal is told line by line."""

    def __init__(self, console: Console, titles: tuple[str, ...]) -> None:
        self.console = console
        self.rows = {title: Row(title) for title in titles}

    def __enter__(self) -> Self:
        """Begin to show."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Show the last state."""

    def begin(self, title: str, total: int = 0, words: str = "") -> None:
        """Begin a step; nothing happens where it has begun already."""
        row = self.rows[title]
        if row.state == "waiting":
            row.state, row.total, row.words, row.began = "running", total, words, time.monotonic()
            self.began(row)

    def advance(self, title: str, done: int) -> None:
        """Note how many of the step's total are done."""
        self.rows[title].done = done
        self.tick()

    def end(self, title: str, words: str = "", seconds: float | None = None) -> None:
        """End a step that went well; nothing happens where it has ended already.

        Parameters
        ----------
        title
            Which.
        words
            What came of it.
        seconds
            How long it took by the node's own records; None: as seen here.
        """
        self._close(title, "done", words, seconds)

    def fail(self, title: str, words: str) -> None:
        """End a step that went wrong."""
        self._close(title, "failed", words, None)

    def _close(self, title: str, state: str, words: str, seconds: float | None) -> None:
        row = self.rows[title]
        if row.state in {"done", "failed"}:
            return
        if row.state == "waiting":
            row.began = time.monotonic()
        row.seconds = row.elapsed if seconds is None else seconds
        row.state, row.words = state, words
        self.ended(row)

    def running(self) -> Row | None:
        """Return the step in progress that began last."""
        rows = [row for row in self.rows.values() if row.state == "running"]
        return max(rows, key=lambda row: row.began, default=None)

    def began(self, row: Row) -> None:
        """Show that a step began."""

    def ended(self, row: Row) -> None:
        """Show that a step ended."""

    def tick(self) -> None:
        """Show that time passes; called several times a second."""


class PlainBoard(Board):
    """Plain lines, for a log or a pipe."""

    _said = 0.0

    def began(self, row: Row) -> None:
        """Say that a step begins."""
        self._say(f"  …  {row.title}{_aside(row.words)}")

    def ended(self, row: Row) -> None:
        """Say that a step ended and how long it took."""
        self._say(f"  {_MARKS[row.state][0]}  {row.title:<12} {row.elapsed:6.2f} s{_aside(row.words)}")

    def tick(self) -> None:
        """Say what takes long."""
        row = self.running()
        if row is not None and time.monotonic() - self._said > _SAY_SECONDS:
            count = f" {row.done}/{row.total}" if row.total else ""
            self._say(f"  …  {row.title}{count}, {row.elapsed:.0f} s so far")

    def _say(self, line: str) -> None:
        self._said = time.monotonic()
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)


class LiveBoard(Board):
    """A table that is drawn anew eight times a second."""

    def __init__(self, console: Console, titles: tuple[str, ...]) -> None:
        super().__init__(console, titles)
        self._spinner = Spinner("dots", style="cyan")
        self._live = Live(console=console, get_renderable=self._table, refresh_per_second=8)

    def __enter__(self) -> Self:
        """Begin to show."""
        self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Leave the last state on the terminal."""
        self._live.__exit__(kind, error, traceback)

    def _table(self) -> Table:
        table = Table.grid(padding=(0, 2))
        for row in self.rows.values():
            style = "dim" if row.state == "waiting" else ""
            seconds = "" if row.state == "waiting" else f"{row.elapsed:6.2f} s"
            table.add_row(self._mark(row), Text(row.title, style), Text(seconds), _state(row))
        return table

    def _mark(self, row: Row) -> RenderableType:
        if row.state == "running":
            return self._spinner
        return Text(*_MARKS[row.state])


def _state(row: Row) -> RenderableType:
    if row.state == "running" and row.total:
        bar = ProgressBar(total=row.total, completed=row.done, width=30)
        shown = Table.grid(padding=(0, 1))
        shown.add_row(bar, Text(f"{row.done}/{row.total}"))
        return shown
    return Text(row.words, overflow="fold")


def _aside(words: str) -> str:
    return f"  {words}" if words else ""


def make_board(console: Console, titles: tuple[str, ...]) -> Board:
    """Return the display that fits the console."""
    return LiveBoard(console, titles) if console.is_terminal else PlainBoard(console, titles)
