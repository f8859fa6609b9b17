"""Receiving into the index, on both databases: the same once, conflicts shown, whoever brings it and how often."""

from __future__ import annotations

import errno
import multiprocessing
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa
from pydicom.encaps import encapsulate
from pydicom.uid import ImplicitVRLittleEndian, JPEGLSLossless
from stations import DEAD, ME, Clock, Sender, Stations, instance_uid

from pacs_ai.dicom.attributes import Header
from pacs_ai.errors import Unavailable, UserError
from pacs_ai.states import SeriesState
from pacs_ai.store import comparing, completion, index, journal, orders, schema
from pacs_ai.store.clock import now
from pacs_ai.store.database import Contended, Database
from pacs_ai.store.enqueue import ROUTINE, STAT, URGENT
from pacs_ai.store.index import Outcome, priority_of
from pacs_ai.store.schema import Role

if TYPE_CHECKING:
    from pathlib import Path


def roles(stations: Stations) -> list[str]:
    return [row.role for row in stations.rows(schema.instance)]


def test_a_new_series_is_receiving_with_its_instances(stations, sender):
    assert sender.send(numbers=range(3)) == [Outcome.NEW] * 3
    series = stations.series()
    assert (series.state, series.instances, series.arrivals, series.revision) == ("receiving", 3, 3, 1)
    assert series.header["PatientID"] == "P1"
    assert series.calling_ae_title == "MODALITY"
    assert not series.own_result


def test_the_same_instance_again_changes_nothing_but_the_quiet(stations, sender):
    sender.send(numbers=[1, 2])
    assert sender.send(numbers=[2, 1], assoc="a2") == [Outcome.REPEAT] * 2
    series = stations.series()
    assert (series.instances, series.arrivals, series.revision) == (2, 4, 1)
    assert roles(stations) == [Role.CURRENT] * 2


def test_the_same_instance_twice_in_one_batch_is_one_row(stations, sender):
    assert sender.send(numbers=[1, 1]) == [Outcome.NEW, Outcome.REPEAT]
    assert stations.series().instances == 1


def test_the_same_in_other_clothes_is_a_variant(stations, sender):
    sender.send(content=1)
    assert sender.send(content=1, transfer_syntax_uid=ImplicitVRLittleEndian) == [Outcome.VARIANT]
    assert roles(stations) == [Role.CURRENT, Role.VARIANT]
    assert (stations.series().instances, stations.series().revision) == (1, 1)


def test_STO_06_other_pixels_under_one_uid_are_a_conflict_that_is_kept_and_shown(stations, sender):
    sender.send(content=1)
    assert sender.send(content=2) == [Outcome.CONFLICT]
    series = stations.series()
    assert series.state == SeriesState.CONFLICT
    assert series.instances == 1
    assert "other content under SOP Instance UID 1.2.3.1.1" in series.reason
    assert "pacs-ai resolve" in series.reason
    assert roles(stations) == [Role.CURRENT, Role.CONFLICT]


def test_a_conflict_that_is_sent_again_is_a_repeat(stations, sender):
    sender.send(content=1)
    sender.send(content=2)
    assert sender.send(content=2) == [Outcome.REPEAT]
    assert sender.send(content=1) == [Outcome.REPEAT]
    assert sender.send(content=3) == [Outcome.CONFLICT]
    assert len(stations.rows(schema.instance)) == 3


def test_pixels_in_another_encoding_are_left_to_the_worker(stations, sender):
    sender.send(content=1)
    coded = encapsulate([b"\xff\xd8 not decoded here \xff\xd9"])
    assert sender.send(encapsulated=coded, transfer_syntax_uid=JPEGLSLossless) == [Outcome.UNVERIFIED]
    assert stations.series().state == SeriesState.RECEIVING
    assert roles(stations) == [Role.CURRENT, Role.UNVERIFIED]


