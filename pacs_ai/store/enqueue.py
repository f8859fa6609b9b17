"""Enqueueing: one job per set of series revisions and pipeline, whichever and however many routes name it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy import Connection, Row

from pacs_ai import profiles
from pacs_ai.dicom.identifiers import digest
from pacs_ai.errors import Reason
from pacs_ai.states import REACHED, DeliveryEvent, DeliveryState, JobEvent, JobState
from pacs_ai.store import journal, schema
from pacs_ai.store.clock import now
from pacs_ai.store.filling import fill_outbox
from pacs_ai.store.holds import WAITING, hold_back, keep_pauses
from pacs_ai.store.moves import move
from pacs_ai.store.notices import end_unanalysed, order_not_analysed
from pacs_ai.store.schema import Role
from pacs_ai.store.sources import series_digest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from pacs_ai.profiles import Plan
    from pacs_ai.store.database import Database

_job, _source, _destination = schema.job, schema.job_source, schema.job_destination
_instance, _delivery = schema.instance, schema.delivery

STAT, URGENT, ROUTINE = 0, 1, 2
#: Head start in seconds: a routine job that has waited an hour goes before a stat job that has just come.
HEAD_START = {STAT: 0.0, URGENT: 2700.0, ROUTINE: 3600.0}
PRIORITY_NAMES = {STAT: "stat", URGENT: "urgent", ROUTINE: "routine"}


@dataclass(frozen=True)
class Source:
    """One named input: a series at a revision."""

    input: str
    series_id: int
    revision: int


@dataclass(frozen=True)
class Address:
    """Where a peer is reached and what it gets; frozen in the job's rows when it is enqueued."""

    peer: str
    ae_title: str
    host: str
    port: int
    plan: Plan


@dataclass(frozen=True)
class Identity:
    """What makes work of a pipeline the same work; `fault` says where the pipeline is disabled, and why."""

    version: str = ""
    model_digest: str = ""
    settings_digest: str = ""
    inputs: tuple[str, ...] = ()
    card: Mapping[str, str] = field(default_factory=dict)
    fault: str = ""


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
    refused_for: Reason = Reason.OTHER  #: code of the refusal
    card: Mapping[str, str] = field(default_factory=dict)  #: what the pipeline says of itself: `notices.card_of`
    report_not_analysed: bool = False  #: the destinations get a report where there is no result


def lock_study(connection: Connection, study_id: int) -> None:
    """Lock a study against everybody else who enqueues or purges; first of all locks, so that none waits for another.

    Receiving goes on meanwhile: a key is not changed (FOR NO KEY UPDATE). Pausing and resuming wait.
    """
    query = sa.select(schema.study.c.id).where(schema.study.c.id == study_id)
    connection.execute(query.with_for_update(key_share=True)).one()
    keep_pauses(connection)


def enqueue(connection: Connection, database: Database, work: Work, *, actor: str) -> tuple[int, bool]:
    """Insert the job unless it is there, add the destinations, supersede the jobs that it makes out of date.

    A source whose file retention has deleted has the job refused at once.

    Returns
    -------
    job id, and whether it is new.
    """
    lock_study(connection, work.study_id)
    existing = _existing(connection, work)
    if existing is None and not work.refusal and (gone := count_purged(connection, work.sources)):
        words = f"{gone} instance(s) were deleted by retention: send the series again, then retry this job"
        work = replace(work, refusal=words, refused_for=Reason.DELETED)
        existing = _existing(connection, work)
    if existing is not None:
        _ask_again(connection, database, existing, work, actor)
        return existing.id, False
    job_id = _insert_with_sources(connection, database, work, 0, actor)
    if work.refusal:
        code = work.refused_for.value
        end_unanalysed(connection, job_id, JobEvent.REFUSED, actor=actor, reason=work.refusal, refused_for=code)
    else:
        hold_back(connection, job_id, actor=actor)
    return job_id, True


