"""What travels in storage commitment: which instances are asked for, and which of them are kept (PS3.4 Annex J)."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence  # noqa: TC003 - dataclass fields
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING

from pydicom import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import read_dataset
from pydicom.filewriter import write_dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from pacs_ai.dicom import status
from pacs_ai.dicom.attributes import is_uid
from pacs_ai.dicom.reading import READING_FAULTS, read_items, read_text, read_whole
from pacs_ai.dicom.structure import Value, Walk, Wanted
from pacs_ai.errors import NotUnderstood, Refused

if TYPE_CHECKING:
    from collections.abc import Iterable

#: Storage Commitment Push Model SOP Class, and its one well-known instance (PS3.4 J.3).
SOP_CLASS_UID = "1.2.840.10008.1.20.1"
SOP_INSTANCE_UID = "1.2.840.10008.1.20.1.1"
#: Action Type ID of the request (PS3.4 Table J.3-1).
REQUEST = 1
#: Event Type IDs of the answer (PS3.4 Table J.3-2).
ALL_KEPT, SOME_FAILED = 1, 2
#: Elements and items that a request or an answer may have: 100,000 instances have 400,000.
MOST_ELEMENTS = 420_000
_TRANSACTION_UID = 0x00081195
#: Objects are made of one at a time, some 2 KB for each instance, and a walk goes so many bytes at a time.
_READING = threading.RLock()
_STEP = 1 << 18
#: The encodings in which these are spoken of, preferred first.
TRANSFER_SYNTAXES = (str(ExplicitVRLittleEndian), str(ImplicitVRLittleEndian))

# Failure Reason (0008,1197), PS3.3 C.14.1.1; those that are not among the statuses.
CLASS_INSTANCE_CONFLICT = 0x0119
DUPLICATE_TRANSACTION_UID = 0x0131
_REASONS = {
    status.PROCESSING_FAILURE: "processing failure",
    status.NO_SUCH_OBJECT_INSTANCE: "it does not have it",
    CLASS_INSTANCE_CONFLICT: "it has it as another SOP class",
    status.SOP_CLASS_NOT_SUPPORTED: "it does not commit to this SOP class",
    DUPLICATE_TRANSACTION_UID: "the transaction was known to it",
    status.RESOURCE_LIMITATION: "it is short of resources",
}

#: (SOP Class UID, SOP Instance UID)
Reference = tuple[str, str]


@dataclass(frozen=True)
class Request:
    """Action information: keep these (PS3.4 Table J.3-1)."""

    transaction_uid: str
    instances: Sequence[Reference]


@dataclass(frozen=True)
class Report:
    """Event information: these are kept, and these not for a Failure Reason (PS3.4 Table J.3-2)."""

    transaction_uid: str
    kept: Sequence[Reference]
    failures: Mapping[Reference, int]

    @property
    def event_type_id(self) -> int:
        """The event that it is."""
        return SOME_FAILED if self.failures else ALL_KEPT

    def fault(self, asked: Reference) -> str:
        """Return why it does not commit to an instance, "" where it does: what it names as failed is not kept."""
        sop_class_uid, uid = asked
        failed = [reason for (_, failed_uid), reason in self.failures.items() if failed_uid == uid]
        if failed:
            return reason_words(failed[0])
        classes = {kept_class for kept_class, kept_uid in self.kept if kept_uid == uid}
        if not classes:
            return "its answer does not name it"
        return "" if classes == {sop_class_uid} else "its answer names it as another SOP class"


def reason_words(reason: int) -> str:
    """Say what a Failure Reason means, for an administrator."""
    return f"{_REASONS.get(reason, 'a reason that the Standard does not define')} (0x{reason:04X})"


def encode_request(request: Request, transfer_syntax_uid: str) -> bytes:
    """Return the data set of an N-ACTION-RQ."""
    ds = Dataset()
    ds.TransactionUID = request.transaction_uid
    ds.ReferencedSOPSequence = _items(request.instances)
    return encoded(ds, transfer_syntax_uid)


def encode_report(report: Report, transfer_syntax_uid: str) -> bytes:
    """Return the data set of an N-EVENT-REPORT-RQ."""
    ds = Dataset()
    ds.TransactionUID = report.transaction_uid
    if report.kept:
        ds.ReferencedSOPSequence = _items(report.kept)
    if report.failures:
        ds.FailedSOPSequence = _items(report.failures)
        for item, reason in zip(ds.FailedSOPSequence, report.failures.values(), strict=True):
            item.FailureReason = reason
    return encoded(ds, transfer_syntax_uid)


def read_request(data: bytes, transfer_syntax_uid: str) -> Request:
    """Read the data set of an N-ACTION-RQ; NotUnderstood where it is none."""
    with _READING:
        ds = decoded(data, transfer_syntax_uid)
        instances = _references(ds, "ReferencedSOPSequence")
        if not instances:
            raise NotUnderstood("the request names no instance")
        return Request(_transaction(ds), tuple(instances))


def read_report(data: bytes, transfer_syntax_uid: str) -> Report:
    """Read the data set of an N-EVENT-REPORT-RQ; NotUnderstood where it is none."""
    with _READING:
        ds = decoded(data, transfer_syntax_uid)
        failures = _references(ds, "FailedSOPSequence", "FailureReason")
        failed = {uid for _, uid in failures}  # under whatever SOP class: committed to are the others (PS3.4 J.3.3)
        kept = tuple(one for one in _references(ds, "ReferencedSOPSequence") if one[1] not in failed)
        return Report(_transaction(ds), kept, failures)


def encoded(ds: Dataset, transfer_syntax_uid: str) -> bytes:
    """Return a data set without file meta."""
    stream = DicomBytesIO()
    stream.is_little_endian = True
    stream.is_implicit_VR = transfer_syntax_uid == ImplicitVRLittleEndian
    write_dataset(stream, ds)
    return stream.getvalue()


def decoded(data: bytes, transfer_syntax_uid: str) -> Dataset:
    """Read a data set without file meta that a stranger wrote; NotUnderstood where it is none."""
    _walked(data, transfer_syntax_uid)
    try:
        with _READING:
            return read_dataset(BytesIO(data), _is_implicit(transfer_syntax_uid), is_little_endian=True)
    except READING_FAULTS as error:
        raise NotUnderstood("the data set cannot be read") from error


def transaction_of(data: bytes, transfer_syntax_uid: str) -> str:
    """Return the Transaction UID of a data set that a stranger wrote, "" where it has none, and read no more of it.

    NotUnderstood where it is no data set, or that is no UID.
    """
    value = _walked(data, transfer_syntax_uid).get("TransactionUID")
    uid = "" if value is None else value.raw.decode("ascii", "replace").rstrip("\0 ")
    if uid and not is_uid(uid):
        raise NotUnderstood("TransactionUID is no UID")
    return uid


def _walked(data: bytes, transfer_syntax_uid: str) -> dict[str, Value]:
    """Prove a data set whole and short enough to be read; returns its Transaction UID. One thread at a time does so."""
    wanted = Wanted({_TRANSACTION_UID: "TransactionUID"}, {})
    implicit = _is_implicit(transfer_syntax_uid)
    walk = Walk(wanted, implicit=implicit, length=len(data), most_elements=MOST_ELEMENTS)
    view = memoryview(data)
    for start in range(0, len(view), _STEP):
        with _READING:
            walk.feed(view[start : start + _STEP])
    return walk.end()


def _is_implicit(transfer_syntax_uid: str) -> bool:
    implicit = transfer_syntax_uid == ImplicitVRLittleEndian
    if not implicit and transfer_syntax_uid != ExplicitVRLittleEndian:
        raise NotUnderstood(f"a data set in {transfer_syntax_uid}, which is not read here")
    return implicit


def _items(references: Iterable[Reference]) -> list[Dataset]:
    items = []
    for sop_class_uid, sop_instance_uid in references:
        item = Dataset()
        item.ReferencedSOPClassUID = sop_class_uid
        item.ReferencedSOPInstanceUID = sop_instance_uid
        items.append(item)
    return items


def _transaction(ds: Dataset) -> str:
    return _uid(ds, "TransactionUID")


def _references(ds: Dataset, sequence: str, number: str = "") -> dict[Reference, int]:
    """Return what a sequence names, each with a number of its own, 0 where none is asked for."""
    try:
        return {
            (_uid(item, "ReferencedSOPClassUID"), _uid(item, "ReferencedSOPInstanceUID")): (
                read_whole(item, number, status.PROCESSING_FAILURE) if number else 0
            )
            for item in read_items(ds, sequence)
        }
    except Refused as error:
        raise NotUnderstood(str(error)) from error


def _uid(ds: Dataset, keyword: str) -> str:
    try:
        text = read_text(ds, keyword).rstrip("\0 ")
    except Refused as error:
        raise NotUnderstood(str(error)) from error
    if not is_uid(text):
        raise NotUnderstood(f"{keyword} is missing or no UID")
    return text
