"""A fractional Segmentation: how probable each label is at each voxel, in 255 steps; for those who ask for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from highdicom.seg import SegmentationTypeValues

from pacs_ai.encode.encoded import encoded
from pacs_ai.encode.voxels.codecs import pixel_data
from pacs_ai.encode.voxels.frames import frame_order
from pacs_ai.encode.voxels.layout import Layout
from pacs_ai.encode.voxels.template import finish, make_template

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pacs_ai.encode.case import Case
    from pacs_ai.encode.encoded import Encoded
    from pacs_ai.pipeline import Map
    from pacs_ai.profiles import Encoding

#: Maximum Fractional Value (0062,000E): what a probability of 1 is written as.
LARGEST = 255


def encode_fractional(case: Case, encoding: Encoding) -> tuple[Encoded, ...]:
    """Return the SEG of the maps that are probabilities of a label; none where no map says which label's it is.

    Segmentation Fractional Type is PROBABILITY (PS3.3 C.8.20.2.3.1). A probability under 1/510 is written as 0; a map
    of which nothing is left is no segment. A segment has a frame on each slice where it is not 0.

    Raises
    ------
    Permanent
        Where the pixel data would not fit into one instance.
    Refused
        Where a source lacks its position or orientation.
    """
    maps = [one for one in case.findings.maps if one.label is not None]
    counts = np.array([[np.count_nonzero(_quantised(one, index)) for index in range(len(one.voxels))] for one in maps])
    filled = [row for row in range(len(maps)) if counts[row].any()]
    layout = Layout.of(case) if filled else None
    if layout is None:
        return ()
    maps, counts = [maps[row] for row in filled], counts[filled]
    full = encoding.frames == "full"
    slices = [int(index) for index in layout.order if full or counts[:, index].any()]
    frames = frame_order(counts, slices, every=full)
    template = make_template(
        SegmentationTypeValues.FRACTIONAL,
        [one.label for one in maps if one.label is not None],
        layout,
        case,
        encoding,
        encoding.transfer_syntax,
        fractional_type="PROBABILITY",
        max_fractional_value=LARGEST,
    )
    template.SegmentsOverlap = "YES" if _overlap(counts, maps) else "NO"
    groups = finish(template, layout, frames, by_segment=True)
    pixels = pixel_data((_quantised(maps[row], index) for row, index in frames), encoding.transfer_syntax)
    return (encoded(encoding, template, groups, *pixels),)


def _quantised(probabilities: Map, index: int) -> npt.NDArray[np.uint8]:
    """Return (rows, columns) of one slice, 0 to 255."""
    values = np.clip(probabilities.voxels[index], 0.0, 1.0)
    return np.asarray(np.rint(values * np.float32(LARGEST)), np.uint8)


def _overlap(counts: npt.NDArray[np.int64], maps: Sequence[Map]) -> bool:
    """Return whether any voxel has a probability of two labels."""
    for index in np.flatnonzero((counts > 0).sum(axis=0) > 1).tolist():
        present = np.flatnonzero(counts[:, index]).tolist()
        union = np.logical_or.reduce([_quantised(maps[row], index) > 0 for row in present])
        if np.count_nonzero(union) != counts[:, index].sum():
            return True
    return False
