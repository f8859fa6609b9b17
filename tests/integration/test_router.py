"""When series are complete and what becomes of them: the stories, on both databases, with a clock moved by hand."""

from __future__ import annotations

import os
from dataclasses import replace
from importlib.metadata import EntryPoint

import pytest
from pydicom.uid import Comprehensive3DSRStorage, SegmentationStorage
from running_node import PLAIN
from stations import DEAD, ME, Clock, Sender, Stations, WallClock

from pacs_ai.config import Config
from pacs_ai.dicom.attributes import Header
from pacs_ai.errors import Unavailable
from pacs_ai.models.registry import GROUP, Registry
from pacs_ai.pipeline import Card, Code, Input, Label
from pacs_ai.route import router
from pacs_ai.route.router import Router
from pacs_ai.states import JobState
from pacs_ai.store import completion, holds, journal, orders, processes, queue, schema
from pacs_ai.store.coming import LONGEST_SECONDS
from pacs_ai.store.enqueue import ROUTINE, STAT
from pacs_ai.store.files import Files


def _card(*inputs: str) -> Card:
    concept = Code("1", "99T", "thing")
    return Card(
        name="stub",
        version="1.0",
        manufacturer="tests",
        title="Stub",
        inputs={name: Input(("CT",)) for name in inputs},
        labels=(Label("Thing", concept, concept),),
        procedure=concept,
        intended_use="tests",
        model_digest="0" * 64,
    )


class One:
    """A pipeline of one series, whose input has a name of its own."""

    card = _card("chest")

    def prepare(self, device):
        raise NotImplementedError

    def run(self, inputs):
        raise NotImplementedError


class Two(One):
    """A pipeline of two series."""

    card = _card("t1", "flair")


PLUGINS = [EntryPoint(name, f"{__name__}:{kind}", GROUP) for name, kind in (("one", "One"), ("two", "Two"))]
PEERS = [
    {"name": name, "ae_title": name.upper(), "host": "127.0.0.1", "profile": "plain"} for name in ("pacs", "archive")
]
SINGLE = {"when": {"modality": "CT"}, "run": "one", "deliver_to": ["pacs"]}
PAIR = {
    "inputs": {"t1": {"description": "t1"}, "flair": {"description": "flair"}},
    "run": "two",
    "deliver_to": ["pacs"],
    "wait_seconds": 900,
}


class Node:
    """A router with its clock, and senders."""

    def __init__(self, stations: Stations, folder, routes, **tables) -> None:
        self.stations = stations
        self.clock = Clock()
        self.folder = folder
        self.config = Config.model_validate({"peer": PEERS, "profile": [PLAIN], "route": routes, **tables})
        self.files = Files(folder / "store", self.clock)
        self.router = self.another()
        self.sender = Sender(stations.database, folder / "files")

    def another(self, **options) -> Router:
        """Return one more router, as after a restart or on another host."""
        registry = Registry(self.config.pipeline, PLUGINS)
        return Router(self.config, self.stations.database, self.files, ME, self.clock, registry, **options)

    def step_after(self, seconds: float) -> None:
        """Step the router once, so much later."""
        self.clock.forward(seconds)
        self.router.step()

    def pass_time(self, seconds: float) -> None:
        """Step the router every quarter of a second, every two seconds where it is long."""
        step = 0.25 if seconds <= 12 else 1.0 if seconds <= 100 else 2.0
        for _ in range(round(seconds / step)):
            self.clock.forward(step)
            self.router.step()

    def seconds_until_jobs(self, count: int, limit: float = 90) -> float:
        """Return after how many seconds there are so many jobs."""
        begin = self.clock()
        while len(self.stations.jobs()) < count:
            assert self.clock() - begin < limit, self.stations.rows(schema.series)
            self.pass_time(0.25)
        return self.clock() - begin

    def work_off(self) -> None:
        """Do the next job, and deliver its results."""
        self.stations.finish(self.stations.claim())
        self.stations.deliver_all()


@pytest.fixture
def make_node(stations, tmp_path):
    def make(*routes, **tables):
        return Node(stations, tmp_path, list(routes) or [SINGLE], **tables)

    return make


# -- stories of arriving


def test_one_association_that_released_waits_one_second(make_node, stations):
    node = make_node()
    node.sender.send(numbers=range(3))
    node.pass_time(30)
    assert stations.jobs() == []
    node.sender.end()
    assert 1.0 <= node.seconds_until_jobs(1) <= 1.5
    assert stations.series().state == "complete"
    assert stations.series().reason == "one association brought all 3 instances and released; quiet for 1 s since"
    assert stations.rows(schema.job_source)[0].input == "chest"


