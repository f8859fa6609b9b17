"""The outbox: results on their way, one destination at a time per courier, under the destination's fencing number.

A destination that fails is tried again after a growing wait by one probe, its deliveries by turns; they wait meanwhile,
and no other destination notices.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy import Connection, Row

from pacs_ai.profiles import Kind
from pacs_ai.states import DeliveryEvent, DeliveryState, JobState
from pacs_ai.store import departures, filling, retraction, schema, waiting
from pacs_ai.store.clock import is_due, now
from pacs_ai.store.moves import move
from pacs_ai.store.owners import Held

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pacs_ai.store.database import Database
    from pacs_ai.store.owners import Watch
    from pacs_ai.store.waiting import Backoff

_delivery, _result, _destination, _job = schema.delivery, schema.result, schema.destination, schema.job


@dataclass(frozen=True)
class Parcel:
    """One result to send."""

    delivery_id: int
    job_id: int
    sha256: str
    kind: str
    encoding: str
    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    study_instance_uid: str


@dataclass(frozen=True)
class Round:
    """What one courier took for one destination: all to one address, SEG before the SR that cites it.

    Parameters
    ----------
    probes
        The destination failed before: its one parcel shows whether it is there again.
    """

    peer: str
    ae_title: str
    host: str
    port: int
    owner: str
    fence: int
    parcels: tuple[Parcel, ...]
    probes: bool


def due_peers(connection: Connection) -> list[str]:
    """Return the destinations that have something due and no courier at work."""
    return list(connection.execute(departures.due_peers()).scalars())


def claim(database: Database, peer: str, owner: str) -> Round | None:
    """Take a destination and what is due for it; None where another was quicker."""
    with database.write() as connection:
        taken = connection.execute(
            sa.update(_destination)
            .where(_destination.c.peer == peer, _destination.c.owner == "", is_due(_destination.c.next_try_at))
            .values(owner=owner, fence=_destination.c.fence + 1, beat=0)
            .returning(_destination.c.fence, _destination.c.failures)
        ).one_or_none()
        if taken is None:
            return None
        rows = _locked(connection, departures.probe(peer) if taken.failures else departures.batch(peer))
        if not rows:
            _let_go(connection, peer, owner, taken.fence)
            return None
        for row in rows:
            move(
                connection,
                row.id,
                DeliveryEvent.CLAIMED,
                actor=owner,
                reason="being sent",
                comment="",
                attempts=_delivery.c.attempts + 1,
            )
        parcels = tuple(
            Parcel(
                delivery_id=row.id,
                job_id=row.job_id,
                sha256=row.sha256,
                kind=row.kind,
                encoding=row.encoding,
                sop_class_uid=row.sop_class_uid,
                sop_instance_uid=row.sop_instance_uid,
                transfer_syntax_uid=row.transfer_syntax_uid,
                study_instance_uid=row.study_instance_uid,
            )
            for row in rows
        )
        return Round(peer, *departures.address(rows[0]), owner, taken.fence, parcels, probes=taken.failures > 0)


def _locked(connection: Connection, due: sa.Select[Any]) -> Sequence[Row[Any]]:
    """Return what may be sent, in its order, locked in the order of the numbers, as everybody locks it."""
    these = _delivery.c.id.in_([row.id for row in connection.execute(due)])
    waiting.lock(connection, these)
    return connection.execute(due.where(these)).all()  # some may have been cancelled meanwhile


def _held(held: Round) -> sa.ColumnElement[bool]:
    return sa.and_(
        _destination.c.peer == held.peer, _destination.c.fence == held.fence, _destination.c.owner == held.owner
    )


def _holds(connection: Connection, held: Round) -> bool:
    return connection.execute(sa.select(_destination.c.peer).where(_held(held))).first() is not None


def beat(database: Database, held: Round) -> bool:
    """Raise the beat counter; False where the claim no longer stands."""
    with database.write() as connection:
        changed = connection.execute(sa.update(_destination).where(_held(held)).values(beat=_destination.c.beat + 1))
        return changed.rowcount == 1


def _state(connection: Connection, held: Round, parcel: Parcel) -> str | None:
    """Lock a delivery and return its state; None where the round is no longer this courier's."""
    state: str = connection.execute(
        sa.select(_delivery.c.state).where(_delivery.c.id == parcel.delivery_id).with_for_update()
    ).scalar_one()
    return state if _holds(connection, held) else None


