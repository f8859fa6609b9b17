"""The built-in lung densitometry on its phantom, and what the other readings' tests rely on in this bed."""

from __future__ import annotations

from reading_bed import texts

from pacs_ai.states import JobState
from pacs_ai.testing import Phantom, write_phantom

READINGS = ("ct-lung",)
CHEST = Phantom(slices=70, rows=96, columns=96)
ABDOMEN = Phantom(slices=40, rows=96, columns=96, anatomy="abdomen")


def test_a_chest_comes_back_with_both_lungs(journey, tmp_path):
    found = journey("ct-lung", write_phantom(tmp_path, CHEST))
    assert [item.SegmentLabel for item in found.one("SEG").SegmentSequence] == ["Right lung", "Left lung"]
    assert found.one("SR").StudyInstanceUID == CHEST.study_instance_uid
    assert "Right lung" in found.text
    assert journey("ct-lung", tmp_path) is found, "the same study is not sent twice"


def test_a_refusal_comes_back_with_its_reason(journey, tmp_path):
    found = journey("ct-lung", write_phantom(tmp_path, ABDOMEN), JobState.REFUSED)
    assert found.job.reason in " ".join(texts(found.one("not-analysed")))
