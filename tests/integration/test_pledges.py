"""The node keeps what it committed to: a durable request, whole files, an answer on a new association, no purging."""

from __future__ import annotations

import socket
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa
from click.testing import CliRunner
from committing_peer import AskingPeer
from listening_bed import until
from pydicom.uid import CTImageStorage, MRImageStorage
from stations import ME, instance_uid
from stored_results import keep_sources

from pacs_ai.cli import main
from pacs_ai.config import Config
from pacs_ai.deliver import inquiry
from pacs_ai.deliver.pledger import Pledger
from pacs_ai.dicom.commitment import Request
from pacs_ai.errors import BrokenOff, Unavailable
from pacs_ai.receive import desk
from pacs_ai.receive.commitment import services
from pacs_ai.receive.ingest import DurableIngest
from pacs_ai.receive.process import listen
from pacs_ai.receive.scp import Receiver
from pacs_ai.states import SeriesEvent
from pacs_ai.store import pledges, retention, schema
from pacs_ai.store.files import Files
from pacs_ai.store.moves import move

sqlite = pytest.mark.parametrize("database", ["sqlite"], indirect=True)
CT = [(CTImageStorage, instance_uid("1", number)) for number in (1, 2)]


@pytest.fixture
def asker():
    peer = AskingPeer()
    peer.start()
    yield peer
    peer.stop()


class Bed:
    """A received series, a listener with the service, and the pledger, stepped by hand."""

    def __init__(self, stations, sender, asker, folder, **receive):
        self.stations, self.sender = stations, sender
        self.config = Config.model_validate(
            {
                "store": {"folder": folder / "store"},
                "receive": {"commitment": True} | receive,
                "deliver": {"first_backoff_seconds": 0.001, "longest_backoff_seconds": 0.002},
                "peer": [{"name": "ct-1", "ae_title": "ASKER", "host": "127.0.0.1", "port": asker.port}],
            }
        )
        self.files = Files(self.config.store.folder / "files")
        sender.send("1", (1, 2))
        keep_sources(self.files, sender)
        self.pledger = Pledger(self.config, stations.database, self.files, ME)
        settings = listen(self.config, services(self.config, stations.database, ME))
        self.receiver = Receiver(replace(settings, bind="127.0.0.1", port=0), DurableIngest(self.files, lambda _: []))
        self.receiver.start()

    def step(self):
        return self.pledger.step("ct-1")

    @property
    def row(self):
        (row,) = self.stations.rows(schema.pledge)
        return row

    def age(self):
        """Have the series unrouted and a month old."""
        with self.stations.database.write() as connection:
            series = self.stations.series("1")
            move(connection, series.id, SeriesEvent.NO_ROUTE, actor=ME, reason="no route")
            old = datetime.now(UTC) - timedelta(days=31)
            connection.execute(sa.update(schema.series).values(last_received_at=old))

    def purge(self):
        return retention.purge(self.stations.database, self.files, inputs_days=1, unrouted_days=1, actor=ME)


@pytest.fixture
def make_bed(stations, sender, asker, tmp_path, monkeypatch):
    monkeypatch.setattr(pledges, "COMING_SECONDS", 0.0)
    beds = []

    def make(**receive):
        beds.append(Bed(stations, sender, asker, tmp_path, **receive))
        return beds[-1]

    yield make
    for bed in beds:
        bed.receiver.stop(1.0)


def uids(items):
    return [str(item.ReferencedSOPInstanceUID) for item in items]


