"""The node: a supervisor that starts its processes, watches them and starts them anew; and each process's main."""

from __future__ import annotations

import ctypes
import fcntl
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pacs_ai import lean
from pacs_ai.errors import PacsAiError, UserError
from pacs_ai.store import identity
from pacs_ai.store.database import Database
from pacs_ai.store.files import Files

if TYPE_CHECKING:
    from collections.abc import Iterator

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

    def put_off(self) -> float:
        """Note a failure; returns the seconds until it is started anew."""
        wait = _RESTART_SECONDS[min(self.failures, len(_RESTART_SECONDS) - 1)]
        self.failures += 1
        self.due = time.monotonic() + wait
        self.process = None
        return wait


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
            lean.collect_as_usual()
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
            wait = child.put_off()
            _log.error("process %s ended with status %s; started anew in %g s", child.title, process.returncode, wait)
        if time.monotonic() >= child.due:
            self._begin(child)

    def _begin(self, child: _Child) -> None:
        """Start a process; one that the kernel does not start now is tried again, and the others live on."""
        try:
            child.process = self._spawn(child.arguments)
        except OSError as error:
            wait = child.put_off()
            _log.error("process %s cannot be started (%s); tried again in %g s", child.title, error.strerror, wait)
        else:
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
        Another node works in it, it cannot be written, or its files belong to another database.
    """
    folder = config.store.folder
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle = os.open(folder / "node.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        advice = "name a folder that the node's user may write to, or make this one so; pacs-ai doctor says more"
        raise UserError(f"store.folder {folder} cannot be used ({error.strerror}): {advice}") from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"another node works in {folder}; give this one a store.folder of its own") from None
        database = Database(config.database_url)
        from pacs_ai.store import migrate  # alembic: needed once, by the supervisor

        try:
            migrate.upgrade(database)
            identity.join(database, Files(folder / "files"))
        finally:
            database.close()
        yield
    finally:
        os.close(handle)


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


def run(config: Config, config_path: Path | None, kind: str | None, device: str | None, supervisor: int | None) -> None:
    """Run the whole node, or one process of it, until SIGTERM."""
    stop = stop_on_signals()
    if supervisor is not None:
        die_with(supervisor)
    try:
        if kind is None:
            Supervisor(config, config_path, stop).run()
        else:
            _run_process(config, kind, device, stop)
    except PacsAiError as error:
        _log.error("%s", error)
        sys.exit(2 if isinstance(error, UserError) else 1)


def _run_process(config: Config, kind: str, device: str | None, stop: threading.Event) -> None:
    """Run one process; it imports only what it needs, so that it starts quickly and stays small."""
    if kind == "infer":
        from pacs_ai.infer import process as infer

        run = partial(infer.run, config, device or devices(config)[0], stop)
    elif kind == "receive":
        from pacs_ai.receive import process as receive

        run = partial(receive.run, config, stop)
    elif kind == "route":
        from pacs_ai.route import process as route

        run = partial(route.run, config, stop)
    else:
        from pacs_ai.deliver import process as deliver

        run = partial(deliver.run, config, stop)
    lean.collect_as_usual()
    run()
