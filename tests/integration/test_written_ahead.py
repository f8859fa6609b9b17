"""Success before file and row: both follow, in order, after the database was away and after a process died as well."""

from __future__ import annotations

import errno
import re
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from listening_bed import until
from raw_peer import CT_CONTEXTS, data_set

from pacs_ai.dicom.arrival import Arrival, AssociationInfo
from pacs_ai.dicom.attributes import read_header
from pacs_ai.errors import OutOfResources, Unavailable
from pacs_ai.receive.ingest import Announced, DurableIngest
from pacs_ai.store import schema
from pacs_ai.store.ahead import Ahead
from pacs_ai.store.database import Database
from pacs_ai.store.files import Files, sha256_of
from pacs_ai.store.index import Index
from pacs_ai.store.segments import Place

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

SEGMENT_BYTES = 1 << 20
ASSOCIATION = AssociationInfo("a" * 32, "SENDER", "PACS_AI", "127.0.0.1", datetime(2026, 1, 1, tzinfo=UTC))
CT, SYNTAXES = CT_CONTEXTS[0][1:]


@dataclass
class Side:
    """A receiving side without a network, whose index is a list that may fail."""

    folder: Path
    record: Any = None
    is_recorded: Any = lambda *_: False
    note_ended: Any = None
    fault: Callable[[], None] = lambda: None
    rows: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.files = Files(self.folder / "files")
        ahead = Ahead(self.folder / "ahead", self.files.disk, segment_bytes=SEGMENT_BYTES, most=2)
        self.ingest = DurableIngest(
            self.files,
            self.record_as_told,
            ahead=ahead,
            is_recorded=self.is_recorded,
            note_ended=self.note_ended or self.ended,
        )

    def record_as_told(self, *arrivals: Any) -> None:
        (self.record or self.enter)(*arrivals)

    def enter(self, arrivals: Sequence[Arrival], marks: Mapping[str, tuple[str, int]] | None = None) -> None:
        self.fault()
        for arrival in arrivals:
            assert self.files.verify(arrival.sha256), "a row without its file"
        self.rows += [arrival.header.sop_instance_uid for arrival in arrivals]

    def ended(self, assoc_id: str, released: bool) -> None:
        self.fault()
        self.rows.append("released" if released else "lost")

    def send(
        self, uid: str, pixels: int = 5000, *, is_over: bool = False, by: AssociationInfo = ASSOCIATION
    ) -> list[Exception | None]:
        """Send an instance; return the list that holds the answer once there is one."""
        if not is_over:
            self.ingest.opened(by)
        answers: list[Exception | None] = []
        intake = self.ingest.begin(Announced(by, CT, uid, SYNTAXES[0]))
        content = bytearray(data_set(uid, pixels=pixels))
        intake.passing(memoryview(content))
        intake.finish(content, answers.append)
        return answers


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Side]]:
    sides: list[Side] = []

    def start(**fields: Any) -> Side:
        sides.append(Side(tmp_path, **fields))
        return sides[-1]

    yield start
    for side in sides:
        side.ingest.close()


def keep(ahead: Ahead, uid: str) -> Place:
    """Write an instance ahead; return where it is."""
    content = data_set(uid, pixels=5000)
    header = read_header(content, SYNTAXES[0])
    arrival = Arrival(
        header, sha256_of([content]), len(content), SYNTAXES[0], "CT", "PACS_AI", "127.0.0.1", uid, 0, datetime.now(UTC)
    )
    told: list[Any] = []
    assert ahead.keep(arrival, [content], told.append)
    assert isinstance(told[0], Place)
    return told[0]


def away() -> None:
    raise Unavailable("the database is away")


def test_success_does_not_wait_for_the_row_and_the_end_comes_after_all_rows(make: Callable[..., Side]):
    gate = threading.Event()
    side = make(fault=lambda: gate.wait(60))
    answers = [side.send(f"1.2.{number}") for number in range(5)]
    side.ingest.ended(ASSOCIATION.assoc_id, released=True)
    assert answers == [[None]] * 5
    assert side.rows == []
    gate.set()
    until(lambda: side.rows == [*(f"1.2.{number}" for number in range(5)), "released"])


