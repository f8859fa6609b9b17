"""An object that a peer cannot bear, and an address where nobody is any more: they wait and fail alone."""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from free_ports import free_port
from pynetdicom import AE, evt
from rounds import serve_next
from stations import BACKOFF, ME, Stations
from stored_results import finish_with, plan_of

from pacs_ai.config import Config
from pacs_ai.deliver.courier import Courier
from pacs_ai.dicom import contexts
from pacs_ai.profiles import Kind, Wanted, encodings
from pacs_ai.store import clock, outbox, schema
from pacs_ai.store.enqueue import Address
from pacs_ai.store.files import Files

PLAN = plan_of(Wanted(Kind.SEGMENTATION, "binary"), Wanted(Kind.TEXT_REPORT))
JOBS = 6
HOUR = 3600


class AbortingPeer:
    """A storage SCP that aborts the association at some instances, and keeps all others."""

    def __init__(self) -> None:
        self.poison: set[str] = set()
        self.stored: list[str] = []
        self.ae = AE("KEEPER")
        self.ae.supported_contexts = contexts.acceptor_contexts()
        store = [(evt.EVT_C_STORE, self._store)]
        self.server = self.ae.start_server(("127.0.0.1", free_port()), block=False, evt_handlers=store)
        self.port: int = self.server.server_address[1]

    def _store(self, event: evt.Event) -> int:
        uid = str(event.request.AffectedSOPInstanceUID)
        if uid in self.poison:
            event.assoc.abort()
            return 0xC000
        self.stored.append(uid)
        return 0x0000


@pytest.fixture
def peer():
    aborting = AbortingPeer()
    yield aborting
    aborting.server.shutdown()
    aborting.ae.shutdown()


@pytest.fixture
def make_jobs(stations, sender, tmp_path):
    """Have done jobs, each of a SEG and a report for the peer at one of the ports; returns a courier."""
    files = Files(tmp_path / "store" / "files")

    def make(*ports, **deliver):
        for number, port in enumerate(ports, start=len(stations.jobs()) + 1):
            address = Address("pacs", "KEEPER", "127.0.0.1", port, PLAN)
            sender.send(str(number), (1,), study=str(number))
            stations.enqueue(stations.work(stations.complete(str(number)), destinations=(address,)))
            finish_with(stations, files, encodings([PLAN]))
        table = {"name": "pacs", "ae_title": "KEEPER", "host": "127.0.0.1", "port": ports[-1]}
        given = {"store": {"folder": tmp_path / "store"}, "peer": [table], "deliver": deliver}
        return Courier(Config.model_validate(given), stations.database, files, ME)

    return make


def delivery_of(stations: Stations, sop_instance_uid: str) -> sa.Row:
    (result,) = stations.rows(schema.result, schema.result.c.sop_instance_uid == sop_instance_uid)
    return stations.rows(schema.delivery, schema.delivery.c.result_id == result.id)[0]


def test_DEL_09_an_object_at_which_the_peer_aborts_waits_and_fails_alone(stations, make_jobs, peer, wall):
    courier = make_jobs(*[peer.port] * JOBS, give_up_hours=1)
    uids = [row.sop_instance_uid for row in stations.rows(schema.result)]
    poison, citing = uids[2:4]  # the SEG of the second job, and its report
    peer.poison.add(poison)
    waits = []
    while stations.deliveries().count("waiting") > 2:
        waits.append(serve_next(stations, courier, wall))
    assert sum(waits) <= 30, "the others go as soon as a probe got through"
    assert sorted(peer.stored) == sorted(set(uids) - {poison, citing})
    while delivery_of(stations, poison).state == "waiting":
        waits.append(serve_next(stations, courier, wall))
    failed = delivery_of(stations, poison)
    assert failed.state == "failed"
    assert failed.doubtful
    assert failed.reason.startswith("not delivered within 1 h of trying; the last reason: KEEPER at 127.0.0.1:")
    assert "aborted the association" in failed.reason
    assert 0.8 * HOUR <= sum(waits) <= 1.3 * HOUR, "a wait of its own is not counted a second time"
    while "waiting" in stations.deliveries():
        serve_next(stations, courier, wall)
    assert delivery_of(stations, citing).state == "sent"
    assert sorted(peer.stored) == sorted(set(uids) - {poison})


