"""The outline of a segment's largest cross-section, as a viewer draws it over the source image."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from contourpy import LineType, contour_generator

if TYPE_CHECKING:
    from pacs_ai.pipeline import Array

#: Graphic Data (0070,0022) has VR FL: at most 65534 bytes in Explicit VR, so 8191 points of two floats (PS3.5 7.1.2).
MAX_POINTS = 8000
#: OHIF 3.13 takes an outline of 4 or 5 points for a rectangle that a person drew.
MIN_POINTS = 6
#: So many marks stand below one another before the next stands beside the first: viewers write five lines at each.
MARKS = 6


def outline(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
    """Return the closed outline of the largest connected part of a mask, its holes left out.

    Parameters
    ----------
    mask
        (rows, columns) bool, at least one voxel set.

    Returns
    -------
    (points, 2) float32 of (column, row), at least `MIN_POINTS`, the last point equal to the first.
    (0, 0) is the outer corner of the first pixel, so that its centre is (0.5, 0.5) (PS3.3 C.18.6.1.2).
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    window = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    lines = contour_generator(z=np.pad(window, 1).astype(np.float32), name="serial", line_type=LineType.Separate).lines(
        0.5
    )
    largest = max((np.asarray(line) for line in lines), key=_area)
    largest = _without_straight_points(largest)
    if len(largest) > MAX_POINTS:
        largest = largest[np.linspace(0, len(largest) - 1, MAX_POINTS).round().astype(int)]
    largest[-1] = largest[0]
    shift = np.array([columns[0] - 0.5, rows[0] - 0.5])  # pad -1, pixel centre +0.5
    return np.asarray(_with_enough_points(largest + shift), np.float32)


def mark(rows: int, columns: int, place: int) -> npt.NDArray[np.float32]:
    """Return a short strip at the left edge of an image, (9, 2) float32 of (column, row), closed.

    Parameters
    ----------
    place
        0 for the first mark on an image; each further one is lower, the `MARKS`-th again at the top.
    """
    top = rows * (0.06 + 0.9 * (place % MARKS) / MARKS)
    left, right, bottom = columns * 0.02, columns * 0.06, top + rows * 0.01
    corners = np.array([(left, top), (right, top), (right, bottom), (left, bottom), (left, top)], np.float64)
    return np.asarray(_with_enough_points(corners), np.float32)


def between(long_axis: Array, short_axis: Array) -> npt.NDArray[np.float32]:
    """Return the closed quadrangle between the ends of two lines that cross, (9, 2) float32 of (column, row)."""
    corners = np.array([long_axis[0], short_axis[0], long_axis[1], short_axis[1], long_axis[0]], np.float64)
    return np.asarray(_with_enough_points(corners), np.float32)


def _area(line: npt.NDArray[np.float64]) -> float:
    x, y = line[:, 0], line[:, 1]
    return abs(float(x[:-1] @ y[1:] - x[1:] @ y[:-1])) / 2


def _with_enough_points(line: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the line, with the middle of each side as a further point where it has fewer than `MIN_POINTS`."""
    if len(line) >= MIN_POINTS:
        return line
    fuller = np.empty((2 * len(line) - 1, 2))
    fuller[::2] = line
    fuller[1::2] = (line[:-1] + line[1:]) / 2
    return fuller


def _without_straight_points(line: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    steps = np.diff(line, axis=0)
    turns = np.abs(steps[:-1, 0] * steps[1:, 1] - steps[:-1, 1] * steps[1:, 0]) > 1e-9
    return np.asarray(line[np.concatenate([[True], turns, [True]])])
