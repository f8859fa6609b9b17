"""Transactions and bells, on both databases: all or nothing, one consistent view, woken by what was committed."""

from __future__ import annotations

import threading
import time

import pytest
import sqlalchemy as sa
from stations import DEAD, ELSEWHERE, ME

from pacs_ai.errors import Unavailable, UserError
from pacs_ai.store import owners, processes, schema
from pacs_ai.store.clock import now
from pacs_ai.store.database import Database
from pacs_ai.store.life import rest
from pacs_ai.store.owners import Watch, is_dead, this_process

STOP = threading.Event()
PAUSED = sa.insert(schema.pipeline_switch)


def switch(name):
    return {"pipeline": name, "paused_at": now(), "reason": ""}


def test_a_write_is_undone_as_a_whole(database):
    def write_and_break():
        with database.write() as connection:
            connection.execute(PAUSED, switch("a"))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_and_break()
    with database.read() as connection:
        assert connection.execute(sa.select(schema.pipeline_switch)).all() == []


def test_a_read_sees_one_state_while_others_write(database):
    query = sa.select(schema.pipeline_switch.c.pipeline)
    with database.read() as reading:
        assert reading.execute(query).all() == []
        with database.write() as writing:
            writing.execute(PAUSED, switch("a"))
        assert reading.execute(query).all() == []
    with database.read() as reading:
        assert reading.execute(query).scalars().all() == ["a"]


def test_every_connection_is_given_back(database):
    for _ in range(40):
        with database.read() as connection:
            connection.execute(sa.select(1))
        with pytest.raises(ZeroDivisionError), database.write():
            raise ZeroDivisionError
    assert database.engine.pool.checkedout() == 0


def test_a_time_comes_back_as_it_went(database):
    at = now()
    with database.write() as connection:
        connection.execute(PAUSED, {"pipeline": "a", "paused_at": at, "reason": ""})
    with database.read() as connection:
        (found,) = connection.execute(sa.select(schema.pipeline_switch.c.paused_at)).scalars()
    assert abs((found - at).total_seconds()) < 1e-5
    assert found.tzinfo is not None


@pytest.mark.parametrize("url", ["mysql://x", "not a url", "sqlite"])
def test_another_url_is_refused_in_words(url):
    with pytest.raises(UserError, match=r"store\.database"):
        Database(url)


def test_a_server_that_is_not_there_is_unavailable(tmp_path):
    database = Database(f"postgresql+psycopg://pacs_ai@/none?host={tmp_path}")
    with pytest.raises(Unavailable, match="the database does not answer"), database.read():
        pytest.fail("it answered")
    bell, stop = database.bell(), threading.Event()
    assert not bell.wait(0.3, stop)
    bell.close()
    database.close()


# -- bells


def test_a_commit_rings_the_bell_of_others(database):
    bell = database.bell()
    assert not bell.wait(0.05, STOP)
    other = Database(database.url)
    ring = threading.Timer(0.2, lambda: processes.register(other, "somebody", "test"))
    ring.start()
    begin = time.monotonic()
    assert bell.wait(120, STOP)
    assert time.monotonic() - begin < 60
    ring.join()
    other.close()
    bell.close()


def test_a_transaction_that_wrote_nothing_rings_no_bell(database):
    bell = database.bell()
    bell.wait(0.05, STOP)
    with database.write() as connection:
        connection.execute(sa.select(schema.job))
    assert not bell.wait(0.3, STOP)
    bell.close()


def test_many_commits_while_nobody_waited_are_one_ring(database):
    bell = database.bell()
    bell.wait(0.05, STOP)
    processes.register(database, "somebody", "test")
    for _ in range(20):
        processes.seen(database, "somebody")
    assert bell.wait(60, STOP)
    rings = sum(bell.wait(0.1, STOP) for _ in range(5))
    assert rings <= (0 if database.is_sqlite else 2)  # PostgreSQL may bring the last ones a moment later, in two parts
    bell.close()


def test_a_stop_ends_the_wait(database):
    bell, stop = database.bell(), threading.Event()
    threading.Timer(0.1, stop.set).start()
    begin = time.monotonic()
    assert not bell.wait(120, stop)
    assert time.monotonic() - begin < 60
    bell.close()


def test_a_bell_holds_no_transaction_open(database):
    """Else SQLite could not check its log point, and PostgreSQL not vacuum."""
    bell = database.bell()
    bell.wait(0.05, STOP)
    with database.write() as connection:
        connection.execute(PAUSED, switch("a"))
    bell.wait(0.05, STOP)
    with database.engine.connect() as connection:
        if database.is_sqlite:
            busy, _, _ = connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)").one()
            assert busy == 0
        else:
            states = "SELECT state FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
            assert "idle in transaction" not in connection.exec_driver_sql(states).scalars().all()
    bell.close()


