"""A small share of `make prove`: the node killed, at random and at each call, and checked by who does not know it."""

from __future__ import annotations

import os
import re
import signal
import ssl
import threading
from types import SimpleNamespace

import pytest
from certificates import Authority

from prove import bench, bugs, kill, late, points, suite


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


LONG, STAYS = "I4 not done after 90 s: 6 series", "I4 series 1 with 4 images is receiving and has 0 jobs"
LOST = "I1 acknowledged, but 0 current rows in the index: 1.2.3"
OTHER = "I5 job 1 is running for ever: being analysed"


@pytest.mark.parametrize(
    ("looks", "told"),
    [
        ([[LONG], [LONG, STAYS], [LOST]], LOST),
        ([[LONG, LOST]], LOST),
        ([[LONG], [OTHER], [LOST]], LOST),
        ([[OTHER]] * 9, OTHER),
        ([[LONG]] * 9, "not looked for long enough"),
    ],
    ids=["further", "both", "another first", "another only", "no time"],
)
def test_a_bug_that_first_shows_otherwise_is_looked_for_further(tmp_path, monkeypatch, looks, told):
    clock, seeds = SimpleNamespace(now=0.0), []
    clock.monotonic = lambda: clock.now

    def look(_folder, seed, _bug, _seconds):
        clock.now += 20.0
        seeds.append(seed)
        return kill.Outcome("power", 60, done=4, violations=looks[len(seeds) - 1])

    monkeypatch.setattr(suite, "time", clock)
    monkeypatch.setitem(suite.FINDERS, "power", look)
    outcome = suite.find(tmp_path, "nofsync", 1, 180.0)
    assert outcome.told == [told]
    assert len(set(seeds)) == len(seeds) == len(looks)
    assert outcome.done == 4 * len(looks) < outcome.wanted
    assert bool(outcome.violations) == (told == OTHER)
    assert bool(outcome.figures) == (told in {LOST, OTHER})


def test_senders_that_break_are_a_failure(tmp_path):
    """They trust another authority than the node's: nothing would ever come by TLS."""
    made = bench.Bench(tmp_path)
    (tmp_path / "other").mkdir()
    own, other = made.certificates.context, Authority(tmp_path / "other")
    made.certificates.context = ssl.create_default_context(cafile=other.trusted)
    try:
        outcome = kill.run(tmp_path, 60, 1, 100.0, twin=False)  # until one comes as far as that
    finally:
        made.certificates.context = own
    assert [words for words in outcome.violations if "a peer broke: SSLCertVerificationError" in words]
    assert threading.active_count() < 20


def test_what_never_happened_is_a_failure():
    outcome = kill.Outcome("H1 kill -9", 2_000, done=kill.LONG_ENOUGH, figures={"acknowledged": 1, "by_tls": 0})
    assert kill.in_vain(outcome, "acknowledged", "by_tls") == ["nothing by_tls in 200 of H1 kill -9"]
    outcome.done -= 1
    assert kill.in_vain(outcome, "acknowledged", "by_tls") == []


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGTERM])
def test_a_node_that_ends_in_another_way_is_a_failure(tmp_path, number):
    made = bench.Bench(tmp_path)
    store, peers = made.new_store(), made.new_peers(1)
    victim = made.fork(store, peers)
    assert bench.port_of(victim)
    os.kill(victim.pid, number)
    assert victim.hear() is None
    with pytest.raises(bench.Stuck, match=f"ended with -{number}"):
        victim.end()
    peers.close()


def test_no_seeded_bug_is_found_by_a_mere_timeout():
    late_words = [
        "I4 not done after 10 s: 3 instances, 2 series, 1 jobs, 4 deliveries",
        "I4 2 series are not acknowledged",
        "I4 the node says nothing",
        "write 1 failing with EIO: 3 instances have no row though it was answered Success",
    ]
    assert [n for n, bug in bugs.BUGS.items() if any(re.search(bug.shows, words) for words in late_words)] == []


def test_a_bug_that_leaves_the_node_at_work_for_ever_is_found_by_what_its_store_says(tmp_path):
    outcome = suite.find(tmp_path, "claimlost", 1, 100.0)
    assert outcome.violations == []
    assert "is running for ever" in outcome.told[0]
