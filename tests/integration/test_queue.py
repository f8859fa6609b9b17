"""The jobs, on both databases: enqueued once, claimed once, finished once, whoever dies or sleeps meanwhile."""

from __future__ import annotations

import multiprocessing
import resource
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import sqlalchemy as sa
from stations import ARCHIVE, DEAD, ELSEWHERE, ME, PACS, Clock, Stations

from pacs_ai.states import JobState
from pacs_ai.store import processes, queue, schema, views
from pacs_ai.store.clock import now
from pacs_ai.store.database import Database
from pacs_ai.store.enqueue import ROUTINE, STAT, URGENT, Source, is_covered
from pacs_ai.store.owners import STANDSTILL_SECONDS, Watch
from pacs_ai.store.queue import Lost


def copies(stations: Stations, job_id: int, count: int, **values: object) -> list[int]:
    """Insert jobs like one that is there, many at once."""
    row = stations.job(job_id)._asdict()
    del row["id"]
    with stations.database.write() as connection:
        first = connection.execute(sa.select(sa.func.max(schema.job.c.id))).scalar_one()
        keys = [f"{job_id}-{n + first}" for n in range(count)]
        rows = [{**row, **values, "job_key": key, "settings_digest": key} for key in keys]
        connection.execute(sa.insert(schema.job), rows)
        made = sa.select(schema.job.c.id).where(schema.job.c.id > first).order_by(schema.job.c.id)
        ids = connection.execute(made).scalars().all()
        moves = [
            {
                "at": now(),
                "subject": "job",
                "subject_id": str(one),
                "event": "enqueued",
                "before": "",
                "after": rows[0]["state"],
                "reason": "a copy",
                "actor": ME,
            }
            for one in ids
        ]
        connection.execute(sa.insert(schema.journal), moves)
    return list(ids)


# -- enqueueing


def test_the_same_work_is_enqueued_once(stations, source):
    job_id, is_new = stations.enqueue(stations.work(source))
    assert is_new
    assert stations.enqueue(stations.work(source)) == (job_id, False)
    assert stations.jobs() == [JobState.QUEUED]


def test_another_pipeline_version_model_or_setting_is_other_work(stations, source):
    keys = {"pipeline_version": "2", "model_digest": "other", "settings_digest": "other"}
    stations.enqueue(stations.work(source))
    for key, value in keys.items():
        assert stations.enqueue(stations.work(source, **{key: value}))[1]


def test_two_routes_to_one_pipeline_add_their_destinations(stations, source):
    job_id, _ = stations.enqueue(stations.work(source, route="one"))
    again = stations.work(source, route="two", destinations=(PACS, ARCHIVE))
    assert stations.enqueue(again) == (job_id, False)
    stations.finish(stations.claim(), "SEG")
    assert sorted(row.peer for row in stations.rows(schema.delivery)) == ["archive", "pacs"]


def test_a_route_that_comes_after_the_end_still_gets_its_deliveries(stations, source):
    stations.enqueue(stations.work(source))
    stations.finish(stations.claim(), "SEG", "SR")
    stations.enqueue(stations.work(source, route="two", destinations=(ARCHIVE,)))
    assert sorted(row.peer for row in stations.rows(schema.delivery)) == ["archive"] * 2 + ["pacs"] * 2


def test_covered_means_same_sources_and_every_destination(stations, source):
    work = stations.work(source)
    with stations.database.read() as connection:
        assert not is_covered(connection, work)
    stations.enqueue(work)
    with stations.database.read() as connection:
        assert is_covered(connection, work)
        assert is_covered(connection, stations.work(source, destinations=(), route="nobody gets it"))
        assert not is_covered(connection, stations.work(source, destinations=(PACS, ARCHIVE)))
        assert not is_covered(connection, stations.work(Source("image", source.series_id, 2)))


def test_the_same_work_enqueued_by_many_at_once_is_one_job(stations, source):
    start = threading.Barrier(8)
    work = stations.work(source)

    def enqueue(number: int) -> tuple[int, bool]:
        start.wait()
        return stations.enqueue(work if number % 2 else stations.work(source, destinations=(ARCHIVE,)))

    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(enqueue, range(8)))
    assert len({job_id for job_id, _ in found}) == 1
    assert sum(is_new for _, is_new in found) == 1
    assert len(stations.rows(schema.job_destination)) == 2


