"""The one door through which a series, a job or a delivery changes its state."""

from __future__ import annotations

from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy import Connection

from pacs_ai.states import (
    DeliveryEvent,
    DeliveryState,
    Event,
    JobEvent,
    JobState,
    SeriesEvent,
    SeriesState,
    State,
    next_state,
)
from pacs_ai.store import journal, schema

Subject = Literal["series", "job", "delivery"]

_TABLES: dict[Subject, sa.Table] = {"series": schema.series, "job": schema.job, "delivery": schema.delivery}


def move(
    connection: Connection,
    row_id: int,
    event: Event,
    *,
    actor: str,
    reason: str = "",
    held: int | None = None,
    **values: Any,
) -> State | None:
    """Move one row by the tables of `pacs_ai.states`, with its journal row; returns the new state.

    Returns None, and changes nothing, where `held` is given and the row's fencing number is another: somebody else
    holds the claim now.

    Raises
    ------
    IllegalMove
        The row's state has no move for the event.
    sqlalchemy.exc.NoResultFound
        There is no such row.
    """
    subject = _subject(event)
    table = _TABLES[subject]
    query = sa.select(table.c.state).where(table.c.id == row_id).with_for_update()
    if held is None:
        stored = connection.execute(query).scalar_one()
    else:
        stored = connection.execute(query.where(table.c.fence == held)).scalar_one_or_none()
        if stored is None:
            return None
    before = _state(subject, stored)
    after = next_state(before, event)
    connection.execute(sa.update(table).where(table.c.id == row_id).values(state=after.value, reason=reason, **values))
    journal.append(
        connection, subject, row_id, event.value, before=before.value, after=after.value, reason=reason, actor=actor
    )
    return after


def _subject(event: Event) -> Subject:
    if isinstance(event, SeriesEvent):
        return "series"
    if isinstance(event, JobEvent):
        return "job"
    assert isinstance(event, DeliveryEvent)
    return "delivery"


def _state(subject: Subject, stored: str) -> State:
    if subject == "series":
        return SeriesState(stored)
    if subject == "job":
        return JobState(stored)
    return DeliveryState(stored)
