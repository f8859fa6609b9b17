"""Notes each query that this node sends to a peer (C-FIND), for the audit trail."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

from pacs_ai.deliver.inquiry import STUDY_ROOT_FIND
from pacs_ai.store import trail
from pacs_ai.store.clock import now

if TYPE_CHECKING:
    from collections.abc import Callable

    from pacs_ai.deliver.inquiry import Query
    from pacs_ai.store.database import Database


def noting(database: Database, actor: str) -> Callable[[Query], None]:
    """Return what notes a query durably before it is sent; it raises Unavailable where the database is away."""

    def note(query: Query) -> None:
        remote = query.remote
        identifier = base64.b64encode(query.identifier).decode()
        noted = trail.Notice(
            kind=trail.NoticeKind.QUERY,
            at=now(),
            reason=f"{STUDY_ROOT_FIND} {query.transfer_syntax_uid} {identifier}",
            address=remote.host,
            calling_ae_title=remote.calling_ae_title,
            called_ae_title=remote.ae_title,
            actor=actor,
        )
        trail.note(database, [noted])

    return note
