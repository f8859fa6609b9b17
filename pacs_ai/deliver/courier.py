"""The courier: takes what is due for a destination and sends it on one association, each destination in its own thread.

One slow or dead destination holds up nobody else; one that fails is tried again by one probe after a growing wait.
"""

from __future__ import annotations

import logging
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from operator import attrgetter
from typing import TYPE_CHECKING

from pacs_ai.deliver import patients, queries
from pacs_ai.deliver.addresses import remote_at
from pacs_ai.deliver.confirmer import Confirmer
from pacs_ai.deliver.notary import Notary
from pacs_ai.deliver.patients import Asker
from pacs_ai.deliver.pledger import Pledger
from pacs_ai.deliver.scu import Outcome, Outgoing, send
from pacs_ai.dicom import status
from pacs_ai.dicom.status import Category
from pacs_ai.errors import NotUnderstood, Transient, Unavailable
from pacs_ai.log import unexpected
from pacs_ai.profiles import NOTICES, WITHDRAWALS
from pacs_ai.store import outbox
from pacs_ai.store.owners import BEAT_SECONDS, Watch
from pacs_ai.store.waiting import Backoff

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from pacs_ai.config import Config
    from pacs_ai.deliver.connection import Remote
    from pacs_ai.deliver.patients import Doubt
    from pacs_ai.store.database import Database
    from pacs_ai.store.files import Files
    from pacs_ai.store.outbox import Parcel, Round

_log = logging.getLogger(__name__)

_SWEEP_SECONDS = 5.0


@dataclass(frozen=True)
class _Trip:
    """A round under way.

    Parameters
    ----------
    left
        What has no outcome yet, by SOP Instance UID.
    held_up
        Jobs of which an object waits or takes another form: what cites it waits too.
    """

    held: Round
    remote: Remote
    left: dict[str, Parcel]
    held_up: set[int] = field(default_factory=set)


