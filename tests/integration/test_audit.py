"""The audit trail over both databases: what happened becomes events, once; a repository that is away misses none."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import audit_schema as schema_of
import pytest
import sqlalchemy as sa
from certificates import Authority
from running_node import until
from stations import BACKOFF, ME, Clock

from pacs_ai import tls
from pacs_ai.audit import tally
from pacs_ai.audit.auditor import AuditThreads, parts
from pacs_ai.audit.events import Teller
from pacs_ai.audit.syslog import Envelope
from pacs_ai.audit.takers import AuditFile, Repository
from pacs_ai.credentials import calling
from pacs_ai.dicom.arrival import AssociationInfo, Refusal
from pacs_ai.errors import OutOfResources, Reason, Unavailable
from pacs_ai.network_sections import Tls
from pacs_ai.store import orders, outbox, processes, queue, retention, retraction, schema, spool, trail
from pacs_ai.store.files import Files

TELLER = Teller("node", "ai.example.org", ("PACS_AI",), "node", "General Hospital")
ENVELOPE = Envelope("ai.example.org", 4711)
OPERATOR = "operator:jo"


class Memory:
    """A taker that keeps what it is given, or is away."""

    def __init__(self, name="file"):
        self.name = name
        self.away = ""
        self.messages = []

    def take(self, events):
        if self.away:
            raise Unavailable(self.away)
        self.messages += [schema_of.check(event.message) for event in events]

    def kinds(self):
        return [(schema_of.event(one), *schema_of.types(one)) for one in self.messages]


class Together:
    """The auditor and a messenger for each taker; `step` steps each once."""

    def __init__(self, *given):
        self.parts = parts(*given)

    def step(self):
        found_some = [part.step() for part in self.parts]
        return any(found_some)


@pytest.fixture
def memory():
    return Memory()


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def auditor(database, memory, clock):
    return Together(database, TELLER, [memory], clock)


def settle(auditor):
    """Step until nothing is left."""
    while auditor.step():
        pass


def test_the_way_of_a_study_is_told(stations, sender, auditor, memory):
    sender.send(numbers=[1, 2], PatientName="Doe^Jane", AccessionNumber="A7")
    sender.end()
    job_id, _ = stations.enqueue(stations.work(stations.complete()))
    stations.finish(stations.claim())
    stations.deliver_all()
    settle(auditor)
    assert sorted(memory.kinds()) == sorted(
        [
            ("110104", "received"),
            ("110103", "job-claimed"),
            ("110103", "job-finished"),
            ("110102", "delivery-claimed"),
            ("110104", "delivery-accepted"),
            ("110102", "delivery-claimed"),
            ("110104", "delivery-accepted"),
        ]
    )
    received = memory.messages[0]
    assert received[0].get("EventActionCode") == "C"
    assert schema_of.details(received) == {"association": "a1", "instances": "2"}
    (patient,) = schema_of.patients(received)
    assert patient.get("ParticipantObjectID") == "P1"
    assert patient.findtext("ParticipantObjectName") == "Doe^Jane"
    assert received.find(".//Accession").get("Number") == "A7"
    assert received.find(".//SOPClass").get("NumberOfInstances") == "2"
    source, target = received.findall("ActiveParticipant")
    assert (source.get("UserID"), source.get("NetworkAccessPointID")) == ("MODALITY", "127.0.0.1")
    assert target.get("AlternativeUserID") == "AETITLES=PACS_AI"
    finished = next(one for one in memory.messages if schema_of.types(one) == ["job-finished"])
    assert (
        schema_of.details(finished).items() >= {"job": str(job_id), "pipeline": "ct-lung", "model digest": "m"}.items()
    )


def test_each_event_names_the_patient_of_its_series(stations, sender, auditor, memory):
    sender.send("1", [1], PatientID="P1", PatientName="Doe^Jane")
    sender.send("2", [1, 2], PatientID="P2", PatientName="Roe^Joan", AccessionNumber="A8")  # of the same study
    sender.end()
    stations.enqueue(stations.work(stations.complete("2")))
    stations.finish(stations.claim())
    stations.deliver_all()
    settle(auditor)
    received = [one for one in memory.messages if schema_of.types(one) == ["received"]]
    told = [schema_of.patients(one)[0].get("ParticipantObjectID") for one in received]
    assert told == ["P1", "P2"]
    assert [schema_of.details(one)["instances"] for one in received] == ["1", "2"]
    assert [one.find(".//SOPClass").get("NumberOfInstances") for one in received] == ["1", "2"]
    rest = [one for one in memory.messages if one not in received]
    assert {kind for one in rest for kind in schema_of.types(one)} > {"job-finished", "delivery-accepted"}
    for one in rest:
        (patient,) = schema_of.patients(one)
        assert patient.get("ParticipantObjectID") == "P2"
        assert patient.findtext("ParticipantObjectName") == "Roe^Joan"
        assert one.find(".//Accession").get("Number") == "A8"


def test_nothing_is_told_twice_and_told_events_go(stations, sender, database, auditor, memory):
    stations.done_job(sender)
    settle(auditor)
    count = len(memory.messages)
    assert count > 0
    settle(auditor)
    assert len(memory.messages) == count
    assert stations.rows(schema.audit_event) == []
    sender.send(numbers=[1, 2], assoc="a2")  # repeats, by another association
    sender.end("a2")
    settle(auditor)
    (repeat,) = memory.messages[count:]
    assert repeat[0].get("EventActionCode") == "R"
    assert schema_of.details(repeat)["association"] == "a2"


def test_an_open_association_is_told_when_its_series_is_complete(stations, sender, auditor, memory):
    sender.send(numbers=[1, 2])
    settle(auditor)
    assert memory.messages == []
    stations.complete()
    settle(auditor)
    assert memory.kinds() == [("110104", "received")]
    sender.send(numbers=[3])
    sender.end()
    settle(auditor)
    assert [schema_of.details(one)["instances"] for one in memory.messages] == ["2", "1"]


def test_orders_name_the_operator(stations, sender, database, auditor, memory):
    job_id = stations.done_job(sender)
    stations.deliver_all()
    retraction.retract(database, job_id, reason="safety", because="wrong side", honours={}, actor=OPERATOR)
    orders.pause(database, "ct-lung", actor=OPERATOR, reason="looks wrong")
    trail.note(database, [trail.Notice(trail.NoticeKind.COMMAND, datetime.now(UTC), "retract 1", actor=OPERATOR)])
    settle(auditor)
    by_operator = [
        (one, schema_of.types(one)[0])
        for one in memory.messages
        if one.find("ActiveParticipant").get("UserID") == "jo@ai.example.org"
    ]
    assert {kind for _, kind in by_operator} >= {"job-retracted", "delivery-retracted", "110131", "110122"}
    (alert,) = [one for one, kind in by_operator if kind == "110131"]
    assert schema_of.details(alert)["Alert Description"] == "pipeline ct-lung paused: looks wrong"
    retracted = next(one for one, kind in by_operator if kind == "job-retracted")
    assert schema_of.studies(retracted)[0].get("ParticipantObjectDataLifeCycle") == "14"


def test_failures_are_told_as_such(stations, sender, database, auditor, memory):
    sender.send(numbers=[1, 2])
    stations.enqueue(stations.work(stations.complete()))
    queue.refuse(database, stations.claim(), "too few slices", Reason.TOO_FEW)
    stations.done_job(sender, "2")
    with database.read() as connection:
        (peer,) = outbox.due_peers(connection)
    held = outbox.claim(database, peer, ME)
    outbox.put_back(database, held, reached=False, reason="cannot be reached", backoff=BACKOFF)
    settle(auditor)
    outcomes = {
        schema_of.types(one)[0]: (one[0].get("EventOutcomeIndicator"), one.findtext(".//EventOutcomeDescription"))
        for one in memory.messages
    }
    assert outcomes["job-refused"] == ("4", "too few slices")
    assert outcomes["delivery-lost"] == ("4", "cannot be reached")
    assert outcomes["delivery-claimed"][0] == "0"


def test_STO_06_a_conflict_is_told(stations, sender, auditor, memory):
    sender.send(content=1)
    sender.send(content=2)
    settle(auditor)
    assert ("110103", "series-differing_instance".replace("_", "-")) in memory.kinds()


def test_PRI_04_what_retention_deletes_leaves_bytes_and_rows_and_an_event(
    stations, sender, database, auditor, memory, tmp_path, wall
):
    sender.send(numbers=[1, 2], PatientName="Doe^Jane")
    sender.send("2", [3])
    sender.end()
    for series in ("1", "2"):
        with database.write() as connection:
            connection.execute(
                sa.update(schema.series)
                .where(schema.series.c.series_instance_uid == f"1.2.3.{series}")
                .values(state="unrouted", routed_revision=1)
            )
    with database.write() as connection:
        connection.execute(
            sa.update(schema.series)
            .where(schema.series.c.series_instance_uid == "1.2.3.2")
            .values(last_received_at=datetime.now(UTC) + timedelta(days=3))
        )
    files = Files(tmp_path / "store")
    purge = {"inputs_days": 14, "unrouted_days": 2, "actor": ME}
    wall.forward(days=3)
    assert retention.purge(database, files, **purge) == 2
    settle(auditor)
    assert memory.kinds().count(("110103", "series-purged")) == 1  # of a study of which something is left
    wall.forward(days=6)
    assert retention.purge(database, files, **purge) == 1
    settle(auditor)
    assert [schema_of.event(one) for one in memory.messages].count("110105") == 1
    deleted = next(one for one in memory.messages if schema_of.event(one) == "110105")
    assert deleted[0].get("EventActionCode") == "D"
    assert schema_of.patients(deleted)[0].get("ParticipantObjectID") == "P1"
    assert schema_of.studies(deleted)[0].get("ParticipantObjectDataLifeCycle") == "15"
    for row in stations.rows(schema.series):  # the account that stations give is of moves
        with database.write() as connection:
            connection.execute(sa.update(schema.series).where(schema.series.c.id == row.id).values(state="receiving"))


def test_processes_are_told(database, auditor, memory):
    processes.register(database, ME, "route", "detail")
    processes.leave(database, ME)
    settle(auditor)
    assert memory.kinds() == [("110100", "110120"), ("110100", "110121")]
    assert memory.messages[0].find("ActiveParticipant").get("UserID") == ME.split(":")[2]


DEAD = ":".join([*ME.split(":")[:2], "1", "1"])


def received(memory):
    """Return association and number of each receipt."""
    told = [schema_of.details(one) for one in memory.messages if schema_of.types(one) == ["received"]]
    return [(one["association"], one["instances"]) for one in told]


def of_the_dead(database):
    """Let associations that did not end have been those of a process that was killed."""
    processes.register(database, DEAD, processes.RECEIVE)
    with database.write() as connection:
        is_open = schema.association.c.ended_at.is_(None)
        connection.execute(sa.update(schema.association).where(is_open).values(owner=DEAD))


def test_PRI_07_what_a_killed_process_received_is_told(database, sender, auditor, memory):
    """It could not note the association's end: who takes its place does. What gets its rows after that is told too."""
    sender.send(numbers=[1])
    sender.end()
    sender.send(numbers=[1, 1], assoc="a2")  # repeats move nothing
    of_the_dead(database)
    settle(auditor)
    assert received(memory) == [("a1", "1")]
    processes.register(database, ME, processes.RECEIVE, succeeds=[DEAD])
    settle(auditor)
    sender.send(numbers=[1], assoc="a2")  # it had been written ahead
    settle(auditor)
    settle(auditor)
    assert received(memory) == [("a1", "1"), ("a2", "2"), ("a2", "1")]


