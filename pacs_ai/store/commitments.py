"""Which delivered results a peer is asked to keep, and what it answered: storage commitment as the one who asks.

A request is written down before it is sent, so that the answer finds it whenever and wherever it comes; one that
nobody answered is followed by a look whether the peer shows the results in a query.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from functools import cache
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy import Connection, Row

from pacs_ai.dicom.identifiers import derive_uid
from pacs_ai.profiles import NOTICES
from pacs_ai.states import DeliveryEvent, DeliveryState, JobState
from pacs_ai.store import journal, schema, waiting
from pacs_ai.store.clock import LONGEST_WAIT, is_due, now
from pacs_ai.store.moves import move

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from pacs_ai.dicom.commitment import Report
    from pacs_ai.store.database import Database

_delivery, _result, _job, _destination = schema.delivery, schema.result, schema.job, schema.destination
_commitment = schema.commitment

#: Most instances in one request.
BATCH = 200
#: Requests for one delivery that a peer without a query may leave unanswered; tries that one may break off, and looks.
MOST_ASKS = 3
#: Times that a peer may answer Success and then not have it; then a person has to look.
MOST_LOSSES = 3
#: Times that it must be missing until that is believed: many a peer shows what it took seconds or minutes later.
MISSING_TIMES = 2


@dataclass(frozen=True)
class Delivered:
    """One delivery whose peer is asked about it."""

    delivery_id: int
    study_instance_uid: str
    series_instance_uid: str
    sop_class_uid: str
    sop_instance_uid: str


@dataclass(frozen=True)
class Step:
    """What is to be done at one peer: ask for these deliveries, or look whether it has them.

    Parameters
    ----------
    transaction_uid
        Of the request.
    looks
        The request was not answered in time: look.
    """

    commitment_id: int
    transaction_uid: str
    looks: bool
    peer: str
    ae_title: str
    host: str
    port: int
    deliveries: tuple[Delivered, ...]


class Verdict(StrEnum):
    """What an answer was worth."""

    TAKEN = "taken"
    REPEATED = "repeated"  #: it had been answered before; nothing changes
    UNKNOWN = "unknown"  #: no such request to that AE title


def due_peers(connection: Connection) -> list[str]:
    """Return the peers that are to be asked, or looked at, and to which nothing is being sent."""
    return sorted(connection.execute(_due_peers()).scalars())


@cache
def _due_peers() -> sa.Select[Any]:
    at_work = sa.exists().where(_destination.c.peer == _delivery.c.peer, _destination.c.owner != "")
    return sa.select(_delivery.c.peer).where(_is_due(), ~at_work).distinct()


def _is_due() -> sa.ColumnElement[bool]:
    return sa.and_(
        _delivery.c.confirm_at.is_not(None),
        is_due(_delivery.c.confirm_at),
        _delivery.c.state == DeliveryState.SENT.value,
    )


def take(database: Database, peer: str) -> Step | None:
    """Take the next step at a peer; nobody else takes it within `LONGEST_WAIT`. None where nothing is due."""
    due = sa.select(_delivery.c.id).where(_delivery.c.peer == peer, _is_due())
    with database.write() as connection:
        longest = due.order_by(_delivery.c.confirm_at, _delivery.c.id).limit(BATCH)
        these = _delivery.c.id.in_(connection.execute(longest).scalars().all())
        still = sa.select(_delivery).where(these, _is_due()).order_by(_delivery.c.id)
        rows = connection.execute(still.with_for_update()).all()
        if not rows:
            return None
        first = rows[0]
        rows = [row for row in rows if _alike(row) == _alike(first)]
        deliveries = _of(connection, [row.id for row in rows])
        if first.commitment_id is None:
            request = _write_request(connection, first, deliveries)
        else:
            query = sa.select(_commitment).where(_commitment.c.id == first.commitment_id)
            request = connection.execute(query).one()
        _schedule(connection, deliveries, LONGEST_WAIT, commitment_id=request.id)
        return Step(
            commitment_id=request.id,
            transaction_uid=request.transaction_uid,
            looks=request.asked_at is not None,
            peer=peer,
            ae_title=first.ae_title,
            host=first.host,
            port=first.port,
            deliveries=tuple(deliveries),
        )


def _alike(row: Row[Any]) -> tuple[Any, ...]:
    return row.commitment_id, *_address(row)


def _address(row: Row[Any]) -> tuple[str, str, int]:
    """Return where a delivery goes, or a request went."""
    return row.ae_title, row.host, row.port


def _of(connection: Connection, delivery_ids: Sequence[int]) -> list[Delivered]:
    query = (
        sa.select(_delivery.c.id, _result)
        .join(_result, _result.c.id == _delivery.c.result_id)
        .where(_delivery.c.id.in_(delivery_ids))
        .order_by(_delivery.c.id)
    )
    return [
        Delivered(row[0], row.study_instance_uid, row.series_instance_uid, row.sop_class_uid, row.sop_instance_uid)
        for row in connection.execute(query)
    ]


def _write_request(connection: Connection, first: Row[Any], deliveries: Sequence[Delivered]) -> Row[Any]:
    last = connection.execute(sa.select(sa.func.coalesce(sa.func.max(_commitment.c.id), 0))).scalar_one()
    sent_at = 0.0 if first.sent_at is None else first.sent_at.timestamp()
    uids = [one.sop_instance_uid for one in deliveries]
    values = {
        "transaction_uid": str(derive_uid("storage commitment", first.peer, last, sent_at, uids)),
        "peer": first.peer,
        "ae_title": first.ae_title,
        "host": first.host,
        "port": first.port,
        "deliveries": [one.delivery_id for one in deliveries],
        "asked_at": None,
        "answered_at": None,
        "words": "",
    }
    return connection.execute(sa.insert(_commitment).values(**values).returning(_commitment)).one()


def _schedule(connection: Connection, deliveries: Sequence[Delivered], seconds: float, **values: Any) -> None:
    """Set when the next step is due, of those that are still where they were."""
    these = [one.delivery_id for one in deliveries]
    connection.execute(
        sa.update(_delivery)
        .where(_delivery.c.id.in_(these), _delivery.c.state == DeliveryState.SENT.value)
        .where(_delivery.c.confirm_at.is_not(None))  # else an operator set it aside meanwhile
        .values(confirm_at=now() + timedelta(seconds=min(seconds, LONGEST_WAIT)), **values)
    )


# -- what came of a step


def asked(database: Database, step: Step, *, seconds: float) -> None:
    """Note that the peer took the request; it has so long to answer."""
    with database.write() as connection:
        _note_asked(connection, step, "")
        unanswered = _commitment.c.answered_at.is_(None)
        query = sa.select(_commitment.c.id).where(_commitment.c.id == step.commitment_id, unanswered)
        if connection.execute(query).first() is not None:
            _schedule(connection, step.deliveries, seconds)


def refused(database: Database, step: Step, words: str, *, comment: str = "") -> None:
    """Note that the peer does not take such requests: whether it has the results is looked up at once.

    Parameters
    ----------
    comment
        What the peer said of it in its own words, which may name a patient.
    """
    with database.write() as connection:
        _note_asked(connection, step, words)
        _remark(connection, step, comment)
        _schedule(connection, step.deliveries, 0.0)


def _note_asked(connection: Connection, step: Step, words: str) -> None:
    _look_next(connection, step, words)
    _count(connection, step)


def _look_next(connection: Connection, step: Step, words: str) -> None:
    """Have the request looked up at the next step."""
    this = _commitment.c.id == step.commitment_id
    connection.execute(sa.update(_commitment).where(this).values(asked_at=now(), words=words))


def _count(connection: Connection, step: Step) -> None:
    connection.execute(sa.update(_delivery).where(_lock(connection, step)).values(asks=_delivery.c.asks + 1))


def _lock(connection: Connection, step: Step) -> sa.ColumnElement[bool]:
    """Lock the deliveries of a step; returns the condition that names them."""
    these = _delivery.c.id.in_([one.delivery_id for one in step.deliveries])
    waiting.lock(connection, these)
    return these


def _remark(connection: Connection, step: Step, comment: str) -> None:
    """Keep what the peer said in its own words, where it said anything."""
    if comment:
        connection.execute(sa.update(_delivery).where(_lock(connection, step)).values(comment=comment))


def later(database: Database, step: Step, *, seconds: float) -> None:
    """Note that the peer could not be reached: the same step is due again after so long."""
    with database.write() as connection:
        _lock(connection, step)
        _schedule(connection, step.deliveries, seconds)


def broken_off(database: Database, step: Step, words: str, *, seconds: float, actor: str) -> int:
    """Note that the peer was reached and broke off a step, or never answered it: it is due again after so long.

    After `MOST_ASKS` times a request is looked up instead, and after as many looks nothing more is tried. Returns how
    many deliveries stay unconfirmed so.
    """
    with database.write() as connection:
        this = sa.select(_commitment.c.id).where(_commitment.c.id == step.commitment_id)
        connection.execute(this.with_for_update())  # before its deliveries, as `record`
        _count(connection, step)
        _schedule(connection, step.deliveries, seconds)
        found = (_sent(connection, one.delivery_id, step.commitment_id) for one in step.deliveries)
        rows = [row for row in found if row is not None]
        tries = min((row.asks for row in rows), default=0)
        if not step.looks and tries >= MOST_ASKS:
            _look_next(connection, step, words)
        elif step.looks and tries >= 2 * MOST_ASKS:
            for row in rows:
                _leave_open(connection, row, words, actor)
            return len(rows)
        return 0


def waive(database: Database, step: Step) -> None:
    """Note that the peer is no longer to be asked: what it has stays as it is."""
    with database.write() as connection:
        connection.execute(sa.update(_delivery).where(_lock(connection, step)).values(confirm_at=None))


def looked(database: Database, step: Step, found: Collection[str], *, actor: str) -> None:
    """Note which of the SOP Instance UIDs a query showed; the others are missing (`_miss`)."""
    with database.write() as connection:
        for one in step.deliveries:
            row = _sent(connection, one.delivery_id, step.commitment_id)
            if row is None:
                continue
            if one.sop_instance_uid in found:
                _confirm(connection, row.id, "the peer shows it in a query", actor)
            else:
                _miss(connection, row, "a query does not show it", actor, look_up=step.commitment_id)


def unknown(database: Database, step: Step, words: str, *, comment: str = "", actor: str) -> int:
    """Note that the peer offers no query either: it is asked anew, and after `MOST_ASKS` requests no more.

    Returns how many deliveries stay unconfirmed. `comment` as `refused`.
    """
    left = 0
    with database.write() as connection:
        _lock(connection, step)
        _remark(connection, step, comment)
        for one in step.deliveries:
            row = _sent(connection, one.delivery_id, step.commitment_id)
            if row is None or row.confirm_at is None:
                continue
            this = sa.update(_delivery).where(_delivery.c.id == row.id)
            if row.asks < MOST_ASKS:
                connection.execute(this.values(commitment_id=None, confirm_at=now()))
            else:
                _leave_open(connection, row, words, actor)
                left += 1
    return left


def _leave_open(connection: Connection, row: Row[Any], words: str, actor: str) -> None:
    """Let a delivery be: it was delivered, and nobody knows more."""
    reason = f"delivered, but not confirmed: {words}"
    this = sa.update(_delivery).where(_delivery.c.id == row.id)
    connection.execute(this.values(confirm_at=None, reason=reason))
    state = DeliveryState.SENT.value
    journal.append(connection, "delivery", row.id, "unconfirmed", before=state, after=state, reason=reason, actor=actor)


def was_asked(database: Database, transaction_uid: str, calling_ae_title: str) -> bool:
    """Tell whether there is a request of this Transaction UID to that AE title."""
    this = sa.and_(_commitment.c.transaction_uid == transaction_uid, _commitment.c.ae_title == calling_ae_title)
    with database.read() as connection:
        return connection.execute(sa.select(_commitment.c.id).where(this)).first() is not None


def record(database: Database, report: Report, calling_ae_title: str, *, actor: str) -> Verdict:
    """Note a peer's answer to a request.

    What it keeps is confirmed; what it does not have, names as another SOP class, or does not name is asked for anew
    after a while, then sent again, and failed after `MOST_LOSSES` times. A request is answered once; what comes again,
    or from another AE title than was asked, changes nothing. Nor does what it says of a delivery that went to another
    address since: others have that.
    """
    query = sa.select(_commitment).where(_commitment.c.transaction_uid == report.transaction_uid)
    with database.write() as connection:
        request = connection.execute(query.with_for_update()).one_or_none()
        if request is None or request.ae_title != calling_ae_title:
            return Verdict.UNKNOWN
        if request.answered_at is not None:
            return Verdict.REPEATED
        words = f"{len(report.kept)} kept, {len(report.failures)} not"
        answered = sa.update(_commitment).where(_commitment.c.id == request.id)
        connection.execute(answered.values(answered_at=now(), words=words))
        for one in _of(connection, request.deliveries):
            fault = report.fault((one.sop_class_uid, one.sop_instance_uid))
            row = _sent(connection, one.delivery_id, request.id if fault else None)
            if row is None or _address(row) != _address(request):
                continue
            if fault:
                _miss(connection, row, f"the peer does not commit to it: {fault}", actor, look_up=None)
            else:
                _confirm(connection, row.id, "the peer committed to keep it", actor)
        return Verdict.TAKEN


def _sent(connection: Connection, delivery_id: int, commitment_id: int | None) -> Row[Any] | None:
    """Lock a delivery and return it, where it is delivered and, if given, this request is its last."""
    row = connection.execute(sa.select(_delivery).where(_delivery.c.id == delivery_id).with_for_update()).one()
    if row.state != DeliveryState.SENT or (commitment_id is not None and row.commitment_id != commitment_id):
        return None
    return row


def _confirm(connection: Connection, delivery_id: int, words: str, actor: str) -> None:
    event = DeliveryEvent.CONFIRMED
    move(connection, delivery_id, event, actor=actor, reason=words, confirm_at=None, confirmed_at=now())


def _miss(connection: Connection, row: Row[Any], words: str, actor: str, *, look_up: int | None) -> None:
    """Have what the peer does not have sent again; what nobody wants any more stays as it is.

    Before, it is looked for once more: many a PACS answers Success, and shows the instance when it has indexed it. The
    wait for that grows with every loss, so that one that takes minutes is not given up.

    Parameters
    ----------
    look_up
        The request that is then looked up once more; None where it was answered, and another one is made.
    """
    values: dict[str, Any] = {"confirm_at": None, "losses": row.losses + 1, "doubtful": True}
    if not _is_wanted(connection, row):
        connection.execute(sa.update(_delivery).where(_delivery.c.id == row.id).values(confirm_at=None, reason=words))
    elif row.asks < MISSING_TIMES:
        wait = LONGEST_WAIT / 2 ** max(MOST_LOSSES - 1 - row.losses, 0)
        again = {"commitment_id": look_up, "asks": row.asks + 1, "confirm_at": now() + timedelta(seconds=wait)}
        reason = f"delivered, and looked for again: {words}"
        connection.execute(sa.update(_delivery).where(_delivery.c.id == row.id).values(reason=reason, **again))
    elif row.losses + 1 < MOST_LOSSES:
        values |= {"commitment_id": None, "due_at": now(), "attempts": 0, "waited_seconds": 0.0}
        move(connection, row.id, DeliveryEvent.MISSED, actor=actor, reason=f"sent again: {words}", **values)
    else:
        reason = f"delivered {MOST_LOSSES} times, and then not there: {words}"
        move(connection, row.id, DeliveryEvent.FAILED, actor=actor, reason=reason, **values)


def _is_wanted(connection: Connection, row: Row[Any]) -> bool:
    of_job = sa.select(_job.c.state, _result.c.kind).join(_result, _result.c.job_id == _job.c.id)
    query = of_job.where(_result.c.id == row.result_id)
    job_state, kind = connection.execute(query).one()
    return job_state == JobState.DONE or kind in NOTICES
