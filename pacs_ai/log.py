"""Log lines on standard error: time in UTC, process, level, message; never a patient's data."""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
import traceback
import warnings
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from types import TracebackType

_log = logging.getLogger(__name__)

_SHOWN = str.maketrans({i: f"\\x{i:02x}" for i in [*range(32), 127]})


def shown(text: object, limit: int = 200) -> str:
    """Return text from a peer so that it can stand in a log line: control characters escaped, cut to `limit`."""
    line = str(text).translate(_SHOWN)
    line = "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in line)
    return line if len(line) <= limit else line[: limit - 1] + "…"


#: So many errors of a chain are told, the last ones.
_MOST_CAUSES = 20


def where(error: BaseException) -> str:
    """Return in which line of code an error arose, without its text, which may hold a patient's data."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{last.name} ({last.filename.rpartition('/')[2]}:{last.lineno})"


def trace(error: BaseException) -> str:
    """Return the traceback of an error and of those that it came from, without their texts, as `where`."""
    told: list[str] = []
    each: BaseException | None = error
    while each is not None and len(told) < _MOST_CAUSES:
        frames = "".join(traceback.format_tb(each.__traceback__))
        told.append(f"Traceback (most recent call last):\n{frames}{type(each).__name__}")
        each = each.__cause__ or (None if each.__suppress_context__ else each.__context__)
    return "\n\nfrom which came:\n\n".join(reversed(told))


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
        if record.exc_text:
            row["traceback"] = record.exc_text
        return json.dumps(row)


def _without_texts(record: logging.LogRecord) -> bool:
    """Have the error that a library logs shown as `trace` does."""
    if record.exc_info and record.exc_info[1] is not None:
        record.exc_text, record.exc_info = trace(record.exc_info[1]), None
    return True


def configure(process: str, level: str = "info", form: Literal["text", "json"] = "text") -> None:
    """Send the node's log to standard error; `process` names the actor in every line."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines(process) if form == "text" else _Json(process))
    handler.addFilter(_without_texts)
    logging.raiseExceptions = False  # else a call with other arguments than it names prints them
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
    sys.excepthook = _tell_end
    threading.excepthook = _tell_end_of_thread
    sys.unraisablehook = _tell_ignored


def _tell_end(_kind: type[BaseException], error: BaseException, _trace: TracebackType | None) -> None:
    """Log what ends the process (`sys.excepthook`); Python's own hook prints the texts of errors, a database's too."""
    _log.error("ended by %s", trace(error))


def _tell_end_of_thread(ended: threading.ExceptHookArgs) -> None:
    """Log what ends a thread (`threading.excepthook`)."""
    if ended.exc_value is not None and not isinstance(ended.exc_value, SystemExit):
        name = "" if ended.thread is None else ended.thread.name
        _log.error("thread %s ended by %s", name, trace(ended.exc_value))


def _tell_ignored(ignored: sys.UnraisableHookArgs) -> None:
    """Log an error that nobody could be told of, as one while something is cleared away (`sys.unraisablehook`)."""
    if ignored.exc_value is not None:
        _log.error("ignored %s", trace(ignored.exc_value))
