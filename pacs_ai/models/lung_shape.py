"""Which coarse voxels of a CT are right lung, left lung and large airways: anatomy told by shape, without a model.

All arrays are (head, back, left): slices run to the head, rows to the back, columns to the patient's left.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from pacs_ai.errors import Reason, Refused
from pacs_ai.models.lung_grid import PADDING_MARK

if TYPE_CHECKING:
    from pacs_ai.models.lung_grid import Coarse

Array = npt.NDArray[Any]

RIGHT, LEFT = 1, 2
#: Added to a label where full resolution has to decide (see `pacs_ai.models.lung_grid.refine`).
BORDER = 128
#: Aerated lung and air lie below, tissue above: half-way between them.
AIR_HU = -500

_SOLID_HU = -250
_LUMEN_HU = -900
_LUMEN_STEPS_HU = range(20, 141, 20)
_TRACHEA_MM2 = (25.0, 900.0)
_TRACHEA_LENGTH_MM = 20.0
_AIRWAYS_ML = 180.0
_BLURRED_HU = -800
_GAS_HU = -960
_GAS_SHARE = 0.2
_BOWEL_ML = 0.3
_VESSEL_MM2 = 400.0
_SMALLEST_LUNG_ML = 100.0
_LARGEST_LUNGS_ML = 12_000.0
_LARGEST_CUT = 0.25
_CUT_LUNG_MM2 = 2000.0
_CUT_LUNG_HU = -930
_SMALLER_LUNG = 0.1
#: (HU, erosions): how to take two touching lungs apart, the gentlest way first.
_SPLITS = ((-650, 0), (-750, 0), (-500, 1), (-650, 1), (-750, 1), (-500, 2), (-750, 2), (-500, 3), (-500, 4), (-500, 6))

_CROSS = ndimage.generate_binary_structure(3, 1)
_CUBE = ndimage.generate_binary_structure(3, 3)
_IN_SLICE = _CROSS.copy()
_IN_SLICE[0] = _IN_SLICE[2] = False
_ALONG = _CROSS & ~_IN_SLICE
_ALONG[1, 1, 1] = True
_FACES = ("feet", "head", "front", "back", "right", "left")


@dataclass(frozen=True)
class Lungs:
    """The lungs on the coarse grid.

    Parameters
    ----------
    labels
        (head, back, left) uint8: `RIGHT`, `LEFT`, either plus `BORDER` where full resolution decides, else 0.
    airways
        (head, back, left) bool: trachea and main bronchi.
    """

    labels: Array
    airways: Array


def find_lungs(coarse: Coarse) -> Lungs:
    """Find both lungs and the large airways.

    Raises
    ------
    Refused
        Where the series does not show a whole chest with two lungs; the message says what is missing.
    """
    air = coarse.hu < AIR_HU
    outside, cut = _at_edge(coarse.hu, air, coarse.spacing)
    inside = air & ~outside & _enclosed(coarse)
    airways = _airways(coarse, inside)
    removed = ndimage.binary_dilation(airways, _CROSS if coarse.spacing[0] < 3 else _IN_SLICE)
    right, left = (_without_bowel(coarse, lung) for lung in _two_lungs(coarse, inside & ~removed))
    _check_volumes(coarse, right, left)
    _check_cut(right | left, cut)
    labels = np.zeros(coarse.hu.shape, np.uint8)
    other_air = air & ~(right | left)
    for lung, number in ((right, RIGHT), (left, LEFT)):
        _draw(labels, lung, number, coarse)
    labels[other_air & (labels >= BORDER)] = 0
    labels[removed] = 0
    return Lungs(labels, airways)


def _enclosed(coarse: Coarse) -> Array:
    """Return where the body lies on all four sides within the slice: not beside the patient, not in the table."""
    thin = tuple(max(1, round(4.0 / mm)) for mm in coarse.spacing)
    solid = ((coarse.hu > _SOLID_HU) & (coarse.hu != PADDING_MARK))[:: thin[0], :: thin[1], :: thin[2]]
    labels, count = ndimage.label(ndimage.binary_opening(solid, _CROSS))
    if not count:
        raise Refused(
            "no body was found in this series: it holds no tissue of the density of a patient", Reason.BODY_PART
        )
    body = labels == 1 + int(np.argmax(np.bincount(labels.ravel())[1:]))
    between = np.ones_like(body)
    for axis in (1, 2):
        before = np.logical_or.accumulate(body, axis=axis)
        after = np.flip(np.logical_or.accumulate(np.flip(body, axis), axis=axis), axis)
        between &= before & after
    between = ndimage.binary_closing(between, _IN_SLICE, iterations=4)  # rows that lack a side
    for axis, step in enumerate(thin):
        between = np.repeat(between, step, axis=axis).take(np.arange(coarse.hu.shape[axis]), axis=axis, mode="clip")
    return np.asarray(between)


def _at_edge(hu: Array, air: Array, spacing: tuple[float, float, float]) -> tuple[Array, Array]:
    """Return the air that reaches the image's edge, or its padding, within a slice: that outside, and cut lung."""
    labels, count = ndimage.label(air, _IN_SLICE)
    padding = hu == PADDING_MARK
    edge = ndimage.binary_dilation(padding, _IN_SLICE) if padding.any() else padding
    edge[:, [0, -1], :] = edge[:, :, [0, -1]] = True
    touching = np.bincount(labels[edge], minlength=count + 1) > 0
    touching[0] = False
    area = np.bincount(labels.ravel(), minlength=count + 1)
    density = np.bincount(labels.ravel(), weights=hu.ravel(), minlength=count + 1) / np.maximum(area, 1)
    lung = (area * spacing[1] * spacing[2] > _CUT_LUNG_MM2) & (density > _CUT_LUNG_HU)
    return np.asarray((touching & ~lung)[labels]), np.asarray((touching & lung)[labels])


