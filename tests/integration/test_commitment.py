"""Delivered means confirmed where the peer commits to it: what it keeps, loses, never answers, or answers twice."""

from __future__ import annotations

import struct
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa
from commitment_bed import PLAN
from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from stations import ME

from pacs_ai.config import Config
from pacs_ai.deliver import command, confirmer, inquiry
from pacs_ai.deliver.confirmer import Confirmer
from pacs_ai.deliver.connection import Remote
from pacs_ai.dicom import commitment
from pacs_ai.dicom.arrival import AssociationInfo
from pacs_ai.dicom.commitment import Report, Request
from pacs_ai.doctor import network
from pacs_ai.errors import NotOffered, NotUnderstood, Unavailable
from pacs_ai.receive.commitment import services
from pacs_ai.receive.ingest import DurableIngest
from pacs_ai.receive.process import listen
from pacs_ai.receive.scp import Receiver
from pacs_ai.receive.service import N_EVENT_REPORT_RQ, ServiceRequest
from pacs_ai.states import DeliveryState
from pacs_ai.store import commitments, journal, pledges, resending, retention, retraction, schema
from pacs_ai.store.clock import LONGEST_WAIT, now
from pacs_ai.store.commitments import Verdict
from pacs_ai.store.enqueue import Address
from pacs_ai.store.files import Files

#: What differs between the databases is shown by the other tests.
sqlite = pytest.mark.parametrize("database", ["sqlite"], indirect=True)


@pytest.fixture
def make_bed(make_commitment_bed):
    return make_commitment_bed


@sqlite
def test_DEL_07_a_delivery_is_confirmed_only_by_the_peer_s_answer(make_bed, make_committer):
    bed = make_bed(make_committer())
    bed.deliver()
    assert bed.stations.deliveries() == ["sent", "sent"]
    assert bed.step()
    assert bed.stations.deliveries() == ["confirmed", "confirmed"]
    assert not bed.step()
    (request,) = bed.peer.requests
    assert [str(one.ReferencedSOPInstanceUID) for one in request.ReferencedSOPSequence] == bed.uids
    assert str(request.TransactionUID).startswith("2.25.")
    assert bed.peer.wait_for(1) == [0x0000]
    assert {row.reason for row in bed.rows} == {"the peer committed to keep it"}
    with bed.stations.database.read() as connection:
        events = [entry.event for entry in journal.of(connection, "delivery", bed.rows[0].id)]
    assert events == ["enqueued", "claimed", "accepted", "confirmed"]


@sqlite
def test_a_peer_without_the_setting_is_not_asked(make_bed, make_committer):
    bed = make_bed(make_committer(), commitment=False)
    bed.deliver()
    assert not bed.step()
    assert bed.stations.deliveries() == ["sent", "sent"]


def test_DEL_07_what_the_peer_lost_is_sent_again_and_confirmed(make_bed, make_committer):
    bed = make_bed(make_committer())
    lost = bed.uids[1]
    bed.peer.losing[lost] = 1
    bed.deliver()
    bed.step()
    assert bed.stations.deliveries() == ["confirmed", "sent"]
    assert "looked for again" in bed.rows[1].reason
    assert not bed.step(), "the peer may show it in a while"
    bed.due()
    bed.step()
    assert bed.stations.deliveries() == ["confirmed", "waiting"]
    assert "0x0112" in bed.rows[1].reason
    bed.deliver()
    bed.step()
    assert bed.stations.deliveries() == ["confirmed", "confirmed"]
    assert bed.peer.received == [*bed.uids, lost]
    assert len({str(one.TransactionUID) for one in bed.peer.requests}) == 3


