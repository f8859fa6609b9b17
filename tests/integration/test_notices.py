"""A series that could not be analysed gets a report that says so and why, where its route asks for that, and once."""

from __future__ import annotations

from dataclasses import replace

import pytest
import sqlalchemy as sa
from objects import SEG_AND_SR
from pydicom import Dataset, dcmread
from pydicom.uid import BasicTextSRStorage
from stations import ARCHIVE, BACKOFF, DEAD, ME, PACS
from stored_results import finish_with, keep_sources, kinds

from pacs_ai.config import Config
from pacs_ai.deliver.courier import Courier
from pacs_ai.deliver.notary import Notary
from pacs_ai.errors import OutOfResources
from pacs_ai.states import JobState
from pacs_ai.store import concerns, journal, notices, orders, outbox, queue, replacing, schema
from pacs_ai.store.clock import now
from pacs_ai.store.enqueue import Address
from pacs_ai.store.files import Files
from pacs_ai.store.owners import Watch

CARD = {"name": "CT lung", "title": "Lungs", "manufacturer": "makers", "clearance": "PRODUCT", "intended_use": "trials"}


@pytest.fixture
def files(tmp_path):
    return Files(tmp_path / "store" / "files")


@pytest.fixture
def config(tmp_path):
    return Config.model_validate({"store": {"folder": tmp_path / "store"}})


@pytest.fixture
def notary(stations, files, config):
    return Notary(config, stations.database, files, ME)


@pytest.fixture
def work(stations, sender, files, source):
    """Work for two destinations, whose route asks for the notice."""
    keep_sources(files, sender)
    return stations.work(source, destinations=(PACS, ARCHIVE), report_not_analysed=True, card=CARD)


def refuse(stations, words="3 of 120 slices are missing"):
    queue.refuse(stations.database, stations.claim(), words)


def crash(stations):
    for _ in range(3):
        queue.crashed(stations.database, stations.claim(), "out of memory")
        stations.make_due()


def make_all(notary):
    count = 0
    while notary.step():
        count += 1
    return count


def report(stations, files, number=-1) -> Dataset:
    row = stations.rows(schema.result)[number]
    return dcmread(files.path(row.sha256))


def texts(ds):
    found = [str(ds.TextValue)] if "TextValue" in ds else []
    return found + [text for item in ds.get("ContentSequence", ()) for text in texts(item)]


def events(stations, job_id):
    with stations.database.read() as connection:
        return [entry.event for entry in journal.of(connection, "job", job_id)]


def test_a_refused_job_is_told_to_its_destinations(stations, files, notary, work):
    job_id, _ = stations.enqueue(work)
    refuse(stations)
    assert make_all(notary) == 1
    assert make_all(notary) == 0
    assert kinds(stations, "pacs", "waiting") == kinds(stations, "archive", "waiting") == ["not-analysed basic-text"]
    ds = report(stations, files)
    assert ds.SOPClassUID == BasicTextSRStorage
    assert (ds.PatientID, ds.StudyInstanceUID) == ("P1", "1.2.9.7")
    assert ds.ContentQualification == "PRODUCT"
    assert "Lungs" in ds.SeriesDescription
    assert any("3 of 120 slices are missing" in text for text in texts(ds))
    cited = ds.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[0].ReferencedSOPSequence
    assert sorted(item.ReferencedSOPInstanceUID for item in cited) == ["1.2.3.1.1", "1.2.3.1.2"]
    assert events(stations, job_id)[-2:] == ["notice ordered", "notice made"]
    stations.deliver_all()
    assert stations.jobs() == [JobState.REFUSED]


def test_a_failed_job_too_and_one_that_crashed_three_times(stations, notary, work):
    stations.enqueue(work)
    crash(stations)
    assert stations.jobs() == [JobState.FAILED]
    assert make_all(notary) == 1
    assert stations.rows(schema.notice)[0].cause == "failed"


def test_and_one_whose_worker_died_for_the_third_time(stations, notary, work):
    stations.enqueue(work)
    for _ in range(3):
        stations.claim(DEAD)
        queue.sweep(stations.database, Watch(), ME)
    assert stations.jobs() == [JobState.FAILED]
    assert make_all(notary) == 1


