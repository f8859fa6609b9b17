"""Arrays, PNG and JPEG pictures wrapped as valid ultrasound, radiographs, mammograms, fundus and skin photographs.

Each function returns one instance with file meta information; `write_images` writes several. Patients are synthetic,
and UIDs derive from the `Case`, so that the same picture is the same instance again.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence as Items
from pydicom.uid import (
    ComputedRadiographyImageStorage,
    DigitalMammographyXRayImageStorageForPresentation,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    JPEGBaseline8Bit,
    OphthalmicPhotography8BitImageStorage,
    UltrasoundImageStorage,
    UltrasoundMultiFrameImageStorage,
    VLPhotographicImageStorage,
)

from pacs_ai.dicom.identifiers import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME, derive_uid

if TYPE_CHECKING:
    from collections.abc import Sequence

Array = npt.NDArray[Any]
#: An array, or a PNG or JPEG file.
Picture = Array | Path
Spacing = tuple[float, float]
Laterality = Literal["L", "R", "U"]

_DATE, _TIME = "20200102", "030405"
_LOSSY_QUALITY = 95
_CHEST = ("51185008", "SCT", "Chest")
_BREAST = ("76752008", "SCT", "Breast")
_RETINA = ("5665001", "SCT", "Retina")
#: View Position -> view code of a chest film (CID 4010).
_VIEWS = {
    "PA": ("272479007", "SCT", "postero-anterior"),
    "AP": ("399348003", "SCT", "antero-posterior"),
    "LL": ("399173006", "SCT", "left lateral"),
}
_MAMMOGRAM_VIEWS = {
    "CC": ("399162004", "SCT", "cranio-caudal"),
    "MLO": ("399368009", "SCT", "medio-lateral oblique"),
}


@dataclass(frozen=True)
class Case:
    """Whose image it is, and which of theirs: UIDs derive from these fields.

    Parameters
    ----------
    name
        Names the patient and the study ("head-7"); PatientID is ``TEST-<name>``.
    series, number
        Series Number and Instance Number.
    study_description, series_description
        What routes may ask for.
    """

    name: str
    series: int = 1
    number: int = 1
    study_description: str = ""
    series_description: str = ""

    @property
    def study_instance_uid(self) -> str:
        """Study Instance UID (0020,000D)."""
        return derive_uid("testing picture", self.name)

    def series_instance_uid(self, modality: str) -> str:
        """Series Instance UID (0020,000E)."""
        return derive_uid("testing picture", self.name, modality, self.series)


def pixels_of(picture: Picture) -> Array:
    """Return the pixels of a picture: (rows, columns) uint8 or uint16, or (rows, columns, 3) uint8 RGB."""
    if isinstance(picture, np.ndarray):
        return picture
    with Image.open(picture) as opened:
        grey = opened.mode in {"L", "1", "LA"} or opened.mode.startswith("I")
        if grey:
            return np.asarray(opened if opened.mode == "I;16" else opened.convert("L"))
        return np.asarray(opened.convert("RGB"))


def ultrasound(picture: Picture, case: Case, mm_per_pixel: float | None = None, **attributes: Any) -> Dataset:
    """Return an Ultrasound Image (PS3.3 A.6), with its scale as an ultrasound region where that is given (C.8.5.5).

    Parameters
    ----------
    picture
        (rows, columns) uint8, or (rows, columns, 3) uint8 RGB.
    case
        Whose.
    mm_per_pixel
        Size of a pixel in mm; None: uncalibrated.
    attributes
        Further attributes by keyword, in place of those set here (Body Part Examined is ABDOMEN).
    """
    pixels = pixels_of(picture)
    ds = _image(pixels, case, UltrasoundImageStorage, "US")
    return _as_ultrasound(ds, mm_per_pixel, attributes)


def ultrasound_clip(
    frames: Array, case: Case, mm_per_pixel: float | None = None, frame_ms: float = 40.0, **attributes: Any
) -> Dataset:
    """Return an Ultrasound Multi-frame Image (PS3.3 A.7): (frames, rows, columns) or (frames, rows, columns, 3) uint8.

    Parameters
    ----------
    frames
        The clip.
    case, mm_per_pixel, attributes
        As for `ultrasound`.
    frame_ms
        Frame Time (0018,1063).
    """
    ds = _image(frames[0], case, UltrasoundMultiFrameImageStorage, "US", frames)
    ds.FrameTime = frame_ms
    ds.FrameIncrementPointer = 0x00181063
    return _as_ultrasound(ds, mm_per_pixel, attributes)


def _as_ultrasound(ds: Dataset, mm_per_pixel: float | None, attributes: dict[str, Any]) -> Dataset:
    ds.TransducerType, ds.BodyPartExamined = "CURVED LINEAR", "ABDOMEN"
    if mm_per_pixel is not None:
        item = Dataset()
        item.RegionSpatialFormat, item.RegionDataType, item.RegionFlags = 1, 1, 0
        item.RegionLocationMinX0 = item.RegionLocationMinY0 = 0
        item.RegionLocationMaxX1, item.RegionLocationMaxY1 = ds.Columns - 1, ds.Rows - 1
        item.PhysicalUnitsXDirection = item.PhysicalUnitsYDirection = 3
        item.PhysicalDeltaX = item.PhysicalDeltaY = mm_per_pixel / 10
        ds.SequenceOfUltrasoundRegions = Items([item])
    return _changed(ds, attributes)


def film(
    picture: Picture,
    case: Case,
    modality: Literal["DX", "CR"] = "DX",
    view: str = "PA",
    *,
    inverted: bool = False,
    detector_mm: Spacing | None = None,
    **attributes: Any,
) -> Dataset:
    """Return a radiograph: Digital X-Ray - For Presentation (PS3.3 A.26) or Computed Radiography (A.2).

    Parameters
    ----------
    picture
        (rows, columns) uint8 or uint16, bright where the patient is dense.
    case, attributes
        As for `ultrasound`; Body Part Examined is CHEST unless `attributes` say otherwise.
    modality
        DX or CR.
    view
        View Position (0018,5101): PA, AP, LL.
    inverted
        Whether it is stored as MONOCHROME1; what is shown stays the same.
    detector_mm
        Imager Pixel Spacing (0018,1164); None: absent from a CR, and 0.15 mm in a DX, where it is required.
    """
    pixels = pixels_of(picture)
    if inverted:
        pixels = np.iinfo(pixels.dtype).max - pixels
    storage = DigitalXRayImageStorageForPresentation if modality == "DX" else ComputedRadiographyImageStorage
    ds = _image(pixels, case, storage, modality)
    ds.PhotometricInterpretation = "MONOCHROME1" if inverted else "MONOCHROME2"
    ds.BodyPartExamined, ds.ViewPosition = "CHEST", view
    ds.PatientOrientation = ["P", "F"] if view.startswith("L") else ["L", "F"]
    if modality == "DX":
        _digital(ds, detector_mm or (0.15, 0.15), inverted)
        ds.PositionerType = "NONE"
        ds.ImageLaterality = "U"
        ds.AnatomicRegionSequence = Items([_code(_CHEST)])
        ds.ViewCodeSequence = Items([_code(_VIEWS[view])])
    elif detector_mm is not None:
        ds.ImagerPixelSpacing = list(detector_mm)
    return _changed(ds, attributes)


def mammogram(
    picture: Picture,
    case: Case,
    laterality: Laterality = "R",
    view: Literal["CC", "MLO"] = "CC",
    detector_mm: Spacing = (0.07, 0.07),
    **attributes: Any,
) -> Dataset:
    """Return a Digital Mammography X-Ray Image - For Presentation (PS3.3 A.27): (rows, columns) uint8 or uint16."""
    ds = _image(pixels_of(picture), case, DigitalMammographyXRayImageStorageForPresentation, "MG")
    _digital(ds, detector_mm, inverted=False)
    ds.PositionerType = "MAMMOGRAPHIC"
    ds.OrganExposed = ds.BodyPartExamined = "BREAST"
    ds.ImageLaterality, ds.ViewPosition = laterality, view
    ds.PatientOrientation = ["P" if laterality == "R" else "A", "R" if view == "CC" else "F"]
    ds.BreastImplantPresent = "NO"
    ds.AnatomicRegionSequence = Items([_code(_BREAST)])
    item = _code(_MAMMOGRAM_VIEWS[view])
    item.ViewModifierCodeSequence = Items()
    ds.ViewCodeSequence = Items([item])
    return _changed(ds, attributes)


def fundus(
    picture: Picture, case: Case, laterality: Laterality = "R", *, as_jpeg: bool = False, **attributes: Any
) -> Dataset:
    """Return an Ophthalmic Photography 8 Bit Image (PS3.3 A.41) of a retina: (rows, columns, 3) uint8 RGB.

    Parameters
    ----------
    picture, case, attributes
        As for `ultrasound`.
    laterality
        Which eye.
    as_jpeg
        Whether it is stored as JPEG (YBR_FULL_422), as cameras do; the bytes of a JPEG file are kept as they are.
    """
    ds = _image(pixels_of(picture), case, OphthalmicPhotography8BitImageStorage, "OP")
    ds.NumberOfFrames, ds.FrameTime, ds.FrameIncrementPointer = 1, 0, 0x00181063
    ds.SynchronizationFrameOfReferenceUID = derive_uid("testing picture", case.name, "synchronization")
    ds.SynchronizationTrigger, ds.AcquisitionTimeSynchronized = "NO TRIGGER", "N"
    ds.AcquisitionDateTime = _DATE + _TIME
    ds.ImageLaterality = laterality
    ds.PatientOrientation = ["L", "F"]
    ds.AnatomicRegionSequence = Items([_code(_RETINA)])
    ds.AcquisitionDeviceTypeCodeSequence = Items([_code(("409898007", "SCT", "Fundus Camera"))])
    for keyword in ("IlluminationType", "LightPathFilterTypeStack", "ImagePathFilterTypeStack", "Lenses"):
        setattr(ds, f"{keyword}CodeSequence", Items())
    for keyword in ("PatientEyeMovementCommanded", "EmmetropicMagnification", "IntraOcularPressure"):
        setattr(ds, keyword, None)
    ds.HorizontalFieldOfView, ds.PupilDilated, ds.DetectorType = None, None, None
    ds.RefractiveStateSequence = Items()
    return _changed(_compressed(ds, picture) if as_jpeg else ds, attributes)


def photograph(picture: Picture, case: Case, *, as_jpeg: bool = False, **attributes: Any) -> Dataset:
    """Return a VL Photographic Image (PS3.3 A.32.4) of the skin of the back: (rows, columns, 3) uint8 RGB.

    Parameters
    ----------
    picture, case, as_jpeg, attributes
        As for `fundus`.
    """
    ds = _image(pixels_of(picture), case, VLPhotographicImageStorage, "XC")
    ds.AcquisitionContextSequence = Items()
    ds.BodyPartExamined = "BACK"
    return _changed(_compressed(ds, picture) if as_jpeg else ds, attributes)


def write_images(folder: Path, images: Sequence[Dataset]) -> list[Path]:
    """Write the instances as ``001.dcm`` ... into `folder`, made where it is missing, and return the files."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number:03d}.dcm" for number in range(1, len(images) + 1)]
    for path, ds in zip(paths, images, strict=True):
        ds.save_as(path, enforce_file_format=True)
    return paths


