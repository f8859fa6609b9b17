"""Sinograms of a few planes through a body of ellipses with hot spots, with the noise of so many counts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

from pacs_ai.models.readings.pet_sinogram import SIZE
from pacs_ai.models.readings.tomography import scanner
from pacs_ai.testing.photographs import Case
from pacs_ai.testing.slices import write_sinograms

if TYPE_CHECKING:
    from pathlib import Path

    from pacs_ai.pipeline import Array

#: Planes, and their distance and the width of a bin in mm.
PLANES, SPACING = 8, (4.0, 3.5, 3.5)
#: Coincidences in each plane.
COUNTS = 4e5


def planes() -> tuple[Array, Array]:
    """Return sinograms (planes, angles, bins) and the images behind them, in counts per pixel and angle."""
    row, column = np.mgrid[:SIZE, :SIZE] - (SIZE - 1) / 2
    images = np.zeros((PLANES, SIZE, SIZE), np.float32)
    for index, image in enumerate(images):
        image[(row / 42) ** 2 + (column / 56) ** 2 < 1] = 1.0
        for side in (-1, 1):
            image[(row / 24) ** 2 + ((column - 27 * side) / 16) ** 2 < 1] = 0.3
        for k, (y, x, radius) in enumerate(((-12, 4, 9), (22, -30, 4), (24, 20, 2.5), (-2, 30, 3.5))):
            image[(row - y) ** 2 + (column - x - index) ** 2 < radius**2] = (3.0, 5.0, 6.0, 4.0)[k]
        image[:] = ndimage.gaussian_filter(image, 0.8)
    clean = scanner(SIZE, SIZE).project(images)
    factor = (COUNTS / clean.sum((1, 2))).astype(np.float32)[:, None, None]
    counts = np.random.default_rng(5).poisson(clean * factor).astype(np.float32)
    return counts, images * factor * scanner(SIZE, SIZE).circle


def write(folder: Path) -> None:
    """Write the series of sinograms."""
    case = Case("pet-reconstruction-sample", 2, study_description="Phantom PET")
    write_sinograms(folder, planes()[0], SPACING, case, BodyPartExamined="CHEST")
