"""Images as nnU-Net prepares them (turned, cropped to what is not zero, normalised, resampled), and labels back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import scipy.ndimage

from pacs_ai.errors import Reason, Refused
from pacs_ai.models.engine.resample import NEAREST, Grids, resampled, separate_axis
from pacs_ai.models.grid import aligned, ras_affine, reoriented

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pacs_ai.models.runtimes.nnunet_plans import Plans
    from pacs_ai.pipeline import Array, Volume

_SMALLEST = 1e-8


@dataclass(frozen=True)
class Foreground:
    """Crop to the voxels of the first channel above a value, with a margin: less to compute, the same labels there."""

    above: float
    margin_mm: float = 20.0


@dataclass(frozen=True)
class Prepared:
    """What the network sees, and how its labels come back to the series.

    Parameters
    ----------
    image
        (channels, ...) float32 on the network's grid.
    grids
        From the network's grid back to the cropped one.
    box
        Where the cropped grid lies in the turned image.
    shape
        Of the turned image.
    """

    image: Array
    grids: Grids
    box: tuple[slice, slice, slice]
    shape: tuple[int, int, int]


def stacked(volumes: Mapping[str, Volume], orientation: str) -> tuple[Array, tuple[float, float, float]]:
    """Return (channels, ...) float32 of several series on the first's grid, and the voxel's size in mm.

    Parameters
    ----------
    volumes
        In the order of the channels, of one Frame of Reference.
    orientation
        "" keeps (slice, row, column); else axis codes ("RAS"), whose last letter names the first axis.
    """
    (first_name, first), *_ = volumes.items()
    arrays = [aligned(volume, first, name, first_name) for name, volume in volumes.items()]
    if not orientation:
        return np.stack(arrays).astype(np.float32, copy=False), first.spacing
    turned = [reoriented(array.transpose(2, 1, 0), ras_affine(first.affine), orientation) for array in arrays]
    spacing = np.linalg.norm(turned[0][1][:3, :3], axis=0)[::-1]
    one, two, three = (float(mm) for mm in spacing)
    return np.stack([array.transpose(2, 1, 0) for array, _ in turned]).astype(np.float32), (one, two, three)


def as_received(labels: Array, volume: Volume, orientation: str) -> Array:
    """Turn labels back to the volume's (slice, row, column): the opposite of `stacked`."""
    if not orientation:
        return labels
    empty = np.empty(volume.voxels.shape[::-1], np.uint8)
    _, affine = reoriented(empty, ras_affine(volume.affine), orientation)
    back, _ = reoriented(labels.transpose(2, 1, 0), affine, ras_affine(volume.affine))
    return np.ascontiguousarray(back.transpose(2, 1, 0))


def prepare(stack: Array, spacing: Sequence[float], plans: Plans, foreground: Foreground | None = None) -> Prepared:
    """Prepare an image as the network was trained.

    Parameters
    ----------
    stack, spacing
        As `stacked` returns them; the array may be written into.

    Raises
    ------
    Refused
        The images are of one value throughout.
    """
    if all(float(channel.min()) == float(channel.max()) for channel in stack):
        words = "the images are of one value throughout: there is nothing to be found in them"
        raise Refused(words, Reason.INTENSITY)
    turned = stack.transpose(0, *[axis + 1 for axis in plans.transpose])
    millimetres = [spacing[axis] for axis in plans.transpose]
    box = _box_of(np.any(turned != 0, axis=0))
    image = np.ascontiguousarray(turned[(slice(None), *box)])
    inner = _foreground_box(image[0], millimetres, foreground) if foreground else None
    _normalise(image, plans)
    if inner is not None:
        image = image[(slice(None), *inner)]
        box = tuple(slice(o.start + i.start, o.start + i.stop) for o, i in zip(box, inner, strict=True))
    there, back = _grids(image.shape[1:], millimetres, plans)
    done = np.stack([resampled(channel, there) for channel in image]) if there.changed else image
    one, two, three = turned.shape[1:]
    return Prepared(done, back, (box[0], box[1], box[2]), (one, two, three))


def restored(labels: Array, prepared: Prepared, plans: Plans) -> Array:
    """Put the labels of the cropped grid back into the image, axes as `stacked` gave them."""
    whole = np.zeros(prepared.shape, labels.dtype)
    whole[prepared.box] = labels
    return whole.transpose(np.argsort(plans.transpose))


def _box_of(mask: Array) -> tuple[slice, ...]:
    """Return the smallest box that holds all of a mask; all of it where the mask is empty."""
    box = []
    for axis in range(3):
        there = np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis)))
        box.append(slice(int(there[0]), int(there[-1]) + 1) if there.size else slice(0, mask.shape[axis]))
    return tuple(box)


def _foreground_box(image: Array, spacing: Sequence[float], foreground: Foreground) -> tuple[slice, ...]:
    box = _box_of(image > foreground.above)
    margins = [round(foreground.margin_mm / mm) for mm in spacing]
    return tuple(
        slice(max(side.start - margin, 0), min(side.stop + margin, size))
        for side, margin, size in zip(box, margins, image.shape, strict=True)
    )


def _normalise(image: Array, plans: Plans) -> None:
    """Normalise each channel in place, by the scheme that the plans name."""
    inside: Array | None = None
    if any(plans.masked):
        inside = scipy.ndimage.binary_fill_holes(np.any(image != 0, axis=0))
    for channel, scheme in enumerate(plans.normalisations):
        mask = inside if plans.masked[channel] else None
        _normalise_channel(image[channel], scheme, mask, plans.intensities[channel])


def _normalise_channel(values: Array, scheme: str, inside: Array | None, known: Mapping[str, float]) -> None:
    if scheme == "CTNormalization":
        np.clip(values, known["percentile_00_5"], known["percentile_99_5"], out=values)
        values -= known["mean"]
        values /= max(known["std"], _SMALLEST)
    elif scheme == "ZScoreNormalization":
        seen = values if inside is None else values[inside]
        seen = (seen - seen.mean()) / max(float(seen.std()), _SMALLEST)
        values[... if inside is None else inside] = seen
    elif scheme == "RescaleTo01Normalization":
        values -= values.min()
        values /= max(float(values.max()), _SMALLEST)
    elif scheme == "RGBTo01Normalization":
        values /= 255.0


def _grids(shape: Sequence[int], spacing: Sequence[float], plans: Plans) -> tuple[Grids, Grids]:
    """Return the grids to the network's voxels and back."""
    wanted = plans.spacing if len(plans.spacing) == 3 else (spacing[0], *plans.spacing)
    sizes = tuple(shape)
    new = tuple(round(mm / to * size) for mm, to, size in zip(spacing, wanted, sizes, strict=True))
    there = _orders(spacing, wanted, plans.order, plans)
    back = _orders(wanted, spacing, plans.output_order, plans)
    return Grids(sizes, new, there), Grids(new, sizes, back)


def _orders(spacing: Sequence[float], new: Sequence[float], order: int, plans: Plans) -> tuple[int, ...]:
    if plans.separate_z is None:
        apart = separate_axis(spacing, new)
    else:
        apart = separate_axis(spacing, spacing, threshold=0.0) if plans.separate_z else None
    return tuple(NEAREST if axis == apart else order for axis in range(3))
