"""The audit events that wait until everyone who is to have them has them: a file, a repository.

Each taker has a cursor. An event goes once all takers have it, so what a repository missed while it was away lies here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy import Connection

from pacs_ai.store import schema, trail
from pacs_ai.store.clock import now
from pacs_ai.store.trail import JOURNAL, Event

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from pacs_ai.store.database import Database

_event, _cursor = schema.audit_event, schema.audit_cursor


@dataclass(frozen=True)
class Standing:
    """How one taker stands.

    Parameters
    ----------
    taker
        "file" or "repository".
    waiting
        Events that it does not have yet, and what no event tells of yet.
    failing_since
        None where the last try went well, or there was none.
    problem
        Of the last try, in words.
    """

    taker: str
    waiting: int
    failing_since: datetime | None
    problem: str


@dataclass(frozen=True)
class Parcel:
    """The next events for a taker, in their order; `last` is the number of the last one."""

    last: int
    turn: int
    events: tuple[Event, ...]


def waiting(connection: Connection, taker: str, limit: int) -> Parcel | None:
    """Return the next events for a taker; None where there are none."""
    mark = _mark(connection, taker)
    position, turn = (0, 0) if mark is None else (mark.position, mark.turn)
    query = sa.select(_event).where(_event.c.id > position).order_by(_event.c.id).limit(limit)
    rows = connection.execute(query).all()
    if not rows:
        return None
    return Parcel(rows[-1].id, turn, tuple(Event(row.at, row.severity, row.message) for row in rows))


def taken(database: Database, taker: str, parcel: Parcel, takers: Sequence[str]) -> None:
    """Note that a taker has a parcel; events that all `takers` have go.

    Where another process noted that meanwhile, nothing changes: the taker has them twice.
    """
    with database.write() as connection:
        _enter(connection, database, takers)
        # one at a time: of two who note at once, neither would see how far the other is
        marks = sa.select(_cursor.c.name).where(_cursor.c.name.in_(takers)).order_by(_cursor.c.name)
        connection.execute(marks.with_for_update())
        moved = connection.execute(
            sa.update(_cursor)
            .where(_cursor.c.name == taker, _cursor.c.turn == parcel.turn)
            .values(position=parcel.last, turn=parcel.turn + 1, moved_at=now(), failing_since=None, problem="")
        )
        if moved.rowcount:
            least = sa.select(sa.func.min(_cursor.c.position)).where(_cursor.c.name.in_(takers))
            connection.execute(sa.delete(_event).where(_event.c.id <= least.scalar_subquery()))


def failed(database: Database, taker: str, problem: str) -> None:
    """Note that a taker took nothing, and why."""
    with database.write() as connection:
        _enter(connection, database, [taker])
        mark = sa.update(_cursor).where(_cursor.c.name == taker)
        connection.execute(
            mark.values(failing_since=sa.func.coalesce(_cursor.c.failing_since, now().timestamp()), problem=problem)
        )


def standings(connection: Connection, takers: Sequence[str]) -> list[Standing]:
    """Return how each taker stands."""
    found = []
    untold = trail.untold(connection)
    for taker in takers:
        mark = _mark(connection, taker)
        position = 0 if mark is None else mark.position
        count = connection.execute(
            sa.select(sa.func.count()).select_from(_event).where(_event.c.id > position)
        ).scalar_one()
        since, problem = (None, "") if mark is None else (mark.failing_since, mark.problem)
        found.append(Standing(taker, int(count) + untold, since, problem))
    return found


def _mark(connection: Connection, taker: str) -> Any:
    assert taker != JOURNAL
    return connection.execute(sa.select(_cursor).where(_cursor.c.name == taker)).one_or_none()


def _enter(connection: Connection, database: Database, takers: Sequence[str]) -> None:
    for taker in takers:
        first = {"name": taker, "position": 0, "turn": 0, "moved_at": now(), "problem": ""}
        connection.execute(database.insert_new(_cursor), first)
