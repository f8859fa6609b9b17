"""What the audit trail is made of: moves, receipts and notices that no event tells of yet, and the events made.

Nothing is written here while an instance is received: what the stations hold durably is read afterwards. A batch is
read, made into events, and `keep` puts the events and the mark of how far the journal was read into one transaction.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy import Connection

from pacs_ai.log import shown
from pacs_ai.store import schema, subjects
from pacs_ai.store.clock import now

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime

    from pacs_ai.store.database import Database
    from pacs_ai.store.subjects import Concerned

_journal, _event, _cursor = schema.journal, schema.audit_event, schema.audit_cursor
_notice, _association, _share = schema.audit_notice, schema.association, schema.association_series
_series = schema.series

JOURNAL = "journal"
#: The oldest transaction that still ran when this one began to look, and the first that had not begun.
_SNAPSHOT = sa.text(
    "SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint, "
    "pg_snapshot_xmax(pg_current_snapshot())::text::bigint"
)
#: Characters of a notice's reason.
_LONGEST_REASON = 16_000
#: Rows of each kind that one batch takes.
BATCH = 100


class NoticeKind(StrEnum):
    """What a row of `audit_notice` tells of: what has no row of its own elsewhere."""

    CONNECTION = "connection"  #: turned away before it was an association
    ASSOCIATION = "association"  #: rejected
    INSTANCE = "instance"  #: answered with a failure
    IDLE = "idle"  #: an association that brought nothing: C-ECHO
    COMMAND = "command"  #: an operator gave an order
    #: this node asked a peer (C-FIND); its reason is SOP Class UID, Transfer Syntax UID and identifier in base64
    QUERY = "query"


@dataclass(frozen=True)
class Notice:
    """Something that is nowhere in the stations; `times` of it are told together."""

    kind: NoticeKind
    at: datetime
    reason: str
    address: str = ""
    calling_ae_title: str = ""
    called_ae_title: str = ""
    times: int = 1
    actor: str = ""


@dataclass(frozen=True)
class Move:
    """One row of the journal, and what it is about."""

    at: datetime
    subject: str
    subject_id: str
    event: str
    reason: str
    actor: str
    concerned: Concerned


@dataclass(frozen=True)
class Receipt:
    """What one association brought of one study.

    Parameters
    ----------
    at
        When it ended, or, while it is open, when the series was complete.
    owner
        The receive process.
    count
        Instances, repeats too.
    new
        Whether any of them had not been here before.
    """

    at: datetime
    assoc_id: str
    owner: str
    calling_ae_title: str
    called_ae_title: str
    address: str
    released: bool
    count: int
    new: bool
    concerned: Concerned


@dataclass(frozen=True)
class Event:
    """One audit message, ready to be sent: severity of RFC 5424 6.2.1, `message` of PS3.15 A.5.1."""

    at: datetime
    severity: int
    message: str


@dataclass(frozen=True)
class Batch:
    """What was read and is to be told; `keep` takes it back with its events."""

    turn: int
    position: int
    moves: tuple[Move, ...]
    receipts: tuple[Receipt, ...]
    notices: tuple[Notice, ...]
    shares: tuple[tuple[str, int, int], ...] = ()  # association, series, arrivals
    notice_ids: tuple[int, ...] = ()
    moved: bool = False

    @property
    def is_empty(self) -> bool:
        """Whether nothing was found."""
        return not (self.moved or self.shares or self.notice_ids)


class Horizon:
    """How far the journal can be read so that no row with a lower number can still appear.

    SQLite has one writer at a time. In PostgreSQL numbers are given out before the commit, so the greatest number seen
    counts only once every transaction that ran when it was seen has ended.
    """

    def __init__(self) -> None:
        self._seen: tuple[int, int] | None = None  # greatest id, first transaction that had not begun

    def of(self, connection: Connection) -> int:
        """Return the greatest number that may be read."""
        greatest = sa.select(sa.func.coalesce(sa.func.max(_journal.c.id), 0))
        if connection.dialect.name == "sqlite":
            return int(connection.execute(greatest).scalar_one())
        oldest, following = connection.execute(_SNAPSHOT).one()
        if self._seen is None or oldest == following:
            self._seen = (int(connection.execute(greatest).scalar_one()), following)
        top, begun_before = self._seen
        if oldest < begun_before:
            return 0
        self._seen = None
        return top


def read(connection: Connection, horizon: Horizon, limit: int = BATCH) -> Batch:
    """Return some of what no event tells of yet, the oldest of it first."""
    mark = connection.execute(sa.select(_cursor).where(_cursor.c.name == JOURNAL)).one_or_none()
    position, turn = (0, 0) if mark is None else (mark.position, mark.turn)
    query = sa.select(_journal).where(_journal.c.id > position, _journal.c.id <= horizon.of(connection))
    rows = connection.execute(query.order_by(_journal.c.id).limit(limit)).all()
    settled = {int(row.subject_id): row.at for row in rows if row.subject == "series"}
    receipts, shares = _receipts(connection, _over(connection, limit), settled)
    notices = connection.execute(sa.select(_notice).order_by(_notice.c.id).limit(limit)).all()
    about = subjects.Reader(connection)
    return Batch(
        turn=turn,
        position=rows[-1].id if rows else position,
        moves=tuple(_move(row, about) for row in rows),
        receipts=tuple(receipts),
        notices=tuple(_as_notice(row) for row in notices),
        shares=tuple(shares),
        notice_ids=tuple(row.id for row in notices),
        moved=bool(rows),
    )


def untold(connection: Connection) -> int:
    """Return how many moves and notices no event tells of yet; of some there will be none."""
    position = sa.select(_cursor.c.position).where(_cursor.c.name == JOURNAL).scalar_subquery()
    moves = sa.select(sa.func.count()).select_from(_journal).where(_journal.c.id > sa.func.coalesce(position, 0))
    notices = sa.select(sa.func.count()).select_from(_notice)
    return sum(int(connection.execute(query).scalar_one()) for query in (moves, notices))


def _over(connection: Connection, limit: int) -> list[str]:
    """Return associations that ended and brought what was not told yet."""
    ended = sa.select(_association.c.id).where(_association.c.ended_at.is_not(None))
    untold = ended.join(_share, _share.c.assoc_id == _association.c.id).where(schema.is_untold)
    some = untold.distinct().order_by(_association.c.id).limit(limit)
    return list(connection.execute(some).scalars())


def _move(row: Any, about: subjects.Reader) -> Move:
    return Move(
        row.at, row.subject, row.subject_id, row.event, row.reason, row.actor, about.of(row.subject, row.subject_id)
    )


def _as_notice(row: Any) -> Notice:
    return Notice(
        kind=NoticeKind(row.kind),
        at=row.at,
        reason=row.reason,
        address=row.address,
        calling_ae_title=row.calling_ae_title,
        called_ae_title=row.called_ae_title,
        times=row.times,
        actor=row.actor,
    )


@dataclass
class _Brought:
    """What one association brought of one study under one patient, added up over its series."""

    row: Any
    at: datetime
    series: list[int] = field(default_factory=list)
    count: int = 0


def _receipts(
    connection: Connection, associations: Sequence[str], settled: dict[int, datetime]
) -> tuple[list[Receipt], list[tuple[str, int, int]]]:
    """Return what came over associations that ended, or belongs to series that moved on, and was not told yet."""
    if not (associations or settled):
        return [], []
    of_these = sa.or_(_share.c.assoc_id.in_(associations), _share.c.series_id.in_(settled))
    query = (
        sa.select(_association, _share.c.series_id, _share.c.arrivals, _share.c.audited, _series.c.study_id)
        .add_columns(_series.c.header)
        .join(_share, _share.c.assoc_id == _association.c.id)
        .join(_series, _series.c.id == _share.c.series_id)
        .where(schema.is_untold, of_these)
        .order_by(_association.c.opened_at, _association.c.id, _share.c.series_id)
    )
    brought: dict[tuple[str, int, str], _Brought] = {}
    shares = []
    for row in connection.execute(query):
        at = row.ended_at or settled.get(row.series_id) or now()
        whose = row.id, row.study_id, subjects.patient_of(row.header)
        sum_up = brought.setdefault(whose, _Brought(row, at))
        sum_up.series.append(row.series_id)
        sum_up.count += row.arrivals - (row.audited or 0)
        shares.append((row.id, row.series_id, row.arrivals))
    return [_receipt(connection, one) for one in brought.values()], shares


def _receipt(connection: Connection, one: _Brought) -> Receipt:
    objects = subjects.arrived(connection, one.series, one.row.id)
    return Receipt(
        at=one.at,
        assoc_id=one.row.id,
        owner=one.row.owner,
        calling_ae_title=one.row.calling_ae_title,
        called_ae_title=one.row.called_ae_title,
        address=one.row.address,
        released=one.row.released,
        count=one.count,
        new=bool(objects),
        concerned=subjects.study(connection, one.row.study_id, one.series, objects),
    )


# -- events


def note(database: Database, notices: Iterable[Notice]) -> None:
    """Take note of what has no row elsewhere, in one transaction."""
    rows = [
        {
            "at": one.at,
            "kind": one.kind.value,
            "address": shown(one.address, 64),
            "calling_ae_title": shown(one.calling_ae_title, 64),
            "called_ae_title": shown(one.called_ae_title, 64),
            "times": one.times,
            "reason": shown(one.reason, _LONGEST_REASON),
            "actor": shown(one.actor, 128),
        }
        for one in notices
    ]
    if rows:
        with database.write() as connection:
            connection.execute(sa.insert(_notice), rows)


def keep(database: Database, batch: Batch, events: Sequence[Event]) -> bool:
    """Spool the events of a batch and mark it as told; False where another auditor told it meanwhile."""
    with database.write() as connection:
        if not _take_turn(connection, database, batch):
            return False
        if events:
            rows = [{"at": one.at, "severity": one.severity, "message": one.message} for one in events]
            connection.execute(sa.insert(_event), rows)
        for assoc_id, series_id, arrivals in batch.shares:
            connection.execute(
                sa.update(_share)
                .where(_share.c.assoc_id == assoc_id, _share.c.series_id == series_id)
                .values(audited=arrivals)
            )
        if batch.notice_ids:
            connection.execute(sa.delete(_notice).where(_notice.c.id.in_(batch.notice_ids)))
    return True


def _take_turn(connection: Connection, database: Database, batch: Batch) -> bool:
    first = {"name": JOURNAL, "position": 0, "turn": 0, "moved_at": now(), "problem": ""}
    connection.execute(database.insert_new(_cursor), first)
    moved = connection.execute(
        sa.update(_cursor)
        .where(_cursor.c.name == JOURNAL, _cursor.c.turn == batch.turn)
        .values(position=batch.position, turn=batch.turn + 1, moved_at=now())
    )
    return moved.rowcount == 1


def discard(connection: Connection) -> None:
    """Forget the notices: nobody keeps an audit trail."""
    connection.execute(sa.delete(_notice))
