"""Tell whether two files of one SOP Instance UID are the same instance, or two that disagree.

The same are two that differ only in transfer syntax, group lengths, padding and file meta information (DESIGN: once).
Values are compared as bytes in little endian order, so nothing is decoded and no value is too odd to compare. Where
the pixel data are encoded differently only their decoded samples can tell: `pacs_ai.infer.pixel_equality`.

Of a file only where its elements lie is in memory, and values a piece at a time; what comparing costs is bounded
(`Allowance`), since any peer can send a known UID with other content.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from pydicom.datadict import dictionary_VR
from pydicom.uid import ExplicitVRBigEndian, ImplicitVRLittleEndian

from pacs_ai.dicom.elements import (
    BIG,
    HEADER_BYTES,
    ITEM,
    ITEM_DELIMITATION,
    LITTLE,
    PIXEL_DATA,
    SEQUENCE_DELIMITATION,
    SEQUENCE_TAGS,
    SHORT_VR,
    UNDEFINED_LENGTH,
)
from pacs_ai.dicom.piecewise import PIECE, Allowance, Source, Spent, opened, prove
from pacs_ai.errors import NotUnderstood

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from pacs_ai.dicom.elements import Layout

#: What comparing two files may cost, and what comparing several in a row may (`Allowance`). An enhanced multi-frame
#: image of 1000 frames has some 60,000 elements; so many as these take a second or two.
MAX_ELEMENTS, _ALL_ELEMENTS = 250_000, 600_000
MAX_PIXEL_BYTES, _SIZE = 1 << 30, 256 << 20
#: Texts of up to so many bytes are compared without their padding; longer ones are the same or are not compared.
_LONGEST_TEXT = 1 << 20
#: Values of up to so many bytes are read together with what lies around them.
_SHORT = 1 << 12

#: Data Set Trailing Padding, Extended Offset Table and its Lengths: they say nothing about the instance.
_LEFT_OUT = frozenset({0xFFFCFFFC, 0x7FE00001, 0x7FE00002})
_PHOTOMETRIC_INTERPRETATION = 0x00280004
#: With Planar Configuration it follows from how colour pixels are encoded (PS3.5 8.2).
_ENCODING_OF_COLOUR = frozenset({_PHOTOMETRIC_INTERPRETATION, 0x00280006})
_JUDGED_APART = _ENCODING_OF_COLOUR | {PIXEL_DATA}
_TEXT_VRS = frozenset(b"AE AS CS DA DS DT IS LO LT PN SH ST TM UC UI UR UT".split())
_BINARY_VRS = frozenset(b"OB OW".split())
_WORD_BYTES = {
    vr: size
    for size, vrs in {2: b"AT OW SS US", 4: b"FL OF OL SL UL", 8: b"FD OD OV SV UV"}.items()
    for vr in vrs.split()
}
#: A sequence's header in implicit VR, to prove whole what came as an unknown value and may be a sequence.
_PROBE = struct.Struct("<HHL")


class Sameness(Enum):
    """What two files of one SOP Instance UID are to each other."""

    SAME = "same"
    PIXELS_UNDECIDED = "all but the encoding of the pixel data is the same, or these are too long to be compared"
    DIFFERENT = "different"
    NOT_COMPARED = "more than is compared"
    UNREADABLE = "one of them cannot be read any more"


def allowance() -> Allowance:
    """Return what several comparisons in a row may cost."""
    return Allowance(_ALL_ELEMENTS, MAX_ELEMENTS, _SIZE, MAX_PIXEL_BYTES)


def compare(a: Path, b: Path, allowed: Allowance | None = None) -> Sameness:
    """Compare two DICOM files, without decoding pixel data.

    Parameters
    ----------
    allowed
        What comparing may still cost; that of one pair where it is None.

    Raises
    ------
    NotUnderstood
        One of them is no whole DICOM file.
    OSError
        One of them cannot be read.
    """
    allowed = allowance() if allowed is None else allowed
    allowed.begin()
    try:
        with opened(a, allowed) as one, opened(b, allowed) as other:
            return _Comparison(_Side(one), _Side(other)).verdict()
    except Spent:
        return Sameness.NOT_COMPARED


# -- what is compared


class _Value(NamedTuple):
    """Where a value lies; its stated VR, b"" in implicit VR; the size of the words whose bytes are to be swapped."""

    vr: bytes
    start: int
    length: int
    word: int = 1


@dataclass(frozen=True, slots=True)
class _Items:
    """A sequence's items."""

    items: tuple[_DataSet, ...]


