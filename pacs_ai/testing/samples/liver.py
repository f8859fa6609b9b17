"""An abdomen made of ellipsoids: a liver with two darker lesions, between lungs, spleen, kidneys and spine."""

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
SHAPE, SPACING = (64, 144, 160), (4.0, 2.5, 2.5)
#: HU of air, fat, muscle, lung, liver, lesion, spleen, kidney, bone and of what the stomach holds.
_AIR, _FAT, _MUSCLE, _LUNG, _LIVER, _LESION, _SPLEEN, _KIDNEY, _BONE, _STOMACH = (
    -1000, -100, 55, -850, 110, 45, 120, 170, 350, 20,
)  # fmt: skip
#: Centres (z, y, x) and half axes in mm: from the middle, to the head, to the back, to the patient's left.
LESIONS = (((10.0, -10.0, -85.0), 14.0), ((-15.0, 15.0, -70.0), 9.0))
_NOISE_HU = 12.0


def abdomen() -> Array:
    """Return the abdomen, (slices, rows, columns) int16 HU, from feet to head, with lesions at `LESIONS`."""
    inside = partial(ellipsoid, places(SHAPE, SPACING))
    voxels = np.full(SHAPE, _AIR, np.float32)
    voxels[inside((0, 0, 0), (1e4, 125, 175))] = _FAT
    voxels[inside((0, 0, 0), (1e4, 108, 158))] = _MUSCLE
    voxels[inside((-20, -5, 0), (130, 88, 138))] = _FAT
    for side in (-1, 1):
        voxels[inside((115, 0, 72 * side), (85, 88, 66))] = _LUNG
        voxels[inside((-60, 50, 62 * side), (50, 26, 26))] = _KIDNEY
    voxels[inside((0, 80, 0), (1e4, 24, 22))] = _BONE
    liver = inside((5, -5, -70), (85, 80, 68)) | inside((25, -40, -10), (45, 42, 75))
    voxels[liver & ~inside((0, 75, -20), (1e4, 45, 45))] = _LIVER
    voxels[inside((15, 40, 95), (50, 38, 28))] = _SPLEEN
    voxels[inside((20, -30, 80), (50, 42, 38))] = _STOMACH
    for centre, radius in LESIONS:
        voxels[inside(centre, (radius, radius, radius))] = _LESION
    smooth = ndimage.gaussian_filter(voxels, (0.3, 0.6, 0.6))
    noise = ndimage.gaussian_filter(np.random.default_rng(7).normal(0, 1, SHAPE), (0, 0.7, 0.7))
    return np.asarray(np.rint(smooth + noise / noise.std() * _NOISE_HU), np.int16)


def write(folder: Path) -> None:
    """Write the series."""
    case = Case("liver-sample", 2, study_description="Phantom abdomen", series_description="Phantom abdomen")
    write_slices(folder, abdomen(), SPACING, case, "CT", BodyPartExamined="ABDOMEN")
