"""Log lines on standard error: time in UTC, process, level, message; never a patient's data."""

from __future__ import annotations

import json
import logging
import sys
import time
import traceback
import warnings
from typing import Literal

_SHOWN = str.maketrans({i: f"\\x{i:02x}" for i in [*range(32), 127]})


def shown(text: object, limit: int = 200) -> str:
    """Return text from a peer so that it can stand in a log line: control characters escaped, cut to `limit`."""
    line = str(text).translate(_SHOWN)
    line = "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in line)
    return line if len(line) <= limit else line[: limit - 1] + "…"


def where(error: BaseException) -> str:
    """Return in which line of code an error arose, without its text, which may hold a patient's data."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{last.name} ({last.filename.rpartition('/')[2]}:{last.lineno})"


def trace(error: BaseException) -> str:
    """Return the traceback of an error and of those that it came from, without their texts, as `where`."""
    before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    told = "" if before is None else f"{trace(before)}\n\nfrom which came:\n\n"
    frames = "".join(traceback.format_tb(error.__traceback__))
    return f"{told}Traceback (most recent call last):\n{frames}{type(error).__name__}"


def unexpected(error: BaseException) -> str:
    """Say of an error that nobody raised on purpose what it is and where it arose."""
    return f"unexpected {type(error).__name__} in {where(error)}"


class _Lines(logging.Formatter):
    converter = staticmethod(time.gmtime)

    def __init__(self, process: str) -> None:
        super().__init__("%(asctime)s.%(msecs)03dZ %(levelname)-7s " + process + " %(message)s", "%Y-%m-%dT%H:%M:%S")


class _Json(logging.Formatter):
    converter = staticmethod(time.gmtime)

    def __init__(self, process: str) -> None:
        super().__init__(datefmt="%Y-%m-%dT%H:%M:%S")
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        row = {
            "time": f"{self.formatTime(record, self.datefmt)}.{record.msecs:03.0f}Z",
            "level": record.levelname.lower(),
            "process": self._process,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            row["traceback"] = self.formatException(record.exc_info)
        return json.dumps(row)


def configure(process: str, level: str = "info", form: Literal["text", "json"] = "text") -> None:
    """Send the node's log to standard error; `process` names the actor in every line."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines(process) if form == "text" else _Json(process))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("pacs_ai").setLevel(level.upper())
    # pynetdicom and pydicom print peers' text, at DEBUG whole data sets; Python's warnings quote it
    logging.getLogger("pynetdicom").setLevel(logging.CRITICAL)
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)
    logging.captureWarnings(capture=True)
    logging.getLogger("py.warnings").setLevel(logging.CRITICAL)
    # each text that was warned of is remembered, and peers make them up
    warnings.filterwarnings("ignore", module="py(net)?dicom")
