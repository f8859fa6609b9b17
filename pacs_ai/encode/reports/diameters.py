"""How long and how wide a lesion is on one image: two lines at a right angle, in mm, as a radiologist measures them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from scipy.spatial import ConvexHull, QhullError

from pacs_ai.pipeline import Diameters

if TYPE_CHECKING:
    from pacs_ai.pipeline import Array

Points = npt.NDArray[np.float64]

#: Places along the long axis at which a width is looked for, where an outline has more points.
MAX_PLACES = 256


def diameters(outline: Array, spacing: tuple[float, float], index: int) -> Diameters | None:
    """Return the longest diameter of an outline and the longest chord at a right angle to it, both in its plane.

    The long axis joins the two points of the outline that are farthest apart in mm; of a bent lesion it may leave the
    lesion. The short axis is the longest straight line at a right angle to it that stays inside.

    Parameters
    ----------
    outline
        (points, 2) float of (column, row), the last point equal to the first.
    spacing
        Distance of neighbouring rows and columns in mm.
    index
        Slice or image that it lies on.

    Returns
    -------
    None of an outline without area.
    """
    scale = np.array([spacing[1], spacing[0]])
    points = np.asarray(outline, np.float64) * scale
    ends = _farthest(points)
    if ends is None:
        return None
    start, end = ends
    along = (end - start) / np.linalg.norm(end - start)
    across = np.array([-along[1], along[0]])
    chord = _longest_chord((points - start) @ along, (points - start) @ across)
    if chord is None:
        return None
    place, low, high = chord
    short = np.array([start + place * along + low * across, start + place * along + high * across])
    return Diameters(_pixels(np.stack(ends), scale), _pixels(short, scale), index)


def _pixels(line: Points, scale: Points) -> npt.NDArray[np.float32]:
    return np.asarray(np.round(line / scale, 4), np.float32)


def length_mm(axis: Array, spacing: tuple[float, float]) -> float:
    """Return the length in mm of a line of two points (column, row); `spacing` of rows and columns in mm."""
    step = np.asarray(axis[1], np.float64) - np.asarray(axis[0], np.float64)
    return float(np.hypot(step[0] * spacing[1], step[1] * spacing[0]))


def _farthest(points: Points) -> tuple[Points, Points] | None:
    """Return the two points that are farthest apart, the one with the lesser (row, column) first."""
    try:
        hull = points[np.sort(ConvexHull(points).vertices)]
    except QhullError:  # all on one line
        return None
    square = ((hull[:, None] - hull[None]) ** 2).sum(axis=2)
    first, second = np.unravel_index(np.round(square, 9).argmax(), square.shape)
    start, end = sorted((hull[first], hull[second]), key=lambda point: (point[1], point[0]))
    return start, end


def _longest_chord(place: Points, height: Points) -> tuple[float, float, float] | None:
    """Return (place along the long axis, lower end, upper end) of the longest chord inside a closed outline.

    Between two neighbouring corners the ends of a chord move along straight lines, so the longest one begins or ends
    at a corner. A line through a corner itself touches two sides of the outline, hence one on either side of it.
    """
    places = np.unique(np.round(place, 6))
    if len(places) > MAX_PLACES:
        places = places[np.linspace(0, len(places) - 1, MAX_PLACES).round().astype(int)]
    step = 1e-6 * float(np.ptp(place))
    at = np.sort(np.concatenate([places - step, places + step]))
    low, high = _inside(at, place, height)
    widths = np.round(np.where(np.isfinite(high), high, low) - low, 6)
    row, part = np.unravel_index(widths.argmax(), widths.shape)
    if widths[row, part] <= 0:
        return None
    return float(at[row]), float(low[row, part]), float(high[row, part])


def _inside(at: Points, place: Points, height: Points) -> tuple[Points, Points]:
    """Return where lines across, at these places, enter the outline and leave it: (places, parts) each.

    Where a line has fewer parts than others the lower end is 0 and the upper end infinite.
    """
    before, after = place[:-1], place[1:]
    line = at[:, None]
    crossing = (before < line) != (after < line)
    run = np.where(before == after, 1.0, after - before)
    heights = np.where(crossing, height[:-1] + (line - before) / run * (height[1:] - height[:-1]), np.inf)
    heights.sort(axis=1)
    most = int(crossing.sum(axis=1).max())
    low, high = heights[:, 0:most:2], heights[:, 1:most:2]
    return np.where(np.isfinite(high), low, 0.0), high
