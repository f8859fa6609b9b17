"""Explicit VR Little Endian as plain bytes: what is too much for a tree of data sets is written and read directly."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from pacs_ai.errors import NotUnderstood

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Value representations with a 32 bit length (PS3.5 7.1.2).
LONG_LENGTH = frozenset(
    {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"},
)
UNDEFINED = 0xFFFFFFFF
ITEM = 0xFFFEE000
SEQUENCE_DELIMITER = struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)


def element(tag: int, vr: bytes, value: bytes) -> bytes:
    """Return a data element in Explicit VR Little Endian (PS3.5 7.1.2), its value padded to even length."""
    if len(value) % 2:
        value += b"\x00" if vr in {b"UI", b"OB"} else b" "
    return element_head(tag, vr, len(value)) + value


def element_head(tag: int, vr: bytes, length: int) -> bytes:
    """Return tag, VR and length of a data element whose value follows."""
    if vr in LONG_LENGTH:
        return struct.pack("<HH2sHI", tag >> 16, tag & 0xFFFF, vr, 0, length)
    return struct.pack("<HH2sH", tag >> 16, tag & 0xFFFF, vr, length)


def item(content: bytes) -> bytes:
    """Return a sequence item of defined length (PS3.5 7.5.1)."""
    return item_head(len(content)) + content


def item_head(length: int) -> bytes:
    """Return tag and length of an item whose content follows."""
    return struct.pack("<HHI", 0xFFFE, 0xE000, length)


def sequence(tag: int, *contents: bytes) -> bytes:
    """Return a sequence of items of defined length."""
    return element(tag, b"SQ", b"".join(item(content) for content in contents))


def elements(encoded: bytes, start: int, end: int) -> Iterator[tuple[int, bytes, int, int]]:
    """Yield (tag, VR, start, end) of the value of each data element between two offsets, nested ones not.

    Encapsulated pixel data, of undefined length, yields its items without their delimiter.

    Raises
    ------
    NotUnderstood
        Where an element ends beyond the data or a sequence has an undefined length, which this package never writes.
    """
    while start < end:
        group, number, vr, length = struct.unpack_from("<HH2sH", encoded, start)
        start += 8
        if vr in LONG_LENGTH:
            (length,) = struct.unpack_from("<I", encoded, start)
            start += 4
        closing = 0
        if length == UNDEFINED and vr == b"OB":
            length, closing = _fragments_end(encoded, start, end) - start, len(SEQUENCE_DELIMITER)
        if length == UNDEFINED or start + length > end:
            raise NotUnderstood(f"the element ({group:04X},{number:04X}) has no end")
        yield group << 16 | number, vr, start, start + length
        start += length + closing


def _fragments_end(encoded: bytes, start: int, end: int) -> int:
    """Return where the Sequence Delimitation Item of encapsulated pixel data begins (PS3.5 A.4)."""
    while start + len(SEQUENCE_DELIMITER) <= end:
        if encoded[start : start + len(SEQUENCE_DELIMITER)] == SEQUENCE_DELIMITER:
            return start
        start += 8 + int.from_bytes(encoded[start + 4 : start + 8], "little")
    raise NotUnderstood("the encapsulated pixel data has no end")


def items(encoded: bytes, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield (start, end) of the content of each item of a sequence's value.

    Raises
    ------
    NotUnderstood
        As `elements`.
    """
    while start < end:
        group, number, length = struct.unpack_from("<HHI", encoded, start)
        start += 8
        if (group << 16 | number) != ITEM or length == UNDEFINED or start + length > end:
            raise NotUnderstood("an item of a sequence has no end")
        yield start, start + length
        start += length


def values(
    encoded: bytes, start: int, end: int, wanted: frozenset[int], skipped: frozenset[int] = frozenset()
) -> Iterator[tuple[int, bytes]]:
    """Yield (tag, value) of the wanted tags at every depth, values as they stand; what lies under `skipped` tags not.

    Raises
    ------
    NotUnderstood
        As `elements`.
    """
    for tag, vr, first, last in elements(encoded, start, end):
        if tag in wanted:
            yield tag, encoded[first:last]
        elif vr == b"SQ" and tag not in skipped:
            for inner in items(encoded, first, last):
                yield from values(encoded, *inner, wanted, skipped)


def text(value: bytes) -> str:
    """Return an ASCII value without its padding."""
    return value.rstrip(b"\x00 ").decode("ascii")
