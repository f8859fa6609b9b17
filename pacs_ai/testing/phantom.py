"""Synthetic chest CT series with known lungs, on any grid, in any slice order, and with faults on request.

The patient is a set of formulas in LPS mm (`pacs_ai.testing.anatomy`): another orientation, spacing or size gives
another grid over the same patient, and the truth holds voxel by voxel. Nothing is random: the same `Phantom` gives
the same bytes and the same UIDs, and any other one gives other UIDs.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from pacs_ai.dicom.identifiers import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME, derive_uid
from pacs_ai.pipeline import Volume
from pacs_ai.testing.anatomy import ABDOMEN, AIR_HU, CHEST, EXTENT_MM, LABELS, paint

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

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

_RESCALE_INTERCEPT = -1024
_PADDING_STORED = -2000
_TILT_DEGREES = 15.0
_PATTERN_VERSION = 1


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
        return str(derive_uid("phantom study", _PATTERN_VERSION, self.seed))

    @cached_property
    def series_instance_uid(self) -> str:
        """Series Instance UID (0020,000E)."""
        return str(derive_uid("phantom series", _PATTERN_VERSION, asdict(self)))

    def volume(self) -> Volume:
        """Return the voxels (slices, rows, columns; int16, HU) as a pipeline gets them."""
        voxels = np.stack([_render(self, self.affine, k)[0] for k in range(self.slices)])
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
        hu, labels[k] = _render(phantom, phantom.affine, k)
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


def phantom_datasets(phantom: Phantom) -> list[Dataset]:
    """Return the instances of a phantom's series, in its order; see `iterate_phantom` for one at a time."""
    return list(iterate_phantom(phantom))


def iterate_phantom(phantom: Phantom) -> Iterator[Dataset]:
    """Yield the instances of a phantom's series, in its order.

    Yields
    ------
    Dataset
        CT Image Storage, Explicit VR Little Endian, int16 with Rescale Intercept -1024, with file meta information:
        ``ds.save_as(path, enforce_file_format=True)`` writes it.
    """
    planned = _plan(phantom)
    rng = np.random.default_rng(phantom.seed)
    sequence = np.arange(len(planned))
    numbers = np.arange(len(planned)) + 1
    if phantom.order == "descending":
        sequence = sequence[::-1]
    if phantom.order == "shuffled":
        sequence, numbers = rng.permutation(sequence), rng.permutation(numbers)
    for index, instance_number in zip(sequence, numbers, strict=True):
        yield _instance(phantom, planned[index], int(instance_number))


