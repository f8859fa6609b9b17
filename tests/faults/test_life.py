"""A node's own life: full disks, a second node, a stop amid associations, late and conflicting instances."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from free_ports import free_port
from pydicom import dcmread
from pydicom.uid import Comprehensive3DSRStorage, RLELossless, SegmentationStorage
from pynetdicom.dsutils import split_dataset
from running_node import DEADLINE_SECONDS, RunningNode, peer_table

from pacs_ai.deliver import scu
from pacs_ai.deliver.association import Association
from pacs_ai.dicom import contexts
from pacs_ai.dicom.status import OUT_OF_RESOURCES
from pacs_ai.states import JobState, SeriesState
from pacs_ai.store import orders


@pytest.fixture(scope="module")
def pacs(make_peer):
    return make_peer()


@pytest.fixture(scope="module")
def running(make_node, pacs):
    return make_node(
        peer=[peer_table("pacs", pacs.ae_title, pacs.port)],
        route=[{"when": {"modality": "CT"}, "run": "story", "deliver_to": ["pacs"]}],
        receive={"quiet_seconds": 5.0},  # longer than it takes to go on with a study after a start
    ).start()


@pytest.fixture
def node(running, pacs):
    """The module's node; afterwards everything adds up."""
    yield running
    pacs.gate.set()
    running.account()


@pytest.fixture(scope="module")
def full(make_node):
    """A node whose watermark no disk can reach."""
    return make_node(store={"folder": "data", "min_free_gb": 1e6, "min_free_percent": 0}).start()


def revisions(node, study, count):
    """The study's jobs as soon as there are `count` and the last one's results are sent."""

    def last_sent():
        jobs = node.jobs(study)
        sent = [one for one in node.deliveries(jobs[-1].id) if one.state == "sent"] if jobs else []
        return len(jobs) == count and len(sent) == 2 and jobs

    return node.until(last_sent, what=f"the results of revision {count}")


def changed(path, target, *, rle=False):
    """Write the same instance with a dense block in its pixels."""
    ds = dcmread(path)
    voxels = ds.pixel_array.copy()
    voxels[4:12, 4:12] = 2000
    ds.PixelData = voxels.tobytes()
    if rle:
        ds.compress(RLELossless, generate_instance_uid=False)
    ds.save_as(target, enforce_file_format=True)
    return target


def test_STO_02_below_the_watermark_nothing_is_taken(full, make_series):
    _, paths = make_series(300)
    outcomes = full.send(paths)
    assert {outcome.status for outcome in outcomes} == {OUT_OF_RESOURCES}
    assert full.instances() == []
    assert full.studies() == []
    assert [path for path in full.files_folder.rglob("*") if path.is_file() and path.name != "store.id"] == []


def test_STO_10_a_second_node_in_the_same_folder_is_refused(full, tmp_path):
    other = RunningNode(tmp_path, store={"folder": str(full.config.store.folder)})
    command = [sys.executable, "-m", "pacs_ai", "--config", str(other.config_path), "run"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_SECONDS, check=False)
    assert ended.returncode == 2
    assert f"another node works in {full.config.store.folder}" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert full.answers()


def test_a_stop_waits_for_nobody_who_is_silent(full):
    with Association(full.remote(), [contexts.verification_context()]):
        assert full.stop(seconds=full.config.receive.grace_seconds + 30) == 0
    assert "Traceback" not in full.log_path.read_text()


def test_a_stopped_node_goes_on_where_it_was(node, pacs, make_series):
    pacs.gate.clear()
    study, paths = make_series(301)
    node.send_all(paths)
    node.job_in(study, JobState.DONE)
    assert node.stop() == 0
    pacs.gate.set()
    node.start()
    job = node.delivered(study)
    assert (job.attempts, job.crashes) == (1, 0)
    for uid, content in node.result_bytes(job.id).items():
        assert content.endswith(pacs.path(uid).read_bytes()[split_dataset(pacs.path(uid))[1] :])


def test_a_stop_amid_a_study_keeps_what_was_acknowledged(node, pacs, make_series):
    """The association in progress may end in its time; whoever comes then is told to come again."""
    study, paths = make_series(305, slices=150)
    before = len(node.instances())
    with ThreadPoolExecutor(1) as pool:
        sending = pool.submit(node.send, paths)
        node.until(lambda: len(node.instances()) >= before + 10, what="the first instances")
        assert node.stop() == 0
        outcomes = sending.result(timeout=60)
    node.account()
    assert len(node.instances()) - before >= sum(outcome.stored for outcome in outcomes) >= 10
    node.start()
    node.send_all(paths)
    assert node.delivered(study).sources[0][2] == 1
    assert "Traceback" not in node.log_path.read_text()


def test_QUE_04_a_late_slice_makes_a_revision_that_cites_the_delivered_report(node, pacs, make_series):
    study, paths = make_series(302)
    node.send_all(paths[:-1])
    first = node.delivered(study)
    node.send_all(paths[-1:])
    old, new = revisions(node, study, 2)
    assert (old.id, old.state, new.state) == (first.id, JobState.SUPERSEDED, JobState.DONE)
    assert [revision for _, _, revision in (*old.sources, *new.sources)] == [1, 2]
    before, after = (node.results(job.id)[1] for job in (old, new))
    assert before.kind == after.kind == "SR"
    assert before.sop_instance_uid != after.sop_instance_uid
    (cited,) = predecessors(pacs, after)
    assert cited == before.sop_instance_uid
    assert "PredecessorDocumentsSequence" not in dcmread(pacs.path(before.sop_instance_uid))
    assert node.series(new.sources[0][1]).instances == 12


