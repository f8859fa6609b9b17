"""A chest made of ellipsoids with three round lesions, for the lesion detector."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

from pacs_ai.testing.photographs import Case
from pacs_ai.testing.samples.solids import ellipsoid, places
from pacs_ai.testing.slices import write_slices

if TYPE_CHECKING:
    from pathlib import Path

    from pacs_ai.pipeline import Array

#: (slices, rows, columns) and their spacing in mm.
SHAPE, SPACING = (60, 112, 144), (2.5, 2.5, 2.5)
_AIR, _FAT, _MUSCLE, _LUNG, _BONE, _LESION = -1000, -100, 50, -850, 400, 40
#: Centres (z, y, x) in mm, from the middle to the head, to the back, to the patient's left, and radii.
LESIONS = (((20.0, -15.0, -75.0), 6.0), ((-15.0, 25.0, 70.0), 9.0), ((30.0, 10.0, 85.0), 4.0))
_NOISE_HU = 20.0


def chest() -> Array:
    """Return the chest, (slices, rows, columns) int16 HU, from feet to head, with lesions at `LESIONS`."""
    inside = partial(ellipsoid, places(SHAPE, SPACING))
    voxels = np.full(SHAPE, _AIR, np.float32)
    voxels[inside((0, 0, 0), (1e4, 118, 165))] = _FAT
    voxels[inside((0, 0, 0), (1e4, 106, 152))] = _MUSCLE
    for side in (-1, 1):
        voxels[inside((0, 0, 80 * side), (110, 88, 58))] = _LUNG
    voxels[inside((0, 75, 0), (1e4, 24, 22))] = _BONE
    for centre, radius in LESIONS:
        voxels[inside(centre, (radius, radius, radius))] = _LESION
    smooth = ndimage.gaussian_filter(voxels, 0.4)
    noise = np.random.default_rng(11).normal(0, _NOISE_HU, SHAPE)
    return np.asarray(np.rint(smooth + noise), np.int16)


def write(folder: Path) -> None:
    """Write the series."""
    case = Case("nodule-sample", 2, study_description="Phantom chest", series_description="Phantom chest")
    write_slices(folder, chest(), SPACING, case, "CT", BodyPartExamined="CHEST")
