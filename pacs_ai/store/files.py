"""Keep the bytes of instances in the local file system, each under a name made from its own SHA-256, and durably.

    <folder>/ab/ab3f…   an instance or an encoded result, 0600, in one of 256 folders 0700
    <folder>/.new/…     a file being written; swept away when it is left behind

No text of a peer is ever part of a path. What `write` returns is synced to disk except for its directory entry, so
that many files share one `sync`; only after that may anybody be told "stored" (DESIGN: success means durable).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import secrets
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pacs_ai.errors import OutOfResources, UserError
from pacs_ai.store.disk import CREATE, READ, Disk, write
from pacs_ai.store.layout import NEW, SHA256, SHARDS, locked
from pacs_ai.store.sweeping import Sweeper

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

_PIECE_BYTES = 1 << 20
#: A file that comes piece by piece is synced each time so many bytes were added.
_SYNC_EVERY_BYTES = 32 << 20


@dataclass(frozen=True)
class StoredFile:
    """One file of the store: its SHA-256 (hex), its size in bytes, its path."""

    sha256: str
    size: int
    path: Path


@dataclass(frozen=True)
class Source:
    """Where a file's bytes lie already: SHA-256 (hex) and size, an open file, and the first byte within it."""

    sha256: str
    size: int
    descriptor: int
    start: int


