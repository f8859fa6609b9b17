"""What of results and notices needs a person: objects that a destination lacks, withdrawals that did not reach it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy import Connection, Row

from pacs_ai.profiles import NOTICES
from pacs_ai.states import DeliveryState, JobState
from pacs_ai.store import journal, schema
from pacs_ai.store.clock import now
from pacs_ai.store.notices import NoticeKind

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime

_job, _destination, _notice = schema.job, schema.job_destination, schema.notice
_delivery, _result = schema.delivery, schema.result
_RETRACTIONS = (NoticeKind.REJECTION.value, NoticeKind.RETRACTED.value)
#: A withdrawal that did not reach its destination within so long needs a person.
_LATE_SECONDS = 60.0
#: And so does a report of no analysis that was not made within so long: many may be wanted at the same time.
_LATE_REPORT_SECONDS = 600.0


@dataclass(frozen=True)
class Concern:
    """What needs a person at one job, and what that person may do."""

    job_id: int
    pipeline: str
    words: str
    advice: str


def of_jobs(connection: Connection) -> list[Concern]:
    """Return what needs a person."""
    return [*_unsaid(connection), *_unreached(connection), *_lacking(connection)]


def _unsaid(connection: Connection) -> Iterator[Concern]:
    """Yield the withdrawals and the reports of no analysis that could not be made, or are not made yet."""
    query = (
        sa.select(_notice, _job.c.pipeline)
        .join(_job, _job.c.id == _notice.c.job_id)
        .where(
            sa.or_(
                sa.and_(
                    _job.c.state == JobState.RETRACTED.value,
                    _notice.c.kind.in_(_RETRACTIONS),
                    _wanting(_LATE_SECONDS),
                ),
                sa.and_(
                    _job.c.state.in_([JobState.REFUSED.value, JobState.FAILED.value]),
                    _notice.c.kind == NoticeKind.NOT_ANALYSED.value,
                    _wanting(_LATE_REPORT_SECONDS),
                ),
            )
        )
        .order_by(_notice.c.id)
    )
    for row in connection.execute(query):
        words, advice = _of_report(row) if row.kind == NoticeKind.NOT_ANALYSED else _of_withdrawal(row)
        yield Concern(row.job_id, row.pipeline, words, advice)


def _wanting(seconds: float) -> sa.ColumnElement[bool]:
    """Say of a notice that it could not be made, or not within so long."""
    return sa.or_(_notice.c.problem != "", sa.and_(_notice.c.ended_at.is_(None), _notice.c.ordered_at < _ago(seconds)))


def _of_report(row: Row[Any]) -> tuple[str, str]:
    """Return what is the matter with a report of no analysis, and what to do."""
    peers = ", ".join(row.peers)
    if row.problem:
        words = f"was not analysed, and {peers} cannot be told: {row.problem}"
        return words, f"pacs-ai retry {row.job_id}, or pacs-ai cancel {row.job_id} to set it aside"
    words = f"was not analysed, and {peers} is not told yet"
    return words, f"see the log of deliver, or pacs-ai cancel {row.job_id} to leave it so"


def _of_withdrawal(row: Row[Any]) -> tuple[str, str]:
    """Return what is the matter with a withdrawal, and what to do."""
    peers = ", ".join(row.peers)
    if row.problem:
        words = f"is retracted, but {peers} cannot be told: {row.problem}"
        return words, f"delete its results there by hand, then pacs-ai cancel {row.job_id} to set it aside"
    return f"is retracted, but {peers} is not told yet", "see the log of deliver"


def _unreached(connection: Connection) -> Iterator[Concern]:
    """Yield the withdrawals that lie in the outbox for too long; those that failed are shown as failed deliveries."""
    under_way = [DeliveryState.WAITING.value, DeliveryState.SENDING.value]
    query = (
        sa.select(_delivery.c.job_id, _delivery.c.peer, _job.c.pipeline, sa.func.min(_delivery.c.reason).label("why"))
        .join(_result, _result.c.id == _delivery.c.result_id)
        .join(_job, _job.c.id == _delivery.c.job_id)
        .where(
            _delivery.c.state.in_(under_way),
            _delivery.c.created_at < _ago(_LATE_SECONDS),
            _job.c.state == JobState.RETRACTED.value,
            _result.c.kind.in_(NOTICES),
        )
        .group_by(_delivery.c.job_id, _delivery.c.peer, _job.c.pipeline)
        .order_by(_delivery.c.job_id, _delivery.c.peer)
    )
    for row in connection.execute(query):
        words = f"is retracted, but that has not reached {row.peer} yet: {row.why}"
        yield Concern(row.job_id, row.pipeline, words, f"pacs-ai deliveries --job {row.job_id}")


def _lacking(connection: Connection) -> Iterator[Concern]:
    query = (
        sa.select(_destination.c.job_id, _destination.c.lacking, _job.c.pipeline)
        .join(_job, _job.c.id == _destination.c.job_id)
        .where(_destination.c.lacking != "", _job.c.state == JobState.DONE.value)
        .order_by(_destination.c.job_id, _destination.c.peer)
    )
    for row in connection.execute(query):
        words, _, order = row.lacking.partition("; ")
        yield Concern(row.job_id, row.pipeline, words, f"{order}, or pacs-ai cancel {row.job_id} to leave it so")


def _ago(seconds: float) -> datetime:
    return now() - timedelta(seconds=seconds)


def set_aside(connection: Connection, job_id: int, *, actor: str) -> bool:
    """Note that a person has seen what a destination lacks, or could not be told; False where there is nothing such."""
    lacking = sa.update(_destination).where(_destination.c.job_id == job_id, _destination.c.lacking != "")
    unsaid = sa.update(_notice).where(_notice.c.job_id == job_id, _notice.c.problem != "")
    changes = (lacking.values(lacking=""), unsaid.values(problem="", peers=_untold()))
    words = "an operator set aside what a destination lacks or could not be told"
    return _note(connection, job_id, changes, words, actor)


def drop_unmade(connection: Connection, job_id: int, *, actor: str) -> bool:
    """End the notices of a job that are not made yet, and set aside the others; False where there are none."""
    unmade = sa.update(_notice).where(_notice.c.job_id == job_id, _notice.c.ended_at.is_(None))
    words = "an operator cancelled what was still to be told"
    dropped = _note(connection, job_id, (unmade.values(ended_at=now(), peers=_untold()),), words, actor)
    return set_aside(connection, job_id, actor=actor) or dropped


def _untold() -> sa.Case[Any]:
    """Return whom a notice told that was not made; whom a withdrawal was meant for stays, as nothing tells it again."""
    nobody = sa.literal([], _notice.c.peers.type)
    return sa.case((_notice.c.kind == NoticeKind.NOT_ANALYSED.value, nobody), else_=_notice.c.peers)


def _note(connection: Connection, job_id: int, changes: Sequence[sa.Update], words: str, actor: str) -> bool:
    """Make the changes, and a journal row where they changed anything."""
    changed = sum(connection.execute(change).rowcount for change in changes) > 0
    if changed:
        state = connection.execute(sa.select(_job.c.state).where(_job.c.id == job_id)).scalar_one()
        journal.append(connection, "job", job_id, "set aside", before=state, after=state, reason=words, actor=actor)
    return changed