def test_STO_09_while_the_database_is_away_instances_are_taken_until_there_is_no_room(make: Callable[..., Side]):
    side = make(fault=away)
    answers = []
    while len(answers) < 100:
        answers.append(side.send(f"1.2.{len(answers)}", pixels=200_000))
        until(lambda: answers[-1])
        if answers[-1] != [None]:
            break
    taken = [f"1.2.{number}" for number in range(len(answers) - 1)]
    assert len(taken) >= 4
    assert isinstance(answers[-1][0], Unavailable)
    side.ingest.ended(ASSOCIATION.assoc_id, released=True)
    side.fault = lambda: None
    until(lambda: side.rows == [*taken, "released"])
    until(lambda: side.send("1.2.100", pixels=200_000) == [None])


def test_STO_09_what_was_committed_though_the_connection_was_lost_is_not_recorded_again(
    make: Callable[..., Side],
):
    """PostgreSQL died between its commit and its answer; meanwhile further instances came."""
    recorded: list[str] = []
    marked: dict[str, tuple[str, int]] = {}
    gate = threading.Event()

    def record(arrivals: Sequence[Arrival], marks: Mapping[str, tuple[str, int]]) -> None:
        gate.wait(60)
        recorded.extend(arrival.header.sop_instance_uid for arrival in arrivals)
        is_first = not marked
        marked.update(marks)
        if is_first:
            raise Unavailable("the server closed the connection")

    def is_recorded(name: str, lap: str, number: int) -> bool:
        found = marked.get(name, ("", 0))
        return found[0] == lap and found[1] >= number

    side = make(record=record, is_recorded=is_recorded)
    sent = [f"1.2.{number}" for number in range(7)]
    assert [side.send(uid) for uid in sent] == [[None]] * 7
    side.ingest.ended(ASSOCIATION.assoc_id, released=True)
    gate.set()
    until(lambda: side.rows == ["released"])
    assert recorded == sent


@pytest.mark.parametrize("pixels", [5000, 2 << 20], ids=["written ahead", "with a file of its own"])
def test_STO_09_what_comes_too_late_ends_its_association_though_its_commit_was_in_doubt(
    make: Callable[..., Side], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pixels: int
):
    """Its row opens the association again, and completion would wait for an end that never comes."""
    database = Database(f"sqlite:///{tmp_path / 'index.sqlite'}")
    schema.metadata.create_all(database.engine)
    index = Index(database, Files(tmp_path / "files").path, "receive:1")
    write, lost = database.write, threading.Event()

    @contextmanager
    def losing() -> Iterator[sa.Connection]:
        with write() as connection:
            yield connection
        if not lost.is_set():
            lost.set()
            raise Unavailable("the server closed the connection")

    def are_ended() -> list[bool]:
        with database.read() as connection:
            return [end is not None for end in connection.execute(sa.select(schema.association.c.ended_at)).scalars()]

    side = make(record=index.record, is_recorded=index.is_recorded, note_ended=index.association_ended)
    side.ingest.opened(ASSOCIATION)
    side.ingest.ended(ASSOCIATION.assoc_id, released=True)
    monkeypatch.setattr(database, "write", losing)
    answers = side.send("1.2.1", pixels=pixels, is_over=True)
    until(lambda: answers and lost.is_set() and side.ingest.owes_nothing)
    assert are_ended() == [True]
    side.ingest.close()
    database.close()


def test_STO_01_while_the_disk_is_full_nothing_is_taken(make: Callable[..., Side], monkeypatch: pytest.MonkeyPatch):
    def full(*_: object) -> None:
        raise OutOfResources("the disk is full")

    side = make()
    with monkeypatch.context() as patch:
        patch.setattr(side.files, "copy", full)
        assert side.send("1.2.1") == [None]
        until(lambda: side.ingest._indexing.trouble)
        assert isinstance(side.send("1.2.2")[0], OutOfResources)
    until(lambda: side.rows == ["1.2.1"])
    until(lambda: side.ingest._indexing.trouble is None)
    assert side.send("1.2.3") == [None]
    until(lambda: side.rows == ["1.2.1", "1.2.3"])


