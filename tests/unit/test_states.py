"""Every pair of a state and an event is either a move of the tables or refused; nothing else changes a state."""

from __future__ import annotations

import itertools

import pytest

from pacs_ai.states import (
    DELIVERY,
    FINAL_JOB_STATES,
    JOB,
    SERIES,
    DeliveryEvent,
    DeliveryState,
    IllegalMove,
    JobEvent,
    JobState,
    SeriesEvent,
    SeriesState,
    next_state,
)

LIVES = [
    pytest.param(SeriesState, SeriesEvent, SERIES, SeriesState.RECEIVING, id="series"),
    pytest.param(JobState, JobEvent, JOB, JobState.QUEUED, id="job"),
    pytest.param(DeliveryState, DeliveryEvent, DELIVERY, DeliveryState.WAITING, id="delivery"),
]


@pytest.mark.parametrize(("states", "events", "table", "first"), LIVES)
def test_every_pair_is_a_move_or_refused(states, events, table, first):
    for state, event in itertools.product(states, events):
        if (state, event) in table:
            assert next_state(state, event) is table[state, event]
        else:
            with pytest.raises(IllegalMove, match=f"{state}.*{event}"):
                next_state(state, event)


@pytest.mark.parametrize(("states", "events", "table", "first"), LIVES)
def test_every_state_can_be_reached_and_every_event_happens(states, events, table, first):
    reached = {first}
    while further := {after for (state, _), after in table.items() if state in reached} - reached:
        reached |= further
    assert reached == set(states)
    assert {event for _, event in table} == set(events)


@pytest.mark.parametrize("state", SeriesState)
@pytest.mark.parametrize("event", [*JobEvent, *DeliveryEvent])
def test_an_event_of_another_life_is_refused(state, event):
    with pytest.raises(IllegalMove):
        next_state(state, event)


def test_a_cancelled_event_moves_each_subject_by_its_own_table():
    assert next_state(JobState.QUEUED, JobEvent.CANCELLED) is JobState.CANCELLED
    assert next_state(DeliveryState.WAITING, DeliveryEvent.CANCELLED) is DeliveryState.CANCELLED
    with pytest.raises(IllegalMove):
        next_state(JobState.QUEUED, DeliveryEvent.CANCELLED)


def test_final_jobs_move_only_by_a_person_or_a_newer_job():
    by_hand_or_newer = {JobEvent.RETRIED, JobEvent.SUPERSEDED, JobEvent.CANCELLED, JobEvent.RETRACTED}
    assert {event for state, event in JOB if state in FINAL_JOB_STATES} <= by_hand_or_newer
    for state in set(JobState) - FINAL_JOB_STATES:
        assert (state, JobEvent.CANCELLED) in JOB
        assert (state, JobEvent.SUPERSEDED) in JOB


def test_superseded_is_the_end_but_for_a_retraction():
    assert [event for state, event in JOB if state is JobState.SUPERSEDED] == [JobEvent.RETRACTED]


def test_retracted_is_the_end():
    assert not [pair for pair in JOB if pair[0] is JobState.RETRACTED]
    assert not [pair for pair in DELIVERY if pair[0] is DeliveryState.RETRACTED]
    assert {after for (_, event), after in DELIVERY.items() if event is DeliveryEvent.RETRACTED} == {
        DeliveryState.RETRACTED
    }
