"""Whether instances that were answered Success may be on their way into rows, because a receive process died or lags.

A series is not to be called complete meanwhile. Waiting has an end: a process that is never started again, or a host
that is gone, holds up nothing for ever; what comes later makes a revision of its own, as any late instance does.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pacs_ai.store import processes
from pacs_ai.store.owners import BEAT_SECONDS, is_dead, is_here

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from pacs_ai.store.database import Database
    from pacs_ai.store.processes import Receiving

LOGGER = logging.getLogger(__name__)

#: So long is waited without a break, whatever the reasons are.
LONGEST_SECONDS = 120.0
#: A receive process that said nothing for so long may be dead, or stand still.
SILENT_SECONDS = 3 * BEAT_SECONDS


@dataclass(frozen=True)
class _Sight:
    """A receive process as it was seen: when it last said that it lives, and since when on this clock.

    It is `believed` when it was seen to say so, or can be seen to live.
    """

    seen_at: datetime
    since: float
    believed: bool


class Coming:
    """What one process has seen of the receive processes, by its own monotonic clock.

    Parameters
    ----------
    clock
        Monotonic seconds.
    """

    def __init__(self, database: Database, clock: Callable[[], float] = time.monotonic) -> None:
        self._database, self._clock = database, clock
        self._sights: dict[str, _Sight] = {}
        self._doubtful = False
        self._since: float | None = None
        self._looked_at = clock()

    def look(self) -> str:
        """Say why instances may be coming, "" where none are; what it says holds at this moment."""
        at = self._clock()
        if at - self._looked_at >= SILENT_SECONDS:
            self._sights, self._since = {}, None  # nobody has watched: all is seen as for the first time
        self._looked_at = at
        with self._database.read() as connection:
            found = processes.receiving(connection)
        self._sights = {one.owner: self._sight(one, at) for one in found}
        self._doubtful = False
        reasons = {one.owner: words for one in found if (words := self._reason(one, at))}
        if not reasons:
            if self._since is not None:
                LOGGER.info("all that was received is in the index, as far as can be known")
            self._since = None
            return ""
        words = "; ".join(reasons.values())
        if self._since is None:
            self._since = at
            LOGGER.warning(
                "what was received may not be in the index, and is waited for (%g s): %s", LONGEST_SECONDS, words
            )
        if at - self._since < LONGEST_SECONDS:
            return words
        processes.give_up(self._database, reasons.keys(), waited_seconds=LONGEST_SECONDS)
        LOGGER.warning("not waited for any longer, what still comes makes a further revision: %s", words)
        self._since = None
        return ""

    def doubt(self) -> None:
        """Believe of no receive process that it keeps up until it has said so again: the database was away."""
        self._doubtful = True
        self._sights = {owner: replace(sight, believed=False) for owner, sight in self._sights.items()}

    def _sight(self, one: Receiving, at: float) -> _Sight:
        before = self._sights.get(one.owner)
        if before is None:
            return _Sight(one.seen_at, at, is_here(one.owner) and not self._doubtful)
        return before if before.seen_at == one.seen_at else _Sight(one.seen_at, at, believed=True)

    def _reason(self, one: Receiving, at: float) -> str:
        name, sight = one.owner, self._sights[one.owner]
        if is_dead(one.owner):
            return f"{name} ended without saying so, and may have received what another is to index"
        if not one.settled:
            return f"{name} still indexes what was received before"
        if not sight.believed or at - sight.since >= SILENT_SECONDS:
            return f"{name} has not said that it keeps up"
        return ""
