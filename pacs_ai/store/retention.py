"""Retention: deletes inputs of final, delivered jobs and what no route wanted, each after its days; never others."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import sqlalchemy as sa
from sqlalchemy import Connection

from pacs_ai.states import DeliveryState, JobState, SeriesState
from pacs_ai.store import journal, schema
from pacs_ai.store.clock import now

if TYPE_CHECKING:
    from pacs_ai.store.database import Database
    from pacs_ai.store.files import Files

_series, _instance, _job, _source = schema.series, schema.instance, schema.job, schema.job_source
_delivery, _result = schema.delivery, schema.result

_OPEN_JOBS = [JobState.QUEUED.value, JobState.RUNNING.value, JobState.WITHHELD.value, JobState.FAILED.value]
_OPEN_DELIVERIES = [DeliveryState.WAITING.value, DeliveryState.SENDING.value, DeliveryState.FAILED.value]
_YOUNG_SECONDS = 3600.0


def purge(database: Database, files: Files, *, inputs_days: float, unrouted_days: float, actor: str) -> int:
    """Delete what is due; returns how many instances.

    An instance is due when its series has been quiet for the days, and every job on it is done with all results
    delivered (or cancelled), refused, cancelled or superseded. A failed job keeps its inputs, for a retry. The row
    stays and says when the file went; the files themselves go with the next sweep, an hour later at the earliest.
    """
    with database.write() as connection:
        due = _due(connection, SeriesState.COMPLETE, inputs_days) + _due(
            connection, SeriesState.UNROUTED, unrouted_days
        )
        count = 0
        for series_id in due:
            changed = connection.execute(
                sa.update(_instance)
                .where(_instance.c.series_id == series_id, _instance.c.purged_at.is_(None))
                .values(purged_at=now())
            )
            if changed.rowcount:
                words = f"{changed.rowcount} file(s) deleted by retention"
                journal.append(connection, "series", series_id, "purged", reason=words, actor=actor)
            count += changed.rowcount
    sweep(database, files)
    return count


def _due(connection: Connection, state: SeriesState, days: float) -> list[int]:
    jobs = sa.select(_source.c.series_id).join(_job, _job.c.id == _source.c.job_id)
    open_jobs = jobs.where(_job.c.state.in_(_OPEN_JOBS))
    undelivered = jobs.join(_delivery, _delivery.c.job_id == _job.c.id).where(_delivery.c.state.in_(_OPEN_DELIVERIES))
    query = sa.select(_series.c.id).where(
        _series.c.state == state.value,
        _series.c.last_received_at < now() - timedelta(days=days),
        _series.c.id.notin_(open_jobs),
        _series.c.id.notin_(undelivered),
        sa.exists().where(_instance.c.series_id == _series.c.id, _instance.c.purged_at.is_(None)),
    )
    return list(connection.execute(query).scalars())


def sweep(database: Database, files: Files, *, older_than_seconds: float = _YOUNG_SECONDS) -> list[str]:
    """Delete files that no row names any more, and what was left half written."""

    def is_named(sha256: str) -> bool:
        with database.read() as connection:
            live = sa.select(_instance.c.id).where(_instance.c.sha256 == sha256, _instance.c.purged_at.is_(None))
            result = sa.select(_result.c.id).where(_result.c.sha256 == sha256)
            return connection.execute(live).first() is not None or connection.execute(result).first() is not None

    return files.sweep(is_named, older_than_seconds=older_than_seconds)