def _airways(coarse: Coarse, inside: Array) -> Array:
    """Return trachea and main bronchi: grown from the trachea until the next threshold would leak into the lung."""
    trachea = _trachea(coarse, inside)
    window = _around(trachea, coarse.spacing, (90.0, 60.0, 90.0))
    hu, seed, allowed = coarse.hu[window], trachea[window], inside[window]
    grown = seed
    before = _AIRWAYS_ML
    lumen = int(np.median(hu[seed]))
    for margin in _LUMEN_STEPS_HU:
        labels, count = ndimage.label((allowed & (hu < lumen + margin)) | seed, _CROSS)
        hit = np.bincount(labels[seed], minlength=count + 1) > 0
        hit[0] = False
        larger = np.asarray(hit[labels])
        now = larger.sum() * coarse.voxel_ml
        if now > min(_AIRWAYS_ML, 1.5 * before + 10):
            break
        grown, before = larger, now
    result = np.zeros_like(inside)
    result[window] = grown
    return result


def _around(mask: Array, spacing: tuple[float, float, float], margins_mm: tuple[float, float, float]) -> Any:
    """Return the box of the mask, widened by margins, as a tuple of slices."""
    box = ndimage.find_objects(mask.view(np.uint8))[0]
    return tuple(
        slice(max(0, part.start - int(margin / mm)), part.stop + int(margin / mm))
        for part, mm, margin in zip(box, spacing, margins_mm, strict=True)
    )


