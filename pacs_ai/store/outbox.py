"""The outbox: results on their way, one destination at a time per courier, under the destination's fencing number.

A destination that fails is tried again after a growing wait by one probe; its deliveries wait meanwhile, and no other
destination notices.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy import Connection, Row

from pacs_ai.errors import UserError
from pacs_ai.states import DeliveryEvent, DeliveryState
from pacs_ai.store import schema
from pacs_ai.store.clock import is_due, now
from pacs_ai.store.moves import move

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pacs_ai.store.database import Database
    from pacs_ai.store.owners import Watch

_delivery, _result, _destination, _job = schema.delivery, schema.result, schema.destination, schema.job

#: Most instances in one association.
BATCH = 200


@dataclass(frozen=True)
class Backoff:
    """Waits between tries, and when to give up."""

    first_seconds: float
    longest_seconds: float
    give_up_hours: float

    def wait(self, failures: int) -> float:
        """Return the wait in seconds after so many failures in a row: doubled, with jitter of 20 %."""
        wait = min(self.first_seconds * 2 ** min(failures - 1, 16), self.longest_seconds)
        return float(wait * random.uniform(0.8, 1.0))  # noqa: S311 - jitter, no secret


@dataclass(frozen=True)
class Parcel:
    """One result to send."""

    delivery_id: int
    job_id: int
    sha256: str
    kind: str
    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str


@dataclass(frozen=True)
class Round:
    """What one courier took for one destination: all to one address, SEG before the SR that cites it."""

    peer: str
    ae_title: str
    host: str
    port: int
    owner: str
    fence: int
    parcels: tuple[Parcel, ...]


def due_peers(connection: Connection) -> list[str]:
    """Return the destinations that have something due and no courier at work."""
    query = (
        sa.select(_destination.c.peer)
        .where(
            _destination.c.owner == "",
            is_due(_destination.c.next_try_at),
            sa.exists().where(
                _delivery.c.peer == _destination.c.peer,
                _delivery.c.state == DeliveryState.WAITING.value,
                is_due(_delivery.c.due_at),
            ),
        )
        .order_by(_destination.c.peer)
    )
    return list(connection.execute(query).scalars())


def claim(database: Database, peer: str, owner: str) -> Round | None:
    """Take a destination and what is due for it; None where another was quicker."""
    with database.write() as connection:
        taken = connection.execute(
            sa.update(_destination)
            .where(_destination.c.peer == peer, _destination.c.owner == "", is_due(_destination.c.next_try_at))
            .values(owner=owner, fence=_destination.c.fence + 1, beat=0)
            .returning(_destination.c.fence)
        ).scalar_one_or_none()
        if taken is None:
            return None
        rows = connection.execute(_due(peer)).all()
        rows = [row for row in rows if (row.ae_title, row.host, row.port) == _address(rows[0])]
        if not rows:
            _give_back(connection, peer, owner, taken)
            return None
        for row in rows:
            move(
                connection,
                row.id,
                DeliveryEvent.CLAIMED,
                actor=owner,
                reason="being sent",
                attempts=_delivery.c.attempts + 1,
            )
        parcels = tuple(
            Parcel(
                delivery_id=row.id,
                job_id=row.job_id,
                sha256=row.sha256,
                kind=row.kind,
                sop_class_uid=row.sop_class_uid,
                sop_instance_uid=row.sop_instance_uid,
                transfer_syntax_uid=row.transfer_syntax_uid,
            )
            for row in rows
        )
        return Round(peer, *_address(rows[0]), owner, taken, parcels)


def _due(peer: str) -> sa.Select[Any]:
    return (
        sa.select(
            _delivery,
            _result.c.sha256,
            _result.c.kind,
            _result.c.sop_class_uid,
            _result.c.sop_instance_uid,
            _result.c.transfer_syntax_uid,
        )
        .join(_result, _result.c.id == _delivery.c.result_id)
        .join(_job, _job.c.id == _delivery.c.job_id)
        .where(
            _delivery.c.peer == peer,
            _delivery.c.state == DeliveryState.WAITING.value,
            is_due(_delivery.c.due_at),
        )
        .order_by(_job.c.rank, _job.c.id, _result.c.ordinal)
        .limit(BATCH)
        .with_for_update(of=_delivery)
    )


def _address(row: Row[Any]) -> tuple[str, str, int]:
    return row.ae_title, row.host, row.port


def _holds(connection: Connection, held: Round) -> bool:
    query = sa.select(_destination.c.peer).where(
        _destination.c.peer == held.peer, _destination.c.fence == held.fence, _destination.c.owner == held.owner
    )
    return connection.execute(query).first() is not None


def beat(database: Database, held: Round) -> bool:
    """Raise the beat counter; False where the claim no longer stands."""
    with database.write() as connection:
        changed = connection.execute(
            sa.update(_destination)
            .where(
                _destination.c.peer == held.peer,
                _destination.c.fence == held.fence,
                _destination.c.owner == held.owner,
            )
            .values(beat=_destination.c.beat + 1)
        )
        return changed.rowcount == 1


def _move_held(connection: Connection, held: Round, parcel: Parcel, event: DeliveryEvent, **values: Any) -> None:
    """Move a delivery unless it was ended meanwhile (cancelled) or taken over."""
    state = connection.execute(
        sa.select(_delivery.c.state).where(_delivery.c.id == parcel.delivery_id).with_for_update()
    ).scalar_one()
    if state == DeliveryState.SENDING and _holds(connection, held):
        move(connection, parcel.delivery_id, event, actor=held.owner, **values)


def accepted(database: Database, held: Round, parcel: Parcel, status: int, reason: str) -> None:
    """Note that the peer answered Success or Warning."""
    with database.write() as connection:
        _move_held(connection, held, parcel, DeliveryEvent.ACCEPTED, reason=reason, status=status, sent_at=now())


def failed(database: Database, held: Round, parcel: Parcel, status: int | None, reason: str) -> None:
    """Note that the peer refused it for good."""
    with database.write() as connection:
        _move_held(connection, held, parcel, DeliveryEvent.FAILED, reason=reason, status=status)


def postponed(
    database: Database, held: Round, parcel: Parcel, status: int | None, reason: str, backoff: Backoff
) -> None:
    """Note that it did not go through now: it waits, or is given up where it waited too long."""
    with database.write() as connection:
        row = connection.execute(
            sa.select(_delivery.c.created_at, _delivery.c.attempts).where(_delivery.c.id == parcel.delivery_id)
        ).one()
        if now() - row.created_at > timedelta(hours=backoff.give_up_hours):
            words = f"not delivered within {backoff.give_up_hours:g} h; the last reason: {reason}"
            _move_held(connection, held, parcel, DeliveryEvent.FAILED, reason=words, status=status)
            return
        wait = 0.0 if status is None else backoff.wait(row.attempts)
        due = now() + timedelta(seconds=wait)
        _move_held(connection, held, parcel, DeliveryEvent.POSTPONED, reason=reason, status=status, due_at=due)


def put_back(database: Database, held: Round, *, reached: bool, reason: str, backoff: Backoff) -> None:
    """Give the destination back; one that could not be reached is tried again after a growing wait."""
    with database.write() as connection:
        if reached:
            _give_back(connection, held.peer, held.owner, held.fence)
            return
        failures = connection.execute(
            sa.select(_destination.c.failures).where(_destination.c.peer == held.peer)
        ).scalar_one()
        connection.execute(
            sa.update(_destination)
            .where(
                _destination.c.peer == held.peer,
                _destination.c.fence == held.fence,
                _destination.c.owner == held.owner,
            )
            .values(
                owner="",
                failures=failures + 1,
                next_try_at=now() + timedelta(seconds=backoff.wait(failures + 1)),
                reason=reason,
            )
        )


def _give_back(connection: Connection, peer: str, owner: str, fence: int) -> None:
    connection.execute(
        sa.update(_destination)
        .where(_destination.c.peer == peer, _destination.c.fence == fence, _destination.c.owner == owner)
        .values(owner="", failures=0, reason="")
    )


def sweep(database: Database, watch: Watch, actor: str) -> int:
    """Take over the destinations of couriers that are dead or stand still; returns how many."""
    with database.read() as connection:
        held = connection.execute(sa.select(_destination).where(_destination.c.owner != "")).all()
    watch.keep("destination", {row.peer for row in held})
    taken = 0
    for row in held:
        if not watch.is_lost("destination", row.peer, row.owner, row.fence, row.beat):
            continue
        with database.write() as connection:
            freed = connection.execute(
                sa.update(_destination)
                .where(
                    _destination.c.peer == row.peer,
                    _destination.c.fence == row.fence,
                    _destination.c.beat == row.beat,
                    _destination.c.owner == row.owner,
                )
                .values(owner="", fence=_destination.c.fence + 1, next_try_at=now())
            )
            if freed.rowcount != 1:
                continue
            taken += 1
            _lose_sending(
                connection, row.peer, "its courier died or stopped answering; sent again under the same UID", actor
            )
    return taken


def abandon(database: Database, held: Round, *, actor: str) -> None:
    """Give a destination back whose outcomes could not be noted: what was being sent is sent again."""
    with database.write() as connection:
        if _holds(connection, held):
            _lose_sending(connection, held.peer, "its outcome could not be noted; sent again under the same UID", actor)
            _give_back(connection, held.peer, held.owner, held.fence)


def _lose_sending(connection: Connection, peer: str, words: str, actor: str) -> None:
    query = sa.select(_delivery.c.id).where(_delivery.c.peer == peer, _delivery.c.state == DeliveryState.SENDING.value)
    for delivery_id in list(connection.execute(query).scalars()):
        move(connection, delivery_id, DeliveryEvent.LOST, actor=actor, reason=words)


def retry(database: Database, delivery_ids: Sequence[int], *, actor: str) -> int:
    """Send failed or cancelled deliveries again, at once; returns how many."""
    with database.write() as connection:
        for delivery_id in delivery_ids:
            row = connection.execute(sa.select(_delivery).where(_delivery.c.id == delivery_id)).one_or_none()
            if row is None:
                raise UserError(f"there is no delivery {delivery_id}; `pacs-ai deliveries` lists them")
            if row.state not in {DeliveryState.FAILED, DeliveryState.CANCELLED}:
                raise UserError(f"delivery {delivery_id} is {row.state}: only a failed or cancelled one is sent again")
            move(
                connection,
                delivery_id,
                DeliveryEvent.RETRIED,
                actor=actor,
                reason="sent again by an operator",
                due_at=now(),
                created_at=now(),
                attempts=0,
            )
            connection.execute(
                sa.update(_destination)
                .where(_destination.c.peer == row.peer, _destination.c.owner == "")
                .values(next_try_at=now(), failures=0)
            )
    return len(delivery_ids)