class Courier:
    """All destinations; `step` starts a round for each that has something due."""

    def __init__(self, config: Config, database: Database, files: Files, owner: str) -> None:
        self._config = config
        self._database = database
        self._files = files
        self._owner = owner
        self._backoff = Backoff(
            config.deliver.first_backoff_seconds,
            config.deliver.longest_backoff_seconds,
            config.deliver.give_up_hours,
        )
        self._notary = Notary(config, database, files, owner)
        self._confirmer = Confirmer(config, database, owner)
        self._pledger = Pledger(config, database, files, owner)
        self._rounds: dict[str, tuple[threading.Thread, Round]] = {}
        self._watch = Watch()
        self._swept = self._beaten = 0.0

    def step(self) -> bool:
        """Start what is due; False where nothing is."""
        self._rounds = {peer: r for peer, r in self._rounds.items() if r[0].is_alive()}
        if time.monotonic() - self._beaten >= BEAT_SECONDS:
            self._beaten = time.monotonic()
            for _, held in self._rounds.values():
                outbox.beat(self._database, held)
        if time.monotonic() - self._swept >= _SWEEP_SECONDS:
            self._swept = time.monotonic()
            outbox.sweep(self._database, self._watch, self._owner)
        self._notary.look()
        self._confirmer.look()
        self._pledger.look()
        with self._database.read() as connection:
            due = [peer for peer in outbox.due_peers(connection) if peer not in self._rounds]
        started = 0
        for peer in due:
            taken = outbox.claim(self._database, peer, self._owner)
            if taken is not None:
                thread = threading.Thread(target=self._run, args=(taken,), name=f"to-{peer}", daemon=True)
                self._rounds[peer] = (thread, taken)
                thread.start()
                started += 1
        return started > 0

    def join(self, seconds: float) -> None:
        """Wait for the rounds in progress."""
        deadline = time.monotonic() + seconds
        for worker in (self._notary, self._confirmer, self._pledger):
            worker.join(max(0.0, deadline - time.monotonic()))
        for thread, _ in self._rounds.values():
            thread.join(max(0.0, deadline - time.monotonic()))

    def _run(self, held: Round) -> None:
        try:
            self.serve(held)
        except Transient as error:
            _log.warning("%s: the outcome could not be noted, so it is sent again: %s", held.peer, error)
            self._free(held)
        except Exception as error:  # noqa: BLE001 - outermost: a destination is given back, and tried again ever later
            words = unexpected(error)
            _log.error("%s: the round broke off, and is tried again: %s", held.peer, words)
            self._free(held, words)

    def _free(self, held: Round, fault: str = "") -> None:
        """Give the destination back, after a fault as one that was not reached; else the sweeper does so."""
        try:
            if fault:
                outbox.put_back(self._database, held, reached=False, reason=fault, backoff=self._backoff)
            else:
                outbox.abandon(self._database, held, actor=self._owner)
        except Transient:
            _log.warning("%s: given back by the sweeper when this process ends", held.peer)

    def serve(self, held: Round) -> None:
        """Send one round and note each outcome as it happens."""
        try:
            remote = remote_at(self._config, held.peer, held.ae_title, held.host, held.port)
        except Unavailable as error:
            self._end(held, held.parcels, lost=str(error))
            return
        trip = _Trip(held, remote, {parcel.sop_instance_uid: parcel for parcel in held.parcels})
        verifies = any(peer.verify_patient for peer in self._config.peer if peer.name == held.peer)
        lost = self._send_verified(trip) if verifies else self._send(trip, held.parcels)
        self._end(held, trip.left.values(), lost=lost)

    def _send_verified(self, trip: _Trip) -> str:
        """Send a round study by study, each right after the peer said whose it is; returns as `_send` does."""
        asker = Asker(trip.remote, queries.noting(self._database, trip.held.owner), most=0 if trip.held.probes else 1)
        for _, parcels in groupby(trip.held.parcels, key=attrgetter("study_instance_uid")):
            try:
                verified = self._verified(trip, parcels, asker)
            except Unavailable as error:
                return str(error)
            if lost := self._send(trip, verified):
                return lost
        return ""

    def _send(self, trip: _Trip, parcels: Sequence[Parcel]) -> str:
        """Send some of a round on one association; returns how the peer was lost, "" where it was not."""
        held, lost = trip.held, ""

        def is_held_back(instance: Outgoing) -> bool:
            parcel = trip.left[instance.sop_instance_uid]
            return parcel.job_id in trip.held_up or not outbox.is_wanted(self._database, parcel)

        for outcome in send(trip.remote, [self._outgoing(parcel) for parcel in parcels], is_held_back):
            parcel = trip.left.pop(outcome.sop_instance_uid)
            if outcome.category is Category.TRANSIENT and outcome.status is None:
                lost = outcome.words
            with self._apart(held, parcel, doubtful=True):
                if self._note(held, parcel, outcome):
                    continue
            trip.held_up.add(parcel.job_id)
        return lost

    def _end(self, held: Round, left: Iterable[Parcel], *, lost: str) -> None:
        """Give the destination back; what is left of the round waits, as `lost` says, or for what it cites."""
        for parcel in left:
            outbox.postponed(
                self._database, held, parcel, None, lost or "waits for the object that it cites", self._backoff
            )
        outbox.put_back(self._database, held, reached=not lost, reason=lost, backoff=self._backoff)
        if lost:
            _log.warning("%s: %s", held.peer, lost)

    def _verified(self, trip: _Trip, parcels: Iterable[Parcel], asker: Asker) -> list[Parcel]:
        """Return what of one study may be sent: what the peer says is its patient's.

        Raises
        ------
        Unavailable
            It could not be asked.
        """
        found: list[Parcel] = []
        said: dict[tuple[str, str], Doubt | None] = {}
        for parcel in parcels:
            if parcel.kind in WITHDRAWALS:
                found.append(parcel)
                continue
            if parcel.job_id in trip.held_up:
                continue
            is_asked = False
            with self._apart(trip.held, parcel, doubtful=False):
                if self._is_confirmed(trip.held, parcel, asker, said):
                    found.append(parcel)
                else:
                    del trip.left[parcel.sop_instance_uid]
                is_asked = True
            if not is_asked:
                del trip.left[parcel.sop_instance_uid]
                trip.held_up.add(parcel.job_id)
        return found

    def _is_confirmed(
        self, held: Round, parcel: Parcel, asker: Asker, said: dict[tuple[str, str], Doubt | None]
    ) -> bool:
        """Ask whose the study is, unless that was `said`, and note it where that keeps the object back."""
        try:
            whose = parcel.study_instance_uid, patients.named_in(self._outgoing(parcel))
        except NotUnderstood as error:
            self._note(held, parcel, Outcome(parcel.sop_instance_uid, None, Category.PERMANENT, str(error)))
            return False
        if whose not in said:
            said[whose] = asker.ask(*whose)
        doubt = said[whose]
        if doubt is not None:
            self._keep_back(held, parcel, doubt)
        return doubt is None

    def _keep_back(self, held: Round, parcel: Parcel, doubt: Doubt) -> None:
        if doubt.comment:
            outbox.remark(self._database, held, parcel, doubt.comment)
        if doubt.is_another:
            outbox.hold(self._database, held, parcel, doubt.words)
            _log.error("%s of job %d held: %s", parcel.kind, parcel.job_id, doubt.words)
        else:
            outbox.postponed(self._database, held, parcel, doubt.status, doubt.words, self._backoff)
            _log.warning("%s of job %d waits: %s", parcel.kind, parcel.job_id, doubt.words)

    @contextmanager
    def _apart(self, held: Round, parcel: Parcel, *, doubtful: bool) -> Iterator[None]:
        """Have one parcel wait alone where something unexpected befalls it: the others of its destination go on."""
        try:
            yield
        except Transient:
            raise
        except Exception as error:  # noqa: BLE001 - see above
            words, failure = unexpected(error), status.PROCESSING_FAILURE
            _log.error("%s of job %d is sent later to %s: %s", parcel.kind, parcel.job_id, held.peer, words)
            outbox.postponed(self._database, held, parcel, failure, words, self._backoff, doubtful=doubtful)

    def _note(self, held: Round, parcel: Parcel, outcome: Outcome) -> bool:
        """Note what became of one object; tells whether what comes after it in its job may be sent in this round."""
        if outcome.comment:
            outbox.remark(self._database, held, parcel, outcome.comment)
        if outcome.stored:
            confirm = any(peer.commitment for peer in self._config.peer if peer.name == held.peer)
            outbox.accepted(self._database, held, parcel, outcome.status or 0, outcome.words, confirm=confirm)
            _log.info("%s of job %d delivered to %s", parcel.kind, parcel.job_id, held.peer)
            return True
        if outcome.category is Category.TRANSIENT:
            said, words = outcome.status, outcome.words
            outbox.postponed(self._database, held, parcel, said, words, self._backoff, doubtful=outcome.doubtful)
            return False
        instead = ""
        if outcome.not_accepted:
            instead = outbox.not_accepted(self._database, held, parcel, outcome.status, outcome.words)
        elif outcome.status is None:
            words = f"{outcome.words}; {_way_out(parcel)}"
            outbox.failed(self._database, held, parcel, None, words)
            _log.error("%s of job %d not sent to %s: %s", parcel.kind, parcel.job_id, held.peer, words)
            return True
        else:
            outbox.failed(self._database, held, parcel, outcome.status, outcome.words)
        if instead:
            _log.warning("%s of job %d not accepted by %s: sent as %s", parcel.kind, parcel.job_id, held.peer, instead)
            return False
        _log.error("%s of job %d refused by %s: %s", parcel.kind, parcel.job_id, held.peer, outcome.words)
        return True

    def _outgoing(self, parcel: Parcel) -> Outgoing:
        return Outgoing(
            path=self._files.path(parcel.sha256),
            sop_class_uid=parcel.sop_class_uid,
            sop_instance_uid=parcel.sop_instance_uid,
            transfer_syntax_uid=parcel.transfer_syntax_uid,
            sha256=parcel.sha256,
        )


def _way_out(parcel: Parcel) -> str:
    """Say what a person can do about a file that cannot be sent as it is."""
    back = f"put it back from a backup and `pacs-ai retry --delivery {parcel.delivery_id}`"
    return back if parcel.kind in NOTICES else f"`pacs-ai retry {parcel.job_id}` makes it anew, or {back}"