def write_phantom(folder: Path, phantom: Phantom) -> list[Path]:
    """Write the instances of a phantom's series as DICOM files, in its order.

    Parameters
    ----------
    folder
        Made where it is missing; ``00001.dcm`` ... are written into it.

    Returns
    -------
    list of Path
        The files, in the order of the instances.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, ds in enumerate(iterate_phantom(phantom), start=1):
        paths.append(folder / f"{number:05d}.dcm")
        ds.save_as(paths[-1], enforce_file_format=True)
    return paths


@dataclass(frozen=True)
class _Planned:
    """One image to make: its index along the stack, its plane and its frame of reference."""

    index: float
    affine: Array
    copy: int = 0
    frame_of_reference: int = 1
    tilt: float = 0.0


def _plan(phantom: Phantom) -> list[_Planned]:
    """Return the images in ascending order, with the faults put in."""
    tilt = _TILT_DEGREES if Fault.GANTRY_TILT in phantom.faults else 0.0
    planned = [_Planned(float(k), phantom.affine, tilt=tilt) for k in range(phantom.slices)]
    middle = phantom.slices // 2
    if Fault.UNEVEN_SPACING in phantom.faults:
        planned = [replace(p, index=p.index + max(0.0, p.index - middle) / 2) for p in planned]
    if Fault.TWO_FRAMES_OF_REFERENCE in phantom.faults:
        planned = [replace(p, frame_of_reference=1 + (k >= middle)) for k, p in enumerate(planned)]
    if Fault.DUPLICATE_SLICE in phantom.faults:
        planned.insert(middle, replace(planned[middle], copy=1))
    if Fault.DROPPED_SLICES in phantom.faults:
        del planned[middle - 4 : middle - 1]
    if Fault.MIXED_ORIENTATION in phantom.faults:
        other = replace(phantom, orientation=_across(phantom.orientation), spacing=None, faults=())
        planned.append(_Planned(phantom.slices / 2, other.affine, copy=2))
    return planned


def _across(orientation: Cosines) -> Cosines:
    """Return the orientation of a plane through the rows and the normal of this one."""
    row, column = np.asarray(orientation[:3]), np.asarray(orientation[3:])
    a, b, c, d, e, f = (float(v) for v in (*row, *-np.cross(row, column)))
    return a, b, c, d, e, f


def _turned(vector: Array, axis: Array) -> Array:
    """Return the vector turned about an axis at right angles to it by the gantry's tilt."""
    angle = np.deg2rad(_TILT_DEGREES)
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
    tile = np.random.default_rng(_PATTERN_VERSION).integers(-12, 13, (61, 67)).astype(np.float32)
    tile = np.roll(tile, (int(index * 17), int(index * 29)), axis=(0, 1))
    return np.tile(tile, (rows // 61 + 1, columns // 67 + 1))[:rows, :columns]


def _render(phantom: Phantom, affine: Array, index: float) -> tuple[Array, Array]:
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
        voxels[r * r + c * c > 1] = _PADDING_STORED + _RESCALE_INTERCEPT
    return voxels, labels


def _instance(phantom: Phantom, planned: _Planned, instance_number: int) -> Dataset:
    """Return one image as a data set."""
    ds = Dataset()
    _describe_study(ds, phantom)
    _describe_series(ds, phantom)
    _describe_plane(ds, planned, instance_number)
    _describe_pixels(ds, phantom, planned)
    ds.SOPClassUID = CTImageStorage
    ds.SOPInstanceUID = derive_uid("phantom instance", phantom.series_instance_uid, planned.index, planned.copy)
    ds.file_meta = FileMetaDataset()
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.ImplementationClassUID = IMPLEMENTATION_CLASS_UID
    ds.file_meta.ImplementationVersionName = IMPLEMENTATION_VERSION_NAME
    return ds


def _describe_study(ds: Dataset, phantom: Phantom) -> None:
    """Fill in the Patient, General Study and Patient Study modules (PS3.3 C.7.1.1, C.7.2.1, C.7.2.2)."""
    ds.PatientName = "Phantom^Asymmetric"
    ds.PatientID = f"PHANTOM-{phantom.seed}"
    ds.PatientBirthDate = "19500101"
    ds.PatientSex = "O"
    ds.PatientAge = "070Y"
    ds.StudyInstanceUID = phantom.study_instance_uid
    ds.StudyID = f"PH{phantom.seed}"
    ds.StudyDate = "20200102"
    ds.StudyTime = "030405"
    ds.AccessionNumber = f"PHANTOM{phantom.seed}"
    ds.ReferringPhysicianName = ""
    ds.StudyDescription = f"Phantom {phantom.anatomy}"


def _describe_series(ds: Dataset, phantom: Phantom) -> None:
    """Fill in the General Series, Frame of Reference, General Equipment modules and the CT's own of the series."""
    ds.Modality = "CT"
    ds.SeriesInstanceUID = phantom.series_instance_uid
    ds.SeriesNumber = 2
    ds.SeriesDate = "20200102"
    ds.SeriesTime = "030506"
    ds.SeriesDescription = f"Phantom {phantom.anatomy} {phantom.spacing_mm[0]:.1f} mm"
    ds.BodyPartExamined = phantom.anatomy.upper()
    ds.PatientPosition = "HFS"
    ds.PositionReferenceIndicator = ""
    ds.Manufacturer = "pacs_ai"
    ds.ManufacturerModelName = "Phantom"
    ds.SoftwareVersions = str(_PATTERN_VERSION)
    ds.AcquisitionNumber = 1
    ds.AcquisitionDate = "20200102"
    ds.AcquisitionTime = "030506"
    ds.KVP = 120
    ds.ConvolutionKernel = "SMOOTH"
    ds.SliceThickness = _text_number(phantom.spacing_mm[0])


def _describe_plane(ds: Dataset, planned: _Planned, instance_number: int) -> None:
    """Fill in the General Image and Image Plane modules (PS3.3 C.7.6.1, C.7.6.2)."""
    affine = planned.affine
    _, row_mm, column_mm = (float(np.linalg.norm(affine[:3, axis])) for axis in range(3))
    position = affine[:3, 3] + planned.index * affine[:3, 0]
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.ContentDate = "20200102"
    ds.ContentTime = "030506"
    ds.InstanceNumber = instance_number
    ds.FrameOfReferenceUID = derive_uid("phantom frame", ds.StudyInstanceUID, planned.frame_of_reference)
    ds.ImagePositionPatient = [_text_number(v) for v in position]
    ds.ImageOrientationPatient = [_text_number(v) for v in (*(affine[:3, 2] / column_mm), *(affine[:3, 1] / row_mm))]
    ds.PixelSpacing = [_text_number(row_mm), _text_number(column_mm)]
    ds.GantryDetectorTilt = _text_number(planned.tilt)


def _describe_pixels(ds: Dataset, phantom: Phantom, planned: _Planned) -> None:
    """Fill in the Image Pixel and CT Image modules (PS3.3 C.7.6.3, C.8.2.1)."""
    hu, _ = _render(phantom, planned.affine, planned.index)
    ds.SamplesPerPixel = 1
    ds.PhotometricInterpretation = "MONOCHROME2"
    ds.Rows, ds.Columns = phantom.rows, phantom.columns
    ds.BitsAllocated = ds.BitsStored = 16
    ds.HighBit = 15
    ds.PixelRepresentation = 1
    if phantom.padded:
        ds.add_new(0x00280120, "SS", _PADDING_STORED)
    ds.RescaleIntercept = _RESCALE_INTERCEPT
    ds.RescaleSlope = 1
    ds.RescaleType = "HU"
    ds.WindowCenter, ds.WindowWidth = -500, 1500
    ds.PixelData = (hu - np.int16(_RESCALE_INTERCEPT)).astype("<i2").tobytes()


def _text_number(value: float) -> str:
    """Return a Decimal String (VR DS, at most 16 characters)."""
    return f"{value + 0.0:.10g}" if abs(value) > 1e-9 else "0"
