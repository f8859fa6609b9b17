"""Where the voxels of a phantom lie in mm, and the ellipsoids that it is made of."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pacs_ai.pipeline import Array

Three = tuple[float, float, float]


def places(shape: Sequence[int], spacing: Sequence[float]) -> list[Array]:
    """Return z, y and x of every voxel's centre in mm from the middle, each of the grid's shape."""
    axes = [(np.arange(size) - (size - 1) / 2) * mm for size, mm in zip(shape, spacing, strict=True)]
    return list(np.meshgrid(*axes, indexing="ij"))


def ellipsoid(grid: Sequence[Array], centre: Three, half: Three) -> Array:
    """Return a mask of the voxels whose centres lie within an ellipsoid.

    Parameters
    ----------
    grid
        As `places` returns it.
    centre, half
        (z, y, x): its centre and its half axes in mm.
    """
    squares = (((axis - at) / size) ** 2 for axis, at, size in zip(grid, centre, half, strict=True))
    return np.asarray(sum(squares) < 1)
