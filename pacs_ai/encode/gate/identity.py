"""Whose result it is, what it cites and what it claims: held against the instances that were read and the job."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

from pydicom import Dataset, Sequence, config
from pydicom.datadict import dictionary_description, dictionary_has_tag

from pacs_ai.encode.gate.required import ALWAYS, ALWAYS_PRESENT, PRESENT, VALUED, VALUED_IMAGE
from pacs_ai.encode.grid import frame_of_reference
from pacs_ai.encode.provenance import DISCLAIMER
from pacs_ai.errors import Permanent
from pacs_ai.pipeline import Card, Clearance
from pacs_ai.profiles import Kind

if TYPE_CHECKING:
    from pacs_ai.encode.case import Case
    from pacs_ai.encode.gate.context import Context
    from pacs_ai.encode.gate.opened import Opened
    from pacs_ai.profiles import Encoding

#: What a result and its source have in common, missing or not.
SAME = (
    "SpecificCharacterSet", "PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex",
    "StudyInstanceUID", "StudyDate", "StudyTime", "AccessionNumber", "StudyID", "TimezoneOffsetFromUTC",
)  # fmt: skip
#: UIDs of the Standard (PS3.6 Annex A).
REGISTERED = "1.2.840.10008."
DERIVED = "2.25."
DERIVED_VERSION = 8  # of the UUID, RFC 9562
VERIFIED = "VERIFIED"
#: Kinds that lie in the patient where their source does.
LYING = frozenset({Kind.SEGMENTATION, Kind.PARAMETRIC_MAP, Kind.STRUCTURE_SET, Kind.DERIVED_IMAGES})


def check_identity(opened: Opened, source: Dataset, card: Card) -> None:
    """Refuse a result of another patient or study, one that lacks what its kind requires, or claims too much.

    Parameters
    ----------
    source
        The data set whose patient and study it shares.
    card
        The pipeline's card.

    Raises
    ------
    Permanent
        In words, without any patient's value.
    """
    _check_required(opened)
    ds, kind = opened.ds, opened.kind
    with config.disable_value_validation():
        for keyword in SAME:
            if (ds.get(keyword) or None) != (source.get(keyword) or None):
                raise Permanent(f"the {kind} and its source differ in {keyword}")
    if ds.get("VerificationFlag") == VERIFIED:
        raise Permanent(f"the {kind} claims to be verified")
    _check_clearance(opened, card)


def source_of(case: Case, encoding: Encoding, number: int) -> Dataset:
    """Return whose patient and study the `number`-th object shares: of a derived image, its own source's."""
    if encoding.kind is Kind.DERIVED_IMAGES:
        return case.own.datasets[(number - 1) % len(case.own.datasets)]
    return case.source


def check_frame_of_reference(opened: Opened, case: Case, source: Dataset) -> None:
    """Refuse a result that lies in another Frame of Reference than its source, or in none; else Permanent."""
    stated = str(opened.ds.get("FrameOfReferenceUID") or "")
    needed = case.has_volume and opened.encoded.encoding.kind in LYING
    if (stated or needed) and stated != frame_of_reference(source):
        raise Permanent(f"the {opened.kind} and its source differ in FrameOfReferenceUID")


def _check_required(opened: Opened) -> None:
    ds = opened.ds
    uid = str(ds.get("SOPClassUID", ""))
    valued = (*ALWAYS, *VALUED.get(uid, VALUED_IMAGE))
    lacking = [keyword for keyword in valued if _is_empty(ds.get(keyword))]
    lacking += [keyword for keyword in (*ALWAYS_PRESENT, *PRESENT.get(uid, ())) if keyword not in ds]
    if lacking:
        raise Permanent(f"the {opened.kind} lacks {', '.join(lacking)}")
    encoded = opened.encoded
    stated = (str(ds.SOPClassUID), str(ds.SOPInstanceUID), str(ds.SeriesInstanceUID), str(ds.StudyInstanceUID))
    listed = (encoded.sop_class_uid, encoded.sop_instance_uid, encoded.series_instance_uid, encoded.study_instance_uid)
    meta = ds.file_meta
    in_header = (str(meta.MediaStorageSOPClassUID), str(meta.MediaStorageSOPInstanceUID))
    if stated != listed or in_header != stated[:2] or meta.TransferSyntaxUID != encoded.transfer_syntax_uid:
        raise Permanent(f"the {opened.kind} has other UIDs inside than outside")