def _trachea(coarse: Coarse, inside: Array) -> Array:
    """Return the longest stack, from slice to slice, of roundish lumens near the middle of the body."""
    labels, count = ndimage.label(inside & (coarse.hu < _LUMEN_HU), _IN_SLICE)
    if not count:
        raise Refused("no lungs were found: this series is no CT of the chest", Reason.BODY_PART)
    rows_of_air, columns_of_air = (_extent(inside.sum(axis=axes)) for axes in ((0, 2), (0, 1)))
    middle, reach = sum(columns_of_air) / 2, (columns_of_air[1] - columns_of_air[0]) / 5
    pixel = coarse.spacing[1] * coarse.spacing[2]
    area = np.bincount(labels.ravel(), minlength=count + 1) * pixel
    boxes = ndimage.find_objects(labels)
    length = np.zeros(count + 1)
    above = np.zeros(count + 1, np.int64)
    for number in range(count, 0, -1):  # slices ascend, so numbers do: from the head downwards
        rows, cols = boxes[number - 1][1:]
        round_enough = area[number] > 0.5 * (rows.stop - rows.start) * (cols.stop - cols.start) * pixel
        central = abs((cols.start + cols.stop - 1) / 2 - middle) < reach
        central &= rows_of_air[0] < rows.start and rows.stop <= rows_of_air[1]
        if not (_TRACHEA_MM2[0] < area[number] < _TRACHEA_MM2[1] and round_enough and central):
            continue
        plane = boxes[number - 1][0].start
        if plane + 1 < len(labels):
            over = labels[plane + 1, rows, cols][labels[plane, rows, cols] == number]
            above[number] = max(np.unique(over[over > 0]), key=lambda n: length[n], default=0)
        length[number] = coarse.spacing[0] + length[above[number]]
    number = int(np.argmax(length))
    if length[number] < _TRACHEA_LENGTH_MM:
        raise Refused("no trachea was found above the lungs: this series does not show a whole chest", Reason.BODY_PART)
    stack = []
    while number and length[number]:
        stack.append(number)
        number = int(above[number])
    return np.isin(labels, stack)


def _extent(profile: Array) -> tuple[int, int]:
    """Return the first and the last place where a profile reaches a twentieth of its maximum."""
    places = np.flatnonzero(profile >= profile.max() / 20)
    return int(places[0]), int(places[-1])


def _two_lungs(coarse: Coarse, air: Array) -> tuple[Array, Array]:
    """Return right and left lung, taken apart where they touch."""
    labels, count = ndimage.label(air, _CROSS)
    sizes = np.bincount(labels.ravel(), minlength=count + 1).astype(np.float64)
    sizes[0] = 0
    if sizes.max() * coarse.voxel_ml < _SMALLEST_LUNG_ML:
        raise Refused("no lungs were found: this series is no CT of the chest", Reason.BODY_PART)
    largest, second = (int(n) for n in np.argsort(sizes, kind="stable")[::-1][:2]) if count > 1 else (1, 0)
    if second and sizes[second] > _SMALLER_LUNG * sizes[largest]:
        first, other = labels == largest, labels == second
    else:
        first, other = _split(coarse.hu, labels == largest)
    centres = [float(np.average(np.arange(m.shape[2]), weights=m.sum(axis=(0, 1)))) for m in (first, other)]
    return (first, other) if centres[0] < centres[1] else (other, first)


def _without_bowel(coarse: Coarse, lung: Array) -> Array:
    """Return a lung without bowel that only a blurred diaphragm joins to it: parts in its lower half that hold gas."""
    window = ndimage.find_objects(lung.view(np.uint8))[0]
    mask, hu = lung[window], coarse.hu[window]
    labels, count = ndimage.label(mask & (hu < _BLURRED_HU), _CROSS)
    sizes = np.bincount(labels.ravel(), minlength=count + 1) * coarse.voxel_ml
    half = int(np.median(np.flatnonzero(mask.any(axis=(1, 2)))))
    gas = np.bincount(labels[:half][hu[:half] < _GAS_HU], minlength=count + 1) * coarse.voxel_ml
    bowel = (sizes > _BOWEL_ML) & (gas > _GAS_SHARE * sizes)
    bowel[[0, int(np.argmax(sizes[1:])) + 1]] = False
    if not bowel.any():
        return lung
    nearest = ndimage.distance_transform_edt((labels == 0), return_distances=False, return_indices=True)
    result = lung.copy()
    result[window] = mask & ~bowel[labels[tuple(nearest)]]
    return result


