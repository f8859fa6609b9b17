"""What retention deletes, on both databases: inputs of ended, delivered jobs after their days, and never others."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
from datetime import timedelta
from types import SimpleNamespace

import pytest
import sqlalchemy as sa
from objects import SEG_AND_SR
from stations import BACKOFF, ME, Clock, Sender

from pacs_ai.errors import Unavailable
from pacs_ai.infer import worker
from pacs_ai.infer.order import Done, EncodedFile
from pacs_ai.states import JobState, SeriesEvent
from pacs_ai.store import completion, journal, orders, outbox, queue, retention, schema
from pacs_ai.store.clock import now
from pacs_ai.store.files import Files
from pacs_ai.store.index import Outcome
from pacs_ai.store.moves import move
from pacs_ai.store.sweeping import SECOND_LOOK_SECONDS


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def files(tmp_path, clock):
    return Files(tmp_path / "store", clock)


def purge(stations, files, *, inputs_days=14.0, unrouted_days=2.0):
    return retention.purge(
        stations.database, files, inputs_days=inputs_days, unrouted_days=unrouted_days, actor="retention"
    )


def purged(stations):
    return [row.purged_at is not None for row in stations.rows(schema.instance)]


def test_inputs_of_a_delivered_job_go_after_their_days(stations, sender, files, wall):
    stations.done_job(sender)
    stations.deliver_all()
    wall.forward(days=13)
    assert purge(stations, files) == 0
    wall.forward(days=1.1)
    assert purge(stations, files) == 2
    assert purged(stations) == [True, True]
    with stations.database.read() as connection:
        entry = journal.of(connection, "series", stations.series().id)[-1]
    assert (entry.event, entry.reason, entry.actor) == (
        "purged_with_study",
        "2 file(s) deleted by retention",
        "retention",
    )
    assert purge(stations, files) == 0


def test_the_days_count_from_the_delivery_not_from_the_reception(stations, sender, files, wall):
    stations.done_job(sender)
    wall.forward(days=20)
    assert purge(stations, files) == 0
    stations.deliver_all()
    assert purge(stations, files) == 0
    wall.forward(days=15)
    assert purge(stations, files) == 2


@pytest.mark.parametrize("days", [800_000.0, 1e10, float("inf")])
def test_a_number_of_days_as_large_as_you_like_keeps_all(stations, sender, files, wall, days):
    stations.done_job(sender)
    stations.deliver_all()
    wall.forward(days=10_000)
    assert purge(stations, files, inputs_days=days, unrouted_days=days) == 0


@pytest.mark.parametrize("state", ["queued", "running", "withheld", "failed"])
def test_STO_11_inputs_of_a_job_that_has_not_ended_stay(stations, source, files, wall, state):
    job_id, _ = stations.enqueue(stations.work(source))
    if state == "running":
        stations.claim()
    elif state == "withheld":
        orders.pause(stations.database, "ct-lung", actor=ME)
    elif state == "failed":
        queue.fail(stations.database, stations.claim(), "the pipeline broke")
    assert stations.job(job_id).state == state
    wall.forward(days=1000)
    assert purge(stations, files) == 0


@pytest.mark.parametrize("state", ["refused", "cancelled"])
def test_inputs_of_a_refused_or_cancelled_job_go(stations, source, files, wall, state):
    job_id, _ = stations.enqueue(stations.work(source))
    if state == "refused":
        queue.refuse(stations.database, stations.claim(), "no chest")
    else:
        orders.cancel(stations.database, job_id, actor=ME)
    wall.forward(days=15)
    assert purge(stations, files) == 2


@pytest.mark.parametrize("outcome", ["waiting", "sending", "failed"])
def test_inputs_of_undelivered_results_stay(stations, sender, files, wall, outcome):
    stations.done_job(sender)
    if outcome != "waiting":
        held = outbox.claim(stations.database, "pacs", ME)
        assert held is not None
        if outcome == "failed":
            for parcel in held.parcels:
                outbox.failed(stations.database, held, parcel, 0xA900, "no")
            outbox.put_back(stations.database, held, reached=True, reason="", backoff=BACKOFF)
    wall.forward(days=1000)
    assert purge(stations, files) == 0


def test_one_undone_job_of_several_keeps_the_inputs(stations, sender, source, files, wall):
    stations.enqueue(stations.work(source))
    stations.finish(stations.claim())
    stations.deliver_all()
    stations.enqueue(stations.work(source, pipeline="other"))
    wall.forward(days=15)
    assert purge(stations, files) == 0


def test_what_no_route_wanted_goes_earlier(stations, sender, files, wall):
    sender.send(numbers=[1, 2])
    with stations.database.write() as connection:
        move(connection, 1, SeriesEvent.NO_ROUTE, actor=ME, reason="no route wants it", routed_revision=1)
    wall.forward(days=1)
    assert purge(stations, files) == 0
    wall.forward(days=1.1)
    assert purge(stations, files) == 2


def test_what_is_arriving_waited_beside_or_in_conflict_stays(stations, sender, files, wall):
    sender.send("1", [1, 2])
    sender.send("2", [1, 2])
    completed = stations.complete("2")
    with stations.database.write() as connection:
        completion.set_awaiting(connection, completed.series_id, True)
    sender.send("3", [1], content=1)
    stations.complete("3")
    sender.send("3", [1], content=2)
    wall.forward(days=1000)
    assert purge(stations, files) == 0


def test_received_again_it_stays_its_days_again(stations, sender, files, wall):
    stations.done_job(sender)
    stations.deliver_all()
    wall.forward(days=15)
    assert purge(stations, files) == 2
    assert sender.send(numbers=[1, 2], assoc="again") == [Outcome.REPEAT] * 2
    assert purged(stations) == [False, False]
    with stations.database.write() as connection:
        connection.execute(sa.update(schema.series).values(last_received_at=now()))
    assert purge(stations, files) == 0
    wall.forward(days=15)
    assert purge(stations, files) == 2
    assert stations.jobs() == [JobState.DONE]


def test_the_sweep_deletes_old_files_that_no_row_names(stations, files, clock, tmp_path):
    kept = files.write((b"named",))
    orphan, young = files.write((b"orphan",)), files.write((b"young",))
    gone = files.write((b"purged",))
    result = files.write((b"a result",))
    sender = Sender(stations.database, tmp_path / "files")
    for number, stored in enumerate((kept, gone)):
        arrival = sender.arrival(number=number)
        sender.index.record([arrival])
        with stations.database.write() as connection:
            this = schema.instance.c.sha256 == arrival.sha256
            connection.execute(sa.update(schema.instance).where(this).values(sha256=stored.sha256))
    stations.enqueue(stations.work(stations.complete()))
    stations.finish(stations.claim(), "SEG")
    with stations.database.write() as connection:
        purged_row = schema.instance.c.sha256 == gone.sha256
        connection.execute(sa.update(schema.instance).where(purged_row).values(purged_at=now()))
    with stations.database.write() as connection:
        connection.execute(sa.update(schema.result).values(sha256=result.sha256))
    old = (now() - timedelta(hours=2)).timestamp()
    for stored in (kept, orphan, gone, result):
        os.utime(stored.path, (old, old))
    assert retention.sweep(stations.database, files) == []
    clock.forward(SECOND_LOOK_SECONDS)
    assert sorted(retention.sweep_again(stations.database, files)) == sorted([orphan.sha256, gone.sha256])
    assert [stored.path.exists() for stored in (kept, orphan, young, gone, result)] == [True, False, True, False, True]


def test_the_sweep_asks_once_for_each_folder(stations, files, clock, monkeypatch):
    old = (now() - timedelta(hours=2)).timestamp()
    folders = set()
    for number in range(40):
        stored = files.write((str(number).encode(),))
        os.utime(stored.path, (old, old))
        folders.add(hashlib.sha256(str(number).encode()).hexdigest()[:2])
    asked = []
    read = stations.database.read
    monkeypatch.setattr(stations.database, "read", lambda: (asked.append(1), read())[1])
    retention.sweep(stations.database, files)
    assert len(asked) == len(folders)
    clock.forward(SECOND_LOOK_SECONDS)
    assert len(retention.sweep_again(stations.database, files)) == 40
    assert len(asked) == 2 * len(folders)


_PURGING = """
import sys
from pathlib import Path
from pacs_ai.errors import Transient
from pacs_ai.store import retention
from pacs_ai.store.database import Database
from pacs_ai.store.files import Files
database, files, stop = Database(sys.argv[1]), Files(Path(sys.argv[2])), Path(sys.argv[3])
print("purging", flush=True)
deleted = 0
while not stop.exists():
    try:
        deleted += retention.purge(database, files, inputs_days=0.0, unrouted_days=0.0, actor="retention")
    except Transient:
        pass  # the other process had the database for too long: again
