"""The lives of a series, a job and a delivery: three tables, (state, event) -> state, and one function that moves.

Nothing else changes a state: `pacs_ai.store.moves.move` asks `next_state` and writes the journal row in the same
transaction.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


class SeriesState(StrEnum):
    """What is known of a received series."""

    RECEIVING = "receiving"  #: instances are arriving
    COMPLETE = "complete"  #: quiet, and a route wants it
    REOPENED = "reopened"  #: an instance came after it was complete; a new revision is being received
    UNROUTED = "unrouted"  #: quiet, and no route wants it
    CONFLICT = "conflict"  #: two contents under one SOP Instance UID; a person decides


class JobState(StrEnum):
    """Where one pipeline's work on one set of series revisions stands."""

    QUEUED = "queued"  #: waiting for a worker, or for its due time
    RUNNING = "running"  #: claimed by a worker
    DONE = "done"  #: results are in the outbox
    REFUSED = "refused"  #: the input cannot be analysed; the reason says why
    FAILED = "failed"  #: given up; the reason says why
    WITHHELD = "withheld"  #: held back by a conflict or a paused pipeline
    CANCELLED = "cancelled"  #: by an operator
    SUPERSEDED = "superseded"  #: a newer revision of its series was processed instead
    RETRACTED = "retracted"  #: its results were withdrawn by an operator


class DeliveryState(StrEnum):
    """Where one result's way to one destination stands."""

    WAITING = "waiting"  #: for its due time
    SENDING = "sending"  #: claimed by a courier
    SENT = "sent"  #: the peer answered Success or Warning
    CONFIRMED = "confirmed"  #: the peer committed to keep it (storage commitment), or shows it in a query
    HELD = "held"  #: not sent: the peer has the study under another patient; a person decides
    FAILED = "failed"  #: refused for good, or not delivered within the time limit
    CANCELLED = "cancelled"  #: by an operator, superseded before it was sent, or another form is sent instead
    RETRACTED = "retracted"  #: the peer has it or may have it, and is told that it is withdrawn


class SeriesEvent(StrEnum):
    """What can happen to a series."""

    QUIET = "quiet"
    NO_ROUTE = "no_route"
    LATE_INSTANCE = "late_instance"
    DIFFERING_INSTANCE = "differing_instance"
    RESOLVED = "resolved"


class JobEvent(StrEnum):
    """What can happen to a job."""

    CLAIMED = "claimed"
    FINISHED = "finished"
    REFUSED = "refused"
    FAILED = "failed"
    POSTPONED = "postponed"
    LOST = "lost"
    WITHHELD = "withheld"
    RELEASED = "released"
    CANCELLED = "cancelled"
    SUPERSEDED = "superseded"
    RETRIED = "retried"
    RETRACTED = "retracted"


class DeliveryEvent(StrEnum):
    """What can happen to a delivery."""

    CLAIMED = "claimed"
    ACCEPTED = "accepted"
    CONFIRMED = "confirmed"
    MISSED = "missed"
    HELD = "held"
    POSTPONED = "postponed"
    LOST = "lost"
    FAILED = "failed"
    CANCELLED = "cancelled"
    REPLACED = "replaced"
    RETRIED = "retried"
    RETRACTED = "retracted"


State = SeriesState | JobState | DeliveryState
Event = SeriesEvent | JobEvent | DeliveryEvent

_S, _SE = SeriesState, SeriesEvent
SERIES: Mapping[tuple[SeriesState, SeriesEvent], SeriesState] = {
    (_S.RECEIVING, _SE.QUIET): _S.COMPLETE,
    (_S.RECEIVING, _SE.NO_ROUTE): _S.UNROUTED,
    (_S.RECEIVING, _SE.DIFFERING_INSTANCE): _S.CONFLICT,
    (_S.COMPLETE, _SE.LATE_INSTANCE): _S.REOPENED,
    (_S.COMPLETE, _SE.NO_ROUTE): _S.UNROUTED,
    (_S.COMPLETE, _SE.DIFFERING_INSTANCE): _S.CONFLICT,
    (_S.REOPENED, _SE.QUIET): _S.COMPLETE,
    (_S.REOPENED, _SE.NO_ROUTE): _S.UNROUTED,
    (_S.REOPENED, _SE.DIFFERING_INSTANCE): _S.CONFLICT,
    (_S.UNROUTED, _SE.QUIET): _S.COMPLETE,
    (_S.UNROUTED, _SE.LATE_INSTANCE): _S.REOPENED,
    (_S.UNROUTED, _SE.DIFFERING_INSTANCE): _S.CONFLICT,
    (_S.CONFLICT, _SE.RESOLVED): _S.REOPENED,
}

