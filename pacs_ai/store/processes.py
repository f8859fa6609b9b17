"""Which of the node's processes run: for `pacs-ai status`, and for who waits for what a receive process may owe.

A receive process answers Success before the instance has its row. So its row here stays when it dies, until another
receive process has taken its place, or until nobody waits any more (`pacs_ai.store.coming`).
"""

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
    from collections.abc import Collection
    from datetime import datetime

    from pacs_ai.store.database import Database

_process, _association = schema.process, schema.association
RECEIVE = "receive"
_ENDED = "ended without saying so"


@dataclass(frozen=True)
class ProcessView:
    """One process of the node.

    Parameters
    ----------
    problem
        What keeps it from its work, and behind the last "; " what to do; "" where nothing does.
    """

    owner: str
    kind: str
    detail: str
    host: str
    pid: int
    started_at: datetime
    seen_at: datetime
    problem: str = ""


@dataclass(frozen=True)
class Receiving:
    """A receive process, dead or alive, that is waited for where it is not `settled`."""

    owner: str
    settled: bool
    seen_at: datetime


def register(database: Database, owner: str, kind: str, detail: str = "", succeeds: Collection[str] = ()) -> None:
    """Enter this process; rows of dead ones go, and the journal tells of both.

    Parameters
    ----------
    succeeds
        Receive processes that are no more, and whose place this one takes: it indexes what they left.
    """
    with database.write() as connection:
        known = sa.select(_process.c.owner, _process.c.kind, _process.c.given_up).order_by(_process.c.owner)
        rows = connection.execute(known).all()
        dead = [r.owner for r in rows if (r.kind != RECEIVE or r.given_up) and is_dead(r.owner)]
        dead += [r.owner for r in rows if r.owner in succeeds and r.owner not in dead]
        connection.execute(sa.delete(_process).where(_process.c.owner.in_([*dead, owner])))
        _end_associations(connection, dead)
        at = now()
        for gone in dead:
            journal.append(connection, "node", gone[:64], "died", reason=_ENDED, actor=gone)
        connection.execute(
            sa.insert(_process).values(
                owner=owner,
                kind=kind,
                detail=detail,
                host=socket.gethostname(),
                pid=os.getpid(),
                started_at=at,
                seen_at=at,
                settled=kind != RECEIVE,
                given_up=False,
            )
        )
        journal.append(connection, "node", owner[:64], "started", reason=detail, actor=owner)


def seen(database: Database, owner: str) -> None:
    """Say that this process lives."""
    with database.write() as connection:
        connection.execute(sa.update(_process).where(_process.c.owner == owner).values(seen_at=now()))


def settle(database: Database, owner: str, *, settled: bool, problem: str = "") -> None:
    """Say that this receive process lives, whether all that was answered Success has its rows, and what is wrong."""
    values: dict[str, object] = {"seen_at": now(), "settled": settled, "problem": problem}
    if settled:
        values["given_up"] = False
    with database.write() as connection:
        connection.execute(sa.update(_process).where(_process.c.owner == owner).values(**values))


def leave(database: Database, owner: str) -> None:
    """Take this process out."""
    with database.write() as connection:
        left = connection.execute(sa.delete(_process).where(_process.c.owner == owner))
        if left.rowcount:
            journal.append(connection, "node", owner[:64], "stopped", actor=owner)


def receiving(connection: Connection) -> list[Receiving]:
    """Return the receive processes that have not left, those aside that nobody waits for any more."""
    query = sa.select(_process.c.owner, _process.c.settled, _process.c.seen_at)
    wanted = query.where(_process.c.kind == RECEIVE, _process.c.given_up.is_(False)).order_by(_process.c.owner)
    return [Receiving(*row) for row in connection.execute(wanted)]


def give_up(database: Database, owners: Collection[str], *, waited_seconds: float) -> None:
    """Wait no longer for what these receive processes may owe the index; rows of those that are dead go."""
    with database.write() as connection:
        for owner in sorted(owners):
            this = _process.c.owner == owner
            if not is_dead(owner):
                connection.execute(sa.update(_process).where(this).values(given_up=True))
            elif connection.execute(sa.delete(_process).where(this)).rowcount:
                words = f"{_ENDED}; what it may have received was waited for for {waited_seconds:g} s"
                _end_associations(connection, [owner])
                journal.append(connection, "node", owner[:64], "died", reason=words, actor=owner)


def _end_associations(connection: Connection, owners: Collection[str]) -> None:
    """Note that associations ended with the receive process that had them; what they brought may still get rows."""
    theirs = sa.and_(_association.c.owner.in_(owners), _association.c.ended_at.is_(None))
    connection.execute(sa.update(_association).where(theirs).values(ended_at=now(), released=False))


def running(connection: Connection) -> list[ProcessView]:
    """Return the processes that are not known to be dead."""
    query = sa.select(_process).order_by(_process.c.kind, _process.c.started_at, _process.c.owner)
    rows = connection.execute(query).all()
    return [
        ProcessView(row.owner, row.kind, row.detail, row.host, row.pid, row.started_at, row.seen_at, row.problem)
        for row in rows
        if not is_dead(row.owner)
    ]
