"""Four mammograms of nobody: half ellipses of fat with denser tissue within, one series for each view."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
from scipy import ndimage

from pacs_ai.testing.photographs import Case, mammogram, write_images

if TYPE_CHECKING:
    from pathlib import Path

    from pacs_ai.pipeline import Array

ROWS, COLUMNS = 480, 320
#: View and side of each series, in the order of their numbers.
SERIES: tuple[tuple[Literal["CC", "MLO"], Literal["L", "R"]], ...] = (
    ("CC", "L"), ("CC", "R"), ("MLO", "L"), ("MLO", "R"),
)  # fmt: skip


def breast(view: str, side: str) -> Array:
    """Return one view, (rows, columns) uint16, the chest wall at the image's side of the midline."""
    noise = np.random.default_rng(len(view) + ord(side))
    rows, columns = np.mgrid[:ROWS, :COLUMNS]
    lean = 0.25 * (rows - ROWS / 2) if view == "MLO" else 0.0
    outline = ((rows - ROWS / 2) / 200) ** 2 + ((columns + lean) / 240) ** 2 < 1
    tissue = ndimage.gaussian_filter(noise.normal(0, 1, (ROWS, COLUMNS)), 18)
    tissue = tissue / tissue.std() * 300 + 1500
    image = np.where(outline, tissue + noise.normal(0, 40, tissue.shape), 0).clip(0, 4095)
    return np.asarray(image if side == "L" else image[:, ::-1], np.uint16)


def write(folder: Path) -> None:
    """Write the four series."""
    for number, (view, side) in enumerate(SERIES, start=1):
        case = Case(
            "mammography-sample", number, study_description="Phantom mammography", series_description=f"{side} {view}"
        )
        write_images(folder / f"{side}{view}", [mammogram(breast(view, side), case, side, view)])
