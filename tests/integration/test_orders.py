"""What people decide about jobs, on both databases: cancel, retry, pause, resume, and which content of two is right."""

from __future__ import annotations

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import sqlalchemy as sa
from pydicom.encaps import encapsulate
from pydicom.uid import JPEGLSLossless
from stations import ARCHIVE, BACKOFF, ME, PACS, Sender
from stored_results import plan_of

from pacs_ai import profiles
from pacs_ai.errors import UserError
from pacs_ai.profiles import Kind, Wanted
from pacs_ai.states import JobState, SeriesState
from pacs_ai.store import concerns, holds, notices, orders, outbox, queue, schema, unidentified, views
from pacs_ai.store.clock import now
from pacs_ai.store.enqueue import Address, Identity
from pacs_ai.store.queue import Lost
from pacs_ai.store.schema import Role

# -- operators


def test_QUE_10_cancel_while_running(stations, source):
    job_id, _ = stations.enqueue(stations.work(source))
    held = stations.claim()
    orders.cancel(stations.database, job_id, actor="operator")
    assert not queue.is_held(stations.database, held)
    with pytest.raises(Lost):
        stations.finish(held)
    with pytest.raises(UserError, match="there is nothing to cancel"):
        orders.cancel(stations.database, job_id, actor="operator")
    with pytest.raises(UserError, match="there is no job 99"):
        orders.cancel(stations.database, 99, actor="operator")


def test_cancel_a_done_job_withdraws_what_was_not_sent(stations, sender):
    job_id = stations.done_job(sender)
    orders.cancel(stations.database, job_id, actor="operator")
    assert stations.deliveries() == ["cancelled", "cancelled"]
    assert stations.jobs() == [JobState.DONE]


def test_QUE_10_cancel_while_it_is_sent_ends_cancelled_or_sent_whatever_is_true(stations, sender):
    job_id = stations.done_job(sender)
    held = outbox.claim(stations.database, "pacs", ME)
    assert held is not None
    orders.cancel(stations.database, job_id, actor="operator")
    seg, sr = held.parcels
    outbox.accepted(stations.database, held, seg, 0, "Success")
    outbox.postponed(stations.database, held, sr, None, "connection lost", BACKOFF)
    outbox.put_back(stations.database, held, reached=False, reason="connection lost", backoff=BACKOFF)
    assert stations.deliveries() == ["sent", "cancelled"]


def test_pause_and_resume(stations, source):
    job_id, _ = stations.enqueue(stations.work(source))
    assert orders.pause(stations.database, "ct-lung", actor=ME, reason="odd results") == 1
    assert orders.pause(stations.database, "ct-lung", actor=ME) == 0
    assert stations.job(job_id).reason == holds.PAUSED
    later, _ = stations.enqueue(stations.work(source, settings_digest="2", route="other"))
    assert stations.job(later).state == JobState.WITHHELD
    assert queue.claim(stations.database, ME) is None
    assert orders.resume(stations.database, "ct-lung", actor=ME) == 1
    assert stations.claim().job_id == later


def test_paused_pipelines_are_shown_in_the_order_of_their_names(stations):
    for name in ("c", "a", "b"):
        orders.pause(stations.database, name, actor=ME)
    with stations.database.read() as connection:
        assert list(views.paused(connection)) == ["a", "b", "c"]


def test_cancel_of_what_one_destination_did_not_confirm_tells_how_much_others_still_get(stations, source):
    database = stations.database
    job_id, _ = stations.enqueue(stations.work(source, destinations=(PACS, ARCHIVE)))
    stations.finish(stations.claim())
    held = outbox.claim(database, "pacs", ME)
    for parcel in held.parcels:
        outbox.accepted(database, held, parcel, 0, "stored", confirm=True)
    outbox.put_back(database, held, reached=True, reason="", backoff=BACKOFF)
    in_vain = sa.update(schema.delivery).where(schema.delivery.c.peer == "pacs")
    with database.write() as connection:
        connection.execute(in_vain.values(asks=6, confirm_at=None))
    left = stations.deliveries().count("waiting")
    assert left > 0
    assert orders.cancel(database, job_id, actor=ME) == left
    assert stations.deliveries().count("waiting") == left
    assert orders.cancel(database, job_id, actor=ME) == 0
    assert set(stations.deliveries()) == {"sent", "cancelled"}


