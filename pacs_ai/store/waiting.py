"""How a delivery waits to be sent again: after what, for how long, and when it is given up."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

import sqlalchemy as sa
from sqlalchemy import Connection

from pacs_ai.profiles import Kind
from pacs_ai.states import DeliveryEvent, DeliveryState, JobState
from pacs_ai.store import schema
from pacs_ai.store.clock import LONGEST_WAIT, now
from pacs_ai.store.moves import move

if TYPE_CHECKING:
    from collections.abc import Sequence

_delivery, _result, _job, _notice = schema.delivery, schema.result, schema.job, schema.notice


@dataclass(frozen=True)
class Backoff:
    """Waits between tries, and when to give up."""

    first_seconds: float
    longest_seconds: float
    give_up_hours: float

    def wait(self, failures: int) -> float:
        """Return the wait in seconds after so many failures in a row: doubled, with jitter of 20 %.

        Never more than `LONGEST_WAIT`: what lies much further ahead counts as due.
        """
        wait = min(self.first_seconds * 2 ** min(failures - 1, 16), self.longest_seconds, LONGEST_WAIT)
        return float(wait * random.uniform(0.8, 1.0))  # noqa: S311 - jitter, no secret


def lock(connection: Connection, which: sa.ColumnElement[bool]) -> None:
    """Lock deliveries in the order of their numbers, as everybody does: an UPDATE of many takes them as they lie."""
    connection.execute(sa.select(_delivery.c.id).where(which).order_by(_delivery.c.id).with_for_update()).all()


def doubt(connection: Connection, delivery_ids: Sequence[int]) -> None:
    """Note that the peer may have these, though it did not say so."""
    connection.execute(sa.update(_delivery).where(_delivery.c.id.in_(list(delivery_ids))).values(doubtful=True))


def return_to_waiting(connection: Connection, delivery_id: int, event: DeliveryEvent, reason: str, actor: str) -> None:
    """Have it sent again at once, unless its job was superseded while it was being sent."""
    job_state = connection.execute(
        sa.select(_job.c.state).join(_delivery, _delivery.c.job_id == _job.c.id).where(_delivery.c.id == delivery_id)
    ).scalar_one()
    kind = sa.select(_result.c.kind).join(_delivery, _delivery.c.result_id == _result.c.id)
    outdated = job_state not in {JobState.REFUSED, JobState.FAILED} and (
        connection.execute(kind.where(_delivery.c.id == delivery_id)).scalar_one() == Kind.NOT_ANALYSED.value
    )
    if job_state == JobState.SUPERSEDED or outdated:
        words = f"{'the job was tried again' if outdated else job_state} while it was being sent; {reason}"
        move(connection, delivery_id, DeliveryEvent.CANCELLED, actor=actor, reason=words)
        if outdated:
            _note_untold(connection, delivery_id)
    else:
        move(connection, delivery_id, event, actor=actor, reason=reason, due_at=now())


def count_wait(
    connection: Connection,
    which: sa.ColumnElement[bool],
    wait: float,
    reason: str,
    backoff: Backoff,
    actor: str,
) -> None:
    """Add a wait to waiting deliveries, and give up those that waited for the limit in all."""
    waiting = sa.and_(which, _delivery.c.state == DeliveryState.WAITING.value)
    lock(connection, waiting)
    longer = _delivery.c.waited_seconds + wait
    connection.execute(sa.update(_delivery).where(waiting).values(waited_seconds=longer))
    over = sa.select(_delivery.c.id).where(waiting, _delivery.c.waited_seconds >= backoff.give_up_hours * 3600)
    words = f"not delivered within {backoff.give_up_hours:g} h of trying; the last reason: {reason}"
    for delivery_id in connection.execute(over.order_by(_delivery.c.id)).scalars().all():
        move(connection, delivery_id, DeliveryEvent.FAILED, actor=actor, reason=words)


def lose_sending(connection: Connection, peer: str, words: str, actor: str) -> None:
    """Have sent again what is being sent to a peer and has no outcome."""
    query = sa.select(_delivery.c.id).where(_delivery.c.peer == peer, _delivery.c.state == DeliveryState.SENDING.value)
    lost = connection.execute(query.order_by(_delivery.c.id).with_for_update()).scalars().all()
    doubt(connection, lost)
    for delivery_id in lost:
        return_to_waiting(connection, delivery_id, DeliveryEvent.LOST, words, actor)


def _note_untold(connection: Connection, delivery_id: int) -> None:
    """Note that a peer was not told "not analysed", so that it is where the job comes to the same end again."""
    row = connection.execute(sa.select(_delivery.c.job_id, _delivery.c.peer).where(_delivery.c.id == delivery_id)).one()
    of_job = sa.and_(_notice.c.job_id == row.job_id, _notice.c.kind == Kind.NOT_ANALYSED.value)
    for notice in connection.execute(sa.select(_notice).where(of_job)).all():
        told = [peer for peer in notice.peers if peer != row.peer]
        connection.execute(sa.update(_notice).where(_notice.c.id == notice.id).values(peers=told))
