"""The measured journey: a chest CT by C-STORE in, SEG and SR out, everything durable, valid, right, and timed."""

from __future__ import annotations

import json
import time

import pytest
from pydicom.uid import Comprehensive3DSRStorage, SegmentationStorage
from readback import Sources, assert_right, dciodvfy_errors
from running_node import nodes, peer_table

from pacs_ai.deliver import scu
from pacs_ai.states import SeriesState
from pacs_ai.store.files import Files
from pacs_ai.testing import Phantom, phantom_truth, write_phantom

#: What may lie between the last instance and the results besides waiting and the model, on a busy machine.
BUSY_SECONDS = 60.0


@pytest.fixture
def node(tmp_path, keeping_peer):
    with nodes(tmp_path) as make:
        yield make(
            peer=[peer_table("pacs", keeping_peer.ae_title, keeping_peer.port)],
            route=[{"when": {"modality": "CT"}, "run": "ct-lung", "deliver_to": ["pacs"]}],
        ).start()


def test_a_chest_ct_comes_back_with_its_lungs(node, keeping_peer, tmp_path, record_testsuite_property):
    phantom = Phantom(120, 256, 256, order="descending")
    paths = write_phantom(tmp_path / "study", phantom)
    answered_at = []
    outcomes = scu.send_files(node.remote(), scu.scan(paths).instances, lambda *_: answered_at.append(time.time()))
    assert all(outcome.stored for outcome in outcomes)
    node.acked |= {outcome.sop_instance_uid for outcome in outcomes}
    job = node.delivered(phantom.study_instance_uid)
    node.account()
    assert_index_is_the_sender_s_journal(node, paths, outcomes)
    seg, sr = (keeping_peer.path(one.sop_instance_uid) for one in node.results(job.id))
    assert keeping_peer.stored == [one.sop_instance_uid for one in node.results(job.id)]
    assert [one.sop_class_uid for one in node.results(job.id)] == [SegmentationStorage, Comprehensive3DSRStorage]
    assert dciodvfy_errors(seg) == []
    assert dciodvfy_errors(sr) == []
    masks = assert_right(seg, sr, job, [Sources.of(paths)])
    truth = phantom_truth(phantom)
    volumes = {one["label"]: one["value"] for one in job.findings["measurements"] if one["concept"] == "Volume"}
    assert volumes == pytest.approx({label: truth.volumes_ml[label] for label in masks}, rel=0.01)
    assert set(masks) == {"Right lung", "Left lung"}
    record_testsuite_property("journey_seconds", json.dumps(split(node, job, answered_at[-1])))


def assert_index_is_the_sender_s_journal(node, paths, outcomes):
    """What was answered Success, and nothing else, is in the index, each with its bytes on disk."""
    files = Files(node.files_folder)
    rows = {row.sop_instance_uid: row for row in node.instances()}
    assert set(rows) == {outcome.sop_instance_uid for outcome in outcomes}
    for instance in scu.scan(paths).instances:
        row = rows[instance.sop_instance_uid]
        assert (row.sop_class_uid, row.transfer_syntax_uid) == (instance.sop_class_uid, instance.transfer_syntax_uid)
        assert files.verify(row.sha256)
        kept = files.path(row.sha256).read_bytes()
        assert len(kept) == row.size
        assert kept.endswith(instance.path.read_bytes()[-256 * 256 * 2 :])


def split(node, job, sent_at):
    """Return the seconds from the last instance to the results, by what they went into."""
    series = node.series(job.sources[0][1])
    assert series.state is SeriesState.COMPLETE
    done = max(one.sent_at for one in node.deliveries(job.id)).timestamp()
    found = {
        "waiting": series.completed_at.timestamp() - sent_at,
        "queued": (job.started_at - series.completed_at).total_seconds(),
        **job.timings,
        "delivered": done - job.finished_at.timestamp(),
        "total": done - sent_at,
    }
    rest = found["total"] - found["waiting"] - found["inferring"]
    assert set(job.timings) == {"loading", "inferring", "encoding"}
    assert all(seconds >= -0.01 for seconds in found.values()), found
    assert rest < BUSY_SECONDS, found
    return {name: round(seconds, 3) for name, seconds in found.items()}