def _image(pixels: Array, case: Case, storage: str, modality: str, frames: Array | None = None) -> Dataset:
    """Return what all of them have: patient, study, series, equipment, general image and image pixel modules."""
    ds = Dataset()
    _describe(ds, case, modality)
    ds.SOPClassUID = storage
    ds.SOPInstanceUID = derive_uid("testing picture", ds.SeriesInstanceUID, case.number)
    ds.Rows, ds.Columns = pixels.shape[:2]
    colour = pixels.ndim == 3
    ds.SamplesPerPixel = 3 if colour else 1
    ds.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    if colour:
        ds.PlanarConfiguration = 0
    ds.BitsAllocated = ds.BitsStored = pixels.dtype.itemsize * 8
    ds.HighBit, ds.PixelRepresentation = ds.BitsStored - 1, 0
    if frames is not None:
        ds.NumberOfFrames = len(frames)
    stored = pixels if frames is None else frames
    raw = np.ascontiguousarray(stored, stored.dtype.newbyteorder("<")).tobytes()
    ds.PixelData = raw + b"\0" * (len(raw) % 2)
    ds["PixelData"].VR = "OB" if ds.BitsAllocated == 8 else "OW"
    ds.file_meta = FileMetaDataset()
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.ImplementationClassUID = IMPLEMENTATION_CLASS_UID
    ds.file_meta.ImplementationVersionName = IMPLEMENTATION_VERSION_NAME
    return ds


