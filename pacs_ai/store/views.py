"""What people and the router read: studies, series, jobs and deliveries as plain records."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy import Connection

from pacs_ai.states import DeliveryState, JobState, SeriesState
from pacs_ai.store import schema, unconfirmed
from pacs_ai.store.clock import now

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

_study, _series, _job = schema.study, schema.series, schema.job
_source, _target, _result, _delivery = schema.job_source, schema.job_destination, schema.result, schema.delivery


@dataclass(frozen=True)
class SeriesView:
    """One series of a study."""

    id: int
    study_id: int
    study_instance_uid: str
    series_instance_uid: str
    modality: str
    header: Mapping[str, str]
    state: SeriesState
    revision: int
    routed_revision: int
    instances: int
    priority: int
    calling_ae_title: str
    called_ae_title: str
    first_received_at: datetime
    last_received_at: datetime
    completed_at: datetime | None
    reason: str
    own_result: bool
    awaiting: bool = False


@dataclass(frozen=True)
class StudyView:
    """One study."""

    id: int
    study_instance_uid: str
    patient_id: str
    accession_number: str
    description: str
    first_received_at: datetime
    series: tuple[SeriesView, ...]


@dataclass(frozen=True)
class JobView:
    """One job with where it comes from and what came of it."""

    id: int
    job_key: str
    study_instance_uid: str
    pipeline: str
    pipeline_version: str
    generation: int
    state: JobState
    reason: str
    refused_for: str  #: pacs_ai.errors.Reason where it is refused, else ""
    priority: int
    attempts: int
    crashes: int
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    timings: Mapping[str, float]
    findings: Mapping[str, Any]
    sources: tuple[tuple[str, str, int], ...]
    destinations: tuple[str, ...]
    overdue: bool


@dataclass(frozen=True)
class DeliveryView:
    """One result's way to one destination."""

    id: int
    job_id: int
    study_instance_uid: str
    kind: str
    sop_instance_uid: str
    sha256: str
    peer: str
    state: DeliveryState
    reason: str
    status: int | None
    attempts: int
    due_at: datetime
    sent_at: datetime | None
    comment: str  #: the peer's own words, where they were asked for; they may name a patient


@dataclass(frozen=True)
class ResultView:
    """One encoded object."""

    job_id: int
    kind: str
    encoding: str
    study_instance_uid: str
    series_instance_uid: str
    sop_instance_uid: str
    sop_class_uid: str
    sha256: str
    size: int


def series_of(connection: Connection, study_id: int) -> list[SeriesView]:
    """Return the series of one study, in the order in which they came."""
    return _series_views(connection, _series.c.study_id == study_id)


def _series_views(connection: Connection, condition: sa.ColumnElement[bool]) -> list[SeriesView]:
    rows = connection.execute(
        sa.select(_series, _study.c.study_instance_uid)
        .join(_study, _study.c.id == _series.c.study_id)
        .where(condition)
        .order_by(_series.c.id)
    )
    return [
        SeriesView(
            id=row.id,
            study_id=row.study_id,
            study_instance_uid=row.study_instance_uid,
            series_instance_uid=row.series_instance_uid,
            modality=row.modality,
            header=row.header,
            state=SeriesState(row.state),
            revision=row.revision,
            routed_revision=row.routed_revision,
            instances=row.instances,
            priority=row.priority,
            calling_ae_title=row.calling_ae_title,
            called_ae_title=row.called_ae_title,
            first_received_at=row.first_received_at,
            last_received_at=row.last_received_at,
            completed_at=row.completed_at,
            reason=row.reason,
            awaiting=row.awaiting,
            own_result=row.own_result,
        )
        for row in rows
    ]


def series_in(connection: Connection, state: SeriesState) -> list[SeriesView]:
    """Return every series in a state, in the order in which they came."""
    return _series_views(connection, _series.c.state == state.value)


