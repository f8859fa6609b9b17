"""Any process of the node may be killed at its work: it starts anew, and the results arrive once."""

from __future__ import annotations

import os
import signal

import pytest
from pydicom import dcmread
from pydicom.uid import Comprehensive3DSRStorage
from pynetdicom.dsutils import split_dataset
from running_node import is_alive, peer_table, until

from pacs_ai.deliver import scu
from pacs_ai.states import JobState


@pytest.fixture(scope="module")
def hold(tmp_path_factory):
    """While this file exists, the pipeline ``slow`` waits."""
    return tmp_path_factory.mktemp("hold") / "hold"


@pytest.fixture(scope="module")
def pacs(make_peer):
    return make_peer()


@pytest.fixture(scope="module")
def running(make_node, pacs, hold):
    return make_node(
        peer=[peer_table("pacs", pacs.ae_title, pacs.port)],
        pipeline=[{"name": "slow", "use": "story", "settings": {"hold": str(hold)}}],
        route=[{"when": {"modality": "CT"}, "run": "slow", "deliver_to": ["pacs"]}],
        receive={"quiet_seconds": 15.0},  # longer than it takes to start a process anew on a busy machine
    ).start()


@pytest.fixture
def node(running, pacs, hold):
    """The module's node; nothing waits any more after the test, and everything adds up."""
    hold.unlink(missing_ok=True)
    yield running
    hold.unlink(missing_ok=True)
    pacs.gate.set()
    running.account()


def data_set(path):
    return path.read_bytes()[split_dataset(path)[1] :]


def assert_arrived(node, pacs, job, tmp_path):
    """Every result lies in the PACS as it lies in the outbox: SEG before SR, and nothing else of this study."""
    outbox = node.result_bytes(job.id)
    for uid, content in outbox.items():
        copy = tmp_path / f"{uid}.dcm"
        copy.write_bytes(content)
        assert data_set(pacs.path(uid)) == data_set(copy)
    order = [uid for uid in pacs.stored if uid in outbox]
    assert list(dict.fromkeys(order)) == list(outbox)
    of_study = {uid for uid in pacs.stored if dcmread(pacs.path(uid)).StudyInstanceUID == job.study_instance_uid}
    assert of_study == set(outbox)


def held_running(node, study):
    """Wait until the study's job is inferring."""
    return node.until(
        lambda: (job := node.job(study)) and job.state is JobState.RUNNING and job.reason == "inferring" and job,
        what="a job that is inferring",
    )


def test_receive_is_killed_while_a_study_arrives(node, pacs, make_series, tmp_path):
    """Its sender stands still half-way, until the first have their rows: whatever is quick, it is amid the study."""
    study, paths = make_series(1, slices=150)
    before, outcomes = len(node.instances()), []
    for outcome in scu.send(node.remote(), scu.scan(paths).instances):
        outcomes.append(outcome)
        if outcome.stored:
            node.acked.add(outcome.sop_instance_uid)
        if len(outcomes) == 75:
            node.until(lambda: len(node.instances()) >= before + 10, what="the first instances")
            killed = node.signal_process("receive")
    assert [outcome.stored for outcome in outcomes] == [True] * 75 + [False] * 75
    assert "abort" in outcomes[-1].words or "closed" in outcomes[-1].words
    node.until(node.answers, what="a new receive process")
    assert node.pid("receive") != killed
    node.account()
    node.send_all(paths)
    job = node.delivered(study)
    assert job.sources[0][2] == 1, "one revision"
    assert len({row.sop_instance_uid for row in node.instances()}) == before + 150
    assert_arrived(node, pacs, job, tmp_path)


def test_route_is_killed_while_a_series_is_quiet(node, pacs, make_series, tmp_path):
    study, paths = make_series(2)
    for outcome in scu.send(node.remote(), scu.scan(paths[:6]).instances):  # two associations: the long wait
        assert outcome.stored
        node.acked.add(outcome.sop_instance_uid)
        if outcome.sop_instance_uid == scu.scan(paths[:1]).instances[0].sop_instance_uid:
            node.send_all(paths[6:])  # while the first is open, which else was one that brought all
    node.signal_process("route")
    job = node.delivered(study)
    assert len(job.sources) == 1
    assert_arrived(node, pacs, job, tmp_path)


