"""The route process: steps the router until it is stopped."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pacs_ai import loop
from pacs_ai.route.router import Router
from pacs_ai.store.files import Files
from pacs_ai.store.life import REST_SECONDS, entered, rest

if TYPE_CHECKING:
    import threading

    from pacs_ai.config import Config


#: Every received instance rings the bell; looking ten times a second is enough.
_LEAST_REST_SECONDS = 0.1


def run(config: Config, stop: threading.Event) -> None:
    """Complete, route and purge until `stop` is set."""
    with entered(config, "route") as (database, owner):
        router = Router(config, database, Files(config.store.folder / "files"), owner)
        bell = database.bell()
        long_rest = rest(bell, database, owner, stop)

        def pause() -> None:
            stop.wait(_LEAST_REST_SECONDS)
            if router.rest_seconds >= REST_SECONDS:
                long_rest()
            else:
                bell.wait(router.rest_seconds, stop)

        loop.run(router.step, pause, stop)
        bell.close()
