"""The node: a supervisor that starts its processes, watches them and starts them anew; and each process's main."""

from __future__ import annotations

import ctypes
import fcntl
import ipaddress
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from pacs_ai import loop
from pacs_ai.deliver.courier import Courier
from pacs_ai.dicom import contexts
from pacs_ai.errors import PacsAiError, Transient, UserError
from pacs_ai.infer.worker import Worker
from pacs_ai.receive.acceptor import Bounds
from pacs_ai.receive.guard import Limits
from pacs_ai.receive.ingest import DurableIngest
from pacs_ai.receive.scp import Listen, Receiver
from pacs_ai.route.router import Router
from pacs_ai.store import processes, version
from pacs_ai.store.database import Bell, Database
from pacs_ai.store.files import Files
from pacs_ai.store.index import Index
from pacs_ai.store.owners import BEAT_SECONDS, this_process

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from pacs_ai.config import Config

_log = logging.getLogger(__name__)

KINDS = ("receive", "route", "infer", "deliver")
_PR_SET_PDEATHSIG = 1
_REST_SECONDS = 1.0
#: Waits before a process that ended by itself is started anew.
_RESTART_SECONDS = (0.0, 1.0, 2.0, 5.0, 10.0)
#: A process that ran so long had not failed at its start.
_STEADY_SECONDS = 60.0


def gpu_count() -> int:
    """Return how many NVIDIA GPUs the driver shows, without loading CUDA."""
    return len(list(Path("/dev").glob("nvidia[0-9]*")))


def devices(config: Config) -> list[str]:
    """Return the devices that get a worker each: ``auto`` becomes every NVIDIA GPU, else the CPU."""
    found: list[str] = []
    for device in config.infer.devices:
        if device == "auto":
            found += [f"cuda:{i}" for i in range(gpu_count())] or ["cpu"]
        else:
            found.append(device)
    return list(dict.fromkeys(found))


@dataclass
class _Child:
    """One process of the node, and how it fared."""

    arguments: tuple[str, ...]
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    failures: int = 0
    due: float = field(default_factory=time.monotonic)

    @property
    def title(self) -> str:
        """What it is called."""
        return " ".join(a for a in self.arguments if not a.startswith("--"))


