"""Take one received instance: prove it, write it durably, record it, and only then let it be answered Success.

`Ingest` is the whole seam between a listening side and the rest of the node. `DurableIngest` keeps the order that
makes Success mean durable: bytes and header, file synced and named, directory synced, row committed, answer. Files are
synced by the threads that bring them, side by side, so that the file system's journal joins them; directories and rows
of instances that wait at the same moment share one sync each and one transaction (group commit).
"""

from __future__ import annotations

import contextlib
import logging
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Protocol

from pacs_ai.dicom.arrival import Arrival, AssociationInfo
from pacs_ai.dicom.attributes import read_header
from pacs_ai.dicom.identifiers import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from pacs_ai.errors import Mismatch, Transient

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pacs_ai.store.files import Files, Incoming, StoredFile

LOGGER = logging.getLogger(__name__)

#: At most so many instances share one transaction.
MAX_BATCH = 64

#: Told what became of an instance: None once it is durable, else why it is not stored. From any thread, once.
Settle = Callable[[Exception | None], None]


@dataclass(frozen=True)
class Announced:
    """One C-STORE request, before its data set.

    Parameters
    ----------
    association
        It came over.
    sop_class_uid, sop_instance_uid, priority
        Of the command set (PS3.7 9.3.1.1).
    transfer_syntax_uid
        Of the accepted presentation context.
    """

    association: AssociationInfo
    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    priority: int = 0


class Intake(Protocol):
    """One instance on its way in; its methods are called one after the other, from whatever threads."""

    def append(self, piece: bytearray) -> None:
        """Take a piece of the data set out of memory; raises what `Ingest.begin` names."""

    def finish(self, rest: bytearray, settle: Settle) -> None:
        """Take the last piece and make the instance durable; `settle` is told, and nothing is raised."""

    def discard(self) -> None:
        """Forget it: the rest does not come. Not after `finish`."""


class Ingest(Protocol):
    """What a listening side tells the node; every method may be called from several threads at once."""

    def opened(self, association: AssociationInfo) -> None:
        """Take note of an association that is being accepted, without waiting for anything."""

    def ended(self, assoc_id: str, released: bool) -> None:
        """Take note of an association's end, `released` or not (aborted, lost); called again if it raises Transient."""

    def begin(self, announced: Announced) -> Intake:
        """Begin an instance; nothing is written yet.

        Its methods raise, or settle with, OutOfResources or another Transient: not now; Mismatch: command and data set
        name different SOP classes or instances; NotUnderstood: no whole DICOM data set.
        """


class DurableIngest:
    """The node's `Ingest`: files on disk, rows in the index, one commit for all that wait at the same moment.

    Parameters
    ----------
    files
        Where the Part 10 files are written.
    record
        Commits the rows of arrivals in one transaction, and returns when that is durable (`pacs_ai.store.index`).
    note_opened, note_ended
        Told of each association, where somebody wants to know (`Ingest.opened`, `Ingest.ended`).
    """

    def __init__(
        self,
        files: Files,
        record: Callable[[Sequence[Arrival]], object],
        *,
        note_opened: Callable[[AssociationInfo], object] | None = None,
        note_ended: Callable[[str, bool], object] | None = None,
    ) -> None:
        self.files = files
        self._record = record
        self._note_opened = note_opened
        self._note_ended = note_ended
        self._waiting: list[_Waiting] = []
        self._committing = False
        self._turn = threading.Condition()

    def opened(self, association: AssociationInfo) -> None:
        """See `Ingest.opened`."""
        if self._note_opened is not None:
            self._note_opened(association)

    def ended(self, assoc_id: str, released: bool) -> None:
        """See `Ingest.ended`."""
        if self._note_ended is not None:
            self._note_ended(assoc_id, released)

    def begin(self, announced: Announced) -> Intake:
        """See `Ingest.begin`."""
        return _Instance(self, announced)

    def commit(self, arrival: Arrival, stored: StoredFile, settle: Settle) -> None:
        """Have the row of an arrival committed, its file's directory synced before, with whatever waits meanwhile.

        The thread that finds nobody committing commits for all that come while it does; the others leave at once.
        """
        with self._turn:
            self._waiting.append(_Waiting(arrival, stored, settle))
            if self._committing:
                return
            self._committing = True
        while batch := self._next_batch():
            self._commit(batch)

    def close(self) -> None:
        """Return when all that waited is committed; nothing may be stored afterwards."""
        with self._turn:
            self._turn.wait_for(lambda: not self._committing)

    def _next_batch(self) -> list[_Waiting]:
        """Return what waits, [] where nothing does and nobody commits any more."""
        with self._turn:
            batch, self._waiting = self._waiting[:MAX_BATCH], self._waiting[MAX_BATCH:]
            if not batch:
                self._committing = False
                self._turn.notify_all()
            return batch

    def _commit(self, batch: Sequence[_Waiting]) -> None:
        """Commit a batch; where one instance breaks it, commit each alone, so that only that one fails."""
        try:
            self.files.sync(waiting.stored for waiting in batch)
            self._record([waiting.arrival for waiting in batch])
        except Transient as error:
            _settle(batch, error)
        except Exception as error:  # noqa: BLE001 - outermost loop: whatever it was, each waiter hears of it
            if len(batch) == 1:
                _settle(batch, error)
                return
            LOGGER.warning("%d instances are committed one by one after %s", len(batch), type(error).__name__)
            for waiting in batch:
                self._commit([waiting])
        else:
            _settle(batch, None)