def test_PRI_07_what_a_process_received_that_is_not_waited_for_any_longer_is_told(database, sender, auditor, memory):
    sender.send(numbers=[1])
    of_the_dead(database)
    processes.give_up(database, [DEAD], waited_seconds=1)
    settle(auditor)
    assert received(memory) == [("a1", "1")]


def test_PRI_07_a_repository_that_is_away_misses_nothing(stations, sender, database, memory, clock):
    """The file goes on meanwhile; the spool holds what the repository lacks, and status can say so."""
    repository = Memory("repository")
    repository.away = "audit repository at 127.0.0.1:6514 cannot be reached"
    auditor = Together(database, TELLER, [memory, repository], clock)
    stations.done_job(sender)
    settle(auditor)
    assert len(memory.messages) == 3
    assert repository.messages == []
    with database.read() as connection:
        file, away = spool.standings(connection, ["file", "repository"])
    assert (file.waiting, file.failing_since) == (0, None)
    assert (away.waiting, away.problem) == (3, repository.away)
    assert away.failing_since is not None
    repository.away = ""
    stations.deliver_all()
    settle(auditor)
    assert repository.messages == []  # its turn has not come yet
    clock.forward(60)
    settle(auditor)
    assert Counter(repository.kinds()) == Counter(memory.kinds())
    assert stations.rows(schema.audit_event) == []
    with database.read() as connection:
        assert [one.failing_since for one in spool.standings(connection, ["file", "repository"])] == [None, None]


