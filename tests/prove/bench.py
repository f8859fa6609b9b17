"""What every harness stands on: a fork server, a destination and a sender with journals of their own, one store."""

from __future__ import annotations

import atexit
import itertools
import json
import os
import queue
import shutil
import signal
import socket
import sqlite3
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
from certificates import Authority

from prove import checker
from prove.peers import PAUSE_SECONDS, Peers

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from prove import postgres

TESTS = Path(__file__).resolve().parents[1]
#: Longest wait for the node to do what it must.
PATIENCE_SECONDS = 90.0
#: The same for a node that is known to be wrong.
BUG_PATIENCE_SECONDS = 10.0
_BUG_RECOVERY_SECONDS = 1.0


class Stuck(RuntimeError):  # noqa: N818 - said of the node
    """The node did not come to rest: its work is never done, or it does not start."""


class Certificates:
    """An authority in a folder, what the node and the sender show, and how the sender speaks TLS."""

    def __init__(self, folder: Path) -> None:
        authority = Authority(folder)
        authority.issue("node", "IP:127.0.0.1")
        sender = authority.issue("sender")
        self.folder = folder
        self.context = ssl.create_default_context(cafile=authority.trusted)
        self.context.load_cert_chain(sender.certificate, sender.key)


class Server:
    """A fork server (`prove.forkserver`) with an empty store to copy; one serves all harnesses of a thread in turn."""

    def __init__(self) -> None:
        # the node of this working copy, whichever one is installed
        paths = [str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
        environment |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        self._folder = tempfile.TemporaryDirectory(prefix="prove-server-")
        self._log = Path(self._folder.name) / "log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "prove.forkserver"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
                cwd=self._folder.name,
            )
        self._lock = threading.Lock()
        self._answer()
        self.template = Path(self._folder.name) / "template"
        self.ask(do="make", folder=str(self.template))
        self.certificates = Certificates(Path(self._folder.name) / "tls")
        atexit.register(self._close)

    @classmethod
    def of_this_thread(cls) -> Server:
        """Return the thread's server, started with its first use and ended with the program."""
        if not hasattr(_SERVERS, "server"):
            _SERVERS.server = cls()
        return _SERVERS.server

    def ask(self, **word: Any) -> dict[str, Any]:
        """Have it do something."""
        with self._lock:
            self._process.stdin.write(json.dumps(word).encode() + b"\n")
            self._process.stdin.flush()
            return self._answer()

    def _answer(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        assert line, f"the fork server ended: {self._log.read_text()[-3000:]}"
        return json.loads(line)

    def _close(self) -> None:
        self._process.stdin.close()
        self._process.wait(PATIENCE_SECONDS)
        self._process.stdout.close()
        self._folder.cleanup()


_SERVERS = threading.local()


class Victim:
    """One node process, as the harness holds it."""

    def __init__(self, server: Server, pid: int, listener: socket.socket) -> None:
        self._server, self.pid, self._listener = server, pid, listener
        self._path = Path(listener.getsockname())
        self.said: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._line: socket.socket | None = None
        self._thread = threading.Thread(target=self._hear, daemon=True)
        self._thread.start()
        self._reaped = False

    def _hear(self) -> None:
        try:
            self._line, _ = self._listener.accept()
            with self._line.makefile("r") as lines:
                for line in lines:
                    self.said.put(json.loads(line))
        except (OSError, ValueError):
            pass
        self.said.put(None)

    def hear(self, seconds: float = PATIENCE_SECONDS) -> dict[str, Any] | None:
        """Return its next word, None where it is dead; `Stuck` where it says nothing."""
        try:
            word = self.said.get(timeout=seconds)
        except queue.Empty:
            raise Stuck("the node says nothing") from None
        if word is None:
            self.said.put(None)
        return word

    def say(self, **word: Any) -> None:
        """Tell it something; whether it still hears it shows in what it says."""
        with suppress(OSError):
            self._line.sendall(json.dumps(word).encode() + b"\n")

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send it a signal; the default ends it at whatever instruction it is."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def reap(self) -> int:
        """Wait for its end and return its exit status, negative for a signal."""
        if self._reaped:
            return 0
        self._reaped = True
        status = int(self._server.ask(do="reap", pid=self.pid)["status"])
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # it died before it called
        self._listener.close()
        self._thread.join(PATIENCE_SECONDS)
        if self._line is not None:
            self._line.close()
        self._path.unlink(missing_ok=True)
        return status

    def end(self) -> None:
        """Kill and reap it.

        Raises
        ------
        Stuck
            It had come to an end of its own before, and not in order.
        """
        self.kill()
        status = self.reap()
        if status not in {0, -signal.SIGKILL}:
            raise Stuck(f"a process of the node ended with {status}")


@dataclass
class Bench:
    """What one harness's run works with: the fork server, folders, nodes.

    Parameters
    ----------
    folder
        For stores, journals and logs.
    bug
        Name of the known-wrong variant that its nodes are (`prove.bugs`), "" for the product as it is.
    database
        The PostgreSQL that they have their tables in (`prove.postgres`); None for SQLite.
    """

    folder: Path
    bug: str = ""
    database: postgres.Server | None = None

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.server = Server.of_this_thread()
        if self.database is not None:
            self.server.ask(do="tables", url=self.database.url)
        self.certificates = self.server.certificates
        self._count = 0
        self.late: list[str] = []

    def new_store(self, at: Path | None = None) -> Path:
        """Return an empty store."""
        self._count += 1
        store = at or self.folder / f"store{self._count}"
        shutil.copytree(self.server.template, store)
        return store

    def renew_store(self, store: Path) -> None:
        """Make a used store an empty one: sooner done than a new one, for its folders stay."""
        for folder, _, names in os.walk(store):
            for name in names:
                os.unlink(os.path.join(folder, name))  # noqa: PTH108, PTH118 - thousands of times
        for path in self.server.template.rglob("*"):
            if path.is_file():
                shutil.copy2(path, store / path.relative_to(self.server.template))

    def new_peers(self, seed: int, *, is_rude: bool = True) -> Peers:
        """Return a sender and a destination with empty journals."""
        self._count += 1
        return Peers(self.folder / f"peers{self._count}", seed, is_rude=is_rude)

    def fork(self, store: Path, peers: Peers, **more: Any) -> Victim:
        """Start a node over a store."""
        self._count += 1
        path = f"/tmp/prove-{os.getpid()}-{id(self) & 0xFFFFFF}-{self._count}"
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        listener.listen(1)
        order = {
            "folder": str(store),
            "keeper": peers.keeper.port,
            "control": path,
            "claims": str(peers.journals.claims),
            "log": str(self.folder / "node.log"),
            "bug": self.bug,
            "database": "" if self.database is None else self.database.url,
            **more,
        }
        pid = int(self.server.ask(do="fork", order=order)["pid"])
        return Victim(self.server, pid, listener)

    def settle(self, store: Path, peers: Peers, seconds: float = PATIENCE_SECONDS) -> None:
        """Run a node until nothing is left to do, send what was not acknowledged, then stop it as a person would.

        Every other series goes by TLS.

        Raises
        ------
        Stuck
            It does not come to rest; the message says what is left.
        """
        victim = self.fork(store, peers, tls=str(self.certificates.folder))
        try:
            ports = victim.hear()
            if ports is None:
                raise Stuck(f"the node does not start: {self.tail()}")
            peers.keeper.node_port = ports["port"]
            ways = itertools.cycle(((ports["port"], None), (ports["tls_port"], self.certificates.context)))
            self._await_recovery(store, dict(peers.acked))
            limit = time.monotonic() + seconds
            while peers.unacked:
                for series in list(peers.unacked):
                    port, tls = next(ways)
                    peers.send_series(port, series, asks=True, tls=tls)
                if time.monotonic() > limit:
                    raise Stuck(f"{len(peers.unacked)} series are not acknowledged: {self.tail()}")
            left = self._await_rest(store, peers, limit)
            self._stop(victim)
            if left:
                raise Stuck(f"not done after {seconds:g} s: {left}")
        finally:
            victim.end()

    def _await_rest(self, store: Path, peers: Peers, limit: float) -> str:
        """Wait until nothing is left to do; say what is, where that takes too long.

        A node that is known to be wrong is not waited for where nothing happens any more.
        """
        earlier, since = "", time.monotonic()
        while left := unsettled(store, peers.acked, self.database):
            now = time.monotonic()
            if left != earlier:
                earlier, since = left, now
            if now > limit or (self.bug and now - since > BUG_PATIENCE_SECONDS):
                break
            time.sleep(PAUSE_SECONDS)
        return left

    def _stop(self, victim: Victim) -> None:
        """Stop it as a person would: what is under way comes to its end."""
        victim.say(do="stop")
        victim.hear()
        if status := victim.reap():
            raise Stuck(f"the node ended with {status} when it was stopped: {self.tail()}")

    def broken_by(self, stuck: Stuck, store: Path, peers: Peers) -> list[str]:
        """Say that a node did not come to rest, and of one that is wrong on purpose, what is wrong with its store.

        That something took long is no sign of a bug: a machine may be busy.
        """
        found = [f"I4 {stuck}"]
        if self.bug:
            try:
                found += checker.violations(store, peers.journals)
            except sqlite3.Error as error:
                found.append(f"the database is damaged: {error}")
        return found

    def _await_recovery(self, store: Path, acked: Collection[str]) -> None:
        """Note how long it takes until all that had been answered Success has rows."""
        if self.database is not None:
            return
        begin, at_first = time.monotonic(), 0
        patience = _BUG_RECOVERY_SECONDS if self.bug else checker.RECOVERY_SECONDS + 1.0
        while (left := count_unrecorded(store, acked)) and time.monotonic() - begin < patience:
            at_first = at_first or left
            time.sleep(PAUSE_SECONDS)
        self.late = checker.in_time(time.monotonic() - begin, at_first)

    def violations(self, store: Path, peers: Peers, twin: Mapping[str, list[str]] | None = None) -> list[str]:
        """Hold a store that has settled against the journals, and start the node once more: that changes nothing."""
        found = [*self.late, *peers.wrong(), *checker.violations(store, peers.journals, twin)]
        if found or self.database is not None:
            return found
        before = checker.picture(store)
        victim = self.fork(store, peers)
        try:
            if port_of(victim) is None:
                raise Stuck(f"the node does not start again: {self.tail()}")
            victim.say(do="look around")
            victim.hear()
            self._stop(victim)
        finally:
            victim.end()
        return checker.recovered(before, checker.picture(store))

    def tail(self) -> str:
        """Return the end of the nodes' log."""
        path = self.folder / "node.log"
        return path.read_text(errors="replace")[-1500:] if path.exists() else ""


def port_of(victim: Victim) -> int | None:
    """Return the node's port as soon as it listens; None where it died first."""
    word = victim.hear()
    return None if word is None else int(word["port"])


def recover(made: Bench, store: Path, peers: Peers, **more: Any) -> None:
    """Have a node only recover what it finds, and stop."""
    victim = made.fork(store, peers, story="recovered", **more)
    try:
        if port_of(victim) is not None:
            victim.say(do="go on", instances=len(peers.acked))
            victim.hear()
    finally:
        victim.end()


def unrecorded(store: Path, acked: Collection[str]) -> str:
    """Say how many of these instances have no row yet; "" where each has one."""
    left = count_unrecorded(store, acked)
    return f"{left} instances have no row" if left else ""


def count_unrecorded(store: Path, acked: Collection[str]) -> int:
    """Count those of these instances that have no row yet."""
    with closing(sqlite3.connect(f"file:{store / 'pacs_ai.sqlite'}?mode=ro", uri=True, timeout=20)) as connection:
        return _unrecorded(connection, acked)


def _unrecorded(connection: Any, acked: Collection[str]) -> int:
    return len(set(acked).difference(uid for (uid,) in connection.execute("SELECT sop_instance_uid FROM instance")))


def unsettled(store: Path, acked: Collection[str], database: postgres.Server | None = None) -> str:
    """Say what is left to do, by the tables as they are at one moment; "" where nothing is."""
    connection: Any
    if database is None:
        connection = sqlite3.connect(f"file:{store / 'pacs_ai.sqlite'}?mode=ro", uri=True, timeout=20)
    else:
        connection = psycopg.connect(database.dsn)
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    try:
        if database is None:
            connection.execute("BEGIN")

        def count(query: str) -> int:
            return int(connection.execute(f"SELECT count(*) FROM {query}").fetchone()[0])

        left = {
            "instances": _unrecorded(connection, acked),
            "series": count("series WHERE state IN ('receiving', 'reopened')"),
            "jobs": count("job WHERE state NOT IN ('done', 'superseded', 'failed', 'refused')"),
            "deliveries": count("delivery WHERE state IN ('waiting', 'sending')"),
            "confirmations": count("delivery WHERE state = 'sent' AND confirm_at IS NOT NULL"),
            "pledges": count("pledge WHERE ended_at IS NULL"),
        }
    except sqlite3.OperationalError as error:
        return str(error)
    finally:
        connection.close()
    return ", ".join(f"{number} {name}" for name, number in left.items() if number)
