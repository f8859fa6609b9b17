"""A process of the node: entered in the list of processes while it lives, resting between steps until woken."""

from __future__ import annotations

import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from pacs_ai.errors import Transient, UserError
from pacs_ai.store import probe, processes, version
from pacs_ai.store.database import Bell, Database
from pacs_ai.store.owners import BEAT_SECONDS, this_process
from pacs_ai.store.presence import Presence

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from pacs_ai.config import Config
    from pacs_ai.store.disk import Disk

#: Longest rest between two steps where nothing rings the bell.
REST_SECONDS = 1.0


@contextmanager
def entered(config: Config, kind: str, detail: str = "") -> Iterator[tuple[Database, str]]:
    """Open the database for one process and enter it in the list of processes; yields both database and owner."""
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


def prove_durable(database: Database) -> None:
    """Raise UserError where a commit may be lost by a power failure, as the database itself says."""
    is_durable, words = probe.durability(database)
    if not is_durable:
        raise UserError(
            f"{words}: what is answered Success could be lost by a power failure; switch fsync and synchronous_commit "
            "on at the database server"
        )


class Receives:
    """A receive process in the list of processes: it takes the place of those that died, and may leave owing nothing.

    Parameters
    ----------
    folder
        The data folder.
    disk
        The file system that it lies on.

    Raises
    ------
    OutOfResources, Unavailable
        Disk or database are not to be had.
    """

    def __init__(self, database: Database, folder: Path, disk: Disk, detail: str = "") -> None:
        self._database, self.owner = database, this_process(processes.RECEIVE)
        self._presence = Presence(folder / "receiving", self.owner, disk)
        processes.register(database, self.owner, processes.RECEIVE, detail, self._presence.gone)
        self._presence.succeed()
        self._said, self._said_at = (False, ""), time.monotonic()
        #: Tells, when this process has stopped, whether all that was answered Success has its rows.
        self.owes_nothing: Callable[[], bool] = lambda: False

    def say(self, *, settled: bool, problem: str = "") -> None:
        """Say that it lives, whether all that was answered Success has its rows, and what is wrong.

        It is said when it is news, or time to.
        """
        if (settled, problem) == self._said and time.monotonic() - self._said_at < BEAT_SECONDS:
            return
        with suppress(Transient):
            processes.settle(self._database, self.owner, settled=settled, problem=problem)
            self._said, self._said_at = (settled, problem), time.monotonic()

    def end(self) -> None:
        """Leave, where nothing is owed; else it counts as dead, and another process takes its place."""
        if self.owes_nothing():
            with suppress(Transient):
                processes.leave(self._database, self.owner)
                self._presence.leave()
        self._presence.close()


@contextmanager
def receiving(config: Config, disk: Disk) -> Iterator[tuple[Database, Receives]]:
    """As `entered`, for a receive process."""
    database = Database(config.database_url)
    version.check(database)
    prove_durable(database)
    receives = Receives(database, config.store.folder, disk, config.receive.where)
    try:
        yield database, receives
    finally:
        receives.end()
        database.close()


def rest(bell: Bell, database: Database, owner: str, stop: threading.Event) -> Callable[[], None]:
    """Return what a loop does between steps: wait for the bell, and say now and then that the process lives."""
    said = time.monotonic()

    def rest() -> None:
        nonlocal said
        bell.wait(REST_SECONDS, stop)
        if time.monotonic() - said >= BEAT_SECONDS:
            said = time.monotonic()
            processes.seen(database, owner)

    return rest