@dataclass(frozen=True)
class _Waiting:
    """One arrival whose sender waits for the answer."""

    arrival: Arrival
    stored: StoredFile
    settle: Settle


def _settle(batch: Sequence[_Waiting], error: Exception | None) -> None:
    for waiting in batch:
        waiting.settle(error)


class _Instance:
    """One instance on its way in; it is written to disk when it is whole, or sooner where it is long."""

    def __init__(self, ingest: DurableIngest, announced: Announced) -> None:
        self._ingest = ingest
        self._announced = announced
        self._meta = file_meta(announced.sop_class_uid, announced.sop_instance_uid, announced.transfer_syntax_uid)
        self._incoming: Incoming | None = None

    def append(self, piece: bytearray) -> None:
        """See `Intake.append`."""
        if self._incoming is None:
            self._incoming = self._ingest.files.incoming()
            self._incoming.append(self._meta)
        self._incoming.append(piece)

    def finish(self, rest: bytearray, settle: Settle) -> None:
        """See `Intake.finish`."""
        try:
            arrival, stored = self._stored(rest)
        except Exception as error:  # noqa: BLE001 - outermost in its thread: whatever it was, the sender hears of it
            self.discard()
            settle(error)
            return
        self._ingest.commit(arrival, stored, settle)

    def discard(self) -> None:
        """See `Intake.discard`."""
        if self._incoming is not None:
            self._incoming.discard()

    def _stored(self, rest: bytearray) -> tuple[Arrival, StoredFile]:
        announced, received_at = self._announced, datetime.now(UTC)
        if self._incoming is not None and rest:
            self._incoming.append(rest)
        with self._data_set(rest) as data_set:
            header = read_header(data_set, announced.transfer_syntax_uid)
        if (header.sop_class_uid, header.sop_instance_uid) != (announced.sop_class_uid, announced.sop_instance_uid):
            raise Mismatch("command and data set name different SOP classes or SOP instances")
        files = self._ingest.files
        stored = files.write((self._meta, rest)) if self._incoming is None else self._incoming.finish()
        association = announced.association
        arrival = Arrival(
            header=header,
            sha256=stored.sha256,
            size=stored.size,
            transfer_syntax_uid=announced.transfer_syntax_uid,
            calling_ae_title=association.calling_ae_title,
            called_ae_title=association.called_ae_title,
            address=association.address,
            assoc_id=association.assoc_id,
            priority=announced.priority,
            received_at=received_at,
        )
        return arrival, stored

    @contextlib.contextmanager
    def _data_set(self, rest: bytearray) -> Iterator[memoryview]:
        if self._incoming is None:
            with memoryview(rest) as view:
                yield view
        else:
            with self._incoming.view(len(self._meta)) as view:
                yield view


def file_meta(sop_class_uid: str, sop_instance_uid: str, transfer_syntax_uid: str) -> bytes:
    """Return preamble, prefix and File Meta Information (PS3.10 7.1), the same bytes for the same three UIDs.

    Nothing of the association goes in, so that one instance sent by two peers is one file.
    """
    head, tail = _around_instance(sop_class_uid, transfer_syntax_uid)
    group = head + _element(0x0003, b"UI", sop_instance_uid) + tail
    return _PREFIX + struct.pack("<HH2sHI", 0x0002, 0x0000, b"UL", 4, len(group)) + group


_PREFIX = bytes(128) + b"DICM"


def _element(number: int, vr: bytes, text: str) -> bytes:
    """Return one element of group 0002 of a VR with a length of 16 bits, padded to even length (PS3.5 6.2)."""
    value = text.encode("ascii")
    if len(value) % 2:
        value += b"\0" if vr == b"UI" else b" "
    return struct.pack("<HH2sH", 0x0002, number, vr, len(value)) + value


@lru_cache(maxsize=256)
def _around_instance(sop_class_uid: str, transfer_syntax_uid: str) -> tuple[bytes, bytes]:
    """Return the elements before and after Media Storage SOP Instance UID (0002,0003)."""
    version = struct.pack("<HH2sHI", 0x0002, 0x0001, b"OB", 0, 2) + b"\0\1"
    head = version + _element(0x0002, b"UI", sop_class_uid)
    tail = _element(0x0010, b"UI", transfer_syntax_uid) + _element(0x0012, b"UI", IMPLEMENTATION_CLASS_UID)
    return head, tail + _element(0x0013, b"SH", IMPLEMENTATION_VERSION_NAME)
