"""Make many instances durable with one sync: written one behind the other into a file that is written over and over.

    <store>/ahead/<name>    a segment, 0600: records from its start on, each on pages of its own

A file, its directory and its row cost three syncs, and a file that grows costs the file system's journal besides. A
segment was filled with zeros once, so that to write it over and sync it is the cheapest that a disk knows. A record is
a head (the segment's lap, its number within, what the index needs) and the Part 10 file as it will be kept. Files and
rows are made from it afterwards, and by the next process where this one dies; only then the segment begins a new lap.

A lap is 16 random bytes, so that nothing a peer sends can pass for a record; the head has a digest of its own and the
file's, so that a record that was torn, or is of an earlier lap, ends the reading. Records are written by one thread at
a time and in order: one that was believed is never behind one that is torn.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import secrets
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, fields
from datetime import datetime
from types import MappingProxyType
from typing import TYPE_CHECKING

from pacs_ai.dicom.arrival import Arrival
from pacs_ai.dicom.attributes import Header
from pacs_ai.errors import OutOfResources
from pacs_ai.store.disk import CREATE, READ, Disk, write, write_at
from pacs_ai.store.files import Source

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

LOGGER = logging.getLogger(__name__)

#: Into so many segments the space of one process is divided.
SEGMENTS = 8

_PAGE = 4096
_MAGIC = b"ahead  1"
#: Magic, lap, turn of the lap, number within it, SHA-256 of the file, its size, length of the words.
_HEAD = struct.Struct("<8s16sQQ32sQL")
_DIGEST_BYTES = 32
_PIECE_BYTES = 1 << 20
_IN_WORDS = tuple(field.name for field in fields(Arrival) if field.name not in {"sha256", "size"})
_REOPEN = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
#: So much of the disk, in segments, must be free before another one is made.
_SPARE = 4


class Segment:
    """One file of fixed size that this process holds.

    Parameters
    ----------
    path, descriptor, size
        Of the file.
    """

    def __init__(self, path: Path, descriptor: int, size: int) -> None:
        self.path, self.descriptor, self.size = path, descriptor, size
        self.begin(0)

    def begin(self, turn: int) -> None:
        """Begin a new lap."""
        self.lap, self.turn = secrets.token_bytes(16), turn
        self.end = self.count = self.left = 0
        self.is_closed = self.is_broken = False


@dataclass(frozen=True)
class Place:
    """Where a record's file lies: segment and lap, number of the record, first byte and size of the file."""

    segment: Segment
    lap: str
    number: int
    start: int
    size: int

    @property
    def name(self) -> str:
        """Name of the segment."""
        return self.segment.path.name

    def source(self, sha256: str) -> Source:
        """Return where the file's bytes are to be copied from."""
        return Source(sha256, self.size, self.segment.descriptor, self.start)


#: Told where an instance is durable, or why it is not.
Tell = Callable[[Place | OutOfResources], None]


@dataclass(frozen=True)
class _Waiting:
    """One record that is to be written at an offset."""

    place: Place
    offset: int
    head: bytes
    parts: Sequence[bytes | bytearray]
    tell: Tell


