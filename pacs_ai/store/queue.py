"""The jobs: claimed under a fencing number, beaten while they run, finished once.

A claim carries a beat counter that its holder raises; a sweeper takes over when it has seen the counter stand still
(`pacs_ai.store.owners.Watch`). Finishing checks the fencing number, so a worker that was only asleep cannot write
twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy import Connection, Row

from pacs_ai import profiles
from pacs_ai.errors import Reason, UserError
from pacs_ai.states import JobEvent, JobState, SeriesEvent, SeriesState
from pacs_ai.store import schema
from pacs_ai.store.clock import LONGEST_WAIT, is_due, now
from pacs_ai.store.enqueue import HEAD_START
from pacs_ai.store.filling import fill_outbox, insert_results
from pacs_ai.store.holds import withhold_for_conflict
from pacs_ai.store.moves import move
from pacs_ai.store.notices import end_unanalysed
from pacs_ai.store.owners import Held
from pacs_ai.store.schema import Role
from pacs_ai.store.unidentified import UNIDENTIFIED

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pacs_ai.profiles import Plan
    from pacs_ai.store.database import Database
    from pacs_ai.store.filling import NewResult
    from pacs_ai.store.owners import Watch

_job, _source = schema.job, schema.job_source
_instance, _series, _process = schema.instance, schema.series, schema.process
_destination = schema.job_destination

#: The third crash fails the job: a poison study must not stop the line.
MOST_CRASHES = 3
#: So many tries that all ended for want of memory or another resource take about an hour.
MOST_TRIES = 16
_BACKOFF_SECONDS = 5.0
#: So long a job whose process died lets others go first, and twice as long the next time.
_AFTER_CRASH_SECONDS = 2.0


@dataclass(frozen=True)
class Claim:
    """A job that this process holds."""

    job_id: int
    job_key: str
    fence: int
    owner: str
    pipeline: str
    pipeline_version: str
    model_digest: str
    settings_digest: str
    generation: int
    attempts: int
    crashes: int
    study_id: int
    created_at: datetime


@dataclass(frozen=True)
class SourceFile:
    """One file of a job's input."""

    input: str
    sop_instance_uid: str
    sha256: str
    role: Role


class Lost(Exception):  # noqa: N818 - not a fault: another holds the claim now, or an operator ended the job
    """The claim is no longer this process's."""


def claim(database: Database, owner: str, pipelines: Sequence[str] | None = None) -> Claim | None:
    """Take the next job that is due; None where there is none. Looks before it takes the write lock."""
    query = (
        sa.select(_job.c.id)
        .where(
            _job.c.state == JobState.QUEUED.value,
            is_due(_job.c.due_at),
            _job.c.pipeline_version != UNIDENTIFIED,
            _job.c.pipeline.not_in(sa.select(schema.pipeline_switch.c.pipeline)),
        )
        .order_by(_job.c.rank, _job.c.id)
        .limit(1)
    )
    if pipelines is not None:
        query = query.where(_job.c.pipeline.in_(list(pipelines)))
    with database.read() as connection:
        if connection.execute(query).first() is None:
            return None
    with database.write() as connection:
        job_id = connection.execute(query.with_for_update(skip_locked=True)).scalar_one_or_none()
        if job_id is None:
            return None
        move(
            connection,
            job_id,
            JobEvent.CLAIMED,
            actor=owner,
            reason="being analysed",
            owner=owner,
            fence=_job.c.fence + 1,
            beat=0,
            attempts=_job.c.attempts + 1,
            started_at=now(),
        )
        return _as_claim(connection.execute(sa.select(_job).where(_job.c.id == job_id)).one())


def _as_claim(row: Row[Any]) -> Claim:
    return Claim(
        job_id=row.id,
        job_key=row.job_key,
        fence=row.fence,
        owner=row.owner,
        pipeline=row.pipeline,
        pipeline_version=row.pipeline_version,
        model_digest=row.model_digest,
        settings_digest=row.settings_digest,
        generation=row.generation,
        attempts=row.attempts,
        crashes=row.crashes,
        study_id=row.study_id,
        created_at=row.created_at,
    )


def look(connection: Connection, job_id: int) -> Claim:
    """Return what a claim on a job would say, whatever its state; UserError where there is none."""
    row = connection.execute(sa.select(_job).where(_job.c.id == job_id)).one_or_none()
    if row is None:
        raise UserError(f"there is no job {job_id}; `pacs-ai jobs` lists them")
    return _as_claim(row)


def is_held(database: Database, held: Claim) -> bool:
    """Tell whether the claim still stands (not cancelled, superseded or taken over)."""
    query = sa.select(_job.c.id).where(
        _job.c.id == held.job_id, _job.c.fence == held.fence, _job.c.state == JobState.RUNNING.value
    )
    with database.read() as connection:
        return connection.execute(query).first() is not None


