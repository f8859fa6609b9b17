"""What each destination gets of a job: the outbox is filled by the destination's plan, which falls back.

A plan only ever moves forward: each fallback uses one `otherwise` of it up, so a chain of refusals ends.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy import Connection, Row

from pacs_ai import profiles
from pacs_ai.profiles import Kind
from pacs_ai.states import DeliveryEvent, DeliveryState, JobState
from pacs_ai.store import journal, schema
from pacs_ai.store.clock import now
from pacs_ai.store.moves import move

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from pacs_ai.profiles import Encoding, Plan
    from pacs_ai.store.database import Database

_job, _destination, _result, _delivery = schema.job, schema.job_destination, schema.result, schema.delivery
_OPEN = tuple(
    state.value for state in (DeliveryState.WAITING, DeliveryState.SENDING, DeliveryState.HELD, DeliveryState.FAILED)
)


@dataclass(frozen=True)
class NewResult:
    """One encoded object whose file is durable."""

    kind: str
    encoding: str
    study_instance_uid: str
    series_instance_uid: str
    sop_instance_uid: str
    sop_class_uid: str
    transfer_syntax_uid: str
    sha256: str
    size: int


def insert_results(connection: Connection, job_id: int, results: Iterable[NewResult]) -> list[int]:
    """Insert objects after those that the job has; returns their ids."""
    last = sa.select(sa.func.coalesce(sa.func.max(_result.c.ordinal), -1)).where(_result.c.job_id == job_id)
    first, at = connection.execute(last).scalar_one() + 1, now()
    return [
        connection.execute(
            sa.insert(_result)
            .values(job_id=job_id, ordinal=ordinal, created_at=at, **vars(new))
            .returning(_result.c.id)
        ).scalar_one()
        for ordinal, new in enumerate(results, start=first)
    ]


def fill_outbox(connection: Connection, database: Database, job_id: int) -> None:
    """Insert the deliveries of a done job that are not there yet: to each destination the results of its plan."""
    query = sa.select(_destination).where(_destination.c.job_id == job_id).order_by(_destination.c.peer)
    for target in connection.execute(query).all():
        _fill(connection, database, target, profiles.from_json(target.plan))


def _fill(
    connection: Connection, database: Database, target: Row[Any], plan: Plan, reached: Reached | None = None
) -> None:
    places = _places(plan)
    results = connection.execute(
        sa.select(_result.c.id, _result.c.encoding).where(_result.c.job_id == target.job_id).order_by(_result.c.ordinal)
    ).all()
    wanted = {row.id: places[row.encoding] for row in results if row.encoding in places}
    insert_deliveries(connection, database, target, wanted, reached)
    _note_what_lacks(connection, target, plan)


def _places(plan: Plan) -> dict[str, int]:
    """Return the place of each object: the plan's order, but segmentations before what may cite them."""
    ordered = sorted(plan, key=lambda choice: choice.encoding.kind is not Kind.SEGMENTATION)
    return {choice.encoding.key: place for place, choice in enumerate(ordered)}


def insert_deliveries(
    connection: Connection,
    database: Database,
    target: Row[Any],
    places: Mapping[int, int],
    reached: Reached | None = None,
) -> None:
    """Insert deliveries to one destination of a job (a row of job_destination) that are not there yet.

    Parameters
    ----------
    places
        Id of each result -> its place among the job's deliveries to that destination.
    reached
        Where the peer is reached now; None: where it was when the job was made.
    """
    ae_title, host, port = reached or (target.ae_title, target.host, target.port)
    connection.execute(
        database.insert_new(schema.destination),
        {
            "peer": target.peer,
            "owner": "",
            "fence": 0,
            "beat": 0,
            "failures": 0,
            "next_try_at": now(),
            "reason": "",
        },
    )
    for result_id, place in places.items():
        row = connection.execute(
            database.insert_new(_delivery).returning(_delivery.c.id),
            {
                "result_id": result_id,
                "job_id": target.job_id,
                "peer": target.peer,
                "place": place,
                "ae_title": ae_title,
                "host": host,
                "port": port,
                "state": DeliveryState.WAITING.value,
                "reason": "waiting to be sent",
                "doubtful": False,
                "attempts": 0,
                "due_at": now(),
                "waited_seconds": 0.0,
                "asks": 0,
                "losses": 0,
                "comment": "",
                "created_at": now(),
            },
        ).scalar_one_or_none()
        if row is not None:
            journal.append(connection, "delivery", row, "enqueued", after=DeliveryState.WAITING)


