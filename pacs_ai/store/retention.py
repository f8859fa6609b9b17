"""Retention: deletes inputs of final, delivered jobs and what no route wanted, each after its days; never others."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy import Connection

from pacs_ai.states import DeliveryState, JobState, SeriesState
from pacs_ai.store import journal, schema
from pacs_ai.store.clock import now
from pacs_ai.store.enqueue import lock_study

if TYPE_CHECKING:
    from pacs_ai.store.database import Database
    from pacs_ai.store.files import Files

_series, _instance, _job, _source = schema.series, schema.instance, schema.job, schema.job_source
_delivery, _result = schema.delivery, schema.result
_commitment, _pledge = schema.commitment, schema.pledge

_OPEN_JOBS = [JobState.QUEUED.value, JobState.RUNNING.value, JobState.WITHHELD.value, JobState.FAILED.value]
_OPEN_DELIVERIES = [
    state.value for state in (DeliveryState.WAITING, DeliveryState.SENDING, DeliveryState.HELD, DeliveryState.FAILED)
]
#: Events of a series in the journal: its files were deleted, and with them the last that the node had of the study.
PURGED, STUDY_PURGED = "purged", "purged_with_study"
_YOUNG_SECONDS = 3600.0
#: A thousand years: times before the calendar's first cannot be named.
_FOR_EVER_DAYS = 365_000.0
#: A request for storage commitment that was asked or answered so long ago is forgotten; an answer may come late.
_REQUEST_DAYS = 30.0


def purge(database: Database, files: Files, *, inputs_days: float, unrouted_days: float, actor: str) -> int:
    """Delete what is due; returns how many instances.

    An instance is due when its series has been quiet for the days, no route waits for more of its study, and every job
    on it has ended so long ago: done with all results delivered (or cancelled), refused, cancelled or superseded. A
    failed job keeps its inputs, for a retry. A series of which the node has committed to keep an instance
    (`pacs_ai.store.pledges`) is never due. The row stays and says when the file went; the files themselves go some
    minutes later (`pacs_ai.store.sweeping`).
    """
    ages = {SeriesState.COMPLETE: inputs_days, SeriesState.UNROUTED: unrouted_days}
    with database.read() as connection:
        due = [(row, state, days) for state, days in ages.items() for row in connection.execute(_due(state, days))]
    count = 0
    for row, state, days in due:
        with database.write() as connection:
            lock_study(connection, row.study_id)
            locked = sa.select(_series.c.id).where(_series.c.id == row.id).with_for_update()
            connection.execute(locked)
            if connection.execute(_due(state, days).where(_series.c.id == row.id)).first() is not None:
                count += _mark(connection, row.id, actor)
    forget(database)
    sweep(database, files)
    return count


def forget(database: Database) -> int:
    """Delete requests for storage commitment, on both sides, that nobody waits for any more; returns how many.

    What was committed to stays so: that stands in the instance's own row, and in the delivery's.
    """
    before = now() - timedelta(days=_REQUEST_DAYS)
    open_steps = sa.exists().where(
        _delivery.c.commitment_id == _commitment.c.id,
        _delivery.c.state == DeliveryState.SENT.value,
        _delivery.c.confirm_at.is_not(None),
    )
    # the newest stays: the Transaction UID of the next derives from its number
    newest = sa.select(sa.func.max(_commitment.c.id)).scalar_subquery()
    asked = sa.and_(_commitment.c.asked_at < before, _commitment.c.id < newest, ~open_steps)
    told = _pledge.c.ended_at < before
    with database.read() as connection:
        queries = (sa.select(_commitment.c.id).where(asked), sa.select(_pledge.c.id).where(told))
        if all(connection.execute(query.limit(1)).first() is None for query in queries):
            return 0
    with database.write() as connection:
        deletes = (sa.delete(_commitment).where(asked), sa.delete(_pledge).where(told))
        return sum(connection.execute(delete).rowcount for delete in deletes)


def _mark(connection: Connection, series_id: int, actor: str) -> int:
    changed = connection.execute(
        sa.update(_instance)
        .where(_instance.c.series_id == series_id, _instance.c.purged_at.is_(None), _instance.c.pledged_at.is_(None))
        .values(purged_at=now())
    )
    study_id = sa.select(_series.c.study_id).where(_series.c.id == series_id).scalar_subquery()
    left = (
        sa.select(_instance.c.id)
        .join(_series, _series.c.id == _instance.c.series_id)
        .where(_series.c.study_id == study_id, _instance.c.purged_at.is_(None))
    )
    event = PURGED if connection.execute(left.limit(1)).first() else STUDY_PURGED
    words = f"{changed.rowcount} file(s) deleted by retention"
    journal.append(connection, "series", series_id, event, reason=words, actor=actor)
    return changed.rowcount


def _due(state: SeriesState, days: float) -> sa.Select[Any]:
    """Select the series in a state whose files may go, in the order in which they came."""
    before = now() - timedelta(days=min(days, _FOR_EVER_DAYS))
    jobs = sa.select(_source.c.series_id).join(_job, _job.c.id == _source.c.job_id)
    needed = jobs.where(sa.or_(_job.c.state.in_(_OPEN_JOBS), _job.c.finished_at >= before))
    undelivered = jobs.join(_delivery, _delivery.c.job_id == _job.c.id).where(
        sa.or_(_delivery.c.state.in_(_OPEN_DELIVERIES), _delivery.c.sent_at >= before)
    )
    due = sa.select(_series.c.id, _series.c.study_id).where(
        _series.c.state == state.value,
        ~_series.c.awaiting,
        _series.c.last_received_at < before,
        _series.c.id.not_in(needed),
        _series.c.id.not_in(undelivered),
        sa.exists().where(_instance.c.series_id == _series.c.id, _instance.c.purged_at.is_(None)),
        ~sa.exists().where(_instance.c.series_id == _series.c.id, _instance.c.pledged_at.is_not(None)),
    )
    return due.order_by(_series.c.id)


def sweep(database: Database, files: Files) -> list[str]:
    """Delete files that no row names any more, and what was left half written; returns the digests of the former.

    What this finds goes with `sweep_again`, when the files' sweeper says that it is due.
    """
    gone = files.sweeper.take(_Named(database))
    files.sweeper.look(_Named(database), older_than_seconds=_YOUNG_SECONDS)
    return gone


def sweep_again(database: Database, files: Files) -> list[str]:
    """Delete such files that `sweep` found, and where they were too many at a time, find more; returns digests."""
    if not files.sweeper.saw_all:
        return sweep(database, files)
    return files.sweeper.take(_Named(database))


class _Named:
    """Tells whether a row names a file; files of one folder (the first two digits of their SHA-256) are read at once.

    What is stored anew after its folder was read was changed by that, so the sweep lets it be.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._folder = ""
        self._named: set[str] = set()

    def __call__(self, sha256: str) -> bool:
        if sha256[:2] != self._folder:
            self._folder = sha256[:2]
            self._named = self._read(self._folder)
        return sha256 in self._named

    def _read(self, folder: str) -> set[str]:
        live = sa.select(_instance.c.sha256).where(_instance.c.purged_at.is_(None), _within(_instance, folder))
        made = sa.select(_result.c.sha256).where(_within(_result, folder))
        with self._database.read() as connection:
            return set(connection.execute(live.union(made)).scalars())


def _within(table: sa.Table, folder: str) -> sa.ColumnElement[bool]:
    return sa.and_(table.c.sha256 >= folder, table.c.sha256 < folder + "g")
