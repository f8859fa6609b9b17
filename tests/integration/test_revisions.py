"""How jobs end, on both databases, and what becomes of their results when the same series are analysed anew."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from stations import ARCHIVE, BACKOFF, ME, PACS

from pacs_ai.errors import UserError
from pacs_ai.states import DeliveryState, JobState
from pacs_ai.store import journal, orders, outbox, queue, replacing, schema, views
from pacs_ai.store.enqueue import Source, Work
from pacs_ai.store.queue import Lost

# -- the end


def test_done_is_results_deliveries_and_state_in_one(stations, source):
    job_id, _ = stations.enqueue(stations.work(source, destinations=(PACS, ARCHIVE)))
    stations.finish(stations.claim(), "SEG", "SR")
    row = stations.job(job_id)
    assert (row.state, row.reason, row.findings, row.timings) == ("done", "2 lungs", {"lungs": 2}, {"inferring": 0.5})
    assert [r.kind for r in stations.rows(schema.result)] == ["SEG", "SR"]
    assert stations.deliveries() == ["waiting"] * 4
    with stations.database.read() as connection:
        (view,) = views.jobs(connection, job_id=job_id)
        assert view.sources == (("image", "1.2.3.1", 1),)
        assert view.destinations == ("archive", "pacs")
        assert [entry.event for entry in journal.of(connection, "job", job_id)] == ["enqueued", "claimed", "finished"]


def test_a_refused_job_says_why_and_is_tried_again_by_hand(stations, source):
    job_id, _ = stations.enqueue(stations.work(source))
    queue.refuse(stations.database, stations.claim(), "3 of 120 slices are missing")
    assert orders.retry(stations.database, job_id, actor=ME) == job_id
    held = stations.claim()
    assert held.job_id == job_id
    queue.fail(stations.database, held, "the pipeline broke")
    assert orders.retry(stations.database, job_id, actor=ME) == job_id
    assert stations.job(job_id).finished_at is None


def test_a_done_job_is_run_again_as_the_next_generation(stations, sender):
    first = stations.done_job(sender)
    second = orders.retry(stations.database, first, actor=ME)
    row = stations.job(second)
    assert (row.generation, row.predecessor_id, row.state) == (1, None, JobState.QUEUED)
    assert stations.jobs() == [JobState.SUPERSEDED, JobState.QUEUED]
    assert stations.deliveries() == [DeliveryState.CANCELLED] * 2
    with pytest.raises(UserError, match="is superseded"):
        orders.retry(stations.database, first, actor=ME)
    stations.finish(stations.claim())
    third = orders.retry(stations.database, second, actor=ME)
    assert stations.job(third).generation == 2


def test_a_run_after_delivery_cites_the_delivered_report(stations, sender):
    first = stations.done_job(sender)
    stations.deliver_all()
    second = orders.retry(stations.database, first, actor=ME)
    with stations.database.read() as connection:
        assert [r.job_id for r in replacing.delivered_reports(connection, second)] == [first]
        assert replacing.delivered_reports(connection, first) == []
    assert stations.job(second).predecessor_id == first


def test_a_predecessor_that_never_arrived_passes_on_the_one_before(stations, sender):
    first = stations.done_job(sender)
    stations.deliver_all()
    second = orders.retry(stations.database, first, actor=ME)
    stations.finish(stations.claim())
    third = orders.retry(stations.database, second, actor=ME)
    with stations.database.read() as connection:
        assert [r.job_id for r in replacing.delivered_reports(connection, third)] == [first]


def test_where_only_the_seg_arrived_the_report_before_is_cited(stations, sender):
    first = stations.done_job(sender)
    stations.deliver_all()
    second = orders.retry(stations.database, first, actor=ME)
    stations.finish(stations.claim())
    held = outbox.claim(stations.database, "pacs", ME)
    assert held is not None
    outbox.accepted(stations.database, held, held.parcels[0], 0, "Success")
    outbox.put_back(stations.database, held, reached=False, reason="gone", backoff=BACKOFF)
    third = orders.retry(stations.database, second, actor=ME)
    assert stations.job(third).predecessor_id == second
    with stations.database.read() as connection:
        assert [r.job_id for r in replacing.delivered_reports(connection, third)] == [first]


def test_a_report_that_is_being_sent_counts_as_delivered(stations, sender):
    first = stations.done_job(sender)
    held = outbox.claim(stations.database, "pacs", ME)
    assert held is not None
    second = orders.retry(stations.database, first, actor=ME)
    with stations.database.read() as connection:
        assert [r.job_id for r in replacing.delivered_reports(connection, second)] == [first]
    for parcel in held.parcels:
        outbox.accepted(stations.database, held, parcel, 0, "Success")
    assert stations.deliveries() == ["sent", "sent"]


def test_a_new_revision_supersedes_and_cancels_what_was_not_sent(stations, sender):
    first = stations.done_job(sender)
    sender.send(numbers=[3], assoc="a2")
    second, is_new = stations.enqueue(stations.work(stations.complete()))
    assert is_new
    assert stations.job(first).state == JobState.SUPERSEDED
    assert stations.deliveries() == [DeliveryState.CANCELLED] * 2
    assert stations.job(second).predecessor_id is None


def test_a_running_job_is_superseded_and_cannot_finish(stations, sender, source):
    stations.enqueue(stations.work(source))
    held = stations.claim()
    sender.send(numbers=[3], assoc="a2")
    stations.enqueue(stations.work(stations.complete()))
    assert not queue.is_held(stations.database, held)
    with pytest.raises(Lost):
        stations.finish(held)
    assert stations.jobs() == [JobState.SUPERSEDED, JobState.QUEUED]


def test_finish_and_supersede_at_once_leave_no_waiting_delivery_of_the_old(stations, sender, source):
    latest = source
    for number in range(4):
        stations.enqueue(stations.work(latest))
        held = stations.claim()
        sender.send(numbers=[10 + number], assoc=f"late{number}")
        latest = stations.complete()
        start = threading.Barrier(2)

        def supersede(work: Work, gate: threading.Barrier = start) -> None:
            gate.wait()
            stations.enqueue(work)

        with ThreadPoolExecutor(1) as threads:
            superseded = threads.submit(supersede, stations.work(latest))
            start.wait()
            try:
                stations.finish(held)
            except Lost:
                assert stations.rows(schema.result, schema.result.c.job_id == held.job_id) == []
            superseded.result()
        assert stations.job(held.job_id).state == JobState.SUPERSEDED
        states = {row.state for row in stations.rows(schema.delivery, schema.delivery.c.job_id == held.job_id)}
        assert states <= {DeliveryState.CANCELLED}


def test_work_on_other_series_that_shares_one_is_left_alone(stations, sender):
    sources = []
    for series in ("1", "2", "3"):
        sender.send(series, [1, 2])
        sources.append(stations.complete(series))
    arterial, one, two = sources
    pair = lambda other: (Source("fixed", arterial.series_id, 1), Source("moving", other.series_id, 1))  # noqa: E731
    stations.enqueue(stations.work(*pair(one), route="venous"))
    stations.enqueue(stations.work(*pair(two), route="delayed"))
    assert stations.jobs() == [JobState.QUEUED, JobState.QUEUED]
    stations.enqueue(
        stations.work(Source("fixed", arterial.series_id, 1), Source("moving", two.series_id, 1), route="venous")
    )
    assert stations.jobs() == [JobState.QUEUED, JobState.QUEUED]


def test_a_refusal_for_a_missing_input_is_superseded_when_it_comes(stations, sender):
    sources = []
    for series in ("1", "2"):
        sender.send(series, [1, 2])
        sources.append(stations.complete(series))
    t1, flair = (Source(name, source.series_id, 1) for name, source in zip(("t1", "flair"), sources, strict=True))
    stations.enqueue(stations.work(t1, refusal="flair missing"))
    assert stations.jobs() == [JobState.REFUSED]
    stations.enqueue(stations.work(t1, flair))
    assert stations.jobs() == [JobState.SUPERSEDED, JobState.QUEUED]
