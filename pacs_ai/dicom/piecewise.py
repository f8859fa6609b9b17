"""Read the bytes of a DICOM file piece by piece, never all of them at once, and no more of them than is allowed."""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pacs_ai.dicom import part10
from pacs_ai.dicom.attributes import DEFLATED, Inflating
from pacs_ai.dicom.structure import Walk, Wanted
from pacs_ai.errors import NotUnderstood

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

#: So much is read at a time: of values, and around the headers of elements.
PIECE = 1 << 20
_WINDOW = 1 << 16
#: A deflated data set cannot be read from its middle on: so much of one may be in memory, in bytes.
_MOST_INFLATED = 32 << 20
_NOTHING_WANTED = Wanted({}, {})
_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC


class Spent(Exception):  # noqa: N818 - no fault: the reader is told to stop
    """What was allowed is spent: there is more to be read than may be."""


@dataclass
class Allowance:
    """How much comparing may still cost; both files of a pair count.

    Parameters
    ----------
    elements
        Elements, items and fragments, of all files together.
    each
        Of them, those of one pair.
    size
        Bytes that are read, pixel data aside.
    pixels
        Bytes of pixel data that are read.
    """

    elements: int
    each: int
    size: int
    pixels: int
    _left: int = 0

    def begin(self) -> None:
        """Begin with another pair."""
        self._left = self.each

    def take(self, *, elements: int = 0, size: int = 0) -> None:
        """Count what is read; `Spent` where there is no more."""
        self.elements -= elements
        self._left -= elements
        self.size -= size
        if min(self.elements, self._left, self.size) < 0:
            raise Spent

    def recover(self, full: Allowance, share: float) -> None:
        """Give back a share of what a full one has."""
        self.elements = min(full.elements, max(self.elements, 0) + int(share * full.elements))
        self.size = min(full.size, max(self.size, 0) + int(share * full.size))
        self.pixels = min(full.pixels, self.pixels + int(share * full.pixels))

    def grant(self, pixels: int) -> bool:
        """Allow so many bytes of pixel data to be read; False, and nothing counts, where that is too much."""
        if pixels > self.pixels:
            return False
        self.pixels -= pixels
        self.size += pixels
        return True


class Source:
    """The encoded data set of one file: on the disk, from a byte on, or in memory where it was deflated.

    Parameters
    ----------
    transfer_syntax_uid
        Of the file.
    size
        Bytes of the data set.
    allowance
        What is read is taken from it.
    fetch
        Start and length -> bytes of the data set.
    """

    def __init__(
        self, transfer_syntax_uid: str, size: int, allowance: Allowance, fetch: Callable[[int, int], bytes]
    ) -> None:
        self.transfer_syntax_uid, self.size, self.allowance = transfer_syntax_uid, size, allowance
        self._fetch = fetch
        self._window, self._low, self._high = b"", 0, 0

    def read(self, start: int, length: int) -> bytes:
        """Return bytes of the data set; the caller asks for no more than there are.

        Raises
        ------
        Spent
            It is more than is allowed.
        NotUnderstood
            The file has become shorter.
        OSError
            The disk cannot read it.
        """
        self.allowance.take(size=length)
        found = self._fetch(start, length)
        if len(found) < length:
            raise NotUnderstood("the file ended while it was read")
        return found

    def around(self, at: int, length: int) -> tuple[bytes, int]:
        """Return bytes with at least so many from a position on, fewer at the end, and where in them it is."""
        if not (self._low <= at and at + length <= self._high):
            self._low, self._high = at, min(at + _WINDOW, self.size)
            self._window = self.read(at, max(self._high - at, 0))
        return self._window, at - self._low


@contextmanager
def opened(path: Path, allowance: Allowance) -> Iterator[Source]:
    """Open a file while the block lasts.

    Raises
    ------
    NotUnderstood
        It is no DICOM file (`part10.split`), or not deflated as it says.
    Spent
        It is deflated, and too long.
    OSError
        It cannot be read.
    """
    descriptor = os.open(path, _OPEN)
    try:
        head = os.pread(descriptor, _WINDOW, 0)
        file = part10.split(head)
        begin = len(head) - len(file.data_set)

        def fetch(start: int, length: int) -> bytes:
            return os.pread(descriptor, length, begin + start)

        source = Source(file.transfer_syntax_uid, os.fstat(descriptor).st_size - begin, allowance, fetch)
        if file.transfer_syntax_uid in DEFLATED:
            whole = _inflated(source)
            source = Source(
                file.transfer_syntax_uid,
                len(whole),
                allowance,
                lambda start, length: bytes(whole[start : start + length]),
            )
        yield source
    finally:
        os.close(descriptor)


def _inflated(source: Source) -> bytearray:
    inflating, found = Inflating(), bytearray()
    for start in range(0, source.size, PIECE):
        for piece in inflating.feed(source.read(start, min(PIECE, source.size - start))):
            found += piece
            if len(found) > _MOST_INFLATED:
                raise Spent
    inflating.end()
    return found


class _Proof(Walk):
    """A walk that is told what it need not see."""

    @property
    def count(self) -> int:
        """How many elements, items and fragments there were so far."""
        return self._count

    def skip(self, most: int) -> int:
        """Pass over what lies within a value, unread; return how many bytes that are, of at most so many."""
        came = self._base + len(self._data)
        passed = min(max(self._at - came, 0), most)
        if passed:
            self._data, self._base = b"", came + passed
        return passed


def prove(source: Source, start: int, length: int, *, implicit: bool, big_endian: bool, head: bytes = b"") -> None:
    """Prove that a part of a data set is whole, and take its elements from the allowance.

    Parameters
    ----------
    start, length
        Where it lies.
    implicit, big_endian
        How it is encoded.
    head
        Bytes to be taken for those before it.

    Raises
    ------
    NotUnderstood
        It is not (`structure.Walk`).
    Spent
        It has more elements, or more of it has to be read, than is allowed.
    OSError
        The disk cannot read it.
    """
    proof = _Proof(_NOTHING_WANTED, implicit=implicit, big_endian=big_endian, length=len(head) + length)
    proof.feed(head)
    at, end, counted = start, start + length, 0
    while (at := at + proof.skip(end - at)) < end:
        piece = source.read(at, min(_WINDOW, end - at))
        proof.feed(piece)
        at += len(piece)
        source.allowance.take(elements=proof.count - counted)
        counted = proof.count
    proof.end()
    source.allowance.take(elements=proof.count - counted)
