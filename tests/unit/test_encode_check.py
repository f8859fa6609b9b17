"""What must not leave is refused: mixed sources, findings that fit nothing, results that were changed."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from encode_material import SMALL, make_evidence, make_findings, make_multiframe, make_volume, make_work
from objects import SEG_AND_SR

from pacs_ai.encode.case import Case
from pacs_ai.encode.check import check_results, check_sources
from pacs_ai.encode.results import encode
from pacs_ai.errors import Permanent, PipelineFault, Refused
from pacs_ai.pipeline import HOUNSFIELD_UNIT, Code, Findings, Measurement, Segment, Volume
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
def test_one_different_source_is_refused_without_its_value(keyword, value, words):
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


def test_references_to_images_that_were_not_read_are_noticed():
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