class Supervisor:
    """Starts every process of the node and keeps them running until `stop` is set."""

    def __init__(self, config: Config, config_path: Path | None, stop: threading.Event) -> None:
        self._config = config
        self._path = config_path
        self._stop = stop
        wanted: list[tuple[str, ...]] = [("receive",)] * config.receive.processes
        wanted += [("route",), ("deliver",)]
        wanted += [("infer", "--device", device) for device in devices(config)]
        self._children = [_Child(arguments) for arguments in wanted]

    def run(self) -> None:
        """Block until `stop` is set; then let every process end."""
        with data_folder(self._config):
            try:
                while not self._stop.is_set():
                    for child in self._children:
                        self._tend(child)
                    self._stop.wait(0.1)
            finally:
                self._end()

    def _tend(self, child: _Child) -> None:
        process = child.process
        if process is not None and process.poll() is None:
            if child.failures and time.monotonic() - child.started > _STEADY_SECONDS:
                child.failures = 0
            return
        if process is not None:
            wait = _RESTART_SECONDS[min(child.failures, len(_RESTART_SECONDS) - 1)]
            child.failures += 1
            child.due = time.monotonic() + wait
            child.process = None
            _log.error("process %s ended with status %s; started anew in %g s", child.title, process.returncode, wait)
        if time.monotonic() >= child.due:
            child.process = self._spawn(child.arguments)
            child.started = time.monotonic()

    def _spawn(self, arguments: tuple[str, ...]) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "pacs_ai"]
        if self._path is not None:
            command += ["--config", str(self._path)]
        return subprocess.Popen([*command, "run", *arguments, "--supervisor", str(os.getpid())])

    def _end(self) -> None:
        running = [child.process for child in self._children if child.process is not None]
        for process in running:
            process.terminate()
        deadline = time.monotonic() + self._config.receive.grace_seconds + 10.0
        for process in running:
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextmanager
def data_folder(config: Config) -> Iterator[None]:
    """Hold the data folder for this node alone, with its database brought to this release's schema.

    Raises
    ------
    UserError
        Another node works in it, or it cannot be written.
    """
    folder = config.store.folder
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle = os.open(folder / "node.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise UserError(f"store.folder {folder} cannot be used: {error.strerror}") from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"another node works in {folder}; give this one a store.folder of its own") from None
        database = Database(config.database_url)
        from pacs_ai.store import migrate  # alembic: needed once, by the supervisor

        migrate.upgrade(database)
        database.close()
        yield
    finally:
        os.close(handle)


@contextmanager
def _process(config: Config, kind: str, detail: str = "") -> Iterator[tuple[Database, str]]:
    """Open the database for one process and enter it in the list of processes."""
    database = Database(config.database_url)
    version.check(database)
    owner = this_process(kind)
    processes.register(database, owner, kind, detail)
    try:
        yield database, owner
    finally:
        with suppress(Transient):
            processes.leave(database, owner)
        database.close()


def _rest(bell: Bell, database: Database, owner: str, stop: threading.Event) -> Callable[[], None]:
    """Return what a loop does between steps: wait for the bell, and say now and then that the process lives."""
    said = time.monotonic()

    def rest() -> None:
        nonlocal said
        bell.wait(_REST_SECONDS, stop)
        if time.monotonic() - said >= BEAT_SECONDS:
            said = time.monotonic()
            processes.seen(database, owner)

    return rest


def stop_on_signals() -> threading.Event:
    """Return an event that SIGTERM and SIGINT set."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop


def die_with(supervisor: int) -> None:
    """Have the kernel stop this process when its supervisor dies, so that no half of a node stays behind."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != supervisor:
        sys.exit(1)


def run_receive(config: Config, stop: threading.Event) -> None:
    """Listen until `stop` is set."""
    with _process(config, "receive", f"port {config.receive.port}") as (database, owner):
        files = Files(config.store.folder / "files")
        index = Index(database, files.path, owner)
        ingest = DurableIngest(files, index.record, note_ended=index.association_ended)
        receiver = Receiver(listen(config, files), ingest)
        receiver.start()
        try:
            while not stop.wait(BEAT_SECONDS):
                with suppress(Transient):
                    processes.seen(database, owner)
        finally:
            receiver.stop(config.receive.grace_seconds)
            ingest.close()


def listen(config: Config, files: Files) -> Listen:
    """Return the listener's settings."""
    receive = config.receive
    return Listen(
        bind=receive.bind,
        port=receive.port,
        ae_titles=receive.ae_titles,
        callers=_callers(config) if receive.accept == "peers" else None,
        transfer_syntaxes=contexts.transfer_syntaxes(receive.transfer_syntaxes),
        further_sop_classes=receive.further_sop_classes,
        bounds=Bounds(
            pdu_bytes=receive.max_pdu_bytes,
            instance_bytes=int(receive.max_instance_gb * 1e9),
            network_seconds=receive.network_seconds,
        ),
        waiting=Limits(request_seconds=receive.association_request_seconds),
        maximum_associations=receive.max_associations,
        reuse_port=receive.processes > 1,
        has_free_space=FreeSpace(config, files),
    )


class FreeSpace:
    """Tells whether there is room above the watermark; asks the file system twice a second at most."""

    def __init__(self, config: Config, files: Files) -> None:
        self._files = files
        self._bytes = config.store.min_free_gb * 1e9
        self._share = config.store.min_free_percent / 100
        self._asked = 0.0
        self._answer = True

    def __call__(self) -> bool:
        """Tell whether an instance may be stored."""
        now = time.monotonic()
        if now - self._asked >= 0.5:
            self._asked = now
            self._answer = self._files.free_bytes() >= self._bytes and self._files.free_fraction() >= self._share
        return self._answer


def _callers(config: Config) -> Mapping[str, frozenset[str]]:
    """Return calling AE title -> addresses, host names resolved; several peers may share a title."""
    allowed: dict[str, frozenset[str]] = {}
    for peer in config.peer:
        found = set(peer.addresses)
        try:
            ipaddress.ip_address(peer.host)
            found.add(peer.host)
        except ValueError:
            try:
                found |= {str(entry[4][0]) for entry in socket.getaddrinfo(peer.host, None)}
            except OSError as error:
                raise UserError(f"peer {peer.name}: host {peer.host} cannot be resolved: {error.strerror}") from error
        allowed[peer.ae_title] = allowed.get(peer.ae_title, frozenset()) | found
    return allowed


def run_route(config: Config, stop: threading.Event) -> None:
    """Complete, route and purge until `stop` is set."""
    with _process(config, "route") as (database, owner):
        router = Router(config, database, Files(config.store.folder / "files"), owner)
        bell = database.bell()
        seen = _rest(bell, database, owner, stop)
        loop.run(
            router.step, lambda: seen() if router.rest_seconds >= _REST_SECONDS else _short(bell, router, stop), stop
        )
        bell.close()


def _short(bell: Bell, router: Router, stop: threading.Event) -> None:
    bell.wait(router.rest_seconds, stop)


def run_infer(config: Config, device: str, stop: threading.Event) -> None:
    """Do jobs until `stop` is set."""
    with _process(config, "infer", device) as (database, owner):
        worker = Worker(config, database, Files(config.store.folder / "files"), owner, device, stop)
        worker.start()
        bell = database.bell()
        try:
            loop.run(worker.step, _rest(bell, database, owner, stop), stop)
        finally:
            worker.close()
            bell.close()


def run_deliver(config: Config, stop: threading.Event) -> None:
    """Deliver until `stop` is set."""
    with _process(config, "deliver") as (database, owner):
        courier = Courier(config, database, Files(config.store.folder / "files"), owner)
        bell = database.bell()
        loop.run(courier.step, _rest(bell, database, owner, stop), stop)
        courier.join(config.receive.grace_seconds)
        bell.close()


def run(config: Config, config_path: Path | None, kind: str | None, device: str | None, supervisor: int | None) -> None:
    """Run the whole node, or one process of it, until SIGTERM."""
    stop = stop_on_signals()
    if supervisor is not None:
        die_with(supervisor)
    try:
        if kind is None:
            Supervisor(config, config_path, stop).run()
        elif kind == "receive":
            run_receive(config, stop)
        elif kind == "route":
            run_route(config, stop)
        elif kind == "deliver":
            run_deliver(config, stop)
        else:
            run_infer(config, device or devices(config)[0], stop)
    except PacsAiError as error:
        _log.error("%s", error)
        sys.exit(2 if isinstance(error, UserError) else 1)
