"""Images on a finer or coarser grid of the same extent, one axis after another by matrices: exact, and as fast as BLAS.

Interpolating by splines is linear and separable, so along one axis it is a matrix. The matrix is taken from
`scipy.ndimage.zoom` itself (``grid_mode``, edge voxels repeated), which is what scikit-image's and so nnU-Net's
resampling does voxel by voxel.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import scipy.ndimage
import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pacs_ai.pipeline import Array

#: Order of the axis along which the nearest plane is taken.
NEAREST = 0


@lru_cache(maxsize=32)
def operator(size: int, new_size: int, order: int) -> Array:
    """Return the matrix (new_size, size) float64 that interpolates along one axis by splines of an order, 0 to 5."""
    if size == new_size:
        same: Array = np.eye(size)
        return same
    if order == NEAREST:
        place = size / new_size * (np.arange(new_size) + 0.5) - 0.5
        nearest = np.clip(np.floor(place + 0.5).astype(int), 0, size - 1)
        picked: Array = np.eye(size)[nearest]
        return picked
    columns = [
        scipy.ndimage.zoom(point, new_size / size, order=order, mode="nearest", grid_mode=True)  # type: ignore[call-overload]
        for point in np.eye(size)
    ]
    return np.stack(columns, axis=1)


@dataclass(frozen=True)
class Grids:
    """From one grid to another: sizes and the order of the spline, for each of three axes.

    Parameters
    ----------
    sizes, new_sizes
        Voxels along each axis.
    orders
        Of the spline along each axis.
    """

    sizes: tuple[int, ...]
    new_sizes: tuple[int, ...]
    orders: tuple[int, ...]

    def matrix(self, axis: int) -> Array:
        """Return (new size, size) float64 of one axis."""
        return operator(self.sizes[axis], self.new_sizes[axis], self.orders[axis])

    @property
    def changed(self) -> tuple[int, ...]:
        """Axes whose size changes."""
        return tuple(axis for axis in range(len(self.sizes)) if self.sizes[axis] != self.new_sizes[axis])


def resampled(voxels: Array, grids: Grids) -> Array:
    """Return an image on the other grid, within its own range of values; float32 (three axes) both.

    Where one axis is of order 0, each plane across it keeps its own range (nnU-Net's "separate z").
    """
    if not grids.changed:
        return voxels
    apart = [axis for axis in range(3) if grids.orders[axis] == NEAREST]
    across = tuple(axis for axis in range(3) if axis not in apart)
    image = torch.from_numpy(voxels)
    low, high = torch.aminmax(image) if not apart else (image.amin(across, True), image.amax(across, True))
    for axis in sorted(set(grids.changed) & set(across), key=lambda one: grids.new_sizes[one] / grids.sizes[one]):
        image = _along(image, grids.matrix(axis), axis)
    if set(grids.changed) & set(across):
        image = torch.clamp(image, low, high)
    for axis in set(grids.changed) & set(apart):
        image = image.index_select(axis, torch.from_numpy(grids.matrix(axis).argmax(1)))
    return image.contiguous().numpy()


def _along(image: torch.Tensor, matrix: Array, axis: int) -> torch.Tensor:
    """Multiply one axis by a matrix, without turning the image."""
    weights = torch.from_numpy(matrix.astype(np.float32))
    if axis == image.ndim - 1:
        return image @ weights.T
    before, after = image.shape[:axis], image.shape[axis + 1 :]
    done = torch.matmul(weights, image.reshape(*before, image.shape[axis], -1))
    return done.reshape(*before, weights.shape[0], *after)


def separate_axis(spacing: Sequence[float], new_spacing: Sequence[float], threshold: float = 3.0) -> int | None:
    """Return the axis that nnU-Net resamples on its own, None for none: the one that is `threshold` times as coarse.

    The first grid decides where its own spacing is uneven, else the second; two axes equally coarse count as none.
    """
    for one in (np.asarray(spacing, dtype=float), np.asarray(new_spacing, dtype=float)):
        if one.max() / one.min() > threshold:
            coarsest = np.flatnonzero(one.max() / one == 1)
            return int(coarsest[0]) if len(coarsest) == 1 else None
    return None
