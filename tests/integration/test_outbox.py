"""The outbox, on both databases: SEG before SR, one courier per destination, growing waits, nothing lost or doubled."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa
from objects import PLAN
from running_node import until
from stations import ARCHIVE, BACKOFF, DEAD, ELSEWHERE, ME, PACS, Clock, Stations, WallClock

from pacs_ai.errors import UserError
from pacs_ai.states import DeliveryState
from pacs_ai.store import departures, orders, outbox, resending, schema, views, waiting
from pacs_ai.store.clock import LONGEST_WAIT, now
from pacs_ai.store.enqueue import Address
from pacs_ai.store.owners import Watch
from pacs_ai.store.waiting import Backoff

if TYPE_CHECKING:
    from pacs_ai.store.outbox import Round


@pytest.fixture
def results(stations, source):
    """A done job whose SEG and SR wait for two destinations."""
    stations.enqueue(stations.work(source, destinations=(PACS, ARCHIVE)))
    stations.finish(stations.claim(), "SEG", "SR")


def due(stations: Stations) -> list[str]:
    with stations.database.read() as connection:
        return outbox.due_peers(connection)


def claim(stations: Stations, peer: str = "pacs", owner: str = ME) -> Round:
    held = outbox.claim(stations.database, peer, owner)
    assert held is not None
    return held


def fail_to_reach(stations: Stations, peer: str = "pacs", backoff: Backoff = BACKOFF) -> int:
    """Have one round end without the destination; returns how many instances it held."""
    held = claim(stations, peer)
    for parcel in held.parcels:
        outbox.postponed(stations.database, held, parcel, None, "connection refused", backoff)
    outbox.put_back(stations.database, held, reached=False, reason="connection refused", backoff=backoff)
    return len(held.parcels)


def destination(stations: Stations, peer: str = "pacs") -> sa.Row:
    return stations.rows(schema.destination, schema.destination.c.peer == peer)[0]


def states(stations: Stations, peer: str = "pacs") -> list[str]:
    return [row.state for row in stations.rows(schema.delivery, schema.delivery.c.peer == peer)]


def make_due(stations: Stations) -> None:
    """Let the waits be over."""
    with stations.database.write() as connection:
        connection.execute(sa.update(schema.destination).values(next_try_at=now()))
        connection.execute(sa.update(schema.delivery).values(due_at=now()))


# -- what is sent, and in which order


def test_the_seg_goes_before_the_sr_job_after_job(stations, sender):
    stations.done_job(sender, "1")
    stations.done_job(sender, "2")
    held = claim(stations)
    assert [(parcel.job_id, parcel.kind) for parcel in held.parcels] == [(1, "SEG"), (1, "SR"), (2, "SEG"), (2, "SR")]
    assert (held.ae_title, held.host, held.port) == ("PACS", "127.0.0.1", 104)
    assert stations.deliveries() == [DeliveryState.SENDING] * 4


def test_deliveries_are_locked_by_their_numbers_in_whatever_order_they_go(stations, sender):
    """Else a courier and who cancels a job would each wait for what the other holds."""
    if stations.database.is_sqlite:
        pytest.skip("SQLite has one writer at a time")
    first, second = stations.done_job(sender, "1"), stations.done_job(sender, "2")
    with stations.database.write() as connection:
        connection.execute(sa.update(schema.job).where(schema.job.c.id == second).values(rank=0.0))
    ids = [row.id for row in stations.rows(schema.delivery)]
    with ThreadPoolExecutor(1) as pool:
        with stations.database.write() as connection:
            waiting.lock(connection, schema.delivery.c.id == ids[0])
            claimed = pool.submit(outbox.claim, stations.database, "pacs", ME)
            until(lambda: is_locked_out(stations), what="a courier that waits")
            every = sa.select(schema.delivery.c.id).where(schema.delivery.c.id.in_(ids))
            assert len(connection.execute(every.with_for_update(nowait=True)).all()) == len(ids)
        held = claimed.result(60)
    assert [parcel.job_id for parcel in held.parcels] == [second, second, first, first]


def is_locked_out(stations: Stations) -> bool:
    """Whether another connection to PostgreSQL waits for a lock."""
    states = "SELECT wait_event_type FROM pg_stat_activity WHERE datname = current_database()"
    with stations.database.read() as connection:
        return "Lock" in connection.exec_driver_sql(states).scalars().all()


def test_an_sr_waits_while_the_seg_it_cites_waits_longer(stations, results):
    held = claim(stations)
    seg, sr = held.parcels
    outbox.postponed(stations.database, held, seg, 0xA700, "out of resources", BACKOFF)
    outbox.postponed(stations.database, held, sr, None, "not sent", BACKOFF)
    outbox.put_back(stations.database, held, reached=True, reason="", backoff=BACKOFF)
    assert outbox.claim(stations.database, "pacs", ME) is None
    assert destination(stations).owner == ""
    make_due(stations)
    assert [parcel.kind for parcel in claim(stations).parcels] == ["SEG", "SR"]


def test_an_sr_goes_though_its_seg_was_refused_for_good(stations, results):
    held = claim(stations)
    seg, sr = held.parcels
    outbox.failed(stations.database, held, seg, 0xA900, "does not accept it")
    outbox.postponed(stations.database, held, sr, None, "connection lost", BACKOFF)
    outbox.put_back(stations.database, held, reached=True, reason="", backoff=BACKOFF)
    assert [parcel.kind for parcel in claim(stations).parcels] == ["SR"]
    assert states(stations) == ["failed", "sending"]


def test_DEL_08_one_round_goes_to_one_address(stations, sender):
    """A destination that moved keeps the address for what was enqueued before."""
    sender.send("1", [1, 2])
    sender.send("2", [1, 2])
    moved = Address("pacs", "PACS", "127.0.0.2", 104, PLAN)
    stations.enqueue(stations.work(stations.complete("1")))
    stations.enqueue(stations.work(stations.complete("2"), destinations=(moved,)))
    stations.finish(stations.claim())
    stations.finish(stations.claim())
    first = claim(stations)
    assert (first.host, {parcel.job_id for parcel in first.parcels}) == ("127.0.0.1", {1})
    outbox.put_back(stations.database, first, reached=True, reason="", backoff=BACKOFF)
    second = claim(stations)
    assert (second.host, {parcel.job_id for parcel in second.parcels}) == ("127.0.0.2", {2}), "tried less often"


def test_accepted_is_sent_with_its_status(stations, results):
    held = claim(stations)
    for parcel in held.parcels:
        outbox.accepted(stations.database, held, parcel, 0xB000, "Warning: coercion")
    outbox.put_back(stations.database, held, reached=True, reason="", backoff=BACKOFF)
    assert states(stations) == ["sent", "sent"]
    with stations.database.read() as connection:
        view = views.deliveries(connection, peer="pacs")[0]
    assert (view.status, view.reason, view.attempts) == (0xB000, "Warning: coercion", 1)
    assert view.sent_at is not None
    assert due(stations) == ["archive"]


# -- couriers


def test_one_courier_per_destination(stations, results):
    assert due(stations) == ["archive", "pacs"]
    claim(stations, "pacs")
    assert due(stations) == ["archive"]
    assert outbox.claim(stations.database, "pacs", ME) is None
    claim(stations, "archive")


def test_of_many_couriers_one_takes_it(stations, results):
    start = threading.Barrier(8)

    def take(number: int) -> bool:
        start.wait()
        return outbox.claim(stations.database, "pacs", f"deliver:{number}") is not None

    with ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(take, range(8))) == 1


def test_a_courier_that_was_asleep_can_note_nothing(stations, results):
    asleep = claim(stations, owner=DEAD)
    assert outbox.sweep(stations.database, Watch(), ME) == 1
    assert states(stations) == ["waiting", "waiting"]
    awake = claim(stations)
    assert not outbox.beat(stations.database, asleep)
    seg, sr = asleep.parcels
    outbox.accepted(stations.database, asleep, seg, 0, "Success")
    outbox.failed(stations.database, asleep, seg, 0xA900, "no")
    outbox.postponed(stations.database, asleep, sr, 0xA700, "no", BACKOFF)
    outbox.put_back(stations.database, asleep, reached=False, reason="no", backoff=BACKOFF)
    outbox.abandon(stations.database, asleep, actor=ME)
    assert states(stations) == ["sending", "sending"]
    assert (destination(stations).owner, destination(stations).failures) == (ME, 0)
    assert outbox.beat(stations.database, awake)


def test_a_standing_courier_is_taken_over_a_beating_one_is_not(stations, results):
    held = claim(stations, owner=ELSEWHERE)
    time = Clock()
    watch = Watch(time)
    for _ in range(12):
        assert outbox.sweep(stations.database, watch, ME) == 0
        assert outbox.beat(stations.database, held)
        time.forward(5)
    taken = []
    for _ in range(8):
        taken.append(outbox.sweep(stations.database, watch, ME))
        time.forward(5)
    assert sum(taken) == 1
    assert due(stations) == ["archive", "pacs"]


def test_what_could_not_be_noted_is_sent_again_under_the_same_uid(stations, results):
    held = claim(stations)
    outbox.abandon(stations.database, held, actor=ME)
    assert [p.sop_instance_uid for p in claim(stations).parcels] == [p.sop_instance_uid for p in held.parcels]


def test_what_a_round_left_without_outcome_is_sent_again(stations, results):
    held = claim(stations)
    outbox.accepted(stations.database, held, held.parcels[0], 0, "Success")
    outbox.put_back(stations.database, held, reached=False, reason="connection lost", backoff=BACKOFF)
    assert states(stations) == ["sent", "waiting"]


# -- waits


def test_waits_grow_and_are_capped_and_differ_a_little():
    waits = [BACKOFF.wait(failures) for failures in range(1, 12)]
    for wait, full in zip(waits, [5, 10, 20, 40, 80, 160, 300, 300, 300, 300, 300], strict=True):
        assert 0.8 * full <= wait <= full
    assert BACKOFF.wait(10_000) <= 300
    assert len({BACKOFF.wait(3) for _ in range(20)}) > 1


def test_a_wait_is_never_so_long_that_it_counts_as_over():
    """What lies much further ahead than the longest wait counts as due: the wall clock was set back."""
    assert max(Backoff(1800, 1800, 72).wait(failures) for failures in range(1, 100)) <= LONGEST_WAIT


def test_a_destination_that_is_away_is_probed_with_one_instance_after_a_growing_wait(stations, results):
    held = []
    waits = []
    for _ in range(4):
        held.append(fail_to_reach(stations))
        waits.append((destination(stations).next_try_at - now()).total_seconds())
        assert "pacs" not in due(stations)
        make_due(stations)
    assert held == [2, 1, 1, 1]
    assert waits == sorted(waits)
    assert destination(stations).failures == 4
    probe = claim(stations)
    outbox.accepted(stations.database, probe, probe.parcels[0], 0, "Success")
    outbox.put_back(stations.database, probe, reached=True, reason="", backoff=BACKOFF)
    assert (destination(stations).failures, due(stations)) == (0, ["archive", "pacs"])


def test_DEL_09_a_dead_destination_holds_up_no_other(stations, results):
    fail_to_reach(stations, "archive")
    assert due(stations) == ["pacs"]
    stations.deliver_all()
    assert (states(stations, "pacs"), states(stations, "archive")) == (["sent"] * 2, ["waiting"] * 2)


def test_it_is_given_up_after_hours_of_trying_each_by_its_own_time(stations, sender):
    stations.done_job(sender, "1")
    backoff = Backoff(first_seconds=300, longest_seconds=300, give_up_hours=0.3)  # 1080 s
    rounds = 0
    while "waiting" in stations.deliveries():
        if rounds == 2:
            stations.done_job(sender, "2")
        fail_to_reach(stations, backoff=backoff)
        make_due(stations)
        rounds += 1
        if stations.deliveries()[:2] == ["failed", "failed"]:
            break
    assert 4 <= rounds <= 5  # waits of 240 to 300 s
    assert stations.deliveries() == ["failed"] * 2 + ["waiting"] * 2
    reason = stations.rows(schema.delivery)[0].reason
    assert reason == "not delivered within 0.3 h of trying; the last reason: connection refused"


def test_DEL_03_out_of_resources_again_and_again_is_given_up_too(stations, results):
    backoff = Backoff(first_seconds=300, longest_seconds=300, give_up_hours=0.15)  # 540 s
    for _ in range(3):
        make_due(stations)
        held = claim(stations)
        outbox.postponed(stations.database, held, held.parcels[0], 0xA700, "out of resources", backoff)
        outbox.put_back(stations.database, held, reached=True, reason="", backoff=backoff)
    assert states(stations)[0] == "failed"
    assert "out of resources" in stations.rows(schema.delivery, schema.delivery.c.peer == "pacs")[0].reason


@pytest.mark.parametrize("days", [3653, -3653])
def test_a_jump_of_the_wall_clock_gives_nothing_up_and_delays_nothing(stations, results, wall: WallClock, days):
    fail_to_reach(stations)
    wall.forward(days=days)
    assert due(stations) == ["archive", "pacs"]
    fail_to_reach(stations)
    assert states(stations) == ["waiting"] * 2
    wait = destination(stations).next_try_at - now()
    assert timedelta(0) < wait <= timedelta(seconds=10)


def _plan(stations):
    """Return how SQLite finds what a courier takes."""
    asked = []
    sa.event.listen(stations.database.engine, "before_cursor_execute", lambda *told: asked.append(told[2:4]))
    with stations.database.read() as connection:
        connection.execute(departures.batch("pacs")).all()
        ((statement, parameters),) = [one for one in asked if "delivery" in one[0]]
        return [row[3] for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)]


def test_2000_results_behind_a_destination_that_is_away_cost_little(stations, sender):
    stations.done_job(sender)
    result, delivery = stations.rows(schema.result)[0], stations.rows(schema.delivery)[0]
    with stations.database.write() as connection:
        for number in range(200):
            row = {**result._asdict(), "id": None, "sop_instance_uid": f"2.25.9.{number}", "ordinal": 2 + number}
            del row["id"]
            made = connection.execute(sa.insert(schema.result).values(**row).returning(schema.result.c.id)).scalar_one()
            copy = {**delivery._asdict(), "result_id": made}
            del copy["id"]
            connection.execute(sa.insert(schema.delivery).values(**copy))
    if stations.database.engine.dialect.name == "sqlite":
        held_up = "ix_delivery_job (job_id=? AND peer=? AND state=? AND due_at>? AND due_at<?)"
        assert any(held_up in step for step in _plan(stations)), "each looks at all that go before it"
    fail_to_reach(stations)
    moves = len(stations.rows(schema.journal))
    make_due(stations)
    fail_to_reach(stations)
    assert len(stations.rows(schema.journal)) - moves == 2  # the probe's: claimed, postponed


# -- operators, and newer revisions


def test_retry_sends_failed_and_cancelled_ones_at_once(stations, results):
    held = claim(stations)
    outbox.failed(stations.database, held, held.parcels[0], 0xA900, "no")
    outbox.put_back(stations.database, held, reached=False, reason="", backoff=BACKOFF)
    failed = stations.rows(schema.delivery, schema.delivery.c.state == "failed")[0]
    assert resending.retry(stations.database, [failed.id], actor="operator") == 1
    assert due(stations) == ["archive", "pacs"]
    with pytest.raises(UserError, match="only a held, failed or cancelled one"):
        resending.retry(stations.database, [failed.id], actor="operator")
    with pytest.raises(UserError, match="there is no delivery 99"):
        resending.retry(stations.database, [99], actor="operator")


def supersede(stations: Stations) -> None:
    orders.retry(stations.database, 1, actor=ME)


def test_what_was_superseded_is_not_sent_again(stations, results):
    supersede(stations)
    assert stations.deliveries() == ["cancelled"] * 4
    with pytest.raises(UserError, match="of job 1, which a newer one has superseded"):
        resending.retry(stations.database, [1], actor="operator")
    assert due(stations) == []


@pytest.mark.parametrize("outcome", ["accepted", "postponed", "lost", "without"])
def test_superseded_while_it_is_sent_ends_as_what_became_of_it(stations, results, outcome):
    held = claim(stations, owner=DEAD)
    supersede(stations)
    assert states(stations) == ["sending", "sending"]
    if outcome == "accepted":
        for parcel in held.parcels:
            outbox.accepted(stations.database, held, parcel, 0, "Success")
    elif outcome == "postponed":
        for parcel in held.parcels:
            outbox.postponed(stations.database, held, parcel, 0xA700, "out of resources", BACKOFF)
    elif outcome == "lost":
        outbox.sweep(stations.database, Watch(), ME)
    outbox.put_back(stations.database, held, reached=True, reason="", backoff=BACKOFF)
    assert states(stations) == (["sent"] * 2 if outcome == "accepted" else ["cancelled"] * 2)


def test_claim_and_supersede_at_once_leave_nothing_waiting(stations, source):
    for number in range(4):
        work = stations.work(source, settings_digest=str(number))
        job_id, _ = stations.enqueue(work)
        stations.finish(stations.claim())
        start = threading.Barrier(2)

        def take(gate: threading.Barrier = start) -> Round | None:
            gate.wait()
            return outbox.claim(stations.database, "pacs", ME)

        with ThreadPoolExecutor(1) as threads:
            taken = threads.submit(take)
            start.wait()
            orders.retry(stations.database, job_id, actor=ME)
            held = taken.result()
        if held is not None:
            outbox.abandon(stations.database, held, actor=ME)
        stations.claim()
        assert {row.state for row in stations.rows(schema.delivery)} == {"cancelled"}
