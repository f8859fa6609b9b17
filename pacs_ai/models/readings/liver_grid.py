"""From a CT to the voxels that the liver's networks were trained on, and back onto the CT."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

from pacs_ai.models.grid import ras_affine, reoriented

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pacs_ai.pipeline import Array, Volume

Box = tuple[slice, slice, slice]

#: Denser than this is body, less dense than this is lung, in HU.
TISSUE_HU, LUNG_HU = -150.0, -600.0
#: What the liver's network sees at most, along x, y and z; how far above the lungs' lower end that begins.
LARGEST_MM = (489.0, 408.0, 408.0)
ABOVE_DOME_MM = 70.0
#: The body is looked for in steps of about this many millimetres.
_COARSE_MM = 3.0
#: A slice shows lung where so much of its body, and half as much as the slice with most, is lung.
_SOME_LUNG = 0.05
#: Denser than this is bone, in HU. Hips are bone on either side, this far from the middle of the body in mm.
BONE_HU, _ASIDE_MM = 250.0, (50.0, 170.0)
#: Of such bone the waist shows less, and the hips show more on both sides, in mm2; for so many mm of the body's length.
_WAIST_MM2, _HIP_MM2 = 100.0, 150.0
_WAIST_MM, _HIP_MM = 12.0, 21.0
#: The waist begins at most this far above.
_NEAR_MM = 24.0
#: How far below the upper edge of the hips is looked.
BELOW_CREST_MM = 50.0


def upright(volume: Volume) -> tuple[Array, tuple[float, float, float]]:
    """Return the voxels with axes x, y, z (to the right's end: RAS; a view) and their spacing in mm."""
    voxels, affine = reoriented(volume.voxels.transpose(2, 1, 0), ras_affine(volume.affine), "RAS")
    x, y, z = (float(np.linalg.norm(affine[:3, axis])) for axis in range(3))
    return voxels, (x, y, z)


def laid_back(mask: Array, volume: Volume) -> Array:
    """Turn axes x, y, z into the volume's own (slice, row, column)."""
    like = ras_affine(volume.affine)
    _, affine = reoriented(volume.voxels.transpose(2, 1, 0), like, "RAS")
    turned, _ = reoriented(mask, affine, like)
    return np.ascontiguousarray(turned.transpose(2, 1, 0))


def box_of(mask: Array, margin: Sequence[int] = (0, 0, 0)) -> Box:
    """Return the smallest box around a mask that is not empty, wider by a margin within the array."""
    found = ndimage.find_objects(mask.astype(np.uint8))[0]
    x, y, z = (
        slice(max(0, one.start - more), min(size, one.stop + more))
        for one, more, size in zip(found, margin, mask.shape, strict=True)
    )
    return x, y, z


def abdomen(voxels: Array, spacing: tuple[float, float, float]) -> Box:
    """Return where the abdomen is: the body across, and along it what lies between the dome of the liver and the hips.

    As the authors cut, but for the way in which hips are found: what is left is at most `LARGEST_MM`, taken from above.
    Without that cut the network, which normalises over all that it sees, takes kidney and colon for liver.
    """
    steps = tuple(max(1, round(_COARSE_MM / mm)) for mm in spacing)
    coarse = voxels[:: steps[0], :: steps[1], :: steps[2]]
    labels, count = ndimage.label(ndimage.binary_erosion(coarse > TISSUE_HU))
    if not count:
        return slice(0, voxels.shape[0]), slice(0, voxels.shape[1]), slice(0, voxels.shape[2])
    body = labels == 1 + int(np.argmax(np.bincount(labels.ravel())[1:]))
    across = box_of(body, (1, 1, 0))
    lung = _lung_end(coarse, body)
    top = min(int(coarse.shape[2]), int(lung + np.ceil(ABOVE_DOME_MM / (spacing[2] * steps[2]))) + 1)
    low = _bottom(coarse, body, tuple(mm * step for mm, step in zip(spacing, steps, strict=True)), lung)
    ends = (slice(across[0].start, across[0].stop), slice(across[1].start, across[1].stop), slice(low, top))
    found = [
        slice(one.start * n, min(one.stop * n, size)) for one, n, size in zip(ends, steps, voxels.shape, strict=True)
    ]
    x, y = (_cut(one, round(LARGEST_MM[axis] / spacing[axis])) for axis, one in enumerate(found[:2]))
    longest = int(LARGEST_MM[2] / spacing[2])
    return x, y, slice(max(found[2].start, found[2].stop - longest), found[2].stop)


def _cut(one: slice, longest: int) -> slice:
    """Return the middle of a range that is too long."""
    over = max(0, one.stop - one.start - longest)
    return slice(one.start + over // 2, one.stop - (over - over // 2))


def _lung_end(coarse: Array, body: Array) -> int:
    """Return the lowest slice that shows lung; the number of slices where none does."""
    filled = np.stack([ndimage.binary_fill_holes(body[..., k]) for k in range(body.shape[2])], axis=2)
    air = (filled & (coarse < LUNG_HU)).sum((0, 1)) / np.maximum(filled.sum((0, 1)), 1)
    lung = np.flatnonzero(air > max(_SOME_LUNG, 0.5 * float(air.max())))
    return int(lung[0]) if lung.size else int(coarse.shape[2])


def _bottom(coarse: Array, body: Array, spacing: Sequence[float], lung: int) -> int:
    """Return the slice below which nothing is looked at: some way below the crests of the hips; 0 where none are seen.

    The crests are where, below the lung's end, bone begins on both sides under a waist that has none: arms beside the
    body hide the waist, and nothing is cut.
    """
    wide = np.flatnonzero(body.any((1, 2)))
    aside = (np.arange(body.shape[0]) - (wide[0] + wide[-1]) / 2) * spacing[0]
    bone = (coarse > BONE_HU) & ndimage.binary_dilation(body)
    first, last = _ASIDE_MM
    areas = [bone[(side > first) & (side < last)].sum((0, 1)) * spacing[0] * spacing[1] for side in (aside, -aside)]
    unbroken = np.ones(int(np.ceil(_WAIST_MM / spacing[2])), bool)
    waist = ndimage.binary_opening(np.maximum(*areas) < _WAIST_MM2, unbroken)
    hips = np.minimum(*areas) > _HIP_MM2
    long, near = int(np.ceil(_HIP_MM / spacing[2])), int(np.ceil(_NEAR_MM / spacing[2]))
    for crest in range(lung - 1, long - 2, -1):
        if hips[crest - long + 1 : crest + 1].all() and waist[crest + 1 : crest + 1 + near].any():
            return max(0, crest - int(BELOW_CREST_MM / spacing[2]))
    return 0


def zoomed(voxels: Array, factors: Sequence[float]) -> Array:
    """Resample about the centre, axis by axis, float32: means of what a larger voxel covers, or between two linearly.

    Parameters
    ----------
    voxels
        Three axes.
    factors
        New voxels per old one, along each axis.
    """
    made = np.asarray(voxels, np.float32)
    for axis in sorted(range(3), key=lambda one: factors[one]):
        if factors[axis] != 1:
            matrix = (
                _averaging(made.shape[axis], factors[axis])
                if factors[axis] < 1
                else _between(made.shape[axis], int(np.ceil(made.shape[axis] * factors[axis])), factors[axis])
            )
            made = _along(matrix, made, axis)
    return made


def brought_back(values: Array, shape: Sequence[int], factors: Sequence[float]) -> Array:
    """Resample what lies on the grid of `zoomed` linearly onto the grid that it was made from."""
    made = np.asarray(values, np.float32)
    for axis, size in enumerate(shape):
        made = _along(_between(made.shape[axis], size, 1 / factors[axis]), made, axis)
    return made


def _along(matrix: Array, values: Array, axis: int) -> Array:
    return np.moveaxis(np.tensordot(matrix, values, (1, axis)), 0, axis)


def _averaging(size: int, factor: float) -> Array:
    """Return (new, old) float32: how much of each old voxel lies in each new one, over what lies there."""
    new = int(np.ceil(size * factor - 1e-6))
    edges = (np.arange(size + 1) - size / 2) * factor + new / 2
    left, right = edges[:-1][None], edges[1:][None]
    cells = np.arange(new)[:, None]
    covered = np.clip(np.minimum(right, cells + 1) - np.maximum(left, cells), 0, None)
    return np.asarray(covered / covered.sum(1, keepdims=True), np.float32)


def _between(size: int, new: int, factor: float) -> Array:
    """Return (new, old) float32: linear interpolation about the common centre; the ends are continued."""
    place = np.clip((np.arange(new) + 0.5 - new / 2) / factor + size / 2 - 0.5, 0, size - 1)
    low = np.minimum(place.astype(np.int64), max(size - 2, 0))
    matrix = np.zeros((new, size), np.float32)
    matrix[np.arange(new), low] = 1 - (place - low)
    if size > 1:
        matrix[np.arange(new), low + 1] += (place - low).astype(np.float32)
    return matrix