def test_one_association_per_image_every_two_seconds_is_one_job(make_node, stations):
    node = make_node()
    for number in range(20):
        node.sender.send(numbers=[number], assoc=f"a{number}")
        node.sender.end(f"a{number}")
        node.pass_time(2)
    assert stations.jobs() == []
    assert 7 <= node.seconds_until_jobs(1) <= 8.5
    assert stations.series().reason == "quiet for 10 s after 20 association(s) ended"
    node.pass_time(60)
    assert stations.jobs() == [JobState.QUEUED]
    assert stations.series().revision == 1


def test_QUE_05_an_association_that_stays_open_while_it_carries_ten_studies(make_node, stations):
    node = make_node()
    for study in range(10):
        for number in range(5):
            node.sender.send(str(study), [number], study=str(study))
            node.pass_time(4)
    node.pass_time(62)
    assert len(stations.jobs()) == 10
    assert stations.series("0").reason == "quiet for 10 s; 1 open association(s) brought none of it for 60 s"
    node.pass_time(60)
    assert len(stations.jobs()) == 10


def test_abort_and_send_again_is_one_job(make_node, stations):
    node = make_node()
    node.sender.send(numbers=range(3))
    node.sender.end(released=False)
    node.pass_time(5)
    node.sender.send(numbers=range(6), assoc="a2")
    node.sender.end("a2")
    node.pass_time(9)
    assert stations.jobs() == []
    node.pass_time(60)
    assert stations.jobs() == [JobState.QUEUED]
    assert stations.series().instances == 6


def test_QUE_04_a_late_slice_is_a_second_revision_and_the_first_is_superseded(make_node, stations):
    node = make_node()
    node.sender.send(numbers=range(3))
    node.sender.end()
    node.pass_time(3)
    node.sender.send(numbers=[3], assoc="a2")
    node.sender.end("a2")
    assert 9 <= node.seconds_until_jobs(2) <= 11
    assert stations.jobs() == [JobState.SUPERSEDED, JobState.QUEUED]
    assert [row.revision for row in stations.rows(schema.job_source)] == [1, 2]


def test_a_late_slice_after_delivery_cites_it_and_one_before_cancels_it(make_node, stations):
    node = make_node()
    node.sender.send(numbers=range(3))
    node.sender.end()
    node.pass_time(3)
    node.work_off()
    node.sender.send(numbers=[3], assoc="a2")
    node.pass_time(80)
    stations.finish(stations.claim())
    node.sender.send(numbers=[4], assoc="a3")
    node.pass_time(80)
    assert stations.jobs() == [JobState.SUPERSEDED, JobState.SUPERSEDED, JobState.QUEUED]
    assert stations.deliveries() == ["sent"] * 2 + ["cancelled"] * 2
    assert [row.predecessor_id for row in stations.rows(schema.job)] == [None, 1, 1]


def test_a_series_of_one_instance_waits_the_quiet_time(make_node, stations):
    node = make_node()
    node.sender.send(numbers=[1])
    node.sender.end()
    assert 9.5 <= node.seconds_until_jobs(1) <= 10.5


def test_associations_of_two_receive_processes(make_node, stations, tmp_path):
    node = make_node()
    other = Sender(stations.database, tmp_path / "files", owner=ME.replace("test", "receive"))
    node.sender.send(numbers=[1, 2], assoc="a1")
    other.send(numbers=[3, 4], assoc="b1")
    node.sender.end("a1")
    node.pass_time(30)
    assert stations.jobs() == []
    other.end("b1")
    node.pass_time(1)
    assert stations.jobs() == [JobState.QUEUED]


def test_an_association_of_a_dead_process_holds_nothing_up(make_node, stations, tmp_path):
    node = make_node()
    Sender(stations.database, tmp_path / "files", owner=DEAD).send(numbers=range(3))
    assert 9.5 <= node.seconds_until_jobs(1) <= 10.5


