"""A job of two results for one peer that is asked to commit to them, and the two actors that do it, stepped by hand."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import sqlalchemy as sa
from stations import ME
from stored_results import finish_with, plan_of

from pacs_ai.config import Config
from pacs_ai.deliver.confirmer import Confirmer
from pacs_ai.deliver.courier import Courier
from pacs_ai.profiles import Kind, Wanted, encodings
from pacs_ai.store import outbox, schema, unconfirmed
from pacs_ai.store.enqueue import Address

PLAN = plan_of(Wanted(Kind.SEGMENTATION, "binary"), Wanted(Kind.TEXT_REPORT))


class Bed:
    """A job of two results for one peer, and the two actors that deliver and confirm them, stepped by hand."""

    def __init__(self, stations, source, files, peer, folder, **settings):
        self.stations, self.peer = stations, peer
        table = {"name": "pacs", "ae_title": peer.ae_title, "host": "127.0.0.1", "port": peer.port}
        patience = 60 if peer.answers == "here" else 0.3  # only one that answers here is waited for
        self.config = Config.model_validate(
            {
                "store": {"folder": folder / "store"},
                "peer": [{"commitment": True, "commitment_seconds": patience, "answer_seconds": 60} | table | settings],
            }
        )
        self.address = Address("pacs", peer.ae_title, "127.0.0.1", peer.port, PLAN)
        stations.enqueue(stations.work(source, destinations=(self.address,)))
        self.job = finish_with(stations, files, encodings([PLAN]))
        self.courier = Courier(self.config, stations.database, files, ME)
        self.confirmer = Confirmer(self.config, stations.database, ME)

    def deliver(self):
        """Send what is due in one round."""
        held = outbox.claim(self.stations.database, "pacs", ME)
        assert held is not None
        self.courier.serve(held)

    def step(self):
        return self.confirmer.step("pacs")

    def due(self):
        """Let the time for the peer's answer be over."""
        with self.stations.database.write() as connection:
            late = sa.update(schema.delivery).where(schema.delivery.c.confirm_at.is_not(None))
            connection.execute(late.values(confirm_at=datetime.now(UTC) - timedelta(seconds=1)))

    @property
    def rows(self):
        return self.stations.rows(schema.delivery)

    @property
    def uids(self):
        return [row.sop_instance_uid for row in self.stations.rows(schema.result)]

    @property
    def requests(self):
        return self.stations.rows(schema.commitment)

    @property
    def unconfirmed(self):
        with self.stations.database.read() as connection:
            return unconfirmed.look(connection)

    @property
    def given_up(self):
        """How many results each peer was asked for in vain."""
        return {peer: count for peer, (count, _) in self.unconfirmed.given_up.items()}
