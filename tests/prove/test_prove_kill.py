"""A small share of `make prove`: the node killed, at random and at each call, and checked by who does not know it."""

from __future__ import annotations

from prove import kill, late, points


def test_killed_at_random_instants_it_keeps_what_it_acknowledged(tmp_path):
    outcome = kill.run(tmp_path, 15, 1, 100.0, twin=False)
    assert outcome.violations == []
    assert outcome.figures["acknowledged"] > 0


def test_killed_at_some_calls_the_story_ends_as_without_a_kill(tmp_path):
    outcome = points.run(tmp_path, 1, 100.0, most=5)
    assert outcome.violations == []
    assert outcome.done > 0


def test_killed_while_it_recovers_what_was_written_ahead_the_story_ends_as_without_a_kill(tmp_path):
    outcome = points.run(tmp_path, 1, 100.0, story=points.tell_recovery, most=4)
    assert outcome.violations == []
    assert outcome.done == 4


def test_QUE_02_a_worker_frozen_past_its_lease_wakes_and_writes_nothing(tmp_path):
    outcome = points.frozen(tmp_path, 1)
    assert outcome.violations == []


def test_QUE_05_a_series_is_not_complete_without_what_a_killed_receive_process_had_answered(tmp_path):
    outcome = late.run(tmp_path, 1, 100.0, stories=1)
    assert outcome.violations == []
    assert outcome.done == 1
