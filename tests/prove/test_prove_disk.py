"""A small share of `make prove`: the power is cut, the disk fails."""

from __future__ import annotations

import pytest

from prove import errors, faults, points, power, suite


def test_what_was_acknowledged_survives_power_cuts(tmp_path):
    if why := power.missing():
        pytest.skip(why)
    outcome = power.run(tmp_path, 6, 1, 100.0)
    assert outcome.violations == []


def test_a_power_cut_after_a_rename_leaves_no_torn_file(tmp_path):
    if why := power.missing():
        pytest.skip(why)
    outcome = points.run(tmp_path, 1, 100.0, cut="random", only=("replace",), most=3)
    assert outcome.violations == []


def test_a_failing_disk_is_answered_out_of_resources(tmp_path):
    outcome = errors.run(tmp_path, 1, 100.0, rounds=1, at_random=3)
    assert outcome.violations == []
    assert outcome.figures["failures"] == outcome.done > outcome.wanted - 3


def test_a_node_that_aborts_instead_of_answering_out_of_resources_is_found(tmp_path):
    outcome = suite.find(tmp_path, "abortfull", 1, 100.0)
    assert outcome.violations == []
    assert outcome.told[0].endswith("not answered")


def test_a_failure_that_never_strikes_is_no_proof(tmp_path, monkeypatch):
    """A receiver that writes nothing ahead has no call of that name."""
    assert "sendfile" in faults.CALLS
    monkeypatch.setattr(errors, "_FAILURES", {"sendfile": ("ENOSPC",)})
    outcome = errors.run(tmp_path, 1, 100.0, rounds=1, at_random=0)
    assert outcome.violations == ["sendfile 1 failing with ENOSPC: it never struck, so nothing is proved"]


def test_STO_01_a_failing_disk_behind_the_answer_loses_nothing(tmp_path):
    outcome = errors.run(tmp_path, 1, 100.0, rounds=1, at_random=0, is_ahead=True)
    assert outcome.violations == []
    assert outcome.figures["behind"] >= 5


def test_a_full_disk_under_files_and_database_is_answered_out_of_resources(tmp_path):
    if why := power.missing():
        pytest.skip(why)
    outcome = errors.full(tmp_path, 1, 100.0, at=(1, 30, 90))
    assert outcome.violations == []
    assert outcome.figures["refused"] > 0
