"""Rounds of a courier, served as they come due."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from stations import ME

from pacs_ai.store import clock, outbox, schema

if TYPE_CHECKING:
    from stations import Stations, WallClock

    from pacs_ai.deliver.courier import Courier


def serve_next(stations: Stations, courier: Courier, wall: WallClock) -> float:
    """Serve the next round that is due, by the wall clock that is moved there; returns for how long, in seconds."""
    (destination,) = stations.rows(schema.destination)
    waiting = stations.rows(schema.delivery, schema.delivery.c.state == "waiting")
    before = clock.now()
    for due_at in sorted(max(destination.next_try_at, row.due_at) for row in waiting):
        wall.forward(seconds=max(due_at - clock.now(), timedelta(0)).total_seconds())
        held = outbox.claim(stations.database, "pacs", ME)
        if held is not None:
            break  # else it waits for what it cites
    waited = (clock.now() - before).total_seconds()
    assert held is not None
    courier.serve(held)
    return waited
