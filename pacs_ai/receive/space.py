"""Whether there is room above the watermark, asked by a thread of its own: a disk that hangs may never answer.

The event loop only looks at what was answered last. An answer that is too old is none.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING

from pacs_ai.log import unexpected

if TYPE_CHECKING:
    from pacs_ai.store.files import Files

LOGGER = logging.getLogger(__name__)

#: So often the file system is asked, and an answer counts for so long, in seconds.
ASK_SECONDS, OLD_SECONDS = 0.5, 10.0
#: The end waits so long for the thread; one that hangs dies with the process.
_LAST_SECONDS = 1.0


class FreeSpace:
    """Tells whether an instance may be stored.

    Parameters
    ----------
    files
        Where it would be.
    least_bytes, least_share
        The watermark: so much of the file system must be free, in bytes and from 0 to 1.
    """

    def __init__(self, files: Files, least_bytes: float, least_share: float) -> None:
        self._files = files
        self._bytes, self._share = least_bytes, least_share
        self._answer: bool | None = None
        self._answered = time.monotonic()
        self._fails = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="space", daemon=True)

    def __call__(self) -> bool | None:
        """Tell whether there is room, without waiting for anything; None where the file system does not say."""
        return None if time.monotonic() - self._answered > OLD_SECONDS else self._answer

    def start(self) -> None:
        """Ask once, and then again and again."""
        self._ask()
        self._thread.start()

    def stop(self) -> None:
        """Ask no more."""
        self._stop.set()
        self._thread.join(_LAST_SECONDS)

    def _run(self) -> None:
        while not self._stop.wait(ASK_SECONDS):
            self._ask()

    def _ask(self) -> None:
        try:
            has_room = self._files.free_bytes() >= self._bytes and self._files.free_fraction() >= self._share
        except Exception as error:  # noqa: BLE001 - outermost in its thread; nothing is stored where nothing is known
            if not self._fails:
                words = error.strerror if isinstance(error, OSError) else unexpected(error)
                LOGGER.error("free space cannot be asked for, so nothing is received: %s", words)  # noqa: TRY400
            self._answer, self._fails = None, True
        else:
            self._answer, self._fails = has_room, False
        self._answered = time.monotonic()