def test_a_job_that_no_worker_ever_saw_is_told_too(stations, files, notary, work, source):
    """The router refuses it: an input is missing, or the pipeline is disabled and has no card."""
    stations.enqueue(replace(work, refusal="pipeline ct-lung is disabled: no such file", pipeline_version="", card={}))
    assert make_all(notary) == 1
    ds = report(stations, files)
    assert "ct-lung" in ds.SeriesDescription
    assert ds.ContentQualification == "RESEARCH"


def test_nothing_is_said_where_no_route_asks(stations, notary, work):
    stations.enqueue(replace(work, report_not_analysed=False))
    refuse(stations)
    assert make_all(notary) == 0
    assert stations.rows(schema.notice) == []


def test_of_two_routes_the_one_that_asks_is_told_also_when_it_comes_later(stations, notary, work):
    stations.enqueue(replace(work, destinations=(ARCHIVE,), report_not_analysed=False))
    refuse(stations)
    stations.enqueue(replace(work, destinations=(PACS,), route="second"))
    make_all(notary)
    assert kinds(stations, "pacs", "waiting") == ["not-analysed basic-text"]
    assert kinds(stations, "archive", "waiting") == []
    stations.enqueue(replace(work, destinations=(ARCHIVE,), route="third"))
    stations.enqueue(replace(work, destinations=(ARCHIVE,), route="third"))
    make_all(notary)
    assert kinds(stations, "archive", "waiting") == ["not-analysed basic-text"]
    assert len(stations.rows(schema.delivery)) == 2


def test_images_of_two_patients_get_no_notice_in_either_s_study(stations, sender, files, notary, caplog):
    sender.send(numbers=[1])
    sender.send(numbers=[2], PatientID="P2")
    keep_sources(files, sender)
    job_id, _ = stations.enqueue(stations.work(stations.complete(), report_not_analysed=True))
    refuse(stations, "the images carry more than one Patient ID")
    make_all(notary)
    assert stations.rows(schema.delivery) == []
    assert events(stations, job_id)[-1] == "notice given up"
    assert "more than one patient" in stations.rows(schema.notice)[0].problem
    assert "P2" not in caplog.text


def test_images_that_cannot_be_read_are_left_out_and_if_none_is_left_nothing_is_said(stations, files, notary, work):
    stations.enqueue(work)
    shas = [row.sha256 for row in stations.rows(schema.instance)]
    files.path(shas[0]).chmod(0o600)
    files.path(shas[0]).write_bytes(b"no DICOM")
    refuse(stations)
    make_all(notary)
    cited = report(stations, files).CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[0]
    assert len(cited.ReferencedSOPSequence) == 1
    files.remove(shas[0])
    files.remove(shas[1])
    orders.retry(stations.database, 1, actor="operator")
    refuse(stations, "its files are gone")
    make_all(notary)
    assert "none of its images can be read" in stations.rows(schema.notice)[-1].problem


def test_a_notice_that_was_delivered_is_the_predecessor_of_the_result(stations, files, notary, work):
    job_id, _ = stations.enqueue(work)
    refuse(stations)
    make_all(notary)
    stations.deliver_all()
    orders.retry(stations.database, job_id, actor="operator")
    with stations.database.read() as connection:
        assert [one.kind for one in replacing.delivered_reports(connection, job_id)] == ["not-analysed"]
    finish_with(stations, files, SEG_AND_SR)
    assert kinds(stations, "pacs", "waiting") == ["segmentation binary", "report comprehensive-3d"]
    assert kinds(stations, "pacs", "sent") == ["not-analysed basic-text"]


def test_and_of_the_next_revision_s(stations, sender, notary, work):
    stations.enqueue(work)
    refuse(stations)
    make_all(notary)
    stations.deliver_all()
    sender.send(numbers=[3], assoc="a2")
    later, _ = stations.enqueue(stations.work(stations.complete()))
    with stations.database.read() as connection:
        assert [one.kind for one in replacing.delivered_reports(connection, later)] == ["not-analysed"]


