"""The supervisor where the kernel starts no further process: the others live on, and it tries again."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest
from running_node import until

from pacs_ai import node
from pacs_ai.config import Config

BUSY = BlockingIOError(11, "Resource temporarily unavailable")


class Kernel:
    """Starts processes that wait, in place of `subprocess.Popen`; while `is_short` it starts none."""

    def __init__(self):
        self.is_short = False
        self.refusals = 0
        self.started = []

    def __call__(self, *_, **__):
        if self.is_short:
            self.refusals += 1
            raise BUSY
        self.started.append(Waiting([sys.executable, "-c", "import time; time.sleep(600)"]))
        return self.started[-1]


Waiting = subprocess.Popen


@pytest.fixture
def kernel(monkeypatch):
    found = Kernel()
    monkeypatch.setattr(node.subprocess, "Popen", found)
    yield found
    for process in found.started:
        process.kill()
        process.wait()


@pytest.fixture
def supervise(tmp_path, kernel):
    """Run a supervisor of four processes; it is ended after the test."""
    stop = threading.Event()
    config = Config.model_validate({"store": {"folder": tmp_path / "data"}, "infer": {"devices": ["cpu"]}})
    supervisor = threading.Thread(target=node.Supervisor(config, None, stop).run, daemon=True)
    yield supervisor
    stop.set()
    supervisor.join(60)
    assert not supervisor.is_alive()


def test_a_process_that_cannot_be_started_anew_does_not_end_the_others(kernel, supervise, caplog):
    supervise.start()
    until(lambda: len(kernel.started) == 4)
    kernel.is_short = True
    kernel.started[3].kill()
    until(lambda: kernel.refusals == 2)
    kernel.is_short = False
    until(lambda: len(kernel.started) == 5)
    assert [process.poll() for process in kernel.started] == [None, None, None, -9, None]
    assert "process infer cpu cannot be started (Resource temporarily unavailable); tried again in 1 s" in caplog.text


def test_a_node_begins_as_soon_as_the_kernel_starts_processes(kernel, supervise):
    kernel.is_short = True
    supervise.start()
    until(lambda: kernel.refusals >= 4)
    kernel.is_short = False
    until(lambda: len(kernel.started) == 4)
    assert [process.poll() for process in kernel.started] == [None] * 4