def _note_what_lacks(connection: Connection, target: Row[Any], plan: Plan) -> None:
    """Say which objects of the plan were never encoded: the job is older than what asks for them."""
    encoded = connection.execute(sa.select(_job.c.encoded).where(_job.c.id == target.job_id)).scalar_one()
    missing = [choice.encoding for choice in plan if choice.encoding.key not in encoded]
    words = ""
    if missing:
        names = ", ".join(name_of(one) for one in missing)
        words = f"{target.peer} lacks {names}: the job was done before it was asked for; pacs-ai retry {target.job_id}"
    if words != target.lacking:
        connection.execute(
            sa.update(_destination)
            .where(_destination.c.job_id == target.job_id, _destination.c.peer == target.peer)
            .values(lacking=words)
        )
        if words:
            state = JobState.DONE.value
            journal.append(connection, "job", target.job_id, "lacking", before=state, after=state, reason=words)


def name_of(encoding: Encoding) -> str:
    """Return what people call an encoding: binary SEG, comprehensive SR, picture."""
    return f"{encoding.form} {encoding.label}"


# -- fallbacks


#: AE title, host and port of a peer.
Reached = tuple[str, str, int]


@dataclass(frozen=True)
class Refused:
    """A delivery that a destination does not accept in this form."""

    delivery_id: int
    job_id: int
    peer: str
    encoding: str
    words: str


def fall_back(connection: Connection, database: Database, refused: Refused, *, actor: str) -> Encoding | None:
    """Send by the plan what comes in place of a refused object; None, and nothing is changed, where nothing does.

    In this transaction the plan moves on, the refused delivery ends and so do those of what cites it, and what the new
    plan has beyond them waits to be sent.
    """
    of_job = sa.and_(_destination.c.job_id == refused.job_id, _destination.c.peer == refused.peer)
    target = connection.execute(sa.select(_destination).where(of_job).with_for_update()).one()
    plan = profiles.from_json(target.plan)
    fallen = _fallen(connection, refused, plan)
    if fallen is None:
        return None
    place = profiles.keys(plan).index(refused.encoding)
    instead = fallen[place].encoding
    address = sa.select(_delivery.c.ae_title, _delivery.c.host, _delivery.c.port)
    reached = connection.execute(address.where(_delivery.c.id == refused.delivery_id)).one()
    connection.execute(sa.update(_destination).where(of_job).values(plan=profiles.to_json(fallen)))
    _end_replaced(connection, refused, profiles.keys(plan), profiles.keys(fallen), name_of(instead), actor)
    _fill(connection, database, target, fallen, (reached.ae_title, reached.host, reached.port))
    return instead


def _fallen(connection: Connection, refused: Refused, plan: Plan) -> Plan | None:
    """Return the plan after the refusal, past fallbacks of which the job made no object; None where none is left."""
    query = sa.select(_result.c.encoding).where(_result.c.job_id == refused.job_id)
    made = set(connection.execute(query).scalars())
    encoded = connection.execute(sa.select(_job.c.encoded).where(_job.c.id == refused.job_id)).scalar_one()
    if refused.encoding not in profiles.keys(plan):
        return None
    place = profiles.keys(plan).index(refused.encoding)
    fallen = profiles.fall_back(plan, refused.encoding)
    while fallen is not None:
        key = profiles.keys(fallen)[place]
        if key in made or key not in encoded:
            return fallen
        fallen = profiles.fall_back(fallen, key)
    return None


def _end_replaced(
    connection: Connection, refused: Refused, before: Sequence[str], after: Sequence[str], instead: str, actor: str
) -> None:
    """End the open deliveries of what is no longer in the plan."""
    gone = set(before) - set(after)
    query = (
        sa.select(_delivery.c.id, _result.c.encoding)
        .join(_result, _result.c.id == _delivery.c.result_id)
        .where(
            _delivery.c.job_id == refused.job_id,
            _delivery.c.peer == refused.peer,
            _delivery.c.state.in_(_OPEN),
            _result.c.encoding.in_(gone),
        )
        .order_by(_delivery.c.id)
        .with_for_update(of=_delivery)
    )
    for row in connection.execute(query).all():
        words = f"it cites what is not accepted; sent anew, citing the {instead}"
        if row.encoding == refused.encoding:
            words = f"not accepted; sent as {instead} instead ({refused.words})"
        move(connection, row.id, DeliveryEvent.REPLACED, actor=actor, reason=words)