@pytest.mark.parametrize("made", [False, True])
def test_what_was_not_said_yet_is_taken_back_when_the_job_is_tried_again(stations, files, notary, work, made):
    job_id, _ = stations.enqueue(work)
    refuse(stations)
    if made:
        make_all(notary)
    orders.retry(stations.database, job_id, actor="operator")
    assert make_all(notary) == 0
    assert set(stations.deliveries()) == ({"cancelled"} if made else set())


def test_refused_again_for_the_same_reason_says_nothing_new(stations, notary, work):
    job_id, _ = stations.enqueue(work)
    for words, said in (("a gap", 1), ("a gap", 1), ("a tilt", 2)):
        refuse(stations, words)
        make_all(notary)
        stations.deliver_all()
        assert len(kinds(stations, "pacs", "sent")) == said
        orders.retry(stations.database, job_id, actor="operator")
    uids = {row.sop_instance_uid for row in stations.rows(schema.result)}
    assert len(uids) == 2


@pytest.mark.parametrize(
    "seen", ["retried", "set aside", "cancelled before it was made", "cancelled before it was sent"]
)
def test_what_was_never_said_is_said_when_the_job_is_refused_again_for_the_same_reason(stations, notary, work, seen):
    job_id, _ = stations.enqueue(work)
    refuse(stations, "a gap")
    if seen in {"retried", "set aside"}:
        order = notices.next_order(stations.database)
        notices.give_up(stations.database, order, "none of its images can be read", actor=ME)
    elif seen == "cancelled unsent":
        make_all(notary)
    if seen != "retried":
        orders.cancel(stations.database, job_id, actor="operator")
        assert events(stations, job_id)[-1] == "set aside" or stations.deliveries() == ["cancelled"] * 2
    orders.retry(stations.database, job_id, actor="operator")
    refuse(stations, "a gap")
    assert make_all(notary) == 1
    assert kinds(stations, "pacs", "waiting") == kinds(stations, "archive", "waiting") == ["not-analysed basic-text"]
    with stations.database.read() as connection:
        assert concerns.of_jobs(connection) == []


def test_a_job_that_was_said_to_have_no_result_before_it_was_cancelled_is_not_said_so_twice(stations, notary, work):
    job_id, _ = stations.enqueue(work)
    crash(stations)
    make_all(notary)
    stations.deliver_all()
    orders.cancel(stations.database, job_id, actor="operator")
    orders.retry(stations.database, job_id, actor="operator")
    crash(stations)
    assert make_all(notary) == 0


@pytest.mark.parametrize("end", [queue.refuse, queue.fail])
def test_a_report_that_is_not_made_within_ten_minutes_is_shown(stations, work, wall, end):
    job_id, _ = stations.enqueue(work)
    end(stations.database, stations.claim(), "a gap")
    with stations.database.read() as connection:
        assert concerns.of_jobs(connection) == []
    wall.forward(minutes=11)
    with stations.database.read() as connection:
        (one,) = concerns.of_jobs(connection)
    assert (one.words, one.advice) == (
        "was not analysed, and archive, pacs is not told yet",
        f"see the log of deliver, or pacs-ai cancel {job_id} to leave it so",
    )
    orders.cancel(stations.database, job_id, actor="operator")
    with stations.database.read() as connection:
        assert concerns.of_jobs(connection) == []
    assert notices.next_order(stations.database) is None


def test_taken_back_and_refused_again_is_said_after_all(stations, notary, work):
    job_id, _ = stations.enqueue(work)
    refuse(stations, "a gap")
    make_all(notary)
    orders.retry(stations.database, job_id, actor="operator")
    refuse(stations, "a gap")
    make_all(notary)
    assert kinds(stations, "pacs", "waiting") == ["not-analysed basic-text"]


