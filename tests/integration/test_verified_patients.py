"""Whose a study is, asked of the peer right before its results go there, and a peer that breaks off when asked."""

from __future__ import annotations

from itertools import pairwise

import pytest
from commitment_bed import PLAN
from committing_peer import CommittingPeer
from rounds import serve_next
from stations import ME
from stored_results import finish_with, keep_sources

from pacs_ai.config import Config
from pacs_ai.deliver.courier import Courier
from pacs_ai.deliver.notary import Notary
from pacs_ai.errors import UserError
from pacs_ai.profiles import encodings
from pacs_ai.states import JobState
from pacs_ai.store import clock, orders, outbox, queue, retraction, schema
from pacs_ai.store.enqueue import Address
from pacs_ai.store.files import Files

pytestmark = pytest.mark.parametrize("database", ["sqlite"], indirect=True)
#: What a report needs of its images.
WHOSE = {
    "PatientName": "Doe^Jane",
    "PatientBirthDate": "19700101",
    "PatientSex": "F",
    "StudyDate": "20260101",
    "StudyTime": "120000",
    "AccessionNumber": "A",
    "StudyID": "1",
    "ReferringPhysicianName": "",
}


@pytest.fixture
def peer():
    started = CommittingPeer()
    started.start()
    yield started
    started.stop()


@pytest.fixture
def files(tmp_path):
    return Files(tmp_path / "store" / "files")


@pytest.fixture
def patience():
    """How long an answer is waited for, in seconds."""
    return 60


@pytest.fixture
def config(tmp_path, peer, patience):
    table = {"name": "pacs", "ae_title": peer.ae_title, "host": "127.0.0.1", "port": peer.port, "verify_patient": True}
    given = {"store": {"folder": tmp_path / "store"}, "peer": [table | {"answer_seconds": patience}]}
    return Config.model_validate(given)


@pytest.fixture
def courier(config, stations, files):
    return Courier(config, stations.database, files, ME)


@pytest.fixture
def destination(peer):
    return Address("pacs", peer.ae_title, "127.0.0.1", peer.port, PLAN)


def deliver(stations, courier):
    """Send what is due in one round."""
    held = outbox.claim(stations.database, "pacs", ME)
    assert held is not None
    courier.serve(held)


def refused(stations, sender, files, config, destination):
    """Have a job refused, and the report that says so in the outbox; returns the job."""
    sender.send("1", (1, 2), **WHOSE)
    keep_sources(files, sender)
    work = stations.work(stations.complete("1"), report_not_analysed=True, destinations=(destination,))
    job_id, _ = stations.enqueue(work)
    queue.refuse(stations.database, stations.claim(), "gantry tilt")
    assert Notary(config, stations.database, files, ME).step()
    return job_id


def analysed(stations, files, destination, source, **whose):
    """Have a job of a series done; returns the UIDs of its two results."""
    stations.enqueue(stations.work(source, destinations=(destination,)))
    job_id = finish_with(stations, files, encodings([PLAN]), **whose)
    return [row.sop_instance_uid for row in stations.rows(schema.result, schema.result.c.job_id == job_id)]


def test_DEL_10_a_report_of_no_analysis_for_another_patient_is_held(
    stations, sender, files, config, courier, destination, peer
):
    peer.patients["1.2.9.7"] = "P2"
    job_id = refused(stations, sender, files, config, destination)
    deliver(stations, courier)
    assert stations.deliveries() == ["held"]
    assert peer.received == []
    orders.cancel(stations.database, job_id, actor="operator")
    assert stations.deliveries() == ["cancelled"]
    assert stations.jobs() == [JobState.REFUSED]
    with pytest.raises(UserError, match="there is nothing to cancel"):
        orders.cancel(stations.database, job_id, actor="operator")


def test_DEL_10_a_report_of_no_analysis_goes_to_its_patient(
    stations, sender, files, config, courier, destination, peer
):
    peer.patients["1.2.9.7"] = "P1"
    refused(stations, sender, files, config, destination)
    deliver(stations, courier)
    assert stations.deliveries() == ["sent"]


