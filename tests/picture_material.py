"""A case with findings of every kind for the tests of pictures, and how the pictures are read back."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pytest
from encode_material import CARD, SMALL, make_evidence, make_findings, make_multiframe, make_work
from pydicom import Dataset
from pydicom.uid import DigitalXRayImageStorageForPresentation, generate_uid

from pacs_ai.dicom.evidence import Evidence, FrameReference
from pacs_ai.encode.case import Case
from pacs_ai.pipeline import (
    Classification,
    Code,
    Derived,
    Detection,
    Diameters,
    Findings,
    Frame,
    Frames,
    Map,
    Measurement,
    Region,
    Shape,
)

PROBABILITY = Code("111047", "DCM", "Probability")
PURE = Code("{ratio}", "UCUM", "ratio")
SMOOTHING = Code("113087", "DCM", "Smoothing")
PRESENT = Code("52101004", "SCT", "Present")
PNEUMOTHORAX = Code("36118008", "SCT", "Pneumothorax")
#: Large enough for words.
PHANTOM = replace(SMALL, slices=12, rows=96, columns=128)


def detection(index, label="Marker front", centre=(60.0, 40.0)):
    x, y = centre
    ellipse = np.array([(x - 9, y), (x + 9, y), (x, y - 6), (x, y + 6)], np.float32)
    return Detection(
        label,
        Region(Shape.ELLIPSE, ellipse, index),
        Diameters(ellipse[:2], ellipse[2:], index),
        probability=0.87,
        classifications=(Classification(PNEUMOTHORAX, PRESENT, 0.5),),
    )


def make_case(phantom=PHANTOM, *, multiframe=False, **changes):
    volume = phantom.volume()
    evidence = make_multiframe(phantom) if multiframe else make_evidence(phantom, BodyPartExamined="CHEST")
    findings = replace(make_findings(phantom), detections=(detection(3), detection(7)), **changes)
    return Case(findings, {"image": evidence}, {"image": volume}, make_work())


def maps_of(case):
    rng = np.random.default_rng(0)
    values = rng.random(case.volume.shape, dtype=np.float32)
    return (
        Map("Probability of lung", PROBABILITY, PURE, values, "Right lung"),
        Map("Saliency", PROBABILITY, PURE, 3 * values - 1),
    )


def derived_of(case, values=None, title="Denoised"):
    return Derived(title, SMOOTHING, case.volume.voxels.astype(np.float32) * 0.9 if values is None else values)


def radiographs(shapes=((300, 240), (300, 240)), photometric_interpretation="MONOCHROME2"):
    """A case of projection images, with a detection on the first."""
    rng = np.random.default_rng(1)
    datasets, images = [], []
    study, series = generate_uid(entropy_srcs=["study"]), generate_uid(entropy_srcs=["series"])
    for number, shape in enumerate(shapes, 1):
        pixels = rng.integers(0, 4096, shape).astype(np.int16)
        datasets.append(_radiograph(study, series, number, shape, photometric_interpretation))
        turned = 4095 - pixels if photometric_interpretation == "MONOCHROME1" else pixels
        images.append(Frame(turned, (0.2, 0.2), {"PatientOrientation": "L\\F", "ViewPosition": "PA"}))
    slices = tuple(FrameReference(ds.SOPClassUID, ds.SOPInstanceUID) for ds in datasets)
    findings = Findings(
        detections=(detection(0, centre=(120.0, 150.0)), detection(0, centre=(122.0, 152.0))),
        classifications=(Classification(PNEUMOTHORAX, PRESENT, 0.93),),
    )
    frames = Frames(tuple(images), "DX")
    return Case(findings, {"image": Evidence(tuple(datasets), slices)}, {"image": frames}, make_work())


def _radiograph(study, series, number, shape, photometric_interpretation):
    ds = Dataset()
    ds.SOPClassUID = DigitalXRayImageStorageForPresentation
    ds.SOPInstanceUID = generate_uid(entropy_srcs=["image", str(number)])
    ds.StudyInstanceUID, ds.SeriesInstanceUID = study, series
    ds.PatientName, ds.PatientID, ds.PatientBirthDate, ds.PatientSex = "Doe^Jane", "1", "19700101", "F"
    ds.StudyDate, ds.StudyTime, ds.AccessionNumber, ds.StudyID = "20260101", "120000", "A1", "S1"
    ds.ReferringPhysicianName = None
    ds.Modality, ds.SeriesNumber, ds.InstanceNumber, ds.BodyPartExamined = "DX", 1, number, "CHEST"
    ds.ImageType = ["ORIGINAL", "PRIMARY"]
    ds.PatientOrientation = ["L", "F"]
    ds.PhotometricInterpretation = photometric_interpretation
    ds.SamplesPerPixel, ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 1, 16, 12, 11, 0
    ds.Rows, ds.Columns = shape
    return ds


def labels(count):
    return replace(CARD, labels=tuple(replace(CARD.labels[0], name=f"Part {n}") for n in range(1, count + 1)))


def near(pixels, colour, tolerance=40):
    """Return where a picture has about that colour, (rows, columns) bool."""
    return (np.abs(pixels[..., :3].astype(int) - np.array(colour)) < tolerance).all(axis=-1)


def volume_measurement(label, value, code):
    return Measurement(code, value, Code("ml", "UCUM", "ml"), label)


def validator_errors(encoded, tmp_path):
    """Return what dciodvfy calls an error, of an object."""
    if shutil.which("dciodvfy") is None:
        pytest.skip("DCIODVFY MISSING: Debian's dicom3tools is not installed, so nothing was validated here")
    path = tmp_path / "object.dcm"
    encoded.write(path)
    done = subprocess.run(["dciodvfy", "-new", path], capture_output=True, text=True, check=False)
    return [line for line in done.stderr.splitlines() if line.startswith("Error")]