def test_of_two_that_make_the_same_one_does(stations, files, config, work):
    stations.enqueue(work)
    refuse(stations)
    one, two = (Notary(config, stations.database, files, ME) for _ in range(2))
    wanted = notices.next_order(stations.database)
    encoded = one._encode(wanted)
    again = two._encode(wanted)
    assert [part.to_bytes() for part in encoded] == [part.to_bytes() for part in again]
    assert notices.made(stations.database, wanted, one._store(encoded), actor=ME)
    assert not notices.made(stations.database, wanted, two._store(again), actor=ME)
    assert len(stations.rows(schema.result)) == 1


@pytest.mark.parametrize(("owner", "name"), [(Notary, "_encode"), (notices, "made")])
def test_a_full_disk_postpones_it_and_an_odd_fault_gives_it_up_in_the_end(
    stations, files, notary, work, monkeypatch, owner, name
):
    stations.enqueue(work)
    refuse(stations)
    with monkeypatch.context() as broken:
        broken.setattr(files, "write", _raise(OutOfResources("the disk is full")))
        assert notary.step()
    assert notices.next_order(stations.database) is None, "it waits"
    assert stations.rows(schema.notice)[0].ended_at is None
    with monkeypatch.context() as broken:
        broken.setattr(owner, name, _raise(ZeroDivisionError()))
        for _ in range(5):
            _make_due(stations)
            notary.step()
    assert "unexpected ZeroDivisionError" in stations.rows(schema.notice)[0].problem
    _make_due(stations)
    assert make_all(notary) == 0


def _raise(error):
    def call(*_arguments, **_options):
        raise error

    return call


def _make_due(stations):
    with stations.database.write() as connection:
        connection.execute(sa.update(schema.notice).values(due_at=now()))


def test_the_courier_makes_and_delivers_it(stations, files, config, work, keeping_peer, wait_until):
    to = Address("pacs", keeping_peer.ae_title, "127.0.0.1", keeping_peer.port, PACS.plan)
    stations.enqueue(replace(work, destinations=(to,)))
    refuse(stations)
    peer = {"name": "pacs", "ae_title": keeping_peer.ae_title, "host": "127.0.0.1", "port": keeping_peer.port}
    named = Config.model_validate({"store": {"folder": config.store.folder}, "peer": [peer]})
    courier = Courier(named, stations.database, files, ME)

    def delivered():
        courier.step()
        return "sent" in stations.deliveries()

    wait_until(delivered, what="the notice in the PACS")
    courier.join(60)
    (uid,) = keeping_peer.stored
    ds = dcmread(keeping_peer.path(uid))
    assert any("3 of 120 slices are missing" in text for text in texts(ds))


def test_one_that_takes_no_text_report_fails_and_says_so(stations, notary, work):
    stations.enqueue(work)
    refuse(stations)
    make_all(notary)
    held = outbox.claim(stations.database, "pacs", ME)
    assert outbox.not_accepted(stations.database, held, held.parcels[0], None, "does not accept it") == ""
    outbox.put_back(stations.database, held, reached=True, reason="", backoff=BACKOFF)
    assert kinds(stations, "pacs", "failed") == ["not-analysed basic-text"]


@pytest.mark.parametrize("how", ["the peer broke off", "the courier died", "an operator cancelled it"])
def test_what_was_not_said_since_it_was_tried_again_amid_its_delivery_is_said_after_all(stations, notary, work, how):
    """The job comes to the same end again."""
    database = stations.database
    job_id, _ = stations.enqueue(replace(work, destinations=(PACS,)))
    refuse(stations)
    assert make_all(notary) == 1
    held = outbox.claim(database, "pacs", DEAD if how == "the courier died" else ME)
    if how == "an operator cancelled it":
        orders.cancel(database, job_id, actor=ME)
    else:
        orders.retry(database, job_id, actor=ME)
    if how == "the courier died":
        assert outbox.sweep(database, Watch(), ME) == 1
    else:
        outbox.postponed(database, held, held.parcels[0], None, "connection lost", BACKOFF)
        outbox.put_back(database, held, reached=False, reason="connection lost", backoff=BACKOFF)
    if how == "an operator cancelled it":
        orders.retry(database, job_id, actor=ME)
    assert stations.deliveries() == ["cancelled"]
    refuse(stations)
    assert make_all(notary) == 1
    assert stations.deliveries()[-1] == "waiting"
