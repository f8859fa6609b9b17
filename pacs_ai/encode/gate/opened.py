"""A result opened again as a stranger would: its bytes before the pixel data, what they cite, and the pixel data."""

from __future__ import annotations

import struct
from bisect import bisect_right
from dataclasses import dataclass, field
from functools import cached_property
from io import BytesIO
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np
from pydicom import Dataset, dcmread
from pydicom.datadict import tag_for_keyword
from pydicom.encaps import generate_frames

from pacs_ai.encode.explicit import LONG_LENGTH, UNDEFINED, elements, items, text
from pacs_ai.errors import NotUnderstood
from pacs_ai.profiles import Kind

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

    from pacs_ai.encode.encoded import Encoded

#: Float, double float and integer pixel data (PS3.3 C.7.6.3, C.7.6.24, C.7.6.25).
PIXEL_DATA = frozenset({0x7FE00008, 0x7FE00009, 0x7FE00010})
PER_FRAME = 0x52009230
REFERENCED_SOP_INSTANCE_UID = 0x00081155
REFERENCED_FRAME_NUMBER = 0x00081160
#: Sequences whose references are no evidence: order, replaced objects, studies and patients.
NOT_EVIDENCE = frozenset(
    tag_for_keyword(keyword) or 0
    for keyword in (
        "ReferencedRequestSequence", "RequestAttributesSequence", "PredecessorDocumentsSequence",
        "ReferencedStudySequence", "ReferencedPatientSequence",
    )
)  # fmt: skip
#: Where a file's File Meta Information Group Length has its value (PS3.10 7.1).
META_LENGTH_AT = 128 + 4 + 8
#: Binary numbers, by VR (PS3.5 6.2).
FLOATS = {b"FL": "<f4", b"FD": "<f8", b"OF": "<f4", b"OD": "<f8"}
NO_NUMBERS = (b"nan", b"inf")


@dataclass
class Cited:
    """What the bytes of a result say at every depth.

    Parameters
    ----------
    references
        (SOP Instance UID, frame numbers) of each reference; no numbers where it is to the whole instance.
    uids
        Every value of VR UI.
    not_finite
        Tags whose numbers are NaN or infinite.
    """

    references: set[tuple[str, tuple[int, ...]]] = field(default_factory=set)
    uids: set[str] = field(default_factory=set)
    not_finite: set[int] = field(default_factory=set)

    def add(self, head: bytes, start: int, end: int, skipped: frozenset[int] = NOT_EVIDENCE) -> None:
        """Read the elements between two offsets; what lies under `skipped` sequences is not read."""
        uid = ""
        frames: tuple[int, ...] = ()
        for tag, vr, first, last in elements(head, start, end):
            if vr == b"SQ":
                if tag not in skipped:
                    for inner in items(head, first, last):
                        self.add(head, *inner, skipped)
            elif vr == b"UI":
                value = text(head[first:last])
                self.uids.update(value.split("\\"))
                if tag == REFERENCED_SOP_INSTANCE_UID:
                    uid = value
            elif tag == REFERENCED_FRAME_NUMBER:
                frames = frame_numbers(head[first:last])
            elif _not_finite(vr, head, first, last):
                self.not_finite.add(tag)
        if uid:
            self.references.add((uid, frames))


def frame_numbers(value: bytes) -> tuple[int, ...]:
    """Return the numbers of a Referenced Frame Number (0008,1160)."""
    written = text(value)
    return tuple(int(number) for number in written.split("\\")) if written else ()


def _not_finite(vr: bytes, head: bytes, first: int, last: int) -> bool:
    if vr == b"DS":
        written = head[first:last].lower()
        return any(word in written for word in NO_NUMBERS)
    kind = FLOATS.get(vr)
    return kind is not None and not np.isfinite(np.frombuffer(head[first:last], kind)).all()


