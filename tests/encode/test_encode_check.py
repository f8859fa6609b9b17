"""What must not leave is refused: mixed sources, findings that fit nothing, results that were changed."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from encode_material import (
    CARD,
    LUNG,
    SMALL,
    make_evidence,
    make_findings,
    make_multiframe,
    make_volume,
    make_work,
)
from objects import SEG_AND_SR

from pacs_ai.encode.case import Case
from pacs_ai.encode.check import check_findings, check_results, check_sources
from pacs_ai.encode.results import encode
from pacs_ai.errors import Permanent, PipelineFault, Refused
from pacs_ai.pipeline import (
    HOUNSFIELD_UNIT,
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
    Segment,
    Shape,
    Volume,
)
from pacs_ai.testing import Phantom

SECRET = "Topsecret"


def encoded(findings=None, evidence=None):
    return encode(
        findings or make_findings(),
        {"image": evidence or make_evidence()},
        {"image": make_volume()},
        make_work(),
        SEG_AND_SR,
    )


@pytest.mark.parametrize(
    ("keyword", "value", "words"),
    [
        ("PatientID", SECRET, "more than one Patient ID"),
        ("IssuerOfPatientID", SECRET, "more than one Issuer of Patient ID"),
        ("PatientBirthDate", "19010101", "more than one Patient's Birth Date"),
        ("PatientSex", "F", "more than one Patient's Sex"),
        ("StudyInstanceUID", "1.2.3", "more than one study"),
        ("SeriesInstanceUID", "1.2.3", "more than one Series Instance UID"),
        ("FrameOfReferenceUID", "1.2.3", "more than one Frame of Reference UID"),
        ("Rows", 31, "more than one Rows"),
        ("PixelSpacing", [1, 1], "more than one Pixel Spacing"),
        ("PixelSpacing", None, "have no Pixel Spacing"),
        ("SOPInstanceUID", "1.2.3", "not among its images"),
    ],
)
def test_RES_01_one_different_source_is_refused_without_its_value(keyword, value, words):
    evidence = make_evidence()
    setattr(evidence.datasets[5], keyword, value)
    with pytest.raises(Refused, match=words) as refusal:
        encoded(evidence=evidence)
    assert SECRET not in str(refusal.value)
    assert "19010101" not in str(refusal.value)


def test_one_missing_identity_is_refused_too():
    evidence = make_evidence()
    del evidence.datasets[3].PatientID
    with pytest.raises(Refused, match="more than one Patient ID"):
        check_sources({"image": evidence})


def test_spacing_written_differently_is_one_spacing():
    evidence = make_evidence(PixelSpacing=["12.0", "9.0"])
    evidence.datasets[2].PixelSpacing = ["12.000000", "9.00"]
    check_sources({"image": evidence})


def test_two_inputs_must_be_of_one_patient_but_a_prior_may_be_of_another_study():
    prior = make_evidence(StudyInstanceUID="1.2.3.4")
    check_sources({"image": make_evidence(), "prior.image": prior})
    with pytest.raises(Refused, match="more than one study"):
        check_sources({"image": make_evidence(), "flair": prior})
    with pytest.raises(Refused, match="Patient ID"):
        check_sources({"image": make_evidence(), "prior.image": make_evidence(Phantom(12, 30, 41, seed=2))})


def test_no_source_and_a_source_twice_are_refused():
    with pytest.raises(Refused, match="no source image"):
        check_sources({})
    evidence = make_evidence()
    with pytest.raises(Refused, match="twice under one SOP Instance UID"):
        check_sources({"image": replace(evidence, datasets=(*evidence.datasets, evidence.datasets[0]))})


def density(value, label):
    return Measurement(Code("112031", "DCM", "Attenuation Coefficient"), value, HOUNSFIELD_UNIT, label)


@pytest.mark.parametrize(
    ("findings", "words"),
    [
        (Findings((Segment("Spleen", np.ones((12, 30, 41), bool)),)), "which the card does not have"),
        (Findings((Segment("Left lung", np.ones((12, 30, 40), bool)),)), r"shape \(12, 30, 40\)"),
        (Findings((Segment("Left lung", np.ones((12, 30, 41), np.float32)),)), "must be bool"),
        (Findings((Segment("Left lung", np.ones((12, 30, 41), np.uint8), 0),)), "numbers begin at 1"),
        (Findings((Segment("Left lung", np.ones((12, 30, 41), bool)),) * 2), "twice"),
        (Findings(measurements=(density(math.nan, "Left lung"),)), "is nan, not a number"),
        (Findings(measurements=(density(math.inf, None),)), "is inf, not a number"),
        (Findings(measurements=(density(1.0, "Spleen"),)), "which the card does not have"),
        (Findings((Segment("Left lung", np.ones((12, 30, 41), bool)),), grid="t1"), "which the pipeline was not given"),
    ],
)
def test_findings_that_fit_nothing_are_the_pipelines_fault(findings, words):
    with pytest.raises(PipelineFault, match=words):
        encoded(findings)


def nodule(points, shape=Shape.POLYLINE, index=3, **changes):
    return replace(Detection("Left lung", Region(shape, np.array(points, np.float32), index)), **changes)


def lesion(long_axis, short_axis=((1, 1), (2, 2)), index=3):
    return Detection("Left lung", None, Diameters(np.array(long_axis), np.array(short_axis), index))


def saliency(voxels, label=None, name="Saliency"):
    return Map(name, Code("130404", "DCM", "Saliency"), Code("{ratio}", "UCUM", "ratio"), voxels, label)


def denoised(voxels):
    return Derived("Denoised", Code("113088", "DCM", "Gaussian blur"), voxels)


GRID = (12, 30, 41)
LINE = [[0, 0], [41, 30]]
ONES = np.ones(GRID, np.float32)


@pytest.mark.parametrize(
    ("findings", "words"),
    [
        (Findings(detections=(nodule(LINE, label="Spleen"),)), "which the card does not have"),
        (Findings(detections=(nodule(LINE, index=12),)), "on the image 12; there are 12"),
        (Findings(detections=(nodule(LINE, index=-1),)), "on the image -1"),
        (Findings(detections=(nodule([[0, 0], [41.1, 3]]),)), "leaves its image of 41 x 30 pixels"),
        (Findings(detections=(nodule([[0, -0.1], [4, 3]]),)), "leaves its image"),
        (Findings(detections=(nodule([[0, math.nan], [4, 3]]),)), "leaves its image"),
        (Findings(detections=(nodule([[0, 0]]),)), "POLYLINE of 1 points"),
        (Findings(detections=(nodule(LINE, Shape.ELLIPSE),)), "ELLIPSE of 2 points"),
        (Findings(detections=(nodule([[0, 0, 1], [1, 1, 1]]),)), "must be .points, 2."),
        (Findings(detections=(nodule(LINE, region=None),)), "has no place"),
        (Findings(detections=(nodule(LINE, probability=1.2),)), "probability 1.2"),
        (Findings(detections=(nodule(LINE, probability=math.nan),)), "probability nan"),
        (Findings(detections=(nodule(LINE, measurements=(density(math.nan, None),)),)), "is nan"),
        (Findings(detections=(lesion([[1, 2, 3]]),)), "must be .2, 2."),
        (Findings(detections=(lesion([[1, 2], [60, 3]]),)), "leaves its image"),
        (Findings(classifications=(Classification(LUNG, LUNG, 2),)), "probability 2"),
        (Findings(classifications=(Classification(LUNG, LUNG, 0.5, "Spleen"),)), "which the card does not have"),
        (Findings(maps=(saliency(ONES[1:]),)), "shape .11, 30, 41."),
        (Findings(maps=(saliency(ONES.astype(np.float64)),)), "must be float32"),
        (Findings(maps=(saliency(np.where(ONES.cumsum().reshape(GRID) == 5, np.nan, ONES)),)), "not a finite number"),
        (Findings(maps=(saliency(ONES * np.float32(np.inf)),)), "not a finite number"),
        (Findings(maps=(saliency(ONES * 2, "Left lung"),)), "between 0 and 1"),
        (Findings(maps=(saliency(ONES, "Spleen"),)), "which the card does not have"),
        (Findings(maps=(saliency(ONES), saliency(ONES))), "bear one name"),
        (Findings(maps=(saliency(ONES, name="x" * 65),)), "1 to 64"),
        (Findings(images=(denoised(ONES[:, 1:]),)), "must lie on the grid"),
        (Findings(images=(denoised(ONES * np.float32(np.nan)),)), "not a finite number"),
        (Findings(images=(denoised(ONES > 0),)), "must be numbers"),
    ],
)
def test_places_maps_and_images_that_fit_nothing_are_the_pipelines_fault(findings, words):
    with pytest.raises(PipelineFault, match=words):
        check_findings(findings, CARD, {"image": make_volume()})


def test_findings_that_fit_pass():
    findings = Findings(
        detections=(nodule(LINE), nodule([[41, 30]], Shape.POINT), lesion([[1, 2], [3, 4]])),
        classifications=(Classification(LUNG, LUNG, 1.0, "Left lung"),),
        maps=(saliency(ONES, "Left lung"), saliency(ONES * 7, name="Another")),
        images=(denoised(ONES),),
    )
    check_findings(findings, CARD, {"image": make_volume()})


def test_images_of_different_sizes_have_places_but_no_grid():
    frames = Frames(tuple(Frame(np.zeros(size, np.uint16), None) for size in ((10, 20), (30, 5))), "DX")
    given = {"image": frames}
    check_findings(Findings(detections=(nodule([[4, 29]], Shape.POINT, 1),)), CARD, given)
    with pytest.raises(PipelineFault, match="leaves its image of 20 x 10"):
        check_findings(Findings(detections=(nodule([[4, 29]], Shape.POINT, 0),)), CARD, given)
    for on_a_grid in (
        Findings((Segment("Left lung", ONES > 0),)),
        Findings(maps=(saliency(ONES),)),
        Findings(images=(denoised(ONES),)),
    ):
        with pytest.raises(PipelineFault, match="images of different sizes"):
            check_findings(on_a_grid, CARD, given)


def test_empty_findings_on_an_unnamed_grid_are_an_answer():
    (sr,) = encode(Findings(), {"t1": make_evidence()}, {"t1": make_volume()}, make_work(), SEG_AND_SR)
    assert sr.kind == "SR"


@pytest.mark.parametrize("evidence", [make_evidence(), make_multiframe()], ids=["single", "multi"])
def test_honest_results_pass(evidence):
    check_results(
        encoded(evidence=evidence), Case(make_findings(), {"image": evidence}, {"image": make_volume()}, make_work())
    )


def test_a_flipped_bit_is_noticed():
    seg, sr = encoded()
    pixels = bytearray(seg.parts[-1])
    pixels[100] ^= 1
    with pytest.raises(Permanent, match="not those that the pipeline returned"):
        check_results(
            (replace(seg, parts=(*seg.parts[:-1], pixels)), sr),
            Case(make_findings(), {"image": make_evidence()}, {"image": make_volume()}, make_work()),
        )


def test_RES_02_references_to_images_that_were_not_read_are_noticed():
    """What `Dataset.decompress()` does to SOP Instance UIDs passes every validator."""
    results = encoded()
    evidence = make_evidence()
    fewer = replace(evidence, datasets=evidence.datasets[1:], slices=evidence.slices[1:])
    with pytest.raises(Permanent, match="cites 1 instances that were not read"):
        check_results(results, Case(make_findings(), {"image": fewer}, {"image": make_volume()}, make_work()))


def test_frames_that_lie_elsewhere_are_noticed():
    results = encoded()
    moved = make_evidence()
    x, y, z = (float(value) for value in moved.datasets[6].ImagePositionPatient)
    moved.datasets[6].ImagePositionPatient = [x, y, z + 1]
    with pytest.raises(Permanent, match="does not lie where its source frame lies"):
        check_results(results, Case(make_findings(), {"image": moved}, {"image": make_volume()}, make_work()))
    turned = make_evidence(ImageOrientationPatient=[0, 1, 0, 1, 0, 0])
    with pytest.raises(Permanent, match="another pixel spacing or orientation"):
        check_results(results, Case(make_findings(), {"image": turned}, {"image": make_volume()}, make_work()))


def test_another_patient_and_another_grid_are_noticed():
    results = encoded()
    with pytest.raises(Permanent, match="differ in PatientID"):
        check_results(
            results,
            Case(make_findings(), {"image": make_evidence(PatientID="P2")}, {"image": make_volume()}, make_work()),
        )
    small = Volume(np.zeros((12, 30, 40), np.int16), SMALL.affine, "CT")
    with pytest.raises(Permanent, match="lies on"):
        check_results(results, Case(make_findings(), {"image": make_evidence()}, {"image": small}, make_work()))