def test_PRI_07_an_auditor_killed_after_telling_tells_again(stations, sender, database, memory, clock, monkeypatch):
    """Between the handing over and the cursor: a duplicate, never a loss."""
    stations.done_job(sender)

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(spool, "taken", killed)
        with pytest.raises(KeyboardInterrupt):
            Together(database, TELLER, [memory], clock).step()
    first = Counter(memory.kinds())
    assert first.total() == 3
    settle(Together(database, TELLER, [memory], clock))
    assert Counter(memory.kinds()) == first + first


_KILLED = """
import os, signal, sys
from pathlib import Path
from pacs_ai.audit.auditor import parts
from pacs_ai.audit.events import Teller
from pacs_ai.audit.syslog import Envelope
from pacs_ai.audit.takers import AuditFile
from pacs_ai.store.database import Database

class Killed(AuditFile):
    def take(self, events):
        super().take(events)
        os.kill(os.getpid(), signal.SIGKILL)

teller = Teller("node", "ai.example.org", ("PACS_AI",), "node")
taker = Killed(Path(sys.argv[2]), Envelope("ai.example.org", os.getpid()), 10**9)
for part in parts(Database(sys.argv[1]), teller, [taker]):
    part.step()
"""


def test_PRI_07_kill_9_between_the_file_and_the_cursor_gives_duplicates_and_no_loss(
    stations, sender, database, tmp_path
):
    stations.done_job(sender)
    command = [sys.executable, "-c", _KILLED, database.url, tmp_path / "audit"]
    for _ in range(2):
        assert subprocess.run(command, check=False, timeout=120).returncode == -signal.SIGKILL
    settle(Together(database, TELLER, [AuditFile(tmp_path / "audit", ENVELOPE, 10**9)]))
    told = Counter(schema_of.types(schema_of.unwrap(line))[0] for line in lines(tmp_path / "audit"))
    assert told == {"received": 3, "job-claimed": 3, "job-finished": 3}


