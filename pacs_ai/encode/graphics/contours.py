"""Outlines of a mask that hold exactly its voxels: rings, and polygons whose holes are joined by a keyhole.

A line runs half-way between the centre of a voxel inside and that of its neighbour outside, so whoever fills it and
asks which voxel centres lie within gets the mask again. Nothing is smoothed; points on a straight line are left out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from contourpy import FillType, contour_generator
from scipy import ndimage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pacs_ai.pipeline import Array

#: (points, 2) float64 of (column, row), the last point not repeated; (0, 0) is the outer corner of the first pixel.
Ring = npt.NDArray[np.float64]


def rings(mask: npt.NDArray[np.bool_]) -> list[list[Ring]]:
    """Return the connected parts of a mask, each as its outer ring and then the rings of its holes.

    Parameters
    ----------
    mask
        (rows, columns) bool. Voxels that touch at a corner only are parts of their own.

    Returns
    -------
    list
        In an order that depends on the mask only. Holes turn the other way round than outer rings. Coordinates are
        multiples of 0.5, exactly.
    """
    if not mask.any():
        return []
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    window = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    generator = contour_generator(z=np.pad(window, 1).astype(np.float64), name="serial", fill_type=FillType.OuterOffset)
    points: Sequence[Ring]
    offsets: Sequence[Sequence[int]]
    points, offsets = generator.filled(0.5, 2.0)  # type: ignore[misc,assignment]  # as OuterOffset returns them
    shift = np.array([columns[0] - 0.5, rows[0] - 0.5])  # pad -1, pixel centre +0.5
    return [_without_straight_points(part + shift, of_part) for part, of_part in zip(points, offsets, strict=True)]


def polygons(mask: npt.NDArray[np.bool_], most_points: int) -> list[Ring]:
    """Return the mask as polygons without holes: no two overlap, together they hold exactly its voxel centres.

    A hole is joined to the ring around it by a channel without width, which is walked in both directions (the keyhole
    technique, PS3.3 C.8.8.6.3). Whether a reader unites polygons, takes them by turns (XOR) or counts windings, it
    gets the same voxels. A part with too many points is cut in two.

    Parameters
    ----------
    mask
        (rows, columns) bool.
    most_points
        Of one polygon, at least 8.
    """
    labels: Array | None = None
    found: list[Ring] = []
    for part in rings(mask):
        if _points(part) <= most_points:
            found.append(_keyholed(part))
            continue
        if labels is None:
            labels = np.asarray(ndimage.label(mask)[0])
        (column, row), *_ = _from_topmost(part[0])
        found.extend(_cut(labels == labels[int(row), int(column)], most_points))
    return found


def _points(part: list[Ring]) -> int:
    """Return how many points a part has as one polygon."""
    return sum(len(ring) for ring in part) + 3 * (len(part) - 1)


def _cut(part: npt.NDArray[np.bool_], most_points: int) -> list[Ring]:
    """Return the polygons of the halves of a connected part, cut across its longer side."""
    rows, columns = np.flatnonzero(part.any(axis=1)), np.flatnonzero(part.any(axis=0))
    top, left = int(rows[0]), int(columns[0])
    window = part[top : rows[-1] + 1, left : columns[-1] + 1]
    axis = int(window.shape[1] >= window.shape[0])
    middle = window.shape[axis] // 2
    first, second = np.split(window, [middle], axis=axis)
    further = np.array([left, top]) + np.array([middle, 0] if axis else [0, middle])
    return [
        *(polygon + np.array([left, top]) for polygon in polygons(first, most_points)),
        *(polygon + further for polygon in polygons(second, most_points)),
    ]


def _without_straight_points(points: Ring, offsets: Sequence[int]) -> list[Ring]:
    """Return the rings, which begin and end at `offsets` with the same point, with the points where they turn."""
    firsts, lasts = np.asarray(offsets[:-1], np.int64), np.asarray(offsets[1:], np.int64) - 1
    after = np.diff(points, axis=0, append=points[-1:])
    before = np.concatenate([after[:1], after[:-1]])
    before[firsts] = after[lasts - 1]
    turns = before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]
    turns[lasts] = False
    ends = np.cumsum(turns)[lasts]
    return np.split(points[turns], ends[:-1])


def _keyholed(part: list[Ring]) -> Ring:
    """Join the holes to the outer ring.

    From the leftmost of a hole's topmost points a channel runs left. It meets the outer ring, or a hole that begins
    higher or as high and farther left; taken in that order, holes meet only what is joined already. It runs between two
    rows of voxel centres and touches none.
    """
    polygon, *holes = part
    for hole in sorted((_from_topmost(hole) for hole in holes), key=lambda hole: (hole[0, 1], hole[0, 0])):
        place, meeting = _left_of(polygon, hole[0])
        polygon = np.concatenate([polygon[: place + 1], [meeting], hole, hole[:1], [meeting], polygon[place + 1 :]])
    return polygon


def _from_topmost(ring: Ring) -> Ring:
    return np.roll(ring, -int(np.lexsort((ring[:, 0], ring[:, 1]))[0]), axis=0)


def _left_of(polygon: Ring, point: npt.NDArray[np.float64]) -> tuple[int, npt.NDArray[np.float64]]:
    """Return the edge (index of its first point) that is met first going left from the point, and where."""
    x, y = point
    start, end = polygon, np.roll(polygon, -1, axis=0)
    low, high = np.minimum(start[:, 1], end[:, 1]), np.maximum(start[:, 1], end[:, 1])
    rise = end[:, 1] - start[:, 1]
    level = rise == 0
    along = np.where(level, 0.0, (y - start[:, 1]) / np.where(level, 1.0, rise))
    met = np.where(level, np.maximum(start[:, 0], end[:, 0]), start[:, 0] + along * (end[:, 0] - start[:, 0]))
    met = np.where((low <= y) & (y <= high) & (met < x), met, -np.inf)
    place = int(np.argmax(met))
    return place, np.array([met[place], y])
