"""Delivery through a long outage, a connection lost at the worst moment, a peer that moved, and one of two down."""

from __future__ import annotations

import base64
import logging
import threading
import tracemalloc
from datetime import timedelta
from itertools import pairwise

import audit_schema
import pytest
import sqlalchemy as sa
from click.testing import CliRunner
from commitment_bed import Bed
from committing_peer import CommittingPeer
from pynetdicom import AE, evt
from stations import ARCHIVE, ME, PACS, Stations
from stored_results import finish_with, plan_of

from pacs_ai.audit.events import Teller
from pacs_ai.cli import main
from pacs_ai.config import Config
from pacs_ai.deliver import courier as courier_module
from pacs_ai.deliver import patients
from pacs_ai.deliver.courier import Courier
from pacs_ai.deliver.scu import Outcome
from pacs_ai.dicom import contexts
from pacs_ai.dicom.status import Category
from pacs_ai.profiles import Kind, Wanted, encodings
from pacs_ai.store import clock, departures, orders, outbox, resending, schema, trail
from pacs_ai.store.enqueue import Address
from pacs_ai.store.files import Files

pytestmark = pytest.mark.parametrize("database", ["sqlite"], indirect=True)
PLAN = plan_of(Wanted(Kind.SEGMENTATION, "binary"), Wanted(Kind.TEXT_REPORT))
HOURS = 8
PEERS = [{"name": one.peer, "ae_title": one.ae_title, "host": one.host, "port": one.port} for one in (PACS, ARCHIVE)]


class FarPacs:
    """Stands in for `pacs_ai.deliver.scu.send`: a peer that is away, and then is not."""

    def __init__(self) -> None:
        self.away = True
        self.probes: list[int] = []
        self.stored: list[str] = []

    def __call__(self, _remote, outgoing, _held_back):
        if self.away:
            self.probes.append(len(outgoing))
        for one in outgoing:
            if self.away:
                yield Outcome(one.sop_instance_uid, None, Category.TRANSIENT, "cannot be reached")
            else:
                self.stored.append(one.sop_instance_uid)
                yield Outcome(one.sop_instance_uid, 0x0000, Category.SUCCESS, "stored")


