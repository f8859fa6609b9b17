"""Which deliveries leave next for a destination: a batch to one address, or the one that probes it after a failure."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from pacs_ai.states import DeliveryState
from pacs_ai.store import schema
from pacs_ai.store.clock import is_due, is_not_due, present

if TYPE_CHECKING:
    from sqlalchemy import Row

_delivery, _result, _destination, _job = schema.delivery, schema.result, schema.destination, schema.job
_earlier, _made = _delivery.alias(), _result.alias()
_ORDER = (_job.c.rank, _job.c.id, _delivery.c.place, _result.c.ordinal)
_ADDRESS = (_delivery.c.ae_title, _delivery.c.host, _delivery.c.port)

#: Most instances in one association.
BATCH = 200


@cache
def due_peers() -> sa.Select[Any]:
    """Select the destinations that have something due and no courier; made once: an idle one asks every second."""
    return (
        sa.select(_destination.c.peer)
        .where(
            _destination.c.owner == "",
            is_due(_destination.c.next_try_at),
            sa.exists().where(
                _delivery.c.peer == _destination.c.peer, _result.c.id == _delivery.c.result_id, _may_be_sent()
            ),
        )
        .order_by(_destination.c.peer)
    )


def batch(peer: str) -> sa.Select[Any]:
    """Select what may be sent now, in order, to the address of what was tried least.

    An address where nobody is any more leads no batch while there is something that was not tried as often.
    """
    first = _due(peer, *_ADDRESS).order_by(_delivery.c.attempts, *_ORDER).limit(1).correlate(None)
    return _parcels(peer).where(sa.tuple_(*_ADDRESS).in_(first)).order_by(*_ORDER).limit(BATCH)


def probe(peer: str) -> sa.Select[Any]:
    """Select the one that is sent to see whether the peer is there: what was tried least, and nothing that cites it.

    So each has its turn, and one that the peer cannot bear keeps it from nobody else. Of those that were tried as often
    the newest goes first: it has the address where the peer is now.
    """
    least = _parcels(peer).where(~_waits_before())
    return least.order_by(_delivery.c.attempts, _job.c.id.desc(), *_ORDER).limit(1)


def address(row: Row[Any]) -> tuple[str, str, int]:
    """Return where a delivery goes."""
    return row.ae_title, row.host, row.port


def _parcels(peer: str) -> sa.Select[Any]:
    """Select what may be sent now, with what a courier has to know of it."""
    wanted = (
        _delivery,
        _result.c.sha256,
        _result.c.kind,
        _result.c.encoding,
        _result.c.sop_class_uid,
        _result.c.sop_instance_uid,
        _result.c.transfer_syntax_uid,
        _result.c.study_instance_uid,
    )
    return _due(peer, *wanted)


def _due(peer: str, *wanted: Any) -> sa.Select[Any]:
    return (
        sa.select(*wanted)
        .select_from(_delivery)
        .join(_result, _result.c.id == _delivery.c.result_id)
        .join(_job, _job.c.id == _delivery.c.job_id)
        .where(_delivery.c.peer == peer, _may_be_sent())
    )


def _may_be_sent() -> sa.ColumnElement[bool]:
    """Return the condition on a delivery and its result: due, and none of its job that goes before it waits longer."""
    at = present(_delivery.c.due_at)
    held_up = _waits_before(is_not_due(_earlier.c.due_at, at))
    return sa.and_(_delivery.c.state == DeliveryState.WAITING.value, is_due(_delivery.c.due_at, at), ~held_up)


def _waits_before(*conditions: sa.ColumnElement[bool]) -> sa.Exists:
    """Return the condition that another delivery of the same job, which goes before it to that peer, still waits."""
    return sa.exists().where(
        _earlier.c.job_id == _delivery.c.job_id,
        _earlier.c.peer == _delivery.c.peer,
        _earlier.c.state == DeliveryState.WAITING.value,
        _made.c.id == _earlier.c.result_id,
        sa.or_(
            _earlier.c.place < _delivery.c.place,
            sa.and_(_earlier.c.place == _delivery.c.place, _made.c.ordinal < _result.c.ordinal),
        ),
        *conditions,
    )
