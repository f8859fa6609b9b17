"""An actor's loop: works while there is work, rests when there is none, outlives what passes, ends when asked."""

from __future__ import annotations

import threading

import pytest

from pacs_ai import loop
from pacs_ai.errors import PipelineFault, Unavailable


class Stop(threading.Event):
    """Counts how long it was waited for, and does not wait."""

    def __init__(self):
        super().__init__()
        self.waited = []

    def wait(self, timeout=None):
        self.waited.append(timeout)
        return self.is_set()


def run(*answers):
    """Run a loop whose steps answer so, errors raised; returns what happened."""
    stop, happened, left = Stop(), [], list(answers)

    def step():
        answer = left.pop(0)
        happened.append("step")
        if not left:
            stop.set()
        if isinstance(answer, Exception):
            raise answer
        return answer

    loop.run(step, lambda: happened.append("rest"), stop)
    return happened, stop.waited


def test_it_rests_only_where_nothing_was_done():
    assert run(True, True, False, True, False) == (["step", "step", "step", "rest", "step", "step"], [])


def test_what_passes_is_tried_again_after_growing_pauses():
    away = [Unavailable("away")] * 7
    happened, waited = run(*away, True, Unavailable("away again"), False)
    assert happened == ["step"] * 10
    assert waited == [0.2, 0.5, 1.0, 2.0, 5.0, 5.0, 5.0, 0.2]


def test_what_does_not_pass_ends_it():
    with pytest.raises(PipelineFault):
        run(PipelineFault("broken"), True)


def test_a_rest_that_fails_is_outlived_too():
    stop, rests = Stop(), []

    def rest():
        rests.append(1)
        if len(rests) == 3:
            stop.set()
        raise Unavailable("away")

    loop.run(lambda: False, rest, stop)
    assert len(rests) == 3
    assert stop.waited == [0.2, 0.5, 1.0]


def test_it_does_not_begin_where_it_was_asked_to_end():
    stop = Stop()
    stop.set()
    loop.run(lambda: pytest.fail("it began"), lambda: None, stop)
