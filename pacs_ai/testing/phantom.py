"""A synthetic chest CT with known lungs, on any grid, and the truth about it.

The patient is a set of formulas in LPS mm (`pacs_ai.testing.anatomy`): another orientation, spacing or size gives
another grid over the same patient, and the truth holds voxel by voxel. Nothing is random: the same `Phantom` gives
the same bytes and the same UIDs, and any other one gives other UIDs.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from pacs_ai.dicom.identifiers import derive_uid
from pacs_ai.pipeline import Volume
from pacs_ai.testing.anatomy import ABDOMEN, AIR_HU, CHEST, EXTENT_MM, LABELS, paint

if TYPE_CHECKING:
    from collections.abc import Mapping

Array = npt.NDArray[Any]
Cosines = tuple[float, float, float, float, float, float]

#: Image Orientation (Patient) of an axial slice: rows run to the left, columns to the back.
AXIAL: Cosines = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
#: Rows run to the left, columns to the feet.
CORONAL: Cosines = (1.0, 0.0, 0.0, 0.0, 0.0, -1.0)
#: Rows run to the back, columns to the feet.
SAGITTAL: Cosines = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)

#: HU below which lung counts as emphysema (LAA-950).
EMPHYSEMA_HU = -950

#: Rescale Intercept (0028,1052) of every image.
RESCALE_INTERCEPT = -1024
#: Pixel Padding Value (0028,0120) as stored: -3024 HU.
PADDING_STORED = -2000
#: How far the gantry leans in `Fault.GANTRY_TILT`.
TILT_DEGREES = 15.0
#: Raised with every change of what a phantom looks like, so that its UIDs change with its pixels.
PATTERN_VERSION = 1


class Fault(StrEnum):
    """What may be wrong with a series."""

    #: Three slices are missing in the middle.
    DROPPED_SLICES = "dropped slices"
    #: One position comes twice, under two SOP Instance UIDs.
    DUPLICATE_SLICE = "duplicate slice"
    #: One more image lies across the others.
    MIXED_ORIENTATION = "mixed orientation"
    #: The upper half has another Frame of Reference UID.
    TWO_FRAMES_OF_REFERENCE = "two frames of reference"
    #: The upper half is spaced 1.5 times as wide.
    UNEVEN_SPACING = "uneven spacing"
    #: The gantry leans by 15 degrees: slices are sheared, not stacked along their normal.
    GANTRY_TILT = "gantry tilt"


@dataclass(frozen=True)
class Phantom:
    """What to make.

    Parameters
    ----------
    slices, rows, columns
        Size of the grid.
    spacing
        Distance of slices, rows and columns in mm; None spreads the grid over the whole patient
        (1.5 x 0.703 x 0.703 mm for the default size).
    orientation
        Image Orientation (Patient) (0020,0037): the cosines of the rows and of the columns, at right angles.
    order
        The order of the instances; in ``shuffled`` the Instance Number follows yet another order.
    seed
        Another number is another patient and study (same anatomy); series of one seed share patient and study.
    anatomy
        ``chest``, or ``abdomen``: no lungs.
    padded
        True: voxels outside the circle of reconstruction hold the Pixel Padding Value (-3024 HU).
    faults
        What is wrong with the series; the truth is that of the series without them (gantry tilt excepted, which has
        a sheared grid of its own).
    """

    slices: int = 220
    rows: int = 512
    columns: int = 512
    spacing: tuple[float, float, float] | None = None
    orientation: Cosines = AXIAL
    order: Literal["ascending", "descending", "shuffled"] = "ascending"
    seed: int = 1
    anatomy: Literal["chest", "abdomen"] = "chest"
    padded: bool = False
    faults: tuple[Fault, ...] = ()

    @cached_property
    def affine(self) -> Array:
        """(4, 4) float64: (slice, row, column, 1) -> (x, y, z, 1) in LPS mm; slices ascend along the normal."""
        along_row, along_column = np.asarray(self.orientation[:3]), np.asarray(self.orientation[3:])
        normal = np.cross(along_row, along_column)
        sizes = (self.slices, self.rows, self.columns)
        axes = (normal, along_column, along_row)
        spacing = self.spacing or [float(np.abs(a) @ EXTENT_MM) / n for a, n in zip(axes, sizes, strict=True)]
        if Fault.GANTRY_TILT in self.faults:
            axes = (normal, _turned(along_column, along_row), along_row)
        steps = np.stack([axis * mm for axis, mm in zip(axes, spacing, strict=True)], axis=1)
        affine = np.eye(4)
        affine[:3, :3] = steps
        affine[:3, 3] = -steps @ [(n - 1) / 2 for n in sizes]
        return affine

    @cached_property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance of slices, rows and columns in mm."""
        s, r, c = (float(np.linalg.norm(self.affine[:3, axis])) for axis in range(3))
        return s, r, c

    @cached_property
    def study_instance_uid(self) -> str:
        """Study Instance UID (0020,000D); the same for all series of one seed."""
        return str(derive_uid("phantom study", PATTERN_VERSION, self.seed))

    @cached_property
    def series_instance_uid(self) -> str:
        """Series Instance UID (0020,000E)."""
        return str(derive_uid("phantom series", PATTERN_VERSION, asdict(self)))

    def volume(self) -> Volume:
        """Return the voxels (slices, rows, columns; int16, HU) as a pipeline gets them."""
        voxels = np.stack([render(self, self.affine, k)[0] for k in range(self.slices)])
        return Volume(voxels, self.affine, "CT", {"BodyPartExamined": self.anatomy.upper()})


