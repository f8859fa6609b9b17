"""The sender and the destination of a harness, each with a journal of its own."""

from __future__ import annotations

import hashlib
import json
import random
import socket
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any

from prove import held, keeper, material, wire

if TYPE_CHECKING:
    import ssl
    from pathlib import Path

#: Between two looks at whether there is more to do.
PAUSE_SECONDS = 0.02
#: What a node may answer that cannot store for now, or cannot note what it is to keep.
OUT_OF_RESOURCES = range(0xA700, 0xA800)
PROCESSING_FAILURE = 0x0110
#: One series in so many has long images, and one association in so many short PDUs of so many bytes.
LONG, SHORT_PDUS, SHORT_PDU_BYTES = 8, 3, 2_048
#: One series in so many is asked to be kept when it was sent.
_ASKED = 2


@dataclass
class Peers:
    """The sender and the destination: what they did stands in their journals, and nowhere in the node's hands.

    The sender asks the node to keep what it was sent, and the destination is asked by the node; a rude one is what
    peers are at their worst.
    """

    folder: Path
    seed: int
    is_rude: bool = True
    on_keep: Any = None
    on_answered: Any = None
    unacked: dict[str, list[material.Instance]] = field(default_factory=dict)
    acked: dict[str, material.Instance] = field(default_factory=dict)
    resulted: set[str] = field(default_factory=set)
    turned_away: list[int] = field(default_factory=list)
    refused: Counter[int] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)
    open_requests: dict[str, list[str]] = field(default_factory=dict)
    asked: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.journals = held.Journals.within(self.folder)
        self._random = random.Random(self.seed)
        self._lock = threading.Lock()
        self._next = 0
        self._acks, self._tries = self.journals.acks.open("a"), self.journals.tries.open("a")
        self._kept, self._committed = self.journals.kept.open("a"), self.journals.committed.open("a")
        self._asks, self._told = self.journals.asked.open("a"), self.journals.told.open("a")
        self._transactions = 0
        self.kept_objects = self.committed_objects = self.told_requests = 0
        self.by_tls = 0  # associations that went through
        self.keeper = keeper.Keeper(
            keeper.Manners(self.seed, is_rude=self.is_rude),
            keep=self._keep,
            answered=lambda uid: self.on_answered and self.on_answered(uid),
            committed=self._commit,
            told=self._hear,
            broken=self._note_broken,
        )

    def close(self) -> None:
        """Close the journals, listen no longer."""
        self.keeper.close()
        with self._lock:
            for journal in (self._acks, self._tries, self._kept, self._committed, self._asks, self._told):
                journal.close()

    def wrong(self) -> list[str]:
        """Say what no node may do to its peers, whatever becomes of it: break them, turn them away, refuse for ever."""
        found = [f"a proper association was answered by PDU type {number}" for number in self.turned_away]
        odd = sorted(status for status in self.refused if status not in OUT_OF_RESOURCES)
        return [*self.broken, *found, *(f"a proper instance was answered {status:#06x}" for status in odd)]

    def _note_broken(self, error: Exception) -> None:
        self.broken.append(f"a peer broke: {type(error).__name__}: {error}")

    def _keep(self, uid: str, syntax: str, data_set: bytes) -> None:
        digest = hashlib.sha256(data_set).hexdigest()
        study = _study_of(data_set)
        with self._lock:
            if not _note(self._kept, uid=uid, sha256=digest):
                return
            self.kept_objects += 1
            self.resulted.add(study)
        if self.on_keep:
            self.on_keep(uid)

    def _commit(self, uids: list[str]) -> None:
        with self._lock:
            if _note(self._committed, uids=uids):
                self.committed_objects += len(uids)

    def _hear(self, transaction_uid: str, kept: list[str], failed: list[str]) -> None:
        with self._lock:
            if _note(self._told, transaction_uid=transaction_uid, kept=kept, failed=failed):
                self.told_requests += 1

    def begin_series(self, slices: int | None = None) -> str:
        """Make one more series to send; returns its UID."""
        with self._lock:
            rows = material.ROWS
            if slices is None:
                slices = self._random.choice((3, 3, 3, 4, 5))
                rows = material.LONG_ROWS if self._random.randrange(LONG) == 0 else rows
            made = material.make_series(self.seed, self._next, slices, rows)
            self._next += 1
            self.unacked[made[0].series] = list(made)
            return made[0].series

    def open_series(self) -> int:
        """Return how many series were begun whose results the destination has not seen."""
        with self._lock:
            studies = {one.study for one in self.acked.values()} - self.resulted
            return len(studies) + len(self.unacked)

    def acknowledge(self, instance: material.Instance) -> None:
        """Write down that it was answered Success."""
        with self._lock:
            _note(self._acks, uid=instance.uid, sha256=instance.sha256, patient=instance.patient)
            self.acked[instance.uid] = instance
            left = self.unacked.get(instance.series, [])
            if instance in left:
                left.remove(instance)
            if not left:
                self.unacked.pop(instance.series, None)

    def store(self, association: wire.Sender, instance: material.Instance) -> int:
        """Send one instance, and write down that it was tried, and Success; returns the status."""
        with self._lock:
            _note(self._tries, uid=instance.uid, series=instance.series)
        status = association.store(instance.uid, instance.data_set)
        if status == 0:
            self.acknowledge(instance)
        else:
            with self._lock:
                self.refused[status] += 1
        return status

    def ask(self, association: wire.Sender, series: str) -> None:
        """Ask the node to keep what of a series was answered Success; what went unanswered is asked for again first."""
        with self._lock:
            uids = sorted(one.uid for one in self.acked.values() if one.series == series)
            if not self.open_requests and uids:
                self._transactions += 1
                self.open_requests[f"2.25.{self.seed}.{self._transactions}"] = uids
            asked = dict(self.open_requests)
        for transaction_uid, names in asked.items():
            status = association.commit(transaction_uid, names)
            with self._lock:
                self.open_requests.pop(transaction_uid, None)
                if status == 0:
                    self.asked.add(transaction_uid)
                    _note(self._asks, transaction_uid=transaction_uid, uids=names)
                elif status != PROCESSING_FAILURE:
                    self.broken.append(f"a proper request for storage commitment was answered {status:#06x}")

    def send_series(
        self,
        port: int,
        series: str,
        *,
        repeat: bool = False,
        release: bool = True,
        asks: bool = False,
        pdu_bytes: int = wire.PDU_BYTES,
        tls: ssl.SSLContext | None = None,
    ) -> bool:
        """Send what of a series was not acknowledged on one association; False where the node went away."""
        with self._lock:
            wanted = list(self.unacked.get(series, ()))
            again = [one for one in self.acked.values() if one.series == series] if repeat else []
        try:
            association = wire.Sender(port, tls=tls, pdu_bytes=pdu_bytes)
            for instance in (*again, *wanted):
                self.store(association, instance)
            if asks:
                self.ask(association, series)
            if release:
                association.release()
            else:
                association.abort()
        except wire.Gone as gone:
            if gone.pdu_type:
                self.turned_away.append(gone.pdu_type)
            return False
        return True

    def send_while_it_lives(self, port: int, seed: int, most_open: int, tls: ssl.SSLContext | None = None) -> None:
        """Send series after series, until the node goes away; never more than it works off."""
        try:
            self._send_series_after_series(port, seed, most_open, tls)
        except Exception as error:  # noqa: BLE001 - the outermost frame of a thread
            self._note_broken(error)

    def _send_series_after_series(self, port: int, seed: int, most_open: int, tls: ssl.SSLContext | None) -> None:
        choice = random.Random(seed)
        while True:
            with self._lock:
                mine = sorted(series for index, series in enumerate(self.unacked))
            if not mine or (len(mine) < 3 and choice.random() < 0.5):
                if self.open_series() >= most_open:
                    if not self._is_there(port):
                        return
                    time.sleep(PAUSE_SECONDS)
                    continue
                mine = [self.begin_series()]
            series = choice.choice(mine)
            repeat, release, asks = choice.random() < 0.1, choice.random() < 0.9, choice.randrange(_ASKED) == 0
            short = choice.randrange(SHORT_PDUS) == 0
            pdu_bytes = SHORT_PDU_BYTES if short else wire.PDU_BYTES
            if not self.send_series(
                port, series, repeat=repeat, release=release, asks=asks, pdu_bytes=pdu_bytes, tls=tls
            ):
                return
            with self._lock:
                self.by_tls += tls is not None

    @staticmethod
    def _is_there(port: int) -> bool:
        try:
            socket.create_connection(("127.0.0.1", port), 5).close()
        except OSError:
            return False
        return True


def _note(journal: IO[str], **words: Any) -> bool:
    """Write a line into a journal; False where that is closed."""
    if journal.closed:
        return False
    journal.write(json.dumps(words) + "\n")
    journal.flush()
    return True


def _study_of(data_set: bytes) -> str:
    at = data_set.find(b"\x20\x00\x0d\x00UI")
    if at < 0:
        at = data_set.find(b"\x20\x00\x0d\x00") + 8
        return data_set[at : at + 64].partition(b"\0")[0].decode("ascii", "replace")
    length = int.from_bytes(data_set[at + 6 : at + 8], "little")
    return data_set[at + 8 : at + 8 + length].rstrip(b"\0").decode()
