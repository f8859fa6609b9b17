"""What stands between the node and the operating system: every call that makes something durable, counted.

It kills the process before or after the k-th such call, or has it fail. The node knows nothing of it: the names in
`os` and the driver's COMMIT are wrapped in the process that is to be hurt.
"""

from __future__ import annotations

import errno
import os
import signal
import sqlite3
import threading
from typing import TYPE_CHECKING, Any

from sqlalchemy.engine.default import DefaultDialect

if TYPE_CHECKING:
    from collections.abc import Callable

#: Names in `os` that change what is on disk.
CALLS = ("open", "write", "writev", "pwrite", "fsync", "fdatasync", "replace", "rename", "link", "unlink", "ftruncate")
COMMIT = "commit"
_WRITES = ("write", "writev", "pwrite")
_WRITE, _PWRITE = os.write, os.pwrite  # as they are before anything is wrapped


class Shim:
    """Counts the calls of this process, and hurts the one it is told to.

    Parameters
    ----------
    points
        ``{"kill": k, "after": bool}`` kills this process (SIGKILL) at the k-th call; None only counts.
    """

    def __init__(self, points: dict[str, Any] | None) -> None:
        points = points or {}
        self._kill, self._after = points.get("kill", 0), points.get("after", False)
        self._lock = threading.Lock()
        self._armed: dict[str, Any] = {}
        self.calls: list[str] = []

    def install(self) -> None:
        """Wrap the calls."""
        for name in CALLS:
            setattr(os, name, self._wrapped(name, getattr(os, name)))
        DefaultDialect.do_commit = self._wrapped(COMMIT, DefaultDialect.do_commit)

    def obey(self, word: dict[str, Any]) -> dict[str, Any]:
        """Do what the harness says: ``arm`` a failure (`call`, `at`, `error`, `short`), or tell the ``count``."""
        with self._lock:
            if word["do"] == "arm":
                self._armed = {"seen": 0, "hit": 0, **word}
                return {"armed": True}
            hit, self._armed = self._armed.get("hit", 0), {}
            return {"hit": hit, "calls": self.calls}

    def _wrapped(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            if name == "open" and not (len(arguments) > 1 and arguments[1] & os.O_CREAT):
                return call(*arguments, **options)
            number, failing = self._count(name)
            if number == self._kill and not self._after:
                os.kill(os.getpid(), signal.SIGKILL)
            if failing is not None:
                return _fail(name, call, arguments, failing)
            returned = call(*arguments, **options)
            if number == self._kill:
                os.kill(os.getpid(), signal.SIGKILL)
            return returned

        return counted

    def _count(self, name: str) -> tuple[int, dict[str, Any] | None]:
        with self._lock:
            self.calls.append(name)
            armed = self._armed
            if armed.get("call") != name:
                return len(self.calls), None
            armed["seen"] += 1
            if armed["seen"] < armed["at"] or (armed["hit"] and not armed.get("for_ever")):
                return len(self.calls), None
            armed["hit"] += 1
            return len(self.calls), armed


def _fail(name: str, call: Callable[..., Any], arguments: tuple[Any, ...], armed: dict[str, Any]) -> Any:
    """Fail as the operating system would, or write only some of the bytes."""
    if armed.get("short") and name in _WRITES:
        part = arguments[1][0] if name == "writev" else arguments[1]
        rest = arguments[2:] if name == "pwrite" else ()
        write = _PWRITE if name == "pwrite" else _WRITE
        return write(arguments[0], memoryview(part)[: max(1, len(part) // 3)], *rest)
    if name == COMMIT:
        arguments[1].rollback()
        raise sqlite3.OperationalError("database or disk is full")
    raise OSError(armed["error"], os.strerror(armed["error"]))


ERRORS = {name: getattr(errno, name) for name in ("ENOSPC", "EIO", "EMFILE", "EDQUOT", "EROFS", "ENOMEM")}
