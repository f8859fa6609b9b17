"""What holds jobs back: a paused pipeline, a source series in conflict, or one whose images are others by now."""

from __future__ import annotations

from typing import TYPE_CHECKING

import sqlalchemy as sa
from sqlalchemy import Connection

from pacs_ai.states import JobEvent, JobState, SeriesState
from pacs_ai.store import schema
from pacs_ai.store.moves import move
from pacs_ai.store.sources import are_others

if TYPE_CHECKING:
    from collections.abc import Sequence

_job, _source, _series, _switch = schema.job, schema.job_source, schema.series, schema.pipeline_switch

PAUSED = "the pipeline is paused"
CONFLICT = "a source series is in conflict: a person has to decide"
CHANGED = "its series has other images by now: they are analysed when it is complete"
WAITING = "waiting for a worker"


def keep_pauses(connection: Connection) -> None:
    """Have no pipeline paused or resumed until this transaction ends; several may do so at a time.

    Before any job is locked, as whoever pauses or resumes locks jobs behind it. SQLite has one writer at a time.
    """
    _lock_pauses(connection, "ROW SHARE")


def change_pauses(connection: Connection) -> None:
    """Wait for those who rely on which pipelines are paused, so that what comes next sees their jobs."""
    _lock_pauses(connection, "EXCLUSIVE")


def _lock_pauses(connection: Connection, mode: str) -> None:
    if connection.dialect.name == "postgresql":
        connection.execute(sa.text(f"LOCK TABLE {_switch.name} IN {mode} MODE"))


def hold_back(connection: Connection, job_id: int, *, actor: str) -> bool:
    """Withhold a queued job where something stands in its way now; tells whether. `keep_pauses` goes before."""
    reason = _hindrance(connection, job_id)
    if reason:
        move(connection, job_id, JobEvent.WITHHELD, actor=actor, reason=reason)
    return bool(reason)


def release(connection: Connection, job_ids: Sequence[int], *, actor: str) -> int:
    """Let withheld jobs go on, save those that something else holds back; returns how many went on."""
    held = 0
    for job_id in job_ids:
        move(connection, job_id, JobEvent.RELEASED, actor=actor, reason=WAITING)
        held += hold_back(connection, job_id, actor=actor)
    return len(job_ids) - held


def release_paused(connection: Connection, pipeline: str, *, actor: str) -> int:
    """Let the jobs of a pipeline that is paused no longer go on; returns how many did."""
    query = sa.select(_job.c.id).where(
        _job.c.pipeline == pipeline, _job.c.state == JobState.WITHHELD.value, _job.c.reason == PAUSED
    )
    return release(connection, _locked(connection, query), actor=actor)


def release_decided(connection: Connection, series_id: int, revision: int, *, actor: str) -> int:
    """Let the jobs go on that waited for a decision on a series and have it as it was decided; returns how many did."""
    query = (
        sa.select(_job.c.id)
        .join(_source, _source.c.job_id == _job.c.id)
        .where(
            _source.c.series_id == series_id,
            _source.c.revision == revision,
            _job.c.state == JobState.WITHHELD.value,
            _job.c.reason == CONFLICT,
        )
    )
    return release(connection, _locked(connection, query), actor=actor)


def withhold_paused(connection: Connection, pipeline: str, *, actor: str) -> int:
    """Hold back the queued jobs of a pipeline; returns how many."""
    query = sa.select(_job.c.id).where(_job.c.pipeline == pipeline, _job.c.state == JobState.QUEUED.value)
    jobs = _locked(connection, query)
    for job_id in jobs:
        move(connection, job_id, JobEvent.WITHHELD, actor=actor, reason=PAUSED)
    return len(jobs)


def withhold_for_conflict(connection: Connection, series_id: int, *, actor: str) -> None:
    """Hold back the queued and running jobs of a series that is in conflict."""
    query = (
        sa.select(_job.c.id)
        .join(_source, _source.c.job_id == _job.c.id)
        .where(
            _source.c.series_id == series_id,
            _job.c.state.in_([JobState.QUEUED.value, JobState.RUNNING.value]),
        )
    )
    for job_id in _locked(connection, query):
        move(connection, job_id, JobEvent.WITHHELD, actor=actor, reason=CONFLICT)


def _hindrance(connection: Connection, job_id: int) -> str:
    """Say what stands in a job's way; its series are locked against whoever brings them into conflict meanwhile."""
    sources = (
        sa.select(_series.c.state)
        .join(_source, _source.c.series_id == _series.c.id)
        .where(_source.c.job_id == job_id)
        .order_by(_series.c.id)
        .with_for_update(read=True, key_share=True, of=_series)
    )
    if SeriesState.CONFLICT in connection.execute(sources).scalars().all():
        return CONFLICT
    if are_others(connection, job_id):
        return CHANGED
    paused = sa.select(_job.c.id).join(_switch, _switch.c.pipeline == _job.c.pipeline).where(_job.c.id == job_id)
    return PAUSED if connection.execute(paused).first() is not None else ""


def _locked(connection: Connection, query: sa.Select[tuple[int]]) -> list[int]:
    """Return the jobs, locked against other moves, each once."""
    rows = connection.execute(query.order_by(_job.c.id).with_for_update(of=_job))
    return list(dict.fromkeys(row.id for row in rows))