@sqlite
def test_DEL_07_what_the_peer_loses_again_and_again_needs_a_person(make_bed, make_committer):
    bed = make_bed(make_committer())
    bed.peer.losing[bed.uids[0]] = commitments.MOST_LOSSES
    for loss in range(commitments.MOST_LOSSES):
        bed.deliver()
        before = datetime.now(UTC)
        bed.step()
        asked_again = bed.rows[0].confirm_at
        seconds = LONGEST_WAIT / 2 ** (commitments.MOST_LOSSES - 1 - loss)
        assert before <= asked_again - timedelta(seconds=seconds) <= datetime.now(UTC), "the waits grow"
        bed.due()
        bed.step()
    assert bed.stations.deliveries() == ["failed", "confirmed"]
    assert "delivered 3 times, and then not there" in bed.rows[0].reason
    resending.retry(bed.stations.database, [bed.rows[0].id], actor=ME)
    bed.deliver()
    bed.step()
    assert bed.stations.deliveries() == ["confirmed", "confirmed"]


def test_DEL_07_a_peer_that_never_answers_is_looked_at(make_bed, make_committer):
    bed = make_bed(make_committer(answers="never"))
    bed.peer.losing[bed.uids[0]] = 1
    bed.deliver()
    bed.step()
    assert bed.stations.deliveries() == ["sent", "sent"]
    bed.due()
    bed.step()
    assert bed.peer.queried == 2  # each result is in a series of its own
    assert bed.stations.deliveries() == ["sent", "confirmed"]
    assert bed.rows[1].reason == "the peer shows it in a query"
    assert not bed.step(), "the peer may show it in a while"
    bed.due()
    bed.step()
    assert bed.peer.queried == 3
    assert bed.stations.deliveries() == ["waiting", "confirmed"]
    assert len(bed.peer.requests) == 1


@pytest.mark.parametrize("how", ["refuses", "does not offer"])
@sqlite
def test_DEL_07_a_peer_that_takes_no_requests_is_looked_at_at_once(make_bed, make_committer, how):
    fields = {"action_status": 0x0110} if how == "refuses" else {"commits": False}
    bed = make_bed(make_committer(**fields))
    bed.deliver()
    bed.step()
    bed.step()
    assert bed.stations.deliveries() == ["confirmed", "confirmed"]


@pytest.mark.parametrize("commits", [True, False])
@pytest.mark.parametrize("minutes", [0.1, 1, 4])
@sqlite
def test_DEL_07_a_peer_that_shows_late_what_it_took_confirms_it(make_bed, make_committer, wall, minutes, commits):
    bed = make_bed(make_committer(commits=commits, indexes=False), commitment_seconds=300)
    bed.deliver()
    delivered, ended = now(), {DeliveryState.CONFIRMED, DeliveryState.FAILED}
    while not ended.issuperset(bed.stations.deliveries()):
        assert now() < delivered + timedelta(hours=1), bed.stations.deliveries()
        if now() >= delivered + timedelta(minutes=minutes):
            bed.peer.index()
        while bed.step():
            pass
        if DeliveryState.WAITING in bed.stations.deliveries():
            bed.deliver()
        wall.forward(seconds=3)
    assert bed.stations.deliveries() == ["confirmed", "confirmed"]
    if minutes < 1:
        assert bed.peer.received == bed.uids, "nothing was sent again"


@pytest.mark.parametrize("offers_queries", [True, False])
def test_DEL_07_a_peer_that_is_there_and_breaks_off_every_request_is_looked_at(
    make_bed, make_committer, offers_queries, caplog
):
    bed = make_bed(make_committer(aborts=True, queries=offers_queries))
    bed.deliver()
    for _ in range(commitments.MOST_ASKS):
        assert not bed.step(), "it waits"
        assert bed.stations.deliveries() == ["sent", "sent"]
        bed.due()
    assert len(bed.peer.requests) == commitments.MOST_ASKS
    assert len({str(one.TransactionUID) for one in bed.peer.requests}) == 1
    assert bed.step(), "a look"
    assert len(bed.peer.requests) == commitments.MOST_ASKS
    assert bed.stations.deliveries() == (["confirmed", "confirmed"] if offers_queries else ["sent", "sent"])
    assert bed.given_up == ({} if offers_queries else {"pacs": 2})
    assert ("stay unconfirmed" in caplog.text) != offers_queries