def beat(database: Database, held: Claim) -> bool:
    """Raise the beat counter, and say that the process lives; False where the claim no longer stands."""
    with database.write() as connection:
        connection.execute(sa.update(_process).where(_process.c.owner == held.owner).values(seen_at=now()))
        changed = connection.execute(
            sa.update(_job)
            .where(_job.c.id == held.job_id, _job.c.fence == held.fence, _job.c.state == JobState.RUNNING.value)
            .values(beat=_job.c.beat + 1)
        )
        return changed.rowcount == 1


def note(database: Database, held: Claim, step: str) -> None:
    """Note what a running job is at (loading, inferring, encoding), for those who watch."""
    with database.write() as connection:
        connection.execute(
            sa.update(_job)
            .where(_job.c.id == held.job_id, _job.c.fence == held.fence, _job.c.state == JobState.RUNNING.value)
            .values(reason=step)
        )


def source_files(connection: Connection, job_id: int) -> list[SourceFile]:
    """Return the files of a job's inputs, the not yet verified ones of the same instances too."""
    query = (
        sa.select(_source.c.input, _instance.c.sop_instance_uid, _instance.c.sha256, _instance.c.role)
        .join(_instance, _instance.c.series_id == _source.c.series_id)
        .where(
            _source.c.job_id == job_id,
            _instance.c.purged_at.is_(None),
            sa.or_(
                sa.and_(_instance.c.role == Role.CURRENT.value, _instance.c.revision <= _source.c.revision),
                _instance.c.role == Role.UNVERIFIED.value,
            ),
        )
        .order_by(_source.c.input, _instance.c.sop_instance_uid, _instance.c.role)
    )
    return [
        SourceFile(row.input, row.sop_instance_uid, row.sha256, Role(row.role)) for row in connection.execute(query)
    ]


def plans(connection: Connection, job_id: int) -> list[Plan]:
    """Return what each destination of a job gets."""
    query = sa.select(_destination.c.plan).where(_destination.c.job_id == job_id).order_by(_destination.c.peer)
    return [profiles.from_json(plan) for plan in connection.execute(query).scalars()]


def _require_held(connection: Connection, held: Claim) -> None:
    query = sa.select(_job.c.state).where(_job.c.id == held.job_id, _job.c.fence == held.fence).with_for_update()
    if connection.execute(query).scalar_one_or_none() != JobState.RUNNING:
        raise Lost(f"job {held.job_id} is no longer held by {held.owner}")


def _move_held(connection: Connection, held: Claim, event: JobEvent, **values: Any) -> None:
    _require_held(connection, held)
    move(connection, held.job_id, event, actor=held.owner, held=held.fence, **values)


def finish(
    database: Database,
    held: Claim,
    results: Sequence[NewResult],
    *,
    findings: Mapping[str, Any],
    timings: Mapping[str, float],
    summary: str,
    encoded: Sequence[str],
    verified: Sequence[str] = (),
) -> None:
    """Put the results into the outbox and end the job, in one transaction; `Lost` where another holds it now.

    Parameters
    ----------
    encoded
        Keys of all encodings that the findings were to be written in, of those too that had nothing to say.
    verified
        SHA-256 of files whose decoded pixels were found equal to those of the current ones.
    """
    with database.write() as connection:
        _move_held(
            connection,
            held,
            JobEvent.FINISHED,
            reason=summary,
            finished_at=now(),
            findings=dict(findings),
            timings=dict(timings),
            encoded=list(encoded),
        )
        if verified:
            connection.execute(
                sa.update(_instance)
                .where(_instance.c.sha256.in_(list(verified)), _instance.c.role == Role.UNVERIFIED.value)
                .values(role=Role.VARIANT.value)
            )
        insert_results(connection, held.job_id, results)
        fill_outbox(connection, database, held.job_id)


def refuse(database: Database, held: Claim, reason: str, refused_for: str = Reason.OTHER) -> None:
    """End the job: its input cannot be analysed, for this coded reason (`pacs_ai.errors.Reason`)."""
    _end(database, held, JobEvent.REFUSED, reason, refused_for=str(refused_for))


def fail(database: Database, held: Claim, reason: str) -> None:
    """End the job for good."""
    _end(database, held, JobEvent.FAILED, reason)


def _end(database: Database, held: Claim, event: JobEvent, reason: str, **values: str) -> None:
    with database.write() as connection:
        _require_held(connection, held)
        end_unanalysed(connection, held.job_id, event, actor=held.owner, reason=reason, held=held.fence, **values)


def postpone(database: Database, held: Claim, reason: str) -> None:
    """Queue the job again after a transient error, with growing waits; after `MOST_TRIES` in a row, fail it."""
    if held.attempts >= MOST_TRIES:
        fail(database, held, f"given up after {held.attempts} tries; the last: {reason}")
        return
    wait = min(_BACKOFF_SECONDS * 2 ** min(held.attempts - 1, 10), LONGEST_WAIT)
    with database.write() as connection:
        _move_held(connection, held, JobEvent.POSTPONED, reason=reason, due_at=now() + timedelta(seconds=wait))


