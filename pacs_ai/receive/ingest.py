"""Take one received instance: prove it, make it durable, and only then let it be answered Success.

`Ingest` is the whole seam between a listening side and the rest of the node. `DurableIngest` makes Success mean durable
in one of two ways. A short instance is written ahead, with all that its row needs, and synced together with those that
come at the same moment; then it is answered, and file and row follow (`indexing`, `pacs_ai.store.ahead`). A long one,
and any where there is no room ahead, has a file of its own: file synced and named, directory synced, row committed,
answer; directories and rows of those that wait at the same moment share one sync each and one transaction.
"""

from __future__ import annotations

import hashlib
import logging
import struct
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Protocol

from pacs_ai.dicom.arrival import Arrival, AssociationInfo
from pacs_ai.dicom.attributes import Scan, read_header
from pacs_ai.dicom.identifiers import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from pacs_ai.errors import Mismatch, OutOfResources
from pacs_ai.receive.indexing import Indexing, Kept, Settle, Stored

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pacs_ai.dicom.attributes import Header
    from pacs_ai.errors import Transient
    from pacs_ai.receive.indexing import Record
    from pacs_ai.store.ahead import Ahead
    from pacs_ai.store.files import Files, Incoming, StoredFile
    from pacs_ai.store.segments import Place

LOGGER = logging.getLogger(__name__)


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

    def passing(self, piece: memoryview) -> None:
        """Look at the next piece of the data set as it comes, quickly: it is handed over by `append` or `finish`."""

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


def _never(_name: str, _lap: str, _number: int) -> bool:
    return False


class DurableIngest:
    """The node's `Ingest`: what is short is written ahead, what is long to a file of its own; rows follow in order.

    Parameters
    ----------
    files
        Where the Part 10 files are written.
    record
        Commits the rows of arrivals (`pacs_ai.store.index`).
    ahead
        Where short instances are made durable before they have files and rows; None: file, directory and row of each
        are durable before its answer. What an earlier process left there is indexed first.
    is_recorded
        Tells of what was left whether its row was committed: name, lap, number (`pacs_ai.store.index`).
    note_opened, note_ended
        Told of each association, where somebody wants to know (`Ingest.opened`, `Ingest.ended`).
    """

    def __init__(
        self,
        files: Files,
        record: Record,
        *,
        ahead: Ahead | None = None,
        is_recorded: Callable[[str, str, int], bool] = _never,
        note_opened: Callable[[AssociationInfo], object] | None = None,
        note_ended: Callable[[str, bool], object] | None = None,
    ) -> None:
        self.files = files
        self._ahead = ahead
        self._note_opened = note_opened
        self._indexing = Indexing(files, record, note_ended, ahead, is_recorded)

    @property
    def is_settled(self) -> bool:
        """Whether all that was answered Success has its rows, what came in this moment aside.

        Not while what earlier processes left is being indexed, nor where disk or database fails, hangs or lags.
        """
        return not self._indexing.is_late and not self._indexing.is_recovering

    @property
    def trouble(self) -> Transient | None:
        """Why nothing that waits for its row gets it at this moment; None where it does, or nothing waits."""
        return self._indexing.trouble

    @property
    def is_unreadable(self) -> bool:
        """Whether a file that may hold instances of an earlier process cannot be read."""
        return self._ahead is not None and self._ahead.is_unreadable

    @property
    def owes_nothing(self) -> bool:
        """Whether nothing at all waits for its row, nor an association's end, for the end."""
        return self.is_settled and not self._indexing.waiting

    def opened(self, association: AssociationInfo) -> None:
        """See `Ingest.opened`."""
        self._indexing.opened(association.assoc_id)
        if self._note_opened is not None:
            self._note_opened(association)

    def ended(self, assoc_id: str, released: bool) -> None:
        """See `Ingest.ended`; it is noted once all that the association brought has its row."""
        self._indexing.ended(assoc_id, released)

    def begin(self, announced: Announced) -> Intake:
        """See `Ingest.begin`."""
        return _Instance(self, announced)

    def take(self, arrival: Arrival, parts: Sequence[bytes | bytearray], settle: Settle) -> None:
        """Make an instance durable whose bytes are in memory; raises OutOfResources."""
        trouble = self._indexing.trouble
        if isinstance(trouble, OutOfResources):
            raise trouble
        if self._ahead is not None and self._indexing.has_room:

            def tell(came: Place | OutOfResources) -> None:
                if isinstance(came, OutOfResources):
                    settle(came)
                    return
                self._indexing.add(Kept(arrival, came, time.monotonic()))
                settle(None)

            if self._ahead.keep(arrival, parts, tell):
                return
        self.index(arrival, self.files.write(parts, arrival.sha256), settle)

    def index(self, arrival: Arrival, stored: StoredFile, settle: Settle) -> None:
        """Have the row of an arrival committed, its file's directory synced before, with whatever waits meanwhile."""
        self._indexing.add(Stored(arrival, stored, settle))

    def close(self) -> None:
        """Return when all that waited is indexed, or cannot be for now; nothing may be stored afterwards."""
        self._indexing.close()
        if self._ahead is not None:
            self._ahead.close()


