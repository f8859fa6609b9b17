"""Sending again what an operator names: failed and cancelled deliveries, and waiting ones whose peer has moved."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy import Connection, Row

from pacs_ai.errors import UserError
from pacs_ai.profiles import NOTICES
from pacs_ai.states import DeliveryEvent, DeliveryState, JobState
from pacs_ai.store import journal, schema
from pacs_ai.store.clock import now
from pacs_ai.store.moves import move

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pacs_ai.store.database import Database
    from pacs_ai.store.enqueue import Address

_delivery, _result, _destination, _job = schema.delivery, schema.result, schema.destination, schema.job

_TO_RETRY = frozenset({DeliveryState.HELD, DeliveryState.FAILED, DeliveryState.CANCELLED})


def retry(
    database: Database,
    delivery_ids: Sequence[int],
    *,
    actor: str,
    addresses: Mapping[str, Address] = MappingProxyType({}),
) -> int:
    """Send failed or cancelled deliveries again, at once, and waiting ones to another address; returns how many.

    Parameters
    ----------
    addresses
        Where each peer is reached now: a delivery keeps the address of when its job was made until it is ordered so.
    """
    query = (
        sa.select(_delivery, _job.c.state.label("job_state"), _result.c.kind)
        .join(_job, _job.c.id == _delivery.c.job_id)
        .join(_result, _result.c.id == _delivery.c.result_id)
    )
    with database.write() as connection:
        _lock_destinations(connection, delivery_ids)
        for delivery_id in sorted(delivery_ids):
            one = query.where(_delivery.c.id == delivery_id)
            row = connection.execute(one.with_for_update(of=_delivery)).one_or_none()
            if row is None:
                raise UserError(f"there is no delivery {delivery_id}; `pacs-ai deliveries` lists them")
            address = addresses.get(row.peer)
            moved = address is not None and _has_moved(row, address)
            if row.state not in _TO_RETRY and not (moved and row.state == DeliveryState.WAITING):
                words = "only a held, failed or cancelled one is sent again, or a waiting one whose peer has moved"
                raise UserError(f"delivery {delivery_id} is {row.state}: {words}")
            if row.job_state == JobState.SUPERSEDED:
                raise UserError(f"delivery {delivery_id} is of job {row.job_id}, which a newer one has superseded")
            if row.job_state == JobState.RETRACTED and row.kind not in NOTICES:
                raise UserError(f"delivery {delivery_id} is of job {row.job_id}, which was retracted")
            _send_anew(connection, row, address, actor)
            connection.execute(
                sa.update(_destination)
                .where(_destination.c.peer == row.peer, _destination.c.owner == "")
                .values(next_try_at=now(), failures=0)
            )
    return len(delivery_ids)


def _lock_destinations(connection: Connection, delivery_ids: Sequence[int]) -> None:
    """Lock where deliveries go before they are locked, as couriers do."""
    peers = sa.select(_delivery.c.peer).where(_delivery.c.id.in_(list(delivery_ids)))
    query = sa.select(_destination.c.peer).where(_destination.c.peer.in_(peers)).order_by(_destination.c.peer)
    connection.execute(query.with_for_update()).all()


def _has_moved(row: Row[Any], address: Address) -> bool:
    return (row.ae_title, row.host, row.port) != (address.ae_title, address.host, address.port)


def _send_anew(connection: Connection, row: Row[Any], address: Address | None, actor: str) -> None:
    """Make a delivery due at once, to the peer's present address."""
    values: dict[str, Any] = {"due_at": now(), "waited_seconds": 0.0, "attempts": 0, "losses": 0}
    reason = "sent again by an operator"
    if address is not None:
        values |= {"ae_title": address.ae_title, "host": address.host, "port": address.port}
        if _has_moved(row, address):
            reason += f", to {address.ae_title} at {address.host}:{address.port}"
    if row.state != DeliveryState.WAITING:
        move(connection, row.id, DeliveryEvent.RETRIED, actor=actor, reason=reason, **values)
        return
    connection.execute(sa.update(_delivery).where(_delivery.c.id == row.id).values(reason=reason, **values))
    state = DeliveryState.WAITING.value
    journal.append(connection, "delivery", row.id, "readdressed", before=state, after=state, reason=reason, actor=actor)
