"""What others asked this node to keep, what it committed to, and which of them have been told: storage commitment.

An instance that the node has committed to is left alone by retention until a person lifts that: the one who asked may
have deleted its own copy.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from functools import cache
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy import Connection

from pacs_ai.dicom import status
from pacs_ai.dicom.commitment import CLASS_INSTANCE_CONFLICT, Reference, Report
from pacs_ai.store import journal, schema
from pacs_ai.store.clock import LONGEST_WAIT, is_due, now
from pacs_ai.store.schema import Role

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence
    from datetime import datetime

    from pacs_ai.dicom.commitment import Request
    from pacs_ai.store.database import Database
    from pacs_ai.store.waiting import Backoff

_pledge, _instance, _series, _study = schema.pledge, schema.instance, schema.series, schema.study

#: Rows that are asked for at once.
_CHUNK = 500
#: What is not there so soon after it was asked for may have been received and be on its way to its row, in seconds.
COMING_SECONDS = 10.0
_LOOK_AGAIN_SECONDS = 0.5


class Noted(StrEnum):
    """What became of a request."""

    NEW = "new"
    AGAIN = "again"  #: the same request came again; it is answered again
    CONTRADICTS = "contradicts"  #: another request of that peer bore the Transaction UID


@dataclass(frozen=True)
class Pledge:
    """One request that is to be decided, or whose answer is to be told."""

    id: int
    peer: str
    transaction_uid: str
    instances: tuple[Reference, ...]
    failures: dict[str, int]
    decided: bool
    asked_at: datetime

    @property
    def report(self) -> Report:
        """What the one who asked is told."""
        failures = {one: self.failures[one[1]] for one in self.instances if one[1] in self.failures}
        return Report(self.transaction_uid, tuple(one for one in self.instances if one not in failures), failures)


@dataclass(frozen=True)
class Held:
    """What a study holds that the node committed to."""

    study_instance_uid: str
    instances: int
    since: datetime


def note(database: Database, request: Request, *, calling_ae_title: str, peer: str) -> Noted:
    """Write a request down; it is decided and answered later."""
    values = {
        "transaction_uid": request.transaction_uid,
        "calling_ae_title": calling_ae_title,
        "peer": peer,
        "instances": [list(one) for one in request.instances],
        "failures": {},
        "asked_at": now(),
        "due_at": now(),
        "attempts": 0,
        "waited_seconds": 0.0,
        "reason": "asked for",
    }
    with database.write() as connection:
        made = connection.execute(database.insert_new(_pledge).returning(_pledge.c.id), values).scalar_one_or_none()
        if made is not None:
            return Noted.NEW
        this = sa.and_(
            _pledge.c.transaction_uid == request.transaction_uid, _pledge.c.calling_ae_title == calling_ae_title
        )
        known = connection.execute(sa.select(_pledge).where(this).with_for_update()).one()
        if known.instances != values["instances"]:
            return Noted.CONTRADICTS
        again: dict[str, Any] = {
            "asked_at": now(),
            "decided_at": None,
            "ended_at": None,
            "due_at": now(),
            "waited_seconds": 0.0,
            "failures": {},
        }
        connection.execute(sa.update(_pledge).where(_pledge.c.id == known.id).values(**again))
        return Noted.AGAIN


def due_peers(connection: Connection) -> list[str]:
    """Return the peers of which a request is to be decided or answered."""
    return sorted(connection.execute(_due_peers()).scalars())


@cache
def _due_peers() -> sa.Select[Any]:
    return sa.select(_pledge.c.peer).where(_is_due()).distinct()


def _is_due() -> sa.ColumnElement[bool]:
    return sa.and_(_pledge.c.ended_at.is_(None), is_due(_pledge.c.due_at))


def take(database: Database, peer: str) -> Pledge | None:
    """Take a peer's next request that is to be decided or answered; nobody else takes it within `LONGEST_WAIT`."""
    due = sa.select(_pledge).where(_pledge.c.peer == peer, _is_due())
    with database.write() as connection:
        query = due.order_by(_pledge.c.due_at, _pledge.c.id).limit(1).with_for_update(skip_locked=True)
        row = connection.execute(query).one_or_none()
        if row is None:
            return None
        lease = now() + timedelta(seconds=LONGEST_WAIT)
        connection.execute(sa.update(_pledge).where(_pledge.c.id == row.id).values(due_at=lease))
        references = tuple((sop_class, sop_instance) for sop_class, sop_instance in row.instances)
        failures = {str(uid): int(reason) for uid, reason in row.failures.items()}
        decided = row.decided_at is not None
        return Pledge(row.id, row.peer, row.transaction_uid, references, failures, decided, row.asked_at)