def test_a_route_added_while_the_job_ends_gets_its_deliveries(stations, source):
    """Either the end sees the new destination, or the new destination sees the end."""
    for _ in range(5):
        stations.enqueue(stations.work(source, settings_digest=str(_), route=f"r{_}"))
        held = stations.claim()
        start = threading.Barrier(2)

        def add(number: int = _, gate: threading.Barrier = start) -> None:
            gate.wait()
            work = stations.work(source, settings_digest=str(number), route="late", destinations=(ARCHIVE,))
            stations.enqueue(work)

        with ThreadPoolExecutor(1) as threads:
            added = threads.submit(add)
            start.wait()
            stations.finish(held, "SEG")
            added.result()
        mine = stations.rows(schema.delivery, schema.delivery.c.job_id == held.job_id)
        assert sorted(row.peer for row in mine) == ["archive", "pacs"]


# -- order


def test_QUE_07_stat_behind_500_routine_starts_next(stations, source):
    first, _ = stations.enqueue(stations.work(source))
    copies(stations, first, 499)
    stat, _ = stations.enqueue(stations.work(source, pipeline="other", priority=STAT))
    urgent, _ = stations.enqueue(stations.work(source, pipeline="third", priority=URGENT))
    assert [stations.claim().job_id for _ in range(3)] == [stat, urgent, first]


def test_QUE_06_an_old_routine_job_is_not_starved(stations, source, wall):
    routine, _ = stations.enqueue(stations.work(source, priority=ROUTINE))
    wall.forward(minutes=61)
    stations.enqueue(stations.work(source, pipeline="other", priority=STAT))
    assert stations.claim().job_id == routine


def test_QUE_06_a_burst_of_1000_jobs_is_worked_off_in_order_without_growing(stations, source):
    first, _ = stations.enqueue(stations.work(source))
    burst = [first, *copies(stations, first, 999)]
    order = [stations.claim().job_id for _ in range(20)]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    order += [stations.claim().job_id for _ in range(80)]
    assert order == burst[:100]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32_768  # KiB
    with stations.database.write() as connection:  # what is left would be held to account for seconds
        connection.execute(sa.delete(schema.job).where(schema.job.c.state == JobState.QUEUED.value))


def test_a_pipeline_can_be_asked_for_alone(stations, source):
    stations.enqueue(stations.work(source))
    other, _ = stations.enqueue(stations.work(source, pipeline="other"))
    assert queue.claim(stations.database, ME, ["nothing"]) is None
    held = queue.claim(stations.database, ME, ["other"])
    assert held is not None
    assert held.job_id == other


def test_a_job_that_is_not_due_yet_is_passed_over(stations, source, wall):
    wall.stop()
    stations.enqueue(stations.work(source))
    queue.postpone(stations.database, stations.claim(), "the GPU is away")
    assert queue.claim(stations.database, ME) is None
    (row,) = stations.rows(schema.job)
    assert (row.state, row.reason) == (JobState.QUEUED, "the GPU is away")


def test_waits_grow_and_are_capped(stations, source, wall):
    wall.stop()
    job_id, _ = stations.enqueue(stations.work(source))
    waits = []
    for _ in range(9):
        stations.make_due()
        queue.postpone(stations.database, stations.claim(), "again")
        waits.append(round((stations.job(job_id).due_at - now()).total_seconds()))
    assert waits == [5, 10, 20, 40, 80, 160, 300, 300, 300]


def test_a_job_given_back_is_due_at_once_and_was_not_tried(stations, source):
    job_id, _ = stations.enqueue(stations.work(source))
    queue.put_back(stations.database, stations.claim(), "the node was stopped")
    assert stations.job(job_id).attempts == 0
    assert stations.claim().job_id == job_id


# -- claims


def test_QUE_03_many_threads_claim_each_job_once(stations, source):
    first, _ = stations.enqueue(stations.work(source))
    copies(stations, first, 39)
    claimed: list[int] = []

    def work_off(number: int) -> None:
        while (held := queue.claim(stations.database, f"infer:{number}")) is not None:
            claimed.append(held.job_id)
            queue.refuse(stations.database, held, "not a chest")

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(work_off, range(8)))
    assert sorted(claimed) == sorted(set(claimed))
    assert stations.jobs() == [JobState.REFUSED] * 40


def _work_off(url: str, owner: str, start: object, found: object) -> None:
    database = Database(url)
    start.wait()
    claimed = []
    while (held := queue.claim(database, owner)) is not None:
        claimed.append(held.job_id)
        queue.refuse(database, held, "not a chest")
    database.close()
    found.put(claimed)


