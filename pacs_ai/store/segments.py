"""Lay out a segment, the file that instances are written ahead to, and read again what one holds.

Records lie one behind the other from the segment's start on, each on pages of its own: a head (lap, number within it,
the file's digest and size, what the index needs, a digest of all that) and the Part 10 file as it will be kept.

A lap is 16 random bytes, so that nothing a peer sends can pass for a record. A record that was torn, or is of an
earlier lap, ends the reading.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import secrets
import struct
from dataclasses import dataclass, fields
from datetime import datetime
from types import MappingProxyType
from typing import TYPE_CHECKING

from pacs_ai.dicom.arrival import Arrival
from pacs_ai.dicom.attributes import Header
from pacs_ai.store.disk import CREATE, READ, Disk, write, write_at
from pacs_ai.store.files import Source

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PAGE = 4096
_MAGIC = b"ahead  1"
#: Magic, lap, turn of the lap, number within it, SHA-256 of the file, its size, length of the words.
_HEAD = struct.Struct("<8s16sQQ32sQL")
_DIGEST_BYTES = 32
_PIECE_BYTES = 1 << 20
_IN_WORDS = tuple(field.name for field in fields(Arrival) if field.name not in {"header", "sha256", "size"})
_REOPEN = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC


#: Of a head, its words aside.
HEAD_BYTES = _HEAD.size + _DIGEST_BYTES


class Segment:
    """One file of fixed size that this process holds.

    Parameters
    ----------
    path, descriptor, size
        Of the file.
    used
        Up to here there may be bytes of instances; behind it there are zeros.
    """

    def __init__(self, path: Path, descriptor: int, size: int, used: int) -> None:
        self.path, self.descriptor, self.size, self.used = path, descriptor, size, used
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


def make(folder: Path, size: int, disk: Disk) -> Segment:
    """Make and hold a segment, filled with zeros: to write over what was never written is no cheaper than to append.

    Raises
    ------
    OutOfResources
        The disk is full or failed; nothing is left behind.
    """
    path = folder / secrets.token_hex(16)
    with disk.storing(path):
        descriptor = os.open(path, CREATE, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for start in range(0, size, _PIECE_BYTES):
                write(descriptor, bytes(min(_PIECE_BYTES, size - start)))
            disk.sync(descriptor)
            disk.sync_path(folder, READ | os.O_DIRECTORY)
        except OSError:
            os.close(descriptor)
            raise
    return Segment(path, descriptor, size, used=0)


def take(path: Path) -> Segment | None:
    """Open a segment and hold it; None where another process does."""
    try:
        descriptor = os.open(path, _REOPEN)
    except FileNotFoundError:
        return None
    with contextlib.suppress(BlockingIOError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        state = os.fstat(descriptor)
        if state.st_nlink:
            return Segment(path, descriptor, state.st_size, used=state.st_size)
    os.close(descriptor)
    return None


def wipe(segment: Segment, disk: Disk) -> None:
    """Write zeros over the last piece of what earlier laps left in a segment that is in none, durably.

    What is zero already is not written again: of a segment that another process used it is not known how far.

    Raises
    ------
    OutOfResources
        The disk failed before.
    OSError
        It does now.
    """
    disk.refuse_if_broken()
    start = max(0, segment.used - _PIECE_BYTES)
    zeros = bytes(segment.used - start)
    if os.pread(segment.descriptor, len(zeros), start) != zeros:
        write_at(segment.descriptor, [zeros], start)
        disk.sync_content(segment.descriptor)
    segment.used = start


def records(segment: Segment) -> Iterator[tuple[Arrival, Place]]:
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
        segment.count, segment.end = number, offset + whole_pages(head_bytes + size)
        yield arrival_of(words, digest.hex(), size), place
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


def head(place: Place, words: bytes, sha256: str) -> bytes:
    """Return the head of a record."""
    segment = place.segment
    head = _HEAD.pack(_MAGIC, segment.lap, segment.turn, place.number, bytes.fromhex(sha256), place.size, len(words))
    return head + words + hashlib.sha256(head + words).digest()


def _sha256_at(place: Place) -> bytes:
    digest = hashlib.sha256()
    for piece in pieces(place.segment.descriptor, place.start, place.size):
        digest.update(piece)
    return digest.digest()


def pieces(descriptor: int, start: int, size: int) -> Iterator[bytes]:
    """Give the bytes of a part of a file, up to 1 MiB at a time."""
    end = start + size
    while start < end:
        piece = os.pread(descriptor, min(_PIECE_BYTES, end - start), start)
        if not piece:
            return
        yield piece
        start += len(piece)


def words_of(arrival: Arrival) -> bytes:
    """Return what the index needs of an arrival, its digest and size aside."""
    words = {name: getattr(arrival, name) for name in _IN_WORDS}
    words["received_at"] = arrival.received_at.isoformat()
    words["header"] = dict(arrival.header.values)
    return json.dumps(words).encode()


def arrival_of(words: bytes, sha256: str, size: int) -> Arrival:
    """Return the arrival that `words_of` gave the words of."""
    found = json.loads(words)
    header = Header(MappingProxyType(found.pop("header")))
    received_at = datetime.fromisoformat(found.pop("received_at"))
    return Arrival(header=header, sha256=sha256, size=size, received_at=received_at, **found)


def whole_pages(count: int) -> int:
    """Return the bytes that whole pages take."""
    return -(-count // PAGE) * PAGE