def test_a_job_that_comes_back_while_its_pipeline_is_paused_waits(stations, source):
    job_id, _ = stations.enqueue(stations.work(source))
    held = stations.claim()
    orders.pause(stations.database, "ct-lung", actor=ME)
    queue.put_back(stations.database, held, "the node was stopped")
    assert queue.claim(stations.database, ME) is None
    orders.resume(stations.database, "ct-lung", actor=ME)
    assert stations.claim().job_id == job_id


@pytest.mark.parametrize("state", [JobState.REFUSED, JobState.FAILED])
def test_a_report_of_no_analysis_that_cannot_be_made_is_shown_until_it_is_set_aside(stations, sender, state):
    sender.send("1", (1, 2))
    due = now() - timedelta(hours=1)
    job_id, _ = stations.enqueue(stations.work(stations.complete("1"), report_not_analysed=True, overdue_at=due))
    end = queue.refuse if state is JobState.REFUSED else queue.fail
    end(stations.database, stations.claim(), "gantry tilt")
    notices.give_up(stations.database, notices.next_order(stations.database), "no image can be read", actor=ME)
    with stations.database.read() as connection:
        (one,) = concerns.of_jobs(connection)
    assert one.words == "was not analysed, and pacs cannot be told: no image can be read"
    assert one.advice == f"pacs-ai retry {job_id}, or pacs-ai cancel {job_id} to set it aside"
    orders.cancel(stations.database, job_id, actor=ME)
    with stations.database.read() as connection:
        assert concerns.of_jobs(connection) == []


def test_retry_while_paused_is_withheld(stations, source):
    job_id, _ = stations.enqueue(stations.work(source))
    queue.fail(stations.database, stations.claim(), "broken")
    orders.pause(stations.database, "ct-lung", actor=ME)
    orders.retry(stations.database, job_id, actor=ME)
    assert stations.job(job_id).state == JobState.WITHHELD
    orders.resume(stations.database, "ct-lung", actor=ME)
    assert stations.job(job_id).state == JobState.QUEUED


def test_a_run_anew_goes_where_and_in_the_form_that_is_configured_now(stations, sender):
    job_id = stations.done_job(sender)
    plan = plan_of(Wanted(Kind.TEXT_REPORT))
    moved = Address("pacs", "PACS", "127.0.0.2", 104, plan)
    again = orders.retry(stations.database, job_id, actor="operator", addresses={"pacs": moved})
    (target,) = stations.rows(schema.job_destination, schema.job_destination.c.job_id == again)
    assert (target.host, profiles.from_json(target.plan)) == ("127.0.0.2", plan)


@pytest.mark.parametrize("ended", ["failed", "done"])
def test_a_job_whose_model_was_replaced_is_run_anew_by_the_one_that_is_there(stations, source, ended):
    job_id, _ = stations.enqueue(stations.work(source))
    if ended == "failed":
        queue.fail(stations.database, stations.claim(), "the job was ordered of another model")
    else:
        stations.finish(stations.claim())
    before = stations.job(job_id)

    def identity(pipeline):
        return Identity("2.0", "b" * 64, before.settings_digest, ("image",), {"name": pipeline})

    again = orders.retry(stations.database, job_id, actor=ME, identity_of=identity)
    after = stations.job(again)
    assert again != job_id
    assert (after.state, after.pipeline_version, after.model_digest) == (JobState.QUEUED, "2.0", "b" * 64)
    assert after.generation == before.generation + 1
    assert after.job_key != before.job_key
    assert stations.job(job_id).state == JobState.SUPERSEDED


def test_a_job_whose_pipeline_is_the_same_or_disabled_is_queued_again(stations, source):
    job_id, _ = stations.enqueue(stations.work(source))
    row = stations.job(job_id)
    same = Identity(row.pipeline_version, row.model_digest, row.settings_digest, ("image",), {"name": "a new title"})
    for identity in (same, Identity(fault="it is not installed")):
        queue.fail(stations.database, stations.claim(), "broken")
        assert orders.retry(stations.database, job_id, actor=ME, identity_of=lambda _, one=identity: one) == job_id
        assert stations.job(job_id).state == JobState.QUEUED


