"""Notices say in the study that there is no result, or none any more, to people and to machines."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from encode_material import make_evidence, make_findings, make_volume, make_work
from objects import SEG_AND_SR
from pydicom.uid import UID

from pacs_ai import profiles
from pacs_ai.encode.check import check_notice
from pacs_ai.encode.reports.notices import Cited, encode_not_analysed, encode_rejection, encode_retracted
from pacs_ai.encode.results import encode
from pacs_ai.errors import Permanent, Refused, UserError
from pacs_ai.pipeline import Clearance
from pacs_ai.profiles import Kind

NOTICES = profiles.notice_encodings(9001)
WORDS = "3 of 12 slices are missing between 40.0 and 46.0 mm"
TITLES = {"safety": "113037", "quality": "113001", "worklist": "113038", "retention": "113039"}


def not_analysed(policy="refused", words=WORDS, evidence=None, work=None):
    evidence = {"image": make_evidence()} if evidence is None else evidence
    return encode_not_analysed(
        make_evidence().datasets[0], evidence, work or make_work(), policy, words, NOTICES[Kind.NOT_ANALYSED]
    )


def results():
    made = encode(make_findings(), {"image": make_evidence()}, {"image": make_volume()}, make_work(), SEG_AND_SR)
    return tuple(
        Cited(one.study_instance_uid, one.series_instance_uid, one.sop_class_uid, one.sop_instance_uid) for one in made
    )


def rejection(reason="safety", objects=None, work=None):
    objects = results() if objects is None else objects
    return encode_rejection(
        make_evidence().datasets[0], objects, work or make_work(), reason, "wrong side", NOTICES[Kind.REJECTION_NOTE]
    )


def retracted(objects=None, **more):
    objects = results() if objects is None else objects
    encodings = NOTICES[Kind.RETRACTED_REPORT], NOTICES[Kind.RETRACTED_PICTURE]
    return encode_retracted(make_evidence().datasets[0], objects, make_work(), "wrong side", *encodings, **more)


def texts(ds):
    """Every text of the tree, in its order."""
    own = [ds.TextValue] if "TextValue" in ds else []
    return own + [text for child in ds.get("ContentSequence", ()) for text in texts(child)]


def codes(ds):
    """Concept -> code value of every CODE item of the tree."""
    found = {}
    if ds.get("ValueType") == "CODE":
        found[ds.ConceptNameCodeSequence[0].CodeValue] = ds.ConceptCodeSequence[0].CodeValue
    for child in ds.get("ContentSequence", ()):
        found.update(codes(child))
    return found


def cited_in(sequence):
    return {
        (study.StudyInstanceUID, series.SeriesInstanceUID, one.ReferencedSOPClassUID, one.ReferencedSOPInstanceUID)
        for study in sequence
        for series in study.ReferencedSeriesSequence
        for one in series.ReferencedSOPSequence
    }


@pytest.mark.parametrize(
    ("policy", "status", "reason"), [("refused", "111225", "UNFIT"), ("failed", "111224", "111218")]
)
def test_not_analysed_says_why_in_words_and_codes(policy, status, reason):
    ds = not_analysed(policy).dataset
    first, conclusion, *_ = [text for text in texts(ds) if text.startswith("Not analysed")]
    assert (
        first
        == f"Not analysed: {WORDS}. Written by software, not by a person. For research only, not for clinical use."
    )
    assert conclusion == f"Not analysed: {WORDS}"
    assert codes(ds)["111065"] == status
    assert codes(ds)["REASON"] == reason
    assert ds.ConceptNameCodeSequence[0].CodeValue == "18748-4"  # viewers show the text of it
    assert (ds.CompletionFlag, ds.VerificationFlag) == ("PARTIAL", "UNVERIFIED")
    assert ds.SeriesDescription == "NOT ANALYSED - AI: Lungs (not for clinical use)"
    assert "ct-lung" in texts(ds)
    assert "input 'image': CT series 2, instances: 12" in texts(ds)


def test_not_analysed_cites_what_was_received():
    evidence = make_evidence()
    ds = not_analysed(evidence={"image": evidence}).dataset
    cited = cited_in(ds.CurrentRequestedProcedureEvidenceSequence)
    assert {uid for *_, uid in cited} == {one.SOPInstanceUID for one in evidence.datasets}


def test_not_analysed_without_evidence_cites_the_source():
    ds = not_analysed(evidence={}).dataset
    cited = cited_in(ds.CurrentRequestedProcedureEvidenceSequence)
    assert {uid for *_, uid in cited} == {make_evidence().datasets[0].SOPInstanceUID}


def test_a_prior_of_another_study_is_other_evidence():
    prior = make_evidence(StudyInstanceUID="1.2.3")
    ds = not_analysed(evidence={"image": make_evidence(), "prior.image": prior}).dataset
    assert {study for study, *_ in cited_in(ds.PertinentOtherEvidenceSequence)} == {"1.2.3"}


@pytest.mark.parametrize("changes", [{"PatientID": "other"}, {"StudyInstanceUID": "1.2.3"}])
def test_nothing_is_said_in_a_study_that_may_be_anothers(changes):
    with pytest.raises(Refused, match="more than one patient or study"):
        not_analysed(evidence={"image": make_evidence(**changes)})


def test_not_analysed_replaces_no_earlier_report():
    assert "PredecessorDocumentsSequence" not in not_analysed(work=make_work(predecessors=results()[1:])).dataset


def test_the_same_notice_is_the_same_bytes_and_another_has_other_uids():
    first, second, other = not_analysed(), not_analysed(), not_analysed(words="too few slices")
    later = not_analysed(work=make_work(created_at=make_work().created_at + timedelta(seconds=1)))
    assert first.to_bytes() == second.to_bytes()
    assert len({one.sop_instance_uid for one in (first, other, later)}) == 3
    assert len({one.series_instance_uid for one in (first, other, later)}) == 3


def test_words_are_one_line_of_ascii():
    ds = not_analysed(words="Schräg\nzu \\ viel\x00").dataset
    assert "Not analysed: Schrag zu viel" in texts(ds)


@pytest.mark.parametrize("reason", TITLES)
def test_a_rejection_note_names_every_object(reason):
    ds = rejection(reason).dataset
    assert ds.ConceptNameCodeSequence[0].CodeValue == TITLES[reason]
    assert ds.SOPClassUID.name == "Key Object Selection Document Storage"
    assert cited_in(ds.CurrentRequestedProcedureEvidenceSequence) == {
        (one.study_instance_uid, one.series_instance_uid, one.sop_class_uid, one.sop_instance_uid) for one in results()
    }
    kinds = {
        UID(item.ReferencedSOPSequence[0].ReferencedSOPClassUID).name: item.ValueType
        for item in ds.ContentSequence
        if "ReferencedSOPSequence" in item
    }
    assert kinds == {"Segmentation Storage": "IMAGE", "Comprehensive 3D SR Storage": "COMPOSITE"}
    assert ds.StudyInstanceUID == make_evidence().datasets[0].StudyInstanceUID
    assert any("wrong side" in text for text in texts(ds))


def test_a_retraction_says_so_in_a_report_that_replaces_the_reports():
    report, _ = retracted(made_at=make_work().created_at)
    ds = report.dataset
    seg, sr = results()
    assert cited_in(ds.PredecessorDocumentsSequence) == {
        (sr.study_instance_uid, sr.series_instance_uid, sr.sop_class_uid, sr.sop_instance_uid)
    }
    assert "RETRACTED: wrong side" in texts(ds)
    assert (
        "Do not use the AI results of 2026-01-02 23:04 of ct-lung 1.2, Example: Segmentation, Comprehensive 3D SR."
        in texts(ds)
    )
    assert any(seg.sop_instance_uid in text for text in texts(ds))
    assert ds.SeriesDescription.startswith("RETRACTED - AI: Lungs")


def test_a_retraction_of_no_report_replaces_none():
    report, _ = retracted(objects=results()[:1])
    assert "PredecessorDocumentsSequence" not in report.dataset


def test_the_picture_of_a_retraction_shows_large_red_letters():
    _, picture = retracted()
    pixels = picture.dataset.pixel_array.astype(int)
    red = (pixels[..., 0] > 200) & (pixels[..., 1] < 120)
    assert red[80:220].sum() > 20_000
    assert "RETRACTED" in picture.dataset.ImageComments
    assert "wrong side" in picture.dataset.ImageComments
    assert np.array_equal(pixels, retracted()[1].dataset.pixel_array)


def test_a_long_reason_stays_on_the_picture():
    objects = results()
    encodings = NOTICES[Kind.RETRACTED_REPORT], NOTICES[Kind.RETRACTED_PICTURE]
    source = make_evidence().datasets[0]
    _, picture = encode_retracted(source, objects, make_work(), "a long reason " * 100, *encodings)
    pixels = picture.dataset.pixel_array
    assert not pixels[-40:-24, 30:-30].any()


@pytest.mark.parametrize("notice", [rejection, retracted])
def test_only_objects_of_the_study_are_withdrawn(notice):
    with pytest.raises(ValueError, match="own study"):
        notice(objects=(replace(results()[0], study_instance_uid="1.2.3"),))
    with pytest.raises(ValueError, match="no object"):
        notice(objects=())


def test_a_cleared_product_is_not_called_research():
    card = replace(make_work().card, clearance=Clearance.PRODUCT)
    ds = not_analysed(work=make_work(card=card)).dataset
    assert ds.ContentQualification == "PRODUCT"
    assert "not for clinical use" not in " ".join([*texts(ds), ds.SeriesDescription])


def test_no_profile_names_a_notice():
    with pytest.raises(UserError, match="is a notice"):
        profiles.plan(profiles.Profile("one", (profiles.Wanted(Kind.NOT_ANALYSED),)), 9001)


def test_each_notice_has_a_series_number_of_its_own():
    assert [one.series_number for one in NOTICES.values()] == [9081, 9082, 9083, 9084]


def test_validators_find_no_error(tmp_path):
    if shutil.which("dciodvfy") is None or not Path("/usr/bin/dsrdump").exists():
        pytest.skip("VALIDATOR MISSING: dciodvfy or dsrdump is not installed, so no notice was held against them")
    made = (not_analysed("refused"), not_analysed("failed"), *map(rejection, TITLES), *retracted())
    for n, one in enumerate(made):
        path = tmp_path / f"{n}.dcm"
        one.write(path)
        told = subprocess.run(["dciodvfy", "-new", path], capture_output=True, text=True, check=False).stderr
        assert "Error" not in told
        if one.encoding.kind is not Kind.RETRACTED_PICTURE:
            done = subprocess.run(["/usr/bin/dsrdump", path], capture_output=True, text=True, check=False)
            assert done.returncode == 0
            assert "E:" not in done.stderr


def every_notice():
    """Each notice with the SOP Instance UIDs that it may refer to."""
    images = {str(ds.SOPInstanceUID) for ds in make_evidence().datasets}
    objects = {one.sop_instance_uid for one in results()}
    report, picture = retracted()
    return {
        "not analysed": (not_analysed(), images),
        "rejection": (rejection(), objects),
        "retracted report": (report, objects),
        "retracted picture": (picture, objects),
    }


@pytest.mark.parametrize("name", ["not analysed", "rejection", "retracted report", "retracted picture"])
def test_a_notice_passes_the_gate_only_as_it_was_made(name):
    notice, cited = every_notice()[name]
    source, card = make_evidence().datasets[0], make_work().card
    check_notice(notice, source, card, cited)
    if name != "retracted picture":  # it names objects in its pixels only
        with pytest.raises(Permanent, match="cites 1 instances that it is not about"):
            check_notice(notice, source, card, sorted(cited)[1:])
    with pytest.raises(Permanent, match="PatientID"):
        check_notice(notice, make_evidence(PatientID="ANOTHER").datasets[0], card, cited)
    with pytest.raises(Permanent):
        check_notice(notice, source, replace(card, clearance=Clearance.PRODUCT), cited)
