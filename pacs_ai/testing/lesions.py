"""Where bright lesions lie in a volume, how long and how wide they are, and how their outline runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from pacs_ai.pipeline import Diameters, Region, Shape

if TYPE_CHECKING:
    from pacs_ai.pipeline import Volume

Array = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]

#: The patient is looked for on every so many rows and columns.
_COARSE = 4
_BODY_HU = -300.0


@dataclass(frozen=True)
class Lesion:
    """One connected bright part of the body.

    Parameters
    ----------
    mask
        (slices, rows, columns) bool of its box.
    box
        Where in the volume that is.
    """

    mask: Mask
    box: tuple[slice, slice, slice]

    @property
    def voxels(self) -> int:
        """How large it is."""
        return int(np.count_nonzero(self.mask))

    @property
    def largest_section(self) -> int:
        """The slice of the volume on which it is largest; the first of equals."""
        return int(self.box[0].start) + int(self.mask.sum(axis=(1, 2)).argmax())

    def section(self, index: int) -> tuple[Mask, int, int]:
        """Return its mask on one slice, and the row and column at which that begins."""
        return self.mask[index - self.box[0].start], int(self.box[1].start), int(self.box[2].start)


def body(volume: Volume) -> Mask:
    """Return the patient without the table, (slices, rows, columns) bool, to `_COARSE` pixels.

    Of a CT all that is denser than lung, of others all that is brighter than a tenth of the brightest.
    """
    threshold = _BODY_HU if volume.modality == "CT" else float(np.percentile(volume.voxels, 99)) / 10
    coarse = ndimage.binary_opening(
        volume.voxels[:, ::_COARSE, ::_COARSE] > threshold, structure=np.ones((1, 3, 3), bool), iterations=2
    )
    labels, count = ndimage.label(coarse)
    if not count:
        return np.zeros(volume.shape, np.bool_)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    whole = np.stack([ndimage.binary_fill_holes(section) for section in labels == sizes.argmax()])
    _, rows, columns = volume.shape
    return np.asarray(whole.repeat(_COARSE, axis=1).repeat(_COARSE, axis=2)[:, :rows, :columns])


def find_lesions(volume: Volume, threshold: float, most: int, ml: tuple[float, float]) -> tuple[Lesion, ...]:
    """Return the largest connected parts of the body above a threshold, of a volume between `ml`, the largest first."""
    labels, _ = ndimage.label((volume.voxels > threshold) & body(volume))
    sizes = np.bincount(labels.ravel())
    ordered = [number for number in np.argsort(-sizes, kind="stable").tolist() if number]
    wanted = [number for number in ordered if ml[0] <= sizes[number] * volume.voxel_ml <= ml[1]]
    boxes = ndimage.find_objects(labels)
    return tuple(Lesion(labels[boxes[number - 1]] == number, boxes[number - 1]) for number in wanted[:most])


def diameters(section: Mask, origin: tuple[int, int], spacing: tuple[float, float], index: int) -> Diameters | None:
    """Return the longest diameter of a section and the longest at a right angle to it; None of a mere speck.

    Parameters
    ----------
    section
        (rows, columns) bool.
    origin
        Row and column of the image at which it begins.
    spacing
        Of rows and columns in mm.
    index
        Slice or image.
    """
    points = _ends_of_rows(section) * np.asarray(spacing)
    if len(points) < 4:
        return None
    square = ((points[:, None] - points[None]) ** 2).sum(axis=2)
    start, end = (points[k] for k in np.unravel_index(square.argmax(), square.shape))
    length = float(np.linalg.norm(end - start))
    along = (end - start) / max(length, 1e-9)
    across = np.array([-along[1], along[0]])
    everywhere = np.argwhere(section) * np.asarray(spacing) - start
    place, height = everywhere @ along, everywhere @ across
    width, at, low, high = max(_widths(place, height, min(spacing)), key=lambda one: one[0])
    if width <= 0 or length <= 0:
        return None
    short = [start + at * along + low * across, start + at * along + high * across]
    return Diameters(_image_points([start, end], origin, spacing), _image_points(short, origin, spacing), index)


def _ends_of_rows(section: Mask) -> Array:
    """Return (row, column) of the first and the last pixel of each row: the farthest two are among them."""
    rows = np.flatnonzero(section.any(axis=1))
    first = section[rows].argmax(axis=1)
    last = section.shape[1] - 1 - section[rows, ::-1].argmax(axis=1)
    return np.unique(np.concatenate([np.stack([rows, first], axis=1), np.stack([rows, last], axis=1)]), axis=0)


def _widths(place: Array, height: Array, step: float) -> list[tuple[float, float, float, float]]:
    """Return for each place along the long axis the width there, the place, and both ends of the width."""
    bins = np.floor(place / step).astype(int)
    found = []
    for number in np.unique(bins):
        inside = bins == number
        low, high = float(height[inside].min()), float(height[inside].max())
        found.append((high - low, float(place[inside].mean()), low, high))
    return found


def _image_points(points: list[Array], origin: tuple[int, int], spacing: tuple[float, float]) -> Array:
    """Return mm from a section's first pixel as (column, row) of the image, centres of pixels at a half."""
    pixels = np.asarray(points) / np.asarray(spacing) + np.asarray(origin) + 0.5
    return np.asarray(pixels[:, ::-1], np.float32)


def outline(section: Mask, origin: tuple[int, int], index: int) -> Region | None:
    """Return the outer border of the largest part of a section, walked along the pixels' corners; closed.

    Every point is a corner of a pixel, so the region holds exactly the section's pixels and its holes.
    """
    labels, count = ndimage.label(section)
    if not count:
        return None
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    part = np.pad(labels == sizes.argmax(), 1)
    row, column = (int(value) for value in np.argwhere(part)[0])
    points = _walk(part, row, column)
    shifted = np.asarray(points, np.float32) + np.asarray([origin[1] - 1, origin[0] - 1], np.float32)
    return Region(Shape.POLYLINE, shifted, index)


def _walk(part: Mask, row: int, column: int) -> list[tuple[int, int]]:
    """Walk along the corners with the part at the right hand, from the upper left corner of its first pixel."""
    steps = ((0, 1), (1, 0), (0, -1), (-1, 0))  # right, down, left, up
    ahead = {0: ((0, 0), (-1, 0)), 1: ((0, -1), (0, 0)), 2: ((-1, -1), (0, -1)), 3: ((-1, 0), (-1, -1))}
    at, direction = (row, column), 0
    points = [(column, row)]
    while True:
        at = (at[0] + steps[direction][0], at[1] + steps[direction][1])
        right, left = (bool(part[at[0] + r, at[1] + c]) for r, c in ahead[direction])
        turn = 1 if not right else -1 if left else 0
        direction = (direction + turn) % 4
        if turn:
            points.append((at[1], at[0]))
        if at == (row, column):
            return points if points[-1] == points[0] else [*points, points[0]]


def as_probability(values: Array) -> npt.NDArray[np.float32]:
    """Squeeze any numbers into 0 to 1 by the logistic function."""
    with np.errstate(over="ignore"):
        return np.asarray(1 / (1 + np.exp(-np.asarray(values, np.float32))), np.float32)