def test_what_is_there_is_kept_and_the_rest_named_with_its_reason(make_bed, asker):
    bed = make_bed()
    wanted = [*CT, (CTImageStorage, "1.2.3.4.5"), (MRImageStorage, instance_uid("1", 2))]
    assert asker.ask(bed.receiver.port, "2.25.7", wanted[:3]) == 0x0000
    assert bed.step()
    ((event_type, report),) = asker.reports
    assert event_type == 2
    assert report.TransactionUID == "2.25.7"
    assert uids(report.ReferencedSOPSequence) == [uid for _, uid in CT]
    assert [(item.ReferencedSOPInstanceUID, item.FailureReason) for item in report.FailedSOPSequence] == [
        ("1.2.3.4.5", 0x0112)
    ]
    assert asker.roles == [(True, False)]
    assert bed.row.ended_at is not None
    assert not bed.step()
    assert asker.ask(bed.receiver.port, "2.25.8", wanted[3:]) == 0x0000
    bed.step()
    event_type, report = asker.reports[1]
    assert event_type == 2
    assert [item.FailureReason for item in report.FailedSOPSequence] == [0x0119]
    assert "ReferencedSOPSequence" not in report


def test_what_was_received_and_has_no_row_yet_is_waited_for(make_bed, asker, monkeypatch):
    bed = make_bed()
    monkeypatch.setattr(pledges, "COMING_SECONDS", 3600.0)
    wanted = [(CTImageStorage, instance_uid("1", 3))]
    assert asker.ask(bed.receiver.port, "2.25.7", wanted) == 0x0000
    assert bed.step()
    assert asker.reports == []
    assert bed.row.decided_at is None
    bed.sender.send("1", (3,))
    keep_sources(bed.files, bed.sender)
    until(bed.step)
    ((event_type, report),) = asker.reports
    assert event_type == 1
    assert uids(report.ReferencedSOPSequence) == [wanted[0][1]]


def test_what_was_committed_to_is_not_purged_until_a_person_lifts_it(make_bed, asker):
    bed = make_bed()
    assert asker.ask(bed.receiver.port, "2.25.7", CT[:1]) == 0x0000
    bed.step()
    assert asker.reports[0][0] == 1
    bed.age()
    assert bed.purge() == 0
    with bed.stations.database.read() as connection:
        (held,) = pledges.held(connection)
    assert (held.study_instance_uid, held.instances) == ("1.2.9.7", 1)
    assert held.since.tzinfo is UTC
    assert pledges.lift(bed.stations.database, ["1.2.9.7"], actor=ME) == 1
    assert pledges.lift(bed.stations.database, ["1.2.9.7"], actor=ME) == 0
    assert bed.purge() == 2


@sqlite
def test_what_was_purged_or_damaged_is_not_kept(make_bed, asker):
    bed = make_bed()
    first, second = bed.stations.rows(schema.instance)
    bed.files.path(first.sha256).write_bytes(b"rot")
    with bed.stations.database.write() as connection:
        gone = sa.update(schema.instance).where(schema.instance.c.id == second.id)
        connection.execute(gone.values(purged_at=datetime.now(UTC)))
    asker.ask(bed.receiver.port, "2.25.7", CT)
    bed.step()
    reasons = [item.FailureReason for item in asker.reports[0][1].FailedSOPSequence]
    assert reasons == [0x0110, 0x0112]
    with bed.stations.database.read() as connection:
        assert pledges.held(connection) == []


@pytest.mark.parametrize("first", [CTImageStorage, MRImageStorage])
@sqlite
def test_what_a_request_names_under_two_sop_classes_is_not_kept(make_bed, asker, first):
    bed = make_bed()
    second = MRImageStorage if first == CTImageStorage else CTImageStorage
    asker.ask(bed.receiver.port, "2.25.7", [(first, CT[0][1]), (second, CT[0][1]), CT[1]])
    bed.step()
    ((_, report),) = asker.reports
    assert [item.FailureReason for item in report.FailedSOPSequence] == [0x0119, 0x0119]
    assert [str(item.ReferencedSOPInstanceUID) for item in report.ReferencedSOPSequence] == [CT[1][1]]


@sqlite
def test_a_peer_that_is_away_is_told_later_and_what_was_decided_stands(make_bed, asker):
    bed = make_bed()
    asker.ask(bed.receiver.port, "2.25.7", CT)
    asker.stop()
    bed.step()
    assert "cannot be reached" in bed.row.reason
    assert bed.row.ended_at is None
    with bed.stations.database.read() as connection:
        assert pledges.held(connection)[0].instances == 2
    asker.start()
    with bed.stations.database.write() as connection:
        connection.execute(sa.update(schema.pledge).values(due_at=datetime.now(UTC)))
    assert bed.step()
    assert [event_type for event_type, _ in asker.reports] == [1]