# -- conflicts


@pytest.mark.parametrize("running", [False, True])
def test_a_conflict_withholds_and_keeping_the_first_releases(stations, sender, source, running):
    job_id, _ = stations.enqueue(stations.work(source))
    held = stations.claim() if running else None
    sender.send(content=9, assoc="a2")
    assert stations.job(job_id).state == JobState.WITHHELD
    assert stations.job(job_id).reason == holds.CONFLICT
    if held:
        with pytest.raises(Lost):
            stations.finish(held)
    orders.resolve(stations.database, "1.2.3.1", keep="first", actor=ME)
    source = stations.complete()
    with stations.database.write() as connection:
        assert holds.release_decided(connection, source.series_id, source.revision, actor=ME) == 1
    assert stations.enqueue(stations.work(source)) == (job_id, False)
    assert stations.claim().job_id == job_id


def test_keeping_the_latest_supersedes(stations, sender, source):
    job_id, _ = stations.enqueue(stations.work(source))
    sender.send(content=9, assoc="a2")
    orders.resolve(stations.database, "1.2.3.1", keep="latest", actor=ME)
    source = stations.complete()
    assert source.revision == 2
    with stations.database.write() as connection:
        assert holds.release_decided(connection, source.series_id, source.revision, actor=ME) == 0
    newer, is_new = stations.enqueue(stations.work(source))
    assert is_new
    assert stations.job(job_id).state == JobState.SUPERSEDED
    with stations.database.read() as connection:
        used = {file.sha256 for file in queue.source_files(connection, newer)}
    contents = {row.sha256 for row in stations.rows(schema.instance, schema.instance.c.role == Role.CURRENT)}
    assert used == contents


def test_resuming_a_pipeline_does_not_release_what_is_in_conflict(stations, sender, source):
    job_id, _ = stations.enqueue(stations.work(source))
    orders.pause(stations.database, "ct-lung", actor=ME)
    sender.send(content=9, assoc="a2")
    assert orders.resume(stations.database, "ct-lung", actor=ME) == 0
    assert (stations.job(job_id).state, stations.job(job_id).reason) == (JobState.WITHHELD, holds.CONFLICT)


def test_deciding_a_conflict_does_not_release_what_is_paused(stations, sender, source):
    job_id, _ = stations.enqueue(stations.work(source))
    sender.send(content=9, assoc="a2")
    orders.pause(stations.database, "ct-lung", actor=ME)
    orders.resolve(stations.database, "1.2.3.1", keep="first", actor=ME)
    source = stations.complete()
    with stations.database.write() as connection:
        holds.release_decided(connection, source.series_id, source.revision, actor=ME)
    assert (stations.job(job_id).state, stations.job(job_id).reason) == (JobState.WITHHELD, holds.PAUSED)
    assert orders.resume(stations.database, "ct-lung", actor=ME) == 1


def test_a_conflict_while_the_job_ends_never_fails_the_receiving(stations, sender, source):
    for number in range(4):
        stations.enqueue(stations.work(source, settings_digest=str(number), route=str(number)))
        held = stations.claim()
        start = threading.Barrier(2)

        def differ(number: int = number, gate: threading.Barrier = start) -> None:
            gate.wait()
            sender.send(content=20 + number, assoc=f"differ{number}")

        with ThreadPoolExecutor(1) as threads:
            received = threads.submit(differ)
            start.wait()
            try:
                stations.finish(held)
            except Lost:
                assert stations.job(held.job_id).state == JobState.WITHHELD
            received.result()
        if stations.series().state == SeriesState.CONFLICT:
            orders.resolve(stations.database, "1.2.3.1", keep="first", actor=ME)
            stations.complete()


def unverified(sender: Sender) -> None:
    coded = encapsulate([b"\xff\xd8 not decoded here \xff\xd9"])
    sender.send(encapsulated=coded, transfer_syntax_uid=JPEGLSLossless, assoc="a2")


