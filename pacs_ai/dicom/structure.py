"""Walk through the elements of an encoded data set while it comes, prove that it is whole, and note wanted values.

Nothing is decoded, and nothing but the values that are wanted is kept: a CT slice's header takes a fraction of a
millisecond. The walk is iterative and bounded, so that no data set that a peer may send costs the stack or more than a
microsecond for each 8 bytes.
"""

from __future__ import annotations

import struct
import sys
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from pacs_ai.dicom.elements import (
    BIG,
    HEADER_BYTES,
    ITEM,
    ITEM_DELIMITATION,
    LITTLE,
    LONG_VR,
    PIXEL_DATA,
    SEQUENCE_DELIMITATION,
    SEQUENCE_TAGS,
    SHORT_VR,
    UNDEFINED_LENGTH,
    may_hold_items,
    name_of,
)
from pacs_ai.errors import NotUnderstood

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pacs_ai.dicom.elements import Layout

#: Bounds that no object known to us comes near: sequences within sequences, elements side by side, items of a sequence
#: (a whole slide has one for each of its tiles, 122,500 where it is 22 x 23 mm), and all together (a SEG of 100 organs
#: in 30,000 frames has a million).
MAX_NESTING = 16
MAX_SIBLINGS = 100_000
MAX_ITEMS = 400_000
MAX_ELEMENTS = 2_000_000

#: The last tag below the groups that a data set may hold: 0000 (commands) and 0002 (file meta) lie beneath it.
_FLOOR = 0x0003FFFF

_NOTHING: Mapping[int, str] = MappingProxyType({})


class Value(NamedTuple):
    """A value that was wanted: its stated VR (b"" in implicit VR), its length in bytes, and the first of its bytes."""

    vr: bytes
    length: int
    raw: bytes


@dataclass(frozen=True)
class Wanted:
    """Tags to note, each with its keyword: of the data set itself, and of anything inside certain of its sequences.

    Parameters
    ----------
    top, within
        Tag -> keyword; tag of a sequence -> tag -> keyword.
    most
        So many bytes of a value are kept.
    """

    top: Mapping[int, str]
    within: Mapping[int, Mapping[int, str]]
    most: int = 1024


@dataclass(slots=True)
class _Frame:
    """A data set, sequence or item that the walk has entered and not left; how many elements or items it had so far."""

    is_sequence: bool
    end: int
    undefined: bool
    implicit: bool
    wanted: Mapping[int, str]
    layout: Layout
    count: int = 0


_ENDLESS = sys.maxsize


def locate(data: bytes | memoryview, wanted: Wanted, *, implicit: bool, big_endian: bool = False) -> dict[str, Value]:
    """Return the wanted values of a data set that is at hand, having proved it whole; see `Walk`.

    Parameters
    ----------
    data
        An encoded data set (PS3.5 chapter 7), without preamble and file meta, not deflated.
    wanted, implicit, big_endian
        See `Walk`.

    Raises
    ------
    NotUnderstood
        See `Walk`.
    """
    walk = Walk(wanted, implicit=implicit, big_endian=big_endian, length=len(data))
    walk.feed(data)
    return walk.end()


