"""Outlines of a mask that hold exactly its voxels: rings, and polygons whose holes are joined by a keyhole.

A line runs half-way between the centre of a voxel inside and that of its neighbour outside, so whoever fills it and
asks which voxel centres lie within gets the mask again. Nothing is smoothed; points on a straight line are left out.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from contourpy import FillType, contour_generator
from scipy import ndimage

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

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
    return [
        [_without_straight_points(np.asarray(part)[first : last - 1]) + shift for first, last in pairwise(of_part)]
        for part, of_part in zip(points, offsets, strict=True)
    ]


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
    joined = [_keyholed(part) for part in rings(mask)]
    if all(len(polygon) <= most_points for polygon in joined):
        return joined
    return [polygon for part in _parts(mask) for polygon in _cut(part, most_points)]


def _parts(mask: npt.NDArray[np.bool_]) -> Iterator[npt.NDArray[np.bool_]]:
    labels, count = ndimage.label(mask)
    for number in range(1, count + 1):
        yield labels == number


def _cut(part: npt.NDArray[np.bool_], most_points: int) -> list[Ring]:
    """Return the polygons of a connected part, halved along its longer side until no polygon is too long."""
    joined = [_keyholed(one) for one in rings(part)]
    if all(len(polygon) <= most_points for polygon in joined):
        return joined
    rows, columns = np.flatnonzero(part.any(axis=1)), np.flatnonzero(part.any(axis=0))
    first = np.zeros_like(part)
    if rows[-1] - rows[0] > columns[-1] - columns[0]:
        first[: (rows[0] + rows[-1] + 1) // 2] = True
    else:
        first[:, : (columns[0] + columns[-1] + 1) // 2] = True
    return [
        polygon for half in (part & first, part & ~first) for one in _parts(half) for polygon in _cut(one, most_points)
    ]


def _without_straight_points(ring: Ring) -> Ring:
    before, after = ring - np.roll(ring, 1, axis=0), np.roll(ring, -1, axis=0) - ring
    turns = before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]
    return np.asarray(ring[turns])


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