def test_resting_beats_now_and_then(database, monkeypatch):
    monkeypatch.setattr("pacs_ai.store.life.BEAT_SECONDS", 0.0)
    monkeypatch.setattr("pacs_ai.store.life.REST_SECONDS", 0.01)
    processes.register(database, ME, "route")
    with database.read() as connection:
        (before,) = processes.running(connection)
    bell = database.bell()
    rest(bell, database, ME, STOP)()
    with database.read() as connection:
        (after,) = processes.running(connection)
    assert after.seen_at > before.seen_at
    bell.close()


@pytest.mark.postgres
def test_STO_09_connections_that_the_server_ended_are_opened_anew(migrated_postgres):
    """As after a restart of PostgreSQL: the next transaction goes through, and the bell rings again."""
    database, other = Database(migrated_postgres), Database(migrated_postgres)
    deadline = time.monotonic() + 60
    bell = database.bell()
    processes.register(database, ME, "route")
    bell.wait(0.1, STOP)
    ended = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'pacs_ai' AND pid <> pg_backend_pid()"
    )
    with other.engine.connect() as connection:
        while connection.exec_driver_sql(ended).all():  # the signal is sent; each ends a moment later
            connection.rollback()
            assert time.monotonic() < deadline
    processes.seen(database, ME)
    while not bell.wait(0.2, STOP):
        assert time.monotonic() < deadline
        processes.seen(other, ME)
    processes.leave(database, ME)
    bell.close()
    database.close()
    other.close()


# -- processes and owners


def test_dead_processes_leave_the_list_when_another_comes(database):
    processes.register(database, DEAD, "infer")
    processes.register(database, ELSEWHERE, "infer")
    processes.register(database, ME, "route", "detail")
    with database.read() as connection:
        assert {view.owner for view in processes.running(connection)} == {ELSEWHERE, ME}
        assert len(connection.execute(sa.select(schema.process)).all()) == 2
    processes.leave(database, ME)
    with database.read() as connection:
        assert [view.owner for view in processes.running(connection)] == [ELSEWHERE]


def test_who_is_dead():
    assert not is_dead(ME)
    assert is_dead(DEAD)
    assert not is_dead(ELSEWHERE)
    assert not is_dead("operator")
    kind, boot, pid, started = this_process("infer").split(":")
    assert is_dead(f"{kind}:{boot}:{pid}:{int(started) + 1}"), "the pid was given to another process since"
    assert kind == "infer"


def test_claims_that_ended_are_forgotten():
    watch = Watch()
    watch.lost("job", {n: owners.Held(ELSEWHERE, 1, 0) for n in range(100)})
    watch.lost("destination", {"pacs": owners.Held(ELSEWHERE, 1, 0)})
    assert watch.lost("job", {}) == []
    assert watch._seen == {"job": {}, "destination": {"pacs": (1, 0, watch._seen["destination"]["pacs"][2])}}


@pytest.mark.parametrize("what", ["deleted", "replaced"])
def test_STO_09_nothing_is_committed_to_a_file_that_was_deleted_or_replaced(sqlite_template, tmp_path, what):
    """SQLite itself goes on in the file that has no name any more."""
    path = tmp_path / "pacs_ai.sqlite"
    path.write_bytes(sqlite_template.read_bytes())
    database = Database(f"sqlite:///{path}")
    with database.write() as connection:
        connection.execute(PAUSED, switch("a"))
    gone = path.with_name("gone")
    path.rename(gone)
    if what == "replaced":
        path.write_bytes(sqlite_template.read_bytes())
    for _ in range(20):
        with pytest.raises(Unavailable, match="was deleted or replaced: stop the node"), database.write() as connection:
            connection.execute(PAUSED, switch("b"))
    with pytest.raises(Unavailable, match="was deleted or replaced"), database.read():
        pass
    assert path.exists() == (what == "replaced"), "no empty one is made in its place"
    gone.replace(path)
    with database.write() as connection:
        connection.execute(PAUSED, switch("c"))
    with database.read() as connection:
        found = set(connection.execute(sa.select(schema.pipeline_switch.c.pipeline)).scalars())
    assert found == {"a", "c"}
    database.close()


def test_STO_09_what_is_committed_while_the_file_is_deleted_is_not_called_committed(sqlite_template, tmp_path):
    path = tmp_path / "pacs_ai.sqlite"
    path.write_bytes(sqlite_template.read_bytes())
    database = Database(f"sqlite:///{path}")

    def write_and_delete():
        with database.write() as connection:
            connection.execute(PAUSED, switch("a"))
            path.unlink()

    with pytest.raises(Unavailable, match="was deleted or replaced"):
        write_and_delete()
    database.close()