def many_results(stations, sender, count):
    """Have so many results, two of each job."""
    stations.done_job(sender)
    (job,), results, deliveries = (stations.rows(table) for table in (schema.job, schema.result, schema.delivery))
    with stations.database.write() as connection:
        for number in range(2, count // 2 + 1):
            copied = added(connection, schema.job, job, job_key=f"{number}")
            for result, delivery in zip(results, deliveries, strict=True):
                uid = f"2.25.{number}.{result.ordinal}"
                made = added(connection, schema.result, result, job_id=copied, sop_instance_uid=uid)
                added(connection, schema.delivery, delivery, job_id=copied, result_id=made)


def added(connection, table, row, **changes):
    """Insert a copy of a row; returns its id."""
    values = {**row._asdict(), **changes}
    del values["id"]
    return connection.execute(sa.insert(table).values(**values).returning(table.c.id)).scalar_one()


@pytest.mark.parametrize("count", [400, pytest.param(2000, marks=pytest.mark.nightly)])
def test_DEL_01_eight_hours_of_outage_end_without_loss_or_doubles(database, sender, tmp_path, wall, monkeypatch, count):
    stations = Stations(database)  # most jobs are copies of rows, without a journal
    pacs = FarPacs()
    monkeypatch.setattr(courier_module, "send", pacs)
    many_results(stations, sender, count)
    courier = Courier(Config.model_validate({"peer": PEERS}), stations.database, Files(tmp_path / "files"), ME)
    waits = []

    def serve() -> None:
        """Serve a round as soon as the destination is due, by the wall clock that the test moves."""
        due = stations.rows(schema.destination)[0].next_try_at
        wait = max(due - clock.now(), timedelta(0))
        wall.forward(seconds=wait.total_seconds())
        waits.append(wait.total_seconds())
        held = outbox.claim(stations.database, "pacs", ME)
        assert held is not None
        courier.serve(held)

    serve()
    tracemalloc.start()
    while sum(waits) < HOURS * 3600:
        serve()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 16_000_000
    assert pacs.probes[0] == departures.BATCH
    assert set(pacs.probes[1:]) == {1}
    assert waits[1] <= 5
    assert all(later >= 0.75 * earlier for earlier, later in pairwise(waits[1:]))
    assert max(waits) <= 300
    assert 240 <= sum(waits[10:]) / len(waits[10:]) <= 300

    pacs.away = False
    waits.clear()
    while "waiting" in set(stations.deliveries()):
        serve()
    assert sum(waits) <= 600
    assert len(pacs.stored) == len(set(pacs.stored)) == count
    assert set(stations.deliveries()) == {"sent"}


@pytest.fixture
def bed(stations, source, tmp_path):
    """A job of two results for a peer that is made by the test."""
    files = Files(tmp_path / "store" / "files")

    def make(port, configured=0):
        now_at = configured or port
        table = {"name": "pacs", "ae_title": "KEEPER", "host": "127.0.0.1", "port": now_at, "answer_seconds": 60}
        given = {"store": {"folder": tmp_path / "store"}, "peer": [table], "deliver": {"first_backoff_seconds": 60}}
        config = Config.model_validate(given)
        address = Address("pacs", "KEEPER", "127.0.0.1", port, PLAN)
        stations.enqueue(stations.work(source, destinations=(address,)))
        finish_with(stations, files, encodings([PLAN]))
        return Courier(config, stations.database, files, ME)

    return make


def serve(stations, courier, peer="pacs"):
    with stations.database.write() as connection:
        connection.execute(sa.update(schema.destination).values(next_try_at=clock.now()))
    held = outbox.claim(stations.database, peer, ME)
    assert held is not None
    courier.serve(held)


def test_DEL_05_a_connection_lost_after_the_peer_stored_leaves_one_object(stations, bed):
    stored, cut = {}, threading.Event()

    def store(event):
        stored.setdefault(str(event.request.AffectedSOPInstanceUID), []).append(event.request.DataSet.getvalue())
        if not cut.is_set():
            cut.set()
            event.assoc.dul.socket.socket.shutdown(2)  # stored, and no answer gets through
        return 0x0000

    ae = AE("KEEPER")
    ae.supported_contexts = contexts.acceptor_contexts()
    server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, store)])
    try:
        courier = bed(server.server_address[1])
        serve(stations, courier)
        assert set(stations.deliveries()) == {"waiting"}
        assert [row.doubtful for row in stations.rows(schema.delivery)] == [True, False]
        assert outbox.claim(stations.database, "pacs", ME) is None, "it waits by itself, and the report for it"
        with stations.database.write() as connection:
            connection.execute(sa.update(schema.delivery).values(due_at=clock.now()))
        while "waiting" in stations.deliveries():
            serve(stations, courier)
    finally:
        server.shutdown()
        ae.shutdown()
    assert stations.deliveries() == ["sent", "sent"]
    assert sorted(map(len, stored.values())) == [1, 2]
    assert all(len(set(contents)) == 1 for contents in stored.values())


def test_DEL_08_the_address_is_that_of_the_time_of_the_job_until_a_person_says_otherwise(stations, bed, make_peer):
    former, present = make_peer(), make_peer()
    courier = bed(former.port, configured=present.port)  # the configuration was changed since
    former.stop()
    serve(stations, courier)
    assert present.stored == []
    ids = [row.id for row in stations.rows(schema.delivery)]
    moved = Address("pacs", "KEEPER", "127.0.0.1", present.port, PLAN)
    resending.retry(stations.database, ids, actor="operator", addresses={"pacs": moved})
    serve(stations, courier)
    assert len(present.stored) == 2
    assert stations.deliveries() == ["sent", "sent"]


def test_DEL_08_a_peer_that_was_removed_gets_nothing_until_it_is_back(stations, bed, keeping_peer, tmp_path, caplog):
    courier = bed(keeping_peer.port)
    without = Config.model_validate({"store": {"folder": tmp_path / "store"}})
    serve(stations, Courier(without, stations.database, Files(tmp_path / "store" / "files"), ME))
    assert keeping_peer.associations == 0
    assert stations.deliveries() == ["waiting", "waiting"]
    (destination,) = stations.rows(schema.destination)
    assert destination.failures == 1
    reasons = {destination.reason, *(row.reason for row in stations.rows(schema.delivery))}
    (reason,) = reasons
    assert reason.startswith("there is no [[peer]] called pacs in the configuration any more")
    assert reason in caplog.text
    serve(stations, courier)  # one probe, as after any failure
    serve(stations, courier)
    assert stations.deliveries() == ["sent", "sent"]


