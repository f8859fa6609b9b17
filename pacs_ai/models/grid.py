"""Between the node's grid, (slice, row, column) in LPS, and MONAI's, (column, row, slice) in RAS."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.ndimage

from pacs_ai.errors import Refused

if TYPE_CHECKING:
    from pacs_ai.pipeline import Array, Volume

#: Patient coordinates between LPS and RAS: x and y change sign.
FLIP = np.diag([-1.0, -1.0, 1.0, 1.0])
#: (slice, row, column) from (column, row, slice), and back.
SWAP = np.eye(4)[[2, 1, 0, 3]]
#: Two grids are one where no corner lies further apart, in mm.
SAME_GRID_MM = 1e-2


def ras_affine(affine: Array) -> Array:
    """Turn (slice, row, column) -> LPS mm into (column, row, slice) -> RAS mm, or back; (4, 4) float64 both."""
    turned: Array = FLIP @ np.asarray(affine, dtype=np.float64) @ SWAP
    return turned


def corners(shape: tuple[int, ...]) -> Array:
    """Return the (4, 8) homogeneous indices of a grid's corner voxels."""
    ends = itertools.product(*[(0, size - 1) for size in shape])
    return np.array([[*corner, 1] for corner in ends], dtype=np.float64).T


def same_grid(shape: tuple[int, ...], affine: Array, other_shape: tuple[int, ...], other: Array) -> bool:
    """Whether two grids, each by its shape and affine, have the same voxels within `SAME_GRID_MM`."""
    if tuple(shape) != tuple(other_shape):
        return False
    apart = (np.asarray(affine, dtype=np.float64) - np.asarray(other, dtype=np.float64)) @ corners(tuple(shape))
    return bool(np.abs(apart).max() <= SAME_GRID_MM)


def onto(voxels: Array, affine: Array, shape: tuple[int, ...], target: Array, *, order: int, fill: float) -> Array:
    """Resample `voxels` of the grid `affine` onto the grid (`shape`, `target`).

    Parameters
    ----------
    voxels
        Three axes, in the index order of `affine`.
    affine, target
        (4, 4), index -> mm, both in the same patient coordinates.
    order
        0 nearest neighbour (labels), 1 linear (intensities).
    fill
        Value outside of the source.
    """
    matrix = np.linalg.inv(affine) @ target
    if order == 0:
        return np.asarray(scipy.ndimage.affine_transform(voxels, matrix, output_shape=shape, order=0, cval=fill))
    source = voxels.astype(np.float32, copy=False)
    # "grid-constant" would blend with `fill` half a voxel inside of the border, "constant" cuts there: pad by "nearest"
    values = scipy.ndimage.affine_transform(source, matrix, output_shape=shape, order=order, mode="nearest")
    inside = scipy.ndimage.affine_transform(
        np.ones(source.shape, np.uint8), matrix, output_shape=shape, order=0, cval=0
    )
    return np.where(inside == 1, values, np.float32(fill))


def aligned(volume: Volume, first: Volume, name: str, first_name: str) -> Any:
    """Return the voxels of `volume` on the grid of `first`, resampled linearly only where the grids differ.

    The caller guarantees one Frame of Reference UID; both affines are then in the same patient coordinates.

    Raises
    ------
    Refused
        The two series share no voxel.
    """
    if same_grid(volume.voxels.shape, volume.affine, first.voxels.shape, first.affine):
        return volume.voxels
    ones = np.ones(volume.voxels.shape, np.uint8)
    covered = onto(ones, volume.affine, first.voxels.shape, first.affine, order=0, fill=0)
    if not covered.any():
        raise Refused(
            f"the series {name} and {first_name} show different places: no voxel of {name} lies in {first_name}"
        )
    fill = float(volume.voxels.min())
    return onto(volume.voxels, volume.affine, first.voxels.shape, first.affine, order=1, fill=fill)