class Ahead:
    """The segments of one process.

    Parameters
    ----------
    folder
        Where they lie; made where it is missing.
    disk
        The file system below it.
    segment_bytes, segments
        Size of one, and how many there may be; one is made at once, the others when they are needed.
    """

    def __init__(self, folder: Path, disk: Disk, *, segment_bytes: int = 32 << 20, segments: int = SEGMENTS) -> None:
        self._folder, self._disk = folder, disk
        self._segment_bytes, self._most = segment_bytes, segments
        self._turn = threading.Condition()
        self._writing = False
        self._waiting: list[_Waiting] = []
        self._active: Segment | None = None
        self._free: list[Segment] = []
        self._full: list[Segment] = []
        self._turns = 0
        self._is_short = False
        #: What an earlier process left: to be indexed, and then `done`, in this order.
        self.left: list[tuple[Arrival, Place]] = []
        folder.mkdir(mode=0o700, exist_ok=True)
        disk.sync_path(folder.parent, os.O_RDONLY | os.O_DIRECTORY)
        self._take_over()
        if not self._free:
            self.prepare()

    # -- keeping

    def keep(self, arrival: Arrival, parts: Sequence[bytes | bytearray], tell: Tell) -> bool:
        """Make an instance durable and tell so; False where there is no room at this moment, and nobody is told.

        The thread that finds nobody writing writes for all that come while it does; the others return at once.
        """
        words = _words(arrival)
        with self._turn:
            place = self._reserve(_HEAD.size + len(words) + _DIGEST_BYTES, arrival.size)
            if place is None:
                return False
            head = _head(place, words, arrival.sha256)
            self._waiting.append(_Waiting(place, place.start - len(head), head, parts, tell))
            if self._writing:
                return True
            self._writing = True
        while batch := self._next():
            self._write(batch)
        return True

    def _reserve(self, head_bytes: int, size: int) -> Place | None:
        needed = _whole_pages(head_bytes + size)
        segment = self._active
        if segment is not None and (segment.is_closed or segment.end + needed > segment.size):
            self._close_active()
            segment = None
        if segment is None:
            if not self._free or needed > self._segment_bytes:
                return None
            segment = self._active = self._free.pop()
            self._turns += 1
            segment.begin(self._turns)
        segment.count += 1
        segment.left += 1
        place = Place(segment, segment.lap.hex(), segment.count, segment.end + head_bytes, size)
        segment.end += needed
        return place

    def _close_active(self) -> None:
        if self._active is not None:
            self._active.is_closed = True
            self._full.append(self._active)
            self._active = None

    def _next(self) -> list[_Waiting]:
        with self._turn:
            batch, self._waiting = self._waiting, []
            if not batch:
                self._writing = False
                self._turn.notify_all()
            return batch

    def _write(self, batch: Sequence[_Waiting]) -> None:
        """Write records and sync; where that fails none of them is believed, nor any behind them in their segment."""
        segments = {waiting.place.segment for waiting in batch}
        fault: OutOfResources | None = None
        try:
            self._disk.refuse_if_broken()
            self._refuse_if_broken(segments)
            for waiting in batch:
                end = waiting.offset + len(waiting.head) + waiting.place.size
                padding = bytes(_whole_pages(end) - end)
                write_at(waiting.place.segment.descriptor, [waiting.head, *waiting.parts, padding], waiting.offset)
            for segment in segments:
                self._disk.sync_content(segment.descriptor)
        except OSError as error:
            fault = self._disk.shortage(error)
        except OutOfResources as error:
            fault = error
        if fault is not None:
            with self._turn:
                for segment in segments:
                    segment.is_broken = segment.is_closed = True
            self.done([waiting.place for waiting in batch])
        for waiting in batch:
            waiting.tell(waiting.place if fault is None else fault)

    def _refuse_if_broken(self, segments: Iterable[Segment]) -> None:
        if any(segment.is_broken for segment in segments):
            raise OutOfResources(f"{self._folder}: the record before could not be written")

    # -- letting go

    def done(self, places: Sequence[Place]) -> None:
        """Take note that nothing of these records is needed any more: their files and rows are durable."""
        with self._turn:
            for place in places:
                place.segment.left -= 1
            if self._active is not None and self._active.is_closed:
                self._close_active()
            empty = [segment for segment in self._full if segment.left == 0]
            self._full = [segment for segment in self._full if segment.left]
        for segment in empty:
            self._retire(segment)

    def rest(self) -> None:
        """Leave nothing to be recovered, where all that was written is done; for a quiet moment."""
        with self._turn:
            if self._active is None or self._active.left:
                return
            self._close_active()
        self.done([])

    def prepare(self) -> None:
        """Make another segment where there may be one; for a thread that may wait for the disk."""
        with self._turn:
            if len(self._free) + len(self._full) + (self._active is not None) >= self._most:
                return
        state = os.statvfs(self._folder)
        if state.f_bavail * state.f_frsize < _SPARE * self._segment_bytes:
            return
        try:
            segment = self._make()
        except (OSError, OutOfResources) as error:
            if not self._is_short:
                LOGGER.warning("no further segment could be made to write ahead to: %s", error)
            self._is_short = True
            return
        self._is_short = False
        with self._turn:
            self._free.append(segment)

    @property
    def is_low(self) -> bool:
        """Whether there is no free segment behind the one that is written to."""
        return not self._free

    def set_aside(self, arrival: Arrival, place: Place) -> Path:
        """Keep the file of a record whose row can never be made where a person finds it; return its path."""
        path = self._folder / f"{arrival.sha256}.dcm"
        with self._disk.storing(path):
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                for piece in _pieces(place.segment.descriptor, place.start, place.size):
                    write(descriptor, piece)
                self._disk.sync(descriptor)
            finally:
                os.close(descriptor)
            self._disk.sync_path(self._folder, READ | os.O_DIRECTORY)
        return path

    def close(self) -> None:
        """Let go of the segments; what is not done is recovered by the next process."""
        with self._turn:
            self._turn.wait_for(lambda: not self._writing)
        self.rest()
        for segment in (*self._free, *self._full, *([self._active] if self._active else [])):
            os.close(segment.descriptor)
        self._free, self._full, self._active = [], [], None

    def _retire(self, segment: Segment) -> None:
        """Forget a lap durably, and have the segment ready for another."""
        try:
            write_at(segment.descriptor, [bytes(_PAGE)], 0)
            self._disk.sync_content(segment.descriptor)
        except OSError as error:
            LOGGER.warning("a segment is not used again: %s", self._disk.shortage(error))
            os.close(segment.descriptor)
            return
        with self._turn:
            if segment.size == self._segment_bytes and len(self._free) < self._most:
                self._free.append(segment)
                return
        segment.path.unlink(missing_ok=True)
        os.close(segment.descriptor)

    # -- segments

    def _make(self) -> Segment:
        """Make a segment: filled with zeros, for to write over what was never written is no cheaper than to append."""
        path = self._folder / secrets.token_hex(16)
        with self._disk.storing(path):
            descriptor = os.open(path, CREATE, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                for start in range(0, self._segment_bytes, _PIECE_BYTES):
                    write(descriptor, bytes(min(_PIECE_BYTES, self._segment_bytes - start)))
                self._disk.sync(descriptor)
                self._disk.sync_path(self._folder, READ | os.O_DIRECTORY)
            except OSError:
                os.close(descriptor)
                raise
        return Segment(path, descriptor, self._segment_bytes)

    def _take_over(self) -> None:
        """Take the segments that no process holds, and read what they hold."""
        found: list[tuple[int, list[tuple[Arrival, Place]]]] = []
        for path in sorted(self._folder.iterdir()):
            if path.suffix:
                continue
            segment = _held(path)
            if segment is None:
                continue
            records = list(_records(segment))
            if records:
                segment.left, segment.is_closed = len(records), True
                self._full.append(segment)
                found.append((segment.turn, records))
            elif segment.size == self._segment_bytes and len(self._free) < self._most:
                self._free.append(segment)
            else:  # of another size, or its maker died before it was whole
                path.unlink(missing_ok=True)
                os.close(segment.descriptor)
        self.left = [record for _, records in sorted(found, key=lambda one: one[0]) for record in records]
        self._turns = max((turn for turn, _ in found), default=0)


def _held(path: Path) -> Segment | None:
    """Open a segment and hold it; None where another process does."""
    try:
        descriptor = os.open(path, _REOPEN)
    except FileNotFoundError:
        return None
    with contextlib.suppress(BlockingIOError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        state = os.fstat(descriptor)
        if state.st_nlink:
            return Segment(path, descriptor, state.st_size)
    os.close(descriptor)
    return None


def _records(segment: Segment) -> Iterator[tuple[Arrival, Place]]:
    """Give the records of a segment's lap, as far as they are whole and without a gap."""
    offset, number = 0, 1
    while (read := _head_at(segment, offset)) is not None:
        magic, lap, turn, counted, digest, size, words, head_bytes = read
        if magic != _MAGIC or counted != number or (number > 1 and lap != segment.lap):
            return
        place = Place(segment, lap.hex(), number, offset + head_bytes, size)
        if _sha256_at(place) != digest:
            return
        segment.lap, segment.turn = lap, turn
        segment.count, segment.end = number, offset + _whole_pages(head_bytes + size)
        yield _arrival(words, digest.hex(), size), place
        offset, number = segment.end, number + 1


def _head_at(segment: Segment, offset: int) -> tuple[bytes, bytes, int, int, bytes, int, bytes, int] | None:
    """Return a record's head, its words and its whole length; None where no whole one is."""
    raw = os.pread(segment.descriptor, _HEAD.size, offset)
    if len(raw) < _HEAD.size:
        return None
    magic, lap, turn, number, digest, size, length = _HEAD.unpack(raw)
    if offset + _HEAD.size + length + _DIGEST_BYTES + size > segment.size:
        return None
    rest = os.pread(segment.descriptor, length + _DIGEST_BYTES, offset + _HEAD.size)
    words = rest[:length]
    if hashlib.sha256(raw + words).digest() != rest[length:]:
        return None
    return magic, lap, turn, number, digest, size, words, _HEAD.size + length + _DIGEST_BYTES


def _head(place: Place, words: bytes, sha256: str) -> bytes:
    segment = place.segment
    head = _HEAD.pack(_MAGIC, segment.lap, segment.turn, place.number, bytes.fromhex(sha256), place.size, len(words))
    return head + words + hashlib.sha256(head + words).digest()


def _sha256_at(place: Place) -> bytes:
    digest = hashlib.sha256()
    for piece in _pieces(place.segment.descriptor, place.start, place.size):
        digest.update(piece)
    return digest.digest()


def _pieces(descriptor: int, start: int, size: int) -> Iterator[bytes]:
    end = start + size
    while start < end:
        piece = os.pread(descriptor, min(_PIECE_BYTES, end - start), start)
        if not piece:
            return
        yield piece
        start += len(piece)


def _words(arrival: Arrival) -> bytes:
    """Return what the index needs of an arrival, its digest and size aside."""
    words = {name: getattr(arrival, name) for name in _IN_WORDS}
    words["received_at"] = arrival.received_at.isoformat()
    words["header"] = dict(arrival.header.values)
    return json.dumps(words).encode()


def _arrival(words: bytes, sha256: str, size: int) -> Arrival:
    found = json.loads(words)
    header = Header(MappingProxyType(found.pop("header")))
    received_at = datetime.fromisoformat(found.pop("received_at"))
    return Arrival(header=header, sha256=sha256, size=size, received_at=received_at, **found)


def _whole_pages(count: int) -> int:
    return -(-count // _PAGE) * _PAGE
