"""What the router asks of the index: which series are open, which are waited for, which are covered by a job."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

import sqlalchemy as sa
from sqlalchemy import Connection

from pacs_ai.states import JobState, SeriesState
from pacs_ai.store import schema
from pacs_ai.store.clock import now
from pacs_ai.store.owners import is_dead

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pacs_ai.store.enqueue import Source

_series, _association, _share = schema.series, schema.association, schema.association_series
_job, _source, _target = schema.job, schema.job_source, schema.job_destination
_WAITED_FOR_DAYS = 1.0


@dataclass(frozen=True)
class Share:
    """What one association brought of one series."""

    assoc_id: str
    arrivals: int
    is_open: bool
    released: bool


@dataclass(frozen=True)
class OpenSeries:
    """A series whose instances are still arriving."""

    id: int
    study_id: int
    state: SeriesState
    instances: int
    arrivals: int
    calling_ae_title: str
    shares: tuple[Share, ...]


def open_series(connection: Connection) -> list[OpenSeries]:
    """Return the series that are receiving or reopened, with what each association brought of them.

    An association of a process that died counts as ended without release.
    """
    states = [SeriesState.RECEIVING.value, SeriesState.REOPENED.value]
    rows = connection.execute(sa.select(_series).where(_series.c.state.in_(states)).order_by(_series.c.id)).all()
    shares: dict[int, list[Share]] = defaultdict(list)
    query = (
        sa.select(_share, _association.c.ended_at, _association.c.released, _association.c.owner)
        .join(_association, _association.c.id == _share.c.assoc_id)
        .where(_share.c.series_id.in_([row.id for row in rows]))
        .order_by(_association.c.opened_at)
    )
    for row in connection.execute(query) if rows else ():
        is_open = row.ended_at is None and not is_dead(row.owner)
        shares[row.series_id].append(Share(row.assoc_id, row.arrivals, is_open, row.released))
    return [
        OpenSeries(
            id=row.id,
            study_id=row.study_id,
            state=SeriesState(row.state),
            instances=row.instances,
            arrivals=row.arrivals,
            calling_ae_title=row.calling_ae_title,
            shares=tuple(shares[row.id]),
        )
        for row in rows
    ]


def is_unchanged(connection: Connection, series: OpenSeries) -> bool:
    """Lock the series' row and tell whether it still is as it was judged."""
    query = sa.select(_series.c.arrivals, _series.c.state).where(_series.c.id == series.id).with_for_update()
    row = connection.execute(query).one()
    return (row.arrivals, row.state) == (series.arrivals, series.state)


def is_covered(connection: Connection, pipeline: str, route: str, sources: Sequence[Source]) -> bool:
    """Tell whether a job of that pipeline has exactly these sources and delivers for that route already."""
    wanted = {(source.input, source.series_id, source.revision) for source in sources}
    candidates = (
        sa.select(_job.c.id)
        .join(_source, _source.c.job_id == _job.c.id)
        .where(_job.c.pipeline == pipeline, _source.c.series_id.in_([source.series_id for source in sources]))
        .distinct()
    )
    for job_id in list(connection.execute(candidates).scalars()):
        rows = connection.execute(sa.select(_source).where(_source.c.job_id == job_id))
        if {(row.input, row.series_id, row.revision) for row in rows} != wanted:
            continue
        routes = set(connection.execute(sa.select(_target.c.route).where(_target.c.job_id == job_id)).scalars())
        if not routes or route in routes:
            return True
    return False


def studies_without_job(connection: Connection) -> list[int]:
    """Return the studies that have a complete series which no job took at its revision: something is waited for."""
    taken = sa.exists().where(
        _source.c.series_id == _series.c.id,
        _source.c.revision == _series.c.routed_revision,
        _source.c.job_id == _job.c.id,
        _job.c.state != JobState.SUPERSEDED.value,
    )
    query = (
        sa.select(_series.c.study_id)
        .where(
            _series.c.state == SeriesState.COMPLETE.value,
            _series.c.completed_at > now() - timedelta(days=_WAITED_FOR_DAYS),
            ~taken,
        )
        .distinct()
    )
    return list(connection.execute(query).scalars())
