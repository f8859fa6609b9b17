"""A brown spot on light skin, drawn: it looks as a photograph of a mole may look, and is nobody's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

from pacs_ai.testing.photographs import Case, photograph, write_images

if TYPE_CHECKING:
    from pathlib import Path

    from pacs_ai.pipeline import Array

_SKIN, _SPOT = (205.0, 155.0, 150.0), (120.0, 70.0, 60.0)


def spot(seed: int = 0, size: int = 300) -> Array:
    """Return a photograph, (size, size, 3) uint8 RGB: mottled skin, and an irregular brown spot of half its width."""
    rng = np.random.default_rng(seed)
    skin = np.ones((size, size, 3)) * (np.asarray(_SKIN) + rng.normal(0, 12, 3))
    for sigma, depth in ((12, 80), (1.5, 20)):
        skin += depth * ndimage.gaussian_filter(rng.normal(0, 1, (size, size)), sigma)[..., None]
    rows, columns = np.indices((size, size)) - size / 2
    angle = np.arctan2(rows, columns)
    waves = 0.15 * np.sin(3 * angle + rng.uniform(0, 6)) + 0.1 * np.sin(5 * angle + rng.uniform(0, 6))
    inside = 1 / (1 + np.exp((np.hypot(rows, columns) - size / 4 * (1 + waves)) / 6))
    mottled = np.clip(6 * ndimage.gaussian_filter(rng.normal(0, 1, (size, size)), 4), -1, 1)
    cover = (inside * (0.75 + 0.25 * mottled))[..., None]
    brown = np.asarray(_SPOT) + rng.normal(0, 10, 3)
    return np.asarray(np.clip(skin * (1 - cover) + brown * cover, 0, 255), np.uint8)


def write(folder: Path) -> None:
    """Write one photograph as VL Photographic Image."""
    case = Case("skin-lesion", study_description="Skin lesion")
    write_images(folder, [photograph(spot(), case, PatientAge="045Y", PatientSex="F")])