def test_DEL_07_a_peer_that_rejects_every_association_but_deliveries_is_shown_as_unconfirmed(
    make_bed, make_committer, caplog
):
    bed = make_bed(make_committer())
    bed.deliver()
    bed.peer.stop()
    rejecting = make_committer(port=bed.peer.port, rejects=True)
    for _ in range(2 * commitments.MOST_ASKS - 1):
        assert not bed.step()
        assert bed.given_up == {}
        bed.due()
    assert not bed.step()
    assert bed.given_up == {"pacs": 2}
    assert "2 result(s) stay unconfirmed" in caplog.text
    assert "A-ASSOCIATE-RJ 1/1/7" in bed.rows[0].reason
    assert {row.confirm_at for row in bed.rows} == {None}
    assert (rejecting.requests, rejecting.queried) == ([], 0)
    with bed.stations.database.read() as connection:
        events = [entry.event for entry in journal.of(connection, "delivery", bed.rows[0].id)]
    assert events == ["enqueued", "claimed", "accepted", "unconfirmed"]


@pytest.mark.parametrize("fault", ["refuses", "aborts"])
@pytest.mark.parametrize("which", [0, 1])
def test_DEL_07_a_series_about_which_no_query_goes_through_keeps_no_other_unconfirmed(
    make_bed, make_committer, which, fault
):
    bed = make_bed(make_committer(commits=False))
    bed.deliver()
    setattr(bed.peer, fault + "_queries_of", bed.stations.rows(schema.result)[which].series_instance_uid)
    for _ in range(2 * commitments.MOST_ASKS):
        while bed.step():
            pass
        bed.due()
    states = [DeliveryState.CONFIRMED, DeliveryState.CONFIRMED]
    states[which] = DeliveryState.SENT
    assert bed.stations.deliveries() == states
    assert bed.given_up == {"pacs": 1}
    assert not bed.step()


@sqlite
def test_a_look_that_takes_long_is_gone_on_with_where_it_was(make_bed, make_committer, monkeypatch):
    bed = make_bed(make_committer(commits=False))
    bed.deliver()
    assert bed.step()
    monkeypatch.setattr(confirmer, "LOOK_SECONDS", -1.0)
    assert bed.step()
    assert bed.peer.queried == 0
    monkeypatch.setattr(confirmer, "LOOK_SECONDS", 60.0)
    assert bed.step()
    assert bed.stations.deliveries() == ["confirmed", "confirmed"]


@sqlite
def test_what_a_look_found_stands_where_the_peer_goes_away_amid_it(make_bed, make_committer, monkeypatch):
    bed = make_bed(make_committer(commits=False))
    bed.deliver()
    assert bed.step()
    find = inquiry.find

    def found_and_gone(*asked):
        found = find(*asked)
        bed.peer.stop()
        return found

    monkeypatch.setattr(inquiry, "find", found_and_gone)
    assert not bed.step()
    assert bed.stations.deliveries() == ["confirmed", "sent"]
    assert bed.rows[1].asks == 1, "nothing is counted"


@sqlite
def test_PRI_01_what_a_peer_says_of_a_request_or_a_query_stands_in_the_row_and_nowhere_else(
    make_bed, make_committer, caplog
):
    bed = make_bed(make_committer(action_status=0x0110, comment="no ZZPHI^MARKER here"))
    bed.deliver()
    bed.step()
    assert {row.comment for row in bed.rows} == {"no ZZPHI^MARKER here"}
    bed.peer.comment = "ZZPHI^MARKER is not known"
    bed.due()
    bed.step()
    assert {row.comment for row in bed.rows} == {"ZZPHI^MARKER is not known"}
    assert "refuses the request for storage commitment with 0x0110" in caplog.text
    for _ in range(2 * commitments.MOST_ASKS):
        bed.due()
        bed.step()
    assert "result(s) stay unconfirmed" in caplog.text
    assert "ZZPHI" not in caplog.text
    told = [row.reason for row in (*bed.rows, *bed.stations.rows(schema.journal))]
    assert not [words for words in told if "ZZPHI" in words]