def test_DEL_09_one_destination_down_does_not_hold_up_the_other(stations, source, tmp_path, monkeypatch):
    stations.enqueue(stations.work(source, destinations=(PACS, ARCHIVE)))
    stations.finish(stations.claim(), "SEG", "SR")
    far = FarPacs()
    near = FarPacs()
    near.away = False
    monkeypatch.setattr(
        courier_module, "send", lambda remote, *rest: (far if remote.port == 104 else near)(remote, *rest)
    )
    courier = Courier(Config.model_validate({"peer": PEERS}), stations.database, Files(tmp_path / "files"), ME)
    serve(stations, courier, "pacs")
    serve(stations, courier, "archive")
    peers = {(row.peer, row.state) for row in stations.rows(schema.delivery)}
    assert peers == {("pacs", "waiting"), ("archive", "sent")}


def faulty(uid, function, where):
    """Return the function as one that raises where it is called with that SOP Instance UID."""

    def call(*arguments, **options):
        if arguments[where].sop_instance_uid == uid:
            raise KeyError("Doe^Jane")
        return function(*arguments, **options)

    return call


@pytest.fixture
def two_jobs(stations, sender, bed, keeping_peer, tmp_path):
    """Four results of two jobs for a peer that is there."""
    courier = bed(keeping_peer.port)
    sender.send("2", (1, 2))
    address = Address("pacs", "KEEPER", "127.0.0.1", keeping_peer.port, PLAN)
    stations.enqueue(stations.work(stations.complete("2"), destinations=(address,)))
    finish_with(stations, Files(tmp_path / "store" / "files"), encodings([PLAN]))
    return courier


def test_a_damaged_result_fails_and_the_others_are_sent(stations, two_jobs, keeping_peer, tmp_path):
    first, *others = stations.rows(schema.result)
    file = Files(tmp_path / "store" / "files").path(first.sha256)
    file.chmod(0o600)
    file.write_bytes(file.read_bytes()[:152])
    serve(stations, two_jobs)
    assert stations.deliveries() == ["failed", "sent", "sent", "sent"]
    assert keeping_peer.stored == [row.sop_instance_uid for row in others]
    assert f"{first.sha256} is damaged" in stations.rows(schema.delivery)[0].reason


def flip(path):
    """Change one bit near the end, within the pixels or the last text."""
    path.chmod(0o600)
    content = bytearray(path.read_bytes())
    content[-3] ^= 0x01
    path.write_bytes(content)


def test_a_result_of_which_a_bit_changed_is_not_sent_until_it_is_whole_again(
    stations, two_jobs, keeping_peer, tmp_path, caplog
):
    first, *others = stations.rows(schema.result)
    path = Files(tmp_path / "store" / "files").path(first.sha256)
    flip(path)
    serve(stations, two_jobs)
    assert stations.deliveries() == ["failed", "sent", "sent", "sent"]
    assert keeping_peer.stored == [row.sop_instance_uid for row in others]
    failed = stations.rows(schema.delivery)[0]
    assert f"{first.sha256} is damaged" in failed.reason
    assert "`pacs-ai retry 1` makes it anew" in failed.reason
    assert not failed.doubtful, "the peer has nothing of it"
    assert f"SEG of job 1 not sent to pacs: {failed.reason}" in caplog.text
    flip(path)  # put back from a backup
    resending.retry(stations.database, [failed.id], actor="operator")
    serve(stations, two_jobs)
    assert stations.deliveries() == ["sent"] * 4


COMMENT = "patient ZZPHI^MARKER (ZZPHI-4711) unknown"


def test_PRI_01_what_a_peer_says_in_its_own_words_stands_in_the_row_and_nowhere_else(
    stations, two_jobs, keeping_peer, database, tmp_path, caplog
):
    keeping_peer.status, keeping_peer.comment = 0xC000, COMMENT
    caplog.set_level(logging.DEBUG, "pacs_ai")
    serve(stations, two_jobs)
    assert stations.deliveries() == ["failed"] * 4
    assert "SEG of job 1 refused by pacs" in caplog.text
    assert "ZZPHI" not in caplog.text
    rows = stations.rows(schema.delivery)
    assert {row.comment for row in rows} == {COMMENT}
    others = [
        row.reason for table in (schema.journal, schema.delivery, schema.destination) for row in stations.rows(table)
    ]
    assert not [reason for reason in others if "ZZPHI" in reason]
    path = tmp_path / "pacs-ai.toml"
    path.write_text(f'[store]\ndatabase = "{database.engine.url}"\n')

    def shown(*words):
        done = CliRunner().invoke(main, ["--config", str(path), *words])
        assert done.exit_code == 0, done.output
        return done.output

    for words in (["deliveries"], ["deliveries", "--json"], ["jobs", "1"], ["jobs", "1", "--json"]):
        assert "ZZPHI" not in shown(*words)
    for words in (["deliveries", "--comments"], ["deliveries", "--comments", "--json"]):
        assert shown(*words).count("ZZPHI^MARKER") == 4
    keeping_peer.status = 0x0000
    resending.retry(stations.database, [row.id for row in rows], actor="operator")
    serve(stations, two_jobs)
    assert stations.deliveries() == ["sent"] * 4
    assert {row.comment for row in stations.rows(schema.delivery)} == {""}, "it was of the former try"


