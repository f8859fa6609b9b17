"""The main job with a real PACS: a CT goes into Orthanc, SEG and SR appear in the same study, right, and once.

The same stories with Orthanc or the node dying on the way.
"""

from __future__ import annotations

import os
import signal

import numpy as np
import pytest
from pydicom import dcmread
from readback import Sources, assert_right
from running_node import descendants, nodes, peer_table

from pacs_ai.dicom.status import SUCCESS
from pacs_ai.states import JobState
from pacs_ai.store import orders
from pacs_ai.testing import Phantom, phantom_truth, write_phantom

pytestmark = pytest.mark.orthanc


@pytest.fixture(scope="module")
def running(orthanc_server, tmp_path_factory):
    """The node to which Orthanc routes CT, and which sends its results back to it."""
    with nodes(tmp_path_factory.mktemp("stories")) as make:
        yield make(
            port=orthanc_server.node_port,
            peer=[peer_table("orthanc", orthanc_server.ae_title, orthanc_server.dicom_port)],
            route=[{"when": {"modality": "CT", "min_instances": 20}, "run": "ct-lung", "deliver_to": ["orthanc"]}],
        ).start()


@pytest.fixture
def node(running, orthanc):
    """The node, running; afterwards everything adds up."""
    if running.has_ended:
        running.start()
    yield running
    running.account()


@pytest.fixture
def study(request, tmp_path):
    """A phantom of a patient of its own, not yet in any PACS; slices and size by parameter, else 60 and 160."""
    slices, size = getattr(request, "param", (60, 160))
    phantom = Phantom(slices, size, size, seed=sum(request.node.name.encode()), order="shuffled")
    return phantom, write_phantom(tmp_path / "study", phantom)


def results_in(orthanc, study_instance_uid, folder):
    """Download a study's SEG and SR as soon as both are there; there is one of each."""
    paths = []
    for modality in ("SEG", "SR"):
        (found,) = orthanc.wait_for_instances(study_instance_uid, modality, seconds=90)
        paths.append(orthanc.download(found, folder / f"{modality}.dcm"))
    return paths


def assert_only(orthanc, node, job, folder):
    """Assert that of this node the study holds exactly what lies in the outbox, object by object."""
    outbox = node.result_bytes(job.id)
    study = job.study_instance_uid
    found = [*orthanc.instances(study, "SEG"), *orthanc.instances(study, "SR")]
    assert {orthanc.tags(one)["SOPInstanceUID"] for one in found} == set(outbox)
    assert len(found) == len(outbox) == 2
    for number, (uid, content) in enumerate(outbox.items()):
        ours, theirs = folder / f"ours{number}.dcm", folder / f"theirs{number}.dcm"
        ours.write_bytes(content)
        orthanc.download(orthanc.instance(uid), theirs)
        assert dcmread(ours) == dcmread(theirs)


def assert_true(job, masks, phantom):
    """Assert that the lungs are the phantom's: volumes within 1 %, and where it has them."""
    truth = phantom_truth(phantom)
    volumes = {one["label"]: one["value"] for one in job.findings["measurements"] if one["concept"] == "Volume"}
    assert volumes == pytest.approx({label: truth.volumes_ml[label] for label in masks}, rel=0.01)
    for label, mask in masks.items():
        expected = truth.mask(label)
        dice = 2 * np.count_nonzero(mask & expected) / (np.count_nonzero(mask) + np.count_nonzero(expected))
        assert dice > 0.98


def deliveries_once(node, job):
    return [(one.kind, one.state, one.status) for one in node.deliveries(job.id)] == [
        ("SEG", "sent", SUCCESS),
        ("SR", "sent", SUCCESS),
    ]


@pytest.mark.parametrize("study", [(120, 256)], indirect=True, ids=["120 slices"])
def test_a_ct_stored_in_the_pacs_gets_its_results_there(node, orthanc, study, tmp_path):
    phantom, paths = study
    orthanc.upload(*paths)
    seg, sr = results_in(orthanc, phantom.study_instance_uid, tmp_path)
    job = node.delivered(phantom.study_instance_uid)
    masks = assert_right(seg, sr, job, [Sources.of(paths)])
    assert set(masks) == {"Right lung", "Left lung"}
    assert_true(job, masks, phantom)
    assert_only(orthanc, node, job, tmp_path)
    assert deliveries_once(node, job)
    assert {row.sop_instance_uid for row in node.instances()} >= set(Sources.of(paths).uids)


def test_the_same_study_sent_twice_gets_one_set_of_results(node, orthanc, study, tmp_path):
    phantom, paths = study
    orthanc.upload(*paths)
    results_in(orthanc, phantom.study_instance_uid, tmp_path)
    job = node.delivered(phantom.study_instance_uid)
    instances = len(node.instances())
    (series,) = orthanc.series(phantom.study_instance_uid, "CT")
    assert orthanc.wait_for_job(orthanc.store(series["ID"]))["State"] == "Success"
    after = node.until(
        lambda: (one := node.series(phantom.series_instance_uid)).state == "complete" and one, what="a complete series"
    )
    assert (after.revision, after.instances) == (1, len(paths))
    assert len(node.instances()) == instances
    assert node.job(phantom.study_instance_uid).id == job.id
    assert_only(orthanc, node, job, tmp_path)


