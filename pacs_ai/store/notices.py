"""Notices to be made: "not analysed" where a job ends without results, and what withdraws results that were delivered.

A notice is ordered in the transaction that gives cause for it, so none is forgotten. Whoever makes it puts its objects
into the outbox in one transaction that ends the order; of several who made the same, one does.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy import Connection

from pacs_ai.profiles import Kind
from pacs_ai.states import DeliveryEvent, DeliveryState, JobEvent, JobState
from pacs_ai.store import journal, schema
from pacs_ai.store.clock import LONGEST_WAIT, is_due, now
from pacs_ai.store.filling import insert_deliveries, insert_results
from pacs_ai.store.moves import move

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pacs_ai.pipeline import Card
    from pacs_ai.store.database import Database
    from pacs_ai.store.filling import NewResult, Reached

_job, _destination, _notice = schema.job, schema.job_destination, schema.notice
_result, _delivery = schema.result, schema.delivery

#: So many tries that all ended in an unexpected way; then it is given up, and `status` says so.
_MOST_TRIES = 5
_BACKOFF_SECONDS = 2.0
#: Place of notices among the deliveries of their job: after every result.
_LAST = 1000


class NoticeKind(StrEnum):
    """What is said."""

    NOT_ANALYSED = "not-analysed"  #: there is no result, and why
    REJECTION = "rejection"  #: a rejection note, for a peer that hides what it names
    RETRACTED = "retracted"  #: objects that say RETRACTED, for other peers


#: Job states in which a notice is still true.
_TRUE_IN = {
    NoticeKind.NOT_ANALYSED: (JobState.REFUSED.value, JobState.FAILED.value),
    NoticeKind.REJECTION: (JobState.RETRACTED.value,),
    NoticeKind.RETRACTED: (JobState.RETRACTED.value,),
}


@dataclass(frozen=True)
class Named:
    """An object that a retraction names."""

    study_instance_uid: str
    series_instance_uid: str
    sop_class_uid: str
    sop_instance_uid: str
    sha256: str
    created_at: datetime


@dataclass(frozen=True)
class Order:
    """A notice to be made.

    Parameters
    ----------
    cause
        ``refused`` or ``failed``; of a retraction ``safety``, ``quality``, ``worklist`` or ``retention``.
    refused_for
        Of "not analysed": the code of a refusal (`pacs_ai.errors.Reason`).
    card
        What the pipeline says of itself (`card_of`); empty where it was disabled.
    named
        What a retraction withdraws.
    inputs
        Of "not analysed": SHA-256 of every stored instance of the job, by name of input.
    """

    id: int
    job_id: int
    kind: NoticeKind
    cause: str
    words: str
    refused_for: str
    ordered_at: datetime
    job_key: str
    generation: int
    pipeline: str
    pipeline_version: str
    model_digest: str
    settings_digest: str
    card: Mapping[str, str]
    named: tuple[Named, ...]
    inputs: Mapping[str, tuple[str, ...]]


def card_of(card: Card) -> dict[str, str]:
    """Return what a notice says of a pipeline, as plain text, for the job's row."""
    return {
        "name": card.name,
        "manufacturer": card.manufacturer,
        "title": card.title,
        "clearance": card.clearance.value,
        "intended_use": card.intended_use,
    }


# -- ordered


def end_unanalysed(
    connection: Connection, job_id: int, event: JobEvent, *, actor: str, reason: str, **values: Any
) -> None:
    """Refuse or fail a job, and order the notice that its routes ask for."""
    if move(connection, job_id, event, actor=actor, reason=reason, finished_at=now(), **values) is not None:
        order_not_analysed(connection, job_id, actor=actor)


def order_not_analysed(connection: Connection, job_id: int, *, actor: str) -> None:
    """Order "not analysed" for each destination of a refused or failed job that asks for it and was not told so yet."""
    job = connection.execute(sa.select(_job).where(_job.c.id == job_id)).one()
    forget(connection, job_id, NoticeKind.NOT_ANALYSED)
    told = _told(connection, job_id, job.reason)
    asking = sa.select(_destination.c.peer).where(_destination.c.job_id == job_id, _destination.c.report_not_analysed)
    peers = [peer for peer in connection.execute(asking.order_by(_destination.c.peer)).scalars() if peer not in told]
    if peers:
        order(connection, job_id, NoticeKind.NOT_ANALYSED, job.state, job.reason, peers, actor=actor)


