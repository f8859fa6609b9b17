"""Grids for the lung pipeline: any orientation to head-back-left, fine to coarse and back, exact on every device.

All sums are sums of integers that float32 holds exactly, so CPU and CUDA give the same voxels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as nn

if TYPE_CHECKING:
    from pacs_ai.pipeline import Volume

Array = npt.NDArray[Any]
Steps = tuple[int, int, int]

#: Densities are clipped to this range before they are averaged: metal and noise must not pull an average.
LOWEST_HU, HIGHEST_HU = -1024, 1000
#: Below this no tissue and no air lies: voxels outside the circle of reconstruction.
PADDING_HU = -1100
#: What padding becomes in the coarse grid.
PADDING_MARK = 9999
_COARSE_MM = 2.2
_SLAB_VOXELS = 12_000_000


@dataclass(frozen=True)
class Upright:
    """How the axes of a volume lie in the patient: to head, back and left, by the nearest axis.

    Parameters
    ----------
    order
        For each of (head, back, left): which axis of the volume runs along it.
    flip
        For each of (head, back, left): True where the volume's axis runs the other way.
    """

    order: tuple[int, int, int]
    flip: tuple[bool, bool, bool]

    @classmethod
    def of(cls, affine: Array) -> Upright:
        """Read it off an affine (4, 4) from voxels to LPS mm; obliques count as their nearest axis."""
        cosines = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
        weights = np.abs(cosines)
        order, flip = [0, 0, 0], [False, False, False]
        for _ in range(3):
            direction, axis = np.unravel_index(np.argmax(weights), (3, 3))
            place = 2 - int(direction)  # x (left), y (back), z (head) -> place in (head, back, left)
            order[place], flip[place] = int(axis), bool(cosines[direction, axis] < 0)
            weights[direction, :] = weights[:, axis] = -1
        return cls((order[0], order[1], order[2]), (flip[0], flip[1], flip[2]))

    @property
    def _slices(self) -> tuple[slice, ...]:
        return tuple(slice(None, None, -1 if flip else 1) for flip in self.flip)

    def turn(self, voxels: Array) -> Array:
        """Return the volume's voxels as a view (head, back, left)."""
        return voxels.transpose(self.order)[self._slices]

    def turn_back(self, voxels: Array) -> Array:
        """Return voxels (head, back, left) as a view on the volume's own axes."""
        return voxels[self._slices].transpose(np.argsort(self.order))


@dataclass(frozen=True)
class Coarse:
    """A volume upright and averaged to about 2 mm, for all that is a question of shape.

    Parameters
    ----------
    hu
        (head, back, left) int16; `PADDING_MARK` outside the circle of reconstruction.
    steps
        Voxels of the fine grid per coarse voxel, for each axis.
    spacing
        Spacing of the coarse grid in mm, for each axis.
    """

    hu: Array
    steps: Steps
    spacing: tuple[float, float, float]

    @property
    def voxel_ml(self) -> float:
        """Volume of a coarse voxel in mL."""
        return float(np.prod(self.spacing)) / 1000


def upright_voxels(volume: Volume) -> Array:
    """Return the volume's voxels (head, back, left) as contiguous int16, rounded where they are fractions."""
    voxels = Upright.of(volume.affine).turn(volume.voxels)
    if voxels.dtype.kind == "f":
        voxels = np.rint(np.clip(voxels, -32768, 32767))
    return np.ascontiguousarray(voxels, dtype=np.int16)


