"""A file system in memory that forgets what was not synced when its power is cut (FUSE).

A write is durable after fsync of its file, a name after fsync of its directory, and nothing else is: at a cut each
unsynced write is lost, kept, or torn (any of its pages of 4 KiB is there or not, and one may end at any 512 bytes), and
each unsynced change of a name is lost or kept, at random and independently. No journal of a real file system is that
cruel.

The tree is seen as ``<mount>/g<N>``, where N counts the cuts: after a cut every path is a new one, so that nothing the
kernel has cached of the time before can be seen. Control is by writing to ``<mount>/.ctl``: ``cut SEED MODE``;
``fail ERRNO AT``: from the AT-th write, sync or new file on, all of them fail with ERRNO; ``fail 0 0`` ends that;
``keep 0 0``: all that is there is durable; ``reset 0 0``: the tree is what it was then.
"""

from __future__ import annotations

import copy
import errno
import os
import random
import re
import stat
import sys
import time
from typing import TYPE_CHECKING, Any

import mfusepy as fuse

if TYPE_CHECKING:
    from collections.abc import Iterator

SECTOR, PAGE = 512, 4096
_GENERATION = re.compile(r"/g(\d+)(/.*)?")


class Node:
    """A file or directory: what it holds now, and what of it is durable."""

    __slots__ = ("content", "durable", "durable_names", "links", "log", "mode", "names", "time")

    def __init__(self, mode: int) -> None:
        self.mode, self.time = mode, time.time_ns()
        self.content, self.durable = bytearray(), bytearray()
        self.log: list[tuple[int, bytes | None]] = []
        self.names: dict[str, Node] = {}
        self.durable_names: dict[str, Node] = {}

    @property
    def is_folder(self) -> bool:
        return stat.S_ISDIR(self.mode)

    def sync(self) -> None:
        """Make its bytes, or its names, durable."""
        if self.is_folder:
            self.durable_names = dict(self.names)
        else:
            for offset, piece in self.log:
                _apply(self.durable, offset, piece)
            self.log = []