def _told(connection: Connection, job_id: int, words: str) -> set[str]:
    query = sa.select(_notice.c.peers).where(
        _notice.c.job_id == job_id, _notice.c.kind == NoticeKind.NOT_ANALYSED.value, _notice.c.words == words
    )
    return {peer for peers in connection.execute(query).scalars() for peer in peers}


def order(
    connection: Connection,
    job_id: int,
    kind: NoticeKind,
    cause: str,
    words: str,
    peers: Sequence[str],
    results: Sequence[int] = (),
    *,
    actor: str,
) -> None:
    """Order one notice, in the transaction of what gives cause for it."""
    connection.execute(
        sa.insert(_notice).values(
            job_id=job_id,
            kind=kind.value,
            cause=cause,
            words=words,
            peers=list(peers),
            results=list(results),
            actor=actor,
            ordered_at=now(),
            due_at=now(),
            attempts=0,
            problem="",
        )
    )
    _journal(connection, job_id, "notice ordered", f"{kind.value} to {', '.join(peers)}: {words}", actor)


def forget(connection: Connection, job_id: int, kind: NoticeKind) -> None:
    """Drop the orders of a job that are not made yet."""
    connection.execute(
        sa.delete(_notice).where(_notice.c.job_id == job_id, _notice.c.kind == kind.value, _notice.c.ended_at.is_(None))
    )


def withdraw_unsent(connection: Connection, job_id: int, *, actor: str) -> None:
    """Take back what was not yet said of a job that is tried again."""
    forget(connection, job_id, NoticeKind.NOT_ANALYSED)
    cancel_unsent(connection, job_id, actor=actor, reason="the job is tried again")


def cancel_unsent(
    connection: Connection, job_id: int, *, actor: str, reason: str, also: Sequence[DeliveryState] = ()
) -> int:
    """Cancel "not analysed" where it was not sent yet, and note whom that leaves untold; returns how many deliveries.

    So it is said after all where the job comes to the same end again.
    """
    waiting = (
        sa.select(_delivery.c.id, _delivery.c.peer)
        .join(_result, _result.c.id == _delivery.c.result_id)
        .where(
            _delivery.c.job_id == job_id,
            _delivery.c.state.in_(
                [DeliveryState.WAITING.value, DeliveryState.HELD.value, DeliveryState.FAILED.value, *also]
            ),
            _result.c.kind == Kind.NOT_ANALYSED.value,
        )
        .order_by(_delivery.c.id)
        .with_for_update(of=_delivery)
    )
    rows = connection.execute(waiting).all()
    for row in rows:
        doubtful = sa.or_(_delivery.c.doubtful, _delivery.c.state == DeliveryState.SENDING.value)
        move(connection, row.id, DeliveryEvent.CANCELLED, actor=actor, reason=reason, doubtful=doubtful)
    untold = {row.peer for row in rows}
    ended = sa.select(_notice).where(_notice.c.job_id == job_id, _notice.c.kind == NoticeKind.NOT_ANALYSED.value)
    for row in connection.execute(ended).all():
        told = [] if row.problem else [peer for peer in row.peers if peer not in untold]
        connection.execute(sa.update(_notice).where(_notice.c.id == row.id).values(peers=told, problem=""))
    return len(rows)


# -- made


@cache
def _next_order() -> sa.Select[Any]:
    true = sa.or_(
        *(sa.and_(_notice.c.kind == kind.value, _job.c.state.in_(states)) for kind, states in _TRUE_IN.items())
    )
    return (
        sa.select(_notice, *(column.label(f"job_{column.name}") for column in _job.c if column.name != "id"))
        .join(_job, _job.c.id == _notice.c.job_id)
        .where(_notice.c.ended_at.is_(None), is_due(_notice.c.due_at), true)
        .order_by(_notice.c.id)
        .limit(1)
    )


def next_order(database: Database) -> Order | None:
    """Return the oldest notice that is wanted and due; None where there is none."""
    with database.read() as connection:
        row = connection.execute(_next_order()).one_or_none()
        if row is None:
            return None
        kind = NoticeKind(row.kind)
        return Order(
            id=row.id,
            job_id=row.job_id,
            kind=kind,
            cause=row.cause,
            words=row.words,
            refused_for=row.job_refused_for if row.cause == JobState.REFUSED else "",
            ordered_at=row.ordered_at,
            job_key=row.job_job_key,
            generation=row.job_generation,
            pipeline=row.job_pipeline,
            pipeline_version=row.job_pipeline_version,
            model_digest=row.job_model_digest,
            settings_digest=row.job_settings_digest,
            card=row.job_card,
            named=_named(connection, row.results),
            inputs=_inputs(connection, row.job_id) if kind is NoticeKind.NOT_ANALYSED else {},
        )


