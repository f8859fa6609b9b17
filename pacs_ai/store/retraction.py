"""Retraction: withdraws the results of a job from every destination that has them, or may have them.

The job and its deliveries are retracted, and what tells the destinations is ordered, in one transaction.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy import Connection, Row

from pacs_ai.errors import UserError
from pacs_ai.profiles import NOTICES
from pacs_ai.states import DeliveryEvent, DeliveryState, JobEvent, JobState
from pacs_ai.store import notices, schema
from pacs_ai.store.enqueue import lock_study
from pacs_ai.store.moves import move
from pacs_ai.store.notices import NoticeKind

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from pacs_ai.store.database import Database

_job, _result, _delivery, _notice = schema.job, schema.result, schema.delivery, schema.notice

#: Reason -> what it is called. The codes are those of IHE's Imaging Object Change Management.
REASONS = {
    "safety": "patient safety",
    "quality": "quality",
    "worklist": "made for the wrong patient or order",
    "retention": "data retention policy expired",
}
_THERE = frozenset({DeliveryState.SENT, DeliveryState.CONFIRMED, DeliveryState.SENDING})
_RETRACTABLE = frozenset({JobState.DONE, JobState.SUPERSEDED})


@dataclass(frozen=True)
class Retraction:
    """What retracting one job does, or did.

    Parameters
    ----------
    withdrawn
        Destination -> what it has or may have, and is told is withdrawn: each object's kind.
    cancelled
        Deliveries that are not sent any more.
    """

    job_id: int
    pipeline: str
    study_instance_uid: str
    withdrawn: Mapping[str, tuple[str, ...]]
    cancelled: int


def find(connection: Connection, pipeline: str, since: datetime, until: datetime | None) -> list[int]:
    """Return the jobs of a pipeline that can be retracted and whose results were made in a span of time."""
    made = sa.select(_result.c.job_id).where(_result.c.created_at >= since, _result.c.kind.not_in(NOTICES))
    if until is not None:
        made = made.where(_result.c.created_at <= until)
    states = [state.value for state in _RETRACTABLE]
    query = sa.select(_job.c.id).where(_job.c.pipeline == pipeline, _job.c.state.in_(states), _job.c.id.in_(made))
    return list(connection.execute(query.order_by(_job.c.id)).scalars())


def look(connection: Connection, job_id: int) -> Retraction:
    """Return what retracting a job would do; UserError where it cannot be retracted."""
    job = _retractable(job_id, connection.execute(_job_of(job_id)).one_or_none())
    return _summary(connection, job, _concerned(connection.execute(_deliveries_of(job_id)).all()))


def retract(
    database: Database, job_id: int, *, reason: str, because: str, honours: Mapping[str, bool], actor: str
) -> Retraction:
    """Retract one job.

    Parameters
    ----------
    reason
        One of `REASONS`.
    because
        Why, in words, without any value of a patient: readers of the study see it.
    honours
        Destination -> whether it hides what a rejection note names; of one that is missing, that is not known and it
        gets objects that say RETRACTED.
    """
    with database.write() as connection:
        study_id = connection.execute(sa.select(_job.c.study_id).where(_job.c.id == job_id)).scalar_one_or_none()
        if study_id is not None:
            lock_study(connection, study_id)
        job = _retractable(job_id, connection.execute(_job_of(job_id).with_for_update()).one_or_none())
        rows = connection.execute(_deliveries_of(job_id).with_for_update(of=_delivery)).all()
        deliveries = _concerned(rows)
        words = f"retracted ({REASONS[reason]}): {because}"
        for row in deliveries:
            event = DeliveryEvent.RETRACTED if _may_be_there(row) else DeliveryEvent.CANCELLED
            move(connection, row.id, event, actor=actor, reason=words)
        move(connection, job_id, JobEvent.RETRACTED, actor=actor, reason=words)
        for (kind, results), peers in _groups(deliveries, honours).items():
            notices.order(connection, job_id, kind, reason, because, peers, results, actor=actor)
        return _summary(connection, job, deliveries)


def _job_of(job_id: int) -> sa.Select[Any]:
    return sa.select(_job).where(_job.c.id == job_id)


def _retractable(job_id: int, row: Row[Any] | None) -> Row[Any]:
    if row is None:
        raise UserError(f"there is no job {job_id}; `pacs-ai jobs` lists them")
    if row.state == JobState.RETRACTED:
        raise UserError(f"job {job_id} is retracted already: {row.reason}")
    if row.state not in _RETRACTABLE:
        raise UserError(f"job {job_id} is {row.state} and has no results to retract; pacs-ai cancel {job_id} ends it")
    return row


def _deliveries_of(job_id: int) -> sa.Select[Any]:
    return (
        sa.select(_delivery, _result.c.kind)
        .join(_result, _result.c.id == _delivery.c.result_id)
        .where(_delivery.c.job_id == job_id)
        .order_by(_delivery.c.id)
    )


def _concerned(rows: Sequence[Row[Any]]) -> list[Row[Any]]:
    """Return the deliveries that a retraction changes."""
    open_states = {DeliveryState.WAITING.value, DeliveryState.HELD.value, DeliveryState.FAILED.value}
    return [row for row in rows if _may_be_there(row) or row.state in open_states]


def _may_be_there(row: Row[Any]) -> bool:
    return row.state in _THERE or bool(row.doubtful)


def _groups(
    deliveries: list[Row[Any]], honours: Mapping[str, bool]
) -> dict[tuple[NoticeKind, tuple[int, ...]], list[str]]:
    """Return which notice names what to whom; destinations that have the same share one."""
    held: dict[str, list[int]] = defaultdict(list)
    for row in deliveries:
        if _may_be_there(row):
            held[row.peer].append(row.result_id)
    groups: dict[tuple[NoticeKind, tuple[int, ...]], list[str]] = defaultdict(list)
    for peer, results in sorted(held.items()):
        kind = NoticeKind.REJECTION if honours.get(peer, False) else NoticeKind.RETRACTED
        groups[kind, tuple(sorted(results))].append(peer)
    return groups


def _summary(connection: Connection, job: Row[Any], deliveries: list[Row[Any]]) -> Retraction:
    study = sa.select(schema.study.c.study_instance_uid).where(schema.study.c.id == job.study_id)
    withdrawn: dict[str, list[str]] = defaultdict(list)
    for row in deliveries:
        if _may_be_there(row):
            withdrawn[row.peer].append(row.kind)
    return Retraction(
        job_id=job.id,
        pipeline=job.pipeline,
        study_instance_uid=connection.execute(study).scalar_one(),
        withdrawn={peer: tuple(kinds) for peer, kinds in sorted(withdrawn.items())},
        cancelled=sum(not _may_be_there(row) for row in deliveries),
    )


def say_otherwise(connection: Connection, delivery_id: int, refusal: str, *, actor: str) -> str:
    """Order objects that say RETRACTED for a peer that accepts no rejection note; returns what is sent instead."""
    row = connection.execute(sa.select(_delivery).where(_delivery.c.id == delivery_id)).one()
    rejections = sa.select(_notice).where(_notice.c.job_id == row.job_id, _notice.c.kind == NoticeKind.REJECTION.value)
    given = next(one for one in connection.execute(rejections) if row.peer in one.peers)
    instead = "a report and a picture that say RETRACTED"
    words = f"not accepted; sent as {instead} instead ({refusal})"
    move(connection, delivery_id, DeliveryEvent.REPLACED, actor=actor, reason=words)
    notices.order(
        connection,
        row.job_id,
        NoticeKind.RETRACTED,
        given.cause,
        given.words,
        [row.peer],
        given.results,
        actor=given.actor,
    )
    return instead
