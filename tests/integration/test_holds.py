"""What holds jobs back while several act in the same moment: who enqueues, pauses, resumes, and receives a conflict."""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa
from stations import ME

from pacs_ai.states import JobState, SeriesEvent, SeriesState
from pacs_ai.store import enqueue, holds, orders, queue
from pacs_ai.store.enqueue import Source
from pacs_ai.store.moves import move

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_WAITING = sa.text(
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
)
#: On SQLite one transaction waits for the other from its first word.
on_postgresql = pytest.mark.parametrize("database", ["postgresql"], indirect=True)


@contextmanager
def amid(stations, other: Callable[[], object]) -> Iterator[Callable[[], Future]]:
    """Yield what begins another's transaction amid one's own: it returns once that waits for a lock, or has ended."""
    with ThreadPoolExecutor(1) as threads:

        def begin() -> Future:
            begun = threads.submit(other)
            deadline = time.monotonic() + 60
            while not begun.done():
                with stations.database.read() as connection:
                    if connection.execute(_WAITING).scalar_one():
                        break
                assert time.monotonic() < deadline
            return begun

        yield begin


@on_postgresql
def test_a_job_that_is_made_while_its_pipeline_is_resumed_goes_on(stations, source):
    orders.pause(stations.database, "ct-lung", actor=ME)
    work = stations.work(source)
    with amid(stations, lambda: orders.resume(stations.database, "ct-lung", actor=ME)) as begin:
        with stations.database.write() as connection:
            job_id, _ = enqueue.enqueue(connection, stations.database, work, actor=ME)
            resumed = begin()
        assert resumed.result() == 1
    assert stations.claim().job_id == job_id


@on_postgresql
def test_a_job_that_is_made_while_its_pipeline_is_paused_is_withheld(stations, source):
    work = stations.work(source)
    with amid(stations, lambda: orders.pause(stations.database, "ct-lung", actor=ME)) as begin:
        with stations.database.write() as connection:
            job_id, _ = enqueue.enqueue(connection, stations.database, work, actor=ME)
            paused = begin()
        assert paused.result() == 1
    assert (stations.job(job_id).state, stations.job(job_id).reason) == (JobState.WITHHELD, holds.PAUSED)


@on_postgresql
def test_who_enqueues_and_who_resumes_never_wait_for_each_other(stations, sender, source, monkeypatch):
    """The job that is superseded is one of those that would be released."""
    orders.pause(stations.database, "ct-lung", actor=ME)
    former, _ = stations.enqueue(stations.work(source))
    sender.send(numbers=[3], assoc="a2")
    work = stations.work(stations.complete())
    resumed = []
    with amid(stations, lambda: orders.resume(stations.database, "ct-lung", actor=ME)) as begin:

        def resumed_first(*arguments, **words):
            resumed.append(begin())
            return holds.hold_back(*arguments, **words)

        monkeypatch.setattr(enqueue, "hold_back", resumed_first)
        job_id, _ = stations.enqueue(work)
        assert resumed[0].result() == 1
    assert stations.job(former).state == JobState.SUPERSEDED
    assert stations.claim().job_id == job_id


@on_postgresql
def test_a_job_is_withheld_whose_other_series_comes_into_conflict_while_it_is_made(stations, sender):
    sender.send("1", (1, 2))
    sender.send("2", (1, 2))
    one, two = stations.complete("1"), stations.complete("2")
    work = stations.work(one, Source("other", two.series_id, two.revision))
    with amid(stations, lambda: sender.send("2", (1,), content=9, assoc="a2")) as begin:
        with stations.database.write() as connection:
            job_id, _ = enqueue.enqueue(connection, stations.database, work, actor=ME)
            received = begin()
        received.result()
    assert stations.series("2").state == SeriesState.CONFLICT
    assert queue.claim(stations.database, ME) is None
    assert (stations.job(job_id).state, stations.job(job_id).reason) == (JobState.WITHHELD, holds.CONFLICT)


@on_postgresql
def test_a_job_is_withheld_whose_series_comes_into_conflict_while_it_is_tried_again(stations, source):
    job_id, _ = stations.enqueue(stations.work(source))
    queue.fail(stations.database, stations.claim(), "broken")
    with amid(stations, lambda: orders.retry(stations.database, job_id, actor=ME)) as begin:
        with stations.database.write() as connection:
            words = "other content came"
            move(connection, source.series_id, SeriesEvent.DIFFERING_INSTANCE, actor=ME, reason=words)
            holds.withhold_for_conflict(connection, source.series_id, actor=ME)
            retried = begin()
        assert retried.result() == job_id
    assert (stations.job(job_id).state, stations.job(job_id).reason) == (JobState.WITHHELD, holds.CONFLICT)
