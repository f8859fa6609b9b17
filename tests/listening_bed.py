"""A node that listens without an index, and what its process costs."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from raw_peer import PATIENCE, RawPeer, echo_seconds

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from pacs_ai.dicom.arrival import Arrival
    from pacs_ai.receive.ingest import DurableIngest
    from pacs_ai.receive.scp import Receiver
    from pacs_ai.store.files import Files


#: Another client's C-ECHO takes no longer, from connecting to the answer; a tenth of a second where nothing else runs.
ECHO_SECONDS = 2.0
_TRIES = 3


def until(condition: Callable[[], object], seconds: float = PATIENCE) -> None:
    """Wait until something is true."""
    deadline = time.monotonic() + seconds
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, "did not come true in time"
        pause.wait(0.01)


def open_files() -> int:
    """Return how many descriptors this process has open."""
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - a pseudo folder


@dataclass
class Bed:
    """A listening node whose index is a list, and the peers that called it."""

    files: Files
    arrivals: list[Arrival] = field(default_factory=list)
    before_record: Callable[[], None] = lambda: None
    peers: list[RawPeer] = field(default_factory=list)
    receiver: Receiver = field(init=False)
    ingest: DurableIngest = field(init=False)
    slowest_echo: float = 0.0
    has_stopped: bool = False

    def record(self, arrivals: Sequence[Arrival]) -> None:
        """Take the place of the index."""
        self.before_record()
        self.arrivals += arrivals

    def peer(self, *, receive_buffer: int | None = None, address: str = "127.0.0.1") -> RawPeer:
        """Connect."""
        self.peers.append(RawPeer(self.receiver.port, receive_buffer=receive_buffer, address=address))
        return self.peers[-1]

    def is_served(self) -> bool:
        """Serve another client, meanwhile, and not late: by the best of a few echoes, for the machine is shared."""
        took = [echo_seconds(self.receiver.port)]
        while min(took) > ECHO_SECONDS and len(took) < _TRIES:
            took.append(echo_seconds(self.receiver.port))
        self.slowest_echo = max(self.slowest_echo, *took)
        return min(took) <= ECHO_SECONDS

    def stored(self) -> list[Path]:
        """Return every file below the store, half-written ones too."""
        return sorted(path for path in self.files.folder.rglob("*") if path.is_file())
