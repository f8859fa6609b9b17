"""Enqueueing: one job per set of series revisions and pipeline, whichever and however many routes name it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import sqlalchemy as sa
from sqlalchemy import Connection

from pacs_ai.dicom.identifiers import digest
from pacs_ai.states import DeliveryEvent, DeliveryState, JobEvent, JobState
from pacs_ai.store import journal, schema
from pacs_ai.store.clock import now
from pacs_ai.store.moves import move
from pacs_ai.store.schema import Role

if TYPE_CHECKING:
    from datetime import datetime

    from pacs_ai.store.database import Database

_job, _source, _destination = schema.job, schema.job_source, schema.job_destination
_instance, _result, _delivery, _switch = schema.instance, schema.result, schema.delivery, schema.pipeline_switch

STAT, URGENT, ROUTINE = 0, 1, 2
#: Head start in seconds: a routine job that has waited an hour goes before a stat job that has just come.
_HEAD_START = {STAT: 0.0, URGENT: 2700.0, ROUTINE: 3600.0}
PRIORITY_NAMES = {STAT: "stat", URGENT: "urgent", ROUTINE: "routine"}
PAUSED = "the pipeline is paused"
CONFLICT = "a source series is in conflict"


@dataclass(frozen=True)
class Source:
    """One named input: a series at a revision."""

    input: str
    series_id: int
    revision: int


@dataclass(frozen=True)
class Address:
    """Where a peer is reached; frozen in the job's rows when it is enqueued."""

    peer: str
    ae_title: str
    host: str
    port: int


@dataclass(frozen=True)
class Work:
    """What to enqueue."""

    study_id: int
    pipeline: str
    pipeline_version: str
    model_digest: str
    settings_digest: str
    sources: tuple[Source, ...]
    priority: int
    route: str
    destinations: tuple[Address, ...]
    overdue_at: datetime
    refusal: str = ""  #: not empty: the job is refused at once, with this reason


def series_digest(connection: Connection, series_id: int, revision: int) -> str:
    """Return the digest of a series revision: every current SOP Instance UID with its SHA-256."""
    rows = connection.execute(
        sa.select(_instance.c.sop_instance_uid, _instance.c.sha256)
        .where(
            _instance.c.series_id == series_id,
            _instance.c.revision <= revision,
            _instance.c.role == Role.CURRENT.value,
        )
        .order_by(_instance.c.sop_instance_uid)
    )
    return digest([list(row) for row in rows])


def enqueue(connection: Connection, database: Database, work: Work, *, actor: str) -> tuple[int, bool]:
    """Insert the job unless it is there, add the destinations, supersede jobs on older revisions.

    Returns
    -------
    job id, and whether it is new.
    """
    sources = [[s.input, series_digest(connection, s.series_id, s.revision)] for s in work.sources]
    key = _key(work, sources, generation=0)
    existing = connection.execute(sa.select(_job).where(_job.c.job_key == key)).one_or_none()
    if existing is not None:
        _add_destinations(connection, database, existing.id, work)
        if existing.state == JobState.DONE:
            fill_outbox(connection, database, existing.id)
        elif existing.state == JobState.WITHHELD and existing.reason.startswith(CONFLICT):
            move(connection, existing.id, JobEvent.RELEASED, actor=actor, reason="the conflict was resolved")
        return existing.id, False
    job_id = _insert_with_sources(connection, database, work, key, 0, actor)
    if work.refusal:
        move(connection, job_id, JobEvent.REFUSED, actor=actor, reason=work.refusal, finished_at=now())
    elif connection.execute(sa.select(_switch).where(_switch.c.pipeline == work.pipeline)).first():
        move(connection, job_id, JobEvent.WITHHELD, actor=actor, reason=PAUSED)
    return job_id, True


def enqueue_generation(connection: Connection, database: Database, work: Work, generation: int, *, actor: str) -> int:
    """Insert the same work anew, with other UIDs; returns the job's id."""
    sources = [[s.input, series_digest(connection, s.series_id, s.revision)] for s in work.sources]
    key = _key(work, sources, generation)
    return _insert_with_sources(connection, database, work, key, generation, actor)


def _insert_with_sources(
    connection: Connection, database: Database, work: Work, key: str, generation: int, actor: str
) -> int:
    predecessor = _supersede(connection, work, actor)
    job_id = _insert(connection, work, key, generation, predecessor, actor)
    for source in work.sources:
        connection.execute(
            sa.insert(_source).values(
                job_id=job_id, input=source.input, series_id=source.series_id, revision=source.revision
            )
        )
    _add_destinations(connection, database, job_id, work)
    return job_id


def _key(work: Work, sources: list[list[str]], generation: int) -> str:
    return digest(
        "job",
        work.pipeline,
        work.pipeline_version,
        work.model_digest,
        work.settings_digest,
        sorted(sources),
        generation,
        work.refusal,
    )


