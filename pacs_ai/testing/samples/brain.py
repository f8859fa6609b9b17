"""A phantom T1-weighted MR of a head: scalp, skull, fluid, folded grey matter, white matter, nuclei and ventricles."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import ndimage

from pacs_ai.testing.photographs import Case
from pacs_ai.testing.samples.solids import places
from pacs_ai.testing.slices import write_slices

if TYPE_CHECKING:
    from pathlib import Path

    from pacs_ai.pipeline import Array

#: (slices, rows, columns) and their spacing in mm.
SHAPE, SPACING = (118, 140, 112), (1.6, 1.6, 1.6)
AIR, SCALP, SKULL, FLUID, GREY, WHITE, MUSCLE = range(7)
#: Brightness of each.
_BRIGHTNESS = (6.0, 330.0, 22.0, 52.0, 150.0, 222.0, 120.0)
#: Centres (z, y, x) and half axes in mm of both sides alike: to the head, to the back, to the patient's left.
_BRAIN = ((18.0, 0.0, 0.0), (60.0, 82.0, 66.0))
_CEREBELLUM = ((-32.0, 42.0, 0.0), (21.0, 27.0, 45.0))
_STEM = ((-40.0, 16.0, 0.0), (42.0, 11.0, 12.0))
_NUCLEI = (((12.0, 6.0, 11.0), (9.0, 14.0, 8.0)), ((12.0, -12.0, 25.0), (11.0, 17.0, 7.0)))
_VENTRICLE = ((23.0, 0.0, 9.0), (7.0, 30.0, 5.0))
_FOLD_MM, _GREY_MM, _SEED = 5.5, 2.8, 3


def head() -> tuple[Array, Array]:
    """Return the head, (118, 140, 112) float32, from feet to head, and its tissue (`AIR` to `MUSCLE`), uint8."""
    grid = places(SHAPE, SPACING)
    dice = np.random.default_rng(_SEED)
    tissue = _surroundings(grid)
    _cerebrum(tissue, grid, dice)
    _below(tissue, grid)
    brightness = np.array(_BRIGHTNESS)[tissue]
    blurred = ndimage.gaussian_filter(brightness, 0.45) * (1 + 0.06 * grid[1] / 100)
    noisy = np.hypot(blurred + dice.normal(0, 4, SHAPE), dice.normal(0, 4, SHAPE))
    return noisy.astype(np.float32), tissue


def _depth(grid: list[Array], place: tuple[tuple[float, float, float], tuple[float, float, float]]) -> Array:
    """Return how deep a point lies in an ellipsoid, in mm, roughly; negative outside."""
    centre, half = place
    radius = np.sqrt(sum(((axis - at) / size) ** 2 for axis, at, size in zip(grid, centre, half, strict=True)))
    deep: Array = (1 - radius) * min(half)
    return deep


def _surroundings(grid: list[Array]) -> Array:
    """Return scalp, skull, fluid, face and neck."""
    z, y, x = grid
    tissue = np.zeros(SHAPE, np.uint8)
    tissue[np.hypot(y - 30, x) < 52] = MUSCLE
    tissue[(_depth(grid, ((-30.0, -38.0, 0.0), (58.0, 52.0, 56.0))) > 0)] = MUSCLE
    tissue[z > 20] = AIR
    outside = _depth(grid, _BRAIN)
    cranium = np.maximum(outside, _depth(grid, _CEREBELLUM) - 2)
    tissue[outside > -14] = SCALP
    tissue[cranium > -8.5] = SKULL
    tissue[cranium > -3] = FLUID
    return tissue


def _cerebrum(tissue: Array, grid: list[Array], dice: np.random.Generator) -> None:
    """Paint the hemispheres, folded, with nuclei and ventricles."""
    z, y, x = grid
    rough = ndimage.gaussian_filter(dice.standard_normal(SHAPE), _FOLD_MM / SPACING[0])
    folds = np.abs(rough / rough.std())
    depth = _depth(grid, _BRAIN)
    # furrows run along where the noise crosses zero, and die out 20 mm below the surface
    furrow = np.minimum(depth, np.maximum(_FOLD_MM * (folds - 0.1), (depth - 20) * 0.9))
    furrow = np.minimum(furrow, np.where(z > 30, np.abs(x) - 1.2, 99.0))
    # below the middle lie the cisterns, and the temporal lobes at their sides
    within = (depth > 0) & ((z > -8) | (np.abs(x) > 16) | (y > 40))
    tissue[within & (furrow > 0)] = GREY
    tissue[within & (furrow > _GREY_MM)] = WHITE
    for side in (-1, 1):
        for (zc, yc, xc), half in _NUCLEI:
            tissue[_depth(grid, ((zc, yc, side * xc), half)) > 0] = GREY
        (zc, yc, xc), half = _VENTRICLE
        tissue[_depth(grid, ((zc, yc, side * xc), half)) > 0] = FLUID
    tissue[_depth(grid, ((10.0, 2.0, 0.0), (9.0, 12.0, 2.5))) > 0] = FLUID


def _below(tissue: Array, grid: list[Array]) -> None:
    """Paint cerebellum and brain stem."""
    depth = _depth(grid, _CEREBELLUM)
    tissue[depth > -2] = FLUID
    tissue[depth > 0] = GREY
    tissue[(depth > 0) & ((depth > 9) | (np.abs(np.sin(grid[0] / 1.9)) < 0.3)) & (depth > 3)] = WHITE
    stem = _depth(grid, _STEM)
    tissue[stem > -2.5] = FLUID
    tissue[stem > 0] = WHITE
    tissue[_depth(grid, ((-30.0, 28.0, 0.0), (11.0, 4.0, 6.0))) > 0] = FLUID


def write(folder: Path, **attributes: Any) -> None:
    """Write the head as a T1-weighted MR series."""
    case = Case("brain-phantom", study_description="MR of the head", series_description="T1 3D")
    stated = {"BodyPartExamined": "BRAIN", "EchoTime": 3, "RepetitionTime": 2000, "InversionTime": 900, **attributes}
    write_slices(folder, head()[0], SPACING, case, "MR", **stated)
