"""The journey of radiographs and ultrasound: by C-STORE in, as images to the pipeline, as SR and SEG out."""

from __future__ import annotations

import pydicom
import pytest
from plain_images import STUDY, write_chest, write_heads
from pydicom.uid import Comprehensive3DSRStorage, SegmentationStorage
from running_node import nodes, peer_table

from pacs_ai.states import JobState, SeriesState

END = (JobState.DONE, JobState.FAILED, JobState.REFUSED)


@pytest.fixture
def node(tmp_path, keeping_peer):
    with nodes(tmp_path) as make:
        yield make(
            peer=[peer_table("pacs", keeping_peer.ae_title, keeping_peer.port)],
            pipeline=[
                {"name": "film", "use": "testing-radiograph"},
                {"name": "clip", "use": "testing-ultrasound-head"},
            ],
            route=[
                {"when": {"modality": ["CR", "DX"]}, "run": "film", "deliver_to": ["pacs"]},
                {"when": {"modality": "US"}, "run": "clip", "deliver_to": ["pacs"]},
            ],
        ).start()


def cited(ds):
    """Return the SOP Instance UIDs and frame numbers that any item of the data set refers to."""
    found = set()
    for element in ds:
        for item in element.value if element.VR == "SQ" else ():
            if "ReferencedSOPInstanceUID" in item:
                numbers = item.get("ReferencedFrameNumber")
                found.add((str(item.ReferencedSOPInstanceUID), None if numbers is None else int(numbers)))
            found |= cited(item)
    return found


def test_one_film_and_one_clip_come_back_with_what_was_found(node, keeping_peer, tmp_path, shared_data):
    (film,) = write_chest(tmp_path / "film", shared_data, 1)
    (clip,) = write_heads(tmp_path / "clip", shared_data, 3)
    node.send_all([film, clip])
    jobs = {job.pipeline: job for job in node.until(lambda: ended(node, 2), what="the end of both jobs")}
    assert {job.state for job in jobs.values()} == {JobState.DONE}, node.summary()
    node.until(lambda: all(one.state == "sent" for one in node.deliveries()), what="the delivery of all results")
    node.account()
    assert_film(node, keeping_peer, jobs["film"], pydicom.dcmread(film))
    assert_clip(node, keeping_peer, jobs["clip"], pydicom.dcmread(clip))


def ended(node, count):
    """Return the study's jobs once there are so many and all have ended."""
    found = node.jobs(STUDY)
    return found if len(found) == count and all(job.state in END for job in found) else None


def assert_film(node, keeping_peer, job, film):
    """A series of one image completes by its silence; what was found is in the job's row and in the report."""
    series = node.series(film.SeriesInstanceUID)
    assert (series.state, len(series.reason) > 0) == (SeriesState.COMPLETE, True)
    findings = job.findings
    assert [one["region"]["shape"] for one in findings["detections"]] == ["POLYLINE", "ELLIPSE", "POINT"]
    assert findings["classifications"] == [
        {"label": None, "concept": "Image Quality", "value": "Good image quality", "probability": 0.8}
    ]
    assert "volume_ml" not in findings["segments"][0]
    assert "image: no length is known" in findings["notes"][0]
    results = {one.sop_class_uid: keeping_peer.path(one.sop_instance_uid) for one in node.results(job.id)}
    assert {SegmentationStorage, Comprehensive3DSRStorage} <= set(results)
    report = pydicom.dcmread(results[Comprehensive3DSRStorage])
    assert (report.PatientID, report.StudyInstanceUID) == (film.PatientID, film.StudyInstanceUID)
    assert (film.SOPInstanceUID, None) in cited(report)


def assert_clip(node, keeping_peer, job, clip):
    """Each frame of a clip is cited by its number; lengths are in mm where the clip has a scale."""
    results = {one.sop_class_uid: keeping_peer.path(one.sop_instance_uid) for one in node.results(job.id)}
    report = pydicom.dcmread(results[Comprehensive3DSRStorage])
    assert {(clip.SOPInstanceUID, number) for number in (1, 2, 3)} <= cited(report)
    for number, one in enumerate(job.findings["detections"]):
        assert one["region"]["index"] == number
        assert [(value["concept"], value["unit"]) for value in one["measurements"]] == [("Head Circumference", "mm")]