def test_a_receive_process_that_died_is_awaited_and_what_it_had_received_makes_no_revision(make_node, stations):
    """Killed with instances answered Success and without rows, started again long after the series was quiet."""
    processes.register(stations.database, DEAD, processes.RECEIVE)
    node = make_node()
    node.sender.send(numbers=range(3))
    node.sender.end()
    node.pass_time(60)
    assert stations.jobs() == []
    assert "ended without saying so" in stations.series().reason
    processes.register(stations.database, ME, processes.RECEIVE, succeeds=[DEAD])
    node.pass_time(10)
    node.sender.send(numbers=range(3, 6), assoc="a2")
    node.sender.end("a2")
    node.pass_time(30)
    assert stations.jobs() == []
    processes.settle(stations.database, ME, settled=True)
    assert node.seconds_until_jobs(1) <= 0.5
    assert (stations.series().revision, stations.series().instances) == (1, 6)


def test_a_receive_process_that_died_for_good_is_awaited_for_two_minutes(make_node, stations):
    processes.register(stations.database, DEAD, processes.RECEIVE)
    node = make_node()
    node.sender.send(numbers=range(3))
    node.sender.end()
    assert LONGEST_SECONDS <= node.seconds_until_jobs(1, 200) <= LONGEST_SECONDS + 2


def test_an_input_is_not_called_missing_while_it_may_be_coming(make_node, stations):
    processes.register(stations.database, DEAD, processes.RECEIVE)
    node = make_node({**PAIR, "wait_seconds": 20})
    node.sender.send(series="1", numbers=range(3), SeriesDescription="t1")
    node.sender.end()
    node.pass_time(100)
    assert stations.jobs() == []
    node.pass_time(60)
    assert stations.jobs() == [JobState.REFUSED]


def test_after_the_database_was_away_a_series_has_to_be_quiet_anew(make_node, stations, monkeypatch):
    """Meanwhile instances were received, and answered Success, that get their rows when it is back."""
    node = make_node()
    node.sender.send(numbers=[1])
    node.sender.end()
    node.pass_time(9)
    with monkeypatch.context() as patch:
        patch.setattr(completion, "open_series", _away)
        with pytest.raises(Unavailable):
            node.pass_time(1)
    node.pass_time(9)
    assert stations.jobs() == []
    assert node.seconds_until_jobs(1) <= 1.5


def _away(_connection):
    raise Unavailable("the database does not answer")


def test_the_same_study_sent_twice_is_one_job(make_node, stations):
    node = make_node()
    for assoc in ("a1", "a2", "a3"):
        node.sender.send(numbers=range(3), assoc=assoc)
        node.sender.end(assoc)
        node.pass_time(20)
    assert stations.jobs() == [JobState.QUEUED]


def test_a_peer_may_have_a_quiet_time_of_its_own(make_node, stations):
    peers = [{"name": "slow", "ae_title": "MODALITY", "host": "127.0.0.1", "quiet_seconds": 30}, *PEERS]
    node = make_node(peer=peers)
    for assoc, number in (("a1", 1), ("a2", 2)):
        node.sender.send(numbers=[number], assoc=assoc)
        node.sender.end(assoc)
    assert 29.5 <= node.seconds_until_jobs(1) <= 30.5


def test_a_restarted_router_waits_anew_and_completes(make_node, stations):
    node = make_node()
    node.sender.send(numbers=range(3))
    node.sender.end()
    node.router.step()
    node.router = node.another()
    assert node.seconds_until_jobs(1) <= 1.5


def test_two_routers_make_one_job(make_node, stations):
    node = make_node()
    other = node.another()
    node.sender.send(numbers=range(3))
    node.sender.end()
    for _ in range(12):
        node.clock.forward(0.25)
        node.router.step()
        other.step()
    assert stations.jobs() == [JobState.QUEUED]
    assert [row.event for row in stations.rows(schema.journal)] == ["quiet", "enqueued"]


def test_what_arrives_between_judging_and_completing_is_not_lost(make_node, stations, monkeypatch):
    node = make_node()
    node.sender.send(numbers=range(3))
    node.sender.end()
    complete = node.router._complete

    def arrive_first(*judged):
        monkeypatch.undo()
        node.sender.send(numbers=[3], assoc="a2")
        complete(*judged)

    monkeypatch.setattr(node.router, "_complete", arrive_first)
    node.pass_time(3)
    assert stations.series().state == "receiving"
    node.pass_time(80)
    assert stations.jobs() == [JobState.QUEUED]
    assert stations.series().instances == 4


# -- what the routes want


def test_a_series_that_no_route_wants_says_why(make_node, stations):
    node = make_node()
    node.sender.send(numbers=range(2), Modality="MR")
    node.sender.end()
    node.pass_time(3)
    assert stations.jobs() == []
    row = stations.series()
    assert (row.state, row.reason) == (
        "unrouted",
        "no route wants it; nearest is one: modality is MR, the route wants CT",
    )