class Walk:
    """A walk through a data set that comes piece by piece: its position, what it has entered, and what it has noted.

    Parameters
    ----------
    wanted
        The tags to note; where the data set and a sequence hold the same one, the data set's own counts, and of
        several items the first.
    implicit, big_endian
        How the data set is encoded.
    length
        Of the whole data set in bytes, where it is known.
    most_elements
        So many elements and items it may have in all; None: `MAX_ELEMENTS`.

    Raises
    ------
    NotUnderstood
        A length reaches beyond the end or beyond the enclosing item, a delimiter is missing, tags of the data set
        are not ascending and unique (PS3.5 7.1), groups 0000 or 0002 occur, or it goes beyond `MAX_NESTING`,
        `MAX_SIBLINGS`, `MAX_ITEMS` or `most_elements`. `feed` raises as soon as it shows, `end` at the end.
    """

    def __init__(
        self,
        wanted: Wanted,
        *,
        implicit: bool,
        big_endian: bool = False,
        length: int = _ENDLESS,
        most_elements: int | None = None,
    ) -> None:
        layout = BIG if big_endian else LITTLE
        self._most = MAX_ELEMENTS if most_elements is None else most_elements
        self._wanted = wanted
        self._data: bytes | memoryview = b""  # from byte `_base` on
        self._base = 0
        self._is_whole = False
        self._at = 0
        self._previous = _FLOOR
        self._count = 0
        self._is_amid_fragments = False
        self._frames = [_Frame(False, length, False, implicit, wanted.top, layout)]
        self._top: dict[str, Value] = {}
        self._nested: dict[str, Value] = {}

    def feed(self, piece: bytes | bytearray | memoryview) -> None:
        """Walk on over the next bytes of the data set; they are not needed any more when this returns."""
        came = self._base + len(self._data) + len(piece)
        if self._at >= came:  # they lie within a value that is passed over
            self._data, self._base = b"", came
            return
        self._data = b"".join((self._data, piece)) if self._data else memoryview(piece)
        try:
            self._run()
        finally:  # a view of a piece that is not ours must not stay
            unread = max(self._at - self._base, 0)
            self._data = bytes(self._data[unread:])
            self._base = came - len(self._data)

    def end(self) -> dict[str, Value]:
        """Return the wanted values: keyword -> value; there are no more bytes."""
        self._is_whole = True
        came = self._base + len(self._data)
        for frame in self._frames:
            if frame.end == _ENDLESS:
                frame.end = came
            elif frame.end > came:
                what = "a sequence" if frame.is_sequence else "the data set or an item"
                raise NotUnderstood(f"{what} reaches {frame.end - came} bytes too far")
        try:
            self._run()
        except struct.error:
            raise NotUnderstood("the data set ends within the header of an element") from None
        return self._nested | self._top

    def _run(self) -> None:
        """Walk as far as there are bytes."""
        frames = self._frames
        goes_on = True
        while frames and goes_on:
            frame = frames[-1]
            if self._is_amid_fragments:
                goes_on = self._fragments(frame)
            elif frame.is_sequence:
                goes_on = self._items(frame)
            elif frame.implicit:
                goes_on = self._implicit_elements(frame)
            else:
                goes_on = self._explicit_elements(frame)

    # -- elements; positions are counted from `_base` within these two

    def _explicit_elements(self, frame: _Frame) -> bool:
        """Walk on to the next sequence, to the end of this data set or item, or of the bytes (PS3.5 7.1.2)."""
        data, have, most = self._data, self._have(), self._wanted.most
        end, wanted, short = frame.end - self._base, frame.wanted, SHORT_VR
        header, long_length = frame.layout.explicit.unpack_from, frame.layout.length.unpack_from
        at, count = self._at - self._base, frame.count
        ordered = len(self._frames) == 1
        found, previous = (self._top, self._previous) if ordered else (self._nested, _FLOOR)
        stop = min(end, have - HEADER_BYTES + 1)
        while at < stop:
            group, element, vr, length = header(data, at)
            tag = group << 16 | element
            if tag <= previous:
                raise _misplaced(tag)
            start = at + 8
            if vr not in short:
                if (vr not in LONG_VR or tag >= ITEM) and self._is_left(frame, tag, vr, at, count):
                    return True
                start, length = at + 12, long_length(data, at + 8)[0]
                if length == UNDEFINED_LENGTH or vr == b"SQ":
                    self._pause(frame, start, count + 1, tag)
                    self._enter(frame, tag, vr, length)
                    return True
            elif tag >= ITEM:
                raise NotUnderstood(f"{name_of(tag)} stands at byte {at + self._base} as if it were an element")
            if tag in wanted and (keyword := wanted[tag]) not in found:
                kept = start + min(length, most)
                if kept > have:
                    break
                found[keyword] = Value(vr, length, bytes(data[start:kept]))
            previous = tag if ordered else _FLOOR
            at = start + length
            count += 1
            if count > MAX_SIBLINGS:
                break
        self._pause(frame, at, count, previous)
        return at >= end and self._end(frame)

    def _implicit_elements(self, frame: _Frame) -> bool:
        """Walk on to the next sequence, to the end of this data set or item, or of the bytes (PS3.5 7.1.3)."""
        data, have, most = self._data, self._have(), self._wanted.most
        end, wanted, sequences = frame.end - self._base, frame.wanted, SEQUENCE_TAGS
        header, at, count = frame.layout.implicit.unpack_from, self._at - self._base, frame.count
        ordered = len(self._frames) == 1
        found, previous = (self._top, self._previous) if ordered else (self._nested, _FLOOR)
        stop = min(end, have - HEADER_BYTES + 1)
        while at < stop:
            group, element, length = header(data, at)
            tag = group << 16 | element
            if tag <= previous:
                raise _misplaced(tag)
            start = at + 8
            if group == ITEM >> 16:
                self._leave_item(frame, tag, at, count)
                return True
            if length == UNDEFINED_LENGTH or tag in sequences:
                if not may_hold_items(tag):
                    raise NotUnderstood(f"element {name_of(tag)} has no length, and is no sequence")
                self._pause(frame, start, count + 1, tag)
                self._enter(frame, tag, b"SQ", length)
                return True
            if tag in wanted and (keyword := wanted[tag]) not in found:
                kept = start + min(length, most)
                if kept > have:
                    break
                found[keyword] = Value(b"", length, bytes(data[start:kept]))
            previous = tag if ordered else _FLOOR
            at = start + length
            count += 1
            if count > MAX_SIBLINGS:
                break
        self._pause(frame, at, count, previous)
        return at >= end and self._end(frame)

    def _have(self) -> int:
        """Return how many bytes there are; where no more come, none is waited for."""
        return _ENDLESS if self._is_whole else len(self._data)

    def _pause(self, frame: _Frame, at: int, count: int, previous: int) -> None:
        """Note how far this data set or item was walked."""
        self._at = at + self._base
        self._add(frame, count)
        if len(self._frames) == 1:
            self._previous = previous

    def _add(self, frame: _Frame, count: int) -> None:
        """Note that a data set, item or sequence has so many elements or items by now."""
        self._count += count - frame.count
        frame.count = count
        beside = MAX_ITEMS if frame.is_sequence else MAX_SIBLINGS
        if count > beside or self._count > self._most:
            most = beside if count > beside else self._most
            raise NotUnderstood(f"the data set has more than {most} elements or items")

    def _end(self, frame: _Frame) -> bool:
        """Leave the data set or item whose last element ended here, if it ended where it said."""
        if self._at > frame.end:
            raise NotUnderstood(
                f"the last element reaches {self._at - frame.end} bytes beyond the end of what holds it"
            )
        if frame.undefined:
            raise NotUnderstood("an item of undefined length has no delimiter")
        self._frames.pop()
        return True

    def _is_left(self, frame: _Frame, tag: int, vr: bytes, at: int, count: int) -> bool:
        """Leave the item where this is its delimiter; a VR to come has a length of 32 bits (PS3.5 7.1.2)."""
        if tag == ITEM_DELIMITATION:
            self._leave_item(frame, tag, at, count)
            return True
        if not (vr.isalpha() and vr.isupper()) or tag >= ITEM:
            raise NotUnderstood(f"element {name_of(tag)} at byte {at + self._base} has no value representation")
        return False

    def _leave_item(self, frame: _Frame, tag: int, at: int, count: int) -> None:
        begun = at + self._base
        if tag != ITEM_DELIMITATION or not frame.undefined:
            raise NotUnderstood(f"{name_of(tag)} stands at byte {begun} where no such item is open")
        _check_delimiter(frame.layout.length.unpack_from(self._data, at + 4)[0], begun)
        self._pause(frame, at + 8, count, self._previous)
        self._frames.pop()
        if self._at > frame.end:
            raise NotUnderstood("the data set ends within an item delimiter")

    # -- sequences and fragments; positions are those in the data set

    def _enter(self, frame: _Frame, tag: int, vr: bytes, length: int) -> None:
        """Enter a sequence, or encapsulated pixel data, whose value begins here."""
        if vr not in {b"SQ", b"UN"}:
            if tag != PIXEL_DATA or vr not in {b"OB", b"OW"}:  # PS3.5 A.4
                raise NotUnderstood(f"element {name_of(tag)} has no length, and is neither sequence nor pixel data")
            self._is_amid_fragments = True
            return
        if len(self._frames) > 2 * MAX_NESTING:
            raise NotUnderstood(f"sequences are nested deeper than {MAX_NESTING}")
        undefined = length == UNDEFINED_LENGTH
        end = frame.end if undefined else self._at + length
        if end > frame.end:
            raise NotUnderstood(f"sequence {name_of(tag)} reaches {end - frame.end} bytes too far")
        # The content of an UN of undefined length is in implicit VR little endian (PS3.5 6.2.2 note 2).
        implicit, layout = (True, LITTLE) if vr == b"UN" else (frame.implicit, frame.layout)
        wanted = self._wanted.within.get(tag, _NOTHING) if len(self._frames) == 1 else frame.wanted
        self._frames.append(_Frame(True, end, undefined, implicit, wanted, layout))

    def _items(self, frame: _Frame) -> bool:
        """Enter the next item that is not empty, leave the sequence, or come to the end of the bytes (PS3.5 7.5)."""
        length = 0
        while length == 0:
            at = self._at
            if at == frame.end and not frame.undefined:
                self._frames.pop()
                return True
            if at + 8 > frame.end:
                raise NotUnderstood("a sequence has no delimiter, or ends within the header of an item")
            if at + 8 > self._base + self._have():
                return False
            group, element, length = frame.layout.implicit.unpack_from(self._data, at - self._base)
            tag = group << 16 | element
            self._at = at + 8
            if tag == SEQUENCE_DELIMITATION and frame.undefined:
                _check_delimiter(length, at)
                self._frames.pop()
                return True
            if tag != ITEM:
                raise NotUnderstood(f"a sequence holds {name_of(tag)} at byte {at} where an item belongs")
            self._add(frame, frame.count + 1)
        undefined = length == UNDEFINED_LENGTH
        end = frame.end if undefined else self._at + length
        if end > frame.end:
            raise NotUnderstood(f"an item reaches {end - frame.end} bytes beyond the end of its sequence")
        self._frames.append(_Frame(False, end, undefined, frame.implicit, frame.wanted, frame.layout))
        return True

    def _fragments(self, frame: _Frame) -> bool:
        """Walk on to where encapsulated pixel data ends, or to the end of the bytes (PS3.5 A.4)."""
        header, data, base, at = frame.layout.implicit.unpack_from, self._data, self._base, self._at
        stop = min(frame.end, base + self._have()) - 8
        while at <= stop:
            group, element, length = header(data, at - base)
            tag = group << 16 | element
            at += 8
            if tag == SEQUENCE_DELIMITATION:
                _check_delimiter(length, at - 8)
                self._at, self._is_amid_fragments = at, False
                return True
            if tag != ITEM or length == UNDEFINED_LENGTH:
                raise NotUnderstood(f"encapsulated pixel data holds {name_of(tag)} at byte {at - 8}, no fragment")
            at += length
            self._count += 1
            if self._count > self._most:
                break
        self._at = at
        if at + 8 > frame.end or self._count > self._most:
            raise NotUnderstood("encapsulated pixel data ends before its delimiter, or has too many fragments")
        return False


def _check_delimiter(length: int, at: int) -> None:
    """Refuse what follows a delimiter and might be taken for its value (PS3.5 Table 7.5-1: the length is 0)."""
    if length:
        raise NotUnderstood(f"the delimiter at byte {at} has a length")


def _misplaced(tag: int) -> NotUnderstood:
    if tag <= _FLOOR:
        return NotUnderstood(f"element {name_of(tag)} does not belong in a data set")
    return NotUnderstood(f"element {name_of(tag)} stands twice or out of order")
