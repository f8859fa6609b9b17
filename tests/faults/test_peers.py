"""Destinations may be down, full or unable to take a SEG: each has its own life, and its trouble is said in words."""

from __future__ import annotations

import pytest
from free_ports import free_port
from pydicom.uid import Comprehensive3DSRStorage, SegmentationStorage
from pynetdicom.presentation import build_context
from running_node import peer_table

from pacs_ai.dicom.status import OUT_OF_RESOURCES
from pacs_ai.store import views


@pytest.fixture(scope="module")
def peers(make_peer):
    """A good PACS, one that takes no SEG, one that is full, one that is not there, one that takes very long."""
    found = {
        "good": make_peer(),
        "report-only": make_peer(supported=[build_context(Comprehensive3DSRStorage)]),
        "full": make_peer(status=OUT_OF_RESOURCES),
        "away": make_peer(port=free_port()),
        "slow": make_peer(gated=(SegmentationStorage,)),
    }
    found["away"].stop()
    found["slow"].gate.clear()
    return found


@pytest.fixture(scope="module")
def node(make_node, peers):
    return make_node(
        # the slow one must not be given up on before its turn comes among the tests
        peer=[peer_table(name, peer.ae_title, peer.port, answer_seconds=280) for name, peer in peers.items()],
        route=[{"when": {"modality": "CT"}, "run": "story", "deliver_to": list(peers)}],
    ).start()


@pytest.fixture(scope="module")
def job(node, peers, make_module_series):
    """The one job whose results go to all of them; the good PACS has them already."""
    study, paths = make_module_series(200)
    node.send_all(paths)
    peers["good"].wait_for(2, seconds=60)
    node.delivered(study)
    return node.job(study)


def at(node, job, peer):
    return {one.kind: one for one in node.deliveries(job.id) if one.peer == peer}


def tried_twice(node, job, peer):
    """The SEG for a peer as soon as it waits for its third try."""
    return node.until(
        lambda: (one := at(node, job, peer)["SEG"]).attempts >= 2 and one.state == "waiting" and one,
        what="a second try",
    )


def test_DEL_09_the_good_one_is_served_while_all_others_are_in_trouble(node, peers, job):
    node.until(lambda: all(one.state == "sent" for one in at(node, job, "good").values()), what="both results")
    assert peers["good"].stored == [one.sop_instance_uid for one in node.results(job.id)]


def test_one_that_takes_no_segmentation_gets_the_report(node, peers, job):
    node.until(lambda: at(node, job, "report-only")["SR"].state == "sent", what="the SR")
    seg = at(node, job, "report-only")["SEG"]
    assert seg.state == "failed"
    assert "does not accept Segmentation Storage in any encoding" in seg.reason
    assert "ask its administrator to enable it for PACS_AI" in seg.reason
    assert seg.attempts == 1


def test_DEL_03_one_that_is_full_gets_them_when_it_has_room(node, peers, job):
    waiting = tried_twice(node, job, "full")
    assert waiting.status == OUT_OF_RESOURCES
    assert "out of resources" in waiting.reason.lower()
    peers["full"].status = 0x0000
    node.until(lambda: all(one.state == "sent" for one in at(node, job, "full").values()), what="both results")
    assert sorted(peers["full"].stored) == sorted(one.sop_instance_uid for one in node.results(job.id))


def test_one_that_is_away_gets_them_when_it_comes_back(node, peers, job):
    tried_twice(node, job, "away")
    with node.read() as connection:
        _, failures, _, reason = next(row for row in views.destinations(connection) if row[0] == "away")
    assert failures >= 1
    assert "refused" in reason
    peers["away"].start()
    node.until(lambda: all(one.state == "sent" for one in at(node, job, "away").values()), what="both results")
    assert peers["away"].stored == [one.sop_instance_uid for one in node.results(job.id)]


def test_one_that_is_slow_gets_them_in_its_own_time(node, peers, job):
    assert [one.state for one in at(node, job, "slow").values()] == ["sending", "sending"]
    peers["slow"].gate.set()
    node.until(lambda: all(one.state == "sent" for one in at(node, job, "slow").values()), what="both results")
    assert peers["slow"].associations == 1
    node.account()


def test_two_results_travel_on_one_association(peers, job):
    assert peers["good"].associations == 1
