"""Walk through the elements of an encoded data set, prove that it is whole, and note where wanted values lie.

Nothing is decoded and nothing is copied: a CT slice's header takes a fraction of a millisecond. The walk is iterative
and bounded, so that no data set that a peer may send costs the stack or more than a microsecond for each 8 bytes.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from pydicom._dicom_dict import DicomDictionary
from pydicom.datadict import repeater_has_tag

from pacs_ai.errors import NotUnderstood

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Bounds that no object known to us comes near: sequences within sequences, elements or items side by side, and all
#: together (a SEG of 100 organs in 30,000 frames has a million).
MAX_NESTING = 16
MAX_SIBLINGS = 100_000
MAX_ELEMENTS = 2_000_000

UNDEFINED_LENGTH = 0xFFFFFFFF
ITEM = 0xFFFEE000
ITEM_DELIMITATION = 0xFFFEE00D
SEQUENCE_DELIMITATION = 0xFFFEE0DD
PIXEL_DATA = 0x7FE00010
#: The last tag below the groups that a data set may hold: 0000 (commands) and 0002 (file meta) lie beneath it.
_FLOOR = 0x0003FFFF

#: Value representations with a length of 16 bits (PS3.5 Table 7.1-2).
SHORT_VR = frozenset(b"AE AS AT CS DA DS DT FL FD IS LO LT PN SH SL SS ST TM UI UL US".split())
SEQUENCE_TAGS = frozenset(tag for tag, entry in DicomDictionary.items() if entry[0] == "SQ")
_NOTHING: Mapping[int, str] = MappingProxyType({})


class Place(NamedTuple):
    """Where a value lies: its stated VR (b"" in implicit VR), offset and length in bytes."""

    vr: bytes
    start: int
    length: int


@dataclass(frozen=True)
class Wanted:
    """Tags to note, each with its keyword: of the data set itself, and of anything inside certain of its sequences."""

    top: Mapping[int, str]
    within: Mapping[int, Mapping[int, str]]


@dataclass(slots=True)
class _Frame:
    """A data set, sequence or item that the walk has entered and not left; how many elements or items it had so far."""

    is_sequence: bool
    end: int
    undefined: bool
    implicit: bool
    wanted: Mapping[int, str]
    layout: _Layout
    count: int = 0


class _Layout(NamedTuple):
    """How element headers are packed in one byte order."""

    explicit: struct.Struct
    implicit: struct.Struct
    length: struct.Struct


_LITTLE = _Layout(struct.Struct("<HH2sH"), struct.Struct("<HHL"), struct.Struct("<L"))
_BIG = _Layout(struct.Struct(">HH2sH"), struct.Struct(">HHL"), struct.Struct(">L"))


def locate(data: bytes | memoryview, wanted: Wanted, *, implicit: bool, big_endian: bool = False) -> dict[str, Place]:
    """Return where the wanted values lie, having proved the data set whole.

    Parameters
    ----------
    data
        An encoded data set (PS3.5 chapter 7), without preamble and file meta, not deflated.
    wanted
        The tags to note; where the data set and a sequence hold the same one, the data set's own counts, and of
        several items the first.

    Raises
    ------
    NotUnderstood
        A length reaches beyond the end or beyond the enclosing item, a delimiter is missing, tags of the data set
        are not ascending and unique (PS3.5 7.1), groups 0000 or 0002 occur, or it goes beyond `MAX_NESTING`,
        `MAX_SIBLINGS` or `MAX_ELEMENTS`.
    """
    walk = _Walk(data, wanted, _BIG if big_endian else _LITTLE)
    try:
        walk.run(implicit=implicit)
    except struct.error:
        raise NotUnderstood("the data set ends within the header of an element") from None
    return walk.nested | walk.top


def _name(tag: int) -> str:
    return f"({tag >> 16:04X},{tag & 0xFFFF:04X})"


class _Walk:
    """The walk's position, what it has entered, and what it has noted."""

    def __init__(self, data: bytes | memoryview, wanted: Wanted, layout: _Layout) -> None:
        self.data = data
        self.layout = layout
        self.wanted = wanted
        self.at = 0
        self.previous = _FLOOR
        self.count = 0
        self.frames: list[_Frame] = []
        self.top: dict[str, Place] = {}
        self.nested: dict[str, Place] = {}

    def run(self, *, implicit: bool) -> None:
        frames = self.frames
        frames.append(_Frame(False, len(self.data), False, implicit, self.wanted.top, self.layout))
        while frames:
            frame = frames[-1]
            if frame.is_sequence:
                self._items(frame)
            elif frame.implicit:
                self._implicit_elements(frame)
            else:
                self._explicit_elements(frame)

    def _explicit_elements(self, frame: _Frame) -> None:
        """Walk on to the next sequence, or to the end of this data set or item; explicit VR (PS3.5 7.1.2)."""
        data, end, wanted, short = self.data, frame.end, frame.wanted, SHORT_VR
        header, at, count = frame.layout.explicit.unpack_from, self.at, frame.count
        ordered = len(self.frames) == 1
        found, previous = (self.top, self.previous) if ordered else (self.nested, _FLOOR)
        while at < end:
            group, element, vr, length = header(data, at)
            tag = group << 16 | element
            if tag <= previous:
                raise _misplaced(tag)
            start = at + 8
            if vr not in short:
                if tag == ITEM_DELIMITATION:
                    self._leave_item(frame, tag, at, count)
                    return
                start, length = self._long_form(frame, tag, vr, at)
                if length == UNDEFINED_LENGTH or vr == b"SQ":
                    self.previous = tag if ordered else self.previous
                    self._add(frame, count + 1)
                    self._enter(frame, tag, Place(vr, start, length))
                    return
            elif tag >= ITEM:
                raise NotUnderstood(f"{_name(tag)} stands at byte {at} as if it were an element")
            if tag in wanted:
                found.setdefault(wanted[tag], Place(vr, start, length))
            if ordered:
                previous = tag
            at = start + length
            count += 1
            if count > MAX_SIBLINGS:
                break
        self._end(frame, at, count)

    def _implicit_elements(self, frame: _Frame) -> None:
        """Walk on to the next sequence, or to the end of this data set or item; implicit VR (PS3.5 7.1.3)."""
        data, end, wanted, sequences = self.data, frame.end, frame.wanted, SEQUENCE_TAGS
        header, at, count = frame.layout.implicit.unpack_from, self.at, frame.count
        ordered = len(self.frames) == 1
        found, previous = (self.top, self.previous) if ordered else (self.nested, _FLOOR)
        while at < end:
            group, element, length = header(data, at)
            tag = group << 16 | element
            if tag <= previous:
                raise _misplaced(tag)
            start = at + 8
            if group == ITEM >> 16:
                self._leave_item(frame, tag, at, count)
                return
            if length == UNDEFINED_LENGTH or tag in sequences:
                if not _may_hold_items(tag):
                    raise NotUnderstood(f"element {_name(tag)} has no length, and is no sequence")
                self.previous = tag if ordered else self.previous
                self._add(frame, count + 1)
                self._enter(frame, tag, Place(b"SQ", start, length))
                return
            if tag in wanted:
                found.setdefault(wanted[tag], Place(b"", start, length))
            if ordered:
                previous = tag
            at = start + length
            count += 1
            if count > MAX_SIBLINGS:
                break
        self._end(frame, at, count)

    def _add(self, frame: _Frame, count: int) -> None:
        """Note that a data set, item or sequence has so many elements or items by now."""
        self.count += count - frame.count
        frame.count = count
        if count > MAX_SIBLINGS or self.count > MAX_ELEMENTS:
            most = MAX_SIBLINGS if count > MAX_SIBLINGS else MAX_ELEMENTS
            raise NotUnderstood(f"the data set has more than {most} elements or items")

    def _end(self, frame: _Frame, at: int, count: int) -> None:
        """Leave the data set or item whose last element ended here, if it ended where it said."""
        self.at = at
        self._add(frame, count)
        if at > frame.end:
            raise NotUnderstood(f"the last element reaches {at - frame.end} bytes beyond the end of what holds it")
        if frame.undefined:
            raise NotUnderstood("an item of undefined length has no delimiter")
        self.frames.pop()

    def _long_form(self, frame: _Frame, tag: int, vr: bytes, at: int) -> tuple[int, int]:
        """Return start and length of a value whose length has 32 bits, as that of any VR to come (PS3.5 7.1.2)."""
        if not (vr.isalpha() and vr.isupper()) or tag >= ITEM:
            raise NotUnderstood(f"element {_name(tag)} at byte {at} has no value representation")
        return at + 12, frame.layout.length.unpack_from(self.data, at + 8)[0]

    def _enter(self, frame: _Frame, tag: int, place: Place) -> None:
        """Enter a sequence, or pass over encapsulated pixel data."""
        if place.vr not in {b"SQ", b"UN"}:
            if tag != PIXEL_DATA or place.vr not in {b"OB", b"OW"}:  # PS3.5 A.4
                raise NotUnderstood(f"element {_name(tag)} has no length, and is neither sequence nor pixel data")
            self.at = self._after_fragments(frame, place.start)
            return
        if len(self.frames) > 2 * MAX_NESTING:
            raise NotUnderstood(f"sequences are nested deeper than {MAX_NESTING}")
        undefined = place.length == UNDEFINED_LENGTH
        end = frame.end if undefined else place.start + place.length
        if end > frame.end:
            raise NotUnderstood(f"sequence {_name(tag)} reaches {end - frame.end} bytes too far")
        # The content of an UN of undefined length is in implicit VR little endian (PS3.5 6.2.2 note 2).
        implicit, layout = (True, _LITTLE) if place.vr == b"UN" else (frame.implicit, frame.layout)
        wanted = self.wanted.within.get(tag, _NOTHING) if len(self.frames) == 1 else frame.wanted
        self.frames.append(_Frame(True, end, undefined, implicit, wanted, layout))
        self.at = place.start

    def _items(self, frame: _Frame) -> None:
        """Enter the next item that is not empty, or leave the sequence (PS3.5 7.5)."""
        length = 0
        while length == 0:
            at = self.at
            if at == frame.end and not frame.undefined:
                self.frames.pop()
                return
            if at + 8 > frame.end:
                raise NotUnderstood("a sequence has no delimiter, or ends within the header of an item")
            group, element, length = frame.layout.implicit.unpack_from(self.data, at)
            tag = group << 16 | element
            self.at = at + 8
            if tag == SEQUENCE_DELIMITATION and frame.undefined:
                _check_delimiter(length, at)
                self.frames.pop()
                return
            if tag != ITEM:
                raise NotUnderstood(f"a sequence holds {_name(tag)} at byte {at} where an item belongs")
            self._add(frame, frame.count + 1)
        undefined = length == UNDEFINED_LENGTH
        end = frame.end if undefined else self.at + length
        if end > frame.end:
            raise NotUnderstood(f"an item reaches {end - frame.end} bytes beyond the end of its sequence")
        self.frames.append(_Frame(False, end, undefined, frame.implicit, frame.wanted, frame.layout))

    def _leave_item(self, frame: _Frame, tag: int, at: int, count: int) -> None:
        if tag != ITEM_DELIMITATION or not frame.undefined:
            raise NotUnderstood(f"{_name(tag)} stands at byte {at} where no such item is open")
        _check_delimiter(frame.layout.length.unpack_from(self.data, at + 4)[0], at)
        self.at = at + 8
        self._add(frame, count)
        self.frames.pop()
        if self.at > frame.end:
            raise NotUnderstood("the data set ends within an item delimiter")

    def _after_fragments(self, frame: _Frame, at: int) -> int:
        """Return where encapsulated pixel data ends, having seen each fragment and the delimiter (PS3.5 A.4)."""
        header, data, end = frame.layout.implicit.unpack_from, self.data, frame.end
        while at + 8 <= end:
            group, element, length = header(data, at)
            tag = group << 16 | element
            at += 8
            if tag == SEQUENCE_DELIMITATION:
                _check_delimiter(length, at - 8)
                return at
            if tag != ITEM or length == UNDEFINED_LENGTH:
                raise NotUnderstood(f"encapsulated pixel data holds {_name(tag)} at byte {at - 8}, no fragment")
            at += length
            self.count += 1
            if self.count > MAX_ELEMENTS:
                break
        raise NotUnderstood("encapsulated pixel data ends before its delimiter, or has too many fragments")


def _may_hold_items(tag: int) -> bool:
    """Tell whether an element in implicit VR may be a sequence: known to be one, or not known (PS3.5 7.1.3, 7.8)."""
    if tag in SEQUENCE_TAGS:
        return True
    group, number = tag >> 16, tag & 0xFFFF
    if group % 2:
        return number > 0xFF  # below it are private creators
    return number != 0 and tag not in DicomDictionary and not repeater_has_tag(tag)


def _check_delimiter(length: int, at: int) -> None:
    """Refuse what follows a delimiter and might be taken for its value (PS3.5 Table 7.5-1: the length is 0)."""
    if length:
        raise NotUnderstood(f"the delimiter at byte {at} has a length")


def _misplaced(tag: int) -> NotUnderstood:
    if tag <= _FLOOR:
        return NotUnderstood(f"element {_name(tag)} does not belong in a data set")
    return NotUnderstood(f"element {_name(tag)} stands twice or out of order")