@sqlite
def test_DEL_07_a_peer_that_neither_answers_nor_can_be_looked_at_stays_unconfirmed(make_bed, make_committer):
    bed = make_bed(make_committer(answers="never", queries=False))
    bed.deliver()
    for _ in range(commitments.MOST_ASKS):
        bed.step()  # asks
        bed.due()
        bed.step()  # looks
    bed.due()
    assert not bed.step()
    assert len(bed.peer.requests) == commitments.MOST_ASKS
    assert bed.stations.deliveries() == ["sent", "sent"]
    assert "delivered, but not confirmed" in bed.rows[0].reason
    ((peer, (count, since)),) = bed.unconfirmed.given_up.items()
    assert (peer, count) == ("pacs", 2)
    assert since == bed.rows[0].sent_at
    assert retention.forget(bed.stations.database) == 0
    with bed.stations.database.write() as connection:
        long_ago = sa.update(schema.commitment).values(asked_at=datetime.now(UTC) - timedelta(days=31))
        connection.execute(long_ago.where(schema.commitment.c.id == bed.requests[0].id + 1))
    assert retention.forget(bed.stations.database) == 1
    assert len(bed.requests) == commitments.MOST_ASKS - 1
    late = bed.peer.requests[0]  # it answers at last, and to the first of the requests
    report = Report(str(late.TransactionUID), references(bed), {})
    assert commitments.record(bed.stations.database, report, "COMMITTER", actor=ME) is Verdict.TAKEN
    assert bed.stations.deliveries() == ["confirmed", "confirmed"]


@sqlite
def test_DEL_07_a_peer_that_is_away_is_asked_later_with_the_same_transaction(make_bed, make_committer):
    bed = make_bed(make_committer())
    bed.deliver()
    bed.peer.stop()
    for _ in range(3 * commitments.MOST_ASKS):
        assert not bed.step(), "nothing is given up meanwhile"
        bed.due()
    assert [row.asks for row in bed.rows] == [0, 0]
    bed.peer.start()
    bed.step()
    assert bed.stations.deliveries() == ["confirmed", "confirmed"]
    assert [row.transaction_uid for row in bed.requests] == [str(bed.peer.requests[0].TransactionUID)]


def plans(database, act):
    """Return how SQLite finds what each query asks for that `act` puts."""
    asked = []

    def note(*told):
        asked.append(told[2:4])

    sa.event.listen(database.engine, "before_cursor_execute", note)
    act()
    sa.event.remove(database.engine, "before_cursor_execute", note)
    with database.read() as connection:
        return [
            connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters).all()[0][3]
            for statement, parameters in asked
            if statement.startswith("SELECT")
        ]


@sqlite
def test_what_is_due_is_found_without_a_look_at_all_that_was_ever_sent(make_bed, make_committer):
    bed = make_bed(make_committer())
    database = bed.stations.database
    bed.deliver()

    def look():
        with database.read() as connection:
            assert commitments.due_peers(connection) == ["pacs"]
            assert pledges.due_peers(connection) == []

    peers, pledging = plans(database, look)
    assert peers == "SEARCH delivery USING COVERING INDEX ix_delivery_confirm (state=?)"
    assert pledging == "SCAN pledge USING COVERING INDEX ix_pledge_open"
    longest, locked, *_ = plans(database, lambda: commitments.take(database, "pacs"))
    assert longest.startswith("SEARCH delivery USING COVERING INDEX ix_delivery_confirm (state=? AND peer=?")
    assert "ix_delivery_state_peer" not in locked


@sqlite
def test_a_request_that_was_cut_off_is_made_again_as_the_same_one(make_bed, make_committer):
    bed = make_bed(make_committer())
    bed.deliver()
    step = commitments.take(bed.stations.database, "pacs")  # and the process dies
    assert commitments.take(bed.stations.database, "pacs") is None
    bed.due()
    again = commitments.take(bed.stations.database, "pacs")
    assert again == step


