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
import re
import secrets
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pacs_ai.errors import OutOfResources, UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

_SHA256 = re.compile(r"[0-9a-f]{64}")
_SHARDS = tuple(f"{number:02x}" for number in range(256))
_NEW = ".new"
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
_PIECE_BYTES = 1 << 20

_SHORTAGES = {
    errno.ENOSPC: "the disk is full, or out of inodes: free space, or lower [retention]",
    errno.EDQUOT: "the disk quota is used up: raise it, or lower [retention]",
    errno.EMFILE: "this process has too many open files: raise its limit (ulimit -n)",
    errno.ENFILE: "the system has too many open files: raise fs.file-max",
    errno.EROFS: "the file system is mounted read-only: look at the kernel's log, then remount it",
    errno.EIO: "the disk reports an input/output error: look at the kernel's log",
    errno.ENOMEM: "the system has no memory left",
}


@dataclass(frozen=True)
class StoredFile:
    """One file of the store: its SHA-256 (hex), its size in bytes, its path."""

    sha256: str
    size: int
    path: Path


class Files:
    """The store's folder.

    Parameters
    ----------
    folder
        Where the files lie; made where it is missing, one file system throughout.

    Raises
    ------
    UserError
        The folder cannot be made, or is a link.
    OutOfResources
        The disk is full or read-only.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._broken = ""
        try:
            self._lay_out()
        except (FileExistsError, NotADirectoryError, PermissionError) as error:
            raise UserError(f"{folder}: cannot be the store's folder ({error.strerror}); name another") from error
        except OSError as error:
            raise self._shortage(error) from error

    def path(self, sha256: str) -> Path:
        """Return where the file of that digest lies, or would lie; ValueError where it is no SHA-256 (hex)."""
        if not _SHA256.fullmatch(sha256):
            raise ValueError("not a SHA-256 in lower-case hex")
        return self.folder / sha256[:2] / sha256

    def write(self, parts: Sequence[bytes | memoryview]) -> StoredFile:
        """Write the parts as one file, synced but for its directory entry; nothing is left behind on an error.

        The same bytes again are one file: the one that is there was synced before it got its name.

        Raises
        ------
        OutOfResources
            No space, no inodes, no file handles, read-only, or the disk failed; the message says which.
        """
        digest = hashlib.sha256()
        for part in parts:
            digest.update(part)
        sha256, size = digest.hexdigest(), sum(len(part) for part in parts)
        stored = StoredFile(sha256, size, self.path(sha256))
        if not self._holds(stored):
            with self._storing(self._new_path()) as new:
                self._fill(new, parts)
                new.replace(stored.path)
        return stored

    def adopt(self, path: Path) -> StoredFile:
        """Move a finished file of the same file system in (an encoded result), synced but for its directory entry.

        Raises
        ------
        OutOfResources
            As `write`; the file then lies where it lay.
        """
        sha256, size = _digest(path)
        stored = StoredFile(sha256, size, self.path(sha256))
        self._refuse_if_broken()
        try:
            path.chmod(0o600)
            self._sync_path(path, _READ)
            path.replace(stored.path)
        except OSError as error:
            raise self._shortage(error) from error
        return stored

    def sync(self, stored: Iterable[StoredFile]) -> None:
        """Make the directory entries of the files durable, each directory once.

        Raises
        ------
        OutOfResources
            The disk failed; the files must not be called stored.
        """
        self._refuse_if_broken()
        try:
            for folder in sorted({file.path.parent for file in stored}):
                self._sync_path(folder, _READ | os.O_DIRECTORY)
        except OSError as error:
            raise self._shortage(error) from error

    def read(self, sha256: str) -> bytes:
        """Return the file's bytes; FileNotFoundError where there is none."""
        with os.fdopen(os.open(self.path(sha256), _READ), "rb") as file:
            return file.read()

    def verify(self, sha256: str) -> bool:
        """Tell whether the file is there and its bytes still have that digest."""
        try:
            return _digest(self.path(sha256))[0] == sha256
        except FileNotFoundError:
            return False

    def remove(self, sha256: str) -> bool:
        """Delete the file; False where there was none.

        Only for a file that nobody may be writing anew at this moment; otherwise delete its rows and let `sweep` come.
        """
        try:
            self.path(sha256).unlink()
        except FileNotFoundError:
            return False
        return True

    def sweep(self, keep: Callable[[str], bool], *, older_than_seconds: float) -> list[str]:
        """Delete left-over new files, and files that nobody keeps; return the digests of the latter.

        Parameters
        ----------
        keep
            Asked with a SHA-256: does a row name it?
        older_than_seconds
            Younger files are let be: their row may be about to be committed.
        """
        before = time.time() - older_than_seconds
        for entry in _older(self.folder / _NEW, before):
            entry.unlink(missing_ok=True)
        orphans = [
            entry.name
            for shard in _SHARDS
            for entry in _older(self.folder / shard, before)
            if _SHA256.fullmatch(entry.name) and not keep(entry.name)
        ]
        return [sha256 for sha256 in orphans if self._remove_older(sha256, before)]

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
        for name in (_NEW, *_SHARDS):
            (self.folder / name).mkdir(mode=0o700, exist_ok=True)
            if (self.folder / name).is_symlink():
                raise NotADirectoryError(errno.ENOTDIR, "it holds a link where a folder belongs")
        self._sync_path(self.folder, _READ | os.O_DIRECTORY)
        self._sync_path(self.folder.parent, os.O_RDONLY | os.O_DIRECTORY)

    def _holds(self, stored: StoredFile) -> bool:
        """Tell whether a file of that name and size is there; refresh its age, so that no sweep takes it meanwhile."""
        try:
            with _locked(stored.path.parent, fcntl.LOCK_SH):
                os.utime(stored.path, follow_symlinks=False)
                return stored.path.lstat().st_size == stored.size
        except FileNotFoundError:
            return False
        except OSError as error:
            raise self._shortage(error) from error

    def _remove_older(self, sha256: str, before: float) -> bool:
        path = self.path(sha256)
        with _locked(path.parent, fcntl.LOCK_EX):
            try:
                return path.lstat().st_mtime < before and self.remove(sha256)
            except FileNotFoundError:
                return False

    def _new_path(self) -> Path:
        return self.folder / _NEW / secrets.token_hex(16)

    def _fill(self, new: Path, parts: Sequence[bytes | memoryview]) -> None:
        descriptor = os.open(new, _CREATE, 0o600)
        try:
            for part in parts:
                rest = memoryview(part)
                while rest:
                    rest = rest[os.write(descriptor, rest) :]
            self._sync(descriptor)
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def _storing(self, new: Path) -> Iterator[Path]:
        """Give a path for a new file; on an error leave no file there and say what is short."""
        self._refuse_if_broken()
        try:
            yield new
        except OSError as error:
            with contextlib.suppress(OSError):
                new.unlink(missing_ok=True)
            raise self._shortage(error) from error

    def _sync_path(self, path: Path, flags: int) -> None:
        descriptor = os.open(path, flags)
        try:
            self._sync(descriptor)
        finally:
            os.close(descriptor)

    def _sync(self, descriptor: int) -> None:
        """Sync, and never again trust this disk where that failed: the kernel may have dropped the dirty pages."""
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno == errno.EIO:
                self._broken = "the disk failed to sync, so nothing more is written until the node is started again"
            raise

    def _refuse_if_broken(self) -> None:
        if self._broken:
            raise OutOfResources(f"{self.folder}: {self._broken}")

    def _shortage(self, error: OSError) -> OutOfResources:
        words = _SHORTAGES.get(error.errno or 0, error.strerror or "the operating system refused")
        return OutOfResources(f"{self.folder}: {words}")


@contextlib.contextmanager
def _locked(folder: Path, kind: int) -> Iterator[None]:
    """Hold a folder's lock: who finds a file already there against who sweeps it away."""
    descriptor = os.open(folder, _READ | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, kind)
        yield
    finally:
        os.close(descriptor)


def _digest(path: Path) -> tuple[str, int]:
    """Return SHA-256 (hex) and size of a file, read in pieces."""
    digest, size = hashlib.sha256(), 0
    with os.fdopen(os.open(path, _READ), "rb") as file:
        while piece := file.read(_PIECE_BYTES):
            digest.update(piece)
            size += len(piece)
    return digest.hexdigest(), size


def _older(folder: Path, before: float) -> Iterator[Path]:
    """Give the files of a folder that were last changed before a time."""
    for entry in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):
            if entry.lstat().st_mtime < before:
                yield entry