def test_a_stored_file_that_cannot_be_read_any_more_is_a_conflict_not_a_failure(stations, sender):
    first = sender.arrival(content=1)
    sender.index.record([first])
    (sender.folder / first.sha256).write_bytes(b"rotten")
    assert sender.send(content=2) == [Outcome.CONFLICT]


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
def test_contents_that_cannot_be_compared_for_now_are_compared_later(stations, sender, monkeypatch, number):
    """They differ by nothing that counts, and are no conflict because this machine was short of something."""
    sender.send(content=1)
    again = sender.arrival(content=1, transfer_syntax_uid=ImplicitVRLittleEndian)

    def refuse(*_):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patched:
        patched.setattr(comparing, "compare", refuse)
        with pytest.raises(Unavailable, match="cannot be compared now"):
            sender.index.record([again])
    assert sender.index.record([again]) == [Outcome.VARIANT]
    assert stations.series().state == SeriesState.RECEIVING


def test_contents_that_cannot_be_read_are_not_said_to_be_others(stations, sender):
    first = sender.arrival(content=1)
    sender.index.record([first])
    (sender.folder / first.sha256).unlink()
    assert sender.send(content=2) == [Outcome.CONFLICT]
    assert "because the stored file cannot be read" in stations.series().reason


def test_one_uid_in_two_series_sets_both_to_conflict(stations, sender):
    sender.send("1", [1])
    assert sender.send("2", [1], uid=instance_uid("1", 1)) == [Outcome.CONFLICT]
    assert {row.state for row in stations.rows(schema.series)} == {SeriesState.CONFLICT}
    assert [row.instances for row in stations.rows(schema.series)] == [1, 0]


def test_one_series_uid_in_two_studies_is_two_series(stations, sender):
    sender.send("1", [1])
    sender.send("1", [2], study="8")
    assert [row.instances for row in stations.rows(schema.series)] == [1, 1]
    assert len(stations.rows(schema.study)) == 2


def test_a_late_instance_reopens_a_complete_series_as_the_next_revision(stations, sender):
    sender.send(numbers=[1, 2])
    stations.complete()
    sender.send(numbers=[3], assoc="a2")
    series = stations.series()
    assert (series.state, series.revision, series.routed_revision) == (SeriesState.REOPENED, 2, 1)
    assert series.reason == "1 further instance(s) from MODALITY after the series was complete: revision 2"
    assert [row.revision for row in stations.rows(schema.instance)] == [1, 1, 2]


def test_a_repeat_does_not_reopen(stations, sender):
    sender.send(numbers=[1, 2])
    stations.complete()
    sender.send(numbers=[1, 2], assoc="a2")
    assert stations.series().state == SeriesState.COMPLETE


def test_late_and_conflicting_instances_in_one_batch(stations, sender):
    sender.send(numbers=[1, 2])
    stations.complete()
    late, other = sender.arrival(number=3), sender.arrival(number=1, content=9)
    assert sender.index.record([late, other]) == [Outcome.NEW, Outcome.CONFLICT]
    assert stations.series().state == SeriesState.CONFLICT
    assert stations.series().instances == 3


def purge(stations: Stations) -> None:
    with stations.database.write() as connection:
        connection.execute(sa.update(schema.instance).values(purged_at=now()))


def test_received_again_after_its_file_was_deleted(stations, sender):
    sender.send(numbers=[1, 2])
    stations.complete()
    purge(stations)
    assert sender.send(numbers=[1, 2], assoc="a2") == [Outcome.REPEAT] * 2
    assert {row.purged_at for row in stations.rows(schema.instance)} == {None}
    assert stations.series().state == SeriesState.COMPLETE


def test_other_content_after_its_file_was_deleted_takes_its_place(stations, sender):
    sender.send(numbers=[1, 2], content=1)
    stations.complete()
    purge(stations)
    assert sender.send(numbers=[1], content=2, assoc="a2") == [Outcome.NEW]
    series = stations.series()
    assert (series.state, series.instances, series.revision) == (SeriesState.REOPENED, 2, 2)
    assert roles(stations) == [Role.VARIANT, Role.CURRENT, Role.CURRENT]


def test_the_second_form_of_an_instance_takes_the_place_of_the_first_when_both_were_deleted(stations, sender):
    """Success was answered for it: what is current must have a file, for jobs and for storage commitment."""
    first = sender.arrival(number=1)
    second = sender.arrival(number=1, transfer_syntax_uid=ImplicitVRLittleEndian)
    assert sender.index.record([first]) == [Outcome.NEW]
    assert sender.index.record([second]) == [Outcome.VARIANT]
    stations.complete()
    purge(stations)
    assert sender.index.record([second]) == [Outcome.NEW]
    assert [(row.role, row.revision, row.purged_at is None) for row in stations.rows(schema.instance)] == [
        (Role.VARIANT, 1, False),
        (Role.CURRENT, 2, True),
    ]
    series = stations.series()
    assert (series.state, series.instances, series.revision) == (SeriesState.REOPENED, 1, 2)
    assert sender.index.record([first, second]) == [Outcome.REPEAT] * 2
    assert roles(stations) == [Role.VARIANT, Role.CURRENT]