def put_back(database: Database, held: Claim, reason: str) -> None:
    """Queue the job again as if it had not been tried: nothing was wrong with it, its worker ends."""
    with database.write() as connection:
        _move_held(connection, held, JobEvent.POSTPONED, reason=reason, due_at=now(), attempts=held.attempts - 1)


def crashed(database: Database, held: Claim, reason: str) -> None:
    """Queue the job again, behind others that wait, after its process died; the third time, fail it."""
    due_at = now() + timedelta(seconds=_AFTER_CRASH_SECONDS * 2**held.crashes)
    with database.write() as connection:
        _require_held(connection, held)
        _crash(connection, held.job_id, held.fence, held.crashes, reason, held.owner, due_at)


def _crash(
    connection: Connection, job_id: int, fence: int, crashes: int, reason: str, actor: str, due_at: datetime
) -> None:
    count = crashes + 1
    if count >= MOST_CRASHES:
        words = f"given up after {count} crashes; the last: {reason}"
        end_unanalysed(connection, job_id, JobEvent.FAILED, actor=actor, reason=words, held=fence, crashes=count)
    else:
        move(connection, job_id, JobEvent.LOST, actor=actor, reason=reason, held=fence, crashes=count, due_at=due_at)


def found_conflict(database: Database, held: Claim, words: str) -> None:
    """Note that contents under one SOP Instance UID, whose headers are equal, differ in their pixels.

    Their series is set to ``conflict`` and its jobs are withheld, this one too.
    """
    with database.write() as connection:
        sources = sa.select(_source.c.series_id).where(_source.c.job_id == held.job_id)
        doubted = sa.select(_instance.c.series_id).where(
            _instance.c.role == Role.UNVERIFIED.value, _instance.c.series_id.in_(sources)
        )
        series = sa.select(_series.c.id, _series.c.state).where(_series.c.id.in_(doubted)).order_by(_series.c.id)
        doubtful = connection.execute(series.with_for_update()).all()  # before any job, as who receives a conflict
        _require_held(connection, held)
        for row in doubtful:
            connection.execute(
                sa.update(_instance)
                .where(_instance.c.series_id == row.id, _instance.c.role == Role.UNVERIFIED.value)
                .values(role=Role.CONFLICT.value)
            )
            if row.state != SeriesState.CONFLICT:
                reason = f"{words}; decide with: pacs-ai resolve SERIES --keep first|latest"
                move(connection, row.id, SeriesEvent.DIFFERING_INSTANCE, actor=held.owner, reason=reason)
            withhold_for_conflict(connection, row.id, actor=held.owner)
        query = sa.select(_job.c.state).where(_job.c.id == held.job_id)
        if connection.execute(query).scalar_one() == JobState.RUNNING:  # somebody has settled it meanwhile
            move(connection, held.job_id, JobEvent.POSTPONED, actor=held.owner, reason=words, due_at=now())


def sweep(database: Database, watch: Watch, actor: str) -> int:
    """Take over the jobs of workers that are dead or stand still; returns how many."""
    query = sa.select(_job.c.id, _job.c.owner, _job.c.fence, _job.c.beat).where(_job.c.state == JobState.RUNNING.value)
    with database.read() as connection:
        rows = connection.execute(query.order_by(_job.c.id))
        claims = {row.id: Held(row.owner, row.fence, row.beat) for row in rows}
        misplaced = connection.execute(_too_far_back()).first() is not None
    taken = 0
    for job_id in watch.lost("job", claims):
        held = claims[job_id]
        with database.write() as connection:
            still = connection.execute(
                sa.select(_job.c.crashes)
                .where(
                    _job.c.id == job_id,
                    _job.c.fence == held.fence,
                    _job.c.beat == held.beat,
                    _job.c.state == JobState.RUNNING.value,
                )
                .with_for_update(skip_locked=True)
            ).scalar_one_or_none()
            if still is not None:
                words = "its worker process died or stopped answering"
                _crash(connection, job_id, held.fence, still, words, actor, now())
                taken += 1
    if misplaced:
        _bring_forward(database)
    return taken


def _too_far_back() -> sa.Select[Any]:
    """Select queued jobs ranked as no job can be that is enqueued now: the wall clock was set back since."""
    latest = now().timestamp() + max(HEAD_START.values()) + LONGEST_WAIT
    return sa.select(_job.c.id, _job.c.priority).where(_job.c.state == JobState.QUEUED.value, _job.c.rank > latest)


def _bring_forward(database: Database) -> None:
    """Rank jobs as if they had been enqueued now, so that a clock that was set back starves none."""
    with database.write() as connection:
        for row in connection.execute(_too_far_back().order_by(_job.c.id).with_for_update()).all():
            rank = now().timestamp() + HEAD_START[row.priority]
            connection.execute(sa.update(_job).where(_job.c.id == row.id).values(rank=rank))
