"""Tables of deliveries, and states in their colours: shown by several commands."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pacs_ai.cli import words
from pacs_ai.states import DeliveryState

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from pacs_ai.store.database import Connection
    from pacs_ai.store.views import DeliveryView

#: State -> colour.
COLOURS = {
    "running": "cyan", "sending": "cyan", "receiving": "cyan", "queued": "blue", "waiting": "blue",
    "done": "green", "sent": "green", "confirmed": "green", "complete": "green",
    "failed": "red", "held": "red", "conflict": "red",
    "refused": "yellow", "withheld": "yellow", "retracted": "magenta",
}  # fmt: skip


def coloured(state: str) -> object:
    """Return the state's name in its colour."""
    from rich.text import Text

    return Text(state, style=COLOURS.get(state, ""))


def next_tries(connection: Connection) -> dict[str, datetime]:
    """Return when each peer is tried next, by its name."""
    from pacs_ai.store import views

    return {peer: moment for peer, _, moment, _ in views.destinations(connection)}


def delivery_table(found: Sequence[DeliveryView], tries: Mapping[str, datetime]) -> object:
    """Return deliveries as a table; one that waits is not sent before its peer's next try."""
    drawn = words.table("delivery", "job", "what", "to", "state", "tries", "when", "answer")
    return words.rows(
        drawn,
        (
            (one.id, one.job_id, one.kind, one.peer, coloured(one.state), one.attempts, _when(one, tries), _said(one))
            for one in found
        ),
    )


def _said(one: DeliveryView) -> str:
    return words.said(one.reason, one.comment)


def _when(one: DeliveryView, tries: Mapping[str, datetime]) -> str:
    if one.sent_at is not None:
        return f"sent {words.at(one.sent_at)}"
    if one.state is DeliveryState.WAITING:
        return f"due {words.at(max(one.due_at, tries.get(one.peer, one.due_at)))}"
    return "-"
