"""What `status` calls for a person for, and what it leaves alone."""

from __future__ import annotations

import socket
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from pacs_ai.cli import glance
from pacs_ai.config import Config
from pacs_ai.states import DeliveryState, JobState, SeriesState
from pacs_ai.store.concerns import Concern
from pacs_ai.store.processes import ProcessView
from pacs_ai.store.spool import Standing
from pacs_ai.store.unconfirmed import Unconfirmed
from pacs_ai.store.views import JobView, SeriesView

NOW = datetime.now(UTC)
HERE = socket.gethostname()


def process(kind: str, host: str = HERE, silent: float = 1.0) -> ProcessView:
    return ProcessView(f"{kind}:b:1:1", kind, "", host, 1, NOW, datetime.now(UTC) - timedelta(seconds=silent))


def test_a_process_that_says_what_is_wrong_needs_a_person():
    broken = replace(process("receive"), problem="refuses what peers send; the disk; restart the node")
    (trouble,) = glance._troubles(Config(), look(processes=[broken, *map(process, glance.KINDS[1:])]))
    assert trouble == glance.Trouble("receive process 1", "refuses what peers send; the disk", "restart the node")


def test_a_receive_process_of_this_host_that_says_nothing_may_hang_and_the_others_may_be_busy():
    silent = [process(kind, silent=90.0) for kind in glance.KINDS]
    (trouble,) = glance._troubles(Config(), look(processes=silent))
    assert trouble.subject == "receive process 1"
    assert "was last heard of" in trouble.words
    assert "may hang" in trouble.advice


def job(number: int, state: JobState, reason: str = "because") -> JobView:
    return JobView(
        id=number, job_key="", study_instance_uid="1.2", pipeline="p", pipeline_version="1", generation=0, state=state,
        reason=reason, refused_for="", priority=2, attempts=1, crashes=0, created_at=NOW, started_at=None,
        finished_at=None, timings={}, findings={}, sources=(), destinations=(), overdue=False,
    )  # fmt: skip


def series(uid: str) -> SeriesView:
    return SeriesView(
        id=1, study_id=1, study_instance_uid="1.2", series_instance_uid=uid, modality="CT", header={},
        state=SeriesState.CONFLICT, revision=1, routed_revision=1, instances=2, priority=2, calling_ae_title="",
        called_ae_title="", first_received_at=NOW, last_received_at=NOW, completed_at=None,
        reason="two contents; decide with: pacs-ai resolve SERIES --keep first|latest", own_result=False,
    )  # fmt: skip


def look(**changes) -> glance.Look:
    counts = {"series": {}, "jobs": {}, "deliveries": {}, "instances": {"stored": 0}}
    fields = {
        "node": "n", "place": "file", "counts": {**counts, **changes.pop("counts", {})},
        "processes": [process(kind) for kind in glance.KINDS], "destinations": [], "paused": {}, "broken": {},
        "conflicts": [], "withheld": [], "overdue": [], "late": [], "failed": [],
        "disk": glance.Disk(100 * 10**9, 50.0, 5.0, 5.0),
    }  # fmt: skip
    return glance.Look(**{**fields, **changes})


def troubles(**changes) -> list[tuple[str, str]]:
    return [(trouble.subject, trouble.words) for trouble in glance._troubles(Config(), look(**changes))]


def test_a_well_node_needs_nobody():
    assert troubles() == []


def test_a_node_that_does_not_run_needs_a_person():
    assert troubles(processes=[]) == [("node", "does not run")]
    assert troubles(processes=[process("receive"), process("route")]) == [("node", "has no infer, deliver process")]


def test_what_a_destination_lacks_or_was_not_told_needs_a_person():
    concerns = [Concern(n, "ct-lung", "is retracted, but pacs is not told yet", "see the log") for n in range(1, 8)]
    found = troubles(concerns=concerns)
    assert found[0] == ("job 1 (ct-lung)", "is retracted, but pacs is not told yet")
    assert found[5:] == [("2 further destinations", "lack results or are not told")]


def not_confirmed(found: Unconfirmed, **peer) -> list[tuple[str, str]]:
    config = Config.model_validate({"peer": [{"name": "pacs", "ae_title": "PACS", "host": "h", **peer}]})
    return [(one.subject, one.words) for one in glance._troubles(config, look(unconfirmed=found))]


