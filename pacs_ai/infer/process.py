"""A worker's parent process: steps the worker of one device until it is stopped."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pacs_ai import loop
from pacs_ai.infer.worker import Worker
from pacs_ai.store.files import Files
from pacs_ai.store.life import entered, rest

if TYPE_CHECKING:
    import threading

    from pacs_ai.config import Config


def run(config: Config, device: str, stop: threading.Event) -> None:
    """Do jobs until `stop` is set."""
    with entered(config, "infer", device) as (database, owner):
        worker = Worker(config, database, Files(config.store.folder / "files"), owner, device, stop)
        worker.start()
        bell = database.bell()
        try:
            loop.run(worker.step, rest(bell, database, owner, stop), stop)
        finally:
            worker.close()
            bell.close()
