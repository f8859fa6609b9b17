"""Radiographs and ultrasound as DICOM: valid images of pixels given, or of the real ones in shared/data.

`write_chest` and `write_heads` wrap what lies there as PNG only (NIH chest films, HC18 ultrasound).
"""

from __future__ import annotations

import csv

import numpy as np
from PIL import Image
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    DigitalXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    UltrasoundImageStorage,
    UltrasoundMultiFrameImageStorage,
)

from pacs_ai.dicom.identifiers import derive_uid

STUDY = derive_uid("plain images", "study")


def code(value, scheme, meaning):
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item


def plain_image(pixels, sop_class_uid, modality, number=1, frames=1, **changes):
    """Return an image of (rows, columns), (rows, columns, 3) or frames of either; `changes` are attributes."""
    pixels = np.asarray(pixels)
    shape = pixels.shape[1:] if frames > 1 else pixels.shape
    ds = Dataset()
    ds.SOPClassUID, ds.Modality = sop_class_uid, modality
    ds.PatientName, ds.PatientID, ds.PatientBirthDate, ds.PatientSex = "Phantom^Plain", "PLAIN-1", "19500101", "O"
    ds.StudyInstanceUID, ds.StudyID, ds.AccessionNumber = STUDY, "1", "PLAIN1"
    ds.StudyDate = ds.SeriesDate = ds.ContentDate = ds.AcquisitionDate = "20200102"
    ds.StudyTime = ds.SeriesTime = ds.ContentTime = ds.AcquisitionTime = "030405"
    ds.ReferringPhysicianName = ""
    ds.SeriesInstanceUID = derive_uid("plain images", "series", modality)
    ds.SeriesNumber, ds.InstanceNumber = 1, number
    ds.SOPInstanceUID = derive_uid("plain images", "instance", modality, number)
    ds.Manufacturer = ds.ManufacturerModelName = "pacs_ai"
    ds.DeviceSerialNumber, ds.SoftwareVersions = "1", "1"
    ds.PatientOrientation = ["L", "F"]
    ds.ImageType = ["ORIGINAL", "PRIMARY"]
    ds.BurnedInAnnotation, ds.LossyImageCompression = "NO", "00"
    ds.Rows, ds.Columns = shape[:2]
    ds.SamplesPerPixel = 3 if len(shape) == 3 else 1
    ds.PhotometricInterpretation = "RGB" if len(shape) == 3 else "MONOCHROME2"
    if len(shape) == 3:
        ds.PlanarConfiguration = 0
    ds.BitsAllocated = ds.BitsStored = pixels.dtype.itemsize * 8
    ds.HighBit, ds.PixelRepresentation = ds.BitsStored - 1, int(pixels.dtype.kind == "i")
    if frames > 1:
        ds.NumberOfFrames = frames
    for keyword, value in changes.items():
        setattr(ds, keyword, value)
    raw = pixels.astype(pixels.dtype.newbyteorder("<")).tobytes()
    ds.PixelData = raw + b"\0" * (len(raw) % 2)
    ds["PixelData"].VR = "OB" if pixels.dtype.itemsize == 1 else "OW"
    ds.file_meta = FileMetaDataset()
    ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return ds


def radiograph(pixels, number=1, **changes):
    """Return a chest film as Digital X-Ray Image Storage - For Presentation (PS3.3 A.26)."""
    view = code("399348003", "SCT", "antero-posterior")
    defaults = {
        "ImageType": ["ORIGINAL", "PRIMARY", ""],
        "BodyPartExamined": "CHEST",
        "ViewPosition": "AP",
        "ImageLaterality": "U",
        "PresentationIntentType": "FOR PRESENTATION",
        "PixelIntensityRelationship": "LOG",
        "PixelIntensityRelationshipSign": -1,
        "RescaleIntercept": 0,
        "RescaleSlope": 1,
        "RescaleType": "US",
        "PresentationLUTShape": "IDENTITY",
        "DetectorType": "DIRECT",
        "ImagerPixelSpacing": [0.2, 0.2],
        "PositionerType": "NONE",
        "WindowCenter": 128,
        "WindowWidth": 256,
        "AcquisitionContextSequence": Sequence(),
        "ViewCodeSequence": Sequence([view]),
        "AnatomicRegionSequence": Sequence([code("51185008", "SCT", "Chest")]),
    }
    if changes.get("PhotometricInterpretation") == "MONOCHROME1":
        defaults |= {"PresentationLUTShape": "INVERSE", "PixelIntensityRelationshipSign": 1}
    return plain_image(pixels, DigitalXRayImageStorageForPresentation, "DX", number, **(defaults | changes))


