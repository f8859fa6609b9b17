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
from typing import TYPE_CHECKING, Any

from prove import checker, material, wire

if TYPE_CHECKING:
    import ssl
    from pathlib import Path

#: Between two looks at whether there is more to do.
PAUSE_SECONDS = 0.02
#: What a node may answer that cannot store for now.
OUT_OF_RESOURCES = range(0xA700, 0xA800)


@dataclass
class Peers:
    """The sender and the destination: what they did stands in their journals, and nowhere in the node's hands."""

    folder: Path
    seed: int
    on_keep: Any = None
    on_answered: Any = None
    unacked: dict[str, list[material.Instance]] = field(default_factory=dict)
    acked: dict[str, material.Instance] = field(default_factory=dict)
    resulted: set[str] = field(default_factory=set)
    turned_away: list[int] = field(default_factory=list)
    refused: Counter[int] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.journals = checker.Journals.within(self.folder)
        self._random = random.Random(self.seed)
        self._lock = threading.Lock()
        self._next = 0
        self._acks, self._tries = self.journals.acks.open("a"), self.journals.tries.open("a")
        self._kept = self.journals.kept.open("a")
        self.kept_objects = 0
        self.by_tls = 0  # associations that went through
        self.keeper = wire.Keeper(self._keep, lambda uid: self.on_answered and self.on_answered(uid), self._note_broken)

    def close(self) -> None:
        """Close the journals, listen no longer."""
        self.keeper.close()
        with self._lock:
            for journal in (self._acks, self._tries, self._kept):
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
            if self._kept.closed:
                return
            self._kept.write(json.dumps({"uid": uid, "sha256": digest}) + "\n")
            self._kept.flush()
            self.kept_objects += 1
            self.resulted.add(study)
        if self.on_keep:
            self.on_keep(uid)

    def begin_series(self, slices: int | None = None) -> str:
        """Make one more series to send; returns its UID."""
        with self._lock:
            made = material.make_series(self.seed, self._next, slices or self._random.choice((3, 3, 3, 4, 5)))
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
            words = {"uid": instance.uid, "sha256": instance.sha256, "patient": instance.patient}
            self._acks.write(json.dumps(words) + "\n")
            self._acks.flush()
            self.acked[instance.uid] = instance
            left = self.unacked.get(instance.series, [])
            if instance in left:
                left.remove(instance)
            if not left:
                self.unacked.pop(instance.series, None)

    def store(self, association: wire.Sender, instance: material.Instance) -> int:
        """Send one instance, and write down that it was tried, and Success; returns the status."""
        with self._lock:
            self._tries.write(json.dumps({"uid": instance.uid, "series": instance.series}) + "\n")
            self._tries.flush()
        status = association.store(instance.uid, instance.data_set)
        if status == 0:
            self.acknowledge(instance)
        else:
            with self._lock:
                self.refused[status] += 1
        return status

    def send_series(
        self,
        port: int,
        series: str,
        *,
        repeat: bool = False,
        release: bool = True,
        tls: ssl.SSLContext | None = None,
    ) -> bool:
        """Send what of a series was not acknowledged on one association; False where the node went away."""
        with self._lock:
            wanted = list(self.unacked.get(series, ()))
            again = [one for one in self.acked.values() if one.series == series] if repeat else []
        try:
            association = wire.Sender(port, tls=tls)
            for instance in (*again, *wanted):
                self.store(association, instance)
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
            repeat, release = choice.random() < 0.1, choice.random() < 0.9
            if not self.send_series(port, series, repeat=repeat, release=release, tls=tls):
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


def _study_of(data_set: bytes) -> str:
    at = data_set.find(b"\x20\x00\x0d\x00UI")
    if at < 0:
        at = data_set.find(b"\x20\x00\x0d\x00") + 8
        return data_set[at : at + 64].partition(b"\0")[0].decode("ascii", "replace")
    length = int.from_bytes(data_set[at + 6 : at + 8], "little")
    return data_set[at + 8 : at + 8 + length].rstrip(b"\0").decode()
