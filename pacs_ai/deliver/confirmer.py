"""The confirmer: after delivery, asks each peer that offers it to commit to the results, and looks where none answers.

Each peer is asked in a thread of its own, beside the couriers: a peer that is silent holds up nobody.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import defaultdict
from typing import TYPE_CHECKING

from pacs_ai.deliver import inquiry, queries
from pacs_ai.deliver.addresses import remote_at
from pacs_ai.dicom import status
from pacs_ai.dicom.commitment import Request
from pacs_ai.errors import BrokenOff, NotOffered, Transient, Unavailable
from pacs_ai.log import unexpected
from pacs_ai.store import commitments
from pacs_ai.store.commitments import Verdict

if TYPE_CHECKING:
    from pacs_ai.config import Config
    from pacs_ai.deliver.connection import Remote
    from pacs_ai.dicom.commitment import Report
    from pacs_ai.store.commitments import Step
    from pacs_ai.store.database import Database

_log = logging.getLogger(__name__)

#: How long an answer is waited for on the association of the request; most peers open one of their own.
SAME_ASSOCIATION_SECONDS = 2.0


class Confirmer:
    """Asks and looks; `look` starts it for every peer where something is due."""

    def __init__(self, config: Config, database: Database, owner: str) -> None:
        self._config = config
        self._database = database
        self._owner = owner
        self._threads: dict[str, threading.Thread] = {}

    def look(self) -> None:
        """Begin at each peer where a step is due and none is being taken."""
        self._threads = {peer: thread for peer, thread in self._threads.items() if thread.is_alive()}
        with self._database.read() as connection:
            due = [peer for peer in commitments.due_peers(connection) if peer not in self._threads]
        for peer in due:
            self._threads[peer] = threading.Thread(target=self._run, args=(peer,), name=f"confirm-{peer}", daemon=True)
            self._threads[peer].start()

    def join(self, seconds: float) -> None:
        """Wait for the steps in progress."""
        deadline = time.monotonic() + seconds
        for thread in self._threads.values():
            thread.join(max(0.0, deadline - time.monotonic()))

    def _run(self, peer: str) -> None:
        try:
            while self.step(peer):
                pass
        except Transient as error:
            _log.warning("%s: what it answered could not be noted, so it is asked again: %s", peer, error)
        except Exception as error:  # noqa: BLE001 - outermost: what was taken is due again by itself
            _log.error("%s: not confirmed, asked again later: %s", peer, unexpected(error))

    def step(self, name: str) -> bool:
        """Take one step at a peer; False where nothing is due."""
        step = commitments.take(self._database, name)
        if step is None:
            return False
        peer = next((one for one in self._config.peer if one.name == name and one.commitment), None)
        if peer is None:
            commitments.waive(self._database, step)
            return True
        remote = remote_at(self._config, name, step.ae_title, step.host, step.port)
        try:
            if step.looks:
                self._look_up(step, remote)
            else:
                self._ask(step, remote, peer.commitment_seconds)
        except BrokenOff as error:
            self._count(step, str(error))
            return False
        except Unavailable as error:
            _log.warning("%s: not confirmed yet: %s", name, error)
            commitments.later(self._database, step, seconds=self._config.deliver.longest_backoff_seconds)
            return False
        return True

    def _count(self, step: Step, words: str) -> None:
        """Note a try at which the peer was there and did not take part; after so many nothing more is tried."""
        _log.warning("%s: not confirmed yet: %s", step.peer, words)
        seconds = self._config.deliver.longest_backoff_seconds
        left = commitments.broken_off(self._database, step, words, seconds=seconds, actor=self._owner)
        if left:
            _log.warning("%s: %d result(s) stay unconfirmed: %s", step.peer, left, words)

    def _ask(self, step: Step, remote: Remote, seconds: float) -> None:
        asked = Request(
            step.transaction_uid, tuple((one.sop_class_uid, one.sop_instance_uid) for one in step.deliveries)
        )

        def taken() -> None:
            commitments.asked(self._database, step, seconds=seconds)

        def answered(report: Report) -> int:
            verdict = commitments.record(self._database, report, step.ae_title, actor=self._owner)
            _log.info("%s answered on storage commitment: %s", step.peer, verdict)
            return status.INVALID_ARGUMENT_VALUE if verdict is Verdict.UNKNOWN else status.SUCCESS

        wait = min(SAME_ASSOCIATION_SECONDS, seconds)
        try:
            inquiry.ask(remote, asked, taken=taken, answered=answered, seconds=wait)
        except NotOffered as error:
            _log.warning("%s: %s; a query shows whether it has the results", step.peer, error)
            commitments.refused(self._database, step, str(error), comment=error.comment)

    def _look_up(self, step: Step, remote: Remote) -> None:
        """Look series by series what the peer has."""
        wanted = defaultdict(set)
        for one in step.deliveries:
            wanted[one.study_instance_uid, one.series_instance_uid].add(one.sop_instance_uid)
        found: set[str] = set()
        asking = queries.noting(self._database, self._owner)
        try:
            for study, series in wanted:
                keys = {"StudyInstanceUID": study, "SeriesInstanceUID": series, "SOPInstanceUID": ""}
                found |= {match["SOPInstanceUID"] for match in inquiry.find(remote, "IMAGE", keys, asking)}
        except NotOffered as error:
            words = f"{error}, and it did not answer on storage commitment"
            left = commitments.unknown(self._database, step, words, comment=error.comment, actor=self._owner)
            if left:
                _log.warning("%s: %d result(s) stay unconfirmed: %s", step.peer, left, words)
            return
        missing = len({one.sop_instance_uid for one in step.deliveries} - found)
        if missing:
            _log.warning("%s: a query does not show %d delivered result(s)", step.peer, missing)
        commitments.looked(self._database, step, found, actor=self._owner)