def test_DEL_11_results_and_reports_never_trigger(make_node, stations):
    node = make_node({"when": {}, "run": "one"})
    node.sender.send(numbers=range(2))
    node.sender.end()
    node.pass_time(3)
    node.work_off()
    result = stations.rows(schema.result)[0].sop_instance_uid
    node.sender.send("5", [1], uid=result, assoc="back")
    node.sender.send("6", [1, 2], assoc="back", SOPClassUID=SegmentationStorage)
    node.sender.send("7", [1, 2], assoc="back", SOPClassUID=Comprehensive3DSRStorage)
    node.sender.send("8", [1, 2], assoc="back", Modality="SR")
    node.sender.end("back")
    node.pass_time(12)
    assert len(stations.jobs()) == 1
    assert {stations.series(name).state for name in "5678"} == {"unrouted"}
    assert stations.series("5").reason.endswith("never analysed: it is this node's own result")


def test_two_routes_with_one_pipeline_make_one_job_for_both_peers(make_node, stations):
    node = make_node(SINGLE | {"name": "a"}, SINGLE | {"name": "b", "deliver_to": ["archive"]})
    node.sender.send(numbers=range(2))
    node.sender.end()
    node.pass_time(3)
    assert stations.jobs() == [JobState.QUEUED]
    assert sorted(row.peer for row in stations.rows(schema.job_destination)) == ["archive", "pacs"]


def test_the_routes_priority_goes_before_the_images(make_node, stations):
    node = make_node(SINGLE | {"priority": "stat"}, SINGLE | {"run": "two", "name": "other"})
    node.sender.send(numbers=range(2))
    node.sender.end()
    node.pass_time(3)
    assert [row.priority for row in stations.rows(schema.job)] == [STAT, ROUTINE]


def test_a_route_with_an_unknown_pipeline_leaves_a_refused_job_that_says_so(make_node, stations):
    node = make_node(SINGLE | {"run": "typo"})
    node.sender.send(numbers=range(2))
    node.sender.end()
    node.pass_time(3)
    (row,) = stations.rows(schema.job)
    assert row.state == JobState.REFUSED
    assert row.reason.startswith("pipeline typo is disabled: there is no pipeline typo: installed or configured are ")
    orders.retry(stations.database, row.id, actor="operator")
    node.pass_time(3)
    assert stations.jobs() == [JobState.REFUSED]


def test_a_pipeline_that_came_back_runs_the_retried_job(make_node, stations):
    node = make_node(SINGLE | {"run": "three"})
    node.sender.send(numbers=range(2))
    node.sender.end()
    node.pass_time(3)
    installed = [*PLUGINS, EntryPoint("three", f"{__name__}:One", GROUP)]
    registry = Registry((), installed)
    node.router = Router(node.config, stations.database, node.files, ME, node.clock, registry)
    node.pass_time(3)
    assert stations.jobs() == [JobState.REFUSED]
    orders.retry(stations.database, 1, actor="operator")
    assert queue.claim(stations.database, ME) is None
    node.pass_time(3)
    assert stations.claim().pipeline_version == "1.0"


# -- routes that wait


def test_QUE_05_waiting_for_the_study(make_node, stations):
    node = make_node(SINGLE | {"wait_for": "study"})
    node.sender.send("1", range(3), assoc="a1")
    node.sender.send("2", range(3), assoc="a2", Modality="OT")
    node.sender.end("a1")
    node.pass_time(5)
    assert stations.jobs() == []
    assert stations.series("1").state == "complete"
    assert stations.series("1").reason.endswith("; one: waits for 1 other series of the study")
    node.sender.end("a2")
    node.pass_time(3)
    assert stations.jobs() == [JobState.QUEUED]
    assert not stations.series("1").awaiting


def test_waiting_for_the_study_ends_when_the_other_turns_out_to_be_in_conflict(make_node, stations):
    node = make_node(SINGLE | {"wait_for": "study"})
    node.sender.send("1", range(3), assoc="a1")
    node.sender.send("2", [1], assoc="a2", content=1)
    node.sender.end("a1")
    node.pass_time(5)
    node.sender.send("2", [1], assoc="a3", content=2)
    node.pass_time(3)
    assert stations.jobs() == [JobState.QUEUED]