def _ask_again(connection: Connection, database: Database, existing: Row[Any], work: Work, actor: str) -> None:
    """Add the destinations to a job that is there, and deliver what it has come to, save what was retracted."""
    added = _add_destinations(connection, database, existing.id, work)
    if existing.state == JobState.DONE:
        fill_outbox(connection, database, existing.id)
    elif existing.state in {JobState.REFUSED, JobState.FAILED}:
        order_not_analysed(connection, existing.id, actor=actor)
    elif existing.state == JobState.RETRACTED and added:
        words = f"asked for by route {work.route}; nothing is sent of what was retracted: pacs-ai retry {existing.id}"
        state = JobState.RETRACTED.value
        journal.append(connection, "job", existing.id, "asked again", before=state, after=state, reason=words)


def enqueue_generation(connection: Connection, database: Database, work: Work, generation: int, *, actor: str) -> int:
    """Insert the same work anew, with other UIDs; returns the job's id."""
    lock_study(connection, work.study_id)
    job_id = _insert_with_sources(connection, database, work, generation, actor)
    hold_back(connection, job_id, actor=actor)
    return job_id


def is_covered(connection: Connection, work: Work) -> bool:
    """Tell whether a job of that pipeline had exactly these sources already, and delivers wherever this work would."""
    wanted = {(source.input, source.series_id, source.revision) for source in work.sources}
    candidates = (
        sa.select(_job.c.id)
        .join(_source, _source.c.job_id == _job.c.id)
        .where(_job.c.pipeline == work.pipeline, _source.c.series_id.in_([s.series_id for s in work.sources]))
        .distinct()
    )
    for job_id in connection.execute(candidates).scalars().all():
        sources = connection.execute(sa.select(_source).where(_source.c.job_id == job_id))
        if {(row.input, row.series_id, row.revision) for row in sources} != wanted:
            continue
        peers = sa.select(_destination.c.peer).where(_destination.c.job_id == job_id)
        if {address.peer for address in work.destinations} <= set(connection.execute(peers).scalars()):
            return True
    return False


def count_purged(connection: Connection, sources: Sequence[Source]) -> int:
    """Return how many instances of these series revisions have lost their file to retention."""
    return sum(
        connection.execute(
            sa.select(sa.func.count())
            .select_from(_instance)
            .where(
                _instance.c.series_id == source.series_id,
                _instance.c.revision <= source.revision,
                _instance.c.role == Role.CURRENT.value,
                _instance.c.purged_at.is_not(None),
            )
        ).scalar_one()
        for source in sources
    )


def _existing(connection: Connection, work: Work) -> Row[Any] | None:
    query = sa.select(_job).where(_job.c.job_key == _key(connection, work, generation=0))
    return connection.execute(query.with_for_update()).one_or_none()


def _insert_with_sources(connection: Connection, database: Database, work: Work, generation: int, actor: str) -> int:
    predecessor = _supersede(connection, work, actor)
    job_id = _insert(connection, work, generation, predecessor, actor)
    for source in work.sources:
        connection.execute(
            sa.insert(_source).values(
                job_id=job_id,
                input=source.input,
                series_id=source.series_id,
                revision=source.revision,
                digest=series_digest(connection, source.series_id, source.revision),
            )
        )
    _add_destinations(connection, database, job_id, work)
    return job_id


def _key(connection: Connection, work: Work, generation: int) -> str:
    sources = [[s.input, series_digest(connection, s.series_id, s.revision)] for s in work.sources]
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


def _insert(connection: Connection, work: Work, generation: int, predecessor: int | None, actor: str) -> int:
    at = now()
    job_id = connection.execute(
        sa.insert(_job)
        .values(
            job_key=_key(connection, work, generation),
            study_id=work.study_id,
            pipeline=work.pipeline,
            pipeline_version=work.pipeline_version,
            model_digest=work.model_digest,
            settings_digest=work.settings_digest,
            generation=generation,
            predecessor_id=predecessor,
            route=work.route,
            state=JobState.QUEUED.value,
            reason=WAITING,
            priority=work.priority,
            rank=at.timestamp() + HEAD_START[work.priority],
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
            card=dict(work.card),
            encoded=[],
            refused_for="",
        )
        .returning(_job.c.id)
    ).scalar_one()
    journal.append(
        connection, "job", job_id, "enqueued", after=JobState.QUEUED, reason=f"route {work.route}", actor=actor
    )
    return int(job_id)