def test_both_forms_of_a_deleted_instance_in_one_batch(stations, sender):
    first = sender.arrival(number=1)
    second = sender.arrival(number=1, transfer_syntax_uid=ImplicitVRLittleEndian)
    third = sender.arrival(number=1, content=7)
    sender.index.record([first])
    sender.index.record([second])
    purge(stations)
    assert sender.index.record([second, first, third]) == [Outcome.NEW, Outcome.REPEAT, Outcome.CONFLICT]
    assert roles(stations) == [Role.VARIANT, Role.CURRENT, Role.CONFLICT]


def test_a_deleted_instance_that_comes_again_in_another_series_leaves_the_count_of_the_first(stations, sender):
    sender.send("1", [1, 2])
    stations.complete("1")
    purge(stations)
    assert sender.send("2", [1], uid=instance_uid("1", 1), content=9, assoc="a2") == [Outcome.NEW]
    assert (stations.series("1").instances, stations.series("2").instances) == (1, 1)


@pytest.mark.parametrize(
    ("requested", "c_store", "priority"),
    [
        ("", 0, ROUTINE),
        ("", 1, URGENT),
        ("", 2, ROUTINE),
        ("STAT", 0, STAT),
        ("HIGH", 2, URGENT),
        ("LOW", 1, ROUTINE),
        ("ROUTINE", 1, ROUTINE),
    ],
)
def test_priority_is_the_orders_else_the_c_stores_own(tmp_path, requested, c_store, priority):
    sender = Sender.__new__(Sender)
    sender.folder = tmp_path
    assert priority_of(sender.arrival(priority=c_store, RequestedProcedurePriority=requested)) == priority


def test_a_series_takes_the_most_urgent_of_its_instances(stations, sender):
    sender.send(numbers=[1])
    sender.send(numbers=[2], priority=1)
    sender.send(numbers=[3])
    assert stations.series().priority == URGENT


def test_a_received_result_of_this_node_is_known_as_its_own(stations, sender):
    stations.done_job(sender)
    result = stations.rows(schema.result)[0]
    sender.send("5", [1], uid=result.sop_instance_uid, assoc="back")
    assert stations.series("5").own_result
    assert not stations.series("1").own_result


def test_associations_are_noted_with_what_each_brought(stations, sender):
    sender.send("1", [1, 2], assoc="a1")
    sender.send("2", [1], assoc="a1")
    sender.send("1", [3], assoc="a2")
    sender.end("a1")
    sender.end("never opened here")
    ended, still_open = stations.rows(schema.association)
    assert (ended.id, ended.released, still_open.ended_at) == ("a1", True, None)
    assert ended.ended_at is not None
    with stations.database.read() as connection:
        one, two = completion.open_series(connection)
    assert (one.ended, one.released, [share.assoc_id for share in one.open_shares]) == (1, True, ["a2"])
    assert (two.ended, two.open_shares) == (1, ())


def test_STO_09_an_association_whose_commit_was_not_answered_is_ended(stations, sender, monkeypatch):
    """The rows are there, and the retry that finds them does not go through `record` again."""
    real = Database.write

    @contextmanager
    def unanswered(database):
        with real(database) as connection:
            yield connection
        raise Unavailable("the server closed the connection after the commit")

    monkeypatch.setattr(Database, "write", unanswered)
    with pytest.raises(Unavailable):
        sender.send(assoc="a7")
    monkeypatch.setattr(Database, "write", real)
    assert sender.index.association_ended("a7", True)
    association = stations.rows(schema.association)[0]
    assert (association.released, association.ended_at is not None) == (True, True)


