"""Findings with something of everything that a report can say, on a volume and on plain images."""

from __future__ import annotations

from functools import cache

import numpy as np
from encode_material import CARD, DENSITY, LUNG, SMALL, make_evidence, make_findings, make_volume, make_work

from pacs_ai.dicom.evidence import Evidence, FrameReference
from pacs_ai.encode.case import Case
from pacs_ai.pipeline import (
    ANATOMICAL_STRUCTURE,
    HOUNSFIELD_UNIT,
    LEFT,
    MORPHOLOGIC_ABNORMALITY,
    RIGHT,
    Card,
    Classification,
    Code,
    Detection,
    Diameters,
    Findings,
    Frame,
    Frames,
    Input,
    Label,
    Measurement,
    Region,
    Segment,
    Shape,
)

NODULE = Code("27925004", "SCT", "Nodule")
MASS = Code("4147007", "SCT", "Mass")
MALIGNANCY = Code("21594007", "SCT", "Malignancy")
SUSPECTED = Code("415684004", "SCT", "Suspected")
PNEUMOTHORAX = Code("36118008", "SCT", "Pneumothorax")
PRESENT = Code("52101004", "SCT", "Present")
MEAN = Code("373098007", "SCT", "Mean")
SCORE = Measurement(Code("C2348143", "UMLS", "Emphysema index"), 0.0, Code("%", "UCUM", "%"))
EVERYTHING_CARD = Card(
    **{
        **vars(CARD),
        "labels": (
            *CARD.labels[:2],
            Label("Mass", MORPHOLOGIC_ABNORMALITY, MASS, LEFT),
            Label("Nodule", MORPHOLOGIC_ABNORMALITY, NODULE, RIGHT),
            Label("Left kidney", ANATOMICAL_STRUCTURE, Code("64033007", "SCT", "Kidney"), LEFT),
            Label("Right kidney", ANATOMICAL_STRUCTURE, Code("64033007", "SCT", "Kidney"), RIGHT),
        ),
    }
)
DETECTIONS = (
    Detection(
        "Nodule",
        Region(Shape.ELLIPSE, np.array([(10, 10), (16, 10), (13, 8), (13, 12)], np.float32), 4),
        Diameters(np.array([(10, 10), (16, 10)], np.float32), np.array([(13, 8), (13, 12)], np.float32), 4),
        0.87,
        (Measurement(DENSITY, 31.5, HOUNSFIELD_UNIT, derivation=MEAN),),
        (Classification(MALIGNANCY, SUSPECTED, 0.63),),
    ),
    Detection("Nodule", Region(Shape.POINT, np.array([(20.5, 21.5)], np.float32), 7), probability=0.5),
    Detection(
        "Nodule",
        diameters=Diameters(np.array([(5, 5), (5, 12)], np.float32), np.array([(3, 9), (7, 9)], np.float32), 2),
    ),
)


@cache
def everything():
    """Return segments, a lesion's segment, detections, whole-image values, answers and absent labels."""
    lungs = make_findings()
    mass = np.zeros((SMALL.slices, SMALL.rows, SMALL.columns), bool)
    mass[5:8, 12:18, 20:24] = True
    return Findings(
        (*lungs.segments, Segment("Mass", mass)),
        (*lungs.measurements, SCORE),
        DETECTIONS,
        (Classification(PNEUMOTHORAX, PRESENT, 0.91), Classification(MALIGNANCY, SUSPECTED, 0.4, "Mass")),
    )


@cache
def evidence_of_volume():
    """Return the slices, made once; tests leave them as they are."""
    return make_evidence()


def everything_case(findings=None, **changes):
    """Return the case of `everything`."""
    return Case.of(
        everything() if findings is None else findings,
        {"image": evidence_of_volume()},
        {"image": make_volume()},
        make_work(card=EVERYTHING_CARD, **changes),
    )


def mammogram_case():
    """Return two mammograms of different size, the second with two detections; and a label that has only an answer."""
    datasets = make_evidence().datasets[:2]
    for number, ds in enumerate(datasets, 1):
        ds.SOPClassUID, ds.Modality, ds.InstanceNumber = "1.2.840.10008.5.1.4.1.1.1.2", "MG", number
        for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "FrameOfReferenceUID"):
            delattr(ds, keyword)
    own = Evidence(datasets, tuple(FrameReference(ds.SOPClassUID, ds.SOPInstanceUID) for ds in datasets))
    images = (
        Frame(np.zeros((40, 30), np.uint16), None, {"ImageLaterality": "L"}),
        Frame(np.zeros((60, 50), np.uint16), (0.1, 0.2), {"ImageLaterality": "R", "ViewPosition": "CC"}),
    )
    labels = (Label("Mass", MORPHOLOGIC_ABNORMALITY, MASS), Label("Breast", ANATOMICAL_STRUCTURE, LUNG))
    card = Card(**{**vars(CARD), "labels": labels, "inputs": {"image": Input(("MG",), given="frames")}})
    square = np.array([(10, 10), (30, 10), (30, 20), (10, 20), (10, 10)], np.float32)
    axes = Diameters(np.array([(10, 10), (30, 10)], np.float32), np.array([(20, 5), (20, 15)], np.float32), 1)
    findings = Findings(
        detections=(
            Detection("Mass", Region(Shape.POLYLINE, square, 1), axes, 0.7),
            Detection("Mass", Region(Shape.POLYLINE, square, 0), Diameters(axes.long_axis, axes.short_axis, 0), 0.2),
        ),
        classifications=(
            Classification(Code("129715009", "SCT", "Breast composition"), Code("129716005", "SCT", "B")),
        ),
    )
    return Case.of(findings, {"image": own}, {"image": Frames(images, "MG")}, make_work(card=card))
