"""Identity is the source's, byte for byte; equipment and times are the job's."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path

import pytest
from encode_material import CARD, make_evidence, make_findings, make_volume, make_work
from objects import SEG_AND_SR
from pydicom import Dataset, config, dcmread
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag

from pacs_ai.encode.identity import cured
from pacs_ai.encode.provenance import clean
from pacs_ai.encode.results import encode
from pacs_ai.pipeline import Clearance, Code, Findings

RESULTS = ("SEG", "SR")


def results(evidence=None, findings=None, **changes):
    evidence = make_evidence() if evidence is None else evidence
    findings = make_findings() if findings is None else findings
    made = encode(findings, {"image": evidence}, {"image": make_volume()}, make_work(**changes), SEG_AND_SR)
    return {one.kind: one.dataset for one in made}


def test_RES_07_same_work_same_bytes_in_another_process():
    code = (
        "import sys; sys.path[:0] = sys.argv[1:]\n"
        "from encode_material import *\nfrom objects import SEG_AND_SR\n"
        "from pacs_ai.encode.results import encode\n"
        "given = make_findings(), {'image': make_evidence()}, {'image': make_volume()}, make_work(), SEG_AND_SR\n"
        "made = encode(*given)\n"
        "print(*(one.sha256 for one in made))\n"
    )
    folder = Path(__file__).parent
    printed = {
        subprocess.run(
            [sys.executable, "-c", code, str(folder), str(folder.parent)],
            check=True,
            capture_output=True,
            text=True,
            env={"TZ": zone},
        ).stdout
        for zone in ("Asia/Tokyo", "America/New_York")
    }
    here = encode(make_findings(), {"image": make_evidence()}, {"image": make_volume()}, make_work(), SEG_AND_SR)
    assert printed == {" ".join(one.sha256 for one in here) + "\n"}


def test_a_rerun_makes_other_uids_for_everything():
    def uids(generation):
        found = set()
        for one in encode(
            make_findings(),
            {"image": make_evidence()},
            {"image": make_volume()},
            make_work(generation=generation),
            SEG_AND_SR,
        ):
            found |= {one.sop_instance_uid, one.series_instance_uid}
            found |= {item.TrackingUID for item in one.dataset.get("SegmentSequence", ())}
        return found

    assert len(uids(1)) == 6
    assert not uids(1) & uids(2)


@pytest.mark.parametrize(
    ("charset", "name"),
    [
        ("ISO_IR 100", "Müller^Jürg"),
        ("ISO_IR 192", "Müller^Jürg=山田^太郎=やまだ^たろう"),
        ("ISO_IR 144", "\u041b\u044e\u043a\u0441"),
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう"),
        ("GB18030", "Wang^XiaoDong=王^小东="),
        ("ISO_IR 100", "Einzelwort"),
    ],
)
def test_RES_04_names_stay_byte_for_byte(charset, name):
    with config.disable_value_validation():
        plain = make_evidence(
            SpecificCharacterSet=charset, PatientName=name, StudyDescription="Größe" if "100" in charset else "x"
        )
    source = received(plain.datasets[0])
    evidence = type(plain)((source, *(received(ds) for ds in plain.datasets[1:])), plain.slices)
    for ds in results(evidence).values():
        assert ds.get_item("PatientName").value == source_bytes(plain.datasets[0])
        assert ds.SpecificCharacterSet == source.SpecificCharacterSet
        assert ds.PatientName == source.PatientName


def received(ds):
    target = BytesIO()
    ds.save_as(target, enforce_file_format=True)
    target.seek(0)
    return dcmread(target)


def source_bytes(ds):
    return received(ds).get_item("PatientName").value


def test_patient_study_and_order_are_the_sources():
    item = Dataset()
    item.RequestedProcedureID = "RP1"
    item.ScheduledProcedureStepID = "SPS1"
    item.AccessionNumber = "ACC1"
    evidence = make_evidence(
        IssuerOfPatientID="HOSPITAL",
        AccessionNumber="ACC1",
        TimezoneOffsetFromUTC="+0200",
        RequestAttributesSequence=[item],
        PatientComments="",
    )
    source = evidence.datasets[0]
    made = results(evidence)
    for ds in made.values():
        for keyword in (
            "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "IssuerOfPatientID", "AccessionNumber",
            "StudyInstanceUID", "StudyID", "StudyDate", "StudyTime", "StudyDescription", "TimezoneOffsetFromUTC",
        ):  # fmt: skip
            assert ds[keyword].value == source[keyword].value, keyword
        assert ds.ReferringPhysicianName == ""
        assert "PatientComments" not in ds
        assert (ds.ContentDate, ds.ContentTime) == ("20260103", "010405.000678"), "in the source's time zone"
        equipment = ds.ContributingEquipmentSequence[-1]
        assert equipment.PurposeOfReferenceCodeSequence[0].CodeValue == "109102"
        assert equipment.ContributionDateTime == "20260102230405.000678+0000"
    assert made["SEG"].RequestAttributesSequence[0].ScheduledProcedureStepID == "SPS1"
    request = made["SR"].ReferencedRequestSequence[0]
    assert (request.RequestedProcedureID, request.AccessionNumber) == ("RP1", "ACC1")
    assert request.StudyInstanceUID == source.StudyInstanceUID


def test_what_the_source_lacks_is_empty_and_never_made_up():
    evidence = make_evidence()
    for ds in evidence.datasets:
        for keyword in ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyID", "AccessionNumber"):
            delattr(ds, keyword)
    for ds in results(evidence).values():
        for keyword in ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyID", "AccessionNumber"):
            assert keyword in ds
            assert not ds[keyword].value
        assert "SpecificCharacterSet" not in ds


def test_optional_modules_with_empty_type_1_attributes_are_dropped():
    blank = make_evidence(ClinicalTrialSponsorName="", ClinicalTrialProtocolID="P1", ProcedureCodeSequence=[Dataset()])
    full = make_evidence(ClinicalTrialSponsorName="S", ClinicalTrialProtocolID="P1", ClinicalTrialSiteID="")
    for ds in results(blank).values():
        assert not [element.keyword for element in ds if "ClinicalTrial" in element.keyword]
        assert "ProcedureCodeSequence" not in ds
    for ds in results(full).values():
        assert (ds.ClinicalTrialSponsorName, ds.ClinicalTrialProtocolID) == ("S", "P1")
        assert ds.ClinicalTrialSiteID == ""


def test_faults_that_are_not_repeated_are_told_without_values():
    assert cured(make_evidence().datasets[0]) == ()
    source = make_evidence(ClinicalTrialSponsorName="", ClinicalTrialProtocolID="SECRET").datasets[0]
    source.ProcedureCodeSequence, source.PatientName = [Dataset()], "Secret"
    source[0x00101010] = RawDataElement(Tag(0x00101010), "AS", 2, b"0Y", 0, False, True)
    told = cured(source)
    assert [line.split(" has ")[0].split(" was ")[0] for line in told] == [
        "the clinical trial",
        "Procedure Code Sequence",
        "Patient's Age",
        "Patient's Name",
    ]
    assert "secret" not in str(told).lower()


def test_RES_08_results_say_what_they_are():
    made = results()
    assert (made["SEG"].SeriesNumber, made["SR"].SeriesNumber) == (9001, 9002)
    assert made["SEG"].SeriesInstanceUID != made["SR"].SeriesInstanceUID
    for ds in made.values():
        assert ds.SeriesDescription == "AI: Lungs (not for clinical use)"
        assert ds.ContentQualification == "RESEARCH"
        assert ds.ManufacturerModelName == "pacs_ai"
        assert ds.SoftwareVersions == ["pacs_ai 0.1.0", "ct-lung 1.2", "model sha256 " + "a" * 40]
        assert ds.DeviceSerialNumber
    card = type(CARD)(**{**vars(CARD), "clearance": Clearance.PRODUCT})
    for ds in results(card=card).values():
        assert ds.SeriesDescription == "AI: Lungs"
        assert ds.ContentQualification == "PRODUCT"


def test_RES_08_a_long_title_never_cuts_the_disclaimer():
    card = type(CARD)(**{**vars(CARD), "title": "Ünlimited \n\\ " + "words " * 1000})
    for ds in results(card=card).values():
        assert 60 < len(ds.SeriesDescription) <= 64
        assert ds.SeriesDescription.startswith("AI: Unlimited words")
        assert ds.SeriesDescription.endswith(" (not for clinical use)")


def test_times_without_a_source_zone_are_in_the_zone_of_the_job():
    for ds in results(created_at=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)).values():
        assert (ds.ContentDate, ds.ContentTime) == ("20260102", "030405.000000")
        assert (ds.InstanceCreationDate, ds.SeriesDate) == ("20260102", "20260102")
        assert "TimezoneOffsetFromUTC" not in ds


def test_a_lossy_history_and_the_body_part_go_with_the_segmentation():
    evidence = make_evidence(
        LossyImageCompression="01", LossyImageCompressionRatio="10", LossyImageCompressionMethod="ISO_10918_1"
    )
    seg = results(evidence)["SEG"]
    assert (seg.LossyImageCompression, seg.LossyImageCompressionRatio) == ("01", 10)
    assert seg.BodyPartExamined == "CHEST"
    assert results()["SEG"].LossyImageCompression == "00"


def with_raw(keyword, vr, value):
    """Sources in which one attribute has bytes that pydicom cannot parse."""
    evidence = make_evidence()
    tag = Tag(keyword)
    for ds in evidence.datasets:
        ds[tag] = RawDataElement(tag, vr, len(value), value, 0, False, True)
    return evidence


@pytest.mark.parametrize(("keyword", "vr", "value"), [("PatientWeight", "DS", b"heavy "), ("PatientAge", "AS", b"0Y")])
def test_wrong_values_of_what_identifies_nobody_are_left_out(keyword, vr, value):
    for ds in results(with_raw(keyword, vr, value)).values():
        assert keyword not in ds


def test_a_wrong_birth_date_stays_as_it_is():
    for ds in results(with_raw("PatientBirthDate", "DA", b"1950")).values():
        assert ds.get_item("PatientBirthDate").value == b"1950"


@pytest.mark.parametrize(
    ("given", "limit", "expected"),
    [
        ("Größe", 64, "Gro?e"),
        ("naïve \u2013 test", 64, "naive - test"),
        ("a\\b\nc\td\x00e", 64, "a b c d e"),
        ("肺", 64, "?"),
        ("x" * 70, 64, "x" * 61 + "..."),
        ("", 64, ""),
    ],
)
def test_own_texts_fit_every_character_set(given, limit, expected):
    assert clean(given, limit) == expected


def test_RES_06_a_model_with_wild_labels_still_makes_valid_objects():
    wild = "Lunge\x07 " + "ä\\" * 3000
    labels = (type(CARD.labels[0])(wild, CARD.labels[0].category, Code("39607008", "SCT", "Lung " * 50)),)
    card = type(CARD)(**{**vars(CARD), "labels": labels})
    segment = make_findings().segments[0]
    findings = Findings((type(segment)(wild, segment.voxels, segment.number),))
    made = results(findings=findings, card=card)
    assert len(made["SEG"].SegmentSequence[0].SegmentLabel) == 64
    assert made["SEG"].SegmentSequence[0].TrackingID == made["SEG"].SegmentSequence[0].SegmentLabel
