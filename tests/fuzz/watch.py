"""The cases of a fuzz test, one at a time and under watch: one that does not end is told, and is a finding.

`PACS_AI_SECONDS` ends a test in order after so many seconds, between two cases. `PACS_AI_UNDER_WAY` names a file that
says how many cases are done and which one is under way, for who has to end the process.
"""

from __future__ import annotations

import json
import math
import os
import signal
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from fuzz.amount import amount

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

#: Processor time in which a case ends however busy the machine is: a thousand times what the longest takes.
HANG_SECONDS = 20.0


class Hangs(BaseException):
    """A case does not end: no error that what is tested may catch."""


class Cases:
    """So many cases, fewer where the time is over first."""

    def __init__(self, ordinary: int, proof: int) -> None:
        self.wanted, self.done = amount(ordinary, proof), 0
        seconds = float(os.environ.get("PACS_AI_SECONDS", "0"))
        self._until = time.monotonic() + seconds if seconds else math.inf
        self._path = os.environ.get("PACS_AI_UNDER_WAY", "")

    @property
    def are_left(self) -> bool:
        """Whether there is another one to do, and time for it."""
        return self.done < self.wanted and time.monotonic() < self._until

    @contextmanager
    def one(self, case: dict[str, str], count: int = 1) -> Iterator[None]:
        """Do one, which counts as so many; `Hangs` is raised within it where it does not end."""
        words = json.dumps({"found": "", **case})
        self._note(words)
        with under_watch(words):
            yield
        self.done += count
        self._note("")

    def _note(self, case: str) -> None:
        if self._path:
            Path(self._path).write_text(json.dumps({"done": self.done, "wanted": self.wanted, "case": case}))


@contextmanager
def under_watch(words: str, seconds: float = HANG_SECONDS) -> Iterator[None]:
    """Raise `Hangs`, with these words, where the block takes so much processor time."""

    def strike(_number: int, _frame: FrameType | None) -> None:
        raise Hangs(f"this does not end: {words}")

    before = signal.signal(signal.SIGPROF, strike)
    signal.setitimer(signal.ITIMER_PROF, seconds, 1.0)  # again and again, where something swallows it
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