def test_an_auditor_killed_before_spooling_loses_nothing(stations, sender, database, memory, clock, monkeypatch):
    stations.done_job(sender)

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(trail, "keep", killed)
        with pytest.raises(KeyboardInterrupt):
            Together(database, TELLER, [memory], clock).step()
    settle(Together(database, TELLER, [memory], clock))
    assert len(memory.messages) == 3


def test_of_two_auditors_one_tells(stations, sender, database):
    """The second one's batch is out of turn."""
    stations.done_job(sender)
    with database.read() as connection:
        first, second = (trail.read(connection, trail.Horizon()) for _ in range(2))
    assert trail.keep(database, first, TELLER.events(first))
    assert not trail.keep(database, second, TELLER.events(second))
    assert len(stations.rows(schema.audit_event)) == 3


def test_a_row_that_is_committed_late_is_not_skipped(stations, sender, database, auditor, memory):
    """PostgreSQL gives out numbers before the commit: a lower one may appear after a higher one."""
    if database.is_sqlite:
        pytest.skip("SQLite has one writer at a time")
    with database.write() as slow:
        processes_row = {"subject": "node", "subject_id": "slow", "event": "started", "before": "", "after": ""}
        row = {**processes_row, "at": datetime.now(UTC), "reason": "", "actor": ME}
        slow.execute(sa.insert(schema.journal), row)
        processes.register(database, ME, "route")
        settle(auditor)
        assert memory.messages == []  # the lower number is not settled yet
    settle(auditor)
    assert len(memory.messages) == 2