def region(cm_per_pixel, columns, rows, **changes):
    """Return an item of Sequence of Ultrasound Regions (PS3.3 C.8.5.5): a picture in centimetres."""
    item = Dataset()
    item.RegionSpatialFormat, item.RegionDataType, item.RegionFlags = 1, 1, 0
    item.RegionLocationMinX0 = item.RegionLocationMinY0 = 0
    item.RegionLocationMaxX1, item.RegionLocationMaxY1 = columns - 1, rows - 1
    item.PhysicalUnitsXDirection = item.PhysicalUnitsYDirection = 3
    item.PhysicalDeltaX = item.PhysicalDeltaY = cm_per_pixel
    for keyword, value in changes.items():
        setattr(item, keyword, value)
    return item


def ultrasound(pixels, mm_per_pixel=None, number=1, frames=1, **changes):
    """Return an ultrasound image, or a clip of frames (PS3.3 A.6, A.7)."""
    if mm_per_pixel is not None:
        rows, columns = np.shape(pixels)[1:3] if frames > 1 else np.shape(pixels)[:2]
        changes = {"SequenceOfUltrasoundRegions": Sequence([region(mm_per_pixel / 10, columns, rows)])} | changes
    if frames > 1:
        changes = {"FrameTime": 40, "FrameIncrementPointer": 0x00181063} | changes
    kind = UltrasoundMultiFrameImageStorage if frames > 1 else UltrasoundImageStorage
    defaults = {"ImageType": ["ORIGINAL", "PRIMARY", "ABDOMINAL", "0001"], "Laterality": ""}
    return plain_image(pixels, kind, "US", number, frames, **(defaults | changes))


def write(folder, datasets):
    """Write the images as files and return their paths, in this order."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number:03d}.dcm" for number, _ in enumerate(datasets)]
    for path, ds in zip(paths, datasets, strict=True):
        ds.save_as(path, enforce_file_format=True)
    return paths


def chest_pixels(shared_data, count=2):
    """Return real chest films, each (1024, 1024) uint8."""
    paths = sorted((shared_data / "cxr_nih_png").glob("*.png"))[:count]
    return [np.asarray(Image.open(path).convert("L")) for path in paths]


def head_pixels(shared_data, count=3):
    """Return real ultrasound images of heads, each ((540, 800) uint8, mm per pixel, head circumference in mm)."""
    folder = shared_data / "us_fetal_hc18"
    with (folder / "hc18.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    found = []
    for row in rows:
        pixels = np.asarray(Image.open(folder / "image" / row["image"]).convert("L"))
        found.append((pixels, float(row["pixel_mm"]), float(row["head_circumference_mm"])))
    return [one for one in found if one[0].shape == (540, 800)][:count]


def write_chest(folder, shared_data, count=1, **changes):
    """Write real chest films as one DX series; the films are numbered from 1."""
    films = [radiograph(pixels, number, **changes) for number, pixels in enumerate(chest_pixels(shared_data, count), 1)]
    return write(folder, films)


def write_heads(folder, shared_data, count=3):
    """Write real ultrasound images of heads as one clip; the scale is that of the first."""
    heads = head_pixels(shared_data, count)
    clip = ultrasound(np.stack([pixels for pixels, *_ in heads]), heads[0][1], frames=len(heads))
    return write(folder, [clip])