print(deleted)
"""


def test_STO_11_two_processes_of_which_one_purges_while_the_other_enqueues(stations, sender, tmp_path):
    """Whoever comes first: a job that is queued has all its inputs, and one that came too late is refused."""
    url, stop = stations.database.engine.url.render_as_string(hide_password=False), tmp_path / "stop"
    command = [sys.executable, "-c", _PURGING, url, str(tmp_path / "purged"), str(stop)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as purging:
        try:
            assert purging.stdout.readline() == "purging\n"
            for number in range(60):
                series = str(100 + number)
                sender.send(series, [1, 2], study=series)
                source = stations.complete(series)
                for _ in range(number % 4):
                    stations.series(series)  # a moment, in which the other may come first
                stations.enqueue(stations.work(source))
        finally:
            stop.touch()
        told = purging.stdout.readline()
    assert purging.returncode == 0
    gone = {row.series_id for row in stations.rows(schema.instance, schema.instance.c.purged_at.is_not(None))}
    assert 2 * len(gone) == int(told), "series are purged as a whole"
    of = {row.job_id: row.series_id for row in stations.rows(schema.job_source)}
    jobs = stations.rows(schema.job)
    assert len(jobs) == 60
    assert {row.state for row in jobs} <= {"queued", "refused"}
    assert "queued" in {row.state for row in jobs}
    assert all(of[row.id] not in gone for row in jobs if row.state == "queued")
    assert all(of[row.id] in gone for row in jobs if row.state == "refused")


def test_STO_11_results_that_cannot_be_committed_for_hours_are_not_swept(
    stations, sender, files, clock, tmp_path, monkeypatch
):
    """A database that takes no writes can still be read, so the sweep goes on while a worker insists."""
    sender.send()
    stations.enqueue(stations.work(stations.complete()))
    held = stations.claim()
    path = tmp_path / "encoded"
    path.write_bytes(b"an encoded object")
    uids = ("1.2.9.7", "2.25.1", "2.25.2", "1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.1.2.1")
    done = Done((EncodedFile(path, "segmentation", SEG_AND_SR[0].key, *uids),), {"lungs": 2}, {"inferring": 0.5}, "2")
    stored_at = files.path(hashlib.sha256(path.read_bytes()).hexdigest())
    finish, tries = queue.finish, []

    def taken_at_last(*arguments, **words):
        tries.append(retention.sweep(stations.database, files))
        clock.forward(2 * SECOND_LOOK_SECONDS)
        tries.append(retention.sweep_again(stations.database, files))
        if len(tries) == 2:
            os.utime(stored_at, (0, 0))  # hours pass
            retention.sweep(stations.database, files)
            clock.forward(2 * SECOND_LOOK_SECONDS)
            raise Unavailable("the database takes no writes")
        finish(*arguments, **words)

    monkeypatch.setattr(queue, "finish", taken_at_last)
    monkeypatch.setattr(worker, "_INSIST_SECONDS", 0.0)
    config = SimpleNamespace(store=SimpleNamespace(folder=tmp_path), pipeline=())
    order = SimpleNamespace(encodings=[SEG_AND_SR[0]], unverified=())
    made = worker.Worker(config, stations.database, files, ME, "cpu", threading.Event())
    made._finish(held, order, done)
    assert tries == [[]] * 4
    assert stations.jobs() == ["done"]
    assert stored_at.read_bytes() == b"an encoded object"
