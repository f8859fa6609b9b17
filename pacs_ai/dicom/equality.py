"""Tell whether two files of one SOP Instance UID are the same instance, or two that disagree.

The same are two that differ only in transfer syntax, group lengths, padding and file meta information (DESIGN: once).
Values are compared as bytes in little endian order, so nothing is decoded and no value is too odd to compare. Where
the pixel data are encoded differently only their decoded samples can tell: `pacs_ai.infer.pixel_equality`.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from pydicom.datadict import dictionary_VR
from pydicom.uid import ExplicitVRBigEndian, ImplicitVRLittleEndian

from pacs_ai.dicom import part10
from pacs_ai.dicom.attributes import DEFLATED, inflate
from pacs_ai.dicom.elements import (
    ITEM,
    ITEM_DELIMITATION,
    PIXEL_DATA,
    SEQUENCE_DELIMITATION,
    SEQUENCE_TAGS,
    SHORT_VR,
    UNDEFINED_LENGTH,
)
from pacs_ai.dicom.structure import Wanted, locate
from pacs_ai.errors import NotUnderstood

if TYPE_CHECKING:
    from pathlib import Path

#: Data Set Trailing Padding, Extended Offset Table and its Lengths: they say nothing about the instance.
_LEFT_OUT = frozenset({0xFFFCFFFC, 0x7FE00001, 0x7FE00002})
_PHOTOMETRIC_INTERPRETATION = 0x00280004
#: With Planar Configuration it follows from how colour pixels are encoded (PS3.5 8.2).
_ENCODING_OF_COLOUR = frozenset({_PHOTOMETRIC_INTERPRETATION, 0x00280006})
_TEXT_VRS = frozenset(b"AE AS CS DA DS DT IS LO LT PN SH ST TM UC UI UR UT".split())
_BINARY_VRS = frozenset(b"OB OW".split())
_WORD_BYTES = {
    vr: size
    for size, vrs in {2: b"AT OW SS US", 4: b"FL OF OL SL UL", 8: b"FD OD OV SV UV"}.items()
    for vr in vrs.split()
}
#: A sequence's header in implicit VR, to prove whole what came as an unknown value and may be a sequence.
_PROBE = struct.Struct("<HHL")
_NOTHING_WANTED = Wanted({}, {})


class Sameness(Enum):
    """What two files of one SOP Instance UID are to each other."""

    SAME = "same"
    PIXELS_UNDECIDED = "all but the encoding of the pixel data is the same"
    DIFFERENT = "different"


def compare(a: Path, b: Path) -> Sameness:
    """Compare two DICOM files, without decoding pixel data.

    Raises
    ------
    NotUnderstood
        One of them is no whole DICOM file.
    """
    return _compare_data_sets(_parse_file(a), _parse_file(b))


# -- what is compared


@dataclass(frozen=True)
class _Value:
    """A value as encoded in little endian order; its stated VR, b"" in implicit VR."""

    vr: bytes
    raw: bytes


@dataclass(frozen=True)
class _Items:
    """A sequence's items."""

    items: tuple[_DataSet, ...]


@dataclass(frozen=True)
class _Fragments:
    """Encapsulated pixel data without its offset table, fragments joined."""

    joined: bytes


_Element = _Value | _Items | _Fragments
_DataSet = dict[int, _Element]


def _compare_data_sets(a: _DataSet, b: _DataSet) -> Sameness:
    if a.keys() - _ENCODING_OF_COLOUR != b.keys() - _ENCODING_OF_COLOUR:
        return Sameness.DIFFERENT
    pixels = _compare_elements(PIXEL_DATA, a[PIXEL_DATA], b[PIXEL_DATA]) if PIXEL_DATA in a else Sameness.SAME
    recoded = pixels is Sameness.PIXELS_UNDECIDED and _is_colour(a) and _is_colour(b)
    for tag in (a.keys() | b.keys()) - (_ENCODING_OF_COLOUR if recoded else set()) - {PIXEL_DATA}:
        if tag not in a or tag not in b or _compare_elements(tag, a[tag], b[tag]) is not Sameness.SAME:
            return Sameness.DIFFERENT
    return pixels


def _is_colour(ds: _DataSet) -> bool:
    photometric = ds.get(_PHOTOMETRIC_INTERPRETATION)
    return isinstance(photometric, _Value) and photometric.raw.startswith((b"RGB", b"YBR"))


def _compare_elements(tag: int, a: _Element, b: _Element) -> Sameness:
    if isinstance(a, _Items) or isinstance(b, _Items):
        return _verdict(_same_items(a, b))
    if isinstance(a, _Fragments) or isinstance(b, _Fragments):
        return Sameness.SAME if a == b else Sameness.PIXELS_UNDECIDED
    vr = next((stated for stated in (a.vr, b.vr) if stated not in {b"", b"UN"}), b"") or _vr_of(tag)
    return _verdict(_unpadded(vr, a.raw) == _unpadded(vr, b.raw))


def _same_items(a: _Element, b: _Element) -> bool:
    items_a, items_b = (_as_items(element) for element in (a, b))
    if items_a is None or items_b is None or len(items_a) != len(items_b):
        return False
    return all(
        _compare_data_sets(item_a, item_b) is Sameness.SAME for item_a, item_b in zip(items_a, items_b, strict=True)
    )