@sqlite
def test_a_fault_amid_a_request_is_noted_and_it_is_made_again(make_bed, make_committer, monkeypatch, caplog):
    bed = make_bed(make_committer())
    bed.deliver()
    with monkeypatch.context() as broken:
        broken.setattr(inquiry, "ask", _odd)
        bed.confirmer.look()
        bed.confirmer.join(60)
    assert [record.levelname for record in caplog.records if record.name.startswith("pacs_ai")] == ["ERROR"]
    assert "not confirmed, asked again later: unexpected KeyError in _odd" in caplog.text
    assert "Doe" not in caplog.text
    assert not bed.step(), "it waits"
    bed.due()
    bed.step()
    assert bed.stations.deliveries() == ["confirmed", "confirmed"]


def _odd(*_arguments, **_options):
    raise KeyError("Doe^Jane")


def reported(bed, report, calling="COMMITTER", syntax=ExplicitVRLittleEndian, type_id=None):
    """Answer on an association of the peer's own; returns the status that the node answers."""
    association = AssociationInfo("a9", calling, "PACS_AI", "127.0.0.1", datetime.now(UTC))
    service = services(bed.config, bed.stations.database, ME)[commitment.SOP_CLASS_UID, N_EVENT_REPORT_RQ]
    request = ServiceRequest(
        association,
        commitment.SOP_CLASS_UID,
        syntax,
        N_EVENT_REPORT_RQ,
        commitment.SOP_CLASS_UID,
        commitment.SOP_INSTANCE_UID,
        report.event_type_id if type_id is None else type_id,
        commitment.encode_report(report, syntax),
    )
    return service(request).status


def references(bed):
    return [(one.sop_class_uid, one.sop_instance_uid) for one in bed.stations.rows(schema.result)]


def asked(bed):
    """Deliver and ask a peer that does not answer by itself; returns its good answer."""
    bed.deliver()
    bed.step()
    (row,) = bed.requests
    return Report(row.transaction_uid, references(bed), {})


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
@sqlite
def test_DEL_07_an_answer_on_a_new_association_confirms_and_a_replay_changes_nothing(make_bed, make_committer, syntax):
    bed = make_bed(make_committer(answers="never"))
    report = asked(bed)
    assert reported(bed, report, syntax=syntax) == 0x0000
    assert bed.stations.deliveries() == ["confirmed", "confirmed"]
    journaled = len(bed.stations.rows(schema.journal))
    contrary = Report(report.transaction_uid, [], dict.fromkeys(report.kept, 0x0112))
    assert reported(bed, report) == 0x0000
    assert reported(bed, contrary) == 0x0000
    assert bed.stations.deliveries() == ["confirmed", "confirmed"]
    assert len(bed.stations.rows(schema.journal)) == journaled


def test_DEL_07_an_answer_to_an_unknown_transaction_or_from_a_stranger_changes_nothing(make_bed, make_committer):
    bed = make_bed(make_committer(answers="never"))
    report = asked(bed)
    assert reported(bed, Report("2.25.1", report.kept, {})) == 0x0115
    assert reported(bed, report, calling="STRANGER") == 0x0115
    assert reported(bed, report, type_id=3) == 0x0113
    assert bed.stations.deliveries() == ["sent", "sent"]


@sqlite
def test_what_an_answer_leaves_out_is_asked_for_anew_and_sent_again(make_bed, make_committer):
    bed = make_bed(make_committer(answers="never"))
    report = asked(bed)
    assert reported(bed, Report(report.transaction_uid, report.kept[:1], {})) == 0x0000
    assert bed.stations.deliveries() == ["confirmed", "sent"]
    bed.due()
    bed.step()
    transaction_uid = bed.requests[-1].transaction_uid
    assert transaction_uid != report.transaction_uid
    assert reported(bed, Report(transaction_uid, report.kept[:1], {})) == 0x0000
    assert bed.stations.deliveries() == ["confirmed", "waiting"]
    assert "does not name it" in bed.rows[1].reason


#: Secondary Capture Image Storage, which none of the results is.
ANOTHER_CLASS = "1.2.840.10008.5.1.4.1.1.7"