def test_STO_09_an_association_that_a_failed_commit_brought_nothing_of_has_no_end(stations, sender, monkeypatch):
    real = Database.write

    def away(_database):
        raise Unavailable("away")

    monkeypatch.setattr(Database, "write", away)
    with pytest.raises(Unavailable):
        sender.send(assoc="a7")
    monkeypatch.setattr(Database, "write", real)
    assert not sender.index.association_ended("a7", True)


def test_an_association_of_a_dead_process_counts_as_ended_without_release(stations, tmp_path):
    Sender(stations.database, tmp_path / "files", owner=DEAD).send(numbers=[1, 2])
    with stations.database.read() as connection:
        (series,) = completion.open_series(connection)
    assert (series.ended, series.released, series.open_shares) == (1, False, ())


def test_long_and_odd_text_is_taken_as_it_is(stations, sender):
    arrival = sender.arrival()
    odd = {
        "Modality": "NO MODALITY BY FAR",
        "AccessionNumber": "漢字 \N{REPLACEMENT CHARACTER} ' \" \\",
        "PatientID": "x" * 1024,
    }
    sender.index.record([replace(arrival, header=Header({**arrival.header.values, **odd}))])
    assert stations.series().modality == odd["Modality"]
    assert stations.rows(schema.study)[0].accession_number == odd["AccessionNumber"]


# -- comparing


@pytest.fixture
def compared(monkeypatch):
    """Return a list of what is done while contents are compared, and what was compared: one call for each pair."""
    does, real = [], comparing.compare

    def compare(a, b, allowed):
        for do in does:
            do()
        return real(a, b, allowed)

    monkeypatch.setattr(comparing, "compare", compare)
    return does


def test_STO_09_no_transaction_is_open_while_contents_are_compared(stations, sender, compared):
    """Whoever sends a known UID with a byte changed holds up no other process's writing."""
    other = Database(stations.database.url)
    wrote = []

    def write() -> None:
        with other.write() as connection:
            if not other.is_sqlite:
                connection.execute(sa.text("LOCK TABLE study, series, instance IN ACCESS EXCLUSIVE MODE"))
            connection.execute(sa.update(schema.study).values(accession_number="A1"))
        wrote.append(True)

    sender.send(numbers=[1, 2], content=1)
    compared.append(write)
    batch = [
        sender.arrival(number=1, content=1, transfer_syntax_uid=ImplicitVRLittleEndian),
        sender.arrival(number=2, content=2),
        sender.arrival(number=3),
        sender.arrival(number=3, content=2),
    ]
    assert sender.index.record(batch) == [Outcome.VARIANT, Outcome.CONFLICT, Outcome.NEW, Outcome.CONFLICT]
    assert wrote == [True] * 3
    other.close()


def test_what_was_compared_with_something_else_meanwhile_is_judged_anew(stations, sender, compared):
    """Retention deletes the first content, and another process records a third one, amid the comparison."""
    sender.send(content=1)
    third = Sender(stations.database, sender.folder)
    calls = []

    def meanwhile() -> None:
        calls.append(1)
        if len(calls) == 1:
            purge(stations)
            assert third.send(content=3) == [Outcome.NEW]

    compared.append(meanwhile)
    other = sender.arrival(content=3, transfer_syntax_uid=ImplicitVRLittleEndian)
    assert sender.index.record([other]) == [Outcome.VARIANT]
    assert len(calls) == 2
    assert roles(stations) == [Role.VARIANT, Role.CURRENT, Role.VARIANT]


def test_what_never_stays_as_it_was_compared_is_tried_again_later(stations, sender, monkeypatch):
    sender.send(content=1)
    other = sender.arrival(content=2)
    with monkeypatch.context() as patch:
        patch.setattr(comparing.Comparisons, "learn", lambda *_: {})
        with pytest.raises(Unavailable, match="other processes"):
            sender.index.record([other])
    assert roles(stations) == [Role.CURRENT]
    assert sender.index.record([other]) == [Outcome.CONFLICT]


def test_a_pair_is_compared_once_however_often_its_transaction_fails(sender, compared, monkeypatch):
    sender.send(content=1)
    calls = []
    compared.append(lambda: calls.append(1))
    other = sender.arrival(content=2)
    with monkeypatch.context() as patch:
        patch.setattr(index._Recording, "_judge", failing(Unavailable("the database does not answer")))
        for _ in range(3):
            with pytest.raises(Unavailable):
                sender.index.record([other])
    assert sender.index.record([other]) == [Outcome.CONFLICT]
    assert len(calls) == 1


