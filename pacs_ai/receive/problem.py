"""What keeps a receive process from its work, in words for the administrator: for `pacs-ai status`.

No text of a peer is in them. Each says behind its last "; " what to do.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pacs_ai.receive.ingest import DurableIngest
    from pacs_ai.receive.scp import Receiver

#: What mends itself within so long needs nobody, in seconds. Rows may be late for longer: after a crash, all that was
#: written ahead is indexed first.
_BRIEF_SECONDS, _LATE_SECONDS = 5.0, 60.0


class Problems:
    """Looks at what a receive process is made of, again and again.

    Parameters
    ----------
    ingest, receiver
        What is looked at.
    clock
        Monotonic, in seconds.
    """

    def __init__(self, ingest: DurableIngest, receiver: Receiver, clock: Callable[[], float] = time.monotonic) -> None:
        self._ingest, self._receiver, self._clock = ingest, receiver, clock
        self._since: dict[str, float] = {}

    def look(self) -> str:
        """Return what is wrong and does not mend itself, the worst of it; "" where nothing is."""
        at = self._clock()
        causes = list(self._causes())
        self._since = {name: self._since.get(name, at) for name, _, _ in causes}
        return next((words for name, seconds, words in causes if at - self._since[name] >= seconds), "")

    def _causes(self) -> Iterator[tuple[str, float, str]]:
        """Give what is wrong: its name, for how many seconds it may last, and what to say; the worst first."""
        ingest, disk, trouble = self._ingest, self._ingest.files.disk, self._ingest.trouble
        if disk.is_broken:
            words = "refuses what peers send (0xA700), because the disk failed to sync"
            yield "broken", 0.0, f"{words}; look at the disk and at the kernel's log, then restart the node"
        if self._receiver.hangs:
            words = "refuses what peers send (0xA700), because the disk answers to no write"
            yield "hangs", 0.0, f"{words}; look at the disk and at the kernel's log"
        if disk.short:
            yield (
                "short",
                _BRIEF_SECONDS,
                f"cannot write what peers send (0xA700): {disk.short}; it tries again by itself",
            )
        if trouble is not None:
            yield "trouble", _BRIEF_SECONDS, f"cannot index what was received: {trouble}; it tries again by itself"
        if ingest.is_unreadable:
            words = "cannot read a file that may hold received instances"
            yield "unreadable", 0.0, f"{words}; its log names it: let the node's user read and write it, then restart"
        if not ingest.is_settled:
            words = f"lags: what was received waits for its rows for more than {_LATE_SECONDS:.0f} s"
            yield "late", _LATE_SECONDS, f"{words}; see its log, and whether disk and database keep up"