@sqlite
def test_DEL_09_a_peer_that_is_silent_on_its_port_keeps_the_answers_from_no_other(make_bed, asker):
    bed = make_bed()
    with socket.create_server(("127.0.0.1", 0)) as hole:  # connections are made, and nothing is ever said
        silent = {"name": "mr-1", "ae_title": "SILENT", "host": "127.0.0.1", "port": hole.getsockname()[1]}
        config = Config.model_validate({**bed.config.model_dump(exclude={"peer"}), "peer": [silent, *bed.config.peer]})
        for number in range(3):
            request = Request(f"2.25.7{number}", tuple(CT))
            pledges.note(bed.stations.database, request, calling_ae_title="SILENT", peer="mr-1")
        assert asker.ask(bed.receiver.port, "2.25.8", CT) == 0x0000
        pledger = Pledger(config, bed.stations.database, bed.files, ME)
        until(lambda: asker.reports or pledger.look())
    pledger.join(60)
    assert [str(report.TransactionUID) for _, report in asker.reports] == ["2.25.8"]


def test_DEL_09_while_a_peer_is_away_one_answer_is_tried_for_all_that_are_due(make_bed, asker):
    bed = make_bed()
    bed.pledger = Pledger(patient(bed.config), bed.stations.database, bed.files, ME)
    for number in range(3):
        assert asker.ask(bed.receiver.port, f"2.25.7{number}", CT) == 0x0000
    asker.stop()
    assert not bed.step()
    rows = bed.stations.rows(schema.pledge)
    assert [row.attempts for row in rows] == [1, 0, 0]
    assert len({row.due_at for row in rows}) == 1
    assert all(row.waited_seconds > 0 for row in rows)
    assert not bed.step(), "they wait"
    with bed.stations.database.read() as connection:
        assert pledges.due_peers(connection) == []
    with bed.stations.database.write() as connection:
        connection.execute(sa.update(schema.pledge).values(due_at=datetime.now(UTC), waited_seconds=72 * 3600.0))
    assert not bed.step()
    rows = bed.stations.rows(schema.pledge)
    assert [row.attempts for row in rows] == [2, 0, 0]
    assert None not in {row.ended_at for row in rows}, "they are given up together"


def patient(config):
    """Return the configuration with waits that do not end while a test looks."""
    deliver = config.deliver.model_copy(update={"first_backoff_seconds": 200.0, "longest_backoff_seconds": 200.0})
    return config.model_copy(update={"deliver": deliver})


@sqlite
def test_DEL_09_an_answer_at_which_the_peer_breaks_off_holds_up_no_other(make_bed, asker, monkeypatch):
    bed = make_bed()
    bed.pledger = Pledger(patient(bed.config), bed.stations.database, bed.files, ME)
    for number in (7, 8):
        assert asker.ask(bed.receiver.port, f"2.25.{number}", CT) == 0x0000
    tell = inquiry.tell

    def broken(remote, report):
        if report.transaction_uid == "2.25.7":
            raise BrokenOff("the peer aborted")
        tell(remote, report)

    monkeypatch.setattr(inquiry, "tell", broken)
    assert bed.step()
    assert bed.step()
    assert not bed.step()
    assert [str(report.TransactionUID) for _, report in asker.reports] == ["2.25.8"]


@sqlite
def test_PRI_01_what_a_peer_says_of_its_answer_stands_in_the_row_and_not_in_the_log(make_bed, asker, caplog):
    bed = make_bed()
    asker.status, asker.comment = 0x0110, "no ZZPHI^MARKER here"
    asker.ask(bed.receiver.port, "2.25.7", CT)
    bed.step()
    assert bed.row.reason.endswith('0x0110, "no ZZPHI^MARKER here"')
    assert "answered what this node keeps with 0x0110" in caplog.text
    assert "ZZPHI" not in caplog.text


