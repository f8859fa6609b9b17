"""What an operator orders: cancel, run again, pause and resume a pipeline, decide a conflict."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

import sqlalchemy as sa
from sqlalchemy import Connection, Row

from pacs_ai.errors import UserError
from pacs_ai.states import JobEvent, JobState, SeriesEvent, SeriesState
from pacs_ai.store import journal, schema
from pacs_ai.store.clock import now
from pacs_ai.store.enqueue import (
    PAUSED,
    Address,
    Source,
    Work,
    cancel_deliveries,
    enqueue_generation,
    withhold_for_conflicts,
)
from pacs_ai.store.moves import move
from pacs_ai.store.schema import Role

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pacs_ai.store.database import Database

_job, _source, _destination, _switch = schema.job, schema.job_source, schema.job_destination, schema.pipeline_switch
_instance, _series = schema.instance, schema.series


def cancel(database: Database, job_id: int, *, actor: str) -> None:
    """End a job and what of it has not been sent, or set a failed one aside; UserError where nothing is left to end."""
    with database.write() as connection:
        row = _operators_row(connection, job_id)
        if row.state in {JobState.QUEUED, JobState.RUNNING, JobState.WITHHELD, JobState.FAILED}:
            move(
                connection,
                job_id,
                JobEvent.CANCELLED,
                actor=actor,
                reason="cancelled by an operator",
                finished_at=now(),
            )
        elif row.state != JobState.DONE:
            raise UserError(f"job {job_id} is {row.state}: there is nothing to cancel")
        cancel_deliveries(connection, job_id, actor=actor, reason="cancelled by an operator")


def retry(database: Database, job_id: int, *, actor: str) -> int:
    """Run a failed, refused or cancelled job again; a done one as a new generation. Returns the job's id."""
    with database.write() as connection:
        row = _operators_row(connection, job_id)
        if row.state in {JobState.FAILED, JobState.REFUSED, JobState.CANCELLED}:
            move(
                connection,
                job_id,
                JobEvent.RETRIED,
                actor=actor,
                reason="tried again by an operator",
                crashes=0,
                attempts=0,
                due_at=now(),
                finished_at=None,
            )
            return job_id
        if row.state == JobState.DONE:
            return _next_generation(connection, database, row, actor)
        raise UserError(f"job {job_id} is {row.state}: only a failed, refused, cancelled or done job is run again")


def _operators_row(connection: Connection, job_id: int) -> Row[Any]:
    row = connection.execute(sa.select(_job).where(_job.c.id == job_id).with_for_update()).one_or_none()
    if row is None:
        raise UserError(f"there is no job {job_id}; `pacs-ai jobs` lists them")
    return row


def _next_generation(connection: Connection, database: Database, row: Row[Any], actor: str) -> int:
    sources = [
        Source(s.input, s.series_id, s.revision)
        for s in connection.execute(sa.select(_source).where(_source.c.job_id == row.id))
    ]
    targets = connection.execute(sa.select(_destination).where(_destination.c.job_id == row.id)).all()
    work = Work(
        study_id=row.study_id,
        pipeline=row.pipeline,
        pipeline_version=row.pipeline_version,
        model_digest=row.model_digest,
        settings_digest=row.settings_digest,
        sources=tuple(sources),
        priority=row.priority,
        route=targets[0].route if targets else "operator",
        destinations=tuple(Address(t.peer, t.ae_title, t.host, t.port) for t in targets),
        overdue_at=now() + timedelta(hours=1),
    )
    return enqueue_generation(connection, database, work, row.generation + 1, actor=actor)


def pause(database: Database, pipeline: str, *, actor: str, reason: str = "") -> int:
    """Stop a pipeline: its queued jobs are withheld, running ones end; returns how many were withheld."""
    with database.write() as connection:
        connection.execute(database.insert_new(_switch), {"pipeline": pipeline, "paused_at": now(), "reason": reason})
        journal.append(connection, "pipeline", pipeline, "paused", reason=reason, actor=actor)
        return _move_all(connection, pipeline, JobState.QUEUED, JobEvent.WITHHELD, PAUSED, actor)