def test_without_takers_nothing_is_kept(database, clock):
    trail.note(database, [trail.Notice(trail.NoticeKind.COMMAND, datetime.now(UTC), "x", actor=OPERATOR)])
    auditor = Together(database, TELLER, [], clock)
    assert not auditor.step()
    with database.read() as connection:
        assert connection.execute(sa.select(sa.func.count()).select_from(schema.audit_notice)).scalar_one() == 0


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_fault_of_the_auditor_shows_and_names_nobody(stations, sender, database, memory, clock, caplog):
    """The thread goes on, so that deliveries do."""
    sender.send(PatientName="Doe^Jane")
    sender.end()
    broken = Together(database, Faulty("node", "ai.example.org", ("PACS_AI",), "node"), [memory], clock)
    stop = threading.Event()
    thread = AuditThreads(broken.parts, stop)
    thread.start()
    until(lambda: caplog.text)
    stop.set()
    thread.join(60)
    assert "audit events are not made: unexpected ValueError in events (test_audit.py:" in caplog.text
    assert "Doe" not in caplog.text
    with database.read() as connection:
        (standing,) = spool.standings(connection, ["file"])
    assert "unexpected ValueError" in standing.problem


class Faulty(Teller):
    def events(self, batch):
        raise ValueError(batch.receipts[0].concerned.study.patient_name)


# -- refusals


def refusal(address="192.0.2.7", what="association", reason="calling AE title not recognised"):
    return Refusal(what, address, "CT_9", "PACS_AI", reason, datetime.now(UTC))


def test_a_flood_of_refusals_is_summed_up(stations, database, auditor, memory, clock):
    counts = tally.Tally(database, clock)
    counts.refused(refusal())
    counts.write()
    assert stations.rows(schema.audit_notice) == []
    clock.forward(1)
    counts.write()
    for _ in range(5000):
        counts.refused(refusal())
    clock.forward(1)
    counts.write()
    settle(auditor)
    assert memory.kinds() == [("110113", "110126")]
    clock.forward(60)
    counts.write()
    settle(auditor)
    said = [schema_of.details(one)["Alert Description"] for one in memory.messages]
    once = "association from 192.0.2.7 refused: calling AE title not recognised"
    assert said == [once, once.replace("refused", "refused 5000 times within a minute")]


def test_many_addresses_are_bounded(stations, database, clock):
    counts = tally.Tally(database, clock)
    for number in range(3 * tally.MAX_APART):
        counts.refused(refusal(f"10.0.{number // 256}.{number % 256}", "connection"))
    counts.write(whole=True)
    rows = stations.rows(schema.audit_notice)
    assert len(rows) == tally.MAX_APART + 1
    assert sum(row.times for row in rows) == 3 * tally.MAX_APART