@sqlite
def test_a_fault_of_the_node_is_tried_again_later_as_a_peer_that_is_away(make_bed, asker, monkeypatch, caplog):
    bed = make_bed()
    asker.ask(bed.receiver.port, "2.25.7", CT)
    with monkeypatch.context() as broken:
        broken.setattr(inquiry, "tell", _odd)
        assert bed.step()
    assert bed.row.reason.startswith("unexpected KeyError in _odd (test_pledges.py:")
    assert (bed.row.attempts, bed.row.ended_at) == (1, None)
    assert bed.row.waited_seconds > 0
    assert "ct-1 is not told yet what is kept: unexpected KeyError" in caplog.text
    assert "Doe" not in caplog.text
    until(bed.step)
    assert len(asker.reports) == 1


def _odd(*_arguments):
    raise KeyError("Doe^Jane")


@sqlite
def test_the_same_request_is_answered_again_and_another_under_its_uid_refused(make_bed, asker):
    bed = make_bed()
    assert asker.ask(bed.receiver.port, "2.25.7", CT) == 0x0000
    bed.step()
    assert asker.ask(bed.receiver.port, "2.25.7", CT) == 0x0000
    bed.step()
    assert len(asker.reports) == 2
    assert asker.ask(bed.receiver.port, "2.25.7", CT[:1]) == 0x0210


@pytest.mark.parametrize("told", [True, False])
def test_a_request_that_comes_again_while_it_is_answered_is_answered_again(make_bed, asker, monkeypatch, told):
    bed = make_bed()
    wanted = [CT[0], (CTImageStorage, instance_uid("1", 3))]
    assert asker.ask(bed.receiver.port, "2.25.7", wanted) == 0x0000
    tell = inquiry.tell

    def asked_again_meanwhile(remote, report):
        if told:
            tell(remote, report)
        bed.sender.send("1", (3,))
        keep_sources(bed.files, bed.sender)
        assert asker.ask(bed.receiver.port, "2.25.7", wanted) == 0x0000
        if not told:
            raise Unavailable("the peer has hung up")

    with monkeypatch.context() as amid:
        amid.setattr(inquiry, "tell", asked_again_meanwhile)
        assert bed.step() is told, "nothing more is tried where it is away"
    assert bed.row.ended_at is None
    assert bed.row.decided_at is None
    assert bed.step()
    assert [event_type for event_type, _ in asker.reports] == ([2, 1] if told else [1])
    assert bed.row.ended_at is not None
    assert not bed.step()


def test_a_request_that_comes_again_while_it_is_decided_is_decided_again(make_bed, asker):
    bed = make_bed()
    wanted = [CT[0], (CTImageStorage, instance_uid("1", 3))]
    assert asker.ask(bed.receiver.port, "2.25.7", wanted) == 0x0000
    taken = pledges.take(bed.stations.database, "ct-1")
    assert asker.ask(bed.receiver.port, "2.25.7", wanted) == 0x0000
    bed.pledger.serve(taken)
    assert [event_type for event_type, _ in asker.reports] == [2]
    assert bed.row.decided_at is None
    bed.sender.send("1", (3,))
    keep_sources(bed.files, bed.sender)
    assert bed.step()
    assert [event_type for event_type, _ in asker.reports] == [2, 1]
    assert bed.row.ended_at is not None


def test_what_was_sent_since_and_is_asked_for_again_is_waited_for(make_bed, asker, monkeypatch, wall):
    bed = make_bed()
    monkeypatch.setattr(pledges, "COMING_SECONDS", 3600.0)
    wanted = [(CTImageStorage, instance_uid("1", 3))]
    assert asker.ask(bed.receiver.port, "2.25.7", wanted) == 0x0000
    wall.forward(seconds=3601)
    assert bed.step()
    assert [event_type for event_type, _ in asker.reports] == [2]
    assert asker.ask(bed.receiver.port, "2.25.7", wanted) == 0x0000
    assert bed.step()
    assert len(asker.reports) == 1, "it may be on its way"
    bed.sender.send("1", (3,))
    keep_sources(bed.files, bed.sender)
    until(bed.step)
    assert [event_type for event_type, _ in asker.reports] == [2, 1]