def _insert(connection: Connection, work: Work, key: str, generation: int, predecessor: int | None, actor: str) -> int:
    at = now()
    job_id = connection.execute(
        sa.insert(_job)
        .values(
            job_key=key,
            study_id=work.study_id,
            pipeline=work.pipeline,
            pipeline_version=work.pipeline_version,
            model_digest=work.model_digest,
            settings_digest=work.settings_digest,
            generation=generation,
            predecessor_id=predecessor,
            state=JobState.QUEUED.value,
            reason="waiting for a worker",
            priority=work.priority,
            rank=at.timestamp() + _HEAD_START[work.priority],
            due_at=at,
            attempts=0,
            crashes=0,
            fence=0,
            owner="",
            beat=0,
            created_at=at,
            overdue_at=work.overdue_at,
            timings={},
            findings={},
        )
        .returning(_job.c.id)
    ).scalar_one()
    journal.append(
        connection, "job", job_id, "enqueued", after=JobState.QUEUED, reason=f"route {work.route}", actor=actor
    )
    return int(job_id)


def _add_destinations(connection: Connection, database: Database, job_id: int, work: Work) -> None:
    for address in work.destinations:
        connection.execute(
            database.insert_new(_destination),
            {
                "job_id": job_id,
                "peer": address.peer,
                "ae_title": address.ae_title,
                "host": address.host,
                "port": address.port,
                "route": work.route,
            },
        )


def _supersede(connection: Connection, work: Work, actor: str) -> int | None:
    """End the jobs on older revisions of these series; returns the job whose results were delivered last."""
    older = connection.execute(
        sa.select(_job.c.id, _job.c.predecessor_id)
        .join(_source, _source.c.job_id == _job.c.id)
        .where(
            _job.c.pipeline == work.pipeline,
            _job.c.state != JobState.SUPERSEDED.value,
            _source.c.series_id.in_([source.series_id for source in work.sources]),
        )
        .group_by(_job.c.id, _job.c.predecessor_id)
        .order_by(_job.c.id)
    ).all()
    predecessor: int | None = None
    for row in older:
        predecessor = row.id if _was_delivered(connection, row.id) else row.predecessor_id or predecessor
        move(
            connection,
            row.id,
            JobEvent.SUPERSEDED,
            actor=actor,
            reason="a newer revision of its series is processed instead",
            finished_at=now(),
        )
        cancel_deliveries(connection, row.id, actor=actor, reason="superseded by a newer revision before it was sent")
    return predecessor


def _was_delivered(connection: Connection, job_id: int) -> bool:
    sent = sa.select(_delivery.c.id).where(
        _delivery.c.job_id == job_id,
        _delivery.c.state.in_([DeliveryState.SENT.value, DeliveryState.SENDING.value]),
    )
    return connection.execute(sent).first() is not None


def cancel_deliveries(connection: Connection, job_id: int, *, actor: str, reason: str) -> None:
    """Cancel what of a job has not been sent."""
    waiting = [DeliveryState.WAITING.value, DeliveryState.FAILED.value]
    rows = connection.execute(
        sa.select(_delivery.c.id).where(_delivery.c.job_id == job_id, _delivery.c.state.in_(waiting))
    ).scalars()
    for delivery_id in list(rows):
        move(connection, delivery_id, DeliveryEvent.CANCELLED, actor=actor, reason=reason)


def fill_outbox(connection: Connection, database: Database, job_id: int) -> None:
    """Insert the deliveries of a done job that are not there yet: every result to every destination."""
    results = connection.execute(sa.select(_result.c.id).where(_result.c.job_id == job_id).order_by(_result.c.ordinal))
    result_ids = list(results.scalars())
    for target in connection.execute(sa.select(_destination).where(_destination.c.job_id == job_id)).all():
        connection.execute(
            database.insert_new(schema.destination),
            {
                "peer": target.peer,
                "owner": "",
                "fence": 0,
                "beat": 0,
                "failures": 0,
                "next_try_at": now(),
                "reason": "",
            },
        )
        for result_id in result_ids:
            row = connection.execute(
                database.insert_new(_delivery).returning(_delivery.c.id),
                {
                    "result_id": result_id,
                    "job_id": job_id,
                    "peer": target.peer,
                    "ae_title": target.ae_title,
                    "host": target.host,
                    "port": target.port,
                    "state": DeliveryState.WAITING.value,
                    "reason": "waiting to be sent",
                    "attempts": 0,
                    "due_at": now(),
                    "created_at": now(),
                },
            ).scalar_one_or_none()
            if row is not None:
                journal.append(connection, "delivery", row, "enqueued", after=DeliveryState.WAITING)


def withhold_for_conflicts(connection: Connection, series_id: int, *, actor: str) -> None:
    """Hold back the queued and running jobs of a series that is in conflict."""
    rows = connection.execute(
        sa.select(_job.c.id)
        .join(_source, _source.c.job_id == _job.c.id)
        .where(
            _source.c.series_id == series_id,
            _job.c.state.in_([JobState.QUEUED.value, JobState.RUNNING.value]),
        )
    ).scalars()
    for job_id in list(rows):
        move(connection, job_id, JobEvent.WITHHELD, actor=actor, reason=f"{CONFLICT}: a person has to decide")