def remark(database: Database, held: Round, parcel: Parcel, comment: str) -> None:
    """Keep what the peer says of an object in its own words: they may name a patient, and stand nowhere but here."""
    with database.write() as connection:
        if _state(connection, held, parcel) is not None:
            this = sa.update(_delivery).where(_delivery.c.id == parcel.delivery_id)
            connection.execute(this.values(comment=comment))


def accepted(
    database: Database, held: Round, parcel: Parcel, status: int, reason: str, *, confirm: bool = False
) -> None:
    """Note that the peer answered Success or Warning, also where it was cancelled too late.

    Parameters
    ----------
    confirm
        The peer is to be asked whether it keeps it (`pacs_ai.store.commitments`).
    """
    with database.write() as connection:
        if _state(connection, held, parcel) in {DeliveryState.SENDING, DeliveryState.CANCELLED}:
            move(
                connection,
                parcel.delivery_id,
                DeliveryEvent.ACCEPTED,
                actor=held.owner,
                reason=reason,
                status=status,
                sent_at=now(),
                confirm_at=now() if confirm else None,
                commitment_id=None,
                asks=0,
            )


def failed(database: Database, held: Round, parcel: Parcel, status: int | None, reason: str) -> None:
    """Note that the peer refused it for good."""
    with database.write() as connection:
        if _state(connection, held, parcel) == DeliveryState.SENDING:
            move(connection, parcel.delivery_id, DeliveryEvent.FAILED, actor=held.owner, reason=reason, status=status)


def hold(database: Database, held: Round, parcel: Parcel, reason: str) -> None:
    """Note that it must not be sent before a person has decided."""
    with database.write() as connection:
        if _state(connection, held, parcel) == DeliveryState.SENDING:
            move(connection, parcel.delivery_id, DeliveryEvent.HELD, actor=held.owner, reason=reason)


def is_wanted(database: Database, parcel: Parcel) -> bool:
    """Tell whether a delivery of a round is still to be sent: not cancelled, replaced or retracted meanwhile."""
    query = sa.select(_delivery.c.state).where(_delivery.c.id == parcel.delivery_id)
    with database.read() as connection:
        return bool(connection.execute(query).scalar_one() == DeliveryState.SENDING)


def not_accepted(database: Database, held: Round, parcel: Parcel, status: int | None, reason: str) -> str:
    """Note that the peer takes no such object, and have what the plan names in its place sent.

    Returns what is sent instead, in words; "" where there is nothing, and the delivery failed.
    """
    job = sa.select(_job.c.state).where(_job.c.id == parcel.job_id)
    with database.write() as connection:
        job_state = connection.execute(job.with_for_update()).scalar_one()  # before its deliveries, as all who end jobs
        if _state(connection, held, parcel) != DeliveryState.SENDING:
            return ""
        instead = _instead(connection, database, held, parcel, job_state, reason)
        if not instead:
            move(connection, parcel.delivery_id, DeliveryEvent.FAILED, actor=held.owner, reason=reason, status=status)
        return instead


def _instead(
    connection: Connection, database: Database, held: Round, parcel: Parcel, job_state: str, reason: str
) -> str:
    if parcel.kind == Kind.REJECTION_NOTE and job_state == JobState.RETRACTED:
        return retraction.say_otherwise(connection, parcel.delivery_id, reason, actor=held.owner)
    if job_state != JobState.DONE:
        return ""
    refused = filling.Refused(parcel.delivery_id, parcel.job_id, held.peer, parcel.encoding, reason)
    fallen = filling.fall_back(connection, database, refused, actor=held.owner)
    return "" if fallen is None else filling.name_of(fallen)