@pytest.mark.parametrize("kind", ["infer", "infer child"])
def test_QUE_01_a_worker_is_killed_while_it_infers(node, pacs, hold, make_series, tmp_path, kind):
    hold.touch()
    study, paths = make_series(3 + len(kind))
    node.send_all(paths)
    held_running(node, study)
    child = node.pid("infer child")
    node.signal_process(kind)
    node.until(lambda: not is_alive(child), what="the end of the child that ran the model")
    hold.unlink()
    job = node.delivered(study)
    assert (job.crashes, job.attempts) == (1, 2)
    assert_arrived(node, pacs, job, tmp_path)


def test_deliver_is_killed_while_it_sends_the_report(node, pacs, make_series, tmp_path):
    pacs.gated = (Comprehensive3DSRStorage,)
    pacs.gate.clear()
    requests = len(pacs.requests)
    study, paths = make_series(20)
    node.send_all(paths)
    until(lambda: len(pacs.requests) == requests + 2, what="the request to store the SR")
    job = node.job(study)
    node.until(lambda: [one.state for one in node.deliveries(job.id)] == ["sent", "sending"], what="a sent SEG")
    node.signal_process("deliver")
    pacs.gate.set()
    job = node.delivered(study)
    seg, sr = node.deliveries(job.id)
    assert (seg.attempts, sr.attempts) == (1, 2)
    assert pacs.requests[requests:] == [seg.sop_instance_uid, sr.sop_instance_uid, sr.sop_instance_uid]
    assert_arrived(node, pacs, job, tmp_path)


def test_the_supervisor_is_killed_and_takes_everything_with_it(node, pacs, hold, make_series, tmp_path):
    hold.touch()
    study, paths = make_series(30)
    node.send_all(paths)
    held_running(node, study)
    node.kill_supervisor()
    node.until(node.has_gone, what="the end of every process")
    assert node.job(study).state in {JobState.QUEUED, JobState.RUNNING}
    hold.unlink()
    node.start()
    job = node.delivered(study)
    assert_arrived(node, pacs, job, tmp_path)


def test_QUE_02_a_worker_that_was_only_asleep_writes_nothing(
    make_node, make_peer, make_series, tmp_path_factory, tmp_path
):
    """It stands still for longer than its claim lasts; another does the work, and its own results come too late."""
    hold, pacs = tmp_path_factory.mktemp("hold") / "hold", make_peer()
    node = make_node(
        peer=[peer_table("pacs", pacs.ae_title, pacs.port)],
        pipeline=[{"name": "slow", "use": "story", "settings": {"hold": str(hold)}}],
        route=[{"when": {"modality": "CT"}, "run": "slow", "deliver_to": ["pacs"]}],
        infer={"devices": ["cpu", "cpu:0"]},
    ).start()
    hold.touch()
    study, paths = make_series(40)
    node.send_all(paths)
    held_running(node, study)
    sleeper = int(node.owner(node.job(study).id).split(":")[2])
    node.until(lambda: node.log(1000).count("ready on cpu") >= 2, what="two workers")
    os.kill(sleeper, signal.SIGSTOP)
    hold.unlink()
    job = node.delivered(study)
    assert (job.crashes, job.attempts) == (1, 2)
    os.kill(sleeper, signal.SIGCONT)
    node.until(
        lambda: f"job {job.id} was cancelled, superseded or taken over" in node.log(1000),
        what="the sleeper's own insight",
    )
    assert_arrived(node, pacs, job, tmp_path)
    assert len(pacs.stored) == 2
    assert node.stop() == 0
    node.account()


def test_a_child_that_dies_while_it_has_nothing_to_do_is_no_crash_of_the_next_job(node, make_series):
    study, paths = make_series(50)
    node.until(lambda: node.log(1000).count("ready on cpu") >= 1, what="loaded models")
    child = node.signal_process("infer child")
    node.until(lambda: not is_alive(child), what="the end of the child")
    node.send_all(paths)
    assert node.delivered(study).crashes == 0


def test_what_a_dead_worker_left_half_written_is_cleared(node, hold, make_series):
    hold.touch()
    study, paths = make_series(51)
    node.send_all(paths)
    job = held_running(node, study)
    left = node.config.store.folder / "scratch" / node.owner(job.id).replace(":", "-") / "half.part"
    left.parent.mkdir(parents=True, exist_ok=True)
    left.write_bytes(b"half")
    node.signal_process("infer")
    hold.unlink()
    node.delivered(study)
    assert not left.exists()