def test_pixels_found_equal_become_a_variant(stations, sender, source):
    unverified(sender)
    stations.enqueue(stations.work(source))
    held = stations.claim()
    with stations.database.read() as connection:
        files = queue.source_files(connection, held.job_id)
    assert [file.role for file in files] == [Role.CURRENT, Role.UNVERIFIED, Role.CURRENT]
    doubtful = [file.sha256 for file in files if file.role is Role.UNVERIFIED]
    queue.finish(stations.database, held, [], findings={}, timings={}, summary="nothing", encoded=[], verified=doubtful)
    assert Counter(row.role for row in stations.rows(schema.instance)) == {Role.CURRENT: 2, Role.VARIANT: 1}


def test_pixels_found_different_are_a_conflict(stations, sender, source):
    unverified(sender)
    job_id, _ = stations.enqueue(stations.work(source))
    other, _ = stations.enqueue(stations.work(source, pipeline="other"))
    held = stations.claim()
    queue.found_conflict(stations.database, held, "their pixels differ")
    assert stations.series().state == SeriesState.CONFLICT
    assert stations.jobs() == [JobState.WITHHELD] * 2
    assert stations.job(job_id).reason == stations.job(other).reason == holds.CONFLICT
    orders.resolve(stations.database, "1.2.3.1", keep="first", actor=ME)
    assert Counter(row.role for row in stations.rows(schema.instance)) == {Role.CURRENT: 2, Role.VARIANT: 1}


def test_a_conflict_found_by_two_workers_is_one(stations, sender, source):
    unverified(sender)
    stations.enqueue(stations.work(source))
    stations.enqueue(stations.work(source, pipeline="other"))
    one, two = stations.claim(), stations.claim()
    queue.found_conflict(stations.database, one, "their pixels differ")
    with pytest.raises(Lost):
        queue.found_conflict(stations.database, two, "their pixels differ")


def test_a_doubt_that_was_settled_meanwhile_has_the_job_run_again(stations, source):
    stations.enqueue(stations.work(source))
    held = stations.claim()
    queue.found_conflict(stations.database, held, "their pixels differ")
    assert stations.claim().job_id == held.job_id


# -- pipelines that are disabled


def test_a_job_of_a_disabled_pipeline_is_identified_before_it_runs(stations, source):
    work = stations.work(source, pipeline_version="", model_digest="", settings_digest="", refusal="it is disabled")
    job_id, _ = stations.enqueue(work)
    orders.retry(stations.database, job_id, actor=ME)
    assert queue.claim(stations.database, ME) is None
    with stations.database.read() as connection:
        assert unidentified.waiting(connection) == [(job_id, "ct-lung")]
    unidentified.refuse(stations.database, job_id, "it is still disabled", actor=ME)
    assert stations.job(job_id).state == JobState.REFUSED
    orders.retry(stations.database, job_id, actor=ME)
    unidentified.identify(stations.database, job_id, "3", "model", "settings", {"title": "Lungs"})
    held = stations.claim()
    assert (held.pipeline_version, held.model_digest, held.settings_digest) == ("3", "model", "settings")


# -- sources whose files are gone


def test_work_on_deleted_instances_is_refused_in_words_and_runs_when_they_were_sent_again(stations, sender):
    sender.send(numbers=[1, 2])
    stations.complete()
    with stations.database.write() as connection:
        connection.execute(sa.update(schema.instance).values(purged_at=now()))
    sender.send(numbers=[3], assoc="a2")
    job_id, _ = stations.enqueue(stations.work(stations.complete()))
    words = "2 instance(s) were deleted by retention: send the series again, then retry this job"
    assert (stations.job(job_id).state, stations.job(job_id).reason) == (JobState.REFUSED, words)
    with pytest.raises(UserError, match="send the series again first"):
        orders.retry(stations.database, job_id, actor=ME)
    sender.send(numbers=[1, 2], assoc="a3")
    orders.retry(stations.database, job_id, actor=ME)
    held = stations.claim()
    with stations.database.read() as connection:
        assert len(queue.source_files(connection, held.job_id)) == 3
