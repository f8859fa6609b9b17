"""What an operator orders: cancel, run again, pause and resume a pipeline, decide a conflict."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

import sqlalchemy as sa
from sqlalchemy import Connection, Row

from pacs_ai.errors import UserError
from pacs_ai.profiles import from_json
from pacs_ai.states import DeliveryState, JobEvent, JobState, SeriesEvent, SeriesState
from pacs_ai.store import concerns, journal, schema, unconfirmed
from pacs_ai.store.clock import now
from pacs_ai.store.enqueue import (
    Address,
    Identity,
    Source,
    Work,
    cancel_deliveries,
    count_purged,
    enqueue_generation,
    lock_study,
)
from pacs_ai.store.holds import change_pauses, hold_back, release_paused, withhold_paused
from pacs_ai.store.moves import move
from pacs_ai.store.notices import cancel_unsent, withdraw_unsent
from pacs_ai.store.schema import Role
from pacs_ai.store.sources import are_others

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from pacs_ai.store.database import Database

_job, _source, _destination, _switch = schema.job, schema.job_source, schema.job_destination, schema.pipeline_switch
_instance, _series = schema.instance, schema.series

_TO_RETRY = frozenset({JobState.FAILED, JobState.REFUSED, JobState.CANCELLED})
_TO_RENEW = frozenset({JobState.DONE, JobState.RETRACTED})
_STILL_GOING = frozenset({DeliveryState.WAITING, DeliveryState.HELD, DeliveryState.SENDING})
_RETRIED_WORDS = "a failed, refused, cancelled, done or retracted"


def cancel(database: Database, job_id: int, *, actor: str, peers: Collection[str] | None = None) -> int:
    """End a job and what of it has not been sent, or set a failed one aside; UserError where nothing is left to end.

    Where a done one lacks something, or is not confirmed, only that is set aside, and what other destinations are still
    to get goes on; returns how many deliveries that are.

    Parameters
    ----------
    peers
        Those of the configuration: that others do not confirm what they took is set aside. None: all are.
    """
    with database.write() as connection:
        row = _operators_row(connection, job_id)
        was_open = unconfirmed.set_aside(connection, job_id, actor=actor, peers=peers)
        nothing = UserError(f"job {job_id} is {row.state}: there is nothing to cancel")
        if row.state in {JobState.QUEUED, JobState.RUNNING, JobState.WITHHELD, JobState.FAILED}:
            move(
                connection,
                job_id,
                JobEvent.CANCELLED,
                actor=actor,
                reason="cancelled by an operator",
                finished_at=now(),
            )
        elif row.state not in {JobState.DONE, JobState.RETRACTED, JobState.REFUSED}:
            if was_open:
                return 0
            raise nothing
        elif concerns.set_aside(connection, job_id, actor=actor) or was_open:
            going = (schema.delivery.c.job_id == job_id) & schema.delivery.c.state.in_(_STILL_GOING)
            return connection.execute(sa.select(sa.func.count()).where(going)).scalar_one()
        also = [DeliveryState.SENDING]
        cancelled = cancel_unsent(connection, job_id, actor=actor, reason="cancelled by an operator", also=also)
        cancelled += cancel_deliveries(connection, job_id, actor=actor, reason="cancelled by an operator", also=also)
        dropped = concerns.drop_unmade(connection, job_id, actor=actor)
        if row.state == JobState.REFUSED and not (cancelled or dropped):
            raise nothing
        return 0


def retry(
    database: Database,
    job_id: int,
    *,
    actor: str,
    addresses: Mapping[str, Address] = MappingProxyType({}),
    identity_of: Callable[[str], Identity] | None = None,
) -> int:
    """Run a failed, refused or cancelled job again; a done or retracted one as a new generation. Returns the job's id.

    A job of a pipeline that is another one now (version, model, settings) is run anew, by what is there.

    Parameters
    ----------
    addresses
        Where each peer is reached now and what it gets: for a new generation.
    identity_of
        Says what a pipeline is now; None: what it was.
    """
    with database.write() as connection:
        row = _operators_row(connection, job_id)
        if row.state not in _TO_RETRY | _TO_RENEW:
            raise UserError(f"job {job_id} is {row.state}: only {_RETRIED_WORDS} job is run again")
        work = _work_of(connection, row, addresses)
        renewed = work if identity_of is None else _as_now(work, identity_of(row.pipeline))
        if row.state == JobState.RETRACTED and (later := _later_job(connection, row, work)):
            raise UserError(f"job {job_id} was run again or replaced since: see job {later}, and retry that one")
        if gone := count_purged(connection, work.sources):
            raise UserError(f"retention has deleted {gone} instance(s) of job {job_id}: send the series again first")
        if are_others(connection, job_id):
            words = "its series has other images by now, which are analysed when it is complete"
            raise UserError(f"job {job_id} is not run again: {words}")
        if row.state in _TO_RENEW or renewed != work:
            job_id = enqueue_generation(connection, database, renewed, row.generation + 1, actor=actor)
        else:
            withdraw_unsent(connection, job_id, actor=actor)
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
            hold_back(connection, job_id, actor=actor)
        return job_id


def _as_now(work: Work, identity: Identity) -> Work:
    """Return the work of the pipeline as it is now; as it was where that is disabled, or the work had no model yet."""
    if identity.fault or not work.model_digest:
        return work
    changed = replace(
        work,
        pipeline_version=identity.version,
        model_digest=identity.model_digest,
        settings_digest=identity.settings_digest,
    )
    return work if changed == work else replace(changed, card=identity.card)


def _later_job(connection: Connection, row: Row[Any], work: Work) -> int | None:
    """Return the newest job of the same pipeline on any of the series, where it is newer than this one."""
    query = (
        sa.select(sa.func.max(_job.c.id))
        .join(_source, _source.c.job_id == _job.c.id)
        .where(
            _job.c.id > row.id,
            _job.c.pipeline == row.pipeline,
            _source.c.series_id.in_([source.series_id for source in work.sources]),
        )
    )
    later: int | None = connection.execute(query).scalar_one()
    return later


def _operators_row(connection: Connection, job_id: int) -> Row[Any]:
    study_id = connection.execute(sa.select(_job.c.study_id).where(_job.c.id == job_id)).scalar_one_or_none()
    if study_id is None:
        raise UserError(f"there is no job {job_id}; `pacs-ai jobs` lists them")
    lock_study(connection, study_id)
    return connection.execute(sa.select(_job).where(_job.c.id == job_id).with_for_update()).one()


def _work_of(connection: Connection, row: Row[Any], addresses: Mapping[str, Address]) -> Work:
    taken = sa.select(_source).where(_source.c.job_id == row.id).order_by(_source.c.input)
    sources = [Source(s.input, s.series_id, s.revision) for s in connection.execute(taken)]
    query = sa.select(_destination).where(_destination.c.job_id == row.id).order_by(_destination.c.peer)
    targets = connection.execute(query).all()
    former = [Address(t.peer, t.ae_title, t.host, t.port, from_json(t.plan)) for t in targets]
    return Work(
        study_id=row.study_id,
        pipeline=row.pipeline,
        pipeline_version=row.pipeline_version,
        model_digest=row.model_digest,
        settings_digest=row.settings_digest,
        sources=tuple(sources),
        priority=row.priority,
        route=row.route,
        destinations=tuple(addresses.get(address.peer, address) for address in former),
        overdue_at=now() + (row.overdue_at - row.created_at),
        card=row.card,
        report_not_analysed=any(t.report_not_analysed for t in targets),
    )


def pause(database: Database, pipeline: str, *, actor: str, reason: str = "") -> int:
    """Stop a pipeline: its queued jobs are withheld, running ones end; returns how many were withheld."""
    with database.write() as connection:
        change_pauses(connection)
        connection.execute(database.insert_new(_switch), {"pipeline": pipeline, "paused_at": now(), "reason": reason})
        journal.append(connection, "pipeline", pipeline, "paused", reason=reason, actor=actor)
        return withhold_paused(connection, pipeline, actor=actor)


def resume(database: Database, pipeline: str, *, actor: str) -> int:
    """Let a paused pipeline go on; returns how many jobs were released."""
    with database.write() as connection:
        change_pauses(connection)
        connection.execute(sa.delete(_switch).where(_switch.c.pipeline == pipeline))
        journal.append(connection, "pipeline", pipeline, "resumed", actor=actor)
        return release_paused(connection, pipeline, actor=actor)


def resolve(database: Database, series_instance_uid: str, *, keep: Literal["first", "latest"], actor: str) -> int:
    """Decide a conflict: analyse the first or the latest content of every instance; returns how many it concerned."""
    with database.write() as connection:
        query = sa.select(_series).where(
            _series.c.series_instance_uid == series_instance_uid, _series.c.state == SeriesState.CONFLICT.value
        )
        row = connection.execute(query.order_by(_series.c.id).with_for_update()).first()
        if row is None:
            raise UserError(f"there is no series {series_instance_uid} in conflict; `pacs-ai status` lists them")
        conflicting = connection.execute(
            sa.select(_instance)
            .where(_instance.c.series_id == row.id, _instance.c.role == Role.CONFLICT.value)
            .order_by(_instance.c.id)
        ).all()
        latest = {other.sop_instance_uid: other.id for other in conflicting}
        chosen = set(latest.values()) if keep == "latest" else set()
        others = _settle(connection, conflicting, chosen) - {row.id}
        if chosen:
            _count_anew(connection, row.id)
        reason = f"an operator kept the {keep} content of {len(latest)} instance(s)"
        move(connection, row.id, SeriesEvent.RESOLVED, actor=actor, reason=reason)
        for series_id in sorted(others):
            _lose_instances(connection, series_id, actor)
        return len(latest)


def _settle(connection: Connection, conflicting: Sequence[Row[Any]], chosen: set[int]) -> set[int]:
    """Make the chosen rows current in place of what was; the others become variants. Returns the series changed."""
    changed = set()
    demoted = sa.update(_instance).values(role=Role.VARIANT.value)
    for other in conflicting:
        if other.id not in chosen:
            connection.execute(demoted.where(_instance.c.id == other.id))
            continue
        was = demoted.where(
            _instance.c.sop_instance_uid == other.sop_instance_uid, _instance.c.role == Role.CURRENT.value
        )
        changed |= set(connection.execute(was.returning(_instance.c.series_id)).scalars())
        connection.execute(sa.update(_instance).where(_instance.c.id == other.id).values(role=Role.CURRENT.value))
    return changed


def _count_anew(connection: Connection, series_id: int) -> None:
    """Bring a series to its next revision, with as many instances as are current now."""
    current = (
        sa.select(sa.func.count())
        .select_from(_instance)
        .where(_instance.c.series_id == series_id, _instance.c.role == Role.CURRENT.value)
        .scalar_subquery()
    )
    connection.execute(
        sa.update(_series)
        .where(_series.c.id == series_id)
        .values(instances=current, revision=_series.c.routed_revision + 1)
    )


def _lose_instances(connection: Connection, series_id: int, actor: str) -> None:
    """Open a series again whose instances were decided to belong to another."""
    _count_anew(connection, series_id)
    query = sa.select(_series.c.state).where(_series.c.id == series_id).with_for_update()
    if connection.execute(query).scalar_one() in {SeriesState.COMPLETE, SeriesState.UNROUTED}:
        reason = "an operator gave some of its instances to another series"
        move(connection, series_id, SeriesEvent.LATE_INSTANCE, actor=actor, reason=reason)