def decide(
    database: Database, pledge: Pledge, is_whole: Callable[[str], bool], *, actor: str, is_more_coming: bool = False
) -> Pledge | None:
    """Commit to what is there, and note why the rest is not kept; None where the rest may be coming: it is asked again.

    Parameters
    ----------
    is_whole
        Tells of a SHA-256 whether its file is there with those very bytes.
    is_more_coming
        Whether instances may be on their way to their rows, however long ago they were asked for.
    """
    failures: dict[str, int] = {}
    kept: list[int] = []
    for start in range(0, len(pledge.instances), _CHUNK):
        for uid, row in _candidates(database, pledge.instances[start : start + _CHUNK]).items():
            if isinstance(row, int):
                failures[uid] = row
            elif is_whole(row.sha256):
                kept.append(row.id)
            else:
                failures[uid] = status.PROCESSING_FAILURE
    age = (now() - pledge.asked_at).total_seconds()
    may_come = is_more_coming or 0 <= age < COMING_SECONDS
    if status.NO_SUCH_OBJECT_INSTANCE in failures.values() and may_come:
        with database.write() as connection:
            again = now() + timedelta(seconds=_LOOK_AGAIN_SECONDS)
            connection.execute(sa.update(_pledge).where(_as_taken(pledge)).values(due_at=again))
        return None
    with database.write() as connection:
        failures |= _keep(connection, kept, pledge, actor)
        words = f"{len(pledge.instances) - len(failures)} kept, {len(failures)} not"
        decided = {"decided_at": now(), "failures": failures, "reason": words}
        connection.execute(sa.update(_pledge).where(_as_taken(pledge)).values(**decided))
    return Pledge(pledge.id, pledge.peer, pledge.transaction_uid, pledge.instances, failures, True, pledge.asked_at)


def _as_taken(pledge: Pledge) -> sa.ColumnElement[bool]:
    """Return the condition that names a request unless it came again since it was taken: that is answered anew."""
    return sa.and_(_pledge.c.id == pledge.id, _pledge.c.asked_at == pledge.asked_at)


def _candidates(database: Database, references: Sequence[Reference]) -> dict[str, Any]:
    """Return the row of each SOP Instance UID that may be kept, or the Failure Reason why it may not."""
    uids = [uid for _, uid in references]
    query = sa.select(_instance).where(_instance.c.sop_instance_uid.in_(uids), _instance.c.purged_at.is_(None))
    rows: dict[str, list[Any]] = {}
    with database.read() as connection:
        for row in connection.execute(query):
            rows.setdefault(row.sop_instance_uid, []).append(row)
    found: dict[str, Any] = {}
    for sop_class_uid, uid in references:
        if isinstance(found.get(uid), int):
            continue  # named under two SOP classes: what failed under one is kept under none
        current = [row for row in rows.get(uid, []) if row.role == Role.CURRENT]
        if not current:
            found[uid] = status.NO_SUCH_OBJECT_INSTANCE
        elif any(row.role == Role.CONFLICT for row in rows[uid]):
            found[uid] = status.PROCESSING_FAILURE  # two contents under one UID: which was meant is not known
        elif current[0].sop_class_uid != sop_class_uid:
            found[uid] = CLASS_INSTANCE_CONFLICT
        else:
            found[uid] = current[0]
    return found


def _keep(connection: Connection, instance_ids: Sequence[int], pledge: Pledge, actor: str) -> dict[str, int]:
    """Mark what is kept, unless retention was quicker; returns the failures that it caused."""
    failures: dict[str, int] = {}
    series: dict[int, int] = {}
    for instance_id in sorted(instance_ids):
        this = sa.update(_instance).where(_instance.c.id == instance_id, _instance.c.purged_at.is_(None))
        row = connection.execute(this.values(pledged_at=now()).returning(_instance.c.series_id)).one_or_none()
        if row is None:
            gone = sa.select(_instance.c.sop_instance_uid).where(_instance.c.id == instance_id)
            failures[connection.execute(gone).scalar_one()] = status.NO_SUCH_OBJECT_INSTANCE
        else:
            series[row.series_id] = series.get(row.series_id, 0) + 1
    for series_id, count in series.items():
        words = f"{count} instance(s) are kept: {pledge.peer} asked for storage commitment"
        journal.append(connection, "series", series_id, "pledged", reason=words, actor=actor)
    return failures


