"""Write to the disk below a folder, say in words what is short, and never trust it again after a failed sync."""

from __future__ import annotations

import contextlib
import errno
import os
from typing import TYPE_CHECKING

from pacs_ai.errors import OutOfResources

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC

_SHORTAGES = {
    errno.ENOSPC: "the disk is full, or out of inodes: free space, or lower [retention]",
    errno.EDQUOT: "the disk quota is used up: raise it, or lower [retention]",
    errno.EMFILE: "this process has too many open files: raise its limit (ulimit -n)",
    errno.ENFILE: "the system has too many open files: raise fs.file-max",
    errno.EROFS: "the file system is mounted read-only: look at the kernel's log, then remount it",
    errno.EIO: "the disk reports an input/output error: look at the kernel's log",
    errno.ENOMEM: "the system has no memory left",
}
#: So much is written to see whether there is room again: a short instance.
_PROBE_BYTES = 1 << 20


class Disk:
    """The file system below a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._broken = ""
        self._short = ""

    @contextlib.contextmanager
    def storing(self, new: Path) -> Iterator[Path]:
        """Give a path for a new file; on an error leave no file there and say what is short."""
        self.refuse_if_broken()
        try:
            yield new
        except OSError as error:
            with contextlib.suppress(OSError):
                new.unlink(missing_ok=True)
            raise self.shortage(error) from error

    def sync_path(self, path: Path, flags: int) -> None:
        """Sync what lies at a path, a directory too."""
        descriptor = os.open(path, flags)
        try:
            self.sync(descriptor)
        finally:
            os.close(descriptor)

    def sync(self, descriptor: int) -> None:
        """Sync, and never again trust this disk where that failed: the kernel may have dropped the dirty pages."""
        self._synced(os.fsync, descriptor)

    def sync_content(self, descriptor: int) -> None:
        """As `sync`, of a file whose size does not change: what was written to it is on the disk."""
        self._synced(os.fdatasync, descriptor)
        self._short = ""

    def _synced(self, call: Callable[[int], None], descriptor: int) -> None:
        try:
            call(descriptor)
        except OSError as error:
            if error.errno == errno.EIO:
                self._broken = "the disk failed to sync, so nothing more is written until the node is started again"
            raise

    @property
    def is_broken(self) -> bool:
        """Whether a sync failed, so that nothing more is written."""
        return bool(self._broken)

    @property
    def short(self) -> str:
        """Why the last write failed; "" where another has succeeded since."""
        return self._short

    def look_again(self) -> None:
        """Find out, where a write failed, whether another succeeds: a file without a name is written and synced."""
        if not self._short or self._broken:
            return
        with contextlib.suppress(OSError):  # it stays short; not every file system knows such files
            descriptor = os.open(self._folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
            try:
                write(descriptor, bytes(_PROBE_BYTES))
                self.sync_content(descriptor)
            finally:
                os.close(descriptor)

    def refuse_if_broken(self) -> None:
        """Raise OutOfResources where a sync failed before."""
        if self._broken:
            raise OutOfResources(f"{self._folder}: {self._broken}")

    def shortage(self, error: OSError) -> OutOfResources:
        """Return an error in words."""
        words = self._short = _SHORTAGES.get(error.errno or 0, error.strerror or "the operating system refused")
        return OutOfResources(f"{self._folder}: {words}")


def write(descriptor: int, piece: bytes | bytearray | memoryview) -> None:
    """Write a piece, all of it."""
    rest = memoryview(piece)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def write_at(descriptor: int, parts: Sequence[bytes | bytearray], offset: int) -> None:
    """Write parts one behind the other from an offset on, all of them."""
    rest = [memoryview(part) for part in parts if part]
    while rest:
        written = os.pwritev(descriptor, rest, offset)
        offset += written
        while rest and written >= len(rest[0]):
            written -= len(rest.pop(0))
        if written:
            rest[0] = rest[0][written:]