def _add_destinations(connection: Connection, database: Database, job_id: int, work: Work) -> bool:
    """Add where the results go; tells whether anything is new."""
    added = False
    for address in work.destinations:
        row = connection.execute(
            database.insert_new(_destination).returning(_destination.c.peer),
            {
                "job_id": job_id,
                "peer": address.peer,
                "ae_title": address.ae_title,
                "host": address.host,
                "port": address.port,
                "route": work.route,
                "plan": profiles.to_json(address.plan),
                "report_not_analysed": work.report_not_analysed,
                "lacking": "",
            },
        ).one_or_none()
        added |= row is not None
        if row is None and work.report_not_analysed:
            connection.execute(
                sa.update(_destination)
                .where(_destination.c.job_id == job_id, _destination.c.peer == address.peer)
                .values(report_not_analysed=True)
            )
    return added


def _supersede(connection: Connection, work: Work, actor: str) -> int | None:
    """End the jobs that this work makes out of date; returns the job whose results were delivered last.

    A retracted one stays so, and is named as the predecessor.
    """
    query = (
        sa.select(_job.c.id, _job.c.predecessor_id, _job.c.route, _job.c.state)
        .where(
            _job.c.pipeline == work.pipeline,
            _job.c.state != JobState.SUPERSEDED.value,
            _job.c.id.in_(
                sa.select(_source.c.job_id).where(_source.c.series_id.in_([s.series_id for s in work.sources]))
            ),
        )
        .order_by(_job.c.id)
        .with_for_update()
    )
    predecessor: int | None = None
    for row in connection.execute(query).all():
        if not _is_outdated(connection, row.id, row.route, work):
            continue
        predecessor = row.id if _was_delivered(connection, row.id) else row.predecessor_id or predecessor
        if row.state == JobState.RETRACTED:
            continue
        reason = "the same series are analysed anew in place of it"
        move(connection, row.id, JobEvent.SUPERSEDED, actor=actor, reason=reason, finished_at=now())
        cancel_deliveries(connection, row.id, actor=actor, reason="superseded before it was sent")
    return predecessor


def _is_outdated(connection: Connection, job_id: int, route: str, work: Work) -> bool:
    """Tell whether a job on some of the same series is replaced by this work, and not one beside it.

    It is where it saw an older revision, had nothing that this work has not, or came by the same route.
    """
    inputs = {(s.input, s.series_id) for s in work.sources}
    revisions = {s.series_id: s.revision for s in work.sources}
    theirs = connection.execute(sa.select(_source).where(_source.c.job_id == job_id)).all()
    return (
        route == work.route
        or any(s.revision < revisions.get(s.series_id, 0) for s in theirs)
        or {(s.input, s.series_id) for s in theirs} <= inputs
    )


def _was_delivered(connection: Connection, job_id: int) -> bool:
    sent = sa.select(_delivery.c.id).where(
        _delivery.c.job_id == job_id,
        _delivery.c.state.in_([state.value for state in REACHED]),
    )
    return connection.execute(sent).first() is not None


def cancel_deliveries(
    connection: Connection, job_id: int, *, actor: str, reason: str, also: Sequence[DeliveryState] = ()
) -> int:
    """Cancel what of a job has not been sent; returns how many deliveries.

    What is being sent goes on, and is cancelled when it comes back (`pacs_ai.store.outbox`), unless `also` names it.
    """
    states = [DeliveryState.WAITING, DeliveryState.HELD, DeliveryState.FAILED, *also]
    query = sa.select(_delivery).where(_delivery.c.job_id == job_id, _delivery.c.state.in_(states))
    rows = connection.execute(query.order_by(_delivery.c.id).with_for_update()).all()
    for row in rows:
        doubtful = row.doubtful or row.state == DeliveryState.SENDING  # the peer may have it by now
        move(connection, row.id, DeliveryEvent.CANCELLED, actor=actor, reason=reason, doubtful=doubtful)
    return len(rows)
