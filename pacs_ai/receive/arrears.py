"""Whether a receive process owes the index rows for longer than a moment: after a start, or while none goes through."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pacs_ai.receive.ingest import DurableIngest


class Arrears:
    """What earlier processes had written ahead, and what this one could not index for a while."""

    def __init__(self, ingest: DurableIngest) -> None:
        self._ingest = ingest

    @property
    def are_settled(self) -> bool:
        """Whether all that was answered Success has its rows, what came in this moment aside; ask every second."""
        return not self._ingest.is_held_up and not self._ingest.is_recovering

    @property
    def are_none(self) -> bool:
        """Whether nothing at all is owed, for the end."""
        return self.are_settled and not self._ingest.waiting