def studies(connection: Connection, *, uid: str | None = None, limit: int = 100) -> list[StudyView]:
    """Return studies with their series, the newest first; all whose UID, Accession Number or Patient ID is `uid`."""
    query = sa.select(_study).order_by(_study.c.id.desc()).limit(limit)
    if uid is not None:
        query = query.where(
            sa.or_(_study.c.study_instance_uid == uid, _study.c.accession_number == uid, _study.c.patient_id == uid)
        )
    rows = connection.execute(query).all()
    of_study: dict[int, list[SeriesView]] = defaultdict(list)
    for view in _series_views(connection, _series.c.study_id.in_([row.id for row in rows])) if rows else ():
        of_study[view.study_id].append(view)
    return [
        StudyView(
            id=row.id,
            study_instance_uid=row.study_instance_uid,
            patient_id=row.patient_id,
            accession_number=row.accession_number,
            description=row.header.get("StudyDescription", ""),
            first_received_at=row.first_received_at,
            series=tuple(of_study[row.id]),
        )
        for row in rows
    ]


def jobs(
    connection: Connection,
    *,
    job_id: int | None = None,
    states: Sequence[JobState] | None = None,
    study_instance_uid: str | None = None,
    limit: int = 100,
) -> list[JobView]:
    """Return jobs, the newest first."""
    query = (
        sa.select(_job, _study.c.study_instance_uid)
        .join(_study, _study.c.id == _job.c.study_id)
        .order_by(_job.c.id.desc())
        .limit(limit)
    )
    if job_id is not None:
        query = query.where(_job.c.id == job_id)
    if states is not None:
        query = query.where(_job.c.state.in_([state.value for state in states]))
    if study_instance_uid is not None:
        query = query.where(_study.c.study_instance_uid == study_instance_uid)
    rows = connection.execute(query).all()
    ids = [row.id for row in rows]
    sources, targets = _sources(connection, ids), _targets(connection, ids)
    late = overdue(connection)
    return [
        JobView(
            id=row.id,
            job_key=row.job_key,
            study_instance_uid=row.study_instance_uid,
            pipeline=row.pipeline,
            pipeline_version=row.pipeline_version,
            generation=row.generation,
            state=JobState(row.state),
            reason=row.reason,
            refused_for=row.refused_for if row.state == JobState.REFUSED else "",
            priority=row.priority,
            attempts=row.attempts,
            crashes=row.crashes,
            created_at=row.created_at,
            started_at=row.started_at,
            finished_at=row.finished_at,
            timings=row.timings,
            findings=row.findings,
            sources=tuple(sources[row.id]),
            destinations=tuple(targets[row.id]),
            overdue=row.id in late,
        )
        for row in rows
    ]


def _sources(connection: Connection, job_ids: Sequence[int]) -> dict[int, list[tuple[str, str, int]]]:
    found: dict[int, list[tuple[str, str, int]]] = defaultdict(list)
    query = (
        sa.select(_source.c.job_id, _source.c.input, _series.c.series_instance_uid, _source.c.revision)
        .join(_series, _series.c.id == _source.c.series_id)
        .where(_source.c.job_id.in_(list(job_ids)))
        .order_by(_source.c.input)
    )
    for row in connection.execute(query):
        found[row.job_id].append((row.input, row.series_instance_uid, row.revision))
    return found


def _targets(connection: Connection, job_ids: Sequence[int]) -> dict[int, list[str]]:
    found: dict[int, list[str]] = defaultdict(list)
    query = sa.select(_target.c.job_id, _target.c.peer).where(_target.c.job_id.in_(list(job_ids)))
    for row in connection.execute(query.order_by(_target.c.peer)):
        found[row.job_id].append(row.peer)
    return found


def overdue(connection: Connection) -> set[int]:
    """Return the jobs whose results should have been delivered by now and were not.

    A refused, cancelled or superseded job is an end that people see as such, so it is not overdue; of a retracted one
    `late_notices` tells.
    """
    open_states = [JobState.QUEUED, JobState.RUNNING, JobState.WITHHELD, JobState.FAILED]
    unsent = [DeliveryState.WAITING, DeliveryState.SENDING, DeliveryState.HELD, DeliveryState.FAILED]
    late = _job.c.overdue_at < now()
    undelivered = sa.select(_delivery.c.job_id).where(_delivery.c.state.in_(unsent))
    query = sa.select(_job.c.id).where(late, _job.c.state.in_(open_states))
    # neither of these is "done" here; it leads SQLite to begin with the few deliveries, not with all done jobs
    ended = [JobState.SUPERSEDED.value, JobState.RETRACTED.value]
    done = sa.select(_job.c.id).where(late, _job.c.state.not_in(ended), _job.c.id.in_(undelivered))
    return set(connection.execute(query.union(done)).scalars())


