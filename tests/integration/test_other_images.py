"""A job is for the images that it was enqueued for: never analysed on others, nor on fewer, under the same UIDs."""

from __future__ import annotations

import pytest
from pydicom.uid import ImplicitVRLittleEndian
from stations import ME

from pacs_ai.errors import UserError
from pacs_ai.states import JobState, SeriesState
from pacs_ai.store import holds, orders, queue, retention, schema
from pacs_ai.store.files import Files


@pytest.fixture
def refused(stations, sender):
    """A job on three images that was refused."""
    sender.send("1", (1, 2, 3))
    sender.send("1", (3,), transfer_syntax_uid=ImplicitVRLittleEndian)
    sender.end()
    job_id, _ = stations.enqueue(stations.work(stations.complete("1")))
    queue.refuse(stations.database, stations.claim(), "too few slices")
    return job_id


def images_of(stations, job_id):
    with stations.database.read() as connection:
        return len(queue.source_files(connection, job_id))


def test_a_job_whose_pipeline_is_resumed_after_a_decision_for_the_latest_waits_for_the_series(stations, sender):
    sender.send("1", (1, 2, 3))
    stations.enqueue(stations.work(stations.complete("1")))
    orders.pause(stations.database, "ct-lung", actor=ME)
    sender.send("1", (3,), content=5)
    orders.resolve(stations.database, "1.2.3.1", keep="latest", actor=ME)
    assert stations.series("1").state == SeriesState.REOPENED
    assert orders.resume(stations.database, "ct-lung", actor=ME) == 0
    assert [row.reason for row in stations.rows(schema.job)] == [holds.CHANGED]
    assert queue.claim(stations.database, ME) is None
    job_id, _ = stations.enqueue(stations.work(stations.complete("1")))
    assert stations.jobs() == [JobState.SUPERSEDED, JobState.QUEUED]
    assert images_of(stations, job_id) == 3


def test_and_goes_on_after_a_decision_for_the_first(stations, sender):
    sender.send("1", (1, 2, 3))
    job_id, _ = stations.enqueue(stations.work(stations.complete("1")))
    orders.pause(stations.database, "ct-lung", actor=ME)
    sender.send("1", (3,), content=5)
    orders.resolve(stations.database, "1.2.3.1", keep="first", actor=ME)
    assert orders.resume(stations.database, "ct-lung", actor=ME) == 1
    assert stations.claim().job_id == job_id
    assert images_of(stations, job_id) == 3


def test_content_that_was_decided_to_be_another_series_keeps_no_job_waiting(stations, sender):
    sender.send("1", (1, 2, 3))
    stations.complete("1")
    sender.send("2", (4, 5))
    sender.send("2", (3,), content=5, uid="1.2.3.1.3")
    orders.resolve(stations.database, "1.2.3.2", keep="first", actor=ME)
    job_id, _ = stations.enqueue(stations.work(stations.complete("2")))
    assert stations.claim().job_id == job_id
    assert images_of(stations, job_id) == 2


@pytest.mark.parametrize("how", ["decided", "sent again"])
def test_a_job_whose_images_are_others_is_not_run_again(stations, sender, refused, tmp_path, wall, how):
    if how == "decided":
        sender.send("1", (3,), content=5)
        orders.resolve(stations.database, "1.2.3.1", keep="latest", actor=ME)
    else:
        wall.forward(days=30)
        files = Files(tmp_path / "files")
        retention.purge(stations.database, files, inputs_days=14, unrouted_days=1, actor=ME)
        sender.send("1", (1, 2))
        with pytest.raises(UserError, match="retention has deleted 1 instance"):
            orders.retry(stations.database, refused, actor=ME)
        sender.send("1", (3,), transfer_syntax_uid=ImplicitVRLittleEndian)
    assert images_of(stations, refused) == 2
    with pytest.raises(UserError, match="its series has other images by now"):
        orders.retry(stations.database, refused, actor=ME)
    again, _ = stations.enqueue(stations.work(stations.complete("1")))
    assert stations.claim().job_id == again
    assert images_of(stations, again) == 3
