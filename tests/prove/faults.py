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
CALLS = ("open", "write", "writev", "pwrite", "pwritev", "sendfile", "posix_fallocate", "ftruncate", "truncate")
CALLS += ("fsync", "fdatasync", "replace", "rename", "link", "unlink")
COMMIT = "commit"
_WRITE, _PWRITE, _SENDFILE = os.write, os.pwrite, os.sendfile  # as they are before anything is wrapped
#: How to write only some of the bytes that a call was to write.
_SHORT = {
    "write": lambda fd, piece: _WRITE(fd, _third(piece)),
    "writev": lambda fd, pieces: _WRITE(fd, _third(pieces[0])),
    "pwrite": lambda fd, piece, offset: _PWRITE(fd, _third(piece), offset),
    "pwritev": lambda fd, pieces, offset: _PWRITE(fd, _third(pieces[0]), offset),
    "sendfile": lambda out, into, offset, count: _SENDFILE(out, into, offset, max(1, count // 3)),
}
#: Of a thread whose work nobody waits for: what fails in it is tried again.
_BEHIND = "indexing"


class Shim:
    """Counts the calls of this process, and hurts the one it is told to.

    Parameters
    ----------
    points
        ``{"kill": k, "after": bool}`` kills this process (SIGKILL) at the k-th call, ``{"first": name}`` before the
        first call of that name; with ``"hang"`` the thread that calls it stands still for ever instead. None only
        counts.
    """

    def __init__(self, points: dict[str, Any] | None) -> None:
        points = points or {}
        self._kill, self._after, self._first = points.get("kill", 0), points.get("after", False), points.get("first")
        self._hang = points.get("hang", False)
        self._lock = threading.Lock()
        self._armed: dict[str, Any] = {}
        self._changes: dict[int, int] = {}  # connection -> rows that it had changed at its last commit
        self.calls: list[str] = []

    def install(self) -> None:
        """Wrap the calls."""
        for name in CALLS:
            setattr(os, name, self._wrapped(name, getattr(os, name)))
        DefaultDialect.do_commit = self._wrapped(COMMIT, DefaultDialect.do_commit)

    def obey(self, word: dict[str, Any]) -> dict[str, Any]:
        """Do what the harness says: ``arm`` a failure (`call`, `at`, `error`, `short`), ``look`` at it, or ``end`` it.

        The answer's `hit` says how often it struck, `behind` how often where nobody waits for it.
        """
        with self._lock:
            if word["do"] == "arm":
                self._armed = {"seen": 0, "hit": 0, "behind": 0, **word}
                return {"armed": True}
            said = {name: self._armed.get(name, 0) for name in ("hit", "behind")}
            if word["do"] == "end":
                self._armed = {}
            return said

    def _wrapped(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            if not self._changes_anything(name, arguments):
                return call(*arguments, **options)
            number, failing = self._count(name)
            if (number == self._kill and not self._after) or name == self._first:
                self._strike()
            if failing is not None:
                return _fail(name, call, arguments, failing)
            returned = call(*arguments, **options)
            if number == self._kill:
                os.kill(os.getpid(), signal.SIGKILL)
            return returned

        return counted

    def _strike(self) -> None:
        if self._hang:
            threading.Event().wait()
        os.kill(os.getpid(), signal.SIGKILL)

    def _changes_anything(self, name: str, arguments: tuple[Any, ...]) -> bool:
        """Whether the call is to be counted: an open that may make a file, a commit of what wrote."""
        if name == "open":
            return len(arguments) > 1 and bool(arguments[1] & os.O_CREAT)
        if name == COMMIT:
            connection = arguments[1]
            if not hasattr(connection, "total_changes"):
                return True  # PostgreSQL's
            before, self._changes[id(connection)] = self._changes.get(id(connection), 0), connection.total_changes
            return before != connection.total_changes
        return True

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
            armed["behind"] += threading.current_thread().name == _BEHIND
            return len(self.calls), armed


def _fail(name: str, call: Callable[..., Any], arguments: tuple[Any, ...], armed: dict[str, Any]) -> Any:
    """Fail as the operating system would, or write only some of the bytes."""
    if armed.get("short"):
        return _SHORT[name](*arguments)
    if name == COMMIT:
        arguments[1].rollback()
        raise sqlite3.OperationalError("database or disk is full")
    raise OSError(armed["error"], os.strerror(armed["error"]))


def _third(piece: Any) -> memoryview:
    return memoryview(piece)[: max(1, len(piece) // 3)]


ERRORS = {name: getattr(errno, name) for name in ("ENOSPC", "EIO", "EMFILE", "EDQUOT", "EROFS", "ENOMEM")}