_J, _JE = JobState, JobEvent
JOB: Mapping[tuple[JobState, JobEvent], JobState] = {
    (_J.QUEUED, _JE.CLAIMED): _J.RUNNING,
    (_J.QUEUED, _JE.REFUSED): _J.REFUSED,
    (_J.QUEUED, _JE.WITHHELD): _J.WITHHELD,
    (_J.QUEUED, _JE.CANCELLED): _J.CANCELLED,
    (_J.QUEUED, _JE.SUPERSEDED): _J.SUPERSEDED,
    (_J.RUNNING, _JE.FINISHED): _J.DONE,
    (_J.RUNNING, _JE.REFUSED): _J.REFUSED,
    (_J.RUNNING, _JE.FAILED): _J.FAILED,
    (_J.RUNNING, _JE.POSTPONED): _J.QUEUED,
    (_J.RUNNING, _JE.LOST): _J.QUEUED,
    (_J.RUNNING, _JE.WITHHELD): _J.WITHHELD,
    (_J.RUNNING, _JE.CANCELLED): _J.CANCELLED,
    (_J.RUNNING, _JE.SUPERSEDED): _J.SUPERSEDED,
    (_J.WITHHELD, _JE.RELEASED): _J.QUEUED,
    (_J.WITHHELD, _JE.CANCELLED): _J.CANCELLED,
    (_J.WITHHELD, _JE.SUPERSEDED): _J.SUPERSEDED,
    (_J.DONE, _JE.SUPERSEDED): _J.SUPERSEDED,
    (_J.DONE, _JE.RETRACTED): _J.RETRACTED,
    (_J.SUPERSEDED, _JE.RETRACTED): _J.RETRACTED,
    (_J.REFUSED, _JE.SUPERSEDED): _J.SUPERSEDED,
    (_J.REFUSED, _JE.RETRIED): _J.QUEUED,
    (_J.FAILED, _JE.SUPERSEDED): _J.SUPERSEDED,
    (_J.FAILED, _JE.RETRIED): _J.QUEUED,
    (_J.FAILED, _JE.CANCELLED): _J.CANCELLED,
    (_J.CANCELLED, _JE.SUPERSEDED): _J.SUPERSEDED,
    (_J.CANCELLED, _JE.RETRIED): _J.QUEUED,
}

_D, _DE = DeliveryState, DeliveryEvent
DELIVERY: Mapping[tuple[DeliveryState, DeliveryEvent], DeliveryState] = {
    (_D.WAITING, _DE.CLAIMED): _D.SENDING,
    (_D.WAITING, _DE.FAILED): _D.FAILED,
    (_D.WAITING, _DE.CANCELLED): _D.CANCELLED,
    (_D.SENDING, _DE.ACCEPTED): _D.SENT,
    (_D.SENDING, _DE.POSTPONED): _D.WAITING,
    (_D.SENDING, _DE.LOST): _D.WAITING,
    (_D.SENDING, _DE.FAILED): _D.FAILED,
    (_D.SENDING, _DE.CANCELLED): _D.CANCELLED,
    (_D.SENDING, _DE.HELD): _D.HELD,
    (_D.HELD, _DE.RETRIED): _D.WAITING,
    (_D.HELD, _DE.CANCELLED): _D.CANCELLED,
    (_D.HELD, _DE.REPLACED): _D.CANCELLED,
    (_D.HELD, _DE.RETRACTED): _D.RETRACTED,
    (_D.FAILED, _DE.RETRIED): _D.WAITING,
    (_D.FAILED, _DE.CANCELLED): _D.CANCELLED,
    (_D.CANCELLED, _DE.RETRIED): _D.WAITING,
    (_D.CANCELLED, _DE.ACCEPTED): _D.SENT,
    (_D.WAITING, _DE.REPLACED): _D.CANCELLED,
    (_D.SENDING, _DE.REPLACED): _D.CANCELLED,
    (_D.FAILED, _DE.REPLACED): _D.CANCELLED,
    (_D.SENT, _DE.CONFIRMED): _D.CONFIRMED,
    (_D.SENT, _DE.MISSED): _D.WAITING,
    (_D.SENT, _DE.FAILED): _D.FAILED,
    (_D.SENT, _DE.RETRACTED): _D.RETRACTED,
    (_D.CONFIRMED, _DE.RETRACTED): _D.RETRACTED,
    (_D.WAITING, _DE.RETRACTED): _D.RETRACTED,
    (_D.SENDING, _DE.RETRACTED): _D.RETRACTED,
    (_D.FAILED, _DE.RETRACTED): _D.RETRACTED,
    (_D.CANCELLED, _DE.RETRACTED): _D.RETRACTED,
}

#: Jobs in these states will not move by themselves.
FINAL_JOB_STATES = frozenset({_J.DONE, _J.REFUSED, _J.FAILED, _J.CANCELLED, _J.SUPERSEDED, _J.RETRACTED})

#: Deliveries in these states reached the peer, or may be about to.
REACHED = frozenset({_D.SENT, _D.CONFIRMED, _D.SENDING, _D.RETRACTED})


class IllegalMove(Exception):  # noqa: N818 - a fault of the program, not of its input
    """The tables have no such move."""


def next_state(state: State, event: Event) -> State:
    """Return the state after the event; IllegalMove where the tables have none."""
    after: State | None = None
    if isinstance(state, SeriesState) and isinstance(event, SeriesEvent):
        after = SERIES.get((state, event))
    elif isinstance(state, JobState) and isinstance(event, JobEvent):
        after = JOB.get((state, event))
    elif isinstance(state, DeliveryState) and isinstance(event, DeliveryEvent):
        after = DELIVERY.get((state, event))
    if after is None:
        raise IllegalMove(f"{type(state).__name__} {state} has no move for {event}")
    return after