def deliveries(
    connection: Connection,
    *,
    job_id: int | None = None,
    peer: str | None = None,
    states: Sequence[DeliveryState] | None = None,
    limit: int = 100,
    comments: bool = False,
    unconfirmed_only: bool = False,
) -> list[DeliveryView]:
    """Return deliveries, the newest first.

    Parameters
    ----------
    unconfirmed_only
        Those that a peer took, is asked for, and did not confirm.
    comments
        With what the peers said in their own words, which may name a patient.
    """
    query = (
        sa.select(
            _delivery,
            _result.c.kind,
            _result.c.sop_instance_uid,
            _result.c.sha256,
            _result.c.study_instance_uid,
        )
        .join(_result, _result.c.id == _delivery.c.result_id)
        .order_by(_delivery.c.id.desc())
        .limit(limit)
    )
    if job_id is not None:
        query = query.where(_delivery.c.job_id == job_id)
    if peer is not None:
        query = query.where(_delivery.c.peer == peer)
    if states is not None:
        query = query.where(_delivery.c.state.in_([state.value for state in states]))
    if unconfirmed_only:
        query = query.where(unconfirmed.is_open())
    return [
        DeliveryView(
            id=row.id,
            job_id=row.job_id,
            study_instance_uid=row.study_instance_uid,
            kind=row.kind,
            sop_instance_uid=row.sop_instance_uid,
            sha256=row.sha256,
            peer=row.peer,
            state=DeliveryState(row.state),
            reason=row.reason,
            status=row.status,
            attempts=row.attempts,
            due_at=row.due_at,
            sent_at=row.sent_at,
            comment=row.comment if comments else "",
        )
        for row in connection.execute(query)
    ]


def results(connection: Connection, job_id: int) -> list[ResultView]:
    """Return the encoded objects of a job, in the order in which they are sent."""
    query = sa.select(_result).where(_result.c.job_id == job_id).order_by(_result.c.ordinal)
    return [
        ResultView(
            job_id=row.job_id,
            kind=row.kind,
            encoding=row.encoding,
            study_instance_uid=row.study_instance_uid,
            series_instance_uid=row.series_instance_uid,
            sop_instance_uid=row.sop_instance_uid,
            sop_class_uid=row.sop_class_uid,
            sha256=row.sha256,
            size=row.size,
        )
        for row in connection.execute(query)
    ]


def counts(connection: Connection) -> dict[str, dict[str, int]]:
    """Return how many series, jobs and deliveries are in each state."""
    tables = {"series": _series, "jobs": _job, "deliveries": _delivery}
    found: dict[str, dict[str, int]] = {}
    for name, table in tables.items():
        query = sa.select(table.c.state, sa.func.count()).group_by(table.c.state).order_by(table.c.state)
        found[name] = dict(connection.execute(query).all())
    query = sa.select(sa.func.coalesce(sa.func.sum(_series.c.instances), 0))
    found["instances"] = {"stored": int(connection.execute(query).scalar_one())}
    return found


def paused(connection: Connection) -> dict[str, datetime]:
    """Return the paused pipelines and since when."""
    table = schema.pipeline_switch
    return {row.pipeline: row.paused_at for row in connection.execute(sa.select(table).order_by(table.c.pipeline))}


def destinations(connection: Connection) -> list[tuple[str, int, datetime, str]]:
    """Return for each destination: name, failures in a row, next try, last reason."""
    table = schema.destination
    rows = connection.execute(sa.select(table).order_by(table.c.peer))
    return [(row.peer, row.failures, row.next_try_at, row.reason) for row in rows]
