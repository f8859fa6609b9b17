"""A head made of ellipsoids: its T1, and a noisy PET in which grey matter takes up four times as much as white."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

from pacs_ai.testing.photographs import Case
from pacs_ai.testing.samples.solids import places
from pacs_ai.testing.slices import write_slices

if TYPE_CHECKING:
    from pathlib import Path

    from pacs_ai.pipeline import Array

#: (slices, rows, columns) and their spacing in mm.
SHAPE, SPACING = (56, 84, 72), (2.0, 2.0, 2.0)
_BQML = 8000.0
_NOISE = 0.25


def head() -> tuple[Array, Array, Array]:
    """Return T1, noisy PET and the PET without noise, each (slices, rows, columns) from feet to head."""
    z, y, x = places(SHAPE, SPACING)

    def shell(scale: float, ripple: float = 0.0) -> Array:
        waves = 1 + ripple * np.sin(x / 5) * np.sin(y / 6) * np.sin(z / 5)
        return np.asarray((z / 50) ** 2 + (y / 75) ** 2 + (x / 62) ** 2 < (scale * waves) ** 2)

    scalp, skull, brain, white, hollow = shell(1.0), shell(0.93), shell(0.86), shell(0.68, 0.12), shell(0.18)
    t1, pet = np.zeros(SHAPE, np.float32), np.zeros(SHAPE, np.float32)
    for part, bright, active in (
        (scalp, 700, 0.15), (skull, 80, 0.05), (brain, 450, 1.0), (white, 700, 0.25), (hollow, 150, 0.03),
    ):  # fmt: skip
        t1[part], pet[part] = bright, active
    expected = ndimage.gaussian_filter(pet, 1.1) * _BQML
    rng = np.random.default_rng(11)
    noise = ndimage.gaussian_filter(rng.normal(0, 1, SHAPE), 0.9)
    noisy = np.maximum(expected + noise / noise.std() * _NOISE * np.sqrt(expected * _BQML * 0.25), 0)
    t1 = np.maximum(ndimage.gaussian_filter(t1, 0.5) + rng.normal(0, 15, SHAPE), 0)
    return t1.astype(np.float32), noisy.astype(np.float32), expected.astype(np.float32)


def write(folder: Path) -> None:
    """Write both series of one study."""
    t1, pet, _ = head()
    study = "Phantom head"
    pet_case = Case("pet-denoise-sample", 2, study_description=study, series_description="Phantom PET")
    write_slices(folder / "pet", pet, SPACING, pet_case, "PT", BodyPartExamined="HEAD", Units="BQML")
    t1_case = Case("pet-denoise-sample", 3, study_description=study, series_description="Phantom T1")
    write_slices(folder / "t1", t1, SPACING, t1_case, "MR", BodyPartExamined="HEAD")
