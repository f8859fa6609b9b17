"""What a call costs in lines of Python: the same on every machine, however busy it is."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType


@dataclass
class Effort:
    """Lines that were run, those of the caller aside."""

    lines: int = 0


@contextlib.contextmanager
def effort() -> Iterator[Effort]:
    """Count the lines of Python that this thread runs within functions called in the block."""
    spent = Effort()

    def trace(_frame: FrameType, event: str, _argument: Any) -> Any:
        spent.lines += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield spent
    finally:
        sys.settrace(before)