def test_sent_again_after_it_was_deleted_and_others_in_the_same_batch(stations, sender):
    """What is compared with what is known before the transaction judges."""
    sender.send(numbers=[1, 2], content=1)
    stations.complete()
    purge(stations)
    restored = [sender.arrival(number=1, content=1), sender.arrival(number=1, content=2)]
    replaced = [sender.arrival(number=2, content=content) for content in (2, 1, 3, 2)]
    assert sender.index.record(restored) == [Outcome.REPEAT, Outcome.CONFLICT]
    assert sender.index.record(replaced) == [Outcome.NEW, Outcome.REPEAT, Outcome.CONFLICT, Outcome.REPEAT]


def test_STO_06_what_is_too_much_to_be_compared_is_a_conflict_that_says_so(stations, sender, monkeypatch):
    """Beyond what a batch may cost: shown to a person; what is identical stays the same whatever it costs."""
    monkeypatch.setattr("pacs_ai.dicom.equality._ALL_ELEMENTS", 60)  # a pair has some 40
    clock = Clock()
    monkeypatch.setattr(sender.index, "_comparisons", comparing.Comparisons(sender.folder.joinpath, clock))
    sender.send(numbers=[1, 2, 3], content=1)
    batch = [sender.arrival(number=n, content=1, transfer_syntax_uid=ImplicitVRLittleEndian) for n in (1, 2)]
    repeated = [sender.arrival(number=n, content=1) for n in (1, 2, 3)]
    outcomes = sender.index.record([*batch, *repeated])
    assert outcomes == [Outcome.VARIANT, Outcome.CONFLICT, *[Outcome.REPEAT] * 3]
    assert "content that is too much to be compared under SOP Instance UID 1.2.3.1.2" in stations.series().reason
    clock.forward(60)
    assert sender.send(numbers=[3], content=1, transfer_syntax_uid=ImplicitVRLittleEndian) == [Outcome.VARIANT]


def failing(error: Exception):
    def fail(*_):
        raise error

    return fail


# -- several at once


def test_STO_05_32_threads_with_the_same_instance_make_one_row(stations, sender):
    arrival = sender.arrival()
    start = threading.Barrier(32)

    def store(_: int) -> Outcome:
        start.wait()
        return sender.index.record([arrival])[0]

    with ThreadPoolExecutor(32) as threads:
        outcomes = sorted(threads.map(store, range(32)))
    assert outcomes == [Outcome.NEW, *[Outcome.REPEAT] * 31]
    assert len(stations.rows(schema.instance)) == 1
    assert stations.series().arrivals == 32


def test_differing_contents_at_once_leave_exactly_one_current(stations, sender):
    arrivals = [sender.arrival(content=content) for content in range(8)]
    start = threading.Barrier(8)

    def store(number: int) -> Outcome:
        start.wait()
        return sender.index.record([arrivals[number]])[0]

    with ThreadPoolExecutor(8) as threads:
        outcomes = sorted(threads.map(store, range(8)))
    assert outcomes == [*[Outcome.CONFLICT] * 7, Outcome.NEW]
    assert roles(stations).count(Role.CURRENT) == 1
    assert stations.series().state == SeriesState.CONFLICT


def test_one_uid_into_two_series_at_once(stations, sender):
    start = threading.Barrier(2)
    arrivals = [sender.arrival(series, uid="1.2.3.77") for series in ("1", "2")]

    def store(number: int) -> Outcome:
        start.wait()
        return sender.index.record([arrivals[number]])[0]

    with ThreadPoolExecutor(2) as threads:
        outcomes = sorted(threads.map(store, range(2)))
    assert outcomes == [Outcome.CONFLICT, Outcome.NEW]
    assert roles(stations).count(Role.CURRENT) == 1


def _receive(url: str, folder: Path, order: list[str], numbers: range, start: object, assoc: str) -> None:
    """Bring several new series in one batch each, as a receive process of its own."""
    database = Database(url)
    sender = Sender(database, folder, owner=f"receive-{assoc}")
    start.wait()
    for number in numbers:
        sender.index.record([sender.arrival(series, number, assoc=assoc) for series in order])
    database.close()


