"""The two steps of the liver's cascade on upright voxels: the liver in one window, then lesions in tiles of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy import ndimage

from pacs_ai.models.readings.liver import WINDOW_HU
from pacs_ai.models.readings.liver_grid import Box, abdomen, box_of, brought_back, zoomed

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pacs_ai.models.networks.liver_unet import LiverUnet
    from pacs_ai.pipeline import Array

#: Voxels of the liver's network in mm; the median of 3 is taken in half of them.
LIVER_MM = 3.0
#: A series of fewer voxels of the liver's network from feet to head than this is continued at both ends, to so many.
SHORT, LENGTHENED = 30, 64
#: Voxels of the lesions' network in mm.
LESION_MM = (1.0, 1.0, 3.0)
#: From which probability a voxel counts.
HALF = 0.5
#: Around the liver there is this much more of the CT when it is resampled, in mm.
_MARGIN_MM = 12.0
#: What lies outside of the liver, for the lesions' network; what lies outside of the CT, for both.
_OUTSIDE, _NOTHING = -0.5, 0.0


def _windowed(values: Array) -> Array:
    """Return -200 to 200 HU as -0.5 to 0.5."""
    return np.asarray(np.clip(values, -WINDOW_HU, WINDOW_HU) / (2 * WINDOW_HU), np.float32)


def find_liver(network: LiverUnet, voxels: Array, spacing: tuple[float, float, float], device: str) -> Array:
    """Return the liver as bool on the grid of `voxels` (x, y, z; HU)."""
    box = abdomen(voxels, spacing)
    fine = zoomed(voxels[box], [2 * mm / LIVER_MM for mm in spacing])
    smooth = ndimage.median_filter(fine, size=3)
    coarse = _windowed(zoomed(smooth, (0.5, 0.5, 0.5)))
    longer, inner = _lengthened(coarse)
    found = _largest(_predicted(network, longer, device)[..., inner] > HALF)
    whole = np.zeros(voxels.shape, bool)
    if found.any():
        size = tuple(one.stop - one.start for one in box)
        whole[box] = brought_back(found, size, [mm / LIVER_MM for mm in spacing]) > HALF
    return whole


def _lengthened(coarse: Array) -> tuple[Array, slice]:
    """Return a short series with its end slices repeated, and where it lies in it; another one as it is.

    The network normalises over its window: where that is nearly empty, half of a liver is missed.
    """
    size = coarse.shape[2]
    more = LENGTHENED - size if size < SHORT else 0
    before = more // 2
    return np.pad(coarse, ((0, 0), (0, 0), (before, more - before)), mode="edge"), slice(before, before + size)


def _largest(mask: Array) -> Array:
    """Return the largest connected part, after thin bridges were opened."""
    shape = ndimage.generate_binary_structure(3, 2)
    labels, count = ndimage.label(ndimage.binary_erosion(mask, shape))
    if not count:
        return np.zeros_like(mask)
    largest = labels == 1 + int(np.argmax(np.bincount(labels.ravel())[1:]))
    return np.asarray(ndimage.binary_dilation(largest, shape))


def find_lesions(
    network: LiverUnet, voxels: Array, spacing: tuple[float, float, float], liver: Array, device: str
) -> Array:
    """Return the lesions in `liver` (bool, x, y, z) as bool on the same grid."""
    factors = [mm / wanted for mm, wanted in zip(spacing, LESION_MM, strict=True)]
    near = box_of(liver, [int(np.ceil(_MARGIN_MM / mm)) for mm in spacing])
    seen = zoomed(_windowed(voxels[near]), factors)
    inside = zoomed(liver[near], factors) > HALF
    wide = ndimage.binary_dilation(inside, ndimage.generate_binary_structure(3, 2), iterations=2)
    box = box_of(wide)
    masked = np.where(wide, seen, np.float32(_OUTSIDE))[box]
    chances = np.zeros(seen.shape, np.float32)
    chances[box] = _tiled(network, masked, wide[box], device)
    size = tuple(one.stop - one.start for one in near)
    whole = np.zeros(voxels.shape, bool)
    whole[near] = brought_back(np.where(wide, chances, 0), size, factors) > HALF
    return whole


def _predicted(network: LiverUnet, image: Array, device: str) -> Array:
    """Return the network's answer on one window about the image's centre; 0 where the window does not reach."""
    centre = [size // 2 for size in image.shape]
    return _put(np.zeros(image.shape, np.float32), _asked(network, image, centre, device), centre)


def _tiled(network: LiverUnet, image: Array, wanted: Array, device: str) -> Array:
    """Return the network's answers, tile by tile; tiles without a voxel that is wanted are left out."""
    made = np.zeros(image.shape, np.float32)
    starts = [list(_starts(size, tile)) for size, tile in zip(image.shape, network.form.result, strict=True)]
    for x in starts[0]:
        for y in starts[1]:
            for z in starts[2]:
                first = (x, y, z)
                tile = [min(one, size) for one, size in zip(network.form.result, image.shape, strict=True)]
                if wanted[tuple(slice(a, a + n) for a, n in zip(first, tile, strict=True))].any():
                    centre = [int(np.ceil(a + (n - 1) / 2)) for a, n in zip(first, tile, strict=True)]
                    _put(made, _asked(network, image, centre, device), centre)
    return made


def _starts(size: int, tile: int) -> Iterator[int]:
    """Yield where tiles begin: side by side, the last one at the end, as the authors lay them."""
    if size <= tile:
        yield 0
        return
    yield from range(0, size - tile + 1, tile)
    if size % tile:
        yield size - tile


def _asked(network: LiverUnet, image: Array, centre: Sequence[int], device: str) -> Array:
    """Return the network's answer on the window about a voxel; what is outside of the image is 0."""
    window = np.full(network.form.window, _NOTHING, np.float32)
    of_image, of_window = _common(image.shape, window.shape, centre)
    window[of_window] = image[of_image]
    with torch.inference_mode():
        answer = network(torch.from_numpy(window)[None, None].to(device))
    return np.asarray(answer[0, 0].float().cpu().numpy())


def _put(image: Array, answer: Array, centre: Sequence[int]) -> Array:
    """Write an answer about a voxel into the image, as far as it lies in it."""
    of_image, of_answer = _common(image.shape, answer.shape, centre)
    image[of_image] = answer[of_answer]
    return image


def _common(image: Sequence[int], window: Sequence[int], centre: Sequence[int]) -> tuple[Box, Box]:
    """Return what an image and a window about one of its voxels have in common, in the indices of each."""
    of_image, of_window = [], []
    for size, width, at in zip(image, window, centre, strict=True):
        first = at - width // 2
        low, high = max(0, first), min(size, first + width)
        of_image.append(slice(low, high))
        of_window.append(slice(low - first, high - first))
    return (of_image[0], of_image[1], of_image[2]), (of_window[0], of_window[1], of_window[2])