@pytest.mark.parametrize(
    ("kind", "words"), [("given_up", "asked for them in vain"), ("late", "has not confirmed them within a day")]
)
def test_what_a_peer_took_and_never_confirmed_needs_a_person_while_it_is_asked_to(kind, words):
    found = Unconfirmed(**{kind: {"pacs": (3, NOW), "gone": (1, NOW)}})
    assert not_confirmed(found) == []
    ((subject, said),) = not_confirmed(found, commitment=True)
    assert subject == "peer pacs"
    assert said.startswith("took 3 results since")
    assert said.endswith(words)


def test_what_a_peer_took_that_is_missing_needs_a_person():
    found = Unconfirmed(waiting={"pacs": (3, NOW), "gone": (1, NOW)})
    ((subject, said),) = not_confirmed(found, commitment=True)
    assert subject == "peer gone"
    assert said.startswith("took 1 result since")
    assert "no [[peer]] any more" in said


def test_a_silent_host_needs_a_person_but_not_a_worker_that_is_busy_here():
    processes = [process("receive"), process("route"), process("deliver"), process("infer", silent=900)]
    assert troubles(processes=processes) == []
    assert troubles(processes=[*processes, process("infer", host="elsewhere", silent=900)]) == [
        ("infer process on elsewhere", "was last heard of 15 min ago")
    ]


@pytest.mark.parametrize(
    ("disk", "said"),
    [
        (glance.Disk(10**9, 50.0, 5.0, 5.0), "what peers send is refused"),
        (glance.Disk(10**12, 2.0, 5.0, 5.0), "what peers send is refused"),
        (None, "is not there"),
    ],
)
def test_a_full_or_missing_disk_needs_a_person(disk, said):
    ((subject, words),) = troubles(disk=disk)
    assert subject == "data folder"
    assert said in words


def test_what_was_set_aside_needs_a_person():
    assert troubles(aside=("1 received instance could not be indexed", "restart")) == [
        ("data folder", "1 received instance could not be indexed")
    ]


def test_a_short_interruption_needs_nobody():
    def peer(failures):
        return glance.Destination("pacs", failures, NOW, "cannot be reached")

    assert troubles(destinations=[peer(2)]) == []
    assert troubles(destinations=[peer(3)]) == [("peer pacs", "failed 3 times in a row: cannot be reached")]


def test_what_waits_for_a_decision_is_named():
    assert troubles(conflicts=[series("1.2.3")]) == [("series 1.2.3", "is in conflict: two contents")]
    assert troubles(broken={"mine": "cannot be loaded"}) == [("pipeline mine", "is broken: cannot be loaded")]
    assert troubles(failed=[job(4, JobState.FAILED)], counts={"jobs": {JobState.FAILED: 1}}) == [
        ("job 4 (p)", "failed: because")
    ]
    assert troubles(counts={"deliveries": {DeliveryState.FAILED: 2}}) == [("2 deliveries", "failed for good")]


def test_a_paused_pipeline_is_shown_and_needs_nobody():
    paused = {"paused": {"p": NOW}, "withheld": [job(4, JobState.WITHHELD, "the pipeline is paused")]}
    assert troubles(**paused) == []
    lines = dict(glance._lines(look(**paused)))
    assert "pacs-ai resume p" in lines["paused"]
    assert lines["withheld"] == "job 4: the pipeline is paused"


def test_overdue_jobs_say_what_they_wait_for():
    late = [job(5, JobState.QUEUED), job(6, JobState.DONE)]
    assert troubles(late=late, overdue=[5, 6, 7, 8]) == [
        ("job 5 (p)", "is overdue: queued, because"),
        ("job 6 (p)", "is overdue: done, but not all of its results were delivered"),
        ("2 further jobs", "overdue"),
    ]


def test_many_failed_jobs_are_counted():
    failed = [job(number, JobState.FAILED) for number in range(1, 9)]
    found = troubles(failed=failed, overdue=[3], counts={"jobs": {JobState.FAILED: 8}})
    assert len(found) == 6
    assert found[-1] == ("3 further jobs", "failed")


def test_an_audit_repository_that_stays_away_needs_a_person():
    def standing(seconds: float | None) -> Standing:
        since = None if seconds is None else datetime.now(UTC) - timedelta(seconds=seconds)
        return Standing("repository", 12, since, "cannot be reached")

    assert troubles(audit=[standing(None)]) == []
    assert troubles(audit=[standing(5)]) == []
    ((subject, words),) = troubles(audit=[standing(600)])
    assert subject == "audit repository"
    assert words.startswith("lacks 12 events since ")
    assert words.endswith(": cannot be reached")