def test_two_processes_bring_the_same_new_series_in_opposite_order(stations, tmp_path):
    """Batches that touch the same rows in another order must not end in a deadlock's error."""
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(2)
    order = [str(n) for n in range(1, 9)]
    processes = [
        context.Process(
            target=_receive,
            args=(stations.database.url, tmp_path / "files", names, range(1, 11), start, assoc),
        )
        for assoc, names in (("a1", order), ("a2", order[::-1]))
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]
    assert [row.instances for row in stations.rows(schema.series)] == [10] * 8
    assert [row.arrivals for row in stations.rows(schema.series)] == [20] * 8


def test_STO_09_a_database_that_stays_locked_is_unavailable_and_nothing_is_recorded(stations, sender, monkeypatch):
    monkeypatch.setattr("pacs_ai.store.database._BUSY_SECONDS", 0.05)
    impatient = Database(stations.database.url)
    arrival = sender.arrival()
    with stations.database.write() as connection:
        if not impatient.is_sqlite:
            connection.execute(sa.text("LOCK TABLE series IN ACCESS EXCLUSIVE MODE"))
        with pytest.raises(Unavailable, match="database"):
            Sender(impatient, sender.folder).index.record([arrival])
    impatient.close()
    assert stations.rows(schema.instance) == []
    assert sender.index.record([arrival]) == [Outcome.NEW]


def test_a_row_that_breaks_a_constraint_is_told_apart_from_other_processes_in_the_way(sender, monkeypatch):
    """What is tried again for ever is only what may go through one day."""

    arrival = sender.arrival()
    with monkeypatch.context() as patch:
        patch.setattr(index._Recording, "record", failing(sa.exc.IntegrityError("INSERT", {}, ValueError("odd"))))
        with pytest.raises(sa.exc.IntegrityError):
            sender.index.record([arrival])
        patch.setattr(index._Recording, "record", failing(Contended("another transaction was in the way")))
        with pytest.raises(Unavailable, match="other processes"):
            sender.index.record([arrival])
    assert sender.index.record([arrival]) == [Outcome.NEW]


# -- a person decides


def conflict(sender: Sender, stations: Stations) -> None:
    sender.send(numbers=[1, 2], content=1)
    stations.complete()
    sender.send(numbers=[1], content=2, assoc="a2")


def test_keep_the_first(stations, sender):
    conflict(sender, stations)
    assert orders.resolve(stations.database, "1.2.3.1", keep="first", actor=ME) == 1
    series = stations.series()
    assert (series.state, series.revision, series.instances) == (SeriesState.REOPENED, 1, 2)
    assert sorted(roles(stations)) == [Role.CURRENT, Role.CURRENT, Role.VARIANT]


def test_keep_the_latest_is_a_new_revision(stations, sender):
    conflict(sender, stations)
    sender.send(numbers=[1], content=3, assoc="a3")
    assert orders.resolve(stations.database, "1.2.3.1", keep="latest", actor=ME) == 1
    series = stations.series()
    assert (series.state, series.revision, series.instances) == (SeriesState.REOPENED, 2, 2)
    latest = stations.rows(schema.instance)[-1]
    assert latest.role == Role.CURRENT
    with stations.database.read() as connection:
        assert (
            journal.of(connection, "series", series.id)[-1].reason
            == "an operator kept the latest content of 1 instance(s)"
        )


def test_keep_the_latest_of_an_instance_that_was_another_series(stations, sender):
    sender.send("1", [1, 2])
    stations.complete("1")
    sender.send("2", [1], uid=instance_uid("1", 1), assoc="a2")
    orders.resolve(stations.database, "1.2.3.2", keep="latest", actor=ME)
    assert stations.series("2").instances == 1
    assert stations.series("1").instances == 1
    assert stations.series("1").state == SeriesState.CONFLICT
    orders.resolve(stations.database, "1.2.3.1", keep="first", actor=ME)
    assert [row.state for row in stations.rows(schema.series)] == [SeriesState.REOPENED] * 2
    assert stations.series("1").revision == 2


def test_nothing_to_decide_is_said(stations, sender):
    sender.send()
    with pytest.raises(UserError, match=r"no series 1\.2\.3\.1 in conflict"):
        orders.resolve(stations.database, "1.2.3.1", keep="first", actor=ME)
