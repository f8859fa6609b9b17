"""Take one received instance: prove it, write it durably, record it, and only then let it be answered Success.

`Ingest` is the whole seam between a listening side and the rest of the node. `DurableIngest` keeps the order that
makes Success mean durable: header, file synced and named, directory synced, row committed, return. Files are synced by
the threads that bring them, side by side, so that the file system's journal joins them; rows that wait at the same
moment share one transaction (group commit).
"""

from __future__ import annotations

import logging
import struct
import threading
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Protocol

from pacs_ai.dicom.arrival import Arrival
from pacs_ai.dicom.attributes import read_header
from pacs_ai.dicom.identifiers import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from pacs_ai.errors import Mismatch, Transient, Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pacs_ai.dicom.arrival import AssociationInfo
    from pacs_ai.store.files import Files

LOGGER = logging.getLogger(__name__)

#: At most so many instances share one transaction.
MAX_BATCH = 64
#: Longest wait for one's own commit; past it the peer is told to try again, and may.
COMMIT_SECONDS = 30.0


@dataclass(frozen=True)
class ReceivedInstance:
    """One C-STORE request as it came.

    Parameters
    ----------
    data_set
        Encoded, as received.
    sop_class_uid, sop_instance_uid, priority
        Of the command set (PS3.7 9.3.1.1).
    transfer_syntax_uid
        Of the accepted presentation context.
    calling_ae_title, called_ae_title, address, assoc_id
        As in `AssociationInfo`.
    """

    data_set: bytes
    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    calling_ae_title: str
    called_ae_title: str
    address: str
    assoc_id: str
    priority: int = 0


class Ingest(Protocol):
    """What a listening side tells the node; every method may be called from several threads at once."""

    def opened(self, association: AssociationInfo) -> None:
        """Take note of an association, before it is accepted; `errors.Transient` has it refused."""

    def ended(self, assoc_id: str, released: bool) -> None:
        """Take note of its end, `released` or not (aborted, lost); called again if it raises Transient."""

    def store(self, instance: ReceivedInstance) -> None:
        """Return only when the instance is durable.

        Raises
        ------
        OutOfResources, Transient
            Not now.
        Mismatch
            Command and data set name different SOP classes or instances.
        NotUnderstood
            No whole DICOM data set.
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
        self._files = files
        self._record = record
        self._note_opened = note_opened
        self._note_ended = note_ended
        self._waiting: SimpleQueue[_Waiting | None] = SimpleQueue()
        self._committer = threading.Thread(target=self._commit_until_closed, name="committer", daemon=True)
        self._committer.start()

    def opened(self, association: AssociationInfo) -> None:
        """See `Ingest.opened`."""
        if self._note_opened is not None:
            self._note_opened(association)

    def ended(self, assoc_id: str, released: bool) -> None:
        """See `Ingest.ended`."""
        if self._note_ended is not None:
            self._note_ended(assoc_id, released)

    def store(self, instance: ReceivedInstance) -> None:
        """See `Ingest.store`."""
        received_at = datetime.now(UTC)
        header = read_header(instance.data_set, instance.transfer_syntax_uid)
        if (header.sop_class_uid, header.sop_instance_uid) != (instance.sop_class_uid, instance.sop_instance_uid):
            raise Mismatch("command and data set name different SOP classes or SOP instances")
        meta = file_meta(instance.sop_class_uid, instance.sop_instance_uid, instance.transfer_syntax_uid)
        stored = self._files.write((meta, instance.data_set))
        self._files.sync([stored])
        arrival = Arrival(
            header=header,
            sha256=stored.sha256,
            size=stored.size,
            transfer_syntax_uid=instance.transfer_syntax_uid,
            calling_ae_title=instance.calling_ae_title,
            called_ae_title=instance.called_ae_title,
            address=instance.address,
            assoc_id=instance.assoc_id,
            priority=instance.priority,
            received_at=received_at,
        )
        waiting = _Waiting(arrival)
        self._waiting.put(waiting)
        waiting.result()

    def close(self) -> None:
        """Commit what waits, then stop; nothing may be stored afterwards."""
        self._waiting.put(None)
        self._committer.join()

    def _commit_until_closed(self) -> None:
        while (first := self._waiting.get()) is not None:
            batch = [first]
            closing = False
            while len(batch) < MAX_BATCH and not closing:
                try:
                    another = self._waiting.get_nowait()
                except Empty:
                    break
                closing = another is None
                if another is not None:
                    batch.append(another)
            self._commit(batch)
            if closing:
                return

    def _commit(self, batch: Sequence[_Waiting]) -> None:
        """Commit a batch; where one instance breaks it, commit each alone, so that only that one fails."""
        try:
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


class _Waiting:
    """One arrival whose sender waits for the answer."""

    def __init__(self, arrival: Arrival) -> None:
        self.arrival = arrival
        self.error: Exception | None = None
        self._settled = threading.Lock()
        self._settled.acquire()

    def settle(self, error: Exception | None) -> None:
        """Let `result` return, or raise the error."""
        self.error = error
        self._settled.release()

    def result(self) -> None:
        """Wait for the commit; raises what went wrong with it."""
        if not self._settled.acquire(timeout=COMMIT_SECONDS):
            raise Unavailable(f"not committed within {COMMIT_SECONDS:.0f} s")
        if self.error is not None:
            raise self.error


def _settle(batch: Sequence[_Waiting], error: Exception | None) -> None:
    for waiting in batch:
        waiting.settle(error)


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