def test_several_inputs_are_run_when_the_last_is_complete(make_node, stations):
    node = make_node(PAIR)
    for series, description in (("1", "t1"), ("2", "flair")):
        node.sender.send(series, range(3), assoc=series, SeriesDescription=description)
        node.sender.end(series)
        node.pass_time(30)
    assert stations.jobs() == [JobState.QUEUED]
    assert [(row.input, row.series_id) for row in stations.rows(schema.job_source)] in (
        [("flair", 2), ("t1", 1)],
        [("t1", 1), ("flair", 2)],
    )
    assert [row.awaiting for row in stations.rows(schema.series)] == [False, False]


def test_a_missing_input_is_refused_in_words_after_the_routes_time_and_run_when_it_comes_later(make_node, stations):
    node = make_node(PAIR)
    node.sender.send("1", range(3), SeriesDescription="t1")
    node.sender.end()
    node.pass_time(895)
    assert stations.jobs() == []
    assert stations.series("1").awaiting
    node.pass_time(15)
    (row,) = stations.rows(schema.job)
    assert row.state == JobState.REFUSED
    assert row.reason.startswith("flair missing: no series matches; nearest is series 1: description is t1")
    assert row.reason.endswith("(waited 900 s)")
    node.pass_time(30)
    assert stations.jobs() == [JobState.REFUSED]
    node.sender.send("2", range(3), assoc="late", SeriesDescription="flair")
    node.sender.end("late")
    node.pass_time(5)
    assert stations.jobs() == [JobState.SUPERSEDED, JobState.QUEUED]


def test_a_series_that_another_route_took_is_still_waited_beside(make_node, stations):
    """A job of one route does not hide that another route never got its second input."""
    node = make_node(SINGLE, PAIR)
    node.sender.send("1", range(3), SeriesDescription="t1")
    node.sender.end()
    node.pass_time(910)
    assert [(row.pipeline, row.state) for row in stations.rows(schema.job)] == [("one", "queued"), ("two", "refused")]


def test_what_still_arrives_may_be_what_is_waited_for(make_node, stations):
    node = make_node(PAIR | {"wait_seconds": 20})
    node.sender.send("1", range(3), SeriesDescription="t1")
    node.sender.end()
    node.pass_time(10)
    for number in range(8):
        node.sender.send("2", [number], assoc="a2", SeriesDescription="flair")
        node.pass_time(5)
    assert stations.jobs() == []
    node.sender.end("a2")
    node.pass_time(3)
    assert stations.jobs() == [JobState.QUEUED]


def test_two_routers_that_complete_both_inputs_at_once_leave_nobody_waiting(make_node, stations):
    node = make_node(PAIR)
    other = node.another()
    for series, description in (("1", "t1"), ("2", "flair")):
        node.sender.send(series, range(3), assoc=series, SeriesDescription=description)
        node.sender.end(series)
    for _ in range(40):
        node.clock.forward(0.25)
        node.router.step()
        other.step()
    assert stations.jobs() == [JobState.QUEUED]


def test_a_late_slice_of_one_input_runs_the_pair_again(make_node, stations):
    node = make_node(PAIR)
    for series, description in (("1", "t1"), ("2", "flair")):
        node.sender.send(series, range(3), assoc=series, SeriesDescription=description)
        node.sender.end(series)
    node.pass_time(3)
    node.sender.send("1", [3], assoc="late", SeriesDescription="t1")
    node.sender.end("late")
    node.pass_time(12)
    assert stations.jobs() == [JobState.SUPERSEDED, JobState.QUEUED]
    used = stations.rows(schema.job_source, schema.job_source.c.job_id == 2)
    assert {(row.input, row.revision) for row in used} == {("t1", 2), ("flair", 1)}


# -- a series that is odd beyond what was thought of


def test_a_series_that_breaks_the_router_stops_no_other_and_says_so(make_node, stations, monkeypatch):
    node = make_node()
    plans_for = router.plans_for

    def break_on_the_first(view, *rest):
        if view.instances == 2:
            raise ZeroDivisionError
        return plans_for(view, *rest)

    monkeypatch.setattr(router, "plans_for", break_on_the_first)
    node.sender.send("1", range(2))
    node.sender.send("2", range(3))
    node.sender.end()
    node.pass_time(30)
    assert stations.jobs() == [JobState.QUEUED]
    words = "it cannot be routed: unexpected ZeroDivisionError; the log of the router has the traceback"
    assert (stations.series("1").state, stations.series("1").reason) == ("receiving", words)
    node.sender.send("1", [2], assoc="a2")
    node.sender.end("a2")
    node.pass_time(12)
    assert stations.jobs() == [JobState.QUEUED] * 2


