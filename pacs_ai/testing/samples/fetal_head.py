"""A phantom ultrasound frame with a fetal head of known circumference: a sector of speckle, a skull, its midline."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from pacs_ai.testing.photographs import Case, ultrasound, write_images

if TYPE_CHECKING:
    from pathlib import Path

Image = npt.NDArray[np.float64]

ROWS, COLUMNS = 540, 800
MM_PER_PIXEL = 0.2
#: Half axes of the skull's outer edge in mm, and its angle in radians.
LONG_MM, SHORT_MM, ANGLE = 43.0, 33.0, -0.15
#: Circumference of that ellipse in mm, to 0.1 mm.
CIRCUMFERENCE_MM = 239.8
_CENTRE = (400.0, 285.0)
_SKULL_MM, _SEED = 2.4, 11


@lru_cache(maxsize=4)
def frame(circumference_mm: float = CIRCUMFERENCE_MM) -> npt.NDArray[np.uint8]:
    """Return (540, 800) uint8: a head of that circumference; 0 leaves it out."""
    x, y = np.meshgrid(np.arange(COLUMNS) + 0.5, np.arange(ROWS) + 0.5)
    dice = np.random.default_rng(_SEED)
    echo = np.full((ROWS, COLUMNS), 0.24) + 0.1 * _clouds(dice)
    if circumference_mm:
        echo = _with_head(echo, x, y, circumference_mm / CIRCUMFERENCE_MM, dice)
    speckle = ndimage.gaussian_filter(dice.rayleigh(1.0, (ROWS, COLUMNS)), (1.0, 1.6))
    seen = _sector(x, y) * np.clip(echo * speckle, 0, 1)
    made = np.asarray(np.round(255 * seen), np.uint8)
    made.flags.writeable = False
    return made


def _clouds(dice: np.random.Generator) -> Image:
    rough = ndimage.gaussian_filter(dice.standard_normal((ROWS, COLUMNS)), 30)
    return np.asarray(rough / rough.std())


def _sector(x: Image, y: Image) -> Image:
    """Return 1 within the sector of a curved probe, 0 outside."""
    distance, angle = np.hypot(x - COLUMNS / 2, y + 160), np.arctan2(x - COLUMNS / 2, y + 160)
    return ((distance > 170) & (distance < 690) & (np.abs(angle) < 0.62)).astype(np.float64)


def _with_head(echo: Image, x: Image, y: Image, size: float, dice: np.random.Generator) -> Image:
    long, short = (half * size / MM_PER_PIXEL for half in (LONG_MM, SHORT_MM))
    u = (x - _CENTRE[0]) * math.cos(ANGLE) + (y - _CENTRE[1]) * math.sin(ANGLE)
    v = (y - _CENTRE[1]) * math.cos(ANGLE) - (x - _CENTRE[0]) * math.sin(ANGLE)
    depth = (1 - np.hypot(u / long, v / short)) * short * MM_PER_PIXEL
    fluid = np.where((depth < 0) & (depth > -5), 0.06, echo)
    head = np.where(depth > 0, 0.16 + 0.04 * _clouds(dice), fluid)
    # what lies across the beam echoes most: the skull is bright above and below, faint at the sides
    across = 0.35 + 0.65 * np.abs(v / short) ** 1.5
    skull = across * np.exp(-(((depth - _SKULL_MM / 2) / (_SKULL_MM / 2)) ** 2))
    midline = 0.5 * np.exp(-((v / 4) ** 2)) * (np.abs(u) < 0.7 * long) * (depth > 3)
    return np.asarray(np.maximum(head, np.maximum(0.85 * skull, midline)))


def write(folder: Path, **attributes: Any) -> None:
    """Write the frame as an Ultrasound Image with its scale."""
    case = Case("fetal-head-phantom", study_description="Obstetric ultrasound", series_description="Head")
    write_images(folder, [ultrasound(frame(), case, MM_PER_PIXEL, **attributes)])