def _describe(ds: Dataset, case: Case, modality: str) -> None:
    ds.PatientName, ds.PatientID = "Phantom^Picture", f"TEST-{case.name}"[:64]
    ds.PatientBirthDate, ds.PatientSex = "19500101", "O"
    ds.StudyInstanceUID = case.study_instance_uid
    ds.StudyID, ds.AccessionNumber = "1", f"T{case.name}"[:16]
    ds.StudyDate = ds.SeriesDate = ds.ContentDate = ds.AcquisitionDate = _DATE
    ds.StudyTime = ds.SeriesTime = ds.ContentTime = ds.AcquisitionTime = _TIME
    ds.ReferringPhysicianName = ""
    if case.study_description:
        ds.StudyDescription = case.study_description
    if case.series_description:
        ds.SeriesDescription = case.series_description
    ds.Modality = modality
    ds.SeriesInstanceUID = case.series_instance_uid(modality)
    ds.SeriesNumber, ds.InstanceNumber = case.series, case.number
    ds.Manufacturer = ds.ManufacturerModelName = "pacs_ai"
    ds.DeviceSerialNumber, ds.SoftwareVersions = "1", "1"
    ds.ImageType = ["ORIGINAL", "PRIMARY"]
    ds.PatientOrientation = None
    ds.BurnedInAnnotation, ds.LossyImageCompression = "NO", "00"


