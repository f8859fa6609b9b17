"""Which of the node's processes run, for `pacs-ai status`."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING

import sqlalchemy as sa
from sqlalchemy import Connection

from pacs_ai.store import journal, schema
from pacs_ai.store.clock import now
from pacs_ai.store.owners import is_dead

if TYPE_CHECKING:
    from datetime import datetime

    from pacs_ai.store.database import Database

_process = schema.process


@dataclass(frozen=True)
class ProcessView:
    """One process of the node."""

    owner: str
    kind: str
    detail: str
    host: str
    pid: int
    started_at: datetime
    seen_at: datetime


def register(database: Database, owner: str, kind: str, detail: str = "") -> None:
    """Enter this process; rows of dead ones go, and the journal tells of both."""
    with database.write() as connection:
        dead = [row.owner for row in connection.execute(sa.select(_process.c.owner)) if is_dead(row.owner)]
        connection.execute(sa.delete(_process).where(_process.c.owner.in_([*dead, owner])))
        at = now()
        for gone in dead:
            journal.append(connection, "node", gone[:64], "died", reason="ended without saying so", actor=gone)
        connection.execute(
            sa.insert(_process).values(
                owner=owner,
                kind=kind,
                detail=detail,
                host=socket.gethostname(),
                pid=os.getpid(),
                started_at=at,
                seen_at=at,
            )
        )
        journal.append(connection, "node", owner[:64], "started", reason=detail, actor=owner)


def seen(database: Database, owner: str) -> None:
    """Say that this process lives."""
    with database.write() as connection:
        connection.execute(sa.update(_process).where(_process.c.owner == owner).values(seen_at=now()))


def leave(database: Database, owner: str) -> None:
    """Take this process out."""
    with database.write() as connection:
        left = connection.execute(sa.delete(_process).where(_process.c.owner == owner))
        if left.rowcount:
            journal.append(connection, "node", owner[:64], "stopped", actor=owner)


def running(connection: Connection) -> list[ProcessView]:
    """Return the processes that are not known to be dead."""
    rows = connection.execute(sa.select(_process).order_by(_process.c.kind, _process.c.started_at)).all()
    return [
        ProcessView(row.owner, row.kind, row.detail, row.host, row.pid, row.started_at, row.seen_at)
        for row in rows
        if not is_dead(row.owner)
    ]