@sqlite
def test_DEL_07_what_an_answer_names_as_another_sop_class_is_not_confirmed(make_bed, make_committer):
    bed = make_bed(make_committer(answers="never"))
    report = asked(bed)
    first, second = report.kept
    assert reported(bed, Report(report.transaction_uid, [(ANOTHER_CLASS, first[1]), second], {})) == 0x0000
    assert bed.stations.deliveries() == ["sent", "confirmed"]
    assert "names it as another SOP class" in bed.rows[0].reason


@pytest.mark.parametrize("failed_class", ["its own", ANOTHER_CLASS])
@sqlite
def test_DEL_07_what_an_answer_names_among_the_failed_is_not_confirmed_whatever_else_it_says(
    make_bed, make_committer, failed_class
):
    bed = make_bed(make_committer(answers="never"))
    report = asked(bed)
    first, second = report.kept
    kept_class = ANOTHER_CLASS if failed_class == "its own" else first[0]
    failed = (first[0] if failed_class == "its own" else failed_class, first[1])
    contrary = Report(report.transaction_uid, [(kept_class, first[1]), second], {failed: 0x0119})
    written = commitment.encode_report(contrary, ExplicitVRLittleEndian)
    assert commitment.read_report(written, ExplicitVRLittleEndian).kept == (second,)
    assert commitments.record(bed.stations.database, contrary, "COMMITTER", actor=ME) is Verdict.TAKEN
    assert bed.stations.deliveries() == ["sent", "confirmed"]
    assert "0x0119" in bed.rows[0].reason


@sqlite
def test_a_failure_of_an_older_request_does_not_undo_a_newer_delivery(make_bed, make_committer):
    bed = make_bed(make_committer(answers="never", queries=False))
    older = asked(bed)
    bed.due()
    bed.step()  # cannot be looked at, so it is asked anew
    bed.step()
    contrary = Report(older.transaction_uid, [], dict.fromkeys(older.kept, 0x0112))
    assert reported(bed, contrary) == 0x0000
    assert bed.stations.deliveries() == ["sent", "sent"]


@pytest.mark.parametrize("ae_title", ["NEWPACS", "COMMITTER"])
def test_DEL_07_a_late_answer_of_the_former_peer_does_not_confirm_what_went_to_another_address(
    make_bed, make_committer, ae_title
):
    bed, another = make_bed(make_committer(answers="never")), make_committer(ae_title=ae_title)
    bed.peer.losing[bed.uids[0]] = 1
    report = asked(bed)
    for _ in range(commitments.MISSING_TIMES):
        bed.due()
        bed.step()  # the query does not show the first, which waits then
    moved = Address("pacs", ae_title, "127.0.0.1", another.port, PLAN)
    resending.retry(bed.stations.database, [bed.rows[0].id], actor=ME, addresses={"pacs": moved})
    bed.deliver()
    assert another.received == bed.uids[:1]
    assert reported(bed, report) == 0x0000
    assert bed.stations.deliveries() == ["sent", "confirmed"]
    bed.step()
    assert bed.stations.deliveries() == ["confirmed", "confirmed"]
    assert len(another.requests) == 1, "the new one was asked"


@sqlite
def test_confirmed_results_are_retracted_as_delivered_ones(make_bed, make_committer):
    bed = make_bed(make_committer())
    bed.deliver()
    bed.step()
    done = retraction.retract(
        bed.stations.database, bed.job, reason="quality", because="a test", honours={"pacs": True}, actor=ME
    )
    assert len(done.withdrawn["pacs"]) == 2
    assert bed.stations.deliveries() == ["retracted", "retracted"]


@sqlite
def test_an_answer_after_a_retraction_changes_nothing(make_bed, make_committer):
    bed = make_bed(make_committer(answers="never"))
    report = asked(bed)
    retraction.retract(
        bed.stations.database, bed.job, reason="quality", because="a test", honours={"pacs": True}, actor=ME
    )
    assert reported(bed, report) == 0x0000
    assert bed.stations.deliveries() == ["retracted", "retracted"]