def test_results_wait_for_a_pacs_that_is_down(node, orthanc, study, tmp_path):
    """It goes down before inference begins; pausing the pipeline gives it the time to."""
    phantom, paths = study
    with node.orders() as database:
        orders.pause(database, "ct-lung", actor="test")
        orthanc.upload(*paths)
        node.job_in(phantom.study_instance_uid, JobState.WITHHELD)
        orthanc.stop()
        assert orders.resume(database, "ct-lung", actor="test") == 1
    job = node.job_in(phantom.study_instance_uid, JobState.DONE)
    waiting = node.until(
        lambda: [one for one in node.deliveries(job.id) if one.attempts and one.state == "waiting"],
        what="a delivery that was tried and waits",
    )
    assert "ORTHANC at 127.0.0.1" in waiting[0].reason
    orthanc.start()
    job = node.delivered(phantom.study_instance_uid)
    seg, sr = results_in(orthanc, phantom.study_instance_uid, tmp_path)
    assert_right(seg, sr, job, [Sources.of(paths)])
    assert_only(orthanc, node, job, tmp_path)


@pytest.mark.parametrize("study", [(300, 256)], indirect=True, ids=["300 slices"])
def test_the_node_is_killed_while_it_receives(node, orthanc, study, tmp_path):
    """So many that Orthanc is amid them: what it sends is answered before it has its rows."""
    phantom, paths = study
    before = len(node.instances())
    orthanc.upload(*paths)
    node.until(lambda: len(node.instances()) > before, what="the first instances")
    node.kill()
    arrived = len(node.instances()) - before
    assert 1 <= arrived < len(paths)
    # Orthanc may make several jobs of one upload, where one was through before the next image came
    orthanc.wait_until(
        lambda: {one["State"] for one in orthanc.jobs()} <= {"Success", "Failure"} and orthanc.has_failed_jobs(),
        what="Orthanc's own notice",
    )
    node.start()
    assert orthanc.resubmit_failed() >= 1
    job = node.delivered(phantom.study_instance_uid)
    seg, sr = results_in(orthanc, phantom.study_instance_uid, tmp_path)
    masks = assert_right(seg, sr, job, [Sources.of(paths)])
    assert_true(job, masks, phantom)
    assert_only(orthanc, node, job, tmp_path)


@pytest.mark.parametrize("study", [(120, 256)], indirect=True, ids=["120 slices"])
def test_the_node_is_killed_while_it_infers(node, orthanc, study, tmp_path):
    phantom, paths = study
    orthanc.upload(*paths)
    node.until(
        lambda: (job := node.job(phantom.study_instance_uid)) and job.state is JobState.RUNNING,
        what="a job that is running",
    )
    node.kill()
    killed = node.job(phantom.study_instance_uid)
    assert killed.state is JobState.RUNNING
    assert node.results(killed.id) == []
    node.start()
    job = node.delivered(phantom.study_instance_uid)
    assert (job.id, job.job_key, job.crashes) == (killed.id, killed.job_key, 1)
    seg, sr = results_in(orthanc, phantom.study_instance_uid, tmp_path)
    assert_right(seg, sr, job, [Sources.of(paths)])
    assert_only(orthanc, node, job, tmp_path)


def test_the_node_is_killed_while_it_delivers(node, orthanc, study, tmp_path):
    """Orthanc is held still so that the node is caught in the act; what it then gets a second time is the same."""
    phantom, paths = study
    orthanc.upload(*paths)
    node.until(lambda: node.job(phantom.study_instance_uid), what="a job")
    process = descendants(orthanc.pid)[1]
    os.kill(process, signal.SIGSTOP)
    try:
        job = node.job_in(phantom.study_instance_uid, JobState.DONE)
        node.until(lambda: {one.state for one in node.deliveries(job.id)} == {"sending"}, what="results on their way")
        before = node.result_bytes(job.id)
        node.kill()
    finally:
        os.kill(process, signal.SIGCONT)
    node.start()
    again = node.delivered(phantom.study_instance_uid)
    assert (again.id, again.attempts) == (job.id, 1)
    assert node.result_bytes(job.id) == before
    results_in(orthanc, phantom.study_instance_uid, tmp_path)
    assert_only(orthanc, node, job, tmp_path)


def test_results_that_the_pacs_sends_back_trigger_nothing(node, orthanc, study, tmp_path):
    phantom, paths = study
    orthanc.upload(*paths)
    results_in(orthanc, phantom.study_instance_uid, tmp_path)
    job = node.delivered(phantom.study_instance_uid)
    uids = [one.sop_instance_uid for one in node.results(job.id)]
    assert orthanc.wait_for_job(orthanc.store(*(orthanc.instance(uid) for uid in uids)))["State"] == "Success"
    node.until(
        lambda: (
            [
                one.state
                for known in node.studies()
                if known.study_instance_uid == phantom.study_instance_uid
                for one in known.series
                if one.own_result
            ]
            == ["unrouted", "unrouted"]
        ),
        what="both results, received and not wanted",
    )
    assert node.job(phantom.study_instance_uid).id == job.id
    assert_only(orthanc, node, job, tmp_path)


def test_a_real_chest_ct(node, orthanc, shared_data, tmp_path):
    paths = sorted((shared_data / "ct_chest_tcga_thick").glob("*.dcm"))
    orthanc.upload(*paths)
    sources = Sources.of(paths)
    seg, sr = results_in(orthanc, str(sources.first.StudyInstanceUID), tmp_path)
    job = node.delivered(str(sources.first.StudyInstanceUID))
    masks = assert_right(seg, sr, job, [sources])
    assert set(masks) == {"Right lung", "Left lung"}
    volumes = {one["label"]: one["volume_ml"] for one in job.findings["segments"]}
    assert all(800 < volume < 5000 for volume in volumes.values()), volumes
    right, left = (np.argwhere(masks[label]).mean(axis=0)[2] for label in ("Right lung", "Left lung"))
    assert right < left, "the patient's right lies at the image's left"
    assert_only(orthanc, node, job, tmp_path)
