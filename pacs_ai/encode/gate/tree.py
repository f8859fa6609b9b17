"""The content tree of a structured report, read from its bytes: what the gate compares, and nothing else."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from pacs_ai.encode.explicit import elements, items, text
from pacs_ai.encode.gate.opened import REFERENCED_FRAME_NUMBER, REFERENCED_SOP_INSTANCE_UID, frame_numbers

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

VALUE_TYPE = 0x0040A040
CONCEPT_NAME = 0x0040A043
CONTENT = 0x0040A730
MEASURED_VALUE = 0x0040A300
NUMERIC_VALUE = 0x0040A30A
FLOATING_POINT_VALUE = 0x0040A161
TEXT_VALUE = 0x0040A160
UID_VALUE = 0x0040A124
GRAPHIC_DATA = 0x00700022
REFERENCED_FRAME_OF_REFERENCE = 0x30060024
REFERENCED_SOP = 0x00081199
REFERENCED_SEGMENT_NUMBER = 0x0062000B
CONCEPT_CODE = 0x0040A168
CODE_VALUE = 0x00080100
#: Long Code Value and URN Code Value stand in its place where 16 characters do not suffice (PS3.3 Table 8.8-1).
LONG_CODE_VALUES = frozenset({0x00080119, 0x00080120})
SCHEME = 0x00080102
SHORT_TEXT = frozenset({TEXT_VALUE, UID_VALUE, REFERENCED_FRAME_OF_REFERENCE})


@dataclass
class Node:
    """One content item (PS3.3 C.17.3).

    Parameters
    ----------
    value_type
        CONTAINER, NUM, TEXT, UIDREF, IMAGE, SCOORD, SCOORD3D ...
    concept
        Code Value and Coding Scheme Designator of its name.
    text
        Of TEXT and UIDREF items.
    code
        Code Value and Coding Scheme Designator of a CODE item.
    numbers
        The value of a NUM item, as a float where that is stated, then as it is written; the coordinates of a region.
    reference
        SOP Instance UID, frame numbers and segment number that an IMAGE item refers to.
    children
        In order.
    """

    value_type: str = ""
    concept: tuple[str, str] = ("", "")
    text: str = ""
    code: tuple[str, str] = ("", "")
    numbers: tuple[float, ...] = ()
    reference: tuple[str, tuple[int, ...], int | None] | None = None
    children: list[Node] = field(default_factory=list)

    def walk(self) -> Iterator[Node]:
        """Yield the item and all below it, parents first."""
        yield self
        for child in self.children:
            yield from child.walk()

    def named(self, concept: tuple[str, str]) -> Iterator[Node]:
        """Yield the children of that name."""
        return (child for child in self.children if child.concept == concept)

    @property
    def points(self) -> npt.NDArray[np.float64]:
        """(points, 2) of (column, row) of a region on an image."""
        return np.asarray(self.numbers, np.float64).reshape(-1, 2)


def read_tree(head: bytes, start: int, end: int) -> Node:
    """Return the content item whose elements lie between two offsets; NotUnderstood where they have no end."""
    node = Node()
    for tag, _, first, last in elements(head, start, end):
        if tag == VALUE_TYPE:
            node.value_type = text(head[first:last])
        elif tag == CONCEPT_NAME:
            node.concept = _code(head, first, last)
        elif tag == CONCEPT_CODE:
            node.code = _code(head, first, last)
        elif tag in SHORT_TEXT:
            node.text = head[first:last].rstrip(b"\x00 ").decode("ascii", "replace")
        elif tag == MEASURED_VALUE:
            node.numbers = tuple(_measured(head, first, last))
        elif tag == GRAPHIC_DATA:
            node.numbers = struct.unpack(f"<{(last - first) // 4}f", head[first:last])
        elif tag == REFERENCED_SOP:
            node.reference = _reference(head, first, last)
        elif tag == CONTENT:
            node.children = [read_tree(head, *inner) for inner in items(head, first, last)]
    return node


def _code(head: bytes, start: int, end: int) -> tuple[str, str]:
    found = {CODE_VALUE: "", SCHEME: ""}
    for inner in items(head, start, end):
        for tag, _, first, last in elements(head, *inner):
            if tag in found or tag in LONG_CODE_VALUES:
                found[CODE_VALUE if tag in LONG_CODE_VALUES else tag] = text(head[first:last])
    return found[CODE_VALUE], found[SCHEME]


def _measured(head: bytes, start: int, end: int) -> Iterator[float]:
    for inner in items(head, start, end):
        for tag, _, first, last in elements(head, *inner):
            if tag == NUMERIC_VALUE:
                yield float(text(head[first:last]))
            elif tag == FLOATING_POINT_VALUE:
                yield struct.unpack("<d", head[first:last])[0]


def _reference(head: bytes, start: int, end: int) -> tuple[str, tuple[int, ...], int | None]:
    uid, segment = "", None
    frames: tuple[int, ...] = ()
    for inner in items(head, start, end):
        for tag, _, first, last in elements(head, *inner):
            if tag == REFERENCED_SOP_INSTANCE_UID:
                uid = text(head[first:last])
            elif tag == REFERENCED_FRAME_NUMBER:
                frames = frame_numbers(head[first:last])
            elif tag == REFERENCED_SEGMENT_NUMBER:
                segment = int.from_bytes(head[first : first + 2], "little")
    return uid, frames, segment
