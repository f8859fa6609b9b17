"""Results that a peer took and did not confirm: what `status` says of them, and what an operator orders about them."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING

import sqlalchemy as sa
from sqlalchemy import Connection

from pacs_ai.states import DeliveryState
from pacs_ai.store import journal, schema
from pacs_ai.store.clock import now
from pacs_ai.store.commitments import MOST_ASKS

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from datetime import datetime

    from pacs_ai.store.database import Database
    from pacs_ai.store.enqueue import Address

_delivery = schema.delivery
#: Results that lie so long (seconds) without an answer need a person: the peer cannot be asked at all.
LATE_SECONDS = 86_400.0


@dataclass(frozen=True)
class Unconfirmed:
    """What peers took and did not confirm: for each peer how many results, and when it took the first.

    Parameters
    ----------
    given_up
        Asked for in vain, however often: nothing more is tried.
    waiting
        Still to be asked for.
    late
        Those of the waiting ones that were taken long ago.
    """

    given_up: Mapping[str, tuple[int, datetime]] = field(default_factory=dict)
    waiting: Mapping[str, tuple[int, datetime]] = field(default_factory=dict)
    late: Mapping[str, tuple[int, datetime]] = field(default_factory=dict)


def look(connection: Connection) -> Unconfirmed:
    """Return what peers took and did not confirm."""
    kinds = (_is_given_up(), _is_waiting(), _is_late())
    return Unconfirmed(*(_of_peers(connection, which) for which in kinds))


def _of_peers(connection: Connection, which: sa.ColumnElement[bool]) -> dict[str, tuple[int, datetime]]:
    first = sa.func.min(_delivery.c.sent_at, type_=schema.Instant())
    query = sa.select(_delivery.c.peer, sa.func.count(), first).where(which).group_by(_delivery.c.peer)
    return {peer: (count, since) for peer, count, since in connection.execute(query.order_by(_delivery.c.peer))}


def is_open() -> sa.ColumnElement[bool]:
    """Return the condition that a delivery is to be confirmed, or was to be."""
    return sa.or_(_is_waiting(), _is_given_up())


def _is_sent() -> sa.ColumnElement[bool]:
    return _delivery.c.state == DeliveryState.SENT.value


def _is_given_up() -> sa.ColumnElement[bool]:
    return sa.and_(_is_sent(), _delivery.c.confirm_at.is_(None), _delivery.c.asks >= MOST_ASKS)


def _is_waiting() -> sa.ColumnElement[bool]:
    return sa.and_(_is_sent(), _delivery.c.confirm_at.is_not(None))


def _is_late() -> sa.ColumnElement[bool]:
    return sa.and_(_is_waiting(), _delivery.c.sent_at < now() - timedelta(seconds=LATE_SECONDS))


# -- orders


def ask_again(database: Database, delivery_id: int, *, addresses: Mapping[str, Address], actor: str) -> bool:
    """Have a peer asked anew about what it was asked for in vain; False where the delivery is no such one.

    Parameters
    ----------
    addresses
        Where each peer that is asked at all is reached now.
    """
    in_vain = sa.and_(_is_sent(), _delivery.c.confirm_at.is_(None), _delivery.c.commitment_id.is_not(None))
    with database.write() as connection:
        query = sa.select(_delivery).where(_delivery.c.id == delivery_id, in_vain)
        row = connection.execute(query.with_for_update()).one_or_none()
        if row is None or row.peer not in addresses:
            return False
        address = addresses[row.peer]
        place = {"ae_title": address.ae_title, "host": address.host, "port": address.port}
        words = "an operator has the peer asked again whether it keeps it"
        again = sa.update(_delivery).where(_delivery.c.id == delivery_id)
        connection.execute(again.values(commitment_id=None, asks=0, confirm_at=now(), reason=words, **place))
        _note(connection, delivery_id, "asked again", words, actor)
        return True


def set_aside(connection: Connection, job_id: int, *, actor: str, peers: Collection[str] | None = None) -> bool:
    """Leave open what of a job nobody confirms, so that `status` no longer says so; False where there is nothing such.

    It stays delivered, and an answer that comes late still counts.

    Parameters
    ----------
    peers
        Those of the configuration: what others took cannot be asked for. None: all are.
    """
    troubles = [_is_given_up(), _is_late()]
    if peers is not None:
        troubles.append(sa.and_(_is_waiting(), _delivery.c.peer.not_in(list(peers))))
    query = sa.select(_delivery.c.id).where(_delivery.c.job_id == job_id, sa.or_(*troubles)).order_by(_delivery.c.id)
    found = connection.execute(query.with_for_update()).scalars().all()
    for delivery_id in found:
        aside = sa.update(_delivery).where(_delivery.c.id == delivery_id)
        connection.execute(aside.values(confirm_at=None, asks=0))
        _note(connection, delivery_id, "set aside", "an operator leaves it delivered and not confirmed", actor)
    return bool(found)


def _note(connection: Connection, delivery_id: int, event: str, words: str, actor: str) -> None:
    state = DeliveryState.SENT.value
    journal.append(connection, "delivery", delivery_id, event, before=state, after=state, reason=words, actor=actor)
