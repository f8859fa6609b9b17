"""Completeness waits while instances that were answered Success may be on their way into rows, and not for ever."""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa
from stations import DEAD, ME, Clock

from pacs_ai.errors import Unavailable
from pacs_ai.store import processes, schema
from pacs_ai.store.coming import LONGEST_SECONDS, SILENT_SECONDS, Coming

ALIVE = ME
#: Of another boot, or another host.
FAR = "receive:another-boot:17:4711"


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def coming(stations, clock):
    return Coming(stations.database, clock)


def _look(coming, clock, seconds):
    """Look every second for so long; return what the looks said."""
    said = []
    for _ in range(round(seconds)):
        clock.forward(1)
        said.append(coming.look())
    return said


def _beat(stations, owner, *, settled=True):
    """Have a process say that it lives, at a time of its own."""
    processes.settle(stations.database, owner, settled=settled)
    later = datetime.now(UTC) + timedelta(seconds=_beat.count)
    _beat.count += 1
    with stations.database.write() as connection:
        connection.execute(sa.update(schema.process).where(schema.process.c.owner == owner).values(seen_at=later))


_beat.count = 1


def _receive(stations, owner, *, settled=True, succeeds=()):
    processes.register(stations.database, owner, processes.RECEIVE, "", succeeds)
    if settled:
        processes.settle(stations.database, owner, settled=True)


def _owners(stations):
    return [row.owner for row in stations.rows(schema.process)]


def test_nothing_is_awaited_of_one_that_lives_and_keeps_up_nor_of_one_that_left(stations, coming, clock):
    _receive(stations, ALIVE)
    assert coming.look() == ""
    processes.leave(stations.database, ALIVE)
    assert coming.look() == ""


@pytest.mark.parametrize("kind", ["route", "infer", "deliver"])
def test_a_process_of_another_kind_holds_up_nothing(stations, coming, clock, kind):
    processes.register(stations.database, DEAD, kind)
    assert coming.look() == ""


def test_one_that_died_is_awaited_until_its_successor_has_recovered(stations, coming, clock):
    _receive(stations, DEAD)
    assert "ended without saying so" in coming.look()
    processes.register(stations.database, "x:y", "route")
    assert DEAD in _owners(stations), "only a receive process takes its place"
    _receive(stations, ALIVE, settled=False, succeeds=[DEAD])
    assert "still indexes" in coming.look()
    assert DEAD not in _owners(stations)
    processes.settle(stations.database, ALIVE, settled=True)
    assert coming.look() == ""
    assert [row.event for row in stations.rows(schema.journal) if row.actor == DEAD] == ["started", "died"]


def test_of_two_that_died_on_one_port_each_is_awaited(stations, coming, clock):
    other = ":".join([*ME.split(":")[:2], "2", "0"])
    _receive(stations, DEAD)
    _receive(stations, other)
    _receive(stations, ALIVE, succeeds=[DEAD])
    assert "ended without saying so" in coming.look()
    third = ME.replace("test", "receive")
    _receive(stations, third, settled=False, succeeds=[other])
    assert "still indexes" in coming.look()
    processes.settle(stations.database, third, settled=True)
    assert coming.look() == ""


def test_one_that_is_never_started_again_is_awaited_for_two_minutes_and_its_end_is_told(
    stations, coming, clock, caplog
):
    caplog.set_level(logging.WARNING)
    _receive(stations, DEAD)
    said = _look(coming, clock, LONGEST_SECONDS + 1)
    assert all(said[:-1])
    assert said[-1] == ""
    assert DEAD not in _owners(stations)
    (died,) = [row for row in stations.rows(schema.journal) if row.event == "died"]
    assert "waited for for 120 s" in died.reason
    assert [record.getMessage().partition(",")[0] for record in caplog.records] == [
        "what was received may not be in the index",
        "not waited for any longer",
    ]


def test_one_that_recovers_without_end_is_awaited_for_two_minutes_and_counts_again_when_it_is_through(
    stations, coming, clock
):
    _receive(stations, ALIVE, settled=False)
    assert _look(coming, clock, LONGEST_SECONDS + 1)[-1] == ""
    assert _look(coming, clock, 10) == [""] * 10
    processes.settle(stations.database, ALIVE, settled=True)
    processes.settle(stations.database, ALIVE, settled=False)
    assert coming.look() != ""


def test_crashes_one_after_the_other_do_not_add_up(stations, coming, clock):
    """A receive process that dies of what it recovers holds up each series for two minutes, not for ever."""
    _receive(stations, DEAD)
    assert all(_look(coming, clock, LONGEST_SECONDS - 10))
    _receive(stations, ALIVE, settled=False, succeeds=[DEAD])
    assert _look(coming, clock, 11)[-1] == ""


def test_one_of_another_host_is_believed_when_it_was_seen_to_live_and_for_a_while(stations, coming, clock):
    _receive(stations, FAR)
    assert coming.look() != ""
    _beat(stations, FAR)
    assert coming.look() == ""
    said = _look(coming, clock, SILENT_SECONDS)
    assert not any(said[:-1])
    assert said[-1] != ""
    _beat(stations, FAR)
    assert coming.look() == ""
    said = _look(coming, clock, SILENT_SECONDS + LONGEST_SECONDS)
    assert said[-1] == ""
    assert FAR in _owners(stations), "whether it is dead cannot be known from here"


def test_QUE_05_one_of_this_host_that_stands_still_is_not_believed_any_more(stations, coming, clock):
    _receive(stations, ALIVE)
    said = _look(coming, clock, SILENT_SECONDS + 1)
    assert not any(said[: int(SILENT_SECONDS) - 1])
    assert "has not said that it keeps up" in said[-1]
    _beat(stations, ALIVE)
    assert coming.look() == ""


def test_after_the_database_was_away_each_has_to_say_that_it_keeps_up(stations, coming, clock):
    _receive(stations, ALIVE)
    assert coming.look() == ""
    coming.doubt()
    assert "has not said" in coming.look()
    _beat(stations, ALIVE, settled=False)
    assert "still indexes" in coming.look()
    _beat(stations, ALIVE)
    assert coming.look() == ""


def test_one_that_was_first_seen_after_the_database_was_away_has_to_say_it_too(stations, coming, clock):
    _receive(stations, ALIVE)
    coming.doubt()
    assert "has not said" in coming.look()
    _beat(stations, ALIVE)
    assert coming.look() == ""


def test_who_looks_now_and_then_waits_the_whole_time_each_time(stations, coming, clock):
    _receive(stations, DEAD)
    assert coming.look() != ""
    clock.forward(10 * LONGEST_SECONDS)
    assert coming.look() != ""


def test_who_may_leave_and_who_is_asked_anew_is_told_by_the_journal(stations):
    """A process given up here and found dead by its successor is told once."""
    _receive(stations, DEAD)
    processes.give_up(stations.database, [DEAD], waited_seconds=1)
    processes.give_up(stations.database, [DEAD], waited_seconds=1)
    _receive(stations, ALIVE, succeeds=[DEAD])
    with stations.database.read() as connection:
        died = connection.execute(sa.select(sa.func.count()).where(schema.journal.c.event == "died")).scalar_one()
    assert died == 1


def test_while_the_database_is_away_nothing_is_said(coming, monkeypatch):
    def away(_connection):
        raise Unavailable("away")

    monkeypatch.setattr(processes, "receiving", away)
    with pytest.raises(Unavailable):
        coming.look()
