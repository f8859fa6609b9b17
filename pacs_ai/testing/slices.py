"""A volume as a valid series of single-frame CT, MR or PET images, or the sinograms of one (PS3.3 A.3, A.4, A.21)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import (
    CTImageStorage,
    ExplicitVRLittleEndian,
    MRImageStorage,
    PositronEmissionTomographyImageStorage,
)

from pacs_ai.dicom.identifiers import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME, derive_uid

if TYPE_CHECKING:
    from pathlib import Path

    from pacs_ai.pipeline import Array
    from pacs_ai.testing.photographs import Case

_CLASSES = {"CT": CTImageStorage, "MR": MRImageStorage, "PT": PositronEmissionTomographyImageStorage}
_DATE, _TIME = "20200102", "030405"
#: Largest stored value of a PET image, whose slope is chosen so.
_FULL = 32000


def write_slices(
    folder: Path, voxels: Array, spacing: tuple[float, float, float], case: Case, modality: str, **attributes: Any
) -> list[Path]:
    """Write a series, one file for each slice.

    Parameters
    ----------
    folder
        Made where it is missing; ``0001.dcm`` ... are written into it.
    voxels
        (slices, rows, columns), from feet to head, rows to the back, columns to the left; HU for CT.
    spacing
        Of slices, rows and columns in mm.
    case
        Whose; series of one case with one name share a study and a Frame of Reference.
    modality
        CT, MR or PT.
    attributes
        Further attributes by keyword, in place of those set here.

    Returns
    -------
    list of Path
        The files, from feet to head.
    """
    folder.mkdir(parents=True, exist_ok=True)
    slope = max(float(np.max(voxels)), 1e-9) / _FULL if modality == "PT" else 1.0
    paths = []
    for index, plane in enumerate(voxels):
        ds = _instance(case, modality, index)
        _place(ds, index, len(voxels), spacing)
        _SPECIAL[modality](ds, index, len(voxels))
        _pixels(ds, plane, slope, modality)
        for keyword, value in attributes.items():
            setattr(ds, keyword, value)
        paths.append(folder / f"{index + 1:04d}.dcm")
        ds.save_as(paths[-1], enforce_file_format=True)
    return paths


def write_sinograms(
    folder: Path, counts: Array, spacing: tuple[float, float, float], case: Case, **attributes: Any
) -> list[Path]:
    """Write sinograms as this node takes them: PET images with SINOGRAM in Image Type, a projection in each row.

    Parameters
    ----------
    folder, case, attributes
        As for `write_slices`.
    counts
        (planes, angles, bins).
    spacing
        Of the planes, and twice the width of a bin, in mm: the grid of the images that are to be reconstructed.
    """
    angles = counts.shape[1]
    stated: dict[str, Any] = {
        "ImageType": ["ORIGINAL", "PRIMARY", "SINOGRAM"],
        "StartAngle": 0,
        "AngularStep": f"{180 / angles:.10g}",
        "ScanArc": 180,
        "SeriesDescription": "Sinograms",
        "ImageComments": f"Sinogram: row k is the projection at k x {180 / angles:.4g} degrees, columns are bins",
        **attributes,
    }
    return write_slices(folder, counts, spacing, case, "PT", **stated)


def _instance(case: Case, modality: str, index: int) -> Dataset:
    ds = Dataset()
    ds.PatientName, ds.PatientID = f"Test^{case.name}", f"TEST-{case.name}"
    ds.PatientBirthDate, ds.PatientSex, ds.PatientAge = "19500101", "O", "070Y"
    ds.StudyInstanceUID = case.study_instance_uid
    ds.StudyID, ds.StudyDate, ds.StudyTime = "T1", _DATE, _TIME
    ds.AccessionNumber, ds.ReferringPhysicianName = "", ""
    ds.StudyDescription = case.study_description
    ds.SeriesInstanceUID = case.series_instance_uid(modality)
    ds.SeriesNumber, ds.SeriesDate, ds.SeriesTime = case.series, _DATE, _TIME
    ds.SeriesDescription = case.series_description
    ds.Modality = modality
    ds.Manufacturer, ds.ManufacturerModelName = "pacs_ai", "Phantom"
    ds.AcquisitionDate = ds.ContentDate = _DATE
    ds.AcquisitionTime = ds.ContentTime = _TIME
    ds.AcquisitionNumber, ds.InstanceNumber = 1, index + 1
    ds.SOPClassUID = _CLASSES[modality]
    ds.SOPInstanceUID = derive_uid("testing slice", ds.SeriesInstanceUID, index)
    ds.FrameOfReferenceUID = derive_uid("testing frame of reference", ds.StudyInstanceUID)
    ds.PositionReferenceIndicator = ""
    ds.file_meta = FileMetaDataset()
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.ImplementationClassUID = IMPLEMENTATION_CLASS_UID
    ds.file_meta.ImplementationVersionName = IMPLEMENTATION_VERSION_NAME
    return ds


def _place(ds: Dataset, index: int, count: int, spacing: tuple[float, float, float]) -> None:
    ds.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    ds.ImagePositionPatient = [-100, -100, f"{(index - count / 2) * spacing[0]:.6g}"]
    ds.PixelSpacing = [f"{spacing[1]:.8g}", f"{spacing[2]:.8g}"]
    ds.SliceThickness = f"{spacing[0]:.8g}"


def _pixels(ds: Dataset, plane: Array, slope: float, modality: str) -> None:
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.Rows, ds.Columns = plane.shape
    ds.BitsAllocated = ds.BitsStored = 16
    ds.HighBit, ds.PixelRepresentation = 15, int(modality != "MR")
    stored = plane / float(f"{slope:.10g}")
    if modality != "MR":
        ds.RescaleIntercept, ds.RescaleSlope = 0, f"{slope:.10g}"
    ds.PixelData = np.rint(stored).astype("<u2" if modality == "MR" else "<i2").tobytes()


def _ct(ds: Dataset, _index: int, _count: int) -> None:
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.KVP, ds.RescaleType, ds.PatientPosition = 120, "HU", "HFS"


def _mr(ds: Dataset, _index: int, _count: int) -> None:
    ds.ImageType = ["ORIGINAL", "PRIMARY", "OTHER"]
    ds.ScanningSequence, ds.SequenceVariant, ds.ScanOptions = "GR", "SP", ""
    ds.MRAcquisitionType, ds.EchoTime, ds.RepetitionTime, ds.EchoTrainLength = "3D", 3, 2000, 1
    ds.PatientPosition = "HFS"


def _pt(ds: Dataset, index: int, count: int) -> None:
    ds.ImageType = ["ORIGINAL", "PRIMARY"]
    ds.SeriesType, ds.Units, ds.CountsSource = ["STATIC", "IMAGE"], "CNTS", "EMISSION"
    ds.DecayCorrection, ds.CollimatorType, ds.CorrectedImage = "NONE", "NONE", []
    ds.NumberOfSlices, ds.ImageIndex = count, index + 1
    ds.FrameReferenceTime, ds.ActualFrameDuration = 0, 600000
    for keyword in (
        "RadiopharmaceuticalInformationSequence",
        "PatientOrientationCodeSequence",
        "PatientGantryRelationshipCodeSequence",
    ):
        setattr(ds, keyword, Items())


_SPECIAL = {"CT": _ct, "MR": _mr, "PT": _pt}