@dataclass(frozen=True, slots=True)
class _Fragments:
    """Where encapsulated pixel data lies, without its offset table: (start, length) of each fragment."""

    places: tuple[tuple[int, int], ...]

    @property
    def length(self) -> int:
        """Bytes of all."""
        return sum(length for _, length in self.places)


_Element = _Value | _Items | _Fragments
_DataSet = dict[int, _Element]


class _Comparison:
    """Compares two files; of two elements or data sets the first is always the first file's."""

    def __init__(self, a: _Side, b: _Side) -> None:
        self._a, self._b = a, b

    def verdict(self) -> Sameness:
        return self._data_sets(self._a.whole(), self._b.whole(), self._pixels)

    def _data_sets(
        self, a: _DataSet, b: _DataSet, compare_pixels: Callable[[_Element, _Element], Sameness]
    ) -> Sameness:
        """Compare all else first: it is short, and where it differs the pixel data need not be read."""
        if a.keys() - _ENCODING_OF_COLOUR != b.keys() - _ENCODING_OF_COLOUR:
            return Sameness.DIFFERENT
        if not all(self._is_same(tag, a[tag], b[tag]) for tag in a if tag not in _JUDGED_APART):
            return Sameness.DIFFERENT
        coloured = [tag for tag in _ENCODING_OF_COLOUR if tag in a or tag in b]
        is_like = all(tag in a and tag in b and self._is_same(tag, a[tag], b[tag]) for tag in coloured)
        if PIXEL_DATA not in a or not (is_like or (self._a.is_colour(a) and self._b.is_colour(b))):
            return _verdict(is_like)
        pixels = compare_pixels(a[PIXEL_DATA], b[PIXEL_DATA])
        if is_like or (pixels is Sameness.PIXELS_UNDECIDED and _are_coded(a[PIXEL_DATA], b[PIXEL_DATA])):
            return pixels
        return Sameness.DIFFERENT

    def _pixels(self, a: _Element, b: _Element) -> Sameness:
        """Compare the pixel data of the whole, unless they are too long."""
        if isinstance(a, _Items) or isinstance(b, _Items) or self._a.source.allowance.grant(a.length + b.length):
            return self._elements(PIXEL_DATA, a, b)
        if not _are_coded(a, b) and _even(a.length) != _even(b.length):
            return Sameness.DIFFERENT
        return Sameness.PIXELS_UNDECIDED

    def _elements(self, tag: int, a: _Element, b: _Element) -> Sameness:
        if isinstance(a, _Items) or isinstance(b, _Items):
            return _verdict(self._are_same_items(a, b))
        if isinstance(a, _Fragments) and isinstance(b, _Fragments):
            return Sameness.SAME if self._have_same_bytes(a, b) else Sameness.PIXELS_UNDECIDED
        if isinstance(a, _Fragments) or isinstance(b, _Fragments):
            return Sameness.PIXELS_UNDECIDED
        return _verdict(self._are_same_values(tag, a, b))

    def _is_same(self, tag: int, a: _Element, b: _Element) -> bool:
        return self._elements(tag, a, b) is Sameness.SAME

    def _are_same_items(self, a: _Element, b: _Element) -> bool:
        items_a, items_b = self._a.items_of(a), self._b.items_of(b)
        if items_a is None or items_b is None or len(items_a) != len(items_b):
            return False

        def compare_pixels(a: _Element, b: _Element) -> Sameness:
            return self._elements(PIXEL_DATA, a, b)

        return all(
            self._data_sets(one, other, compare_pixels) is Sameness.SAME
            for one, other in zip(items_a, items_b, strict=True)
        )

    def _are_same_values(self, tag: int, a: _Value, b: _Value) -> bool:
        is_short = a.length <= _SHORT >= b.length
        if is_short:
            raw_a, raw_b = self._a.raw(a), self._b.raw(b)
            if raw_a == raw_b:
                return True
        elif a.length == b.length and self._have_same_bytes(a, b):
            return True
        vr = next((stated for stated in (a.vr, b.vr) if stated not in {b"", b"UN"}), b"") or _vr_of(tag)
        if is_short:
            return _unpadded(vr, raw_a) == _unpadded(vr, raw_b)
        if vr in _TEXT_VRS:
            if max(a.length, b.length) > _LONGEST_TEXT:
                raise Spent
            return _unpadded(vr, self._a.raw(a)) == _unpadded(vr, self._b.raw(b))
        is_padded = a.length != b.length and _even(a.length) == _even(b.length)
        return is_padded and (vr in _BINARY_VRS or not vr) and self._are_same_but_for_a_byte(a, b)

    def _are_same_but_for_a_byte(self, a: _Value, b: _Value) -> bool:
        """Compare values of which one has a byte more, its padding."""
        both = min(a.length, b.length)
        cut_a, cut_b = (_Value(value.vr, value.start, both, value.word) for value in (a, b))
        side, longer = (self._a, a) if a.length > b.length else (self._b, b)
        if longer.word != 1:
            raise Spent
        return self._have_same_bytes(cut_a, cut_b) and side.source.read(longer.start + both, 1) == b"\0"

    def _have_same_bytes(self, a: _Value | _Fragments, b: _Value | _Fragments) -> bool:
        if a.length != b.length:
            return False
        pieces_a, pieces_b = self._a.pieces(a), self._b.pieces(b)
        rest_a = rest_b = memoryview(b"")
        while True:
            rest_a = rest_a or memoryview(next(pieces_a, b""))
            rest_b = rest_b or memoryview(next(pieces_b, b""))
            both = min(len(rest_a), len(rest_b))
            if not both or bytes(rest_a[:both]) != bytes(rest_b[:both]):
                return not both
            rest_a, rest_b = rest_a[both:], rest_b[both:]


