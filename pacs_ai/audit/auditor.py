"""The auditor: makes events of what happened and spools them; a messenger hands them to each who is to have them.

They work in threads of the deliver process, off the way of every instance. What they did not finish when they were
killed they do again: an event may come twice, and none is lost.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

from pacs_ai import loop
from pacs_ai.audit.events import Teller
from pacs_ai.audit.messenger import Messenger
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

#: After a fault of the node, time until the next try (seconds).
_FAULT_SECONDS = 60.0
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


class Part(Protocol):
    """One of those who do the audit trail's work: the auditor, and a messenger for each taker.

    `does` completes "audit events are not ...".
    """

    does: str

    def step(self) -> bool:
        """Do one unit of work; False where there is none now."""

    def broke(self, words: str) -> None:
        """Note, for `pacs-ai status`, what nobody foresaw."""


def parts(
    database: Database, teller: Teller, takers: Sequence[Taker], clock: Callable[[], float] = time.monotonic
) -> list[Part]:
    """Return all who do the work; none of them waits for another."""
    names = [one.name for one in takers]
    return [Auditor(database, teller, names), *(Messenger(database, one, names, clock) for one in takers)]


class Auditor:
    """Tells what happened; `step` does one batch.

    Parameters
    ----------
    takers
        The names of those who are to have the events; none: nothing is told, and nothing kept for it.
    """

    does = "made"

    def __init__(self, database: Database, teller: Teller, takers: Sequence[str]) -> None:
        self._database = database
        self._teller = teller
        self._takers = takers
        self._horizon = trail.Horizon()

    def step(self) -> bool:
        """Spool the events of one batch; False where nothing happened."""
        if not self._takers:
            return self._forget()
        with self._database.read() as connection:
            batch = trail.read(connection, self._horizon)
        if batch.is_empty:
            return False
        trail.keep(self._database, batch, self._teller.events(batch))
        return True

    def broke(self, words: str) -> None:
        """Note, for `pacs-ai status`, that nobody gets events, and why."""
        for taker in self._takers:
            spool.failed(self._database, taker, words)

    def _forget(self) -> bool:
        with self._database.write() as connection:
            trail.discard(connection)
        return False


class AuditThreads:
    """Runs each part in a thread of its own, beside another actor that goes on whatever befalls them."""

    def __init__(self, parts: Sequence[Part], stop: threading.Event) -> None:
        self._stop = stop
        self._threads = [
            threading.Thread(target=self._run, args=(part,), name=f"audit events {part.does}", daemon=True)
            for part in parts
        ]

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def join(self, seconds: float) -> None:
        """Wait for the end of the steps in progress, after `stop` was set."""
        until = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))

    def _run(self, part: Part) -> None:
        while not self._stop.is_set():
            try:
                loop.run(part.step, self._rest, self._stop)
            except Exception as error:  # noqa: BLE001 - outermost: results are delivered whatever is odd about an event
                words = unexpected(error)
                _log.error("audit events are not %s: %s", part.does, words)
                with suppress(Transient):
                    part.broke(words)
                self._stop.wait(_FAULT_SECONDS)

    def _rest(self) -> None:
        self._stop.wait(_REST_SECONDS)
