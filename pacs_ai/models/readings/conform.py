"""A head on the grid that brain models are trained on: 256 x 256 x 256 voxels of 1 mm, 8 bits, axes L, I, A.

This is what FreeSurfer's ``mri_convert --conform`` makes and what brainchop feeds its models with: the grid is centred
on the series' own, its axes are the patient's (so that an oblique series is turned upright), intensities are resampled
linearly and scaled so that the brightest 0.1 % of what is not empty is cut off.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import scipy.ndimage

from pacs_ai.errors import Reason, Refused

if TYPE_CHECKING:
    from pacs_ai.pipeline import Array, Volume

#: Voxels along each axis, and their distance in mm.
SIDE = 256
#: The brightest voxels (of those that are not zero) that are cut off.
BRIGHTEST = 0.001
#: Source voxels whose labels are looked up at once.
SLAB_VOXELS = 2_000_000


@dataclass(frozen=True)
class Conformed:
    """A head on the models' grid.

    Parameters
    ----------
    voxels
        (left, inferior, anterior) uint8: each index grows in the direction that names it.
    affine
        (4, 4) float64: index -> LPS mm.
    """

    voxels: Array
    affine: Array


def conform(volume: Volume) -> Conformed:
    """Bring a volume onto the models' grid.

    Raises
    ------
    Refused
        The series is all of one value.
    """
    affine = conformed_affine(volume.shape, volume.affine)
    turn = np.linalg.inv(volume.affine) @ affine
    first, last = _reached(volume.shape, np.linalg.inv(turn))
    values = np.full((SIDE,) * 3, volume.voxels.min(), np.float32)
    values[first[0] : last[0], first[1] : last[1], first[2] : last[2]] = scipy.ndimage.affine_transform(
        volume.voxels.astype(np.float32),
        turn[:3, :3],
        turn[:3, :3] @ first + turn[:3, 3],
        output_shape=tuple(last - first),
        order=1,
        mode="constant",
        cval=float(volume.voxels.min()),
    )
    return Conformed(_eight_bits(values), affine)


def _reached(shape: tuple[int, int, int], back: Array) -> tuple[Array, Array]:
    """Return the first index of the grid that the source reaches along each axis, and the one behind the last."""
    corners = np.array(list(itertools.product(*[(0, size - 1) for size in shape]))) @ back[:3, :3].T + back[:3, 3]
    first = np.clip(np.floor(corners.min(axis=0)), 0, SIDE - 1).astype(int)
    last = np.clip(np.ceil(corners.max(axis=0)) + 1, 1, SIDE).astype(int)
    return first, last


def conformed_affine(shape: tuple[int, int, int], affine: Array) -> Array:
    """Return index -> LPS mm of the models' grid, whose voxel (128, 128, 128) is the middle of the source."""
    middle = affine @ np.array([*(size / 2 for size in shape), 1.0])
    grid = np.zeros((4, 4))
    grid[0, 0], grid[2, 1], grid[1, 2] = 1.0, -1.0, -1.0
    grid[:, 3] = middle - grid @ np.array([SIDE / 2, SIDE / 2, SIDE / 2, 0.0])
    return grid


def _eight_bits(values: Array) -> Array:
    """Scale to 0 to 255, the brightest voxels cut off; `Refused` where all are equal."""
    low = float(values.min())
    seen = values[values > low]
    if not len(seen):
        raise Refused("all voxels of the series have one value: there is nothing to see", Reason.INTENSITY)
    high = float(np.quantile(seen, 1 - BRIGHTEST))
    if high <= low:
        high = float(seen.max())
    scaled: Array = np.rint(np.clip((values - low) * (255.0 / (high - low)), 0, 255)).astype(np.uint8)
    return scaled


def labels_on(labels: Array, grid: Array, shape: tuple[int, int, int], affine: Array) -> Array:
    """Bring a label map from the models' grid onto a source's, slab by slab.

    Each source voxel gets the label with the greatest weight among its eight neighbours, which is the arg-max of the
    linearly resampled indicator of every label, at a cost that does not depend on their number.

    Parameters
    ----------
    labels, grid
        uint8 on any grid, and its index -> LPS mm.
    shape, affine
        The source's grid.

    Returns
    -------
    numpy.ndarray
        `shape`, uint8; 0 outside of `grid`.
    """
    padded = np.pad(labels, 1)
    result = np.zeros(shape, np.uint8)
    turn = np.linalg.inv(grid) @ affine
    step = max(1, SLAB_VOXELS // (shape[1] * shape[2]))
    for start in range(0, shape[0], step):
        planes = np.arange(start, min(start + step, shape[0]))
        result[planes] = _slab(padded, turn, planes, shape)
    return result


def _slab(padded: Array, turn: Array, planes: Array, shape: tuple[int, int, int]) -> Array:
    """Return the labels of some planes of the source; `padded` has one voxel of 0 around."""
    indices = np.meshgrid(planes, np.arange(shape[1]), np.arange(shape[2]), indexing="ij", sparse=True)
    corners, weights = [], []
    inside = np.ones((len(planes), *shape[1:]), bool)
    for axis in range(3):
        at = sum(turn[axis, k].astype(np.float32) * indices[k].astype(np.float32) for k in range(3))
        at = at + np.float32(turn[axis, 3] + 1)
        low = np.floor(at)
        inside &= (low >= 0) & (low <= padded.shape[axis] - 2)
        corners.append(np.clip(low, 0, padded.shape[axis] - 2).astype(np.int32))
        weights.append(at - low)
    flat = (corners[0] * padded.shape[1] + corners[1]) * padded.shape[2] + corners[2]
    return np.where(inside, _voted(padded, flat, weights), np.uint8(0))


def _voted(padded: Array, flat: Array, weights: list[Array]) -> Array:
    """Return the heaviest label among the eight voxels from `flat` on; ties go to the lower corner's."""
    around = list(itertools.product((0, 1), repeat=3))
    steps = [(i * padded.shape[1] + j) * padded.shape[2] + k for i, j, k in around]
    values = padded.ravel()
    chosen = values[flat]
    mixed = np.zeros(flat.shape, bool)
    for step in steps[1:]:
        mixed |= values[flat + step] != chosen
    base = flat[mixed]
    near = np.stack([values[base + step] for step in steps])
    sides = [np.stack([1 - weight[mixed], weight[mixed]]) for weight in weights]
    heavy = np.stack([sides[0][i] * sides[1][j] * sides[2][k] for i, j, k in around])
    votes = np.stack([(heavy * (near == one)).sum(0) for one in near])
    chosen[mixed] = np.take_along_axis(near, votes.argmax(0)[None], 0)[0]
    return chosen