def _are_coded(a: _Element, b: _Element) -> bool:
    return isinstance(a, _Fragments) or isinstance(b, _Fragments)


def _even(length: int) -> int:
    return length + length % 2


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


class _Side:
    """One of the two files: where its elements lie, and what is read of them."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def whole(self) -> _DataSet:
        """Return the data set, having proved it whole; recursion then goes no deeper than its nesting."""
        implicit = self.source.transfer_syntax_uid == ImplicitVRLittleEndian
        big_endian = self.source.transfer_syntax_uid == ExplicitVRBigEndian
        prove(self.source, 0, self.source.size, implicit=implicit, big_endian=big_endian)
        return self._data_set(0, self.source.size, BIG if big_endian else LITTLE, implicit=implicit)[0]

    def raw(self, value: _Value) -> bytes:
        """Return a value's bytes in little endian order."""
        if value.length > _SHORT:
            return b"".join(self.pieces(value))
        data, at = self.source.around(value.start, value.length)
        return _swapped(value.word, data[at : at + value.length])

    def pieces(self, element: _Value | _Fragments) -> Iterator[bytes]:
        """Give the bytes of a value, or of all fragments, in little endian order and in pieces."""
        places: Iterable[tuple[int, int]]
        places, word = (
            (element.places, 1)
            if isinstance(element, _Fragments)
            else (((element.start, element.length),), element.word)
        )
        for start, length in places:
            for at in range(start, start + length, PIECE):
                yield _swapped(word, self.source.read(at, min(PIECE, start + length - at)))

    def is_colour(self, ds: _DataSet) -> bool:
        """Tell whether an image has colours."""
        photometric = ds.get(_PHOTOMETRIC_INTERPRETATION)
        if not isinstance(photometric, _Value):
            return False
        return self.raw(_Value(photometric.vr, photometric.start, min(photometric.length, 3))) in {b"RGB", b"YBR"}

    def items_of(self, element: _Element) -> tuple[_DataSet, ...] | None:
        """Return a sequence's items; also those of an unknown value that holds one in implicit VR (PS3.5 6.2.2)."""
        if isinstance(element, _Items):
            return element.items
        if isinstance(element, _Fragments) or element.vr not in {b"", b"UN"}:
            return None
        sequence = next(iter(SEQUENCE_TAGS))
        head = _PROBE.pack(sequence >> 16, sequence & 0xFFFF, element.length)
        try:
            prove(self.source, element.start, element.length, implicit=True, big_endian=False, head=head)
        except NotUnderstood:
            return None
        return self._items(element.start, element.start + element.length, LITTLE, implicit=True)[0].items

    def _data_set(self, at: int, end: int, layout: Layout, *, implicit: bool) -> tuple[_DataSet, int]:
        """Return the elements from an offset on that say something, and where they end."""
        elements: _DataSet = {}
        while at < end:
            tag, vr, start, length = self._header(at, layout, implicit=implicit)
            if tag == ITEM_DELIMITATION:
                return elements, start
            element, at = self._element(tag, vr, start, length, layout, implicit=implicit)
            if tag & 0xFFFF and tag not in _LEFT_OUT:
                elements[tag] = element
        return elements, at

    def _header(self, at: int, layout: Layout, *, implicit: bool) -> tuple[int, bytes, int, int]:
        """Return tag, stated VR, where the value starts, and its length."""
        data, here = self.source.around(at, HEADER_BYTES)
        group, element, length = layout.implicit.unpack_from(data, here)
        tag = group << 16 | element
        if implicit or group == ITEM >> 16:
            return tag, b"", at + 8, length
        _, _, vr, length = layout.explicit.unpack_from(data, here)
        if vr in SHORT_VR:
            return tag, vr, at + 8, length
        return tag, vr, at + 12, layout.length.unpack_from(data, here + 8)[0]

    def _element(
        self, tag: int, vr: bytes, start: int, length: int, layout: Layout, *, implicit: bool
    ) -> tuple[_Element, int]:
        undefined = length == UNDEFINED_LENGTH
        if vr == b"SQ" or (undefined and vr in {b"", b"UN"}) or (not vr and tag in SEQUENCE_TAGS):
            end = self.source.size if undefined else start + length
            # the content of an UN of undefined length is in implicit VR little endian (PS3.5 6.2.2 note 2)
            inner = LITTLE if vr == b"UN" else layout
            return self._items(start, end, inner, implicit=implicit or vr == b"UN")
        if undefined:
            return self._fragments(start, layout)
        word = _WORD_BYTES.get(vr, 1) if layout is BIG else 1
        return _Value(vr, start, length, 1 if length % word else word), start + length

    def _items(self, at: int, end: int, layout: Layout, *, implicit: bool) -> tuple[_Items, int]:
        items: list[_DataSet] = []
        while at < end:
            tag, _, start, length = self._header(at, layout, implicit=True)
            if tag == SEQUENCE_DELIMITATION:
                return _Items(tuple(items)), start
            end_of_item = self.source.size if length == UNDEFINED_LENGTH else start + length
            item, at = self._data_set(start, end_of_item, layout, implicit=implicit)
            items.append(item)
        return _Items(tuple(items)), at

    def _fragments(self, at: int, layout: Layout) -> tuple[_Fragments, int]:
        places = []
        tag, _, start, length = self._header(at, layout, implicit=True)
        while tag != SEQUENCE_DELIMITATION:
            places.append((start, length))
            tag, _, start, length = self._header(start + length, layout, implicit=True)
        return _Fragments(tuple(places[1:])), start


def _swapped(word: int, raw: bytes) -> bytes:
    """Return whole words with the bytes of each in the other order."""
    if word == 1:
        return raw
    swapped = bytearray(len(raw))
    for place in range(word):
        swapped[place::word] = raw[word - 1 - place :: word]
    return bytes(swapped)