@sqlite
def test_a_caller_that_could_not_be_told_is_refused(make_bed, asker):
    bed = make_bed()
    asker.ae_title = "STRANGER"
    assert asker.ask(bed.receiver.port, "2.25.7", CT) == 0x0124
    assert bed.stations.rows(schema.pledge) == []


@sqlite
def test_what_was_asked_for_before_it_was_switched_off_is_answered_and_not_kept(make_bed, asker):
    bed = make_bed()
    assert asker.ask(bed.receiver.port, "2.25.7", CT) == 0x0000
    off = bed.config.model_copy(update={"receive": bed.config.receive.model_copy(update={"commitment": False})})
    pledger = Pledger(off, bed.stations.database, bed.files, ME)
    pledger.look()
    pledger.join(60)
    ((event_type, report),) = asker.reports
    assert event_type == 2
    assert {item.FailureReason for item in report.FailedSOPSequence} == {0x0110}
    assert bed.row.ended_at is not None
    bed.age()
    assert bed.purge() == 2


def test_requests_are_forgotten_a_month_after_they_were_answered(make_bed, asker, wall):
    bed = make_bed()
    assert asker.ask(bed.receiver.port, "2.25.7", CT) == 0x0000
    wall.forward(days=31)
    assert retention.forget(bed.stations.database) == 0  # nobody has answered it yet
    bed.step()
    assert retention.forget(bed.stations.database) == 0
    wall.forward(days=31)
    assert retention.forget(bed.stations.database) == 1
    assert bed.stations.rows(schema.pledge) == []
    assert bed.purge() == 0  # what was committed to is kept all the same


@sqlite
@pytest.mark.parametrize(("bound", "least"), [("MAX_SERVICE_BYTES", 1 << 17), ("HELD_IN_ALL_BYTES", 1 << 14)])
def test_ASC_09_a_request_beyond_what_may_be_held_is_aborted_and_the_next_is_served(
    make_bed, asker, monkeypatch, bound, least
):
    """3,000 instances are more than may be held, of one association or of all of them."""
    bed = make_bed()
    monkeypatch.setattr(desk, bound, least)
    wanted = [(CTImageStorage, f"1.2.3.4.5.{number}") for number in range(3000)]
    assert asker.ask(bed.receiver.port, "2.25.7", wanted) is None
    assert bed.stations.rows(schema.pledge) == []
    assert asker.ask(bed.receiver.port, "2.25.8", CT) == 0x0000
    assert bed.row.transaction_uid == "2.25.8"
    monkeypatch.undo()
    assert asker.ask(bed.receiver.port, "2.25.9", wanted) == 0x0000


@sqlite
def test_off_by_default(make_bed, asker):
    bed = make_bed(commitment=False)
    with pytest.raises(AssertionError):
        asker.ask(bed.receiver.port, "2.25.7", CT)
    assert not Config().receive.commitment


@sqlite
def test_a_person_sees_what_is_held_and_lifts_it(make_bed, asker, database, tmp_path):
    bed = make_bed()
    asker.ask(bed.receiver.port, "2.25.7", CT)
    bed.step()
    path = tmp_path / "pacs-ai.toml"
    path.write_text(f'[store]\ndatabase = "{database.engine.url}"\n')

    def order(*words):
        return CliRunner().invoke(main, ["--config", str(path), "lift", *words])

    assert "1.2.9.7  2 instances since" in order("--list").output
    assert order("1.2.9.7").output == "2 instances may be deleted again\n"
    assert order("--list").output == "the node has committed to nothing\n"
    again = order("1.2.9.7")
    assert again.exit_code != 0
    assert "lift --list" in again.output
    assert order().exit_code == 2