@sqlite
def test_a_peer_that_is_no_longer_asked_is_let_be(make_bed, make_committer):
    bed = make_bed(make_committer())
    bed.deliver()
    peer = bed.config.peer[0].model_copy(update={"commitment": False})
    asking = Confirmer(bed.config.model_copy(update={"peer": (peer,)}), bed.stations.database, ME)
    assert asking.step("pacs")
    assert not asking.step("pacs")
    assert bed.stations.deliveries() == [DeliveryState.SENT, DeliveryState.SENT]
    assert bed.peer.requests == []


@sqlite
def test_DEL_07_a_peer_that_is_missing_for_one_start_is_asked_once_it_is_back(make_bed, make_committer, caplog):
    bed = make_bed(make_committer())
    bed.deliver()
    without = Confirmer(bed.config.model_copy(update={"peer": ()}), bed.stations.database, ME)
    for _ in range(2 * commitments.MOST_ASKS):
        assert not without.step("pacs")
        assert not without.step("pacs"), "it waits"
        bed.due()
    assert "there is no [[peer]] called pacs" in caplog.text
    assert bed.peer.requests == []
    assert [row.asks for row in bed.rows] == [0, 0]
    assert bed.step()
    assert bed.stations.deliveries() == ["confirmed", "confirmed"]


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_what_travels_is_read_as_it_was_written(syntax):
    request = Request("2.25.7", [("1.2.840.10008.5.1.4.1.1.2", "1.2.3.4"), ("1.2.840.10008.5.1.4.1.1.4", "1.2.3.5")])
    assert commitment.read_request(commitment.encode_request(request, syntax), syntax) == Request(
        "2.25.7", tuple(request.instances)
    )
    report = Report("2.25.7", (request.instances[0],), {request.instances[1]: 0x0112})
    assert commitment.read_report(commitment.encode_report(report, syntax), syntax) == report


def test_what_has_more_elements_than_any_answer_is_not_read_into_objects(monkeypatch):
    """An answer of 100,000 instances is."""
    instances = tuple(("1.2.840.10008.5.1.4.1.1.2", f"1.2.3.{number}") for number in range(100_000))
    report = Report("2.25.7", instances, {})
    assert (
        commitment.read_report(commitment.encode_report(report, ImplicitVRLittleEndian), ImplicitVRLittleEndian)
        == report
    )

    def refuse(*_arguments, **_options):
        raise AssertionError("read into objects")

    monkeypatch.setattr(commitment, "read_dataset", refuse)
    inner = b"".join(struct.pack("<HHL", 0x0011, 0x1000 + number, 0) for number in range(50_000))
    item = struct.pack("<HHL", 0xFFFE, 0xE000, len(inner)) + inner
    bomb = struct.pack("<HHL", 0x0008, 0x1199, 13 * len(item)) + 13 * item
    with pytest.raises(NotUnderstood, match="more than 420000"):
        commitment.read_report(struct.pack("<HHL", 0x0008, 0x1195, 6) + b"1.2.3\0" + bomb, ImplicitVRLittleEndian)


@sqlite
def test_DEL_07_of_an_answer_to_what_was_not_asked_no_more_than_its_transaction_is_read(
    make_bed, make_committer, monkeypatch
):
    bed = make_bed(make_committer(answers="never"))
    report = asked(bed)

    def refuse(*_arguments, **_options):
        raise AssertionError("read into objects")

    with monkeypatch.context() as patched:
        patched.setattr(commitment, "read_dataset", refuse)
        assert reported(bed, Report("2.25.1", report.kept, {})) == 0x0115
        assert reported(bed, report, calling="STRANGER") == 0x0115
    assert reported(bed, report) == 0x0000


def test_a_transaction_that_is_no_uid_is_not_looked_for():
    """PostgreSQL refuses a NUL."""
    for raw in (b"1.2\x003.4 ", b"1.2.a "):
        data = struct.pack("<HHL", 0x0008, 0x1195, len(raw)) + raw
        with pytest.raises(NotUnderstood, match="TransactionUID"):
            commitment.transaction_of(data[:8] + raw, ImplicitVRLittleEndian)