class Files:
    """The store's folder.

    Parameters
    ----------
    folder
        Where the files lie; made where it is missing, one file system throughout.
    clock
        Monotonic seconds, for what is swept away.

    Raises
    ------
    UserError
        The folder cannot be made, or is a link.
    OutOfResources
        The disk is full or read-only.
    """

    def __init__(self, folder: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self.folder = folder
        self.disk = Disk(folder)
        self.sweeper = Sweeper(folder, clock)
        try:
            self._lay_out()
        except (FileExistsError, NotADirectoryError, PermissionError) as error:
            raise UserError(f"{folder}: cannot be the store's folder ({error.strerror}); name another") from error
        except OSError as error:
            raise self.disk.shortage(error) from error

    def path(self, sha256: str) -> Path:
        """Return where the file of that digest lies, or would lie; ValueError where it is no SHA-256 (hex)."""
        if not SHA256.fullmatch(sha256):
            raise ValueError("not a SHA-256 in lower-case hex")
        return self.folder / sha256[:2] / sha256

    def write(self, parts: Sequence[bytes | bytearray | memoryview], sha256: str = "") -> StoredFile:
        """Write the parts as one file, synced but for its directory entry; nothing is left behind on an error.

        The same bytes again are one file: the one that is there was synced before it got its name. It is read again,
        and replaced where it was damaged meanwhile. `sha256` is theirs, where it is known already.

        Raises
        ------
        OutOfResources
            No space, no inodes, no file handles, read-only, or the disk failed; the message says which.
        """
        sha256 = sha256 or sha256_of(parts)
        stored = StoredFile(sha256, sum(len(part) for part in parts), self.path(sha256))
        if not self.holds(stored):
            with self.disk.storing(self.new_path()) as new:
                self._fill(new, parts)
                new.replace(stored.path)
        return stored

    def copy(self, sources: Sequence[Source]) -> list[StoredFile]:
        """Write files whose bytes lie in another, as `write` does; nothing is left behind on an error.

        They are synced one after the other once the system writes all of them back: its journal then joins them.
        """
        stored = [StoredFile(source.sha256, source.size, self.path(source.sha256)) for source in sources]
        begun: list[tuple[int, Path, Path]] = []
        self.disk.refuse_if_broken()
        try:
            for source, file in zip(sources, stored, strict=True):
                if not self.holds(file):
                    new = self.new_path()
                    begun.append((os.open(new, CREATE, 0o600), new, file.path))
                    _copy(source, begun[-1][0])
            for descriptor, new, path in begun:
                self.disk.sync(descriptor)
                new.replace(path)
        except (OSError, OutOfResources) as error:
            for _, new, _ in begun:
                with contextlib.suppress(OSError):
                    new.unlink(missing_ok=True)
            if isinstance(error, OutOfResources):
                raise
            raise self.disk.shortage(error) from error
        finally:
            for descriptor, _, _ in begun:
                os.close(descriptor)
        return stored

    def incoming(self) -> Incoming:
        """Begin a file that comes piece by piece; `OutOfResources` as `write`."""
        return Incoming(self)

    def adopt(self, path: Path) -> StoredFile:
        """Move a finished file of the same file system in (an encoded result), synced but for its directory entry.

        Raises
        ------
        OutOfResources
            As `write`; the file then lies where it lay.
        """
        sha256, size = _digest(path)
        stored = StoredFile(sha256, size, self.path(sha256))
        self.disk.refuse_if_broken()
        try:
            path.chmod(0o600)
            self.disk.sync_path(path, READ)
            path.replace(stored.path)
        except OSError as error:
            raise self.disk.shortage(error) from error
        return stored

    def sync(self, stored: Iterable[StoredFile]) -> None:
        """Make the directory entries of the files durable, each directory once.

        Raises
        ------
        OutOfResources
            The disk failed; the files must not be called stored.
        """
        self.disk.refuse_if_broken()
        try:
            for folder in sorted({file.path.parent for file in stored}):
                self.disk.sync_path(folder, READ | os.O_DIRECTORY)
        except OSError as error:
            raise self.disk.shortage(error) from error

    def read(self, sha256: str) -> bytes:
        """Return the file's bytes; FileNotFoundError where there is none."""
        with os.fdopen(os.open(self.path(sha256), READ), "rb") as file:
            return file.read()

    def verify(self, sha256: str) -> bool:
        """Tell whether the file is there and its bytes still have that digest."""
        try:
            return _digest(self.path(sha256))[0] == sha256
        except FileNotFoundError:
            return False

    def remove(self, sha256: str) -> bool:
        """Delete the file; False where there was none.

        Only for a file that nobody may be writing anew at this moment; otherwise delete its rows: it is swept away.
        """
        try:
            self.path(sha256).unlink()
        except FileNotFoundError:
            return False
        return True

    def free_bytes(self) -> int:
        """Return how many bytes this process may still write."""
        state = os.statvfs(self.folder)
        return state.f_bavail * state.f_frsize

    def free_fraction(self) -> float:
        """Return the free part of the file system, from 0 to 1."""
        state = os.statvfs(self.folder)
        return state.f_bavail / state.f_blocks if state.f_blocks else 0.0

    def _lay_out(self) -> None:
        """Make the folders and their entries durable, so that later a write only syncs its own folder."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.folder.chmod(0o700)
        for name in (NEW, *SHARDS):
            (self.folder / name).mkdir(mode=0o700, exist_ok=True)
            if (self.folder / name).is_symlink():
                raise NotADirectoryError(errno.ENOTDIR, "it holds a link where a folder belongs")
        self.disk.sync_path(self.folder, READ | os.O_DIRECTORY)
        self.disk.sync_path(self.folder.parent, os.O_RDONLY | os.O_DIRECTORY)

    def holds(self, stored: StoredFile) -> bool:
        """Tell whether those very bytes are there; refresh the file's age, so that no sweep takes it meanwhile.

        One whose bytes are others by now, or cannot be read, is to be written anew.
        """
        try:
            with locked(stored.path.parent, fcntl.LOCK_SH):
                os.utime(stored.path, follow_symlinks=False)
                if stored.path.lstat().st_size != stored.size:
                    return False
        except FileNotFoundError:
            return False
        except OSError as error:
            raise self.disk.shortage(error) from error
        try:
            return self.verify(stored.sha256)
        except OSError:
            return False

    def keep_young(self, stored: Iterable[StoredFile]) -> None:
        """Refresh the files' age, so that no sweep takes them before a row names them.

        Raises
        ------
        FileNotFoundError
            One is not there any more.
        OutOfResources
            The disk failed.
        """
        try:
            for file in stored:
                with locked(file.path.parent, fcntl.LOCK_SH):
                    os.utime(file.path, follow_symlinks=False)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise self.disk.shortage(error) from error

    def new_path(self) -> Path:
        """Return a path for a file that is not whole yet."""
        return self.folder / NEW / secrets.token_hex(16)

    def _fill(self, new: Path, parts: Sequence[bytes | bytearray | memoryview]) -> None:
        descriptor = os.open(new, CREATE, 0o600)
        try:
            for part in parts:
                write(descriptor, part)
            self.disk.sync(descriptor)
        finally:
            os.close(descriptor)


class Incoming:
    """A file that comes piece by piece, in memory only as long as a piece; every method may raise `OutOfResources`.

    After an error, and after `discard`, nothing of it is left on the disk.
    """

    def __init__(self, files: Files) -> None:
        self._files = files
        self._size = self._unsynced = 0
        self._disk = files.disk
        self._path = files.new_path()
        self._descriptor = -1
        with self._guarded():
            self._descriptor = os.open(self._path, CREATE, 0o600)

    def append(self, piece: bytes | bytearray | memoryview) -> None:
        """Write the next piece; the disk is made to keep up, so that the last sync does not take minutes."""
        with self._guarded():
            write(self._descriptor, piece)
            self._size += len(piece)
            self._unsynced += len(piece)
            if self._unsynced >= _SYNC_EVERY_BYTES:
                self._disk.sync(self._descriptor)
                self._unsynced = 0

    def finish(self, sha256: str) -> StoredFile:
        """Sync the file and name it after its digest (hex); its directory entry waits for `Files.sync`."""
        stored = StoredFile(sha256, self._size, self._files.path(sha256))
        if self._files.holds(stored):
            self.discard()
            return stored
        with self._guarded():
            self._disk.sync(self._descriptor)
            self._path.replace(stored.path)
        self._close()
        return stored

    def discard(self) -> None:
        """Leave nothing behind; twice does no harm."""
        self._close()
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)

    def _close(self) -> None:
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            os.close(descriptor)

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            with self._disk.storing(self._path):
                yield
        except OutOfResources:
            self._close()
            raise


def sha256_of(parts: Sequence[bytes | bytearray | memoryview]) -> str:
    """Return the SHA-256 (hex) of the parts as one."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def _copy(source: Source, descriptor: int) -> None:
    """Copy a file's bytes within the system, and have them written back at once."""
    start, left = source.start, source.size
    while left:
        count = os.sendfile(descriptor, source.descriptor, start, left)
        if not count:
            raise OSError(errno.EIO, "the file to copy from is too short")
        start, left = start + count, left - count
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


def _digest(path: Path) -> tuple[str, int]:
    """Return SHA-256 (hex) and size of a file, read in pieces."""
    digest, size = hashlib.sha256(), 0
    with os.fdopen(os.open(path, READ), "rb") as file:
        while piece := file.read(_PIECE_BYTES):
            digest.update(piece)
            size += len(piece)
    return digest.hexdigest(), size