def _as_items(element: _Element) -> tuple[_DataSet, ...] | None:
    """Return a sequence's items; also those of an unknown value that holds a sequence in implicit VR (PS3.5 6.2.2)."""
    if isinstance(element, _Items):
        return element.items
    if isinstance(element, _Fragments) or element.vr not in {b"", b"UN"}:
        return None
    sequence = next(iter(SEQUENCE_TAGS))
    probe = _PROBE.pack(sequence >> 16, sequence & 0xFFFF, len(element.raw)) + element.raw
    try:
        locate(probe, _NOTHING_WANTED, implicit=True)
    except NotUnderstood:
        return None
    (parsed,) = _Parser(memoryview(probe), big_endian=False).data_set(0, len(probe), implicit=True)[0].values()
    return parsed.items if isinstance(parsed, _Items) else None


def _unpadded(vr: bytes, raw: bytes) -> bytes:
    """Return the value without its padding (PS3.5 6.2): trailing spaces and NULs of text, an odd byte of OB and OW."""
    if vr in _TEXT_VRS:
        return b"\\".join([value.rstrip(b" \0") for value in raw.split(b"\\")])
    return raw + b"\0" * (len(raw) % 2) if vr in _BINARY_VRS or not vr else raw


def _vr_of(tag: int) -> bytes:
    try:
        return dictionary_VR(tag).encode()
    except KeyError:
        return b""


def _verdict(same: bool) -> Sameness:
    return Sameness.SAME if same else Sameness.DIFFERENT


# -- reading


def _parse_file(path: Path) -> _DataSet:
    file = part10.read(path)
    data: memoryview = file.data_set
    if file.transfer_syntax_uid in DEFLATED:
        data = memoryview(inflate(data))
    implicit = file.transfer_syntax_uid == ImplicitVRLittleEndian
    big_endian = file.transfer_syntax_uid == ExplicitVRBigEndian
    locate(data, _NOTHING_WANTED, implicit=implicit, big_endian=big_endian)
    return _Parser(data, big_endian=big_endian).data_set(0, len(data), implicit=implicit)[0]


class _Parser:
    """Reads a data set that `locate` has proved whole; recursion goes no deeper than its nesting."""

    def __init__(self, data: memoryview, *, big_endian: bool) -> None:
        self.data = data
        self.big_endian = big_endian
        order = ">" if big_endian else "<"
        self.explicit = struct.Struct(order + "HH2sH")
        self.implicit = struct.Struct(order + "HHL")
        self.long = struct.Struct(order + "L")

    def data_set(self, at: int, end: int, *, implicit: bool) -> tuple[_DataSet, int]:
        """Return the elements from an offset on that say something, and where they end."""
        elements: _DataSet = {}
        while at < end:
            tag, vr, start, length = self._header(at, implicit=implicit)
            if tag == ITEM_DELIMITATION:
                return elements, start
            element, at = self._element(tag, vr, start, length, implicit=implicit)
            if tag & 0xFFFF and tag not in _LEFT_OUT:
                elements[tag] = element
        return elements, at

    def _header(self, at: int, *, implicit: bool) -> tuple[int, bytes, int, int]:
        """Return tag, stated VR, where the value starts, and its length."""
        group, element, length = self.implicit.unpack_from(self.data, at)
        tag = group << 16 | element
        if implicit or group == ITEM >> 16:
            return tag, b"", at + 8, length
        _, _, vr, length = self.explicit.unpack_from(self.data, at)
        if vr in SHORT_VR:
            return tag, vr, at + 8, length
        return tag, vr, at + 12, self.long.unpack_from(self.data, at + 8)[0]

    def _element(self, tag: int, vr: bytes, start: int, length: int, *, implicit: bool) -> tuple[_Element, int]:
        undefined = length == UNDEFINED_LENGTH
        if vr == b"SQ" or (undefined and vr in {b"", b"UN"}) or (not vr and tag in SEQUENCE_TAGS):
            end = len(self.data) if undefined else start + length
            return self._items(start, end, implicit=implicit or vr == b"UN")
        if undefined:
            return self._fragments(start)
        raw = bytes(self.data[start : start + length])
        return _Value(vr, _swapped(vr, raw) if self.big_endian else raw), start + length

    def _items(self, at: int, end: int, *, implicit: bool) -> tuple[_Items, int]:
        items: list[_DataSet] = []
        while at < end:
            tag, _, start, length = self._header(at, implicit=True)
            if tag == SEQUENCE_DELIMITATION:
                return _Items(tuple(items)), start
            item, at = self.data_set(
                start, len(self.data) if length == UNDEFINED_LENGTH else start + length, implicit=implicit
            )
            items.append(item)
        return _Items(tuple(items)), at

    def _fragments(self, at: int) -> tuple[_Fragments, int]:
        fragments = []
        tag, _, start, length = self._header(at, implicit=True)
        while tag != SEQUENCE_DELIMITATION:
            fragments.append(self.data[start : start + length])
            tag, _, start, length = self._header(start + length, implicit=True)
        return _Fragments(b"".join(fragments[1:])), start


def _swapped(vr: bytes, raw: bytes) -> bytes:
    """Return a big endian value in little endian order."""
    size = _WORD_BYTES.get(vr, 1)
    if size == 1 or len(raw) % size:
        return raw
    swapped = bytearray(len(raw))
    for place in range(size):
        swapped[place::size] = raw[size - 1 - place :: size]
    return bytes(swapped)
