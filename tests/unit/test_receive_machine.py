"""The acceptor's state table is that of PS3.8 9.2.3, cell by cell; pynetdicom's transcription of it is laid beside."""

from __future__ import annotations

from itertools import product

import pytest
from pynetdicom.fsm import ACTIONS, TRANSITION_TABLE

from pacs_ai.receive.machine import NEXT, TABLE, Action, Event, IllegalEvent, State, step

#: States that only a requestor comes to: awaiting the transport, an answer, a release response, and collisions.
REQUESTOR_STATES = {"Sta4", "Sta5", "Sta7", "Sta9", "Sta10", "Sta11", "Sta12"}
#: Events of a requestor: asking for an association, its transport being there, asking for the release.
REQUESTOR_EVENTS = {"Evt1", "Evt2", "Evt11"}


def test_every_state_and_event_of_the_standard_is_here_or_a_requestors():
    assert {state.value for state in State} | REQUESTOR_STATES == {f"Sta{number}" for number in range(1, 14)}
    assert {event.value for event in Event} | REQUESTOR_EVENTS == {f"Evt{number}" for number in range(1, 20)}
    assert {action.value for action in Action} == {action.value for action in TABLE.values()}


@pytest.mark.parametrize(("state", "event"), list(product(State, Event)), ids=lambda part: part.value)
def test_each_cell_is_that_of_the_standard(state: State, event: Event):
    expected = TRANSITION_TABLE.get((event.value, state.value))
    if expected is None:
        with pytest.raises(IllegalEvent):
            step(state, event)
        return
    action, after = step(state, event)
    assert action.value == expected
    following = ACTIONS[expected][2]
    assert after.value in following if isinstance(following, tuple) else after.value == following


def test_no_event_of_a_requestor_can_reach_an_acceptors_state():
    for (event, state), action in TRANSITION_TABLE.items():
        if state in {each.value for each in State} and event in REQUESTOR_EVENTS:
            # asking for an association leads out of the acceptor's part of the table; the node never asks for a release
            assert (event, state, action) in {("Evt1", "Sta1", "AE-1"), ("Evt11", "Sta6", "AR-1")}


def test_what_a_peer_may_send_is_answered_in_every_state_of_an_open_connection():
    from_peer = [event for event in Event if event.name.endswith("_PDU") or event is Event.CLOSED]
    for state, event in product(set(State) - {State.IDLE}, from_peer):
        assert (state, event) in TABLE
    assert set(NEXT) == set(Action)