@pytest.mark.parametrize("count", [60, pytest.param(10_000, marks=[pytest.mark.nightly, pytest.mark.timeout(1800)])])
def test_QUE_03_two_processes_claim_each_job_once(stations, source, count):
    first, _ = stations.enqueue(stations.work(source))
    copies(stations, first, count - 1)
    context = multiprocessing.get_context("spawn")
    start, found = context.Barrier(2), context.Queue()
    workers = [
        context.Process(target=_work_off, args=(stations.database.url, f"infer:{n}", start, found)) for n in range(2)
    ]
    for worker in workers:
        worker.start()
    claimed = [found.get(timeout=120 + count / 10) for _ in workers]
    for worker in workers:
        worker.join(60)
    counts = Counter(job_id for each in claimed for job_id in each)
    assert set(counts.values()) == {1}
    assert len(counts) == count


# -- takeover


def test_QUE_02_a_worker_that_was_asleep_cannot_finish_nor_anything_else(stations, source):
    stations.enqueue(stations.work(source))
    asleep = stations.claim(ELSEWHERE)
    time = Clock()
    watch = Watch(time)
    for _ in range(8):
        queue.sweep(stations.database, watch, ME)
        time.forward(5)
    assert stations.jobs() == [JobState.QUEUED]
    doing = [
        lambda: stations.finish(asleep),
        lambda: queue.refuse(stations.database, asleep, "x"),
        lambda: queue.fail(stations.database, asleep, "x"),
        lambda: queue.postpone(stations.database, asleep, "x"),
        lambda: queue.crashed(stations.database, asleep, "x"),
        lambda: queue.put_back(stations.database, asleep, "x"),
        lambda: queue.found_conflict(stations.database, asleep, "x"),
    ]
    for do in doing:
        with pytest.raises(Lost):
            do()
    awake = stations.claim()
    for do in doing:
        with pytest.raises(Lost):
            do()
    assert not queue.beat(stations.database, asleep)
    assert not queue.is_held(stations.database, asleep)
    queue.note(stations.database, asleep, "inferring")
    assert stations.job(awake.job_id).reason == "being analysed"
    stations.finish(awake)
    assert len(stations.rows(schema.result)) == 2


def test_a_dead_processs_job_is_taken_over_at_once(stations, source):
    job_id, _ = stations.enqueue(stations.work(source))
    stations.claim(DEAD)
    assert queue.sweep(stations.database, Watch(), ME) == 1
    row = stations.job(job_id)
    assert (row.state, row.crashes, row.reason) == (
        JobState.QUEUED,
        1,
        "its worker process died or stopped answering",
    )


def test_a_beating_claim_is_left_alone(stations, source):
    stations.enqueue(stations.work(source))
    held = stations.claim(ELSEWHERE)
    time = Clock()
    watch = Watch(time)
    for _ in range(20):
        assert queue.sweep(stations.database, watch, ME) == 0
        assert queue.beat(stations.database, held)
        time.forward(5)


def test_a_worker_that_beats_is_heard_of_though_it_never_rests(stations, source):
    processes.register(stations.database, ME, "infer")
    (before,) = stations.rows(schema.process)
    stations.enqueue(stations.work(source))
    queue.beat(stations.database, stations.claim())
    assert stations.rows(schema.process)[0].seen_at > before.seen_at


def test_a_standstill_counts_from_when_this_sweeper_first_saw_it(stations, source):
    stations.enqueue(stations.work(source))
    stations.claim(ELSEWHERE)
    time = Clock()
    watch = Watch(time)
    swept = []
    for _ in range(8):
        swept.append(queue.sweep(stations.database, watch, ME))
        time.forward(5)
    assert swept == [0, 0, 0, 0, 0, 0, 1, 0]
    assert STANDSTILL_SECONDS == 30


def test_after_the_database_was_away_nobody_is_taken_over_for_not_beating(stations, source):
    stations.enqueue(stations.work(source))
    held = stations.claim(ELSEWHERE)
    time = Clock()
    watch = Watch(time)
    queue.sweep(stations.database, watch, ME)
    time.forward(120)
    assert queue.sweep(stations.database, watch, ME) == 0
    time.forward(5)
    assert queue.beat(stations.database, held)
    assert queue.sweep(stations.database, watch, ME) == 0


def test_two_sweepers_take_over_once(stations, source):
    stations.enqueue(stations.work(source))
    stations.claim(DEAD)
    with ThreadPoolExecutor(4) as threads:
        taken = list(threads.map(lambda _: queue.sweep(stations.database, Watch(), ME), range(4)))
    assert sum(taken) == 1
    assert stations.rows(schema.job)[0].crashes == 1


