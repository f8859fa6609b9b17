"""A process of the node: entered in the list of processes while it lives, resting between steps until woken."""

from __future__ import annotations

import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from pacs_ai.errors import Transient
from pacs_ai.store import processes, version
from pacs_ai.store.database import Bell, Database
from pacs_ai.store.owners import BEAT_SECONDS, this_process

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterator

    from pacs_ai.config import Config

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
