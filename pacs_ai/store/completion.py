"""What the router asks of the index: which series are open, and for which of them a route waits for more."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import sqlalchemy as sa
from sqlalchemy import Connection

from pacs_ai.states import SeriesState
from pacs_ai.store import schema
from pacs_ai.store.owners import is_dead

if TYPE_CHECKING:
    from collections.abc import Sequence

_series, _association, _share = schema.series, schema.association, schema.association_series


@dataclass(frozen=True)
class Share:
    """What one open association has brought of one series."""

    assoc_id: str
    arrivals: int


@dataclass(frozen=True)
class OpenSeries:
    """A series whose instances are still arriving.

    Parameters
    ----------
    open_shares
        Of associations that brought some of it and are open.
    ended
        How many associations brought some of it and have ended.
    released
        Whether any of those released.
    """

    id: int
    study_id: int
    state: SeriesState
    instances: int
    arrivals: int
    calling_ae_title: str
    open_shares: tuple[Share, ...]
    ended: int
    released: bool


def open_series(connection: Connection) -> list[OpenSeries]:
    """Return the series that are receiving or reopened, with what associations brought of them.

    An association of a process that died counts as ended without release.
    """
    states = [SeriesState.RECEIVING.value, SeriesState.REOPENED.value]
    rows = connection.execute(
        sa.select(
            _series.c.id,
            _series.c.study_id,
            _series.c.state,
            _series.c.instances,
            _series.c.arrivals,
            _series.c.calling_ae_title,
        )
        .where(_series.c.state.in_(states))
        .order_by(_series.c.id)
    ).all()
    ids = [row.id for row in rows]
    shares = _open_shares(connection, ids) if rows else {}
    brought = _brought(connection, ids) if rows else {}
    return [
        OpenSeries(
            id=row.id,
            study_id=row.study_id,
            state=SeriesState(row.state),
            instances=row.instances,
            arrivals=row.arrivals,
            calling_ae_title=row.calling_ae_title,
            open_shares=tuple(shares.get(row.id, ())),
            ended=brought[row.id][0] - len(shares.get(row.id, ())),
            released=brought[row.id][1],
        )
        for row in rows
    ]


def _open_shares(connection: Connection, series_ids: Sequence[int]) -> dict[int, list[Share]]:
    shares: dict[int, list[Share]] = defaultdict(list)
    query = (
        sa.select(_share, _association.c.owner)
        .join(_association, _association.c.id == _share.c.assoc_id)
        .where(_share.c.series_id.in_(series_ids), _association.c.ended_at.is_(None))
        .order_by(_association.c.opened_at, _association.c.id)
    )
    dead: dict[str, bool] = {}
    for row in connection.execute(query):
        if row.owner not in dead:
            dead[row.owner] = is_dead(row.owner)
        if not dead[row.owner]:
            shares[row.series_id].append(Share(row.assoc_id, row.arrivals))
    return shares


def _brought(connection: Connection, series_ids: Sequence[int]) -> dict[int, tuple[int, bool]]:
    """Return how many associations brought some of each series, and whether any of them released."""
    released = sa.func.max(sa.case((_association.c.released, 1), else_=0))
    query = (
        sa.select(_share.c.series_id, sa.func.count().label("shares"), released.label("released"))
        .join(_association, _association.c.id == _share.c.assoc_id)
        .where(_share.c.series_id.in_(series_ids))
        .group_by(_share.c.series_id)
    )
    return {row.series_id: (row.shares, bool(row.released)) for row in connection.execute(query)}


def is_unchanged(connection: Connection, series: OpenSeries) -> bool:
    """Lock the series' row and tell whether it still is as it was judged."""
    query = sa.select(_series.c.arrivals, _series.c.state).where(_series.c.id == series.id).with_for_update()
    row = connection.execute(query).one()
    return (row.arrivals, row.state) == (series.arrivals, series.state)


def awaiting_studies(connection: Connection) -> list[int]:
    """Return the studies with a complete series for which a route waits for more of the study."""
    query = sa.select(_series.c.study_id).where(_series.c.awaiting, _series.c.state == SeriesState.COMPLETE.value)
    return list(connection.execute(query.distinct().order_by(_series.c.study_id)).scalars())


def set_awaiting(connection: Connection, series_id: int, awaiting: bool) -> None:
    """Note whether a route still waits for more of the study beside this series."""
    connection.execute(sa.update(_series).where(_series.c.id == series_id).values(awaiting=awaiting))


def set_reason(connection: Connection, series_id: int, words: str) -> None:
    """Say why a series is not complete though nothing is missing."""
    connection.execute(sa.update(_series).where(_series.c.id == series_id).values(reason=words))
