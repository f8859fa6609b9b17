"""The auditor: makes events of what happened, spools them, and hands them to those who are to have them.

It works in a thread of the deliver process, off the way of every instance. What it did not finish when it was killed it
does again: an event may come twice, and none is lost.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from pacs_ai import loop
from pacs_ai.audit.events import Teller
from pacs_ai.audit.syslog import Envelope
from pacs_ai.audit.takers import FILE, REPOSITORY, AuditFile, Repository
from pacs_ai.credentials import calling
from pacs_ai.errors import Transient
from pacs_ai.log import unexpected
from pacs_ai.store import spool, trail

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pacs_ai.audit.takers import Taker
    from pacs_ai.config import Config
    from pacs_ai.store.database import Database

_log = logging.getLogger(__name__)

#: Events that are handed over at a time.
_PARCEL = 200
#: Waits after a taker failed, doubled up to the last (seconds).
_FIRST_WAIT, _LONGEST_WAIT = 1.0, 60.0
#: Rest between two looks (seconds): events come in parcels, and connections to a repository are few.
_REST_SECONDS = 1.0


def envelope() -> Envelope:
    """Return what this process writes before each message."""
    return Envelope(socket.gethostname(), os.getpid())


def teller(config: Config) -> Teller:
    """Return who tells of it: this node, on this machine."""
    return Teller(
        node_name=config.node.name,
        host=socket.gethostname(),
        ae_titles=config.receive.ae_titles,
        source=config.audit.source or config.node.name,
        site=config.audit.site,
    )


def taker_names(config: Config) -> list[str]:
    """Return who is to have the events."""
    return [FILE] * config.audit.to_file + [REPOSITORY] * bool(config.audit.repository)


def repository(config: Config) -> Repository:
    """Return the repository that the configuration names; UserError where the node's certificate is faulty."""
    audit = config.audit
    name = audit.repository_name or audit.address[0]
    return Repository(calling(config.tls), audit.address, name, audit.repository_seconds, envelope())


def takers(config: Config) -> list[Taker]:
    """Return everyone who is to have the events."""
    found: list[Taker] = []
    if config.audit.to_file:
        found.append(AuditFile(config.audit_folder, envelope(), int(config.audit.max_file_mb * 1e6)))
    if config.audit.repository:
        found.append(repository(config))
    return found


class Auditor:
    """Tells what happened; `step` does one batch.

    Parameters
    ----------
    takers
        Who is to have the events; none: nothing is told, and nothing kept for it.
    clock
        Monotonic seconds.
    """

    def __init__(
        self,
        database: Database,
        teller: Teller,
        takers: Sequence[Taker],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._teller = teller
        self._takers = takers
        self._clock = clock
        self._horizon = trail.Horizon()
        self._waits: dict[str, tuple[float, float]] = {}  # taker -> next try, wait before it

    def step(self) -> bool:
        """Tell one batch and hand over one parcel to each; False where nothing is left to do now."""
        if not self._takers:
            return self._forget()
        told = self.tell()
        handed = [self._hand(taker) for taker in self._takers]
        return told or any(handed)

    def tell(self) -> bool:
        """Spool the events of one batch; False where nothing happened."""
        with self._database.read() as connection:
            batch = trail.read(connection, self._horizon)
        if batch.is_empty:
            return False
        trail.keep(self._database, batch, self._teller.events(batch))
        return True

    def broke(self, words: str) -> None:
        """Note, for `pacs-ai status`, that nobody gets events, and why."""
        for taker in self._takers:
            spool.failed(self._database, taker.name, words)

    def _forget(self) -> bool:
        with self._database.write() as connection:
            trail.discard(connection)
        return False

    def _hand(self, taker: Taker) -> bool:
        """Hand the next parcel to a taker; False where it has all, or is left alone for a while."""
        due, wait = self._waits.get(taker.name, (0.0, _FIRST_WAIT))
        if self._clock() < due:
            return False
        with self._database.read() as connection:
            parcel = spool.waiting(connection, taker.name, _PARCEL)
        if parcel is None:
            return False
        try:
            taker.take(parcel.events)
        except Transient as error:
            self._waits[taker.name] = (self._clock() + wait, min(2 * wait, _LONGEST_WAIT))
            spool.failed(self._database, taker.name, str(error))
            _log.warning("audit events wait, tried again in %.0f s: %s", wait, error)
            return False
        self._waits.pop(taker.name, None)
        spool.taken(self._database, taker.name, parcel, [one.name for one in self._takers])
        return True


class AuditThread:
    """Runs the auditor beside another actor, which never waits for it and goes on whatever befalls it."""

    def __init__(self, auditor: Auditor, stop: threading.Event) -> None:
        self._auditor = auditor
        self._stop = stop
        self._thread = threading.Thread(target=self._run, name="auditor", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def join(self, seconds: float) -> None:
        """Wait for the end of the step in progress, after `stop` was set."""
        self._thread.join(seconds)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                loop.run(self._auditor.step, self._rest, self._stop)
            except Exception as error:  # noqa: BLE001 - outermost: results are delivered whatever is odd about an event
                words = unexpected(error)
                _log.error("audit events are not made: %s", words)
                with suppress(Transient):
                    self._auditor.broke(words)
                self._stop.wait(_LONGEST_WAIT)

    def _rest(self) -> None:
        self._stop.wait(_REST_SECONDS)
