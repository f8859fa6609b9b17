"""A chest (or abdomen) that exists only as formulas of patient coordinates, so that its true volumes are known.

Everything is given in mm in the patient's LPS system (PS3.3 C.7.6.2.1.1: +x to the patient's left, +y to the back,
+z to the head), so one and the same patient can be sampled on any grid. No two halves are alike: the right lung is
the larger, a dense marker lies in the right side, another in the neck, the sternum in front.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

#: Extent of the space that holds the patient and the table: x, y, z in mm, centred on the origin.
EXTENT_MM = (360.0, 360.0, 330.0)

#: Label -> number in a label map; 0 is everything else.
LABELS = {
    "Right lung": 1,
    "Left lung": 2,
    "Airways": 3,
    "Gas": 4,
    "Marker right": 5,
    "Marker top": 6,
    "Marker front": 7,
    "Table": 8,
}

AIR_HU = -1000
_FAT_HU = -100
_SOFT_HU = 40
_EMPHYSEMA_HU = -978
_EVERYWHERE = ((-1e4, 1e4),) * 3

Inside = Callable[[Array, Array, Array], Array]


@dataclass(frozen=True)
class Shape:
    """A part of the body: where it is, its density, its label.

    Parameters
    ----------
    inside
        (x, y, z) -> bool; the coordinates in mm broadcast against one another.
    box
        Lowest and highest x, y and z of the part: no voxel outside is looked at.
    density
        HU, or a function (x, y, z) -> HU.
    number
        Its number in the label map.
    within
        None, or the numbers of the labels over which alone it is painted.
    """

    inside: Inside
    box: tuple[tuple[float, float], ...]
    density: float | Inside
    number: int = 0
    within: tuple[int, ...] | None = None


def _ellipsoid(centre: tuple[float, float, float], radii: tuple[float, float, float]) -> tuple[Inside, Any]:
    (cx, cy, cz), (a, b, c) = centre, radii

    def inside(x: Array, y: Array, z: Array) -> Array:
        return np.asarray(((x - cx) / a) ** 2 + ((y - cy) / b) ** 2 + ((z - cz) / c) ** 2 < 1)

    return inside, tuple((m - r, m + r) for m, r in zip(centre, radii, strict=True))


def _capsule(
    start: tuple[float, float, float], end: tuple[float, float, float], radius: float
) -> tuple[Inside, tuple[tuple[float, float], ...]]:
    a = np.asarray(start, np.float32)
    axis = np.asarray(end, np.float32) - a
    length2 = float(axis @ axis)

    def inside(x: Array, y: Array, z: Array) -> Array:
        dx, dy, dz = x - a[0], y - a[1], z - a[2]
        t = np.clip((dx * axis[0] + dy * axis[1] + dz * axis[2]) / np.float32(length2), 0, 1)
        square = (dx - t * axis[0]) ** 2 + (dy - t * axis[1]) ** 2 + (dz - t * axis[2]) ** 2
        return np.asarray(square < radius**2)

    return inside, tuple((min(s, e) - radius, max(s, e) + radius) for s, e in zip(start, end, strict=True))


def _block(box: tuple[tuple[float, float], ...]) -> tuple[Inside, tuple[tuple[float, float], ...]]:
    (x0, x1), (y0, y1), (z0, z1) = box

    def inside(x: Array, y: Array, z: Array) -> Array:
        return np.asarray((x >= x0) & (x < x1) & (y >= y0) & (y < y1) & (z >= z0) & (z < z1))

    return inside, box


def _trunk(margin: float) -> Inside:
    """Return the trunk less `margin` mm of its skin: an elliptic cylinder that narrows to shoulders and neck."""

    def inside(x: Array, y: Array, z: Array) -> Array:
        taper = np.clip((z - 95) / 60, 0, 1) ** 2
        a, b = 170 - 75 * taper - margin, 122 - 45 * taper - margin
        return np.asarray((x / a) ** 2 + (y / b) ** 2 < 1)

    return inside


def _ribs(x: Array, y: Array, z: Array) -> Array:
    radius2 = (x / 158) ** 2 + (y / 110) ** 2
    return np.asarray((radius2 < 1) & (radius2 > 0.9) & (np.mod(z + 0.25 * y, 26) < 8) & _trunk(12)(x, y, z))


def _spine(x: Array, y: Array, z: Array) -> Array:
    return np.asarray(((x / 20) ** 2 + ((y - 88) / 18) ** 2 < 1) & _trunk(14)(x, y, z))


def _junction(z: Array) -> Array:
    """Return the x of the plane in which the two lungs touch in front of the heart."""
    return np.asarray(4 + 0.05 * z)


def _right_lung(x: Array, y: Array, z: Array) -> Array:
    upper = np.maximum(z + 60, 0) / 190
    lobe = (((x + 70) / 64) ** 2 + ((y - 2) / 86) ** 2 + upper**2 < 1) & _beside_mediastinum(x, y)
    tongue = ((x + 30) / 45) ** 2 + ((y + 62) / 22) ** 2 + ((z - 20) / 45) ** 2 < 1
    above = z > -70 - ((x + 72) ** 2 + (y - 2) ** 2) / 90
    return np.asarray((lobe | tongue) & above & (x < _junction(z)))


def _left_lung(x: Array, y: Array, z: Array) -> Array:
    upper = np.maximum(z + 60, 0) / 180
    lobe = (((x - 72) / 56) ** 2 + ((y - 4) / 80) ** 2 + upper**2 < 1) & _beside_mediastinum(x, y)
    tongue = ((x - 35) / 40) ** 2 + ((y + 60) / 18) ** 2 + ((z - 25) / 40) ** 2 < 1
    above = z > -85 - ((x - 72) ** 2 + (y - 4) ** 2) / 90
    return np.asarray((lobe | tongue) & above & (x >= _junction(z)))


def _beside_mediastinum(x: Array, y: Array) -> Array:
    return np.asarray(((x - 5) / 28) ** 2 + ((y - 20) / 72) ** 2 > 1)


def _parenchyma(x: Array, y: Array, z: Array) -> Array:
    """Return the density of healthy lung: denser behind, and a faint line where the two lungs touch."""
    line = np.where(np.abs(x - _junction(z)) < 1.5, np.float32(230), np.float32(0))
    return np.asarray(np.float32(-855) + np.float32(0.25) * y + line)


def _table_shell(x: Array, y: Array, z: Array) -> Array:
    del z
    sag = y + 8e-4 * x**2
    return np.asarray((sag > 122) & (sag < 148) & (np.abs(x) < 165))


def _table_foam(x: Array, y: Array, z: Array) -> Array:
    del z
    sag = y + 8e-4 * x**2
    return np.asarray((sag > 126) & (sag < 144) & (np.abs(x) < 161))


def _make(
    solid: tuple[Inside, tuple[tuple[float, float], ...]],
    density: float | Inside,
    label: str | None = None,
    within: tuple[int, ...] | None = None,
) -> Shape:
    return Shape(solid[0], solid[1], density, LABELS[label] if label else 0, within)


_TABLE_BOX = ((-170.0, 170.0), (95.0, 180.0), (-1e4, 1e4))
_FRAME = (
    Shape(_table_shell, _TABLE_BOX, -150, LABELS["Table"]),
    Shape(_table_foam, _TABLE_BOX, -880, LABELS["Table"]),
    Shape(_trunk(0), _EVERYWHERE, _FAT_HU),
    Shape(_trunk(12), _EVERYWHERE, _SOFT_HU),
    Shape(_ribs, _EVERYWHERE, 350),
    Shape(_spine, ((-20, 20), (70, 106), (-1e4, 1e4)), 280),
)
_MARKERS = (
    _make(_ellipsoid((-146, 5, -20), (8, 8, 8)), 1500, "Marker right"),
    _make(_ellipsoid((25, 12, 146), (9, 9, 9)), 1200, "Marker top"),
    _make(_block(((-14, 16), (-112, -98), (-25, 70))), 800, "Marker front"),
)
_LUNGS = (1, 2)
_RIGHT_BRONCHUS = (-44.0, 12.0, -4.0)
_LEFT_BRONCHUS = (47.0, 14.0, -7.0)
_CARINA = (2.0, 10.0, 30.0)
_TRACHEA_TOP = (0.0, 6.0, 200.0)

#: Painted in this order: what comes later lies over what came before.
CHEST: tuple[Shape, ...] = (
    *_FRAME,
    Shape(_right_lung, ((-136, 16), (-88, 92), (-165, 132)), _parenchyma, LABELS["Right lung"]),
    Shape(_left_lung, ((-6, 130), (-82, 88), (-165, 122)), _parenchyma, LABELS["Left lung"]),
    # emphysema in both upper lobes, more on the right
    _make(_ellipsoid((-80, -10, 75), (22, 26, 18)), _EMPHYSEMA_HU, "Right lung", _LUNGS),
    _make(_ellipsoid((-95, 35, 10), (16, 14, 22)), _EMPHYSEMA_HU, "Right lung", _LUNGS),
    _make(_ellipsoid((82, 5, 70), (14, 16, 15)), _EMPHYSEMA_HU, "Left lung", _LUNGS),
    # vessels and a nodule, wholly within the lung: they belong to it
    _make(_capsule((-62, 25, -10), (-98, 30, -52), 3.5), _SOFT_HU, "Right lung", _LUNGS),
    _make(_capsule((-60, -5, 20), (-90, -35, 40), 3.0), _SOFT_HU, "Right lung", _LUNGS),
    _make(_capsule((72, 30, 0), (92, 40, -50), 3.5), _SOFT_HU, "Left lung", _LUNGS),
    _make(_ellipsoid((-90, 50, 50), (9, 9, 9)), 30, "Right lung", _LUNGS),
    # the heart cuts into both lungs, more into the left
    _make(_ellipsoid((25, -30, -45), (60, 48, 55)), 50),
    # trachea, carina, main bronchi with their walls; the bronchi open into the lungs
    _make(_capsule(_TRACHEA_TOP, _CARINA, 11.0), _SOFT_HU),
    _make(_capsule(_CARINA, _RIGHT_BRONCHUS, 8.5), _SOFT_HU),
    _make(_capsule(_CARINA, _LEFT_BRONCHUS, 7.5), _SOFT_HU),
    _make(_capsule(_TRACHEA_TOP, _CARINA, 9.0), AIR_HU, "Airways"),
    _make(_capsule(_CARINA, (-48, 12, -7), 6.5), AIR_HU, "Airways"),
    _make(_capsule(_CARINA, (50, 14, -9), 5.5), AIR_HU, "Airways"),
    # gas that is no lung: oesophagus, stomach, colon
    _make(_capsule((8, 40, 60), (9, 42, 95), 4.0), AIR_HU, "Gas"),
    _make(_ellipsoid((70, -10, -122), (32, 26, 16)), AIR_HU, "Gas"),
    _make(_ellipsoid((-60, -25, -130), (25, 18, 16)), AIR_HU, "Gas"),
    *_MARKERS,
)

#: The same patient's frame with liver, kidneys and bowel gas, without lungs: what a lung pipeline must refuse.
ABDOMEN: tuple[Shape, ...] = (
    *_FRAME,
    _make(_ellipsoid((-65, -10, 60), (80, 75, 70)), 65),
    _make(_ellipsoid((-60, 55, -30), (28, 25, 55)), 35),
    _make(_ellipsoid((62, 55, -15), (27, 24, 52)), 35),
    _make(_ellipsoid((60, -30, 90), (45, 35, 40)), AIR_HU, "Gas"),
    _make(_capsule((-90, -40, -120), (-85, -35, -40), 22.0), AIR_HU, "Gas"),
    _make(_capsule((95, -20, -130), (100, 5, 10), 18.0), AIR_HU, "Gas"),
    _make(_capsule((-60, -65, -35), (60, -68, -30), 16.0), AIR_HU, "Gas"),
    *_MARKERS,
)


def _window(axes: tuple[Array, Array, Array], box: tuple[tuple[float, float], ...]) -> tuple[slice, slice] | None:
    """Return the rows and columns of a slice that can lie in the box, None where there are none."""
    window = [slice(None), slice(None)]
    for axis, (low, high) in zip(axes, box, strict=True):
        hit = np.flatnonzero((axis >= low) & (axis <= high))
        if not hit.size:
            return None
        for along in (0, 1):
            if axis.shape[along] == axis.size and axis.size > 1:
                window[along] = _overlap(window[along], int(hit[0]), int(hit[-1]) + 1)
    return window[0], window[1]


def _overlap(part: slice, start: int, stop: int) -> slice:
    return slice(max(part.start or 0, start), stop if part.stop is None else min(part.stop, stop))


def _cut(axis: Array, window: tuple[slice, slice]) -> Array:
    return axis[
        window[0] if axis.shape[0] > 1 else slice(None),
        window[1] if axis.shape[1] > 1 else slice(None),
    ]


def paint(axes: tuple[Array, Array, Array], shapes: tuple[Shape, ...], hu: Array, labels: Array) -> None:
    """Paint the shapes onto one slice, in place.

    Parameters
    ----------
    axes
        x, y and z of the voxel centres in mm, each (rows, columns) or broadcasting to it.
    shapes
        `CHEST` or `ABDOMEN`.
    hu
        (rows, columns) float32, HU; filled with `AIR_HU` by the caller.
    labels
        (rows, columns) uint8, see `LABELS`; zero at first.
    """
    for shape in shapes:
        window = _window(axes, shape.box)
        if window is None:
            continue
        x, y, z = (_cut(axis, window) for axis in axes)
        here, numbers = hu[window], labels[window]
        mask = np.broadcast_to(shape.inside(x, y, z), here.shape)
        if shape.within is not None:
            mask = mask & np.isin(numbers, shape.within)
        value = shape.density(x, y, z) if callable(shape.density) else np.float32(shape.density)
        np.copyto(here, value, where=mask)
        np.copyto(numbers, np.uint8(shape.number), where=mask)
