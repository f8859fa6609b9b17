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


def is_due(column: sa.Column[Any]) -> sa.ColumnElement[bool]:
    """Return the condition that a due time has come, also where the wall clock was set back since it was written."""
    at = now()
    return sa.or_(column <= at, column > at + timedelta(seconds=2 * LONGEST_WAIT))


def is_not_due(column: sa.Column[Any]) -> sa.ColumnElement[bool]:
    """Return the opposite of `is_due`, as one range that an index can give."""
    at = now()
    return sa.and_(column > at, column <= at + timedelta(seconds=2 * LONGEST_WAIT))
