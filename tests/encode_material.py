"""Small sources with known truth, and a job, for the tests of encoding."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
from objects import SEG
from pydicom import Dataset
from pydicom.uid import EnhancedMRImageStorage

from pacs_ai.dicom.evidence import Evidence, FrameReference
from pacs_ai.encode.case import Case
from pacs_ai.encode.provenance import Work
from pacs_ai.encode.voxels.segmentation import encode_segmentation
from pacs_ai.pipeline import (
    ANATOMICAL_STRUCTURE,
    HOUNSFIELD_UNIT,
    LEFT,
    MILLILITRE,
    RIGHT,
    VOLUME,
    Card,
    Code,
    Findings,
    Input,
    Label,
    Measurement,
    Segment,
    Volume,
)
from pacs_ai.testing import LABELS, Phantom, phantom_datasets, phantom_truth

LUNG = Code("39607008", "SCT", "Lung")
MARKER = Code("19227008", "SCT", "Foreign body")
DENSITY = Code("112031", "DCM", "Attenuation Coefficient")
#: Fits no byte boundary: 30 x 41 bits per frame.
SMALL = Phantom(slices=12, rows=30, columns=41)

CARD = Card(
    name="ct-lung",
    version="1.2",
    manufacturer="Example",
    title="Lungs",
    inputs={"image": Input(("CT",))},
    labels=(
        Label("Right lung", ANATOMICAL_STRUCTURE, LUNG, RIGHT, (80, 160, 255)),
        Label("Left lung", ANATOMICAL_STRUCTURE, LUNG, LEFT, (255, 150, 60)),
        Label("Marker front", Code("260787004", "SCT", "Physical object"), MARKER),
    ),
    procedure=Code("25045-6", "LN", "CT unspecified body region"),
    intended_use="tests",
)


def make_work(**changes):
    work = Work(
        job_key="key",
        generation=1,
        created_at=datetime(2026, 1, 2, 23, 4, 5, 678, tzinfo=UTC),
        card=CARD,
        model_digest="a" * 64,
        settings_digest="b" * 64,
        parameters="device=cpu; torch 2.13.0",
        node_name="node-1",
        software_version="0.1.0",
    )
    return replace(work, **changes)


def make_evidence(phantom=SMALL, **changes):
    """Single-frame sources in the order of the slices, without pixel data; `changes` are attributes of each."""
    datasets = sorted(phantom_datasets(phantom), key=lambda ds: _along(ds, phantom))
    for ds in datasets:
        del ds.PixelData
        for keyword, value in changes.items():
            setattr(ds, keyword, value)
    return Evidence(tuple(datasets), tuple(FrameReference(ds.SOPClassUID, ds.SOPInstanceUID) for ds in datasets))


def _along(ds, phantom):
    return float(np.asarray(ds.ImagePositionPatient, float) @ phantom.affine[:3, 0])


def make_volume(phantom=SMALL):
    return Volume(np.zeros((phantom.slices, phantom.rows, phantom.columns), np.int16), phantom.affine, "CT")


def make_findings(phantom=SMALL, labels=("Right lung", "Left lung")):
    truth = phantom_truth(phantom)
    segments = tuple(Segment(label, truth.labels, LABELS[label]) for label in labels)
    measurements = tuple(
        measurement
        for label in labels
        for measurement in (
            Measurement(VOLUME, truth.volumes_ml[label], MILLILITRE, label),
            Measurement(DENSITY, truth.mean_hu[label], HOUNSFIELD_UNIT, label),
        )
    )
    return Findings(segments, measurements)


def segmentation(segments, evidence, volume, work, encoding=SEG):
    """Return the SEG of these segments, which stand alone."""
    case = Case(Findings(tuple(segments)), {"image": evidence}, {"image": volume}, work)
    (seg,) = encode_segmentation(case, encoding, None)
    return seg


def make_multiframe(phantom=SMALL, orientation_shared=True):
    """One enhanced image with the same frames as the single-frame sources."""
    singles = make_evidence(phantom).datasets
    image = Dataset()
    image.update({element.tag: element for element in singles[0]})
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness"):
        delattr(image, keyword)
    image.SOPClassUID = EnhancedMRImageStorage
    image.Modality = "MR"
    image.NumberOfFrames = len(singles)
    orientation = Dataset()
    orientation.ImageOrientationPatient = singles[0].ImageOrientationPatient
    measures = Dataset()
    measures.PixelSpacing = singles[0].PixelSpacing
    measures.SliceThickness = singles[0].SliceThickness
    shared = Dataset()
    shared.PixelMeasuresSequence = [measures]
    if orientation_shared:
        shared.PlaneOrientationSequence = [orientation]
    image.SharedFunctionalGroupsSequence = [shared]
    groups = []
    for single in singles:
        position = Dataset()
        position.ImagePositionPatient = single.ImagePositionPatient
        group = Dataset()
        group.PlanePositionSequence = [position]
        if not orientation_shared:
            group.PlaneOrientationSequence = [orientation]
        groups.append(group)
    image.PerFrameFunctionalGroupsSequence = groups
    slices = tuple(FrameReference(image.SOPClassUID, image.SOPInstanceUID, n + 1) for n in range(len(singles)))
    return Evidence((image,), slices)