def _named(connection: Connection, result_ids: Sequence[int]) -> tuple[Named, ...]:
    query = sa.select(_result).where(_result.c.id.in_(list(result_ids))).order_by(_result.c.ordinal)
    return tuple(
        Named(
            row.study_instance_uid,
            row.series_instance_uid,
            row.sop_class_uid,
            row.sop_instance_uid,
            row.sha256,
            row.created_at,
        )
        for row in connection.execute(query)
    )


def _inputs(connection: Connection, job_id: int) -> dict[str, tuple[str, ...]]:
    found: dict[str, list[str]] = {}
    source, instance = schema.job_source, schema.instance
    query = (
        sa.select(source.c.input, instance.c.sha256)
        .join(instance, instance.c.series_id == source.c.series_id)
        .where(
            source.c.job_id == job_id,
            instance.c.purged_at.is_(None),
            instance.c.role == schema.Role.CURRENT.value,
            instance.c.revision <= source.c.revision,
        )
        .order_by(source.c.input, instance.c.sop_instance_uid)
    )
    for row in connection.execute(query):
        found.setdefault(row.input, []).append(row.sha256)
    return {name: tuple(files) for name, files in found.items()}


def made(
    database: Database,
    wanted: Order,
    results: Sequence[NewResult],
    *,
    actor: str,
    addresses: Mapping[str, Reached] = MappingProxyType({}),
) -> bool:
    """Put a notice's objects into the outbox; False where another did, or it is no longer true.

    Parameters
    ----------
    addresses
        Where each peer is reached now; one that is not among them is sought where it was when the job was made.
    """
    with database.write() as connection:
        state = connection.execute(sa.select(_job.c.state).where(_job.c.id == wanted.job_id).with_for_update())
        if state.scalar_one() not in _TRUE_IN[wanted.kind] or not _end(connection, wanted, ""):
            return False
        ids = insert_results(connection, wanted.job_id, results)
        peers = connection.execute(sa.select(_notice.c.peers).where(_notice.c.id == wanted.id)).scalar_one()
        targets = sa.select(_destination).where(_destination.c.job_id == wanted.job_id, _destination.c.peer.in_(peers))
        for target in connection.execute(targets.order_by(_destination.c.peer)).all():
            insert_deliveries(connection, database, target, dict.fromkeys(ids, _LAST), addresses.get(target.peer))
        _journal(connection, wanted.job_id, "notice made", f"{wanted.kind.value} to {', '.join(peers)}", actor)
        return True


def _end(connection: Connection, wanted: Order, problem: str) -> bool:
    changed = connection.execute(
        sa.update(_notice)
        .where(_notice.c.id == wanted.id, _notice.c.ended_at.is_(None))
        .values(ended_at=now(), problem=problem)
    )
    return changed.rowcount == 1


def give_up(database: Database, wanted: Order, problem: str, *, actor: str) -> None:
    """End an order that cannot be carried out, and say why where people look."""
    with database.write() as connection:
        if _end(connection, wanted, problem):
            words = f"{wanted.kind.value} cannot be sent: {problem}"
            _journal(connection, wanted.job_id, "notice given up", words, actor)


def postpone(database: Database, wanted: Order, problem: str, *, actor: str, counts: bool) -> None:
    """Try again later; where the try `counts`, it is given up after a few."""
    with database.write() as connection:
        tries = sa.select(_notice.c.attempts).where(_notice.c.id == wanted.id)
        attempts = (connection.execute(tries).scalar_one_or_none() or 0) + 1
        wait = min(_BACKOFF_SECONDS * 2 ** min(attempts, 10), LONGEST_WAIT)
        connection.execute(
            sa.update(_notice)
            .where(_notice.c.id == wanted.id)
            .values(attempts=attempts, due_at=now() + timedelta(seconds=wait))
        )
    if counts and attempts >= _MOST_TRIES:
        give_up(database, wanted, problem, actor=actor)


def _journal(connection: Connection, job_id: int, event: str, reason: str, actor: str) -> None:
    state = connection.execute(sa.select(_job.c.state).where(_job.c.id == job_id)).scalar_one()
    journal.append(connection, "job", job_id, event, before=state, after=state, reason=reason, actor=actor)
