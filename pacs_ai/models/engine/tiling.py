"""Where the windows of a large image lie, and how much each of their voxels counts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import scipy.ndimage
import torch

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class Tiling:
    """Windows on a grid of starts; every voxel lies in at least one.

    Parameters
    ----------
    shape
        Of the image, not smaller than `window`.
    window
        Size of every window.
    starts
        For each axis the first index of its windows, ascending.
    """

    shape: tuple[int, ...]
    window: tuple[int, ...]
    starts: tuple[tuple[int, ...], ...]

    @property
    def count(self) -> int:
        """How many windows there are."""
        return math.prod(len(axis) for axis in self.starts)


def even(shape: Sequence[int], window: Sequence[int], overlap: Sequence[float]) -> Tiling:
    """Return windows at a fixed distance, the last of each axis moved back to the edge (as MONAI lays them)."""
    starts = []
    for size, width, part in zip(shape, window, overlap, strict=True):
        step = width if width == size else max(int(width * (1 - part)), 1)
        count = math.ceil(max(size - width, 0) / step) + 1
        starts.append(tuple(min(number * step, size - width) for number in range(count)))
    return Tiling(tuple(shape), tuple(window), tuple(starts))


def balanced(shape: Sequence[int], window: Sequence[int], step: float) -> Tiling:
    """Return windows at most `step` of their size apart, spread evenly over each axis (as nnU-Net lays them)."""
    starts = []
    for size, width in zip(shape, window, strict=True):
        count = math.ceil((size - width) / (width * step)) + 1
        between = (size - width) / (count - 1) if count > 1 else 0.0
        starts.append(tuple(int(np.round(between * number)) for number in range(count)))
    return Tiling(tuple(shape), tuple(window), tuple(starts))


def gaussian(window: Sequence[int], sigma_scale: Sequence[float]) -> torch.Tensor:
    """Return weights that fall off from the centre, at least 1e-3 (MONAI's); float32 of the window's shape."""
    weight = torch.ones(tuple(window))
    for axis, (size, scale) in enumerate(zip(window, sigma_scale, strict=True)):
        place = torch.arange(size, dtype=torch.float32) - (size - 1) / 2.0
        line = torch.exp(place**2 / (-2 * (size * scale) ** 2))
        weight = weight * line.reshape([-1 if other == axis else 1 for other in range(len(window))])
    return weight.clamp_(min=max(float(weight.min()), 1e-3))


def blurred_point(window: Sequence[int], sigma_scale: float = 1 / 8) -> torch.Tensor:
    """Return nnU-Net's weights: a blurred point of height 10 in half precision, nowhere 0; float32."""
    weight = np.ones(tuple(window))
    for axis, size in enumerate(window):
        point = np.zeros(size)
        point[size // 2] = 1
        line = scipy.ndimage.gaussian_filter1d(point, size * sigma_scale, mode="constant")
        weight *= line.reshape([-1 if other == axis else 1 for other in range(len(window))])
    half = (weight * (10 / weight.max())).astype(np.float16)
    half[half == 0] = half[half > 0].min()
    return torch.from_numpy(half.astype(np.float32))
