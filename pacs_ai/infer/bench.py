"""A worker's child process as its parent sees it: started, given an order, listened to, ended."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from pacs_ai import lean
from pacs_ai.errors import WorkerLost
from pacs_ai.infer.order import Step

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from pacs_ai.config import Config
    from pacs_ai.infer.order import Message, Order, Ready, StepName


def _be_child(pipe: Connection[Any, Any], config: Config, device: str, parent: int) -> None:
    """Run in the child only: what it imports (torch, highdicom) the parent never does."""
    os.setpgid(0, 0)  # what a pipeline starts ends with it
    lean.collect_rarely()
    from pacs_ai.infer import child

    child.main(pipe, config, device, parent)


class Bench:
    """The child process and the pipe to it."""

    def __init__(self, config: Config, device: str) -> None:
        self._config = config
        self._device = device
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_be_child, args=(theirs, config, device, os.getpid()), name=f"infer-child-{device}"
        )
        self._process.start()
        theirs.close()
        self.ready: Ready | None = None
        self.last_used = time.monotonic()
        self.orders = 0
        self._doing: StepName | None = None

    @property
    def pid(self) -> int | None:
        """Process id of the child."""
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether the child runs."""
        return self._process.is_alive()

    def receive(self, seconds: float) -> Message | None:
        """Return the child's next message, None where there was none in time; `WorkerLost` where it died."""
        try:
            if not self._pipe.poll(seconds):
                if not self._process.is_alive() and not self._pipe.poll(0):
                    raise WorkerLost(self._death())
                return None
            message: Message = self._pipe.recv()
        except (EOFError, OSError) as error:
            raise WorkerLost(self._death()) from error
        if isinstance(message, Step):
            self._doing = message.name
        return message

    def send(self, order: Order) -> None:
        """Give the child an order, and count it in `orders`."""
        self.last_used = time.monotonic()
        self.orders += 1
        self._doing = None
        try:
            self._pipe.send(order)
        except OSError as error:
            raise WorkerLost(self._death()) from error

    def _death(self) -> str:
        """Say how the child died; while it loads, no model runs yet: what crashes then is a decoder."""
        self._process.join(5)
        code = self._process.exitcode
        who = "the decoder of the images" if self._doing == "loading" else "the process that runs the model"
        if code is not None and code < 0:
            words = "out of memory?" if -code == signal.SIGKILL else signal.Signals(-code).name
            return f"{who} was killed by signal {-code} ({words})"
        return f"{who} ended with exit status {code}"

    def end(self) -> None:
        """End the child at once, and what its pipelines have started."""
        with suppress(OSError):
            self._pipe.close()
        if self._process.pid is not None:
            with suppress(ProcessLookupError):  # gone already, or not yet a group of its own
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.kill()
        self._process.join()
        self._process.close()
