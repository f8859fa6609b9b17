"""From the boxes of a detector to findings on the slices of the series: where, how likely, how large."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pacs_ai.pipeline import (
    MILLILITRE,
    MILLIMETRE,
    VOLUME,
    Array,
    Code,
    Detection,
    Diameters,
    Measurement,
    Region,
    Shape,
    Volume,
)

if TYPE_CHECKING:
    from pacs_ai.models.readings.lesion_settings import LesionSettings

SPHERE_EQUIVALENT = Code("sphere-equivalent-diameter", "99PACSAI", "Diameter of sphere with volume of box ellipsoid")
BOX_ELLIPSOID = Code("box-ellipsoid", "99PACSAI", "Ellipsoid inscribed in detected box")


@dataclass(frozen=True)
class Box:
    """A box in the patient.

    Parameters
    ----------
    centre
        (3,) mm, LPS.
    edges
        (3, 3): its three edges, one a row, in mm, LPS.
    probability
        0 to 1.
    """

    centre: Array
    edges: Array
    probability: float

    @property
    def size(self) -> Array:
        """Lengths of the edges in mm."""
        return np.asarray(np.linalg.norm(self.edges, axis=1))

    @property
    def diameter_mm(self) -> float:
        """Diameter of the sphere with the volume of the ellipsoid inscribed in the box."""
        return float(np.prod(self.size) ** (1 / 3))

    @property
    def millilitres(self) -> float:
        """Volume of the ellipsoid inscribed in the box."""
        return float(np.pi / 6 * np.prod(self.size) / 1000)


def boxes_of(corners: Array, probabilities: Array, affine: Array) -> tuple[Box, ...]:
    """Bring a detector's boxes into the patient's mm, by the affine of its grid applied to their corners.

    That is what the bundle's AffineBoxToWorldCoordinated does, and its inverse made the boxes of training.

    Parameters
    ----------
    corners
        (boxes, 6): x, y, z of the lower, then of the upper corner, in voxels.
    probabilities
        (boxes,).
    affine
        (4, 4), voxel -> RAS mm.
    """
    turned = np.diag([-1.0, -1.0, 1.0, 1.0]) @ np.asarray(affine, dtype=np.float64)
    found: list[Box] = []
    for corner, probability in zip(np.asarray(corners, dtype=np.float64), probabilities, strict=True):
        centre = turned @ [*(corner[:3] + corner[3:]) / 2, 1.0]
        edges = (turned[:3, :3] * (corner[3:] - corner[:3])).T
        found.append(Box(centre[:3], edges, float(probability)))
    return tuple(found)


def reported(boxes: tuple[Box, ...], volume: Volume, settings: LesionSettings) -> tuple[Box, ...]:
    """Return what is reported, the likeliest first: probable enough, of a believable size, its centre in the series."""
    kept = [
        box
        for box in boxes
        if box.probability >= settings.threshold
        and settings.smallest_mm <= box.diameter_mm <= settings.largest_mm
        and _inside(box, volume)
    ]
    return tuple(sorted(kept, key=lambda box: (-box.probability, *box.centre)))


def _index(point: Array, volume: Volume) -> Array:
    """Return (slice, row, column) of a point in LPS mm, not rounded."""
    index: Array = (np.linalg.inv(volume.affine) @ [*point, 1.0])[:3]
    return index


def _inside(box: Box, volume: Volume) -> bool:
    index = _index(box.centre, volume)
    return bool((index >= -0.5).all() and (index <= np.array(volume.shape) - 0.5).all())


def detection_of(box: Box, label: str, volume: Volume) -> Detection:
    """Put a box onto the slice that holds its centre: its outline there, and its extents along rows and columns.

    The extents are those of the box in the slice's two directions, whatever the orientation of the series.
    """
    index = _index(box.centre, volume)
    number = int(np.clip(np.rint(index[0]), 0, volume.shape[0] - 1))
    down, across = (_extent(box, volume, axis) / 2 for axis in (1, 2))
    row, column = index[1] + 0.5, index[2] + 0.5
    rows, columns = np.array([row - down, row + down]), np.array([column - across, column + across])
    rows = np.clip(rows, 0, volume.shape[1])
    columns = np.clip(columns, 0, volume.shape[2])
    outline = [(columns[0], rows[0]), (columns[1], rows[0]), (columns[1], rows[1]), (columns[0], rows[1])]
    lines = [
        np.array([[columns[0], row], [columns[1], row]], np.float32),
        np.array([[column, rows[0]], [column, rows[1]]], np.float32),
    ]
    spacing = (volume.spacing[2], volume.spacing[1])
    lengths = [float(np.ptp(line, axis=0).max()) * mm for line, mm in zip(lines, spacing, strict=True)]
    long, short = (0, 1) if lengths[0] >= lengths[1] else (1, 0)
    return Detection(
        label=label,
        region=Region(Shape.POLYLINE, np.array([*outline, outline[0]], np.float32), number),
        diameters=Diameters(lines[long], lines[short], number),
        probability=box.probability,
        measurements=(
            Measurement(SPHERE_EQUIVALENT, round(box.diameter_mm, 1), MILLIMETRE, method=BOX_ELLIPSOID),
            Measurement(VOLUME, round(box.millilitres, 3), MILLILITRE, method=BOX_ELLIPSOID),
        ),
    )


def _extent(box: Box, volume: Volume, axis: int) -> float:
    """Return the extent of the box along an axis of the series, in its voxels.

    Taken is the ellipsoid inscribed in the box: in a direction u it is sqrt(sum of (edge . u)^2) wide.
    """
    step = volume.affine[:3, axis]
    spacing = float(np.linalg.norm(step))
    return float(np.linalg.norm(box.edges @ (step / spacing))) / spacing