def coarsen(voxels: Array, spacing: tuple[float, float, float], device: str) -> Coarse:
    """Average voxels to about 2 mm.

    Parameters
    ----------
    voxels
        (head, back, left) int16, HU.
    spacing
        mm, for each axis.
    device
        Where torch computes.
    """
    z, y, x = (max(1, min(int(_COARSE_MM / mm), size)) for mm, size in zip(spacing, voxels.shape, strict=True))
    steps = (z, y, x)
    slab = max(1, _SLAB_VOXELS // (voxels[0].size * z)) * z
    parts = [_average(voxels[start : start + slab], steps, device) for start in range(0, len(voxels), slab)]
    return Coarse(np.concatenate(parts), steps, (spacing[0] * z, spacing[1] * y, spacing[2] * x))


def _average(voxels: Array, steps: Steps, device: str) -> Array:
    """Return the rounded-down mean of each block, (head, back, left) int16; the last blocks may be smaller."""
    fine = torch.from_numpy(voxels).to(device)
    total = _block_sums(fine.clamp(LOWEST_HU, HIGHEST_HU).float(), steps)
    mean = torch.div(total, _block_sizes(voxels.shape, steps, device), rounding_mode="floor").to(torch.int16)
    if int(fine.min()) < PADDING_HU:
        outside = _block_sums((fine < PADDING_HU).float(), steps)
        mean[outside > 0] = PADDING_MARK
    return np.asarray(mean.cpu().numpy())


def _block_sums(values: torch.Tensor, steps: Steps) -> torch.Tensor:
    pooled = nn.avg_pool3d(values[None, None], steps, ceil_mode=True, divisor_override=1)
    return pooled[0, 0].to(torch.int32)


def _block_sizes(shape: tuple[int, ...], steps: Steps, device: str) -> torch.Tensor:
    sizes = [
        torch.tensor([min(step, size - start) for start in range(0, size, step)], dtype=torch.int32, device=device)
        for size, step in zip(shape, steps, strict=True)
    ]
    return sizes[0][:, None, None] * sizes[1][None, :, None] * sizes[2][None, None, :]


def refine(voxels: Array, coarse: Array, steps: Steps, *, threshold: int, device: str) -> Array:
    """Draw the coarse labels' borders at full resolution.

    Parameters
    ----------
    voxels
        (head, back, left) int16, HU.
    coarse
        (head, back, left) uint8 of the coarse grid. Label n: surely label n. Label n + 128: label n where the voxel
        lies below the threshold.
    steps
        Fine voxels per coarse voxel.
    threshold
        HU.
    device
        Where torch computes.

    Returns
    -------
    numpy.ndarray
        (head, back, left) uint8 label map of the fine grid.
    """
    result = np.zeros(voxels.shape, np.uint8)
    occupied = np.flatnonzero(coarse.any(axis=(1, 2)))
    box = [np.flatnonzero(coarse.any(axis=axes)) for axes in ((1, 2), (0, 2), (0, 1))]
    if not occupied.size:
        return result
    rows, columns = (
        slice(int(hit[0]) * step, min((int(hit[-1]) + 1) * step, size))
        for hit, step, size in zip(box[1:], steps[1:], voxels.shape[1:], strict=True)
    )
    coarse = coarse[:, box[1][0] : box[1][-1] + 1, box[2][0] : box[2][-1] + 1]
    for k in occupied:
        planes = slice(int(k) * steps[0], min((int(k) + 1) * steps[0], len(voxels)))
        fine = torch.from_numpy(voxels[planes, rows, columns]).to(device)
        label = torch.from_numpy(np.ascontiguousarray(coarse[k])).to(device)
        label = label.repeat_interleave(steps[1], 0)[: fine.shape[1]].repeat_interleave(steps[2], 1)
        label = label[:, : fine.shape[2]]
        drawn = torch.where((label < 128) | (fine < threshold), label & 127, 0)
        result[planes, rows, columns] = drawn.to(torch.uint8).cpu().numpy()
    return result


def histogram(voxels: Array, labels: Array, count: int, device: str) -> Array:
    """Return how many voxels of each label have each density.

    Parameters
    ----------
    voxels, labels
        (head, back, left): int16 HU, and uint8 labels from 0.
    count
        Number of labels, the 0 included.
    device
        Where torch computes.

    Returns
    -------
    numpy.ndarray
        (count, 4096) int64; column i is the number of voxels of i - 1024 HU (the ends hold what lies beyond).
    """
    total = torch.zeros(count * 4096, dtype=torch.int64, device=device)
    for k in np.flatnonzero(labels.any(axis=(1, 2))):
        label = torch.from_numpy(labels[k]).to(device).flatten()
        inside = label.nonzero().flatten()
        value = torch.from_numpy(voxels[k]).to(device).flatten()[inside].clamp(-1024, 3071).to(torch.int64) + 1024
        total += torch.bincount(label[inside].to(torch.int64) * 4096 + value, minlength=count * 4096)
    return np.asarray(total.cpu().numpy().reshape(count, 4096))
