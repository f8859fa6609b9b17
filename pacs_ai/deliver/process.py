"""The deliver process: steps the courier until it is stopped, and tells the audit trail what the node did."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pacs_ai import loop
from pacs_ai.audit.auditor import AuditThreads, parts, takers, teller
from pacs_ai.deliver.courier import Courier
from pacs_ai.store.files import Files
from pacs_ai.store.life import entered, rest

if TYPE_CHECKING:
    import threading

    from pacs_ai.config import Config

#: On stop, time for the audit events under way; what is left is told after the next start.
_AUDIT_SECONDS = 5.0


def run(config: Config, stop: threading.Event) -> None:
    """Deliver until `stop` is set."""
    with entered(config, "deliver") as (database, owner):
        courier = Courier(config, database, Files(config.store.folder / "files"), owner)
        audit = AuditThreads(parts(database, teller(config), takers(config)), stop)
        audit.start()
        bell = database.bell()
        loop.run(courier.step, rest(bell, database, owner, stop), stop)
        courier.join(config.receive.grace_seconds)
        audit.join(_AUDIT_SECONDS)
        bell.close()
