"""The journal: one row per move, so that what happened to a series, a job or a delivery can be told afterwards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import sqlalchemy as sa
from sqlalchemy import Connection

from pacs_ai.store import schema
from pacs_ai.store.clock import now

if TYPE_CHECKING:
    from datetime import datetime


@dataclass(frozen=True)
class Entry:
    """One move."""

    at: datetime
    subject: str
    subject_id: str
    event: str
    before: str
    after: str
    reason: str
    actor: str


def append(
    connection: Connection,
    subject: str,
    subject_id: object,
    event: str,
    *,
    before: str = "",
    after: str = "",
    reason: str = "",
    actor: str = "",
) -> None:
    """Append one row, in the transaction of the move itself."""
    connection.execute(
        sa.insert(schema.journal),
        {
            "at": now(),
            "subject": subject,
            "subject_id": str(subject_id),
            "event": event,
            "before": before,
            "after": after,
            "reason": reason,
            "actor": actor,
        },
    )


def of(connection: Connection, subject: str, subject_id: object) -> list[Entry]:
    """Return the moves of one series, job or delivery, oldest first."""
    table = schema.journal
    rows = connection.execute(
        sa.select(table).where(table.c.subject == subject, table.c.subject_id == str(subject_id)).order_by(table.c.id)
    )
    return [
        Entry(row.at, row.subject, row.subject_id, row.event, row.before, row.after, row.reason, row.actor)
        for row in rows
    ]
