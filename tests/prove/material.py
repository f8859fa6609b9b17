"""Studies to send: small CT series with identity, geometry and pixels of their own, encoded without the node's help."""

from __future__ import annotations

import hashlib
import io
import random
import uuid
from dataclasses import dataclass
from functools import cache

from pydicom import Dataset, FileMetaDataset, dcmwrite
from pydicom.filewriter import write_file_meta_info
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

#: Of an image, and its columns: what makes it longer than two pages of a disk, and longer than a segment.
ROWS, LONG_ROWS = 64, 192


@dataclass(frozen=True)
class Instance:
    """One image: who it is, and its data set as it goes over the wire."""

    uid: str
    series: str
    study: str
    patient: str
    data_set: bytes

    @property
    def sha256(self) -> str:
        """Of the data set."""
        return hashlib.sha256(self.data_set).hexdigest()


def _uid(*parts: object) -> str:
    raw = hashlib.sha256(repr(parts).encode()).digest()[:16]
    return f"2.25.{uuid.UUID(bytes=raw, version=4).int}"


@cache
def _encoded(study: str, series: str, patient: str, number: int, uid: str, rows: int) -> bytes:
    ds = Dataset()
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.SOPClassUID, ds.SOPInstanceUID = CTImageStorage, uid
    ds.StudyDate = ds.SeriesDate = ds.AcquisitionDate = ds.ContentDate = "20260102"
    ds.StudyTime = ds.SeriesTime = ds.ContentTime = "101112"
    ds.AccessionNumber, ds.ReferringPhysicianName = patient[-6:], ""
    ds.Modality, ds.Manufacturer = "CT", "PROVE"
    ds.PatientName, ds.PatientID = f"Prove^{patient}", patient
    ds.PatientBirthDate, ds.PatientSex, ds.StudyID = "19500101", "O", "1"
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = study, series, _uid("frame", study)
    ds.PositionReferenceIndicator = ""
    ds.KVP, ds.SliceThickness = "120", "1.0"
    ds.SeriesNumber, ds.AcquisitionNumber, ds.InstanceNumber = 1, 1, number + 1
    ds.PatientPosition = "HFS"
    ds.ImagePositionPatient = [0.0, 0.0, float(number)]
    ds.ImageOrientationPatient = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0]
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.Rows = ds.Columns = rows
    ds.PixelSpacing = [1.0, 1.0]
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 1
    ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType = "0", "1", "HU"
    values = random.Random(uid).choices(range(-900, 900), k=rows * rows)
    ds.PixelData = b"".join(value.to_bytes(2, "little", signed=True) for value in values)
    raw = io.BytesIO()
    dcmwrite(raw, ds, implicit_vr=False, little_endian=True, enforce_file_format=False)
    assert not ds.get("file_meta")
    return raw.getvalue()


def make_series(seed: int, number: int, slices: int, rows: int = ROWS) -> tuple[Instance, ...]:
    """Return the instances of one series in a study of its own."""
    study, series, patient = _uid("study", seed, number), _uid("series", seed, number), f"P{seed}N{number:06d}"
    found = []
    for index in range(slices):
        uid = _uid("instance", seed, number, index)
        found.append(Instance(uid, series, study, patient, _encoded(study, series, patient, index, uid, rows)))
    return tuple(found)


def part_10(instance: Instance) -> bytes:
    """Return the instance as a file (PS3.10 7.1)."""
    ds = FileMetaDataset()
    ds.MediaStorageSOPClassUID, ds.MediaStorageSOPInstanceUID = CTImageStorage, instance.uid
    ds.TransferSyntaxUID, ds.ImplementationClassUID = ExplicitVRLittleEndian, "2.25.3"
    raw = io.BytesIO()
    write_file_meta_info(raw, ds)
    return bytes(128) + b"DICM" + raw.getvalue() + instance.data_set