def test_finish_and_sweep_at_once_end_in_one_of_both(stations, source):
    for number in range(6):
        stations.enqueue(stations.work(source, settings_digest=str(number), route=str(number)))
        held = stations.claim(DEAD)
        start = threading.Barrier(2)

        def sweep(gate: threading.Barrier = start) -> int:
            gate.wait()
            return queue.sweep(stations.database, Watch(), ME)

        with ThreadPoolExecutor(1) as threads:
            swept = threads.submit(sweep)
            start.wait()
            try:
                stations.finish(held)
            except Lost:
                assert swept.result() == 1
                stations.finish(stations.claim())
            else:
                assert swept.result() == 0
        assert stations.job(held.job_id).state == JobState.DONE


@pytest.mark.parametrize("how", ["died", "reported"])
def test_QUE_01_the_third_crash_fails_the_job_and_keeps_why(stations, source, how):
    job_id, _ = stations.enqueue(stations.work(source))
    for _ in range(3):
        held = stations.claim(DEAD if how == "died" else ME)
        if how == "died":
            queue.sweep(stations.database, Watch(), ME)
        else:
            queue.crashed(stations.database, held, "out of memory")
            stations.make_due()
    row = stations.job(job_id)
    assert row.state == JobState.FAILED
    assert row.reason.startswith("given up after 3 crashes; the last: ")
    assert row.finished_at is not None


def test_a_job_whose_process_died_lets_others_go_first(stations, sender, source, wall):
    wall.stop()
    crashing, _ = stations.enqueue(stations.work(source))
    other, _ = stations.enqueue(stations.work(source, pipeline="other"))
    waits = []
    for _ in range(2):
        stations.make_due()
        held = queue.claim(stations.database, ME, ["ct-lung"])
        queue.crashed(stations.database, held, "out of memory")
        waits.append(round((stations.job(crashing).due_at - now()).total_seconds()))
        assert stations.job(crashing).state == JobState.QUEUED
        claimed = stations.claim()
        assert claimed.job_id == other
        queue.put_back(stations.database, claimed, "the node was stopped")
    assert waits == [2, 4]


# -- the clock on the wall


@pytest.mark.parametrize("days", [3653, -3653])
def test_QUE_08_a_jump_of_the_wall_clock_expires_and_delays_nothing(stations, sender, source, wall, days):
    first, _ = stations.enqueue(stations.work(source))
    held = stations.claim(ELSEWHERE)
    second, _ = stations.enqueue(stations.work(source, pipeline="other"))
    third, _ = stations.enqueue(stations.work(source, pipeline="third"))
    queue.postpone(stations.database, stations.claim(), "later")
    watch = Watch(Clock())
    queue.sweep(stations.database, watch, ME)
    wall.forward(days=days)
    assert queue.sweep(stations.database, watch, ME) == 0
    assert queue.beat(stations.database, held)
    assert {stations.claim().job_id, stations.claim().job_id} == {second, third}
    stations.finish(held)
    assert stations.job(first).state == JobState.DONE


def test_QUE_08_a_clock_that_was_set_back_starves_no_job(stations, source, wall):
    wall.forward(days=3653)
    before, _ = stations.enqueue(stations.work(source))
    wall.forward(days=-3653)
    queue.sweep(stations.database, Watch(), ME)
    stations.enqueue(stations.work(source, pipeline="other"))
    assert stations.claim().job_id == before


def test_overdue_is_what_should_have_been_delivered_by_now(stations, sender):
    late = {"overdue_at": now() - timedelta(minutes=1)}
    sender.send("1", [1, 2])
    sender.send("2", [1, 2])
    sender.send("3", [1, 2])
    done, _ = stations.enqueue(stations.work(stations.complete("1"), **late))
    stations.finish(stations.claim())
    stations.enqueue(stations.work(stations.complete("2"), **late))
    queue.refuse(stations.database, stations.claim(), "no chest")
    queued, _ = stations.enqueue(stations.work(stations.complete("3"), **late))
    with stations.database.read() as connection:
        assert views.overdue(connection) == {done, queued}
    stations.deliver_all()
    with stations.database.read() as connection:
        assert views.overdue(connection) == {queued}
        assert [view.overdue for view in views.jobs(connection)] == [True, False, False]
        assert views.counts(connection)["jobs"] == {"done": 1, "refused": 1, "queued": 1}
        assert views.counts(connection)["instances"] == {"stored": 6}
