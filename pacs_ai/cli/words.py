"""How the commands talk: errors as one plain sentence, an example under each help page, tables, JSON."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

import click

from pacs_ai import lean
from pacs_ai.errors import PacsAiError, UserError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

#: Exit codes. 0: done, well. 2: the command or the configuration is wrong, which is click's own too.
TROUBLE, WRONG, INTERRUPTED = 1, 2, 130
#: Columns of output that goes to a file or a pipe: no line of a table is cut there.
_PIPE_WIDTH = 240

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
with_comments = click.option(
    "--comments",
    is_flag=True,
    help="With what the peer said in its own words (Error Comment). It may name a patient: let nobody else see it.",
)


def said(words: str, comment: str) -> str:
    """Return a reason with what the peer said of it in its own words, where there is any."""
    return f'{words}, "{comment}"' if comment else words


class Plain(click.ClickException):
    """An error as one plain sentence on standard error."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.code = exit_code

    @property
    def exit_code(self) -> int:  # type: ignore[override]
        """What the shell gets."""
        return self.code

    def show(self, file: Any = None) -> None:
        """Print the sentence."""
        click.echo(f"pacs-ai: {self.format_message()}", file=file or sys.stderr)


class Group(click.Group):
    """Commands in the order in which they were added; what they raise on purpose is said in plain words."""

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run as `pacs-ai`, however it was started."""
        if not args and "args" not in extra:  # the command line of this process: it ends with the command
            lean.collect_rarely()
        return super().main(*args, **{"prog_name": "pacs-ai", **extra})

    def list_commands(self, _context: click.Context) -> list[str]:
        """Return the names in the order of the journey, not of the alphabet."""
        return list(self.commands)

    def invoke(self, context: click.Context) -> Any:
        """Run the command; never a traceback for what a user can cause."""
        try:
            return super().invoke(context)
        except UserError as error:
            raise Plain(str(error), WRONG) from error
        except PacsAiError as error:
            raise Plain(str(error), TROUBLE) from error
        except BrokenPipeError:
            raise
        except OSError as error:
            words = f"{error.filename}: {error.strerror}" if error.filename else str(error)
            raise Plain(words, TROUBLE) from error
        except KeyboardInterrupt:
            raise Plain("interrupted", INTERRUPTED) from None


def example(*lines: str) -> str:
    """Return the epilog of a help page that shows how the command is typed."""
    return "\b\nExample:\n" + "\n".join(f"  {line}" for line in lines)


class _Trimmed:
    """A text stream that takes the blanks at the ends of lines away, with which tables are filled up."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write whole lines."""
        return self._stream.write(re.sub(r" +(?=\n)", "", text))

    def flush(self) -> None:
        """Flush."""
        self._stream.flush()


def console(*, stderr: bool = False) -> Console:
    """Return where people read."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    if stream.isatty():
        return Console(file=stream, highlight=False)
    return Console(file=cast("IO[str]", _Trimmed(stream)), highlight=False, width=_PIPE_WIDTH)


def table(*columns: str) -> Table:
    """Return an empty table that names its columns."""
    from rich import box
    from rich.table import Table

    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold")
    for name in columns:
        drawn.add_column(name, overflow="fold")
    return drawn


def rows(drawn: Table, cells: Iterable[Sequence[object]]) -> Table:
    """Fill a table; what peers wrote cannot style it."""
    from rich.text import Text

    for row in cells:
        drawn.add_row(*(cell if isinstance(cell, Text) else Text(str(cell)) for cell in row))
    return drawn


def print_json(content: object) -> None:
    """Print JSON: times in ISO 8601 and UTC, states by their names."""
    click.echo(json.dumps(content, default=_plain, indent=2, ensure_ascii=False))


def _plain(value: object) -> object:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat()
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Iterable):
        return list(value)
    raise TypeError(f"{type(value).__name__} has no JSON")


def at(moment: datetime | None) -> str:
    """Return a time of day on this machine's clock, with the date where it is not today's."""
    if moment is None:
        return "-"
    local, today = moment.astimezone(), datetime.now().astimezone()
    return local.strftime("%H:%M:%S" if local.date() == today.date() else "%Y-%m-%d %H:%M:%S")


def lasting(seconds: float) -> str:
    """Return a span of time as people say it: 0.4 s, 12 s, 3 min, 5 h, 2 days."""
    if seconds < 10:
        return f"{max(0.0, seconds):.1f} s"
    for unit, length, most in (("s", 1, 120), ("min", 60, 120), ("h", 3600, 48)):
        if seconds < most * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds / 86400:.0f} days"


def since(moment: datetime) -> float:
    """Return the seconds from then to now."""
    return (datetime.now(UTC) - moment).total_seconds()


def size(count: float) -> str:
    """Return bytes as people say them."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def many(count: int, noun: str, plural: str = "") -> str:
    """Return ``1 job``, ``3 jobs``."""
    return f"{count} {noun if count == 1 else plural or noun + 's'}"