def resume(database: Database, pipeline: str, *, actor: str) -> int:
    """Let a paused pipeline go on; returns how many jobs were released."""
    with database.write() as connection:
        connection.execute(sa.delete(_switch).where(_switch.c.pipeline == pipeline))
        journal.append(connection, "pipeline", pipeline, "resumed", actor=actor)
        return _move_all(connection, pipeline, JobState.WITHHELD, JobEvent.RELEASED, "waiting for a worker", actor)


def _move_all(connection: Connection, pipeline: str, state: JobState, event: JobEvent, reason: str, actor: str) -> int:
    query = sa.select(_job.c.id).where(_job.c.pipeline == pipeline, _job.c.state == state.value)
    if event is JobEvent.RELEASED:
        query = query.where(_job.c.reason == PAUSED)
    ids = list(connection.execute(query.with_for_update()).scalars())
    for job_id in ids:
        move(connection, job_id, event, actor=actor, reason=reason)
    return len(ids)


def conflict_found(database: Database, job_id: int, words: str, *, actor: str) -> None:
    """Note that a worker found two contents under one SOP Instance UID to differ in their pixels."""
    with database.write() as connection:
        sources = connection.execute(sa.select(_source.c.series_id).where(_source.c.job_id == job_id)).scalars()
        for series_id in list(sources):
            query = sa.select(_instance.c.id).where(
                _instance.c.series_id == series_id, _instance.c.role == Role.UNVERIFIED.value
            )
            ids = list(connection.execute(query).scalars())
            if not ids:
                continue
            connection.execute(sa.update(_instance).where(_instance.c.id.in_(ids)).values(role=Role.CONFLICT.value))
            move(
                connection,
                series_id,
                SeriesEvent.DIFFERING_INSTANCE,
                actor=actor,
                reason=f"{words}; decide with: pacs-ai resolve SERIES --keep first|latest",
            )
            withhold_for_conflicts(connection, series_id, actor=actor)


def resolve(database: Database, series_instance_uid: str, *, keep: Literal["first", "latest"], actor: str) -> int:
    """Decide a conflict: analyse the first or the latest content of every instance; returns how many it concerned."""
    with database.write() as connection:
        query = sa.select(_series).where(_series.c.series_instance_uid == series_instance_uid).with_for_update()
        row = next((r for r in connection.execute(query) if r.state == SeriesState.CONFLICT), None)
        if row is None:
            raise UserError(f"there is no series {series_instance_uid} in conflict; `pacs-ai status` lists them")
        conflicting = connection.execute(
            sa.select(_instance)
            .where(_instance.c.series_id == row.id, _instance.c.role == Role.CONFLICT.value)
            .order_by(_instance.c.id)
        ).all()
        latest = {other.sop_instance_uid: other.id for other in conflicting}
        swapped = latest.values() if keep == "latest" else ()
        _drop_others(connection, conflicting, set(swapped))
        values = {"revision": row.routed_revision + 1} if swapped else {}
        reason = f"an operator kept the {keep} content of {len(latest)} instance(s)"
        move(connection, row.id, SeriesEvent.RESOLVED, actor=actor, reason=reason, **values)
        return len(latest)


def _drop_others(connection: Connection, conflicting: Sequence[Row[Any]], chosen: set[int]) -> None:
    """Make the chosen rows current in place of what was current; the other conflicting ones become variants."""
    for other in conflicting:
        demoted = sa.update(_instance).values(role=Role.VARIANT.value)
        if other.id not in chosen:
            connection.execute(demoted.where(_instance.c.id == other.id))
            continue
        connection.execute(
            demoted.where(
                _instance.c.sop_instance_uid == other.sop_instance_uid, _instance.c.role == Role.CURRENT.value
            )
        )
        connection.execute(sa.update(_instance).where(_instance.c.id == other.id).values(role=Role.CURRENT.value))
