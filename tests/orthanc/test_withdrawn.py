"""What a real PACS does with a form that it does not take, with "not analysed", and with a withdrawal."""

from __future__ import annotations

import io

import pytest
from click.testing import CliRunner
from pydicom import dcmread
from pydicom.uid import KeyObjectSelectionDocumentStorage, SegmentationStorage
from running_node import nodes, peer_table

from pacs_ai.cli import main
from pacs_ai.states import JobState
from pacs_ai.testing import Phantom, write_phantom

pytestmark = pytest.mark.orthanc

MODERN = {
    "name": "modern",
    "objects": [
        {"kind": "segmentation", "form": "labelmap", "otherwise": {"kind": "segmentation", "form": "binary"}},
        {"kind": "report"},
    ],
}


@pytest.fixture(scope="module")
def node(orthanc_server, tmp_path_factory):
    """A node whose only peer is Orthanc, which takes no Label Map, and wants to know what could not be analysed."""
    with nodes(tmp_path_factory.mktemp("withdrawn")) as make:
        yield make(
            port=orthanc_server.node_port,
            peer=[peer_table("orthanc", orthanc_server.ae_title, orthanc_server.dicom_port, profile="modern")],
            profile=[MODERN],
            route=[
                {
                    "when": {"modality": "CT", "min_instances": 3},
                    "run": "ct-lung",
                    "deliver_to": ["orthanc"],
                    "report_not_analysed": True,
                }
            ],
        ).start()


@pytest.fixture
def done(node, orthanc, tmp_path, request):
    """A phantom's job, and what Orthanc got of it."""
    phantom = Phantom(40, 128, 128, seed=sum(request.node.name.encode()))
    orthanc.upload(*write_phantom(tmp_path / "study", phantom))
    job = node.delivered(phantom.study_instance_uid)
    node.until(lambda: {one.state for one in node.deliveries(job.id)} <= {"sent", "cancelled"}, what="every delivery")
    return job


def in_orthanc(orthanc, study, modality):
    return [dcmread(io.BytesIO(orthanc.file(one))) for one in orthanc.instances(study, modality)]


def referenced(ds):
    """Return the SOP Instance UIDs that a report or a note lists as evidence."""
    return {
        item.ReferencedSOPInstanceUID
        for study in ds.CurrentRequestedProcedureEvidenceSequence
        for series in study.ReferencedSeriesSequence
        for item in series.ReferencedSOPSequence
    }


def texts(ds):
    """Return what a report says, item by item."""
    own = [str(ds.TextValue)] if "TextValue" in ds else []
    return own + [text for item in ds.get("ContentSequence", ()) for text in texts(item)]


def test_a_label_map_that_orthanc_does_not_take_arrives_as_binary_with_the_report_that_cites_it(node, orthanc, done):
    (seg,) = in_orthanc(orthanc, done.study_instance_uid, "SEG")
    (report,) = in_orthanc(orthanc, done.study_instance_uid, "SR")
    assert (seg.SOPClassUID, seg.SegmentationType) == (SegmentationStorage, "BINARY")
    assert seg.SOPInstanceUID in referenced(report)
    states = {(one.kind, one.state) for one in node.deliveries(done.id)}
    assert states == {("SEG", "sent"), ("SEG", "cancelled"), ("SR", "sent"), ("SR", "cancelled")}
    reasons = [one.reason for one in node.deliveries(done.id) if one.state == "cancelled"]
    assert any(reason.startswith("not accepted; sent as binary SEG instead") for reason in reasons)
    node.account()


def test_after_a_retraction_orthanc_holds_a_note_of_exactly_what_it_has(node, orthanc, done):
    """It stores the note as mere data and shows the results as before: a PACS that honours IOCM was not at hand."""
    theirs = {
        one.SOPInstanceUID
        for modality in ("SEG", "SR")
        for one in in_orthanc(orthanc, done.study_instance_uid, modality)
    }
    words = ["retract", str(done.id), "--reason", "safety", "--because", "left and right were swapped", "--yes"]
    said = CliRunner().invoke(main, ["--config", str(node.config_path), *words])
    assert said.exit_code == 0, said.output
    orthanc.wait_for_instances(done.study_instance_uid, "KO", seconds=60)
    (note,) = in_orthanc(orthanc, done.study_instance_uid, "KO")
    assert note.SOPClassUID == KeyObjectSelectionDocumentStorage
    assert note.ConceptNameCodeSequence[0].CodeValue == "113037"
    assert referenced(note) == theirs
    assert len(orthanc.instances(done.study_instance_uid, "SEG")) == 1
    node.until(lambda: not [one for one in node.deliveries(done.id) if one.state == "sending"], what="the round's end")
    assert node.job(done.study_instance_uid).state is JobState.RETRACTED
    node.account()


def test_a_series_that_cannot_be_analysed_gets_a_report_that_says_so(node, orthanc, tmp_path):
    phantom = Phantom(40, 128, 128, seed=4711)
    paths = write_phantom(tmp_path / "study", phantom)
    orthanc.upload(*paths[:12], *paths[25:])
    orthanc.wait_for_instances(phantom.study_instance_uid, "SR", seconds=90)
    (report,) = in_orthanc(orthanc, phantom.study_instance_uid, "SR")
    job = node.job(phantom.study_instance_uid)
    assert job.state is JobState.REFUSED
    assert any(job.reason in text for text in texts(report))
    assert report.CompletionFlag == "PARTIAL"
    assert "NOT ANALYSED" in report.SeriesDescription
    assert orthanc.instances(phantom.study_instance_uid, "SEG") == []
    node.account()
