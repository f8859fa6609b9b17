"""The messenger: hands the spooled audit events to one who is to have them, and tries him again later where he fails.

A parcel that did not come through may have been too long for the line, or for the one who reads it: the next is half as
long, and then each twice as long as the one before, while they come through.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from pacs_ai.errors import Transient
from pacs_ai.log import unexpected
from pacs_ai.store import spool

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pacs_ai.audit.takers import Taker
    from pacs_ai.store.database import Database

_log = logging.getLogger(__name__)

#: Most events that are handed over at a time.
PARCEL = 200
#: Waits after a taker failed, doubled up to the last (seconds).
_FIRST_WAIT, _LONGEST_WAIT = 1.0, 60.0


class Messenger:
    """Hands events to one taker; `step` does one parcel.

    Parameters
    ----------
    takers
        The names of all who are to have each event: then it goes.
    clock
        Monotonic seconds.
    """

    def __init__(
        self, database: Database, taker: Taker, takers: Sequence[str], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.does = f"handed to the {taker.name}"
        self._database = database
        self._taker = taker
        self._takers = takers
        self._clock = clock
        self._due, self._wait = 0.0, _FIRST_WAIT
        self._most = PARCEL

    def step(self) -> bool:
        """Hand over one parcel; False where the taker has all, or is left alone for a while."""
        if self._clock() < self._due:
            return False
        with self._database.read() as connection:
            parcel = spool.waiting(connection, self._taker.name, self._most)
        if parcel is None:
            return False
        try:
            self._taker.take(parcel.events)
        except Transient as error:
            self._put_off(str(error))
            return False
        except Exception as error:  # noqa: BLE001 - outermost for one taker: he is waited for like one that is away
            self._put_off(unexpected(error))
            return False
        self._wait, self._most = _FIRST_WAIT, min(2 * self._most, PARCEL)
        spool.taken(self._database, self._taker.name, parcel, self._takers)
        return True

    def broke(self, words: str) -> None:
        """Note, for `pacs-ai status`, that the taker gets nothing, and why."""
        spool.failed(self._database, self._taker.name, words)

    def _put_off(self, words: str) -> None:
        wait = self._wait
        self._due, self._wait = self._clock() + wait, min(2 * wait, _LONGEST_WAIT)
        self._most = max(1, self._most // 2)
        _log.warning("audit events wait, tried again in %.0f s: %s", wait, words)
        self.broke(words)
