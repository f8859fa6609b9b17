"""The readable report: the disclaimer first, a line for each finding, what was not found, in every reader of texts."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from encode_material import make_findings, make_multiframe, make_volume, make_work
from objects import only
from pydicom.uid import BasicTextSRStorage
from readback import dciodvfy_errors
from report_material import EVERYTHING_CARD, everything_case, mammogram_case

from pacs_ai.encode.case import Case
from pacs_ai.encode.provenance import Predecessor
from pacs_ai.encode.reports.text_report import encode_text_report
from pacs_ai.encode.reports.wording import amount, answer
from pacs_ai.pipeline import Classification, Clearance, Code, Findings, Label
from pacs_ai.profiles import Kind

TEXT_REPORT = only(Kind.TEXT_REPORT)


def write(case):
    (one,) = encode_text_report(case, TEXT_REPORT, None)
    return one


def lines(ds):
    (findings,) = [item for item in ds.ContentSequence if item.ValueType == "CONTAINER"]
    return [item.TextValue for item in findings.ContentSequence]


def test_every_finding_has_a_line():
    assert lines(write(everything_case()).dataset) == [
        "Right lung (image 6): Volume 2851 mL; Attenuation Coefficient -856 HU",
        "Left lung (image 7): Volume 2066 mL; Attenuation Coefficient -853 HU",
        "Mass (image 6): Long Axis 76.7 mm; Short Axis 37.4 mm; Volume 209 mL",
        "Mass (image 6): Malignancy: Suspected (40 %)",
        "Nodule 1 (image 5): Long Axis 52.7 mm; Short Axis 48 mm; Certainty of Finding 87 %",
        "Nodule 1 (image 5): Mean Attenuation Coefficient 31.5 HU",
        "Nodule 1 (image 5): Malignancy: Suspected (63 %)",
        "Nodule 2 (image 8): Certainty of Finding 50 %",
        "Nodule 3 (image 3): Long Axis 84 mm; Short Axis 35.1 mm",
        "Whole image: Emphysema index 0 %",
        "Pneumothorax: Present (91 %)",
        "12 images analysed.",
        "Looked for and absent: Left kidney, Right kidney",
    ]


def test_no_line_is_cut_off():
    """OHIF 3.13 cuts a line off behind about 95 characters in a window of 1280 pixels."""
    assert max(map(len, lines(write(everything_case()).dataset))) <= 90


def test_the_first_line_says_what_it_is():
    ds = write(everything_case()).dataset
    first = next(item for item in ds.ContentSequence if item.RelationshipType == "CONTAINS")
    assert first.TextValue.startswith("AI: Lungs. For research only, not for clinical use. Made by an algorithm")
    assert (ds.SOPClassUID, ds.VerificationFlag, ds.CompletionFlag) == (BasicTextSRStorage, "UNVERIFIED", "COMPLETE")
    assert ds.ConceptNameCodeSequence[0].CodeValue == "18748-4", "no title whose regions viewers look for"
    assert ds.ContinuityOfContent == "SEPARATE"


def test_a_cleared_product_is_not_called_research():
    card = type(EVERYTHING_CARD)(**{**vars(EVERYTHING_CARD), "clearance": Clearance.PRODUCT})
    given = everything_case()
    (one,) = encode_text_report(
        Case.of(Findings(), given.evidence, given.inputs, make_work(card=card)), TEXT_REPORT, None
    )
    assert b"research" not in one.to_bytes().lower()
    assert b"not reviewed by a person" in one.to_bytes()


def test_nothing_found_is_said():
    assert lines(write(everything_case(Findings())).dataset) == [
        "Nothing found. 12 images analysed.",
        "Looked for and absent: Right lung, Left lung, Mass, Nodule, Left kidney",
        "Looked for and absent: Right kidney",
    ]


def test_images_say_their_number_and_their_side():
    assert lines(write(mammogram_case()).dataset) == [
        "Mass 1 (image 2, right): Long Axis 4 mm; Short Axis 1 mm; Certainty of Finding 70 %",
        "Mass 2 (image 1, left): Certainty of Finding 20 %",
        "Breast composition: B",
        "2 images analysed.",
        "Looked for and absent: Breast",
    ]


def test_one_image_is_one():
    case = mammogram_case()
    own = case.evidence["image"]
    alone = type(own)(own.datasets[:1], own.slices[:1])
    (one,) = encode_text_report(Case.of(Findings(), {"image": alone}, case.inputs, case.work), TEXT_REPORT, None)
    assert lines(one.dataset) == ["Nothing found. 1 image analysed.", "Looked for and absent: Mass, Breast"]


def test_frames_of_one_image_are_named():
    evidence = {"image": make_multiframe()}
    case = Case.of(make_findings(labels=("Left lung",)), evidence, {"image": make_volume()}, make_work())
    assert lines(write(case).dataset)[0].startswith("Left lung (frame 7): ")


def test_a_line_refers_to_its_image_and_nothing_else_is_cited():
    case = everything_case()
    ds = write(case).dataset
    (findings,) = [item for item in ds.ContentSequence if item.ValueType == "CONTAINER"]
    nodule = findings.ContentSequence[4].ContentSequence[0]
    assert (nodule.RelationshipType, nodule.ValueType) == ("INFERRED FROM", "IMAGE")
    assert nodule.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == case.own.slices[4].sop_instance_uid


def test_a_hundred_absent_labels_are_all_named():
    like = EVERYTHING_CARD.labels[0]
    labels = tuple(
        Label(f"A structure with a rather long name, number {n}", like.category, like.type) for n in range(104)
    )
    card = type(EVERYTHING_CARD)(**{**vars(EVERYTHING_CARD), "labels": labels})
    case = everything_case()
    found = lines(write(Case.of(Findings(), case.evidence, case.inputs, make_work(card=card))).dataset)
    assert all(f"number {number}" in " ".join(found) for number in range(104))
    assert found[-1].endswith("number 103")


def test_same_work_same_bytes_and_predecessors_are_cited():
    before = Predecessor("1.2", "1.2.3", BasicTextSRStorage, "1.2.3.4")
    assert write(everything_case()).sha256 == write(everything_case()).sha256
    ds = write(everything_case(predecessors=(before,))).dataset
    replaced = ds.PredecessorDocumentsSequence[0].ReferencedSeriesSequence[0].ReferencedSOPSequence[0]
    assert replaced.ReferencedSOPInstanceUID == "1.2.3.4"


@pytest.mark.parametrize("case", [everything_case(), mammogram_case(), everything_case(Findings())])
def test_validators_and_text_readers_agree(case, tmp_path):
    path = tmp_path / "sr.dcm"
    write(case).write(path)
    assert not dciodvfy_errors(path)
    for tool in ("dsrdump", "dsr2html"):
        done = dcmtk(tool, path)
        assert not done.stderr
    assert "not reviewed by a person" in done.stdout
    for line in lines(write(case).dataset):
        assert line in done.stdout


def dcmtk(tool, path):
    """Run one of Debian's dcmtk tools; the environment has namesakes of older versions."""
    found = Path("/usr/bin") / tool
    if not found.exists():
        pytest.skip(f"VALIDATOR MISSING: apt-get install dcmtk; no report was held against {tool}")
    return subprocess.run([str(found), str(path)], capture_output=True, text=True, timeout=60, check=True)


@pytest.mark.parametrize(
    ("value", "written"),
    [(904.3, "904"), (-811.6, "-812"), (7.357, "7.36"), (0.0, "0"), (-0.0, "0"), (0.01234, "0.0123"),
     (99.96, "100"), (123456.7, "123457"), (100.0, "100"), (8.0, "8")],
)  # fmt: skip
def test_numbers_are_written_as_people_read_them(value, written):
    assert amount(value) == written


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ((), "Pulmonary edema: Present"),
        ((0.0464,), "Pulmonary edema: Present (4.64 %)"),
        ((0.0464, None, 0.045), "Pulmonary edema: Present (4.64 %; threshold 4.5 %)"),
    ],
)
def test_a_probability_is_told_with_its_threshold(given, told):
    edema, present = Code("19242006", "SCT", "Pulmonary edema"), Code("52101004", "SCT", "Present")
    assert answer(Classification(edema, present, *given)) == told
