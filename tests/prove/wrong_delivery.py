"""Known-wrong variants of delivery and of storage commitment (`prove.bugs`)."""

from __future__ import annotations

import threading
import time
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import pydicom
import sqlalchemy as sa

_LATE_SECONDS = 0.05


def encoded_again() -> None:
    """Have a retried delivery send other bytes."""
    from pacs_ai.deliver.courier import Courier
    from pacs_ai.store import schema

    outgoing = Courier._outgoing

    def again(courier: Any, parcel: Any) -> Any:
        made = outgoing(courier, parcel)
        query = sa.select(schema.delivery.c.attempts).where(schema.delivery.c.id == parcel.delivery_id)
        with courier._database.read() as connection:
            if connection.execute(query).scalar_one() < 2:
                return made
        ds = pydicom.dcmread(made.path)
        ds.InstanceCreationTime = f"{time.time_ns() % 10**6:06d}"[:2].replace("9", "1") + "0102"
        ds.SeriesDescription = f"again {uuid.uuid4().hex[:8]}"
        path = Path(str(courier._config.store.folder) + f"-again-{uuid.uuid4().hex}")
        ds.save_as(path)
        return replace(made, path=path, sha256="")

    Courier._outgoing = again


def sent_before() -> None:
    """Call what is sent delivered and confirmed before it is."""
    from pacs_ai.deliver.courier import Courier
    from pacs_ai.store import commitments, outbox

    serve = Courier.serve

    def hopeful(courier: Any, held: Any) -> None:
        for parcel in held.parcels:
            outbox.accepted(courier._database, held, parcel, 0, "Success")
            with courier._database.write() as connection:  # else the peer is asked, and what it lacks is sent again
                commitments._confirm(connection, parcel.delivery_id, "hoped for", "hopeful")
        with_all = outbox.is_wanted
        outbox.is_wanted = lambda database, parcel: True
        try:
            serve(courier, held)
        finally:
            outbox.is_wanted = with_all

    Courier.serve = hopeful


def confirmed_early() -> None:
    """Take it for the peer's answer that it took the request."""
    from pacs_ai.dicom.commitment import Report
    from pacs_ai.store import commitments

    asked = commitments.asked

    def hopeful(database: Any, step: Any, *, seconds: float) -> None:
        asked(database, step, seconds=seconds)
        kept = tuple((one.sop_class_uid, one.sop_instance_uid) for one in step.deliveries)
        commitments.record(database, Report(step.transaction_uid, kept, {}), step.ae_title, actor="hopeful")

    commitments.asked = hopeful


def never_asked() -> None:
    """Let what is delivered be."""
    from pacs_ai.store import outbox

    accepted = outbox.accepted
    outbox.accepted = lambda *arguments, **words: accepted(*arguments, **words | {"confirm": False})


def noted_late() -> None:
    """Answer a request Success, and write it down afterwards."""
    from pacs_ai.store import pledges
    from pacs_ai.store.pledges import Noted

    note = pledges.note

    def later(*arguments: Any, **words: Any) -> Noted:
        def run() -> None:
            time.sleep(_LATE_SECONDS)
            note(*arguments, **words)

        threading.Thread(target=run, daemon=True).start()
        return Noted.NEW

    pledges.note = later


def unmarked() -> None:
    """Say that it is kept, and forget it."""
    from pacs_ai.store import pledges

    pledges._keep = lambda connection, instance_ids, pledge, actor: {}


def hasty() -> None:
    """Take what has no row for what was never sent."""
    from pacs_ai.store import pledges
    from pacs_ai.store.coming import Coming

    Coming.look = lambda coming: ""
    pledges.COMING_SECONDS = 0.0
