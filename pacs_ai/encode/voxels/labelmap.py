"""A Label Map Segmentation: one number for each voxel, compressed without loss to a fraction of a binary one's size."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from highdicom.seg import SegmentationTypeValues

from pacs_ai.encode.encoded import encoded
from pacs_ai.encode.voxels.codecs import pixel_data
from pacs_ai.encode.voxels.survey import plane
from pacs_ai.encode.voxels.template import finish, make_template

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pacs_ai.encode.case import Case
    from pacs_ai.encode.encoded import Encoded
    from pacs_ai.encode.voxels.layout import Layout
    from pacs_ai.pipeline import Array, Segment
    from pacs_ai.profiles import Encoding

#: Most segments that 8 bits hold beside the background.
IN_A_BYTE = 255


def encode_label_map(
    segments: Sequence[Segment],
    layout: Layout,
    case: Case,
    encoding: Encoding,
    slices: Sequence[int],
    transfer_syntax: str,
) -> Encoded:
    """Return the label map (PS3.3 C.8.20.2.3.3) of segments that do not overlap.

    A frame for each of the slices, its pixels Segment Numbers of 8 bits, 16 beyond 255 segments. The background is
    described, as it must be, but last: viewers that take a segment's place in the Segment Sequence for its number show
    every other segment in the colour of its neighbour otherwise.
    """
    labels = [segment.label for segment in segments]
    template = make_template(SegmentationTypeValues.LABELMAP, labels, layout, case, encoding, transfer_syntax)
    background, *described = template.SegmentSequence
    template.SegmentSequence = [*described, background]
    groups = finish(template, layout, [(0, index) for index in slices], by_segment=False)
    pixels = pixel_data(label_planes(segments, slices), transfer_syntax)
    return encoded(encoding, template, groups, *pixels)


def label_planes(segments: Sequence[Segment], slices: Sequence[int]) -> Iterator[Array]:
    """Yield (rows, columns) of each slice: 0 or the number of the segment, from 1 in their order; uint8 or uint16."""
    dtype = np.uint8 if len(segments) <= IN_A_BYTE else np.uint16
    tables, others = _tables(segments, dtype)
    rows, columns = segments[0].voxels.shape[1:]
    for index in slices:
        labels = np.zeros((rows, columns), dtype)
        for voxels, table in tables:
            labels |= _looked_up(voxels[index], table)
        for number, segment in others:
            labels[plane(segment, index)] = number
        yield labels


def _looked_up(values: Array, table: Array) -> Array:
    """Return the table's value for each of the values; for bytes as fast as memory."""
    if values.itemsize == table.itemsize == 1:
        octets = np.ascontiguousarray(values).tobytes().translate(table.tobytes())
        return np.frombuffer(octets, table.dtype).reshape(values.shape)
    return table[values]


def _tables(segments: Sequence[Segment], dtype: type) -> tuple[list[tuple[Array, Array]], list[tuple[int, Segment]]]:
    """Return the arrays of 8 and 16 bits, each with the Segment Number of each of its values, and other segments.

    To look voxels up in a table is many times as fast as to compare each slice with each segment's number.
    """
    others = []
    tables: dict[int, tuple[Array, Array]] = {}
    for number, segment in enumerate(segments, 1):
        voxels = segment.voxels.view(np.uint8) if segment.voxels.dtype == np.bool_ else segment.voxels
        if voxels.itemsize > np.uint16().itemsize:
            others.append((number, segment))
            continue
        _, table = tables.setdefault(id(segment.voxels), (voxels, np.zeros(256**voxels.itemsize, dtype)))
        table[1 if segment.voxels.dtype == np.bool_ else segment.number] = number
    return list(tables.values()), others