def told(database: Database, pledge: Pledge) -> None:
    """Note that the one who asked has the answer."""
    with database.write() as connection:
        connection.execute(sa.update(_pledge).where(_as_taken(pledge)).values(ended_at=now()))


def later(database: Database, pledge: Pledge, reason: str, backoff: Backoff) -> bool:
    """Note that the answer did not get through; False where it is given up. What was committed to stays kept."""
    with database.write() as connection:
        tries = _count_try(connection, pledge)
        return tries is None or not _wait(connection, [pledge.id], backoff.wait(tries), reason, backoff)


def unreached(database: Database, pledge: Pledge, reason: str, backoff: Backoff) -> int:
    """Note that the peer is away: all that is due for it waits with this one. Returns how many are given up."""
    with database.write() as connection:
        tries = _count_try(connection, pledge)
        if tries is None:
            return 0
        others = sa.select(_pledge.c.id).where(_pledge.c.peer == pledge.peer, _is_due()).order_by(_pledge.c.id)
        waiting = [pledge.id, *connection.execute(others.with_for_update()).scalars()]
        return _wait(connection, waiting, backoff.wait(tries), reason, backoff)


def _count_try(connection: Connection, pledge: Pledge) -> int | None:
    """Return how often its answer was tried now; None where it was asked again meanwhile, and is due."""
    tried = sa.update(_pledge).where(_as_taken(pledge)).values(attempts=_pledge.c.attempts + 1)
    tries: int | None = connection.execute(tried.returning(_pledge.c.attempts)).scalar_one_or_none()
    return tries


def _wait(connection: Connection, pledge_ids: Sequence[int], wait: float, reason: str, backoff: Backoff) -> int:
    """Have requests wait so many seconds; returns how many have waited for the limit now, and end."""
    given_up, due_at = 0, now() + timedelta(seconds=wait)
    for start in range(0, len(pledge_ids), _CHUNK):
        these = _pledge.c.id.in_(pledge_ids[start : start + _CHUNK])
        waited = _pledge.c.waited_seconds + wait
        connection.execute(sa.update(_pledge).where(these).values(waited_seconds=waited, due_at=due_at, reason=reason))
        over = sa.and_(these, _pledge.c.waited_seconds >= backoff.give_up_hours * 3600)
        given_up += connection.execute(sa.update(_pledge).where(over).values(ended_at=now())).rowcount
    return given_up


def held(connection: Connection) -> list[Held]:
    """Return the studies that retention leaves alone, the longest held first."""
    since = sa.func.min(_instance.c.pledged_at, type_=schema.Instant())
    query = (
        sa.select(_study.c.study_instance_uid, sa.func.count(), since)
        .join(_series, _series.c.study_id == _study.c.id)
        .join(_instance, _instance.c.series_id == _series.c.id)
        .where(_instance.c.pledged_at.is_not(None))
        .group_by(_study.c.study_instance_uid)
        .order_by(sa.func.min(_instance.c.pledged_at), _study.c.study_instance_uid)
    )
    return [Held(*row) for row in connection.execute(query)]


def lift(database: Database, study_instance_uids: Collection[str], *, actor: str) -> int:
    """Let retention delete the instances of studies again; returns how many instances it concerned."""
    with database.write() as connection:
        studies = sa.select(_study.c.id).where(_study.c.study_instance_uid.in_(list(study_instance_uids)))
        of_studies = sa.select(_series.c.id).where(_series.c.study_id.in_(studies))
        lifted = connection.execute(
            sa.update(_instance)
            .where(_instance.c.series_id.in_(of_studies), _instance.c.pledged_at.is_not(None))
            .values(pledged_at=None)
            .returning(_instance.c.series_id)
        ).scalars()
        series = list(lifted)
        for series_id in sorted(set(series)):
            words = f"{series.count(series_id)} instance(s) may be deleted again: an operator lifted the commitment"
            journal.append(connection, "series", series_id, "lifted", reason=words, actor=actor)
        return len(series)
