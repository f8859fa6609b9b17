"""What a job orders of its child process, read from the stations: the same for its first run and for a replay."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pacs_ai.infer.order import Order, Reported
from pacs_ai.profiles import encodings
from pacs_ai.store import queue, replacing
from pacs_ai.store.schema import Role

if TYPE_CHECKING:
    from pathlib import Path

    from pacs_ai.config import Config
    from pacs_ai.store.database import Connection
    from pacs_ai.store.files import Files
    from pacs_ai.store.queue import Claim


def order_of(connection: Connection, files: Files, config: Config, held: Claim, output: Path) -> Order:
    """Return the order of a job.

    Parameters
    ----------
    held
        The job; whether the claim still stands is not asked.
    output
        Folder for the encoded objects.
    """
    inputs: dict[str, list[tuple[Path, str]]] = {}
    current: dict[str, Path] = {}
    sources = queue.source_files(connection, held.job_id)
    for source in sources:
        if source.role is Role.CURRENT:
            current[source.sop_instance_uid] = files.path(source.sha256)
            inputs.setdefault(source.input, []).append((files.path(source.sha256), source.sha256))
    unverified = [
        (current[source.sop_instance_uid], files.path(source.sha256))
        for source in sources
        if source.role is Role.UNVERIFIED and source.sop_instance_uid in current
    ]
    plans = queue.plans(connection, held.job_id)
    reports = replacing.delivered_reports(connection, held.job_id)
    return Order(
        job_id=held.job_id,
        job_key=held.job_key,
        generation=held.generation,
        created_at=held.created_at,
        pipeline=held.pipeline,
        model_digest=held.model_digest,
        settings_digest=held.settings_digest,
        inputs={name: tuple(paths) for name, paths in inputs.items()},
        unverified=tuple(unverified),
        predecessors=tuple(
            Reported(r.study_instance_uid, r.series_instance_uid, r.sop_class_uid, r.sop_instance_uid) for r in reports
        ),
        encodings=encodings((*plans, *config.plans_of(held.pipeline))),
        node_name=config.node.name,
        output=output,
    )