def waits_alone(stations, reason):
    """Assert that the first of four results waits longer each time, the SR that cites it too, and nothing else."""
    assert stations.deliveries() == ["waiting", "waiting", "sent", "sent"]
    (destination,) = stations.rows(schema.destination)
    assert (destination.owner, destination.failures) == ("", 0)
    delivery = stations.rows(schema.delivery)[0]
    assert reason in delivery.reason
    assert delivery.due_at > clock.now()
    assert delivery.waited_seconds >= 48
    assert outbox.claim(stations.database, "pacs", ME) is None, "what waits is not due yet"


def test_an_unreadable_file_holds_up_only_what_cites_it(stations, two_jobs, tmp_path):
    file = Files(tmp_path / "store" / "files").path(stations.rows(schema.result)[0].sha256)
    file.unlink()
    file.mkdir()
    serve(stations, two_jobs)
    waits_alone(stations, "could not be read")


def test_a_fault_of_the_node_with_one_result_holds_up_only_what_cites_it(stations, two_jobs, monkeypatch, caplog):
    uid = stations.rows(schema.result)[0].sop_instance_uid
    monkeypatch.setattr(outbox, "accepted", faulty(uid, outbox.accepted, 2))
    serve(stations, two_jobs)
    waits_alone(stations, "unexpected KeyError in call (test_delivery_rows.py:")
    assert stations.rows(schema.delivery)[0].doubtful
    assert "SEG of job 1 is sent later to pacs: unexpected KeyError" in caplog.text
    assert "Doe" not in caplog.text


def test_DEL_01_a_round_that_breaks_off_is_tried_again_ever_later_and_given_up(
    stations, source, tmp_path, monkeypatch, caplog
):
    stations.enqueue(stations.work(source, destinations=(PACS, ARCHIVE)))
    stations.finish(stations.claim(), "SEG", "SR")
    near = FarPacs()
    near.away = False

    def broken(remote, *rest):
        if remote.port == 104:
            raise KeyError("Doe^Jane")
        return near(remote, *rest)

    monkeypatch.setattr(courier_module, "send", broken)
    backoff = {"first_backoff_seconds": 60, "give_up_hours": 0.09}  # 324 s: more than 60 + 120, less than 0.8 of 420
    config = Config.model_validate({"peer": PEERS, "deliver": backoff})
    courier = Courier(config, stations.database, Files(tmp_path / "files"), ME)
    pacs = schema.destination.c.peer == "pacs"
    waits = []
    while "waiting" in stations.deliveries():
        assert courier.step()
        courier.join(60)
        assert not courier.step(), "tried again before its time"
        (destination,) = stations.rows(schema.destination, pacs)
        assert (destination.owner, destination.failures) == ("", len(waits) + 1)
        assert destination.reason.startswith("unexpected KeyError in broken (test_delivery_rows.py:")
        waits.append((destination.next_try_at - clock.now()).total_seconds())
        with stations.database.write() as connection:
            connection.execute(sa.update(schema.destination).values(next_try_at=clock.now()))
    assert len(waits) == 3  # of some 60, 120 and 240 s
    assert waits == sorted(waits)
    states = {(row.peer, row.state) for row in stations.rows(schema.delivery)}
    assert states == {("pacs", "failed"), ("archive", "sent")}
    assert "pacs: the round broke off, and is tried again: unexpected KeyError" in caplog.text
    assert "Doe" not in caplog.text


@pytest.fixture
def asked():
    """A peer that is asked whose the study is, before each round."""
    peer = CommittingPeer()
    peer.start()
    yield peer
    peer.stop()


@pytest.fixture
def verifying(stations, source, tmp_path, asked):
    files = Files(tmp_path / "store" / "files")
    return Bed(stations, source, files, asked, tmp_path, commitment=False, verify_patient=True)


