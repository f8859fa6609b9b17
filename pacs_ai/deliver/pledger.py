"""The pledger: decides what this node commits to keep, with the bytes of every file read, and tells those who asked.

Each peer is told in a thread of its own: one that is silent keeps the answers from nobody else.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING

from pacs_ai.deliver import inquiry
from pacs_ai.deliver.addresses import remote
from pacs_ai.errors import BrokenOff, NotOffered, Transient, Unavailable
from pacs_ai.log import unexpected
from pacs_ai.store import pledges
from pacs_ai.store.coming import Coming
from pacs_ai.store.waiting import Backoff

if TYPE_CHECKING:
    from pacs_ai.config import Config
    from pacs_ai.store.database import Database
    from pacs_ai.store.files import Files
    from pacs_ai.store.pledges import Pledge

_log = logging.getLogger(__name__)


class Pledger:
    """Takes the requests of each peer one after the other; `look` starts it for every peer of which one waits."""

    def __init__(self, config: Config, database: Database, files: Files, owner: str) -> None:
        self._config = config
        self._database = database
        self._files = files
        self._owner = owner
        deliver = config.deliver
        self._backoff = Backoff(deliver.first_backoff_seconds, deliver.longest_backoff_seconds, deliver.give_up_hours)
        self._coming = Coming(database)
        self._coming_lock = threading.Lock()
        self._threads: dict[str, threading.Thread] = {}

    def look(self) -> None:
        """Begin at each peer of which a request waits and none is being taken."""
        self._threads = {peer: thread for peer, thread in self._threads.items() if thread.is_alive()}
        with self._database.read() as connection:
            due = [peer for peer in pledges.due_peers(connection) if peer not in self._threads]
        for peer in due:
            self._threads[peer] = threading.Thread(target=self._run, args=(peer,), name=f"pledge-{peer}", daemon=True)
            self._threads[peer].start()

    def join(self, seconds: float) -> None:
        """Wait for what is being decided or told."""
        deadline = time.monotonic() + seconds
        for thread in self._threads.values():
            thread.join(max(0.0, deadline - time.monotonic()))

    def _run(self, peer: str) -> None:
        try:
            while self.step(peer):
                pass
        except Transient as error:
            _log.warning("requests for storage commitment wait until the store takes their answers: %s", error)

    def step(self, peer: str) -> bool:
        """Decide and tell one; False where none waits, or the peer is away."""
        taken = pledges.take(self._database, peer)
        return taken is not None and self.serve(taken)

    def serve(self, pledge: Pledge) -> bool:
        """Decide a request where that was not done, and tell the one who asked; False where it is away.

        What was asked for before `receive.commitment` was switched off is answered too: that it is not kept.
        """
        try:
            return self._serve(pledge)
        except Transient:
            raise
        except Exception as error:  # noqa: BLE001 - one request must not hold up the others
            words = unexpected(error)
            _log.error("%s is not told yet what is kept: %s", pledge.peer, words)
            pledges.later(self._database, pledge, words, self._backoff)
            return True

    def _serve(self, pledge: Pledge) -> bool:
        if not pledge.decided:
            is_whole = self._is_whole if self._config.receive.commitment else _keep_nothing
            with self._coming_lock:
                is_more_coming = bool(self._coming.look())
            decided = pledges.decide(self._database, pledge, is_whole, actor=self._owner, is_more_coming=is_more_coming)
            if decided is None:
                return True
            pledge = decided
            kept = len(pledge.instances) - len(pledge.failures)
            _log.info("%s asked for storage commitment: %d kept, %d not", pledge.peer, kept, len(pledge.failures))
        try:
            self._tell(pledge)
        except (BrokenOff, NotOffered) as error:  # of this answer: the next one may get through
            goes_on = pledges.later(self._database, pledge, _reason(error), self._backoff)
            _log.warning("%s is told %s what is kept: %s", pledge.peer, "later" if goes_on else "never", error)
        except Unavailable as error:
            given_up = pledges.unreached(self._database, pledge, str(error), self._backoff)
            _log.warning("%s is told %s what is kept: %s", pledge.peer, "never" if given_up else "later", error)
            return False
        else:
            pledges.told(self._database, pledge)
        return True

    def _tell(self, pledge: Pledge) -> None:
        peer = next((one for one in self._config.peer if one.name == pledge.peer), None)
        if peer is None:
            raise Unavailable(f"{pledge.peer} is no [[peer]] any more")
        inquiry.tell(remote(self._config, peer), pledge.report)

    def _is_whole(self, sha256: str) -> bool:
        try:
            return self._files.verify(sha256)
        except OSError as error:
            _log.error("a file that somebody asked to keep cannot be read: %s", error.strerror)
            return False


def _reason(error: Unavailable | NotOffered) -> str:
    """Return why a peer could not be told, with what it said of it in its own words: for no log."""
    comment = error.comment if isinstance(error, NotOffered) else ""
    return f'{error}, "{comment}"' if comment else str(error)


def _keep_nothing(_sha256: str) -> bool:
    return False