def _is_empty(value: object) -> bool:
    return value is None or value == "" or (isinstance(value, Sequence) and not value)


def _check_clearance(opened: Opened, card: Card) -> None:
    """Hold Content Qualification and the disclaimers against the card (PS3.3 C.8.13.2.1.1)."""
    ds, kind, clearance = opened.ds, opened.kind, card.clearance
    if ds.ContentQualification != clearance.value:
        raise Permanent(f"the {kind} is qualified as {ds.ContentQualification}, the pipeline as {clearance.value}")
    said = opened.head.count(DISCLAIMER.encode())
    described = DISCLAIMER in str(ds.SeriesDescription)
    if clearance is Clearance.RESEARCH:
        if said < 2 or not described:
            raise Permanent(f"the {kind} does not say that it is {DISCLAIMER}")
    elif described and DISCLAIMER not in card.title:
        raise Permanent(f"the {kind} says that it is {DISCLAIMER}, the pipeline is cleared")


def check_citations(opened: Opened, context: Context) -> None:
    """Refuse references to instances or frames that were not read, numbers that are none, UIDs of unknown origin.

    Raises
    ------
    Permanent
        With how many; no UID is named.
    """
    cited, kind, sources = opened.cited, opened.kind, context.sources
    frames = {**context.made, **sources.frames}
    del frames[opened.encoded.sop_instance_uid]
    study = str(context.case.source.StudyInstanceUID)  # structure sets refer to it as to an instance, C.8.8.5
    strange = {uid for uid, _ in cited.references if uid not in frames and uid != study}
    if strange:
        raise Permanent(f"the {kind} cites {len(strange)} instances that were not read")
    if any(not 1 <= number <= frames.get(uid, 0) for uid, numbers in cited.references for number in numbers):
        raise Permanent(f"the {kind} cites a frame that its source does not have")
    if cited.not_finite:
        raise Permanent(f"the {kind} holds a number that is not finite in {_named(min(cited.not_finite))}")
    drawn = [uid for uid in cited.uids if uid and not _has_an_origin(uid) and not sources.hold(uid)]
    if drawn:
        raise Permanent(f"the {kind} holds {len(drawn)} UIDs that are neither derived nor received")


def _named(tag: int) -> str:
    return dictionary_description(tag) if dictionary_has_tag(tag) else f"({tag >> 16:04X},{tag & 0xFFFF:04X})"


def _has_an_origin(uid: str) -> bool:
    """Tell whether a UID is the Standard's, or derived as `derive_uid` derives."""
    if uid.startswith(REGISTERED):
        return True
    number = uid.removeprefix(DERIVED)
    if number == uid or not number.isdigit() or int(number) >= 1 << 128:
        return False
    return uuid.UUID(int=int(number)).version == DERIVED_VERSION


def check_uids(opened: Opened, case: Case, number: int) -> None:
    """Refuse a result whose UIDs are not those of its place in this job: same work, same UID.

    Parameters
    ----------
    number
        Which of the instances of its encoding it is, from 1.

    Raises
    ------
    Permanent
        Where a retry would make a second object.
    """
    encoding, encoded = opened.encoded.encoding, opened.encoded
    series: tuple[str, ...] = (encoding.series,)
    if encoding.kind is Kind.DERIVED_IMAGES:  # a series for each set of images
        ordinal = (number - 1) // len(case.own.datasets)
        series = (encoding.series, f"{case.findings.images[ordinal].title}-{ordinal + 1}")
    if encoding.kind is Kind.PARAMETRIC_MAP:
        series = (encoding.series, str(number))
    if encoded.series_instance_uid != case.work.uid(*series):
        raise Permanent(f"the {opened.kind} has a Series Instance UID that does not derive from the job")
    if encoded.sop_instance_uid != case.work.uid(encoding.key, "instance", number):
        raise Permanent(f"the {opened.kind} has a SOP Instance UID that does not derive from the job")
    if int(opened.ds.SeriesNumber) != encoding.series_number:
        raise Permanent(f"the {opened.kind} has another Series Number than its profile gives")
