"""The wall clock, in UTC: for rows and due times; nothing expires by it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa

#: No due time lies further ahead than this (seconds); one that does was written before the clock was set back.
LONGEST_WAIT = 300.0


def now() -> datetime:
    """Return the time, aware, in UTC."""
    return datetime.now(UTC)


def present(column: sa.Column[Any]) -> sa.BindParameter[datetime]:
    """Return the time, to be compared with a column: asked for when a statement is put to the database, and once."""
    return sa.bindparam(None, callable_=_present, type_=column.type)


def is_due(column: sa.Column[Any], at: sa.BindParameter[datetime] | None = None) -> sa.ColumnElement[bool]:
    """Return the condition that a due time has come, also where the wall clock was set back since it was written.

    A statement with it may be made once and kept. Where several conditions must mean the same instant, give them one
    `present`.
    """
    return sa.or_(column <= (present(column) if at is None else at), column > _beyond(column))


def is_not_due(column: sa.Column[Any], at: sa.BindParameter[datetime]) -> sa.ColumnElement[bool]:
    """Return the opposite of `is_due`, as one range that an index can give."""
    return sa.and_(column > at, column <= _beyond(column))


def _beyond(column: sa.Column[Any]) -> sa.BindParameter[datetime]:
    return sa.bindparam(None, callable_=_latest, type_=column.type)


def _present() -> datetime:
    return now()


def _latest() -> datetime:
    return now() + timedelta(seconds=2 * LONGEST_WAIT)