@pytest.mark.parametrize("hides", [True, False])
def test_DEL_10_notes_of_retraction_follow_what_they_withdraw(
    stations, source, files, config, courier, destination, peer, hides
):
    peer.patients["1.2.9.7"] = "P1"
    analysed(stations, files, destination, source)
    (job_id,) = [row.id for row in stations.rows(schema.job)]
    deliver(stations, courier)
    assert stations.deliveries() == ["sent", "sent"]
    peer.patients["1.2.9.7"], queried = "P2", peer.queried
    honours = {"pacs": hides}
    retraction.retract(stations.database, job_id, reason="safety", because="wrong", honours=honours, actor="operator")
    assert Notary(config, stations.database, files, ME).step()
    deliver(stations, courier)
    assert set(stations.deliveries()[2:]) == {"sent"}
    assert peer.queried == queried


def test_DEL_10_a_series_that_came_under_another_patient_than_its_study_is_held(
    stations, sender, files, courier, destination, peer
):
    sender.send("1", (1,), PatientID="P1")
    sender.send("2", (1,), PatientID="P2")
    peer.patients["1.2.9.7"] = "P1"
    right = analysed(stations, files, destination, stations.complete("1"), patient="P1")
    analysed(stations, files, destination, stations.complete("2"), patient="P2")
    deliver(stations, courier)
    assert stations.deliveries() == ["sent", "sent", "held", "held"]
    assert peer.received == right
    reason = stations.rows(schema.delivery)[2].reason
    assert "under another Patient ID" in reason
    assert "P1" not in reason
    assert "P2" not in reason


def test_DEL_10_a_study_that_was_sent_again_under_its_new_patient_goes_through(
    stations, sender, files, courier, destination, peer
):
    sender.send("1", (1, 2), PatientID="P1")
    stations.complete("1")
    peer.patients["1.2.9.7"] = "P2"
    sender.send("1", (1, 2), PatientID="P2", assoc="a2")
    orders.resolve(stations.database, "1.2.3.1", keep="latest", actor="operator")
    uids = analysed(stations, files, destination, stations.complete("1"), patient="P2")
    deliver(stations, courier)
    assert stations.deliveries() == ["sent", "sent"]
    assert peer.received == uids


def test_DEL_10_a_patient_whose_letters_are_not_ascii_is_the_same(stations, source, files, courier, destination, peer):
    whose = {"patient": "Ä-17", "character_set": "ISO_IR 192"}
    peer.patients["1.2.9.7"] = "Ä-17"
    analysed(stations, files, destination, source, **whose)
    deliver(stations, courier)
    assert stations.deliveries() == ["sent", "sent"]


@pytest.mark.parametrize("harm", ["missing", "no DICOM file", "unreadable"])
def test_DEL_10_a_file_that_does_not_say_whose_it_is_fails_alone(
    stations, source, files, courier, destination, peer, harm
):
    peer.patients["1.2.9.7"] = "P1"
    _, whole = analysed(stations, files, destination, source)
    harmed = files.path(stations.rows(schema.result)[0].sha256)
    content = harmed.read_bytes()
    harmed.unlink()
    if harm != "missing":
        harmed.write_bytes(content[:140] if harm == "unreadable" else b"nothing")
    deliver(stations, courier)
    assert stations.deliveries() == ["failed", "sent"]
    assert "cannot be sent; `pacs-ai retry 1` makes it anew" in stations.rows(schema.delivery)[0].reason
    assert peer.received == [whole]


class Merged(dict):
    """Whose the studies 1 and 2 are at a peer; once it has received something, the second is another's."""

    def __init__(self, peer):
        super().__init__()
        self.peer = peer

    def items(self):
        return [("1.2.9.1", "P1"), ("1.2.9.2", "P2" if self.peer.received else "P1")]