def _digital(ds: Dataset, detector_mm: Spacing, inverted: bool) -> None:
    """Fill in the modules of the DX family (PS3.3 C.8.11.1 to C.8.11.4)."""
    ds.ImageType = ["ORIGINAL", "PRIMARY", ""]
    ds.PresentationIntentType = "FOR PRESENTATION"
    ds.PixelIntensityRelationship, ds.PixelIntensityRelationshipSign = "LOG", 1 if inverted else -1
    ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType = 0, 1, "US"
    ds.PresentationLUTShape = "INVERSE" if inverted else "IDENTITY"
    ds.WindowCenter, ds.WindowWidth = 2 ** (ds.BitsStored - 1), 2**ds.BitsStored
    ds.DetectorType = "DIRECT"
    ds.ImagerPixelSpacing = list(detector_mm)
    ds.AcquisitionContextSequence = Items()


def _compressed(ds: Dataset, picture: Picture) -> Dataset:
    """Turn native pixels into one JPEG baseline frame (PS3.5 8.2.1), lossy and said so (PS3.3 C.7.6.1.1.5)."""
    encoded = io.BytesIO()
    if isinstance(picture, Path) and picture.suffix.lower() in {".jpg", ".jpeg"}:
        encoded.write(picture.read_bytes())
    else:
        Image.fromarray(pixels_of(picture)).save(encoded, "JPEG", quality=_LOSSY_QUALITY, subsampling="4:2:2")
    content = encoded.getvalue()
    ds.LossyImageCompression = "01"
    ds.LossyImageCompressionRatio = f"{len(ds.PixelData) / len(content):.4g}"
    ds.LossyImageCompressionMethod = "ISO_10918_1"
    ds.PhotometricInterpretation = "YBR_FULL_422"
    ds.PixelData = encapsulate([content])
    ds["PixelData"].VR = "OB"
    ds.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    return ds


def _changed(ds: Dataset, attributes: dict[str, Any]) -> Dataset:
    for keyword, value in attributes.items():
        setattr(ds, keyword, value)
    return ds


def _code(triplet: tuple[str, str, str]) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = triplet
    return item