def test_refusals_wait_for_a_database_that_is_away(database, clock, monkeypatch, stations):
    counts = tally.Tally(database, clock)
    counts.refused(refusal())

    def away(*_):
        raise Unavailable("away")

    with monkeypatch.context() as patched:
        patched.setattr(trail, "note", away)
        counts.write(whole=True)
    counts.write(whole=True)
    assert [row.times for row in stations.rows(schema.audit_notice)] == [1]


def test_a_refusal_that_cannot_be_written_ends_nothing_and_is_kept(database, clock, monkeypatch, stations, caplog):
    counts = tally.Tally(database, clock)
    counts.refused(refusal())

    def odd(*_):
        raise UnicodeEncodeError("latin-1", "Secret", 0, 1, "ordinal not in range(256)")

    with monkeypatch.context() as patched:
        patched.setattr(trail, "note", odd)
        counts.write(whole=True)
    assert "what was refused is not noted: unexpected UnicodeEncodeError" in caplog.text
    assert "Secret" not in caplog.text
    counts.write(whole=True)
    assert [row.times for row in stations.rows(schema.audit_notice)] == [1]


def test_refused_instances_and_idle_associations_have_events_of_their_own(database, auditor, memory, clock):
    counts = tally.Tally(database, clock)
    counts.refused(refusal(what="instance", reason="not a whole and sound DICOM data set"))
    for name in ("a", "b"):
        counts.opened(AssociationInfo(name, "MONITOR", "PACS_AI", "192.0.2.9", datetime.now(UTC)))
    counts.ended("a", brought=False)
    counts.ended("b", brought=True)
    counts.write(whole=True)
    settle(auditor)
    assert sorted(memory.kinds()) == [("110113", "110132"), ("idle-association",)]


# -- the file


def lines(folder):
    return [line for path in sorted(folder.glob("*.log")) for line in path.read_text().splitlines()]


def test_the_file_is_private_and_rotates(tmp_path):
    folder = tmp_path / "audit"
    taker = AuditFile(folder, ENVELOPE, 2000)
    events = [trail.Event(datetime.now(UTC), 5, f"<AuditMessage>{number:0500d}</AuditMessage>") for number in range(3)]
    for _ in range(5):
        taker.take(events)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
    assert len(list(folder.glob("audit-*.log"))) >= 2
    assert len(lines(folder)) == 15


def test_a_line_that_was_cut_off_does_not_spoil_the_next(tmp_path):
    taker = AuditFile(tmp_path, ENVELOPE, 10**6)
    taker.path.write_bytes(b"<85>1 half a li")
    taker.take([trail.Event(datetime.now(UTC), 5, "<AuditMessage />")])
    assert lines(tmp_path)[1].endswith("<AuditMessage />")


def test_a_file_that_cannot_be_set_aside_goes_on_and_has_each_event_once(tmp_path, monkeypatch, caplog):
    """It may be appended to (`chattr +a`), or its folder belongs to another."""
    taker = AuditFile(tmp_path, ENVELOPE, 100)
    events = [trail.Event(datetime.now(UTC), 5, f"<AuditMessage n='{number}' />") for number in range(5)]

    def refused(*_):
        raise PermissionError(1, "Operation not permitted")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", refused)
        for one in events:
            taker.take([one])
    assert [line.rpartition(" - ")[2] for line in lines(tmp_path)] == [one.message for one in events]
    assert caplog.text.count("cannot be set aside, and becomes longer: Operation not permitted") == 1
    taker.take(events[:1])
    assert [len(path.read_text().splitlines()) for path in sorted(tmp_path.iterdir())] == [5, 1]


def test_a_link_in_place_of_the_file_is_not_followed(tmp_path):
    target = tmp_path / "elsewhere"
    (tmp_path / "audit.log").symlink_to(target)
    with pytest.raises(OutOfResources):
        AuditFile(tmp_path, ENVELOPE, 10**6).take([trail.Event(datetime.now(UTC), 5, "x")])
    assert not target.exists()


