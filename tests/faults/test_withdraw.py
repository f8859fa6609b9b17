"""A withdrawal reaches the PACS within a minute: while the worker is busy, and whoever is killed on the way."""

from __future__ import annotations

import signal
import time

import pytest
from pydicom import dcmread
from pydicom.uid import BasicTextSRStorage, KeyObjectSelectionDocumentStorage
from running_node import peer_table

from pacs_ai.states import JobState
from pacs_ai.store import retraction

PROFILE = {"name": "two", "objects": [{"kind": "segmentation"}, {"kind": "report"}]}


@pytest.fixture(scope="module")
def hold(tmp_path_factory):
    """While this file exists, the pipeline ``slow`` waits."""
    return tmp_path_factory.mktemp("hold") / "hold"


@pytest.fixture(scope="module")
def pacs(make_peer):
    return make_peer(gated=(KeyObjectSelectionDocumentStorage,))


@pytest.fixture(scope="module")
def running(make_node, pacs, hold):
    return make_node(
        peer=[peer_table("pacs", pacs.ae_title, pacs.port, profile="two")],
        profile=[PROFILE],
        pipeline=[{"name": "slow", "use": "story", "settings": {"hold": str(hold)}}],
        route=[
            {
                "when": {"modality": "CT"},
                "run": "slow",
                "deliver_to": ["pacs"],
                "report_not_analysed": True,
            }
        ],
    ).start()


@pytest.fixture
def node(running, pacs, hold):
    hold.unlink(missing_ok=True)
    if running.has_ended:
        running.start()
    yield running
    hold.unlink(missing_ok=True)
    pacs.gate.set()
    running.account()


def deliver(node, make_series, seed):
    """Have a series analysed and delivered; returns the job."""
    study, paths = make_series(seed)
    node.send_all(paths)
    job = node.delivered(study)
    node.until(lambda: {one.state for one in node.deliveries(job.id)} == {"sent"}, what="both results")
    return job


def retract(node, job):
    with node.orders() as database:
        retraction.retract(
            database, job.id, reason="safety", because="swapped", honours={"pacs": True}, actor="operator"
        )


def notes(pacs, job):
    """Return the rejection notes of a study that the PACS holds, each with how often it came."""
    found = {}
    for uid in dict.fromkeys(pacs.stored):
        ds = dcmread(pacs.path(uid))
        if ds.SOPClassUID == KeyObjectSelectionDocumentStorage and ds.StudyInstanceUID == job.study_instance_uid:
            found[uid] = pacs.stored.count(uid)
    return found


def arrived(node, pacs, job):
    node.until(lambda: notes(pacs, job), what="the rejection note")
    node.until(lambda: {one.state for one in node.deliveries(job.id)} == {"retracted", "sent"}, what="its acceptance")
    assert len(notes(pacs, job)) == 1, "one note, whatever happened"
    assert node.job(job.study_instance_uid).state is JobState.RETRACTED


def test_it_does_not_wait_for_a_worker_that_is_busy(node, pacs, hold, make_series):
    job = deliver(node, make_series, 1)
    hold.touch()
    busy, paths = make_series(2)
    node.send_all(paths)
    node.job_in(busy, JobState.RUNNING)
    begun = time.monotonic()
    retract(node, job)
    arrived(node, pacs, job)
    assert time.monotonic() - begun < 60
    assert node.job(busy).state is JobState.RUNNING
    hold.unlink()
    node.delivered(busy)


def test_deliver_killed_while_it_sends_the_note(node, pacs, make_series):
    job = deliver(node, make_series, 3)
    pacs.gate.clear()
    before = len(pacs.requests)
    retract(node, job)
    node.until(lambda: len(pacs.requests) > before, what="the note on its way")
    node.signal_process("deliver", signal.SIGKILL)
    pacs.gate.set()
    arrived(node, pacs, job)


def test_everything_killed_right_after_the_order(node, pacs, make_series):
    job = deliver(node, make_series, 4)
    retract(node, job)
    node.kill()
    assert node.job(job.study_instance_uid).state is JobState.RETRACTED
    node.start()
    arrived(node, pacs, job)


def test_a_series_that_cannot_be_analysed_is_told_once_though_deliver_is_killed(node, pacs, make_series):
    study, paths = make_series(5, slices=30)
    pacs.gated = (BasicTextSRStorage,)
    pacs.gate.clear()
    before = len(pacs.requests)
    node.send_all([*paths[:10], *paths[20:]])
    job = node.job_in(study, JobState.REFUSED)
    node.until(lambda: len(pacs.requests) > before, what="the notice on its way")
    node.signal_process("deliver", signal.SIGKILL)
    pacs.gate.set()
    node.until(lambda: {one.state for one in node.deliveries(job.id)} == {"sent"}, what="the notice")
    told = [uid for uid in dict.fromkeys(pacs.stored) if dcmread(pacs.path(uid)).StudyInstanceUID == study]
    assert len(told) == 1
    assert "NOT ANALYSED" in dcmread(pacs.path(told[0])).SeriesDescription
    pacs.gated = (KeyObjectSelectionDocumentStorage,)
