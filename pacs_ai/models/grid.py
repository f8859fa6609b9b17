"""Between the node's grid, (slice, row, column) in LPS, and MONAI's, (column, row, slice) in RAS."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import nibabel.orientations
import numpy as np
import scipy.ndimage

from pacs_ai.errors import Reason, Refused

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


def reoriented(voxels: Array, affine: Array, like: Array | str) -> tuple[Array, Array]:
    """Turn and flip axes, exactly, until they run as nearly as possible along those of another grid.

    Parameters
    ----------
    voxels, affine
        Three axes and their (4, 4) index -> RAS mm.
    like
        The other grid's affine, or axis codes such as "LPS" (first axis to the left, second to the back, third up).

    Returns
    -------
    voxels, affine
        A view, and its affine: every voxel is where it was.
    """
    orientations = nibabel.orientations
    wanted = orientations.axcodes2ornt(like) if isinstance(like, str) else orientations.io_orientation(like)
    turn = orientations.ornt_transform(orientations.io_orientation(affine), wanted)
    turned = affine @ orientations.inv_ornt_aff(turn, voxels.shape)
    return orientations.apply_orientation(voxels, turn), turned


def _between(affine: Array, target: Array) -> tuple[Array, Array]:
    """Return matrix (3, 3) and shift (3,) from the indices of the grid `target` to those of the grid `affine`."""
    matrix = np.linalg.inv(affine) @ target
    return matrix[:3, :3], matrix[:3, 3]


def nearest(voxels: Array, affine: Array, shape: tuple[int, ...], target: Array) -> Array:
    """Resample labels by the nearest voxel onto another grid; 0 outside of the source.

    Parameters
    ----------
    voxels
        Three axes, in the index order of `affine`.
    affine, target
        (4, 4), index -> mm, both in the same patient coordinates; `target` with `shape` is the new grid.
    """
    turn, shift = _between(affine, target)
    # "grid-constant": a voxel reaches half its size beyond its centre, so the outermost ones are not lost
    return np.asarray(
        scipy.ndimage.affine_transform(voxels, turn, shift, output_shape=shape, order=0, mode="grid-constant", cval=0)
    )


def linear(voxels: Array, affine: Array, shape: tuple[int, ...], target: Array) -> Array:
    """Resample intensities linearly onto another grid, float32; the source's smallest value outside of it."""
    source = np.asarray(voxels, dtype=np.float32)
    turn, shift = _between(affine, target)
    values = scipy.ndimage.affine_transform(source, turn, shift, output_shape=shape, order=1, mode="nearest")
    inside = nearest(np.ones(source.shape, np.uint8), affine, shape, target)
    return np.where(inside == 1, values, source.min())


def aligned(volume: Volume, first: Volume, name: str, first_name: str) -> Array:
    """Return the voxels of `volume` on the grid of `first`, resampled linearly only where the grids differ.

    The caller guarantees one Frame of Reference UID; both affines are then in the same patient coordinates.

    Raises
    ------
    Refused
        The two series share no voxel.
    """
    shape, target = first.voxels.shape, first.affine
    if same_grid(volume.voxels.shape, volume.affine, shape, target):
        return volume.voxels
    if not nearest(np.ones(volume.voxels.shape, np.uint8), volume.affine, shape, target).any():
        raise Refused(
            f"the series {name} and {first_name} show different places: no voxel of {name} lies in {first_name}",
            Reason.ALIGNMENT,
        )
    return linear(volume.voxels, volume.affine, shape, target)