class PowerFs(fuse.Operations):
    """The file system."""

    use_ns = True

    def __init__(self) -> None:
        self.root = self._kept = Node(stat.S_IFDIR | 0o755)
        self.generation = 0
        self._open: dict[int, Node] = {}
        self._handles = 0
        self._error = self._left = 0
        self._chances = (0.5, 0.3)  # of a write that was not synced: to be lost, or else to be torn
        self.counts = {"cuts": 0, "lost_bytes": 0, "torn_writes": 0, "lost_names": 0}

    def _may_fail(self) -> None:
        """Fail, where the disk is told to."""
        if self._error:
            self._left -= 1
            if self._left < 0:
                raise fuse.FuseOSError(self._error)

    # -- names

    def _find(self, path: str) -> Node:
        match = _GENERATION.fullmatch(path)
        if match is None or int(match[1]) != self.generation:
            raise fuse.FuseOSError(errno.ENOENT)
        node = self.root
        for name in (match[2] or "").split("/"):
            if name:
                if name not in node.names:
                    raise fuse.FuseOSError(errno.ENOENT)
                node = node.names[name]
        return node

    def _parent(self, path: str) -> tuple[Node, str]:
        folder, name = os.path.split(path)
        return self._find(folder), name

    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        if path == "/.ctl":
            return {"st_mode": stat.S_IFREG | 0o600, "st_nlink": 1, "st_size": 0}
        if path == "/":
            return {"st_mode": stat.S_IFDIR | 0o755, "st_nlink": 2}
        node = self._open[fh] if fh in self._open else self._find(path)
        words = {"st_mode": node.mode, "st_nlink": 1, "st_size": len(node.content), "st_uid": os.getuid()}
        return words | {"st_gid": os.getgid(), "st_mtime": node.time, "st_atime": node.time, "st_ctime": node.time}

    def readdir(self, path: str, fh: int) -> list[str]:
        if path == "/":
            return [".", "..", f"g{self.generation}"]
        return [".", "..", *self._find(path).names]

    def mkdir(self, path: str, mode: int) -> None:
        folder, name = self._parent(path)
        if name in folder.names:
            raise fuse.FuseOSError(errno.EEXIST)
        folder.names[name] = Node(stat.S_IFDIR | mode)

    def rmdir(self, path: str) -> None:
        folder, name = self._parent(path)
        if folder.names[name].names:
            raise fuse.FuseOSError(errno.ENOTEMPTY)
        del folder.names[name]

    def unlink(self, path: str) -> None:
        folder, name = self._parent(path)
        del folder.names[name]

    def rename(self, old: str, new: str, *flags: Any) -> None:
        source, name = self._parent(old)
        target, renamed = self._parent(new)
        target.names[renamed] = source.names.pop(name)

    def link(self, target: str, source: str) -> None:
        folder, name = self._parent(target)
        folder.names[name] = self._find(source)

    # -- open files

    def _opened(self, node: Node) -> int:
        self._handles += 1
        self._open[self._handles] = node
        return self._handles

    def create(self, path: str, mode: int, fi: Any = None) -> int:
        self._may_fail()
        folder, name = self._parent(path)
        folder.names[name] = Node(stat.S_IFREG | mode)
        return self._opened(folder.names[name])

    def open(self, path: str, flags: int) -> int:
        return 0 if path == "/.ctl" else self._opened(self._find(path))

    def opendir(self, path: str) -> int:
        return 0 if path == "/" else self._opened(self._find(path))

    def release(self, path: str, fh: int) -> int:
        self._open.pop(fh, None)
        return 0

    releasedir = release

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        return bytes(self._open[fh].content[offset : offset + size]) if fh in self._open else b""

    def write(self, path: str, piece: bytes, offset: int, fh: int) -> int:
        if path == "/.ctl":
            verb, number, rest = piece.decode().split()
            if verb == "cut":
                self.cut(int(number), rest)
            elif verb == "keep":
                _sync_all(self.root)
                self._kept = copy.deepcopy(self.root)
            elif verb == "reset":
                self._again(copy.deepcopy(self._kept))
            else:
                self._error, self._left = int(number), int(rest) - 1
            return len(piece)
        self._may_fail()
        node = self._open[fh]
        _put(node.content, offset, piece)
        node.log.append((offset, bytes(piece)))
        node.time = time.time_ns()
        return len(piece)

    def truncate(self, path: str, length: int, fh: int | None = None) -> int:
        if path == "/.ctl":
            return 0
        node = self._open[fh] if fh in self._open else self._find(path)
        _cut_to(node.content, length)
        node.log.append((length, None))
        node.time = time.time_ns()
        return 0

    def fallocate(self, path: str, mode: int, offset: int, length: int, fh: int) -> int:
        if mode:
            raise fuse.FuseOSError(errno.EOPNOTSUPP)
        self._may_fail()
        if offset + length > len(self._open[fh].content):
            self.truncate(path, offset + length, fh)
        return 0

    def fsync(self, path: str, datasync: int, fh: int) -> int:
        self._may_fail()
        if fh in self._open:
            self._open[fh].sync()
        return 0

    def fsyncdir(self, path: str, datasync: int, fh: int) -> int:
        return self.fsync(path, datasync, fh)

    def flush(self, path: str, fh: int) -> int:
        return 0

    def utimens(self, path: str, times: Any = None) -> int:
        self._find(path).time = int(times[1]) if times else time.time_ns()
        return 0

    def chmod(self, path: str, mode: int) -> int:
        node = self._find(path)
        node.mode = stat.S_IFMT(node.mode) | stat.S_IMODE(mode)
        return 0

    def chown(self, path: str, uid: int, gid: int) -> int:
        return 0

    def statfs(self, path: str) -> dict[str, int]:
        blocks = {"f_blocks": 1 << 22, "f_bfree": 1 << 21, "f_bavail": 1 << 21, "f_files": 1 << 20, "f_ffree": 1 << 19}
        return {"f_bsize": 4096, "f_frsize": 4096, "f_namemax": 255, **blocks}

    # -- the cut

    def cut(self, seed: int, mode: str) -> None:
        """Lose what was not synced: all (``drop``), parts of each write (``tear``), or what chance has (``random``)."""
        choice = random.Random(seed)
        self._chances = {"drop": (1.0, 0.0), "tear": (0.0, 1.0), "random": (0.5, 0.3)}[mode]
        self._cut_folder(self.root, lambda: choice.random() < self._chances[0], choice)
        self.counts["cuts"] += 1
        self._again(self.root)

    def _again(self, root: Node) -> None:
        """Show this tree, under another path than all that the kernel knows of."""
        self.root = root
        self._open.clear()
        self.generation += 1

    def _cut_folder(self, folder: Node, is_lost: Any, choice: random.Random) -> None:
        changed = sorted(
            name
            for name in folder.names.keys() | folder.durable_names.keys()
            if folder.names.get(name) is not folder.durable_names.get(name)
        )
        for name in changed:
            if is_lost():
                self.counts["lost_names"] += 1
                if name in folder.durable_names:
                    folder.names[name] = folder.durable_names[name]
                else:
                    del folder.names[name]
        folder.durable_names = dict(folder.names)
        for node in folder.names.values():
            if node.is_folder:
                self._cut_folder(node, is_lost, choice)
            elif node.log:
                self._cut_file(node, is_lost, choice)

    def _cut_file(self, node: Node, is_lost: Any, choice: random.Random) -> None:
        for offset, piece in node.log:
            if is_lost():
                self.counts["lost_bytes"] += len(piece or b"")
            elif piece is not None and choice.random() < self._chances[1]:
                self.counts["torn_writes"] += 1
                for at, kept in _torn(offset, piece, choice):
                    _put(node.durable, at, kept)
            else:
                _apply(node.durable, offset, piece)
        node.content, node.log = bytearray(node.durable), []


def _torn(offset: int, piece: bytes, choice: random.Random) -> Iterator[tuple[int, bytes]]:
    """Give those pages of a write that have reached the disk, in no order; of some, only the first sectors."""
    at = 0
    while at < len(piece):
        page = piece[at : at + PAGE - (offset + at) % PAGE]
        if choice.random() < 0.5:
            whole = choice.random() < 0.8
            yield offset + at, page if whole else page[: SECTOR * choice.randrange(len(page) // SECTOR + 1)]
        at += len(page)


def _sync_all(node: Node) -> None:
    node.sync()
    for inner in node.names.values():
        _sync_all(inner)


def _apply(content: bytearray, offset: int, piece: bytes | None) -> None:
    if piece is None:
        _cut_to(content, offset)
    else:
        _put(content, offset, piece)


def _put(content: bytearray, offset: int, piece: bytes) -> None:
    if piece and len(content) < offset:
        content.extend(bytes(offset - len(content)))
    content[offset : offset + len(piece)] = piece


def _cut_to(content: bytearray, length: int) -> None:
    del content[length:]
    content.extend(bytes(length - len(content)))


if __name__ == "__main__":
    # names and attributes may be cached: nobody but this mount changes them, and a cut renames the root
    fuse.FUSE(
        PowerFs(),
        sys.argv[1],
        foreground=True,
        nothreads=True,
        fsname="powerfs",
        entry_timeout=3600,
        attr_timeout=3600,
        negative_timeout=0,
    )
