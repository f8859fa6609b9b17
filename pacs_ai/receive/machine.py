"""The life of a connection on the listening side: the state table of PS3.8 9.2 as far as an acceptor can come.

Nothing else changes the state of a connection. What an acceptor never does (connect, request an association, request
a release) has no row and no column here; every other cell is the Standard's (Table 9-10), and a test holds it so.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


class State(Enum):
    """Where a connection stands, by its number in PS3.8 Tables 9-1 to 9-5."""

    IDLE = "Sta1"  #: no connection
    AWAITING_REQUEST = "Sta2"  #: open, no whole A-ASSOCIATE-RQ yet
    DECIDING = "Sta3"  #: the request is here and not answered
    ESTABLISHED = "Sta6"  #: an association
    RELEASING = "Sta8"  #: the peer asked for the release
    ENDING = "Sta13"  #: the last PDU is sent; the peer is to close


class Event(Enum):
    """What can happen to a connection, by its number in PS3.8 Table 9-10."""

    ACCEPTANCE_PDU = "Evt3"
    REJECTION_PDU = "Evt4"
    OPENED = "Evt5"
    REQUEST_PDU = "Evt6"
    ACCEPT = "Evt7"
    REJECT = "Evt8"
    SEND_DATA = "Evt9"
    DATA_PDU = "Evt10"
    RELEASE_REQUEST_PDU = "Evt12"
    RELEASE_RESPONSE_PDU = "Evt13"
    RELEASE = "Evt14"
    ABORT = "Evt15"
    ABORT_PDU = "Evt16"
    CLOSED = "Evt17"
    TIME_UP = "Evt18"
    NO_PDU = "Evt19"


class Action(Enum):
    """What is done about it, by its number in PS3.8 Tables 9-6 to 9-9."""

    AWAIT_REQUEST = "AE-5"
    DECIDE = "AE-6"
    SEND_ACCEPTANCE = "AE-7"
    SEND_REJECTION = "AE-8"
    SEND_DATA = "DT-1"
    TAKE_DATA = "DT-2"
    TAKE_RELEASE = "AR-2"
    ANSWER_RELEASE = "AR-4"
    STOP_WAITING = "AR-5"
    SEND_DATA_AMID_RELEASE = "AR-7"
    ABORT = "AA-1"
    CLOSE = "AA-2"
    TAKE_ABORT = "AA-3"
    TAKE_LOSS = "AA-4"
    FORGET = "AA-5"
    IGNORE = "AA-6"
    ABORT_AGAIN = "AA-7"
    ABORT_AND_TELL = "AA-8"


#: The state that follows an action (PS3.8 Tables 9-6 to 9-9).
NEXT: Mapping[Action, State] = {
    Action.AWAIT_REQUEST: State.AWAITING_REQUEST,
    Action.DECIDE: State.DECIDING,
    Action.SEND_ACCEPTANCE: State.ESTABLISHED,
    Action.SEND_REJECTION: State.ENDING,
    Action.SEND_DATA: State.ESTABLISHED,
    Action.TAKE_DATA: State.ESTABLISHED,
    Action.TAKE_RELEASE: State.RELEASING,
    Action.ANSWER_RELEASE: State.ENDING,
    Action.STOP_WAITING: State.IDLE,
    Action.SEND_DATA_AMID_RELEASE: State.RELEASING,
    Action.ABORT: State.ENDING,
    Action.CLOSE: State.IDLE,
    Action.TAKE_ABORT: State.IDLE,
    Action.TAKE_LOSS: State.IDLE,
    Action.FORGET: State.IDLE,
    Action.IGNORE: State.ENDING,
    Action.ABORT_AGAIN: State.ENDING,
    Action.ABORT_AND_TELL: State.ENDING,
}

_S, _E, _A = State, Event, Action
TABLE: Mapping[tuple[State, Event], Action] = {
    (_S.IDLE, _E.OPENED): _A.AWAIT_REQUEST,
    (_S.AWAITING_REQUEST, _E.REQUEST_PDU): _A.DECIDE,
    (_S.AWAITING_REQUEST, _E.ACCEPTANCE_PDU): _A.ABORT,
    (_S.AWAITING_REQUEST, _E.REJECTION_PDU): _A.ABORT,
    (_S.AWAITING_REQUEST, _E.DATA_PDU): _A.ABORT,
    (_S.AWAITING_REQUEST, _E.RELEASE_REQUEST_PDU): _A.ABORT,
    (_S.AWAITING_REQUEST, _E.RELEASE_RESPONSE_PDU): _A.ABORT,
    (_S.AWAITING_REQUEST, _E.ABORT_PDU): _A.CLOSE,
    (_S.AWAITING_REQUEST, _E.CLOSED): _A.FORGET,
    (_S.AWAITING_REQUEST, _E.TIME_UP): _A.CLOSE,
    (_S.AWAITING_REQUEST, _E.NO_PDU): _A.ABORT,
    (_S.DECIDING, _E.ACCEPT): _A.SEND_ACCEPTANCE,
    (_S.DECIDING, _E.REJECT): _A.SEND_REJECTION,
    (_S.DECIDING, _E.ABORT): _A.ABORT,
    (_S.DECIDING, _E.REQUEST_PDU): _A.ABORT_AND_TELL,
    (_S.DECIDING, _E.ACCEPTANCE_PDU): _A.ABORT_AND_TELL,
    (_S.DECIDING, _E.REJECTION_PDU): _A.ABORT_AND_TELL,
    (_S.DECIDING, _E.DATA_PDU): _A.ABORT_AND_TELL,
    (_S.DECIDING, _E.RELEASE_REQUEST_PDU): _A.ABORT_AND_TELL,
    (_S.DECIDING, _E.RELEASE_RESPONSE_PDU): _A.ABORT_AND_TELL,
    (_S.DECIDING, _E.ABORT_PDU): _A.TAKE_ABORT,
    (_S.DECIDING, _E.CLOSED): _A.TAKE_LOSS,
    (_S.DECIDING, _E.NO_PDU): _A.ABORT_AND_TELL,
    (_S.ESTABLISHED, _E.SEND_DATA): _A.SEND_DATA,
    (_S.ESTABLISHED, _E.DATA_PDU): _A.TAKE_DATA,
    (_S.ESTABLISHED, _E.RELEASE_REQUEST_PDU): _A.TAKE_RELEASE,
    (_S.ESTABLISHED, _E.ABORT): _A.ABORT,
    (_S.ESTABLISHED, _E.REQUEST_PDU): _A.ABORT_AND_TELL,
    (_S.ESTABLISHED, _E.ACCEPTANCE_PDU): _A.ABORT_AND_TELL,
    (_S.ESTABLISHED, _E.REJECTION_PDU): _A.ABORT_AND_TELL,
    (_S.ESTABLISHED, _E.RELEASE_RESPONSE_PDU): _A.ABORT_AND_TELL,
    (_S.ESTABLISHED, _E.ABORT_PDU): _A.TAKE_ABORT,
    (_S.ESTABLISHED, _E.CLOSED): _A.TAKE_LOSS,
    (_S.ESTABLISHED, _E.NO_PDU): _A.ABORT_AND_TELL,
    (_S.RELEASING, _E.SEND_DATA): _A.SEND_DATA_AMID_RELEASE,
    (_S.RELEASING, _E.RELEASE): _A.ANSWER_RELEASE,
    (_S.RELEASING, _E.ABORT): _A.ABORT,
    (_S.RELEASING, _E.REQUEST_PDU): _A.ABORT_AND_TELL,
    (_S.RELEASING, _E.ACCEPTANCE_PDU): _A.ABORT_AND_TELL,
    (_S.RELEASING, _E.REJECTION_PDU): _A.ABORT_AND_TELL,
    (_S.RELEASING, _E.DATA_PDU): _A.ABORT_AND_TELL,
    (_S.RELEASING, _E.RELEASE_REQUEST_PDU): _A.ABORT_AND_TELL,
    (_S.RELEASING, _E.RELEASE_RESPONSE_PDU): _A.ABORT_AND_TELL,
    (_S.RELEASING, _E.ABORT_PDU): _A.TAKE_ABORT,
    (_S.RELEASING, _E.CLOSED): _A.TAKE_LOSS,
    (_S.RELEASING, _E.NO_PDU): _A.ABORT_AND_TELL,
    (_S.ENDING, _E.REQUEST_PDU): _A.ABORT_AGAIN,
    (_S.ENDING, _E.ACCEPTANCE_PDU): _A.IGNORE,
    (_S.ENDING, _E.REJECTION_PDU): _A.IGNORE,
    (_S.ENDING, _E.DATA_PDU): _A.IGNORE,
    (_S.ENDING, _E.RELEASE_REQUEST_PDU): _A.IGNORE,
    (_S.ENDING, _E.RELEASE_RESPONSE_PDU): _A.IGNORE,
    (_S.ENDING, _E.ABORT_PDU): _A.CLOSE,
    (_S.ENDING, _E.CLOSED): _A.STOP_WAITING,
    (_S.ENDING, _E.TIME_UP): _A.CLOSE,
    (_S.ENDING, _E.NO_PDU): _A.ABORT_AGAIN,
}


class IllegalEvent(Exception):  # noqa: N818 - a fault of the program, not of a peer
    """The table has no such cell."""


def step(state: State, event: Event) -> tuple[Action, State]:
    """Return what is done about an event, and the state that follows; IllegalEvent where the table has no such cell."""
    action = TABLE.get((state, event))
    if action is None:
        raise IllegalEvent(f"{event.name} in {state.name}")
    return action, NEXT[action]
