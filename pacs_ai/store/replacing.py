"""What a job's new report replaces: the reports of its predecessors that reached a destination."""

from __future__ import annotations

from typing import TYPE_CHECKING

import sqlalchemy as sa
from sqlalchemy import Connection

from pacs_ai.profiles import Kind
from pacs_ai.states import REACHED
from pacs_ai.store import schema, views

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pacs_ai.store.views import ResultView

_job, _result, _delivery = schema.job, schema.result, schema.delivery


def delivered_reports(connection: Connection, job_id: int) -> list[ResultView]:
    """Return the SRs that reached a destination, or may be about to, and that a new SR of the job replaces.

    They are what the job's nearest predecessor that has any said, and, of the job itself, that it could not be
    analysed, before it was tried again.
    """
    found = _reached(connection, job_id, (Kind.NOT_ANALYSED.value,))
    at = _predecessor(connection, job_id)
    while at is not None:
        earlier = _reached(connection, at, ("SR", Kind.NOT_ANALYSED.value, Kind.RETRACTED_REPORT.value))
        if earlier:
            return earlier + found
        at = _predecessor(connection, at)
    return found


def _predecessor(connection: Connection, job_id: int) -> int | None:
    found: int | None = connection.execute(sa.select(_job.c.predecessor_id).where(_job.c.id == job_id)).scalar_one()
    return found


def _reached(connection: Connection, job_id: int, kinds: Sequence[str]) -> list[ResultView]:
    query = (
        sa.select(_result.c.sop_instance_uid)
        .join(_delivery, _delivery.c.result_id == _result.c.id)
        .where(
            _result.c.job_id == job_id,
            _result.c.kind.in_(kinds),
            _delivery.c.state.in_([state.value for state in REACHED]),
        )
    )
    sent = set(connection.execute(query).scalars())
    return [view for view in views.results(connection, job_id) if view.sop_instance_uid in sent] if sent else []