def predecessors(pacs, result):
    """The SOP Instance UIDs that an SR in the PACS names as its predecessors."""
    return [
        str(instance.ReferencedSOPInstanceUID)
        for study in dcmread(pacs.path(result.sop_instance_uid)).PredecessorDocumentsSequence
        for series in study.ReferencedSeriesSequence
        for instance in series.ReferencedSOPSequence
    ]


def test_a_late_slice_takes_back_what_was_not_on_its_way(node, pacs, make_series):
    """The PACS is slow: the first revision's SEG is being stored when the second comes."""
    pacs.gated, requests = (SegmentationStorage,), len(pacs.requests)
    pacs.gate.clear()
    study, paths = make_series(303)
    node.send_all(paths[:-1])
    node.until(lambda: len(pacs.requests) > requests, what="the first result on its way")
    node.send_all(paths[-1:])
    node.until(lambda: len(node.jobs(study)) == 2 and node.jobs(study)[1].state is JobState.DONE, what="a revision")
    pacs.gate.set()
    old, new = revisions(node, study, 2)
    assert old.state is JobState.SUPERSEDED
    node.until(lambda: {one.state for one in node.deliveries(old.id)} <= {"sent", "cancelled"}, what="an end")
    delivered = [one.sop_instance_uid for one in node.deliveries(old.id) if one.state == "sent" and one.kind == "SR"]
    assert set(delivered) <= set(predecessors(pacs, node.results(new.id)[1]))


@pytest.mark.parametrize(("keep", "dense_blocks"), [("first", 0), ("latest", 1)])
def test_STO_06_other_pixels_under_one_uid_withhold_the_series_until_a_person_decides(
    node, pacs, make_series, tmp_path, keep, dense_blocks
):
    plain_study, plain = make_series(310)
    study, paths = make_series(311 + dense_blocks)
    stranger = changed(paths[0], tmp_path / "stranger.dcm")
    sent = [*scu.scan(paths).instances, *scu.scan([stranger]).instances]
    assert all(outcome.stored for outcome in scu.send(node.remote(), sent))
    series_uid = str(dcmread(stranger).SeriesInstanceUID)
    node.until(lambda: node.state_of(series_uid) is SeriesState.CONFLICT, what="the conflict")
    assert "pacs-ai resolve" in node.series(series_uid).reason
    node.send_all(plain)
    reference = node.delivered(plain_study)
    assert [job.state for job in node.jobs(study)] in ([], [JobState.WITHHELD])
    with node.orders() as database:
        assert orders.resolve(database, series_uid, keep=keep, actor="test") == 1
    job = node.delivered(study)
    extra = job.findings["segments"][0]["voxels"] - reference.findings["segments"][0]["voxels"]
    assert (extra > 0) == bool(dense_blocks)
    assert extra <= dense_blocks * 64


def test_the_same_image_in_another_encoding_is_the_same(node, make_series, tmp_path):
    study, paths = make_series(320)
    node.send_all(paths)
    job = node.delivered(study)
    ds = dcmread(paths[3])
    ds.compress(RLELossless, generate_instance_uid=False)
    ds.save_as(tmp_path / "rle.dcm", enforce_file_format=True)
    before = len(node.instances())
    node.send_all([tmp_path / "rle.dcm"])
    node.until(lambda: len(node.instances()) == before + 1, what="the variant")
    assert node.series(job.sources[0][1]).state is SeriesState.COMPLETE
    assert node.job(study).id == job.id


def test_other_pixels_in_another_encoding_are_found_by_the_worker(node, make_series, tmp_path):
    """The receiving side decodes nothing; the worker compares the pixels before it analyses any."""
    study, paths = make_series(321)
    sent = [*scu.scan(paths).instances, *scu.scan([changed(paths[2], tmp_path / "rle.dcm", rle=True)]).instances]
    assert all(outcome.stored for outcome in scu.send(node.remote(), sent))
    series_uid = str(dcmread(paths[0]).SeriesInstanceUID)
    node.until(lambda: node.state_of(series_uid) is SeriesState.CONFLICT, what="the conflict")
    assert node.job_in(study, JobState.WITHHELD).state is JobState.WITHHELD
    assert "pixels" in node.series(series_uid).reason
    with node.orders() as database:
        orders.resolve(database, series_uid, keep="first", actor="test")
    node.delivered(study)


def test_results_that_come_back_trigger_nothing(node, pacs, make_series):
    study, paths = make_series(330)
    node.send_all(paths)
    job = node.delivered(study)
    node.send_all([pacs.path(one.sop_instance_uid) for one in node.results(job.id)])
    own = node.until(
        lambda: (
            (found := [one for one in node.studies()[0].series if one.own_result])
            and all(one.state is SeriesState.UNROUTED for one in found)
            and found
        ),
        what="the results, received and not wanted",
    )
    assert len(own) == 2
    assert all("never analysed" in one.reason for one in own)
    assert node.job(study).id == job.id
    assert Comprehensive3DSRStorage in {one.sop_class_uid for one in node.results(job.id)}


def test_a_port_that_is_taken_is_said_at_once(node, tmp_path):
    other = RunningNode(tmp_path, port=node.port)
    command = [sys.executable, "-m", "pacs_ai", "--config", str(other.config_path), "run"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_SECONDS, check=False)
    assert ended.returncode == 2
    assert f"port {node.port}" in ended.stderr
    assert free_port() != node.port
