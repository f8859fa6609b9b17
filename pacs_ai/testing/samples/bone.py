"""Two views of a wrist made of rods, for the reading of bone radiographs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

from pacs_ai.testing.photographs import Case, film, write_images

if TYPE_CHECKING:
    from pathlib import Path

    from pacs_ai.pipeline import Array

ROWS, COLUMNS = 420, 300


def wrist(view: str) -> Array:
    """Return one view, (rows, columns) uint16, bright where it is dense: two bones and three small ones."""
    rows, columns = np.mgrid[:ROWS, :COLUMNS]
    image = np.where(abs(columns - COLUMNS / 2) < 95, 700.0, 120.0)
    for middle in (115, 185) if view == "PA" else (140, 158):
        within = abs(columns - middle - 6 * np.sin(rows / 90)) < 24
        image += np.where(within & (rows > 90), 900.0, 0.0)
    for row, column in ((50, 110), (45, 150), (52, 190)):
        image += np.where((rows - row) ** 2 + (columns - column) ** 2 < 22**2, 800.0, 0.0)
    blurred = ndimage.gaussian_filter(image, 2.0) + np.random.default_rng(len(view)).normal(0, 25, image.shape)
    return np.asarray(blurred.clip(0, 4095), np.uint16)


def write(folder: Path) -> None:
    """Write both views as one series."""
    views = ("PA", "LL")
    cases = [
        Case("bone-sample", 1, number, study_description="Phantom wrist", series_description="Wrist")
        for number, _ in enumerate(views, start=1)
    ]
    images = [
        film(wrist(view), case, "CR", view, BodyPartExamined="WRIST") for view, case in zip(views, cases, strict=True)
    ]
    write_images(folder, images)
