"""H9: PostgreSQL dies under a working node, again and again (a backend killed, all of it killed, stopped at once).

Its peers hear of it (A7xx), or are answered from what was written ahead; when it is back, nothing is lost and each job
is done once. The checker reads a copy of its tables.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import tempfile
import threading
import time
from contextlib import closing
from pathlib import Path

import psycopg

from prove import bench, checker, kill

#: Deaths in which each thing that may happen has happened.
_LONG_ENOUGH = 4
#: Longest time that it is away.
_AWAY_SECONDS = 0.4
#: Mean time between two deaths of it.
_BETWEEN_SECONDS = 0.5
#: Longest time until its first process has noticed that one of the others was killed.
_NOTICED_SECONDS = 5.0
#: One death in so many takes the node with it.
_TOGETHER = 4


def missing() -> str:
    """Say what this machine lacks for a PostgreSQL of its own; "" where it lacks nothing."""
    if _programs() is None:
        return "POSTGRESQL MISSING: no initdb (Debian's postgresql), so none was killed here"
    return ""


def _programs() -> Path | None:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    on_path = shutil.which("initdb")
    return found[-1].parent if found else Path(on_path).resolve().parent if on_path else None


class Server:
    """A PostgreSQL of our own that may be killed: on a Unix socket, with all its syncs."""

    def __init__(self) -> None:
        self._programs = _programs()
        self.folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))
        self._user = "postgres" if os.geteuid() == 0 else None  # it refuses to run as root
        if self._user:
            shutil.chown(self.folder, self._user)
        self.dsn = f"host={self.folder} user=pacs_ai dbname=postgres"
        self.url = f"postgresql+psycopg://pacs_ai@/postgres?host={self.folder}"
        self._ready_before = 0
        initdb = ["initdb", "-D", "data", "-U", "pacs_ai", "-A", "trust", "--no-sync", "-E", "UTF8"]
        self._run(*initdb)
        self.start()

    def _run(self, program: str, *words: str) -> None:
        command = [str(self._programs / program), *words]
        subprocess.run(command, user=self._user, cwd=self.folder, check=True, stdout=subprocess.DEVNULL)

    def start(self) -> None:
        """Start it, and return when it answers."""
        self._spawn()
        self._connect().close()

    def _spawn(self) -> None:
        command = [str(self._programs / "postgres"), "-D", "data", "-c", "listen_addresses="]
        command += ["-c", f"unix_socket_directories={self.folder}", "-c", "max_connections=60", "-c", "lc_messages=C"]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, user=self._user, cwd=self.folder, stdout=log, stderr=log)

    def wait(self) -> None:
        """Return when it answers after its last death, of which it may not know yet."""
        limit = time.monotonic() + _NOTICED_SECONDS
        while self._times_ready() <= self._ready_before and time.monotonic() < limit:
            time.sleep(0.01)
        self._connect().close()

    def _times_ready(self) -> int:
        return (self.folder / "log").read_bytes().count(b"ready to accept connections")

    def _connect(self) -> psycopg.Connection:
        """Connect as soon as it answers: after a death it recovers first."""
        limit = time.monotonic() + bench.PATIENCE_SECONDS
        while True:
            try:
                return psycopg.connect(self.dsn)
            except psycopg.OperationalError:
                assert time.monotonic() < limit, (self.folder / "log").read_text()[-2000:]
                if self._process.poll() is not None:  # those of before it, amid their end, still had its memory
                    self._spawn()
                time.sleep(0.02)

    def backends(self) -> list[int]:
        """Return the process IDs of those that serve the node."""
        query = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
        with self._connect() as connection:
            return [pid for (pid,) in connection.execute(query)]

    def kill(self, choice: random.Random) -> str:
        """End it in one of the ways in which it may end; return which."""
        self._ready_before = self._times_ready()
        how = choice.choice(("backend", "immediate", "killed"))
        if how == "backend":
            os.kill(choice.choice(self.backends() or [self._process.pid]), signal.SIGKILL)  # the others end with it
            return how
        self._process.send_signal(signal.SIGQUIT if how == "immediate" else signal.SIGKILL)
        self._process.wait(bench.PATIENCE_SECONDS)
        return how

    def is_up(self) -> bool:
        """Whether its first process is there."""
        return self._process.poll() is None

    def end(self) -> None:
        """Stop it for good."""
        self._process.send_signal(signal.SIGQUIT)
        self._process.wait(bench.PATIENCE_SECONDS)
        shutil.rmtree(self.folder)


def copy_tables(dsn: str, path: Path) -> None:
    """Write all tables into a SQLite file, for the checker."""
    names = "SELECT table_name FROM information_schema.tables WHERE table_schema = 'public'"
    path.unlink(missing_ok=True)
    with psycopg.connect(dsn) as source, closing(sqlite3.connect(path)) as target, target:
        for (name,) in source.execute(names).fetchall():
            rows = source.execute(f'SELECT * FROM "{name}"')
            columns = [column.name for column in rows.description]
            target.execute(f'CREATE TABLE "{name}" ({", ".join(columns)})')
            marks = ", ".join("?" * len(columns))
            plain = ([json.dumps(v) if isinstance(v, dict | list) else v for v in row] for row in rows)
            target.executemany(f'INSERT INTO "{name}" VALUES ({marks})', plain)


def run(folder: Path, deaths: int, seed: int, seconds: float) -> kill.Outcome:
    """Let it die so often, or as often as fits into the time, while two senders send."""
    outcome, begin = kill.Outcome("H9 PostgreSQL dies", deaths), time.monotonic()
    choice = random.Random(seed)
    server = Server()
    try:
        made = bench.Bench(folder, database=server)
        store, peers = made.new_store(), made.new_peers(seed)
        try:
            until = begin + seconds
            while outcome.done < deaths and time.monotonic() < until and not outcome.violations:
                _one_life(made, store, peers, server, choice, outcome, until)
            made.settle(store, peers)
            copy_tables(server.dsn, store / "pacs_ai.sqlite")
            outcome.violations += checker.violations(store, peers.journals)
        except bench.Stuck as stuck:
            outcome.violations.append(f"I4 {stuck}")
        finally:
            peers.close()
        outcome.violations += peers.wrong()
        outcome.count(acknowledged=len(peers.acked), delivered=peers.kept_objects, refused=sum(peers.refused.values()))
        if not outcome.violations:
            outcome.violations += kill.in_vain(outcome, "acknowledged", "delivered", least=_LONG_ENOUGH)
    finally:
        server.end()
    outcome.seconds = time.monotonic() - begin
    return outcome


def _one_life(made, store, peers, server, choice, outcome, until) -> None:
    """Let it die some times under one node, which ends with the last one."""
    victim = made.fork(store, peers, is_ahead=choice.random() < 0.5)
    senders: list[threading.Thread] = []
    try:
        port = bench.port_of(victim)
        if port is None:
            raise bench.Stuck(f"the node does not start: {made.tail()}")
        for _ in range(2):
            arguments = (port, choice.getrandbits(32), kill.MOST_OPEN)
            senders.append(threading.Thread(target=peers.send_while_it_lives, args=arguments))
            senders[-1].start()
        while True:
            time.sleep(choice.expovariate(1 / _BETWEEN_SECONDS))
            outcome.count(**{server.kill(choice): 1})
            outcome.done += 1
            time.sleep(choice.random() * _AWAY_SECONDS)
            last = outcome.done >= outcome.wanted or time.monotonic() > until or choice.randrange(_TOGETHER) == 0
            if last:
                victim.kill()
            if not server.is_up():
                server.start()
            if last:
                server.wait()
                return
    finally:
        try:
            kill.end(victim, senders)
        finally:
            if not server.is_up():
                server.start()
