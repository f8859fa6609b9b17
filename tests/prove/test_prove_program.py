"""The program around the harnesses: what was not done is not proved, and what does not end is a finding."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import pytest
from fuzz import watch

from prove import bugs, kill, program

TESTS = Path(__file__).resolve().parents[1]


def _result(name, done, wanted, **more):
    return program.Task(name, 1.0, lambda *_: None), 1, kill.Outcome(name, wanted, done, **more)


ENOUGH = [_result("kill", 500, 2_000), _result("bug x", 3, 60, figures={"after": 3}), _result("power", 0, 0)]


@pytest.mark.parametrize("is_night", [False, True])
@pytest.mark.parametrize(
    ("result", "words"),
    [
        (_result("late", 0, 1, told=["not begun: the time was over"]), "late (not begun)"),
        (_result("full", 0, 50), "full (did none of 50)"),
        (_result("kill", 499, 2_000), "kill (did 499 of 2,000, needs 500)"),
    ],
)
def test_a_harness_that_did_too_little_fails_the_proof(result, words, is_night):
    assert program.conclusion(ENOUGH, is_night=is_night, is_whole=True) == []
    why = program.conclusion([*ENOUGH, result], is_night=is_night, is_whole=True)
    assert why[0] == f"PROVED TOO LITTLE: {words}"
    assert "--limit" in why[1]
    assert program.conclusion([result], is_night=is_night, is_whole=False) == []
    assert program.verdict(result[0], result[2], is_night=is_night) == "TOO LITTLE"
    assert program.verdict(result[0], result[2], is_night=is_night, is_whole=False) == "time limit"


def test_by_day_a_bug_is_looked_for_to_the_end():
    result = _result("bug x", 59, 60, told=["not looked for long enough"])
    assert program.conclusion([result], is_night=False, is_whole=True)[0].startswith("PROVED TOO LITTLE: bug x")
    assert program.conclusion([result], is_night=True, is_whole=True) == []


def test_a_broken_promise_fails_whatever_was_asked_for():
    result = _result("kill", 1, 1, violations=["I1 lost"])
    assert program.conclusion([result], is_night=True, is_whole=False) == ["FAILED: kill"]


def test_a_proof_without_time_fails(monkeypatch, capsys):
    limits = []
    done = program.Task("frozen", 50.0, lambda *words: limits.append(words[2]) or kill.Outcome("frozen", 1, 1), 0.5)
    monkeypatch.setattr(program, "tasks", lambda _: [done])
    monkeypatch.setattr(sys, "argv", ["prove", "--limit", "100"])
    assert program.main("") == 0
    monkeypatch.setattr(sys, "argv", ["prove", "frozen", "--limit", "100"])
    assert program.main("") == 0
    assert limits == [pytest.approx(30.0), 50.0]  # whoever names it gives it all of its time
    monkeypatch.setattr(sys, "argv", ["prove", "--limit", "0.000001"])
    assert program.main("") == 1
    assert "PROVED TOO LITTLE: frozen (not begun)" in capsys.readouterr().out


def test_the_longest_begin_first_and_leave_room():
    tasks = program.tasks(program.BUILD)
    assert [task.name for task in tasks[:2]] == ["kill", "power"]
    assert all(task.part * task.seconds <= program.BUILD.seconds / 2 for task in tasks)


def test_who_waits_gets_a_part_of_the_time():
    """Without it what is slow would take all, and the last ones would never begin."""
    tasks = program.tasks(program.BUILD)
    left = 300.0
    while len(tasks) > 1:
        task = tasks.pop(0)
        if task.name not in {"kill", "power"}:
            seconds = program.share(task, tasks, left, 1)
            assert 0 < seconds < left
            left -= seconds
    assert program.share(tasks[0], [], left, 3) == left > 0


def test_harnesses_have_the_names_that_they_are_asked_for_by():
    names = {task.name: task.names for task in program.tasks(program.BUILD)}
    assert {name for name, own in names.items() if "fuzz" in own} == {"fuzz data-sets", "fuzz pdus", "fuzz sockets"}
    assert [name for name, own in names.items() if "ackfirst" in own] == ["bug ackfirst"]
    assert len([name for name, own in names.items() if "bugs" in own]) == len(bugs.BUGS)


def test_every_fuzz_module_is_run():
    assert {module for module, _ in program.FUZZERS.values()} == {
        path.name for path in TESTS.glob("rows/test_fuzz*.py")
    }


def test_a_case_that_does_not_end_is_told():
    """Also where what is tested catches every error, and goes on."""
    before = signal.getsignal(signal.SIGPROF)

    def hang():
        while True:
            try:
                json.loads("{")
            except Exception:  # noqa: BLE001 - as a server does
                continue

    with pytest.raises(watch.Hangs, match="this does not end: 0bad"), watch.under_watch("0bad", 0.2):
        hang()
    assert signal.getsignal(signal.SIGPROF) is before


FUZZ = """
import time
from fuzz.watch import Cases
def test_it():
    cases = Cases(1, 10)
    while cases.are_left:
        with cases.one({"data_set": "0bad"}):
            time.sleep(30 if %d else 0)
"""


@pytest.mark.parametrize("hangs", [True, False])
def test_a_fuzz_test_whose_time_is_over_within_one_case_is_a_finding(tmp_path, monkeypatch, hangs):
    monkeypatch.setattr(program, "TESTS", tmp_path / "tests")
    monkeypatch.setitem(program.FUZZERS, "made-up", ("test_fuzz_it.py", ""))
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    (tmp_path / "tests" / "rows").mkdir(parents=True)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = nightly\n")
    (tmp_path / "tests" / "rows" / "test_fuzz_it.py").write_text(FUZZ % hangs)
    outcome = program.fuzz(tmp_path, "made-up", 1, 1, 15.0, grace=2.0 if hangs else 60.0)
    assert outcome.wanted == 10
    assert outcome.done == (0 if hangs else 10)
    assert bool(outcome.violations) == hangs
    assert not hangs or "0bad" in outcome.violations[1]