def _split(hu: Array, joined: Array) -> tuple[Array, Array]:
    """Return the two halves of lungs that touch: the two largest parts that stay when the contact is worn away."""
    window = ndimage.find_objects(joined.view(np.uint8))[0]
    mask, density = joined[window], hu[window]
    for threshold, erosions in _SPLITS:
        worn = mask & (density < threshold)
        if erosions:
            worn = ndimage.binary_erosion(worn, _CROSS, iterations=erosions)
        labels, count = ndimage.label(worn, _CROSS)
        if count < 2:
            continue
        sizes = np.bincount(labels.ravel())
        sizes[0] = 0
        largest, second = (int(n) for n in np.argsort(sizes, kind="stable")[::-1][:2])
        if sizes[second] > 0.15 * sizes[largest]:
            nearest = ndimage.distance_transform_edt(
                (labels != largest) & (labels != second), return_distances=False, return_indices=True
            )
            parts = np.where(mask, labels[tuple(nearest)], 0)
            first, other = np.zeros_like(joined), np.zeros_like(joined)
            first[window], other[window] = parts == largest, parts == second
            return first, other
    raise Refused(
        "no two lungs could be told apart: one is missing, holds no air, or lies outside the image", Reason.BODY_PART
    )


def _check_volumes(coarse: Coarse, right: Array, left: Array) -> None:
    volumes = [float(lung.sum()) * coarse.voxel_ml for lung in (right, left)]
    if min(volumes) < _SMALLEST_LUNG_ML or sum(volumes) > _LARGEST_LUNGS_ML:
        raise Refused(
            f"what looks like lungs has implausible volumes (right {volumes[0]:.0f} mL, left {volumes[1]:.0f} mL): "
            "this series does not show a whole chest with two lungs",
            Reason.BODY_PART,
        )


def _check_cut(lungs: Array, cut: Array) -> None:
    """Refuse lungs that an edge of the image cuts in more than a quarter of their largest section across it.

    Less is allowed: the tips of the costophrenic recesses are often left out, and hold little. Within a slice less is
    allowed: a hundredth of the lungs' volume.
    """
    for axis in range(3):
        sections = lungs.sum(axis=tuple(a for a in range(3) if a != axis))
        for end, side in ((0, 2 * axis), (-1, 2 * axis + 1)):
            share = float(sections[end] / sections.max())
            if share > _LARGEST_CUT:
                raise Refused(
                    f"the lungs are cut off at the {_FACES[side]} end of the series "
                    f"({share:.0%} of their largest cross-section lies on its last plane): it does not show the whole "
                    "chest",
                    Reason.BODY_PART,
                )
    if np.sum(cut & ndimage.binary_dilation(lungs, _ALONG, iterations=2)) > 0.01 * lungs.sum():
        raise Refused(
            "the lungs reach beyond the image's edge or its circle: it does not show the whole chest", Reason.BODY_PART
        )


def _draw(labels: Array, lung: Array, number: int, coarse: Coarse) -> None:
    """Draw one lung with its vessels and nodules: sure inside, borderline one voxel to either side of its surface."""
    window = _around(lung, coarse.spacing, tuple(2 * mm for mm in coarse.spacing))  # type: ignore[arg-type]
    filled = _filled(lung[window], coarse.spacing[1] * coarse.spacing[2])
    sure = ndimage.binary_erosion(filled, _CROSS, border_value=1)
    wide = ndimage.binary_dilation(filled, _CUBE)
    here = labels[window]
    here[wide & (here == 0)] = number + BORDER
    here[filled & ~sure] = number + BORDER
    here[sure] = number


def _filled(lung: Array, pixel_mm2: float) -> Array:
    """Return a lung with what it encloses: wholly, or within a slice where that is no larger than a vessel.

    A larger hole within a slice stays one: it is the dome of the diaphragm.
    """
    labels, count = ndimage.label(~lung, _IN_SLICE)
    small = np.bincount(labels.ravel(), minlength=count + 1) * pixel_mm2 < _VESSEL_MM2
    border = np.zeros(lung.shape, np.bool_)
    border[:, [0, -1], :] = border[:, :, [0, -1]] = True
    small[labels[border]] = False
    small[0] = False
    return np.asarray(ndimage.binary_fill_holes(lung | small[labels], _CROSS))