def test_nonsense_is_not_understood():
    wrong_vr = b"\x08\x00\x95\x11UL\x06\x001.2.3\0"
    for data in (b"", b"\x08\x00\x95\x11UI\x04\x00", bytes(40), b"\xff" * 40, wrong_vr):
        with pytest.raises(NotUnderstood):
            commitment.read_report(data, ExplicitVRLittleEndian)
        with pytest.raises(NotUnderstood):
            commitment.read_request(data, ImplicitVRLittleEndian)


@pytest.fixture
def listener(stations, tmp_path):
    """The node's own listener, with its services; started by hand, since it has to know the bed's configuration."""
    running = []

    def start(config, port=0):
        files = Files(config.store.folder / "files")
        settings = listen(config, services(config, stations.database, ME))
        receiver = Receiver(replace(settings, bind="127.0.0.1", port=port), DurableIngest(files, lambda _: []))
        receiver.start()
        running.append(receiver)
        return receiver

    yield start
    for receiver in running:
        receiver.stop(1.0)


@sqlite
def test_DEL_07_a_peer_answers_as_the_scp_on_an_association_of_its_own(make_bed, make_committer, listener):
    bed = make_bed(make_committer(answers="elsewhere"))
    bed.peer.losing[bed.uids[1]] = 1
    bed.peer.node_port = listener(bed.config).port
    bed.deliver()
    bed.step()
    assert bed.peer.wait_for(1) == [0x0000]
    assert bed.stations.deliveries() == ["confirmed", "sent"]
    bed.due()
    bed.step()
    assert bed.peer.wait_for(2) == [0x0000] * 2
    assert bed.stations.deliveries() == ["confirmed", "waiting"]
    bed.deliver()
    bed.step()
    assert bed.peer.wait_for(3) == [0x0000] * 3
    assert bed.stations.deliveries() == ["confirmed", "confirmed"]


class Endless:
    """An association on which matches never end."""

    def __init__(self, remote, _contexts):
        self.remote = remote
        self.accepted = {(inquiry.STUDY_ROOT_FIND, str(ExplicitVRLittleEndian)): 1}
        match = Dataset()
        match.StudyInstanceUID = "1.2.3"
        self.match = commitment.encoded(match, ExplicitVRLittleEndian)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def request(self, *_):
        pass

    def send_bytes(self, *_):
        pass

    def message(self, *_):
        answer = command.Answer(command.C_FIND_RQ | command.RESPONSE, 1, 0xFF00, "", "", "", has_data_set=True)
        return 1, answer, self.match


@pytest.mark.parametrize(
    ("seconds", "error", "words"),
    [(0.0, Unavailable, "did not end its answer"), (60.0, NotOffered, "more than 100 matches")],
)
def test_DEL_02_a_query_without_end_ends(monkeypatch, seconds, error, words):
    monkeypatch.setattr(inquiry, "Association", Endless)
    monkeypatch.setattr(inquiry, "_MOST_MATCHES", 100)
    remote = Remote("ENDLESS", "127.0.0.1", 104, "PACS_AI", dimse_seconds=seconds)
    with pytest.raises(error, match=words):
        inquiry.find(remote, "STUDY", {"StudyInstanceUID": "1.2.3"})


def test_the_doctor_says_whether_a_peer_offers_what_is_asked_of_it(make_committer):
    for offers in (True, False):
        peer = make_committer(commits=offers, queries=offers)
        table = {"name": "pacs", "ae_title": peer.ae_title, "host": "127.0.0.1", "port": peer.port}
        route = {"when": {}, "run": "ct-lung", "deliver_to": ["pacs"]}
        config = Config.model_validate(
            {"peer": [table | {"commitment": True, "verify_patient": True}], "route": [route]}
        )
        words = [finding.words for finding in network.examine_peer(config, config.peer[0])]
        verb = "offers" if offers else "does not offer"
        assert any(one.startswith(f"{verb} storage commitment") for one in words), words
        assert any(one.startswith(f"{verb} queries") for one in words), words
