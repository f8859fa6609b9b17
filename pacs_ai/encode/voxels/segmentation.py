"""One Segmentation (SEG) per pipeline result, on the source's own grid, citing exactly the source frames.

Binary (one bit for each voxel and segment) unless the profile names a label map or probabilities.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from highdicom.seg import SegmentationTypeValues

from pacs_ai.encode.encoded import encoded
from pacs_ai.encode.explicit import element_head
from pacs_ai.encode.voxels.codecs import MAX_BYTES, NATIVE, PIXEL_DATA
from pacs_ai.encode.voxels.fractional import encode_fractional
from pacs_ai.encode.voxels.frames import frame_order, overlap, pack
from pacs_ai.encode.voxels.labelmap import encode_label_map
from pacs_ai.encode.voxels.layout import Layout
from pacs_ai.encode.voxels.template import finish, make_template
from pacs_ai.errors import Permanent

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pacs_ai.encode.case import Case
    from pacs_ai.encode.encoded import Encoded
    from pacs_ai.pipeline import Segment
    from pacs_ai.profiles import Encoding

#: What a label map is written in that stands for bits beyond 2 GiB: of all compressed forms the most widely read.
SMALLER = "RLELossless"


def encode_segmentation(case: Case, encoding: Encoding, _cited: Encoded | None) -> tuple[Encoded, ...]:
    """Return the SEG of the segments that have voxels; none where no segment has one.

    No form holds everything. Segments that overlap can be no label map (PS3.3 C.8.20.2.3.3) and are written binary.
    Bits beyond 2 GiB, of segments that do not overlap, are written as a label map in RLE. The object says what it is,
    and its UIDs stay those of the encoding: a peer that accepts no such object gets what its profile falls back to.

    Raises
    ------
    Permanent
        Where neither form fits into one instance.
    Refused
        Where a source lacks its position or orientation.
    """
    if encoding.form == "fractional":
        return encode_fractional(case, encoding)
    layout = Layout.of(case) if case.filled else None
    if layout is None:
        return ()
    segments = tuple(segment for segment, _ in case.filled)
    counts = np.stack([row for _, row in case.filled])
    full = encoding.frames == "full"
    slices = [int(index) for index in layout.order if full or counts[:, index].any()]
    if overlap(segments, counts):
        frames = frame_order(counts, slices, every=True)
        return (_binary(segments, layout, case, encoding, frames, "YES"),)
    frames = frame_order(counts, slices, every=full)
    if encoding.form == "labelmap":
        return (encode_label_map(segments, layout, case, encoding, slices, encoding.transfer_syntax),)
    if _bytes(frames, layout) > MAX_BYTES:
        return (encode_label_map(segments, layout, case, encoding, slices, SMALLER),)
    return (_binary(segments, layout, case, encoding, frames, "NO"),)


def _binary(
    segments: Sequence[Segment],
    layout: Layout,
    case: Case,
    encoding: Encoding,
    frames: Sequence[tuple[int, int]],
    overlapping: str,
) -> Encoded:
    """Return the binary SEG, one bit for each pixel of a frame (PS3.3 C.8.20.2.2).

    A segment has a frame on the slices that it uses. Where segments overlap it has one, if need be empty, on every
    slice that any segment uses: OHIF 3.13 shows no slice that only some of the overlapping segments have.
    """
    if _bytes(frames, layout) > MAX_BYTES:
        raise Permanent(_too_large(frames, layout))
    labels = [segment.label for segment in segments]
    template = make_template(SegmentationTypeValues.BINARY, labels, layout, case, encoding, NATIVE)
    template.SegmentsOverlap = overlapping
    groups = finish(template, layout, frames, by_segment=True)
    pixels = pack(segments, frames)
    return encoded(encoding, template, groups, element_head(PIXEL_DATA, b"OB", len(pixels)), pixels)


def _bytes(frames: Sequence[tuple[int, int]], layout: Layout) -> int:
    _, rows, columns = layout.shape
    return len(frames) * rows * columns // 8


def _too_large(frames: Sequence[tuple[int, int]], layout: Layout) -> str:
    _, rows, columns = layout.shape
    return (
        f"the segmentation has {len(frames)} frames of {rows} x {columns} pixels, of segments that overlap, and would "
        f"take {_bytes(frames, layout) / 2**30:.1f} GiB; one DICOM instance can hold 2 GiB: let the pipeline return "
        "fewer labels, labels that do not overlap, or a coarser series"
    )