@dataclass(frozen=True)
class Truth:
    """What lies where in a phantom, and what a right measurement of it gives.

    Parameters
    ----------
    labels
        (slices, rows, columns) uint8, the numbers of `LABELS`; the lungs hold their vessels and nodules, but neither
        trachea nor main bronchi. Slices ascend along the normal (row cosines x column cosines).
    affine
        (4, 4) float64: (slice, row, column, 1) -> (x, y, z, 1) in LPS mm.
    volumes_ml
        Label -> volume in mL.
    mean_hu, perc15_hu
        Label -> mean density and 15th percentile in HU.
    laa950_percent
        Label -> percentage of its voxels below -950 HU.
    """

    labels: Array
    affine: Array
    volumes_ml: Mapping[str, float]
    mean_hu: Mapping[str, float]
    perc15_hu: Mapping[str, float]
    laa950_percent: Mapping[str, float]

    def mask(self, label: str) -> npt.NDArray[np.bool_]:
        """(slices, rows, columns) bool of a label (a key of `LABELS`)."""
        return np.asarray(self.labels == LABELS[label])


def phantom_truth(phantom: Phantom) -> Truth:
    """Return the known answer for a phantom, sampled at the voxel centres of its own grid."""
    labels = np.empty((phantom.slices, phantom.rows, phantom.columns), np.uint8)
    counts = np.zeros((len(LABELS) + 1, 4096), np.int64)
    for k in range(phantom.slices):
        hu, labels[k] = render(phantom, phantom.affine, k)
        for number in np.unique(labels[k][labels[k] > 0]):
            inside = np.maximum(hu[labels[k] == number], -1024).astype(np.int64) + 1024
            counts[number] += np.bincount(inside, minlength=counts.shape[1])
    voxel_ml = abs(float(np.linalg.det(phantom.affine[:3, :3]))) / 1000
    values = np.arange(counts.shape[1]) - 1024
    present = {name: counts[number] for name, number in LABELS.items() if counts[number].any()}
    return Truth(
        labels=labels,
        affine=phantom.affine,
        volumes_ml={name: float(c.sum()) * voxel_ml for name, c in present.items()},
        mean_hu={name: float(c @ values / c.sum()) for name, c in present.items()},
        perc15_hu={name: float(values[np.searchsorted(np.cumsum(c), 0.15 * c.sum())]) for name, c in present.items()},
        laa950_percent={name: float(100 * c[values < EMPHYSEMA_HU].sum() / c.sum()) for name, c in present.items()},
    )


def _turned(vector: Array, axis: Array) -> Array:
    """Return the vector turned about an axis at right angles to it by the gantry's tilt."""
    angle = np.deg2rad(TILT_DEGREES)
    return np.asarray(np.cos(angle) * vector + np.sin(angle) * np.cross(axis, vector))


def _coordinates(affine: Array, index: float, rows: int, columns: int) -> tuple[Array, Array, Array]:
    """Return x, y and z of a slice's voxel centres in mm, each only as large as it must be to broadcast."""
    r = np.arange(rows, dtype=np.float64)[:, None]
    c = np.arange(columns, dtype=np.float64)[None, :]
    axes = []
    for i in range(3):
        value = np.full((1, 1), affine[i, 3] + index * affine[i, 0])
        for step, steps in ((affine[i, 1], r), (affine[i, 2], c)):
            if abs(step) * steps.size > 1e-6:
                value = value + step * steps
        axes.append(value.astype(np.float32))
    return axes[0], axes[1], axes[2]


def _noise(rows: int, columns: int, index: float) -> Array:
    """Return noise of -12 to 12 HU: one small seeded pattern, shifted from slice to slice and tiled."""
    tile = np.random.default_rng(PATTERN_VERSION).integers(-12, 13, (61, 67)).astype(np.float32)
    tile = np.roll(tile, (int(index * 17), int(index * 29)), axis=(0, 1))
    return np.tile(tile, (rows // 61 + 1, columns // 67 + 1))[:rows, :columns]


def render(phantom: Phantom, affine: Array, index: float) -> tuple[Array, Array]:
    """Return the HU (int16) and the label numbers (uint8) of one slice, each (rows, columns)."""
    rows, columns = phantom.rows, phantom.columns
    hu = np.full((rows, columns), AIR_HU, np.float32)
    labels = np.zeros((rows, columns), np.uint8)
    shapes = CHEST if phantom.anatomy == "chest" else ABDOMEN
    paint(_coordinates(affine, index, rows, columns), shapes, hu, labels)
    hu += _noise(rows, columns, index)
    voxels = hu.astype(np.int16)
    if phantom.padded:
        r = (np.arange(rows, dtype=np.float32)[:, None] * 2 + 1) / rows - 1
        c = (np.arange(columns, dtype=np.float32)[None, :] * 2 + 1) / columns - 1
        voxels[r * r + c * c > 1] = PADDING_STORED + RESCALE_INTERCEPT
    return voxels, labels
