"""A phantom as a series of CT images: valid, in any order, with faults on request (PS3.3 A.3.3, CT Image IOD)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from pacs_ai.dicom.identifiers import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME, derive_uid
from pacs_ai.testing.phantom import (
    PADDING_STORED,
    PATTERN_VERSION,
    RESCALE_INTERCEPT,
    TILT_DEGREES,
    Cosines,
    Fault,
    Phantom,
    render,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

Array = npt.NDArray[Any]


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
    tilt = TILT_DEGREES if Fault.GANTRY_TILT in phantom.faults else 0.0
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
    ds.SoftwareVersions = str(PATTERN_VERSION)
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
    hu, _ = render(phantom, planned.affine, planned.index)
    ds.SamplesPerPixel = 1
    ds.PhotometricInterpretation = "MONOCHROME2"
    ds.Rows, ds.Columns = phantom.rows, phantom.columns
    ds.BitsAllocated = ds.BitsStored = 16
    ds.HighBit = 15
    ds.PixelRepresentation = 1
    if phantom.padded:
        ds.add_new(0x00280120, "SS", PADDING_STORED)
    ds.RescaleIntercept = RESCALE_INTERCEPT
    ds.RescaleSlope = 1
    ds.RescaleType = "HU"
    ds.WindowCenter, ds.WindowWidth = -500, 1500
    ds.PixelData = (hu - np.int16(RESCALE_INTERCEPT)).astype("<i2").tobytes()


def _text_number(value: float) -> str:
    """Return a Decimal String (VR DS, at most 16 characters)."""
    return f"{value + 0.0:.10g}" if abs(value) > 1e-9 else "0"
