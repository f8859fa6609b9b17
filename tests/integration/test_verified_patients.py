"""Whose a study is, asked of the peer before a result of it goes there."""

from __future__ import annotations

import pytest
from commitment_bed import PLAN
from committing_peer import CommittingPeer
from stations import ME
from stored_results import finish_with, keep_sources

from pacs_ai.config import Config
from pacs_ai.deliver.courier import Courier
from pacs_ai.deliver.notary import Notary
from pacs_ai.errors import UserError
from pacs_ai.profiles import encodings
from pacs_ai.states import JobState
from pacs_ai.store import orders, outbox, queue, retraction, schema
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
def config(tmp_path, peer):
    table = {"name": "pacs", "ae_title": peer.ae_title, "host": "127.0.0.1", "port": peer.port, "verify_patient": True}
    return Config.model_validate({"store": {"folder": tmp_path / "store"}, "peer": [table]})


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
