"""The confirmer: after delivery, asks each peer that offers it to commit to the results, and looks where none answers.

Each peer is asked in a thread of its own, beside the couriers: a peer that is silent holds up nobody.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING

from pacs_ai.deliver import inquiry, queries
from pacs_ai.deliver.addresses import remote_at
from pacs_ai.dicom import status
from pacs_ai.dicom.commitment import Request
from pacs_ai.errors import BrokenOff, NotOffered, Transient, Unavailable
from pacs_ai.log import unexpected
from pacs_ai.store import commitments
from pacs_ai.store.clock import LONGEST_WAIT
from pacs_ai.store.commitments import Verdict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pacs_ai.config import Config
    from pacs_ai.deliver.connection import Remote
    from pacs_ai.deliver.inquiry import Query
    from pacs_ai.dicom.commitment import Report
    from pacs_ai.store.commitments import Step
    from pacs_ai.store.database import Database

_log = logging.getLogger(__name__)

#: How long an answer is waited for on the association of the request; most peers open one of their own.
SAME_ASSOCIATION_SECONDS = 2.0
#: So long a look goes on to the next series; then the rest is taken anew, before somebody else takes it.
LOOK_SECONDS = LONGEST_WAIT / 2


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
        """Take one step at a peer; False where nothing is due, or it is left alone for a while.

        A peer that is not in the configuration may have been left out by mistake: what it has waits until it is back.
        """
        step = commitments.take(self._database, name)
        if step is None:
            return False
        peer = next((one for one in self._config.peer if one.name == name), None)
        if peer is not None and not peer.commitment:
            commitments.waive(self._database, step)
            return True
        try:
            remote = remote_at(self._config, name, step.ae_title, step.host, step.port)
        except Unavailable as error:
            self._put_off(step, error)
            return False
        return self._look_up(step, remote) if step.looks else self._ask(step, remote)

    def _put_off(self, step: Step, error: Unavailable) -> None:
        """Note a try at which the peer was away."""
        _log.warning("%s: not confirmed yet: %s", step.peer, error)
        commitments.later(self._database, step, seconds=self._config.deliver.longest_backoff_seconds)

    def _count(self, step: Step, error: BrokenOff) -> None:
        """Note a try at which the peer was there and did not take part; after so many nothing more is tried."""
        _log.warning("%s: not confirmed yet: %s", step.peer, error)
        seconds = self._config.deliver.longest_backoff_seconds
        left = commitments.broken_off(self._database, step, str(error), seconds=seconds, actor=self._owner)
        if left:
            _log.warning("%s: %d result(s) stay unconfirmed: %s", step.peer, left, error)

    def _ask(self, step: Step, remote: Remote) -> bool:
        seconds = next(one.commitment_seconds for one in self._config.peer if one.name == step.peer)
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
        except BrokenOff as error:
            self._count(step, error)
            return False
        except Unavailable as error:
            self._put_off(step, error)
            return False
        return True

    def _look_up(self, step: Step, remote: Remote) -> bool:
        """Look series by series what the peer has, and note each at once; False where it is left alone for a while."""
        series, until = _by_series(step), time.monotonic() + LOOK_SECONDS
        missing, goes_on = 0, True
        for number, one in enumerate(series):
            rest = _joined(series[number:])
            if time.monotonic() > until:
                commitments.later(self._database, rest, seconds=0.0)
                break
            try:
                missing += self._look_at(one, remote)
            except NotOffered as error:
                self._give_up(rest, error)
                break
            except BrokenOff as error:
                self._count(rest, error)
                goes_on = False
                break
            except Unavailable as error:
                self._put_off(rest, error)
                goes_on = False
                break
        if missing:
            _log.warning("%s: a query does not show %d delivered result(s)", step.peer, missing)
        return goes_on

    def _look_at(self, step: Step, remote: Remote) -> int:
        """Look which results of one series the peer has; returns how many it does not show.

        Where it refuses the query, or breaks off, that is noted of this series alone: the next may be another matter.

        Raises
        ------
        NotOffered, Unavailable
            It did not get as far as the query.
        """
        first = step.deliveries[0]
        put: list[Query] = []
        note = queries.noting(self._database, self._owner)

        def asking(query: Query) -> None:
            note(query)
            put.append(query)

        keys = {
            "StudyInstanceUID": first.study_instance_uid,
            "SeriesInstanceUID": first.series_instance_uid,
            "SOPInstanceUID": "",
        }
        try:
            found = {match["SOPInstanceUID"] for match in inquiry.find(remote, "IMAGE", keys, asking)}
        except NotOffered as error:
            if not put:
                raise
            self._give_up(step, error)
            return 0
        except BrokenOff as error:
            if not put:
                raise
            self._count(step, error)
            return 0
        commitments.looked(self._database, step, found, actor=self._owner)
        return len({one.sop_instance_uid for one in step.deliveries} - found)

    def _give_up(self, step: Step, error: NotOffered) -> None:
        """Note that the peer takes no query about these either."""
        words = f"{error}, and it did not answer on storage commitment"
        left = commitments.unknown(self._database, step, words, comment=error.comment, actor=self._owner)
        if left:
            _log.warning("%s: %d result(s) stay unconfirmed: %s", step.peer, left, words)


def _by_series(step: Step) -> list[Step]:
    """Return a step for each series of it."""
    series = defaultdict(list)
    for one in step.deliveries:
        series[one.study_instance_uid, one.series_instance_uid].append(one)
    return [replace(step, deliveries=tuple(deliveries)) for deliveries in series.values()]


def _joined(steps: Sequence[Step]) -> Step:
    """Return the one step of which these are parts."""
    return replace(steps[0], deliveries=tuple(one for step in steps for one in step.deliveries))
