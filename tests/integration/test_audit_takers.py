"""Who takes audit events slowly, badly or never: nobody else waits for him, and each has every event at last."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from datetime import UTC, datetime

import pytest
import sqlalchemy as sa
from certificates import Authority
from pydantic import ValidationError
from running_node import until
from stations import Clock

from pacs_ai import tls
from pacs_ai.audit import takers
from pacs_ai.audit.auditor import AuditThreads, parts
from pacs_ai.audit.events import Teller
from pacs_ai.audit.messenger import PARCEL, Messenger
from pacs_ai.audit.syslog import Envelope
from pacs_ai.audit.takers import Repository
from pacs_ai.credentials import calling
from pacs_ai.errors import Unavailable
from pacs_ai.network_sections import Audit, Tls
from pacs_ai.store import schema, spool, trail

TELLER = Teller("node", "ai.example.org", ("PACS_AI",), "node", "General Hospital")
ENVELOPE = Envelope("ai.example.org", 4711)


def events(count, length=10):
    return [trail.Event(datetime.now(UTC), 5, f"<AuditMessage n='{n}' {'x' * length}/>") for n in range(count)]


def spooled(database, count):
    """Let so many events wait."""
    rows = [{"at": one.at, "severity": one.severity, "message": one.message} for one in events(count)]
    with database.write() as connection:
        connection.execute(sa.insert(schema.audit_event), rows)


def noted(database, count):
    """Let so many things have happened that no event tells of yet."""
    trail.note(
        database,
        [
            trail.Notice(trail.NoticeKind.COMMAND, datetime.now(UTC), f"x {n}", actor="operator:jo")
            for n in range(count)
        ],
    )


def standings(database, *names):
    with database.read() as connection:
        return spool.standings(connection, names)


class Choosy:
    """A taker that takes no more than `most` events at a time; `sizes` are the parcels that it took."""

    name = "repository"

    def __init__(self, most):
        self.most = most
        self.taken = []
        self.sizes = []

    def take(self, parcel):
        if len(parcel) > self.most:
            raise Unavailable("the line is too slow for so many")
        self.taken += [event.message for event in parcel]
        self.sizes.append(len(parcel))


def test_PRI_07_a_repository_on_a_slow_line_gets_every_event_in_parcels_that_it_takes(database):
    clock, slow = Clock(), Choosy(most=3)
    messenger = Messenger(database, slow, ["repository"], clock)
    spooled(database, 3 * PARCEL)
    for _ in range(60):
        messenger.step()
        clock.forward(60)
    assert 30 <= len(slow.taken) < 3 * PARCEL
    assert set(slow.sizes) <= {1, 2, 3}
    slow.most = PARCEL
    while messenger.step():
        pass
    assert slow.taken == [event.message for event in events(3 * PARCEL)]
    assert PARCEL / 4 < max(slow.sizes) <= PARCEL, "parcels do not become long again"
    assert standings(database, "repository")[0].waiting == 0


@pytest.mark.parametrize("how", ["hangs", "raises"])
def test_PRI_07_one_taker_that_hangs_or_raises_keeps_nothing_from_the_other(database, how, caplog):
    over, stop = threading.Event(), threading.Event()

    class Bad:
        name = "repository"

        def take(self, parcel):
            if how == "raises":
                raise ValueError("Secret^Name")
            over.wait(60)

    file = Choosy(PARCEL)
    file.name = "file"
    noted(database, 3 * trail.BATCH)
    threads = AuditThreads(parts(database, TELLER, [Bad(), file]), stop)
    threads.start()
    until(lambda: len(file.taken) == 3 * trail.BATCH)
    if how == "raises":
        until(lambda: "unexpected ValueError" in standings(database, "repository")[0].problem)
    over.set()
    stop.set()
    threads.join(60)
    assert "Secret" not in caplog.text


def test_what_no_event_tells_of_yet_is_not_had_by_anybody(stations, sender, database):
    assert [one.waiting for one in standings(database, "file")] == [0]
    stations.done_job(sender)
    noted(database, 2)
    moves = len(stations.rows(schema.journal))
    assert moves > 0
    assert [one.waiting for one in standings(database, "file", "repository")] == [moves + 2] * 2


def test_PRI_07_what_two_takers_have_goes_when_both_note_it_at_once(database, stations, monkeypatch):
    """Neither sees how far the other is until that is committed."""
    if database.is_sqlite:
        pytest.skip("SQLite has one writer at a time")
    spooled(database, 3)
    both = ["file", "repository"]
    with database.read() as connection:
        parcel = spool.waiting(connection, "repository", PARCEL)
    mark = {"turn": 0, "moved_at": datetime.now(UTC), "problem": "", "position": 0}
    with database.write() as connection:
        connection.execute(sa.insert(schema.audit_cursor), [mark | {"name": name} for name in both])
    is_file = schema.audit_cursor.c.name == "file"
    enter, entered, moved = spool._enter, threading.Event(), threading.Event()

    def enter_while_the_other_moves(*given):
        enter(*given)
        entered.set()
        assert moved.wait(60)

    monkeypatch.setattr(spool, "_enter", enter_while_the_other_moves)
    second = threading.Thread(target=spool.taken, args=(database, "repository", parcel, both), daemon=True)
    second.start()
    assert entered.wait(60)
    with database.write() as first:
        first.execute(sa.update(schema.audit_cursor).where(is_file).values(position=parcel.last))
        moved.set()
        until(lambda: not second.is_alive() or _waits_for_a_lock(database))
    second.join(60)
    assert stations.rows(schema.audit_event) == []


def _waits_for_a_lock(database):
    query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    with database.read() as connection:
        return connection.execute(sa.text(query)).scalar_one()


# -- the repository


@pytest.fixture(scope="module")
def contexts(tmp_path_factory):
    """How the node speaks TLS to a repository called audit.example.org, and how that one does."""
    authority = Authority(tmp_path_factory.mktemp("authority"))
    node, sink = authority.issue("node"), authority.issue("sink", "DNS:audit.example.org")

    def given(one):
        return Tls(certificate_file=one.certificate, key_file=one.key, trusted_file=authority.trusted)

    return calling(given(node)), tls.server_context(given(sink))


class Reader:
    """A repository that reads as `read` does, which gets the connection."""

    def __init__(self, context, read):
        self._context = context
        self._read = read
        self._server = socket.create_server(("127.0.0.1", 0))
        self.address = self._server.getsockname()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self):
        plain, _ = self._server.accept()
        with suppress(OSError), self._context.wrap_socket(plain, server_side=True) as connection:
            connection.settimeout(60)
            self._read(connection)
            connection.unwrap()

    def close(self):
        self._thread.join(60)
        self._server.close()


def test_PRI_07_a_repository_may_take_as_long_to_read_as_the_length_of_a_parcel_needs(contexts):
    """What the kernels hold for it is not read yet when all is sent."""
    client, server = contexts
    read = bytearray()

    def late(connection):
        threading.Event().wait(2)  # longer than `audit.repository_seconds`
        while chunk := connection.recv(65536):
            read.extend(chunk)

    reader = Reader(server, late)
    Repository(client, reader.address, "audit.example.org", 1.0, ENVELOPE).take(events(200, length=2000))
    reader.close()
    assert read.count(b"<AuditMessage") == 200


def test_PRI_07_a_repository_that_reads_drop_by_drop_is_given_up_in_time(contexts, monkeypatch):
    """Each drop would begin the time limit of a write anew."""
    monkeypatch.setattr(takers, "_SLOWEST_BYTES_PER_SECOND", 10**9)
    client, server = contexts
    over = threading.Event()

    def dribble(connection):
        while not over.is_set() and connection.recv(1024):
            over.wait(0.01)

    reader = Reader(server, dribble)
    repository = Repository(client, reader.address, "audit.example.org", 1.0, ENVELOPE)
    with pytest.raises(Unavailable, match=r"did not take .* bytes and end the connection within 1 s"):
        repository.take(events(1000, length=32_000))
    over.set()
    reader.close()


def test_a_repository_whose_name_cannot_be_one_is_refused_and_not_reached(contexts):
    with pytest.raises(ValidationError, match=r"audit\.\.example\.org is no host name"):
        Audit(repository="audit..example.org:6514")
    for good in ("audit.example.org:6514", "[::1]:6514", "192.0.2.40:6514"):
        assert Audit(repository=good).repository == good
    with pytest.raises(Unavailable, match="no host name"):
        Repository(contexts[0], ("audit..example.org", 6514), "audit.example.org", 1.0, ENVELOPE).greet()