def test_DEL_10_a_result_for_another_patient_is_held_until_a_person_decides(verifying, asked):
    bed = verifying
    asked.patients["1.2.9.7"] = "P2"
    bed.deliver()
    assert bed.stations.deliveries() == ["held", "held"]
    assert asked.received == []
    assert "under another Patient ID" in bed.rows[0].reason
    assert "P1" not in bed.rows[0].reason
    assert "P2" not in bed.rows[0].reason
    assert outbox.claim(bed.stations.database, "pacs", ME) is None
    resending.retry(bed.stations.database, [bed.rows[0].id], actor="operator")
    bed.deliver()
    assert bed.stations.deliveries() == ["held", "held"]  # still another's
    asked.patients["1.2.9.7"] = "P1"
    resending.retry(bed.stations.database, [row.id for row in bed.rows], actor="operator")
    bed.deliver()
    assert bed.stations.deliveries() == ["sent", "sent"]
    assert asked.received == bed.uids


def test_DEL_10_a_held_result_can_be_cancelled(verifying, asked):
    asked.patients["1.2.9.7"] = "P2"
    verifying.deliver()
    orders.cancel(verifying.stations.database, verifying.job, actor="operator")
    assert verifying.stations.deliveries() == ["cancelled", "cancelled"]


def test_DEL_10_the_question_and_the_hold_are_in_the_audit_trail(verifying, asked):
    asked.patients["1.2.9.7"] = "P2"
    verifying.deliver()
    with verifying.stations.database.read() as connection:
        batch = trail.read(connection, trail.Horizon())
    teller = Teller("node", "ai.example.org", ("PACS_AI",), "node")
    told = [audit_schema.check(event.message) for event in teller.events(batch)]
    (query,) = [one for one in told if audit_schema.event(one) == "110112"]
    assert b"1.2.9.7" in base64.b64decode(query.findtext(".//ParticipantObjectQuery"))
    held = [one for one in told if audit_schema.types(one) == ["delivery-held"]]
    assert [one[0].get("EventOutcomeIndicator") for one in held] == ["4", "4"]


def test_DEL_10_a_study_that_is_not_there_yet_is_waited_for(verifying, asked):
    bed = verifying
    bed.deliver()
    assert bed.stations.deliveries() == ["waiting", "waiting"]
    assert "does not have the study" in bed.rows[0].reason
    asked.patients["1.2.9.7"] = "P1"
    with bed.stations.database.write() as connection:
        connection.execute(sa.update(schema.delivery).values(due_at=clock.now()))
    bed.deliver()
    assert bed.stations.deliveries() == ["sent", "sent"]


def test_DEL_10_a_fault_of_the_node_in_asking_sends_nothing_and_is_asked_again(verifying, asked, monkeypatch):
    bed = verifying
    asked.patients["1.2.9.7"] = "P1"

    ask, faults = patients.ask, [KeyError("Doe^Jane")]

    def broken(*arguments):
        if faults:
            raise faults.pop()
        return ask(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(patients, "ask", broken)
        bed.deliver()
    assert asked.received == [], "what cites the first object waits with it"
    assert bed.stations.deliveries() == ["waiting", "waiting"]
    assert "unexpected KeyError in broken" in bed.rows[0].reason
    assert "waits for the object that it cites" in bed.rows[1].reason
    assert not any(row.doubtful for row in bed.rows)
    assert outbox.claim(bed.stations.database, "pacs", ME) is None, "it waits"
    with bed.stations.database.write() as connection:
        connection.execute(sa.update(schema.delivery).values(due_at=clock.now()))
    bed.deliver()
    assert bed.stations.deliveries() == ["sent", "sent"]


def test_PRI_01_what_a_peer_says_of_a_query_stands_in_the_row_and_nowhere_else(verifying, asked, caplog):
    bed = verifying
    asked.comment = COMMENT
    bed.deliver()
    assert bed.stations.deliveries() == ["waiting", "waiting"]
    assert "cannot be asked" in caplog.text
    assert "ZZPHI" not in caplog.text
    assert [(row.comment, "ZZPHI" in row.reason) for row in bed.rows] == [(COMMENT, False)] * 2


def test_DEL_10_a_peer_that_cannot_be_asked_gets_nothing(verifying, asked):
    bed = verifying
    asked.stop()
    bed.deliver()
    assert bed.stations.deliveries() == ["waiting", "waiting"]
    asked.queries = False
    asked.start()
    serve(bed.stations, bed.courier)
    assert bed.stations.deliveries() == ["waiting", "waiting"]
    assert "cannot be asked" in bed.rows[0].reason
    assert asked.received == []
