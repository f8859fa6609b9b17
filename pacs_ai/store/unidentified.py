"""Jobs that were enqueued while their pipeline was disabled: the router identifies them once they are tried again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import sqlalchemy as sa
from sqlalchemy import Connection

from pacs_ai.errors import Reason
from pacs_ai.states import JobEvent, JobState
from pacs_ai.store import schema
from pacs_ai.store.notices import end_unanalysed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pacs_ai.store.database import Database

_job = schema.job

#: Pipeline version of such a job; no worker claims it.
UNIDENTIFIED = ""


def waiting(connection: Connection) -> list[tuple[int, str]]:
    """Return the queued jobs that were enqueued while their pipeline was disabled, each with it, the oldest first."""
    query = sa.select(_job.c.id, _job.c.pipeline).where(
        _job.c.state == JobState.QUEUED.value, _job.c.pipeline_version == UNIDENTIFIED
    )
    return [(row.id, row.pipeline) for row in connection.execute(query.order_by(_job.c.id))]


def identify(
    database: Database, job_id: int, version: str, model_digest: str, settings_digest: str, card: Mapping[str, str]
) -> None:
    """Enter what an unidentified job's pipeline is now, so that it can be claimed."""
    with database.write() as connection:
        connection.execute(
            sa.update(_job)
            .where(_job.c.id == job_id, _job.c.pipeline_version == UNIDENTIFIED)
            .values(
                pipeline_version=version, model_digest=model_digest, settings_digest=settings_digest, card=dict(card)
            )
        )


def refuse(database: Database, job_id: int, reason: str, *, actor: str) -> None:
    """Refuse an unidentified job again: its pipeline is still disabled."""
    query = sa.select(_job.c.state).where(_job.c.id == job_id).with_for_update()
    with database.write() as connection:
        if connection.execute(query).scalar_one() == JobState.QUEUED:
            code = Reason.NO_PIPELINE.value
            end_unanalysed(connection, job_id, JobEvent.REFUSED, actor=actor, reason=reason, refused_for=code)