@pytest.fixture
def studies(stations, sender, files, destination, peer):
    """Have a done job in each of so many studies, 1.2.9.1 and so on; returns the UIDs of its two results by study."""

    def make(count):
        made = {}
        for number in range(len(stations.jobs()) + 1, len(stations.jobs()) + count + 1):
            name = str(number)
            sender.send(name, (1,), study=name)
            peer.patients[f"1.2.9.{name}"] = "P1"
            made[f"1.2.9.{name}"] = analysed(stations, files, destination, stations.complete(name), study=name)
        return made

    return make


def failures(stations):
    return stations.rows(schema.destination)[0].failures


def test_DEL_10_each_study_is_asked_about_right_before_its_results_go(stations, studies, courier, peer):
    made = studies(2)
    peer.patients = Merged(peer)
    deliver(stations, courier)
    assert stations.deliveries() == ["sent", "sent", "held", "held"]
    assert peer.received == made["1.2.9.1"]


@pytest.mark.parametrize(("way", "patience"), [("poison", 60), ("mute", 5)])
def test_DEL_09_a_study_about_which_the_peer_breaks_off_waits_alone(stations, studies, courier, peer, way):
    made = studies(4)
    getattr(peer, way).add("1.2.9.2")
    deliver(stations, courier)
    assert stations.deliveries() == ["sent"] * 2 + ["waiting"] * 2 + ["sent"] * 4
    assert peer.asked == list(made)
    assert failures(stations) == 0
    waiting = stations.rows(schema.delivery, schema.delivery.c.state == "waiting")
    assert all("whose the study is was asked in vain: COMMITTER at" in row.reason for row in waiting)
    assert all(row.due_at > clock.now() for row in waiting)
    assert not any(row.doubtful for row in waiting)
    getattr(peer, way).clear()


def test_DEL_09_a_study_about_which_the_peer_breaks_off_each_time_holds_up_none_that_comes_later(
    stations, studies, courier, peer, wall
):
    wall.stop()
    made = studies(1)
    peer.poison.update(made)
    waits = [serve_next(stations, courier, wall) for _ in range(8)]
    assert all(later >= 1.5 * earlier for earlier, later in pairwise(waits[1:6])), "its own wait grows"
    assert failures(stations) == 0
    later = studies(3)
    assert serve_next(stations, courier, wall) == 0
    assert peer.received == [uid for uids in later.values() for uid in uids]
    assert all(row.waited_seconds == 0 for row in stations.rows(schema.delivery, schema.delivery.c.state == "sent"))
    peer.poison.clear()
    for _ in range(2):  # its segmentation and its report wait each by themselves
        if "waiting" in stations.deliveries():
            serve_next(stations, courier, wall)
    assert set(stations.deliveries()) == {"sent"}


def test_DEL_09_two_studies_about_which_the_peer_breaks_off_hold_up_the_others_for_one_probe(
    stations, studies, courier, peer, wall
):
    wall.stop()
    made = studies(6)
    peer.poison.update(list(made)[:2])
    waits = []
    while stations.deliveries().count("waiting") > 4:
        waits.append(serve_next(stations, courier, wall))
    assert sum(waits) <= 30
    assert failures(stations) == 0


def test_DEL_09_a_peer_that_breaks_off_whatever_it_is_asked_is_asked_ever_more_rarely(
    stations, studies, courier, peer, wall
):
    wall.stop()
    made = studies(12)
    peer.poison.update(made)
    waits = [serve_next(stations, courier, wall) for _ in range(12)]
    assert len(peer.asked) == 13, "two in the first round, then one to see whether it is there again"
    assert failures(stations) == 12
    assert all(later >= 1.5 * earlier for earlier, later in pairwise(waits[1:6]))
    assert waits[-1] >= 0.8 * clock.LONGEST_WAIT
    assert peer.received == []
    peer.poison.clear()
    seconds = 0.0
    while "waiting" in stations.deliveries():
        seconds += serve_next(stations, courier, wall)
    assert seconds <= 2 * clock.LONGEST_WAIT
    assert set(stations.deliveries()) == {"sent"}
