"""Key objects: the images that matter, each once, in the order of the findings."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import highdicom
import numpy as np
import pytest
from encode_material import make_evidence, make_findings, make_multiframe, make_volume, make_work
from objects import only
from test_encode_presentation_state import frames_case, on

from pacs_ai.encode.case import Case
from pacs_ai.encode.check import check_results
from pacs_ai.encode.reports.key_objects import encode_key_objects
from pacs_ai.pipeline import Detection, Diameters, Findings, Segment
from pacs_ai.profiles import Kind

KEY_OBJECTS = only(Kind.KEY_OBJECTS)


def make_case(evidence, findings):
    return Case.of(findings, {"image": evidence}, {"image": make_volume()}, make_work())


def made_of(case):
    (made,) = encode_key_objects(case, KEY_OBJECTS, None)
    check_results((made,), case)
    return made


def shown(ds):
    """(SOP Instance UID, frames) of each IMAGE item."""
    items = [item.ReferencedSOPSequence[0] for item in ds.ContentSequence if item.ValueType == "IMAGE"]
    return [(item.ReferencedSOPInstanceUID, item.get("ReferencedFrameNumber")) for item in items]


def test_the_largest_cross_section_of_each_segment_and_each_detections_image():
    case = make_case(make_evidence(), replace(make_findings(), detections=on(3, 5, 3)))
    largest = [int(row.argmax()) for _, row in case.filled]
    expected = [case.own.slices[index].sop_instance_uid for index in dict.fromkeys([*largest, 3, 5])]
    ds = made_of(case).dataset
    assert [uid for uid, _ in shown(ds)] == expected
    assert ds.ConceptNameCodeSequence[0].CodeValue == "113000"
    (study,) = ds.CurrentRequestedProcedureEvidenceSequence
    (series,) = study.ReferencedSeriesSequence
    assert [one.ReferencedSOPInstanceUID for one in series.ReferencedSOPSequence] == expected


def test_the_description_names_the_findings_and_what_they_must_not_be_used_for():
    ds = made_of(make_case(make_evidence(), make_findings())).dataset
    (description,) = [item.TextValue for item in ds.ContentSequence if item.get("TextValue", "").startswith("For res")]
    assert "not for clinical use" in description
    assert "not reviewed by a person" in description
    assert description.endswith("Right lung; Left lung.")


def test_frames_of_a_multi_frame_image_are_named_by_number_in_one_item():
    ds = made_of(make_case(make_multiframe(), Findings(detections=on(3, 5)))).dataset
    ((_, frames),) = shown(ds)
    assert list(frames) == [4, 6]


def test_radiographs_and_findings_with_diameters_only():
    axes = Diameters(np.array([[5, 10], [15, 10]]), np.array([[10, 7], [10, 13]]), 1)
    case = frames_case(Findings(detections=(Detection("Marker front", diameters=axes),)))
    assert [uid for uid, _ in shown(made_of(case).dataset)] == [case.own.slices[1].sop_instance_uid]


def test_nothing_where_nothing_was_found():
    empty = Findings((Segment("Left lung", np.zeros((12, 30, 41), bool)),))
    assert encode_key_objects(make_case(make_evidence(), empty), KEY_OBJECTS, None) == ()


def test_same_findings_same_bytes():
    first, second = (made_of(make_case(make_evidence(), make_findings())) for _ in range(2))
    assert first.to_bytes() == second.to_bytes()


@pytest.mark.parametrize("make", [make_evidence, make_multiframe])
def test_validators_find_no_error_and_highdicom_reads_it(tmp_path, make):
    path = tmp_path / "ko.dcm"
    made = made_of(make_case(make(), make_findings()))
    made.write(path)
    read = highdicom.ko.KeyObjectSelectionDocument.from_dataset(made.dataset)
    assert read.content.get_references(value_type=highdicom.sr.ValueTypeValues.IMAGE)
    if shutil.which("dciodvfy") is None or not Path("/usr/bin/dsrdump").exists():
        pytest.skip("VALIDATOR MISSING: dciodvfy or dsrdump is not installed, so no key objects were held against them")
    told = subprocess.run(["dciodvfy", "-new", path], capture_output=True, text=True, check=False).stderr
    assert "Error" not in told
    done = subprocess.run(["/usr/bin/dsrdump", path], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "E:" not in done.stderr
