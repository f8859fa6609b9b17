"""Which images a job is for: those that were current when it was enqueued, and no others."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy import Connection

from pacs_ai.dicom.identifiers import digest
from pacs_ai.store import schema
from pacs_ai.store.schema import Role

_instance, _source = schema.instance, schema.job_source


def series_digest(connection: Connection, series_id: int, revision: int) -> str:
    """Return the digest of a series revision: every current SOP Instance UID with its SHA-256."""
    rows = connection.execute(
        sa.select(_instance.c.sop_instance_uid, _instance.c.sha256)
        .where(
            _instance.c.series_id == series_id,
            _instance.c.revision <= revision,
            _instance.c.role == Role.CURRENT.value,
        )
        .order_by(_instance.c.sop_instance_uid)
    )
    return digest([list(row) for row in rows])


def are_others(connection: Connection, job_id: int) -> bool:
    """Tell whether the images that a job is for are others by now: content took another's place, or left the series.

    Analysed under the same job key, and so the same UIDs, they would give another result.
    """
    query = sa.select(_source).where(_source.c.job_id == job_id)
    return any(
        series_digest(connection, row.series_id, row.revision) != row.digest for row in connection.execute(query).all()
    )
