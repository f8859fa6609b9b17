"""When a series is complete: When a series is complete, rule by rule."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pacs_ai.route.completeness import Bringer, Waits, judge

WAITS = Waits(quiet=10.0, released=1.0, idle_association=60.0)


def open_for(idle_seconds):
    return Bringer(is_open=True, released=False, idle_seconds=idle_seconds)


def ended(ended_seconds=100.0, *, released=True):
    return Bringer(is_open=False, released=released, ended_seconds=ended_seconds)


def test_quiet_and_every_association_ended():
    verdict = judge(40, 10.0, [ended(), ended()], WAITS)
    assert verdict.complete
    assert verdict.reason == "quiet for 10 s after 2 association(s) ended"


def test_not_quiet_yet_says_when_to_look_again():
    verdict = judge(40, 7.5, [ended(), ended()], WAITS)
    assert not verdict.complete
    assert verdict.again_seconds == 2.5


def test_an_open_association_that_brought_some_holds_it_up():
    verdict = judge(40, 20.0, [open_for(20.0)], WAITS)
    assert not verdict.complete
    assert verdict.again_seconds == 40.0
    assert "1 association(s) that brought some of it are open" in verdict.reason


def test_an_open_association_that_brought_none_for_a_minute_does_not():
    verdict = judge(40, 60.0, [open_for(60.0), ended()], WAITS)
    assert verdict.complete
    assert verdict.reason == "quiet for 10 s; 1 open association(s) brought none of it for 60 s"


def test_of_several_open_associations_one_that_is_not_idle_is_enough():
    assert not judge(40, 59.0, [open_for(90.0), open_for(59.0)], WAITS).complete


def test_one_association_that_brought_it_all_and_released_waits_one_second():
    assert not judge(2, 0.4, [ended(0.4)], WAITS).complete
    verdict = judge(2, 1.0, [ended(1.0)], WAITS)
    assert verdict.complete
    assert verdict.reason == "one association brought all 2 instances and released; quiet for 1 s since"


def test_the_second_counts_from_the_release_not_from_the_last_instance():
    verdict = judge(300, 30.0, [ended(0.25)], WAITS)
    assert not verdict.complete
    assert verdict.again_seconds == 0.75


def test_an_aborted_association_waits_the_quiet_time():
    assert not judge(300, 9.9, [ended(9.9, released=False)], WAITS).complete
    assert judge(300, 10.0, [ended(10.0, released=False)], WAITS).complete


def test_a_single_instance_waits_the_quiet_time():
    assert not judge(1, 9.9, [ended(9.9)], WAITS).complete
    assert judge(1, 10.0, [ended(10.0)], WAITS).complete


def test_two_associations_wait_the_quiet_time_though_both_released():
    assert not judge(300, 9.9, [ended(9.9), ended(50.0)], WAITS).complete


def test_a_short_quiet_time_is_never_lengthened_by_the_wait_after_release():
    quick = Waits(quiet=0.5, released=1.0, idle_association=60.0)
    assert judge(2, 0.5, [ended(0.5)], quick).complete


@given(
    instances=st.integers(0, 5),
    quiet=st.floats(0, 200),
    bringers=st.lists(
        st.builds(Bringer, st.booleans(), st.booleans(), st.floats(0, 200), st.floats(0, 200)), max_size=4
    ),
)
def test_what_is_not_complete_will_be_when_it_is_looked_at_again_if_nothing_comes(instances, quiet, bringers):
    verdict = judge(instances, quiet, bringers, WAITS)
    assert verdict.reason
    for _ in range(3):
        if verdict.complete:
            return
        assert 0 < verdict.again_seconds <= WAITS.idle_association
        wait = verdict.again_seconds + 1e-6
        quiet += wait
        bringers = [Bringer(b.is_open, b.released, b.idle_seconds + wait, b.ended_seconds + wait) for b in bringers]
        verdict = judge(instances, quiet, bringers, WAITS)
    assert verdict.complete