@pytest.mark.parametrize("frames", ["1e308", "-5", "0", "99999999999999999999", "nan", "many"])
def test_an_odd_number_of_frames_breaks_nothing(make_node, stations, frames):
    node = make_node({"when": {"min_instances": 100_000, "max_instances": 100_001}, "run": "one"})
    arrival = node.sender.arrival()
    header = Header({**arrival.header.values, "NumberOfFrames": frames})
    node.sender.index.record([replace(arrival, header=header)])
    node.sender.end()
    node.pass_time(12)
    assert stations.series().reason.startswith("no route wants it; nearest is one: number of images is ")


# -- conflicts


def test_a_decided_conflict_goes_on_by_itself(make_node, stations):
    node = make_node()
    node.sender.send(numbers=range(3), content=1)
    node.sender.end()
    node.pass_time(3)
    node.sender.send(numbers=[1], content=2, assoc="a2")
    node.pass_time(30)
    assert stations.jobs() == [JobState.WITHHELD]
    orders.resolve(stations.database, "1.2.3.1", keep="first", actor="operator")
    node.pass_time(80)
    assert stations.jobs() == [JobState.QUEUED]
    assert stations.rows(schema.job)[0].reason == holds.WAITING
    assert stations.series().state == "complete"


def test_an_operators_generation_that_was_withheld_goes_on_too(make_node, stations):
    node = make_node()
    node.sender.send(numbers=range(3), content=1)
    node.sender.end()
    node.pass_time(3)
    node.work_off()
    again = orders.retry(stations.database, 1, actor="operator")
    node.sender.send(numbers=[1], content=2, assoc="a2")
    assert stations.job(again).state == JobState.WITHHELD
    orders.resolve(stations.database, "1.2.3.1", keep="first", actor="operator")
    node.pass_time(80)
    assert stations.jobs() == [JobState.SUPERSEDED, JobState.QUEUED]


# -- house-keeping and clocks


def test_the_router_sweeps_what_dead_workers_left(make_node, stations):
    node = make_node()
    node.sender.send(numbers=range(3))
    node.sender.end()
    node.pass_time(3)
    stations.claim(DEAD)
    node.pass_time(6)
    assert stations.jobs() == [JobState.QUEUED]


def test_an_idle_router_writes_nothing(make_node, stations):
    node = make_node(SINGLE, PAIR)
    node.sender.send("1", range(3), SeriesDescription="t1")
    node.sender.end()
    node.pass_time(5)
    node.sender.send("2", range(3), assoc="open")
    begun = []
    write = stations.database.write

    def counted():
        begun.append(1)
        return write()

    stations.database.write = counted
    node.pass_time(55)
    assert begun == []


@pytest.mark.parametrize("days", [3653, -3653])
def test_QUE_08_a_jump_of_the_wall_clock_completes_and_expires_nothing(make_node, stations, wall: WallClock, days):
    node = make_node(SINGLE | {"wait_for": "study"}, PAIR)
    node.sender.send("1", range(3), assoc="a1", SeriesDescription="t1")
    node.sender.end("a1")
    node.pass_time(3)
    node.sender.send("2", range(3), assoc="a2", SeriesDescription="flair")
    wall.forward(days=days)
    node.pass_time(8)
    assert stations.series("2").state == "receiving"
    assert len(stations.jobs()) == 1
    node.sender.end("a2")
    node.pass_time(3)
    assert stations.jobs() == [JobState.QUEUED] * 3
    claimed = {stations.claim().job_id for _ in range(3)}
    assert claimed == {1, 2, 3}


def test_the_reason_of_each_decision_is_in_the_journal(make_node, stations):
    node = make_node()
    node.sender.send(numbers=range(2))
    node.sender.end()
    node.pass_time(3)
    with stations.database.read() as connection:
        (entry,) = journal.of(connection, "series", 1)
        (enqueued,) = journal.of(connection, "job", 1)
    assert (entry.event, entry.before, entry.after) == ("quiet", "receiving", "complete")
    assert entry.reason == stations.series().reason
    assert enqueued.reason == "route one"


# -- keeping house


def test_what_no_row_names_goes_ten_minutes_after_it_was_first_seen(make_node):
    node = make_node()
    orphan, young = node.files.write([b"orphan"]), node.files.write([b"young"])
    os.utime(orphan.path, (0, 0))
    node.step_after(61)
    node.step_after(599)
    assert orphan.path.exists()
    node.step_after(1)
    assert not orphan.path.exists()
    assert young.path.exists()