def test_STO_08_what_a_process_left_the_next_one_indexes_and_ends(make: Callable[..., Side]):
    side = make(fault=away)
    assert [side.send(f"1.2.{number}") for number in range(3)] == [[None]] * 3
    side.ingest.close()
    again = make()
    assert again.send("1.2.3") == [None]
    until(lambda: again.rows[:4] == ["1.2.0", "1.2.1", "1.2.2", "lost"])
    until(lambda: again.rows[4:] == ["1.2.3"])
    again.ingest.close()
    last = make()
    last.ingest.close()
    assert last.rows == []


def test_a_row_is_not_made_twice_where_the_process_died_before_it_let_go(
    make: Callable[..., Side], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    database = Database(f"sqlite:///{tmp_path / 'index.sqlite'}")
    schema.metadata.create_all(database.engine)

    def arrivals() -> tuple[int, int]:
        with database.read() as connection:
            rows = connection.exec_driver_sql("SELECT sum(arrivals), count(*) FROM series, instance").one()
            return int(rows[0] or 0) // max(1, rows[1]), rows[1]

    index = Index(database, Files(tmp_path / "files").path, "receive:1")
    with monkeypatch.context() as patch:
        patch.setattr(Ahead, "done", lambda *_: None)
        patch.setattr(Ahead, "rest", lambda *_: None)
        side = make(record=index.record)
        for number in range(3):
            assert side.send(f"1.2.{number}") == [None]
        until(lambda: arrivals() == (3, 3))
        side.ingest.close()
    again = make(record=index.record, is_recorded=index.is_recorded)
    assert again.send("1.2.3") == [None]
    until(lambda: arrivals()[1] == 4)
    assert arrivals() == (4, 4)
    again.ingest.close()
    database.close()


def test_an_instance_that_can_have_no_row_is_set_aside_and_holds_nobody_up(
    make: Callable[..., Side], caplog: pytest.LogCaptureFixture
):
    gate = threading.Event()
    side = make()
    enter = side.enter

    def picky(arrivals: Sequence[Arrival], marks: Mapping[str, tuple[str, int]] | None = None) -> None:
        gate.wait(60)
        if any(arrival.header.sop_instance_uid == "1.2.1" for arrival in arrivals):
            raise ValueError("Secret^Name")
        enter(arrivals, marks)

    side.record = picky
    assert [side.send(f"1.2.{number}") for number in range(3)] == [[None]] * 3
    gate.set()
    until(lambda: side.rows == ["1.2.0", "1.2.2"])
    (aside,) = (side.folder / "ahead").glob("*.dcm")
    assert data_set("1.2.1", pixels=5000) in aside.read_bytes()
    until(lambda: str(aside) in caplog.text)
    assert "Secret" not in caplog.text
    until(lambda: "still cannot be indexed" in caplog.text or not side.ingest._indexing._upkeep.may_have_rows)
    assert aside.exists()
    side.ingest.close()
    again = make()  # a release that can
    until(lambda: again.rows == ["1.2.1", "lost"])
    until(lambda: not list((side.folder / "ahead").glob("*.*")))
    until(lambda: f"{aside} is indexed now" in caplog.text)


def test_a_row_that_the_database_refuses_is_set_aside_and_holds_nobody_up(
    make: Callable[..., Side], tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    """Through the true index: a constraint that one of a batch breaks is no race with another process."""
    database = Database(f"sqlite:///{tmp_path / 'index.sqlite'}")
    schema.metadata.create_all(database.engine)
    odd = "CREATE TRIGGER odd BEFORE INSERT ON instance WHEN NEW.sop_instance_uid = '1.2.1' BEGIN SELECT {}; END"
    with database.write() as connection:
        connection.exec_driver_sql(odd.format("RAISE(ABORT, 'odd')"))
    gate = threading.Event()
    index = Index(database, Files(tmp_path / "files").path, "receive:1")

    def record(*arrivals: Any) -> None:
        gate.wait(60)
        index.record(*arrivals)

    def rows() -> list[str]:
        with database.read() as connection:
            query = sa.select(schema.instance.c.sop_instance_uid).order_by(schema.instance.c.id)
            return list(connection.execute(query).scalars())

    side = make(record=record, is_recorded=index.is_recorded)
    assert [side.send(f"1.2.{number}") for number in range(4)] == [[None]] * 4
    gate.set()
    until(lambda: rows() == ["1.2.0", "1.2.2", "1.2.3"])
    until(lambda: "it was set aside as" in caplog.text)
    assert re.search(r"\d instances are committed one by one after IntegrityError", caplog.text)
    assert "an instance that was received cannot be indexed (IntegrityError)" in caplog.text
    assert len(list((side.folder / "ahead").glob("*.dcm"))) == 1
    until(lambda: side.ingest.owes_nothing)
    side.ingest.close()
    database.close()


def test_what_was_set_aside_is_let_go_when_it_was_sent_again(make: Callable[..., Side], monkeypatch):
    side = make()
    enter = side.enter

    def failing(*_: object) -> None:
        raise ValueError

    side.record = failing
    assert side.send("1.2.1") == [None]
    until(lambda: list((side.folder / "ahead").glob("*.dcm")))
    side.record = enter
    assert side.send("1.2.1") == [None]
    until(lambda: not list((side.folder / "ahead").glob("*.*")))
    until(lambda: set(side.rows) == {"1.2.1"})


def test_a_second_try_ends_no_association_that_goes_on(make: Callable[..., Side], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("pacs_ai.receive.indexing._QUIET_SECONDS", 0.05)
    side = make()
    side.ingest.opened(ASSOCIATION)

    def failing(*_: object) -> None:
        raise ValueError

    side.record = failing
    assert side.send("1.2.1") == [None]
    until(lambda: list((side.folder / "ahead").glob("*.dcm")))
    side.record = side.enter
    assert side.send("1.2.2") == [None]
    until(lambda: not list((side.folder / "ahead").glob("*.*")))
    assert side.send("1.2.3") == [None]
    side.ingest.ended(ASSOCIATION.assoc_id, released=True)
    until(lambda: "released" in side.rows)
    assert sorted(side.rows) == ["1.2.1", "1.2.2", "1.2.3", "released"]


def test_STO_04_out_of_open_files_in_a_quiet_moment_indexing_goes_on(
    make: Callable[..., Side], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr("pacs_ai.receive.indexing._QUIET_SECONDS", 0.05)
    looked = []

    def found(_folder: Path) -> list[Path]:
        looked.append(1)
        raise OSError(errno.EMFILE, "Too many open files")

    side = make()
    with monkeypatch.context() as patch:
        patch.setattr("pacs_ai.store.aside.found", found)
        assert side.send("1.2.1") == [None]
        until(lambda: len(looked) > 2)
        assert side.send("1.2.2") == [None]
        until(lambda: side.rows == ["1.2.1", "1.2.2"])
    assert caplog.text.count("cannot be tidied now: unexpected OSError in") == 1
    until(lambda: side.ingest.is_settled)


def test_whatever_goes_wrong_between_two_batches_indexing_goes_on(
    make: Callable[..., Side], caplog: pytest.LogCaptureFixture
):
    side = make()
    faults = [RuntimeError("Secret^Name"), RuntimeError("Secret^Name")]
    real = side.ingest._indexing._step

    def step() -> bool:
        if faults:
            raise faults.pop()
        return real()

    side.ingest._indexing._step = step
    assert side.send("1.2.1") == [None]
    until(lambda: not side.ingest.is_settled or side.rows)
    until(lambda: side.rows == ["1.2.1"])
    assert caplog.text.count("cannot be indexed: unexpected RuntimeError in step (") == 1
    assert "Secret" not in caplog.text
    until(lambda: side.ingest.is_settled)


def test_QUE_05_indexing_that_hangs_without_an_error_is_in_arrears(
    make: Callable[..., Side], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("pacs_ai.receive.indexing._STALL_SECONDS", 0.2)
    gate = threading.Event()
    side = make(fault=lambda: gate.wait(60))
    assert side.send("1.2.1") == [None]
    until(lambda: not side.ingest.is_settled)
    gate.set()
    until(lambda: side.ingest.owes_nothing)
    assert side.rows == ["1.2.1"]


def test_QUE_05_indexing_that_goes_on_and_lags_is_in_arrears(
    make: Callable[..., Side], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("pacs_ai.receive.indexing._STALL_SECONDS", 3600.0)
    monkeypatch.setattr("pacs_ai.receive.indexing._LATE_SECONDS", 3600.0)
    monkeypatch.setattr("pacs_ai.receive.indexing.MAX_BATCH", 1)
    steps = threading.Semaphore(0)
    side = make(fault=lambda: steps.acquire(timeout=60))
    for number in range(40):
        side.send(f"1.2.{number}")
    for number in range(10):
        steps.release()
        until(lambda count=number + 1: len(side.rows) == count)
    assert side.ingest.is_settled, "each came a moment ago"
    monkeypatch.setattr("pacs_ai.receive.indexing._LATE_SECONDS", 0.2)
    until(lambda: not side.ingest.is_settled)
    steps.release(30)
    until(lambda: side.ingest.owes_nothing)
    assert len(side.rows) == 40


def test_STO_13_an_association_that_ended_before_its_instance_was_stored_is_ended_again(make: Callable[..., Side]):
    side = make()
    side.ingest.ended(ASSOCIATION.assoc_id, released=True)
    until(lambda: side.rows == ["released"])
    assert side.send("1.2.1", is_over=True) == [None]  # what had hung goes on
    until(lambda: side.rows == ["released", "1.2.1", "lost"])


def test_STO_09_behind_an_end_that_cannot_be_noted_a_sender_is_told_at_once(make: Callable[..., Side]):
    side = make()
    side.send("1.2.0")
    until(lambda: side.rows == ["1.2.0"])
    side.fault = away
    side.ingest.ended(ASSOCIATION.assoc_id, released=True)
    begin = time.monotonic()
    answers = side.send("1.2.1", pixels=SEGMENT_BYTES)
    until(lambda: answers)
    assert isinstance(answers[0], Unavailable)
    assert time.monotonic() - begin < 5.0, "STO-09: refused, or waited for, within 5 s"
    side.fault = lambda: None
    until(lambda: side.rows == ["1.2.0", "released"])


def test_STO_09_ends_of_associations_that_brought_nothing_do_not_wait_for_the_database(make: Callable[..., Side]):
    """Health checks and C-ECHO go on for hours while it is away; each that waited would cost memory."""
    gate = threading.Event()
    side = make(record=lambda *_: gate.wait(60))
    assert side.send("1.2.1") == [None]
    waiting = side.ingest._indexing.waiting
    for number in range(10):
        side.ingest.opened(replace(ASSOCIATION, assoc_id=f"{number:032}"))
        side.ingest.ended(f"{number:032}", released=True)
    assert side.rows == ["released"] * 10
    assert side.ingest._indexing.waiting == waiting
    gate.set()


def test_STO_09_a_commit_that_shows_late_takes_no_other_instance_from_the_queue(tmp_path: Path):
    """Two processes died; of what the second had left, a commit that hung on the server shows after the first look."""
    files = Files(tmp_path / "files")
    left = [Ahead(tmp_path / "ahead", files.disk, segment_bytes=SEGMENT_BYTES, most=1) for _ in range(2)]
    for number, ahead in enumerate(left):
        keep(ahead, f"1.2.{number}")
    for ahead in left:
        ahead.close()
    failures, rows = [Unavailable("lock timeout")], []

    def record(arrivals: Sequence[Arrival], _marks: object = None) -> None:
        if failures:
            raise failures.pop()
        rows.extend(arrival.header.sop_instance_uid for arrival in arrivals)

    ahead = Ahead(tmp_path / "ahead", files.disk, segment_bytes=SEGMENT_BYTES, most=2)
    (first, _), (_, last) = ahead.left
    late = last.name
    ingest = DurableIngest(files, record, ahead=ahead, is_recorded=lambda name, *_: not failures and name == late)
    try:
        until(lambda: ingest.owes_nothing and not failures)
        assert rows == [first.header.sop_instance_uid]
        assert [place.segment.left for _, place in ahead.left] == [0, 0]
    finally:
        ingest.close()


def test_STO_09_ends_that_cannot_be_noted_take_no_room_from_instances(
    make: Callable[..., Side], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("pacs_ai.receive.indexing.MAX_WAITING", 3)
    side = make()
    for number in range(10):
        by = replace(ASSOCIATION, assoc_id=f"{number:032}")
        side.send(f"1.3.{number}", by=by)
    until(lambda: len(side.rows) == 10)
    side.fault = away
    for number in range(10):
        side.ingest.ended(f"{number:032}", released=True)
    assert [side.send(f"1.2.{number}") for number in range(3)] == [[None]] * 3
    fourth = side.send("1.2.4")
    until(lambda: fourth)
    assert isinstance(fourth[0], Unavailable)


def test_what_a_process_left_that_is_not_started_again_another_indexes_while_it_runs(
    make: Callable[..., Side], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("pacs_ai.store.unheld.LOOK_SECONDS", 0.0)
    monkeypatch.setattr("pacs_ai.receive.indexing._QUIET_SECONDS", 0.05)
    recorded = []

    def is_recorded(*place: object) -> bool:
        recorded.append(place)
        if len(recorded) == 1:
            raise Unavailable("the database is away")
        return place[-1] == 1  # of each lap the first has its row

    running, other = make(is_recorded=is_recorded), make(fault=away)
    assert running.ingest.owes_nothing
    assert [other.send(f"1.2.{number}") for number in range(3)] == [[None]] * 3
    other.ingest.close()
    until(lambda: running.rows == ["1.2.1", "1.2.2", "lost"])
    until(lambda: running.ingest.owes_nothing)
    assert running.send("1.2.3") == [None]
    until(lambda: running.rows[3:] == ["1.2.3"])


def test_QUE_05_what_is_taken_over_is_in_arrears_and_is_indexed_beside_what_comes(
    make: Callable[..., Side], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("pacs_ai.store.unheld.LOOK_SECONDS", 0.0)
    monkeypatch.setattr("pacs_ai.receive.indexing._QUIET_SECONDS", 0.05)
    looked, is_away = [], threading.Event()
    is_away.set()

    def is_recorded(*place: object) -> bool:
        looked.append(place)
        if is_away.is_set():
            raise Unavailable("the database is away")
        return False

    running, other = make(is_recorded=is_recorded), make(fault=away)
    assert other.send("1.2.1") == [None]
    other.ingest.close()
    until(lambda: looked)
    assert not running.ingest.is_settled
    monkeypatch.setattr("pacs_ai.receive.indexing._QUIET_SECONDS", 3600.0)  # no moment is quiet any more
    is_away.clear()
    assert running.send("1.2.2") == [None]
    until(lambda: {"1.2.1", "1.2.2", "lost"} == set(running.rows))
    until(lambda: running.ingest.owes_nothing)


def test_PRI_01_after_a_burst_no_segment_holds_what_came(make: Callable[..., Side], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("pacs_ai.receive.indexing._QUIET_SECONDS", 0.05)
    side = make()
    for number in range(8):
        assert side.send(f"1.2.{number}", pixels=200_000) in ([None], [])
    until(lambda: len(side.rows) == 8)
    until(lambda: not any(path.read_bytes().strip(b"\0") for path in (side.folder / "ahead").iterdir()))


def test_what_does_not_fit_into_a_segment_has_a_file_of_its_own_and_waits_for_its_row(make: Callable[..., Side]):
    gate = threading.Event()
    side = make(fault=lambda: gate.wait(60))
    assert side.send("1.2.1") == [None]
    long = side.send("1.2.2", pixels=SEGMENT_BYTES)
    assert long == []
    gate.set()
    until(lambda: long == [None])
    assert side.rows == ["1.2.1", "1.2.2"]