def postponed(
    database: Database,
    held: Round,
    parcel: Parcel,
    status: int | None,
    reason: str,
    backoff: Backoff,
    *,
    doubtful: bool = False,
) -> None:
    """Note that it did not go through now: it waits, or is given up where it waited too long in all.

    Without a status the destination was not reached, and its own backoff counts (`put_back`). One that was under way
    then waits by itself too, as it may be what the peer cannot bear: others go first.

    Parameters
    ----------
    doubtful
        It was sent, or some of it, and not answered: the peer may have it.
    """
    with database.write() as connection:
        if doubtful:
            waiting.doubt(connection, [parcel.delivery_id])
        if _state(connection, held, parcel) != DeliveryState.SENDING:
            return
        waiting.return_to_waiting(connection, parcel.delivery_id, DeliveryEvent.POSTPONED, reason, held.owner)
        if status is None and not doubtful:
            return
        attempts = connection.execute(
            sa.select(_delivery.c.attempts).where(_delivery.c.id == parcel.delivery_id)
        ).scalar_one()
        wait = backoff.wait(attempts)
        this = _delivery.c.id == parcel.delivery_id
        values = {"status": status, "due_at": now() + timedelta(seconds=wait)}
        connection.execute(sa.update(_delivery).where(this).values(**values))
        waiting.count_wait(connection, this, wait, reason, backoff, held.owner)


def put_back(database: Database, held: Round, *, reached: bool, reason: str, backoff: Backoff) -> None:
    """Give the destination back; one that could not be reached is tried again after a growing wait.

    What of the round has no outcome is sent again.
    """
    with database.write() as connection:
        row = connection.execute(sa.select(_destination.c.failures).where(_held(held)).with_for_update()).one_or_none()
        if row is None:
            return
        waiting.lose_sending(connection, held.peer, reason or "the round ended without it", held.owner)
        if reached:
            _let_go(connection, held.peer, held.owner, held.fence)
            return
        wait = backoff.wait(row.failures + 1)
        connection.execute(
            sa.update(_destination)
            .where(_held(held))
            .values(owner="", failures=row.failures + 1, next_try_at=now() + timedelta(seconds=wait), reason=reason)
        )
        at = sa.literal(now(), _delivery.c.due_at.type)
        theirs = sa.and_(_delivery.c.peer == held.peer, is_due(_delivery.c.due_at, at))  # others wait by themselves
        waiting.count_wait(connection, theirs, wait, reason, backoff, held.owner)


def _let_go(connection: Connection, peer: str, owner: str, fence: int) -> None:
    connection.execute(
        sa.update(_destination)
        .where(_destination.c.peer == peer, _destination.c.fence == fence, _destination.c.owner == owner)
        .values(owner="", failures=0, reason="")
    )


def sweep(database: Database, watch: Watch, actor: str) -> int:
    """Take over the destinations of couriers that are dead or stand still; returns how many."""
    with database.read() as connection:
        query = sa.select(_destination).where(_destination.c.owner != "").order_by(_destination.c.peer)
        rows = connection.execute(query).all()
    claims = {row.peer: Held(row.owner, row.fence, row.beat) for row in rows}
    taken = 0
    for peer in watch.lost("destination", claims):
        seen = claims[peer]
        with database.write() as connection:
            freed = connection.execute(
                sa.update(_destination)
                .where(
                    _destination.c.peer == peer,
                    _destination.c.fence == seen.fence,
                    _destination.c.beat == seen.beat,
                    _destination.c.owner == seen.owner,
                )
                .values(owner="", fence=_destination.c.fence + 1, next_try_at=now())
            )
            if freed.rowcount == 1:
                taken += 1
                words = "its courier died or stopped answering; sent again under the same UID"
                waiting.lose_sending(connection, peer, words, actor)
    return taken


def abandon(database: Database, held: Round, *, actor: str) -> None:
    """Give a destination back whose outcomes could not be noted: what was being sent is sent again."""
    with database.write() as connection:
        query = sa.select(_destination.c.peer).where(_held(held)).with_for_update()
        if connection.execute(query).first() is not None:
            words = "its outcome could not be noted; sent again under the same UID"
            waiting.lose_sending(connection, held.peer, words, actor)
            _let_go(connection, held.peer, held.owner, held.fence)