# -- the repository


class Sink:
    """A syslog server over TLS that demands a certificate (RFC 5425); `frames` are what it read."""

    def __init__(self, context, *, rude=False):
        self.frames = []
        self.rude = rude
        self._context = context
        self._server = socket.create_server(("127.0.0.1", 0))
        self.address = ("127.0.0.1", self._server.getsockname()[1])
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self):
        while True:
            try:
                plain, _ = self._server.accept()
            except OSError:
                return
            with suppress(OSError), self._context.wrap_socket(plain, server_side=True) as connection:
                connection.settimeout(30)
                self._read(connection)
                if self.rude:
                    connection.shutdown(socket.SHUT_RDWR)
                else:
                    connection.unwrap()

    def _read(self, connection):
        stream = b""
        while chunk := connection.recv(65536):
            stream += chunk
        while stream:
            length, _, rest = stream.partition(b" ")
            self.frames.append(rest[: int(length)].decode())
            stream = rest[int(length) :]

    def close(self):
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self._thread.join(60)


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def contexts(authority):
    node, sink = authority.issue("node"), authority.issue("sink", "DNS:audit.example.org")

    def given(one):
        return Tls(certificate_file=one.certificate, key_file=one.key, trusted_file=authority.trusted)

    return calling(given(node)), tls.server_context(given(sink))


@pytest.mark.parametrize("rude", [False, True])
def test_PRI_07_messages_reach_a_repository_over_TLS(contexts, rude):
    """32,768 octets fit; a server that closes without close_notify has read them too."""
    client, server = contexts
    sink = Sink(server, rude=rude)
    text = f"<AuditMessage>{'é' * 16_000}</AuditMessage>"
    repository = Repository(client, sink.address, "audit.example.org", 30.0, ENVELOPE)
    repository.take([trail.Event(datetime.now(UTC), 5, text), trail.Event(datetime.now(UTC), 4, "<AuditMessage />")])
    sink.close()
    assert [frame.rpartition(" - \ufeff")[2] for frame in sink.frames] == [text, "<AuditMessage />"]
    assert sink.frames[0].startswith("<85>1 ")
    assert sink.frames[1].startswith("<84>1 ")


@pytest.mark.parametrize("how", ["close_notify", "FIN"])
def test_PRI_07_a_repository_that_ends_the_connection_by_itself_gets_it_again(contexts, how):
    """So does what ends TLS in front of a repository that is away: nothing was read, and nothing says so."""
    client, context = contexts
    over = threading.Event()

    def serve():
        plain, _ = server.accept()
        with context.wrap_socket(plain, server_side=True) as connection:
            if how == "close_notify":
                connection.setblocking(False)
                with suppress(OSError):
                    connection.unwrap()
            connection.shutdown(socket.SHUT_WR)
            over.wait(60)

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve)
        thread.start()
        repository = Repository(client, server.getsockname(), "audit.example.org", 30.0, ENVELOPE)
        with pytest.raises(Unavailable, match="ended the connection by itself"):
            repository.take([trail.Event(datetime.now(UTC), 5, "<AuditMessage />")] * 3)
        over.set()
        thread.join(60)


def test_NET_12_a_repository_that_is_another_gets_nothing(contexts):
    client, server = contexts
    sink = Sink(server)
    repository = Repository(client, sink.address, "else.example.org", 30.0, ENVELOPE)
    with pytest.raises(Unavailable, match=r"bears audit\.example\.org.*repository_name"):
        repository.take([trail.Event(datetime.now(UTC), 5, "secret")])
    sink.close()
    assert sink.frames == []


def test_a_repository_that_is_not_there(contexts):
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()
    repository = Repository(contexts[0], address, "audit.example.org", 30.0, ENVELOPE)
    with pytest.raises(Unavailable, match="cannot be reached"):
        repository.greet()