def test_DEL_09_what_comes_later_goes_though_an_earlier_object_makes_the_peer_abort(stations, make_jobs, peer, wall):
    courier = make_jobs(*[peer.port] * 2)
    uids = [row.sop_instance_uid for row in stations.rows(schema.result)]
    peer.poison.update(uids[0::2])  # the SEG of each of them: nothing else may be sent yet
    for _ in range(8):
        serve_next(stations, courier, wall)
    assert set(stations.deliveries()) == {"waiting"}
    make_jobs(peer.port)
    later = [row.sop_instance_uid for row in stations.rows(schema.result)][len(uids) :]
    seconds = 0.0
    while set(later) - set(peer.stored):
        seconds += serve_next(stations, courier, wall)
    assert seconds <= 2 * clock.LONGEST_WAIT
    assert len(peer.stored) == len(later)


def test_DEL_08_an_address_where_nobody_is_any_more_holds_up_nothing_at_the_new_one(stations, make_jobs, peer, wall):
    """They are those of jobs that were made after the peer had moved."""
    courier = make_jobs(*[free_port()] * 3, *[peer.port] * 4)
    waits = []
    while stations.deliveries().count("waiting") > 6:
        waits.append(serve_next(stations, courier, wall))
    assert sum(waits) <= 30
    assert stations.deliveries() == ["waiting"] * 6 + ["sent"] * 8
    for _ in range(10):
        serve_next(stations, courier, wall)
    assert stations.deliveries() == ["waiting"] * 6 + ["sent"] * 8
    make_jobs(peer.port)
    later, seconds = stations.rows(schema.delivery)[14:], 0.0
    while [row.state for row in stations.rows(schema.delivery)[14:]] != ["sent"] * len(later):
        seconds += serve_next(stations, courier, wall)
    assert seconds <= 2 * clock.LONGEST_WAIT


def claim(stations: Stations) -> outbox.Round:
    held = outbox.claim(stations.database, "pacs", ME)
    assert held is not None
    return held


def make_due(stations: Stations) -> None:
    with stations.database.write() as connection:
        connection.execute(sa.update(schema.destination).values(next_try_at=clock.now()))


def test_probes_go_by_turns_and_never_what_cites_an_object_that_waits(stations, sender):
    for number in "123":
        stations.done_job(sender, number)
    probed = []
    for _ in range(7):
        held = claim(stations)
        probed.append([(parcel.job_id, parcel.kind) for parcel in held.parcels])
        for parcel in held.parcels:
            outbox.postponed(stations.database, held, parcel, None, "connection refused", BACKOFF)
        outbox.put_back(stations.database, held, reached=False, reason="connection refused", backoff=BACKOFF)
        make_due(stations)
    assert len(probed[0]) == 6
    assert probed[1:] == [[(3, "SEG")], [(2, "SEG")], [(1, "SEG")]] * 2


def test_one_that_was_lost_under_way_waits_by_itself_and_longer_each_time(stations, sender):
    stations.done_job(sender)
    waits = []
    for _ in range(4):
        held = claim(stations)
        lost, *others = held.parcels
        outbox.postponed(stations.database, held, lost, None, "aborted", BACKOFF, doubtful=True)
        for parcel in others:
            outbox.postponed(stations.database, held, parcel, None, "aborted", BACKOFF)
        outbox.put_back(stations.database, held, reached=False, reason="aborted", backoff=BACKOFF)
        first, second = stations.rows(schema.delivery)
        waits.append((first.due_at - clock.now()).total_seconds())
        assert second.due_at <= clock.now()
        make_due(stations)
        assert outbox.claim(stations.database, "pacs", ME) is None, "the report waits for what it cites"
        with stations.database.write() as connection:
            connection.execute(sa.update(schema.delivery).values(due_at=clock.now()))
    assert waits == sorted(waits)
    for wait, full in zip(waits, [5, 10, 20, 40], strict=True):
        assert 0.8 * full - 1 <= wait <= full
    assert 0.8 * 75 <= first.waited_seconds <= 75, "counted once, though its destination waited too"