@dataclass(frozen=True)
class Opened:
    """One result.

    Parameters
    ----------
    encoded
        The result.
    head
        Its bytes from the preamble to the pixel data.
    start
        Where the data set begins in them.
    pixels
        The value of its pixel data in pieces, none where it has none; fragments with their item tags where it is
        compressed.
    """

    encoded: Encoded
    head: bytes
    start: int
    pixels: tuple[memoryview, ...]

    @classmethod
    def of(cls, encoded: Encoded) -> Opened:
        """Open a result; its pixel data is not copied where it is a part of its own.

        Raises
        ------
        NotUnderstood
            Where an element has no end.
        """
        first, *further = encoded.parts
        (meta,) = struct.unpack_from("<I", first, META_LENGTH_AT)
        start = META_LENGTH_AT + 4 + meta
        done: list[bytes] = []
        part, at = first, start
        while True:
            at, pixels_at = _to_pixels(part, at)
            if pixels_at is not None:
                done.append(bytes(part[:at]))
                return cls(encoded, b"".join(done), start, _rest(part, pixels_at, further))
            if at > len(part) and further:
                part, at = bytes(part) + bytes(further.pop(0)), 0 if done else start
                continue
            if at != len(part):
                raise NotUnderstood("an element of the result has no end")
            done.append(bytes(part))
            if not further:
                return cls(encoded, b"".join(done), start, ())
            part, at = further.pop(0), 0

    @property
    def kind(self) -> str:
        """What people call it."""
        return self.encoded.kind

    @cached_property
    def ds(self) -> Dataset:
        """The data set without its pixel data."""
        return dcmread(BytesIO(self.head))

    @cached_property
    def tags(self) -> dict[int, tuple[int, int]]:
        """Tag -> (start, end) of the value in `head` of each element that is in no sequence."""
        return {tag: (first, last) for tag, _, first, last in elements(self.head, self.start, len(self.head))}

    @cached_property
    def cited(self) -> Cited:
        """What it cites; of a segmentation, outside its per-frame functional groups, which are read frame by frame."""
        found = Cited()
        apart = {PER_FRAME} if self.is_segmentation else set()
        found.add(self.head, self.start, len(self.head), NOT_EVIDENCE | apart)
        return found

    @property
    def groups(self) -> Iterator[tuple[int, int]]:
        """(start, end) in `head` of each frame's item of the Per-frame Functional Groups Sequence."""
        if PER_FRAME in self.tags:
            yield from items(self.head, *self.tags[PER_FRAME])

    @property
    def number_of_frames(self) -> int:
        """Number of Frames (0028,0008), 1 where absent."""
        return int(self.ds.get("NumberOfFrames") or 1)

    @property
    def is_segmentation(self) -> bool:
        """Whether it holds segments."""
        return self.encoded.encoding.kind is Kind.SEGMENTATION

    @property
    def is_compressed(self) -> bool:
        """Whether the pixel data is a sequence of fragments (PS3.5 A.4)."""
        return bool(self.ds.file_meta.TransferSyntaxUID.is_encapsulated)

    def fragments(self) -> Iterator[bytes]:
        """Yield the compressed bytes of each frame."""
        yield from generate_frames(b"".join(self.pixels), number_of_frames=self.number_of_frames)

    @cached_property
    def _offsets(self) -> list[int]:
        return [0, *accumulate(len(piece) for piece in self.pixels)]

    def octets(self, first: int, last: int) -> npt.NDArray[np.uint8]:
        """Return bytes of uncompressed pixel data, copied only where they lie in several pieces.

        Raises
        ------
        NotUnderstood
            Where the pixel data ends before.
        """
        offsets = self._offsets
        if last > offsets[-1]:
            raise NotUnderstood(f"the {self.kind} has less pixel data than it says")
        n = bisect_right(offsets, first) - 1
        if last <= offsets[n + 1]:
            return np.frombuffer(self.pixels[n][first - offsets[n] : last - offsets[n]], np.uint8)
        end = bisect_right(offsets, last - 1)
        together = b"".join(self.pixels[n:end])
        return np.frombuffer(together, np.uint8)[first - offsets[n] : last - offsets[n]]


def _to_pixels(part: bytes | bytearray, at: int) -> tuple[int, int | None]:
    """Return where the elements of a part end, or where its pixel data begins and where that has its value."""
    while at + 8 <= len(part):
        group, number, vr, length = struct.unpack_from("<HH2sH", part, at)
        value_at = at + 8
        if vr in LONG_LENGTH:
            (length,) = struct.unpack_from("<I", part, value_at)
            value_at += 4
        if (group << 16 | number) in PIXEL_DATA:
            return at, value_at
        if length == UNDEFINED:
            raise NotUnderstood(f"the element ({group:04X},{number:04X}) has no end")
        at = value_at + length
    return at, None


def _rest(part: bytes | bytearray, at: int, further: list[bytes | bytearray]) -> tuple[memoryview, ...]:
    return tuple(memoryview(one) for one in (memoryview(part)[at:], *further) if len(one))