class _Instance:
    """One instance on its way in; it is written and looked at when it is whole, or piece by piece where it is long."""

    def __init__(self, ingest: DurableIngest, announced: Announced) -> None:
        self._ingest = ingest
        self._announced = announced
        self._meta = file_meta(announced.sop_class_uid, announced.sop_instance_uid, announced.transfer_syntax_uid)
        self._digest = hashlib.sha256(self._meta)
        self._long: tuple[Incoming, Scan] | None = None

    def passing(self, piece: memoryview) -> None:
        """See `Intake.passing`; the file is hashed while it comes."""
        self._digest.update(piece)

    def append(self, piece: bytearray) -> None:
        """See `Intake.append`."""
        if self._long is None:
            self._long = self._ingest.files.incoming(), Scan(self._announced.transfer_syntax_uid)
            self._long[0].append(self._meta)
        incoming, scan = self._long
        scan.feed(piece)
        incoming.append(piece)

    def finish(self, rest: bytearray, settle: Settle) -> None:
        """See `Intake.finish`."""
        try:
            if self._long is None:
                header = self._proved(read_header(rest, self._announced.transfer_syntax_uid))
                arrival = self._arrival(header, self._digest.hexdigest(), len(self._meta) + len(rest))
                self._ingest.take(arrival, (self._meta, rest), settle)
            else:
                self._finish_file(*self._long, rest, settle)
        except Exception as error:  # noqa: BLE001 - outermost in its thread: whatever it was, the sender hears of it
            try:
                self.discard()
            finally:
                settle(error)

    def discard(self) -> None:
        """See `Intake.discard`."""
        if self._long is not None:
            self._long[0].discard()

    def _finish_file(self, incoming: Incoming, scan: Scan, rest: bytearray, settle: Settle) -> None:
        if rest:
            scan.feed(rest)
            incoming.append(rest)
        header = self._proved(scan.header())
        stored = incoming.finish(self._digest.hexdigest())
        self._ingest.index(self._arrival(header, stored.sha256, stored.size), stored, settle)

    def _proved(self, header: Header) -> Header:
        announced = self._announced
        if (header.sop_class_uid, header.sop_instance_uid) != (announced.sop_class_uid, announced.sop_instance_uid):
            raise Mismatch("command and data set name different SOP classes or SOP instances")
        return header

    def _arrival(self, header: Header, sha256: str, size: int) -> Arrival:
        announced = self._announced
        association = announced.association
        return Arrival(
            header=header,
            sha256=sha256,
            size=size,
            transfer_syntax_uid=announced.transfer_syntax_uid,
            calling_ae_title=association.calling_ae_title,
            called_ae_title=association.called_ae_title,
            address=association.address,
            assoc_id=association.assoc_id,
            priority=announced.priority,
            received_at=datetime.now(UTC),
        )


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
