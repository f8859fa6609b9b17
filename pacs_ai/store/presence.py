"""Which receive processes work in a data folder: each holds a file of its name there for as long as it lives.

    <store>/receiving/<owner>    empty, held with `flock`

Whoever finds such a file that nobody holds knows that its process died without leaving, whatever host, boot or
container it was of, and that what it had written ahead lies there for others to index.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from typing import TYPE_CHECKING

from pacs_ai.store.disk import READ, Disk

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_OPEN = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC


class Presence:
    """The file of a process, durable once this is made, and the files of those that died.

    Parameters
    ----------
    folder
        Where they lie; made where it is missing.
    owner
        Name of this process (`pacs_ai.store.owners`).

    Raises
    ------
    OutOfResources
        The disk is full or failed.
    """

    def __init__(self, folder: Path, owner: str, disk: Disk) -> None:
        self._path = folder / owner
        self._gone: dict[Path, int] = {}
        with disk.storing(self._path):
            folder.mkdir(mode=0o700, exist_ok=True)
            self._descriptor = self._hold()
            disk.sync_path(folder, READ | os.O_DIRECTORY)
            disk.sync_path(folder.parent, READ | os.O_DIRECTORY)
        self._gone = dict(self._find())

    @property
    def gone(self) -> tuple[str, ...]:
        """Names of the processes that died, and whose place nobody has taken."""
        return tuple(path.name for path in self._gone)

    def succeed(self) -> None:
        """Let go of the files of those that died: in the table of processes this one stands in their place."""
        for path, descriptor in self._gone.items():
            path.unlink(missing_ok=True)
            os.close(descriptor)
        self._gone = {}

    def leave(self) -> None:
        """Take the file away: this process owes nothing. What is not called leaves it for another to find."""
        self._path.unlink(missing_ok=True)

    def close(self) -> None:
        """Let go of all files."""
        for descriptor in (self._descriptor, *self._gone.values()):
            os.close(descriptor)
        self._gone = {}

    def _hold(self) -> int:
        while True:
            descriptor = os.open(self._path, _OPEN | os.O_CREAT, 0o600)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if os.fstat(descriptor).st_nlink:
                return descriptor
            os.close(descriptor)  # another process took it for one of the dead, before it was held

    def _find(self) -> Iterator[tuple[Path, int]]:
        for path in sorted(self._path.parent.iterdir()):
            if path == self._path:
                continue
            with suppress(FileNotFoundError):
                descriptor = os.open(path, _OPEN)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    os.close(descriptor)
                else:
                    yield path, descriptor
