"""A phantom photograph of the fundus: a red disc on black with optic disc, macula, and branching arteries and veins."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from pacs_ai.testing.photographs import Case, fundus, write_images

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pacs_ai.pipeline import Array

ROWS, COLUMNS = 1000, 1200
#: Centre (row, column) and radius of the field of view, of the optic disc and of the macula.
FIELD, DISC, MACULA = ((500.0, 600.0), 480.0), ((490.0, 360.0), 58.0), ((515.0, 690.0), 70.0)
ARTERY, VEIN = 1, 2
#: Width at the optic disc in pixels, and what it loses of red, green and blue.
_KINDS = {ARTERY: (7.5, (10.0, 36.0, 14.0)), VEIN: (10.5, (62.0, 50.0, 22.0))}
#: Angle in degrees under which each leaves the optic disc (0: to the macula, 90: down), and how it bends per pixel.
_STEMS = {
    ARTERY: ((-62.0, 0.105), (58.0, -0.10), (-125.0, -0.05), (120.0, 0.05), (-18.0, -0.02)),
    VEIN: ((-75.0, 0.12), (72.0, -0.115), (-140.0, -0.04), (142.0, 0.04), (20.0, 0.03)),
}
_STEP, _THINNEST, _SEED = 4.0, 2.2, 5


def photograph() -> tuple[Array, Array]:
    """Return the photograph, (1000, 1200, 3) uint8 RGB, and its vessels, (1000, 1200) uint8: `ARTERY`, `VEIN`."""
    dice = np.random.default_rng(_SEED)
    rows, columns = np.mgrid[:ROWS, :COLUMNS]
    (row, column), radius = FIELD
    from_centre = np.hypot(rows - row, columns - column) / radius
    shade = 1.0 - 0.45 * np.clip(from_centre, 0, 1) ** 2
    cloud = ndimage.gaussian_filter(dice.standard_normal((ROWS, COLUMNS)), 40)
    picture = np.array([196.0, 86.0, 40.0]) * (shade + 0.04 * cloud / cloud.std())[..., None]
    picture -= _spot(rows, columns, MACULA)[..., None] * np.array([60.0, 38.0, 18.0])
    disc = 1 / (1 + np.exp((np.hypot(rows - DISC[0][0], columns - DISC[0][1]) - DISC[1]) / 4))
    picture += disc[..., None] * np.array([52.0, 95.0, 60.0])
    vessels = np.zeros((ROWS, COLUMNS), np.uint8)
    for kind in (ARTERY, VEIN):
        covered = _drawn(kind)
        picture -= covered[..., None] * np.array(_KINDS[kind][1])
        vessels[covered > 0.5] = kind
    picture = ndimage.gaussian_filter(picture, (1.0, 1.0, 0)) + dice.normal(0, 2.5, picture.shape)
    inside = from_centre <= 1
    return np.clip(np.where(inside[..., None], picture, 4), 0, 255).astype(np.uint8), np.where(inside, vessels, 0)


def _spot(rows: Array, columns: Array, place: tuple[tuple[float, float], float]) -> Array:
    (row, column), radius = place
    spot: Array = np.exp(-((rows - row) ** 2 + (columns - column) ** 2) / (2 * radius**2))
    return spot


def _drawn(kind: int) -> Array:
    """Return how much of each pixel the vessels of one kind cover, 0 to 1."""
    scale = 2
    canvas = Image.new("L", (COLUMNS * scale, ROWS * scale))
    pen = ImageDraw.Draw(canvas)
    for angle, bend in _STEMS[kind]:
        start = (DISC[0][1] + 6 * kind, DISC[0][0])
        for x, y, width in _vessel(start, angle, bend, _KINDS[kind][0], 0):
            half = width / 2
            pen.ellipse([scale * (x - half), scale * (y - half), scale * (x + half), scale * (y + half)], fill=255)
    return np.asarray(canvas.resize((COLUMNS, ROWS), Image.Resampling.BOX), np.float64) / 255.0


def _vessel(
    start: tuple[float, float], angle: float, bend: float, width: float, depth: int
) -> Iterator[tuple[float, float, float]]:
    """Yield column, row and width along a vessel and its branches, which leave it on alternating sides."""
    x, y = start
    for step in range(1, 220):
        if width < _THINNEST:
            return
        yield x, y, width
        x += _STEP * math.cos(math.radians(angle))
        y += _STEP * math.sin(math.radians(angle))
        angle += bend * _STEP * (1 if step < 110 else 0.3) + 1.6 * math.sin(step / 7 + depth)
        width *= 0.9945
        if depth < 3 and step % 33 == 0:
            side = 1 if (step // 33 + depth) % 2 else -1
            yield from _vessel((x, y), angle + side * 48, -side * 0.06, width * 0.66, depth + 1)
            width *= 0.95


def write(folder: Path, **attributes: Any) -> None:
    """Write the photograph as an Ophthalmic Photography image of a left eye."""
    case = Case("retina-phantom", study_description="Photography of the fundus", series_description="Colour fundus")
    write_images(folder, [fundus(photograph()[0], case, "L", **attributes)])
