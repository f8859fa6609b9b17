"""What is said where there is no result, or none any more: "not analysed", "rejected", "retracted".

Pure: the caller gives the moment as `work.created_at`, and the same notice twice is the same bytes.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import astuple, replace
from typing import TYPE_CHECKING, Literal

from highdicom.sr import CodedConcept
from pydicom.uid import UID, BasicTextSRStorage

from pacs_ai.dicom.identifiers import digest
from pacs_ai.dicom.reading import read_text
from pacs_ai.encode.body_part import copy_body_part
from pacs_ai.encode.check import ONE_PATIENT, PRIOR
from pacs_ai.encode.encoded import encoded
from pacs_ai.encode.pictures.picture import warning
from pacs_ai.encode.pictures.retracted_picture import retracted_picture
from pacs_ai.encode.provenance import DISCLAIMER, LONG_STRING, Work, clean, stamp
from pacs_ai.encode.reports.citations import references
from pacs_ai.encode.reports.content import Relation, code, container, dcm, root, text, with_children
from pacs_ai.encode.reports.document import COMMENT, algorithm_items, document, language, observer
from pacs_ai.encode.reports.key_objects import Cited, selection
from pacs_ai.errors import Refused
from pacs_ai.pipeline import Clearance, Code

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from datetime import datetime

    from pydicom import Dataset

    from pacs_ai.dicom.evidence import Evidence
    from pacs_ai.encode.encoded import Encoded
    from pacs_ai.profiles import Encoding

__all__ = ["Cited", "encode_not_analysed", "encode_rejection", "encode_retracted"]

Policy = Literal["refused", "failed"]
Reason = Literal["safety", "quality", "worklist", "retention"]

#: Document titles of IHE's Imaging Object Change Management (CID 7010).
TITLES: Mapping[Reason, Code] = {
    "safety": Code("113037", "DCM", "Rejected for Patient Safety Reasons"),
    "quality": Code("113001", "DCM", "Rejected for Quality Reasons"),
    "worklist": Code("113038", "DCM", "Incorrect Modality Worklist Entry"),
    "retention": Code("113039", "DCM", "Data Retention Policy Expired"),
}
#: Title of a report (CID 7000) that viewers show as text.
REPORT = CodedConcept("18748-4", "LN", "Diagnostic Imaging Report")
SUMMARY = dcm("121111", "Summary")
CONCLUSION = dcm("121077", "Conclusion")
PROCEDURE = dcm("121064", "Current Procedure Descriptions")
PROCEDURE_DESCRIPTION = dcm("121065", "Procedure Description")
ANALYSIS_PERFORMED = dcm("111004", "Analysis Performed")
#: Concept and values (CID 6042) by which CAD reports say how an analysis ended (PS3.16 TID 4015).
SUMMARY_OF_ANALYSES = dcm("111065", "Summary of Analyses")
STATUS: Mapping[Policy, CodedConcept] = {
    "refused": dcm("111225", "Not Attempted"),
    "failed": dcm("111224", "Failed"),
}
#: The Standard has no concept for it and no code for unfit images (CID 9300 is of procedures, CID 7011 of failures).
REASON = CodedConcept("REASON", "99PACSAI", "Reason for the lack of a result")
REASONS: Mapping[Policy, CodedConcept] = {
    "refused": CodedConcept("UNFIT", "99PACSAI", "Images unfit for the algorithm"),
    "failed": dcm("111218", "Software failure"),
}
#: Why the images are unfit: one of `pacs_ai.errors.Reason`.
UNFIT_BECAUSE = CodedConcept("UNFIT-BECAUSE", "99PACSAI", "Images unfit because of")
SR_CLASSES = "1.2.840.10008.5.1.4.1.1.88."
KEY_OBJECTS = "1.2.840.10008.5.1.4.1.1.88.59"
LONG_TEXT = 1024


def encode_not_analysed(
    source: Dataset,
    evidence: Mapping[str, Evidence],
    work: Work,
    policy: Policy,
    words: str,
    encoding: Encoding,
    refused_for: str = "",
) -> Encoded:
    """Return a report that tells the readers of a study that there is no result, and why (Basic Text SR, PS3.3 A.35.1).

    Completion Flag is PARTIAL: a work list must not take the notice for the result.

    Parameters
    ----------
    source
        The data set whose patient, study and order it shares.
    evidence
        What was received, by name of input; may be empty. Only the data sets are read, not the slices.
    work
        The job; `created_at` is the moment of the refusal or failure.
    policy
        `refused`: the images are unfit for the algorithm; `failed`: the algorithm or the node failed for good.
    words
        Why, for readers of the study, without any value of a patient.
    encoding
        Of `pacs_ai.profiles.notice_encodings`.
    refused_for
        The code of a refusal (`pacs_ai.errors.Reason`), "" of a failure.

    Raises
    ------
    Refused
        Where the instances are not of one patient or, priors apart, of one study: then nothing may be said in any.
    """
    datasets = [(name, ds) for name, one in sorted(evidence.items()) for ds in one.datasets] or [("", source)]
    _check_identity(source, datasets)
    cited = _unique(_cited(ds) for _, ds in datasets)
    conclusion = clean(f"Not analysed: {words}", LONG_TEXT)
    coded = (
        code(SUMMARY_OF_ANALYSES, STATUS[policy], Relation.HAS_PROPERTIES),
        code(REASON, REASONS[policy], Relation.HAS_PROPERTIES),
        *([code(UNFIT_BECAUSE, _unfit(refused_for), Relation.HAS_PROPERTIES)] if refused_for else []),
    )
    meaning = "There is no AI result for these images. This says nothing about what they show."
    summary = (with_children(text(CONCLUSION, conclusion), coded), text(COMMENT, meaning))
    result = _report(
        conclusion, summary, _series_lines(datasets), cited, source, replace(work, predecessors=()), encoding
    )
    result.CompletionFlag = "PARTIAL"
    result.CompletionFlagDescription = "Not analysed"
    said = (policy, words, refused_for, [astuple(one) for one in cited])
    return _finished(result, source, work, encoding, said, "NOT ANALYSED")


def encode_rejection(
    source: Dataset, objects: Sequence[Cited], work: Work, reason: Reason, words: str, encoding: Encoding
) -> Encoded:
    """Return a rejection note, which withdraws objects from a PACS that honours it (IHE RAD IOCM).

    Parameters
    ----------
    source
        The data set whose patient, study and order it shares.
    objects
        What is withdrawn: at least one, all of the study of `source`.
    work
        The job; `created_at` is the moment of the retraction.
    reason
        `safety`, `quality`, `worklist` (they were made for the wrong patient or order) or `retention`.
    words
        Why, for people, without any value of a patient.
    encoding
        Of `pacs_ai.profiles.notice_encodings`.

    Raises
    ------
    ValueError
        No object, or one of another study.
    """
    withdrawn = _withdrawn(source, objects)
    research = f", {DISCLAIMER}" if work.card.clearance == Clearance.RESEARCH else ""
    description = f"{TITLES[reason].meaning}: {words}. {_names(withdrawn)} of {_algorithm_name(work)} (AI{research})."
    result = selection(TITLES[reason], description, withdrawn, {}, work=work, source=source)
    said = (reason, words, [astuple(one) for one in withdrawn])
    return _finished(result, source, work, encoding, said, "REJECTED")


def encode_retracted(
    source: Dataset,
    objects: Sequence[Cited],
    work: Work,
    words: str,
    report: Encoding,
    picture: Encoding,
    *,
    made_at: datetime | None = None,
) -> tuple[Encoded, ...]:
    """Return what tells the readers of a study that results are withdrawn, where the PACS does not hide them.

    A report that replaces the reports among the objects (Predecessor Documents, PS3.3 C.17.2), and a picture that says
    RETRACTED in large letters (Secondary Capture, PS3.3 A.8.1).

    Parameters
    ----------
    source, objects, work, words
        As in `encode_rejection`.
    report, picture
        Of `pacs_ai.profiles.notice_encodings`.
    made_at
        When the withdrawn results were made, to name them by; None leaves it out.

    Raises
    ------
    ValueError
        No object, or one of another study.
    """
    withdrawn = _withdrawn(source, objects)
    of_day = "" if made_at is None else f" of {made_at:%Y-%m-%d %H:%M}"
    conclusion = clean(f"RETRACTED: {words}", LONG_TEXT)
    named = clean(f"Do not use the AI results{of_day} of {_algorithm_name(work)}: {_names(withdrawn)}.", LONG_TEXT)
    summary = (text(CONCLUSION, conclusion), text(COMMENT, named))
    concerned = [f"Retracted: {_name(one)} {one.sop_instance_uid}" for one in withdrawn]
    replacing = replace(work, predecessors=tuple(one for one in withdrawn if _is_report(one)))
    result = _report(conclusion, summary, concerned, withdrawn, source, replacing, report)
    said = (words, str(made_at), [astuple(one) for one in withdrawn])
    lines = (
        f"AI results{of_day}",
        _algorithm_name(work),
        _names(withdrawn),
        clean(f"Reason: {words}", LONG_TEXT),
        f"Retracted on {work.created_at:%Y-%m-%d %H:%M} {work.created_at.tzname() or ''}".rstrip(),
        "Do not use them.",
        warning(work.card),
    )
    image = retracted_picture(lines)
    copy_body_part(image, source)
    return (
        _finished(result, source, work, report, said, "RETRACTED"),
        _finished(image, source, work, picture, said, "RETRACTED"),
    )


def _unfit(reason: str) -> CodedConcept:
    """Return the code of a refusal: a Code Value (VR SH, 16 characters) of the private scheme, and its words."""
    return CodedConcept(reason.upper()[:16], "99PACSAI", reason.replace("-", " ").capitalize())


def _check_identity(source: Dataset, datasets: Sequence[tuple[str, Dataset]]) -> None:
    for name, ds in datasets:
        keywords = [*ONE_PATIENT] if name.startswith(PRIOR) else [*ONE_PATIENT, "StudyInstanceUID"]
        if any(read_text(ds, keyword) != read_text(source, keyword) for keyword in keywords):
            raise Refused("the images are of more than one patient or study, so nothing may be said in either")


def _cited(ds: Dataset) -> Cited:
    return Cited(str(ds.StudyInstanceUID), str(ds.SeriesInstanceUID), str(ds.SOPClassUID), str(ds.SOPInstanceUID))


def _unique(objects: Iterator[Cited] | Sequence[Cited]) -> list[Cited]:
    return list(dict.fromkeys(objects))


def _withdrawn(source: Dataset, objects: Sequence[Cited]) -> list[Cited]:
    if not objects:
        raise ValueError("there is no object to retract")
    if any(one.study_instance_uid != str(source.StudyInstanceUID) for one in objects):
        raise ValueError("a notice retracts objects of its own study only")
    return _unique(objects)


def _is_report(one: Cited) -> bool:
    return one.sop_class_uid.startswith(SR_CLASSES) and one.sop_class_uid != KEY_OBJECTS


def _name(one: Cited) -> str:
    return clean(UID(one.sop_class_uid).name.removesuffix(" Storage"), LONG_STRING)


def _names(objects: Sequence[Cited]) -> str:
    counted = Counter(_name(one) for one in objects)
    return ", ".join(name if count == 1 else f"{count} x {name}" for name, count in counted.items())


def _algorithm_name(work: Work) -> str:
    return clean(f"{work.card.name} {work.card.version}, {work.card.manufacturer}", LONG_TEXT)


def _series_lines(datasets: Sequence[tuple[str, Dataset]]) -> list[str]:
    """Return a line for each series: its input, modality and Series Number, and how many instances came."""
    counted = Counter(
        (name, read_text(ds, "Modality"), read_text(ds, "SeriesNumber"), str(ds.SeriesInstanceUID))
        for name, ds in datasets
    )
    lines = []
    for (name, modality, number, _), count in counted.items():
        given = f"input '{name}': " if name else ""
        lines.append(clean(f"{given}{modality} series {number or 'without a number'}, instances: {count}", LONG_TEXT))
    return lines


def _report(
    conclusion: str,
    summary: Sequence[Dataset],
    concerned: Sequence[str],
    cited: Sequence[Cited],
    source: Dataset,
    work: Work,
    encoding: Encoding,
) -> Dataset:
    """Return a Basic Text SR (PS3.16 TID 2000) that says the conclusion first, then whom, what and which algorithm."""
    research = f" For research only, {DISCLAIMER}." if work.card.clearance == Clearance.RESEARCH else ""
    first = clean(f"{conclusion.rstrip('.')}. Written by software, not by a person.{research}", LONG_TEXT)
    tree = root(
        REPORT,
        (
            language(),
            *observer(work),
            text(COMMENT, first),
            container(SUMMARY, summary),
            container(PROCEDURE, [text(PROCEDURE_DESCRIPTION, line) for line in concerned]),
            container(ANALYSIS_PERFORMED, algorithm_items(work)),
        ),
        "2000",
    )
    result = document(tree, BasicTextSRStorage, source, work, encoding, {})
    study = str(source.StudyInstanceUID)
    listed = [astuple(one) for one in cited]
    result.CurrentRequestedProcedureEvidenceSequence = references([one for one in listed if one[0] == study])
    other = [one for one in listed if one[0] != study]
    if other:
        result.PertinentOtherEvidenceSequence = references(other)
    return result


def _finished(result: Dataset, source: Dataset, work: Work, encoding: Encoding, said: object, heading: str) -> Encoded:
    """Give a notice its UIDs, each notice a series of its own, its identity and its description; encode it."""
    what = digest(said, work.created_at.isoformat())
    result.SOPInstanceUID = work.uid(encoding.key, "instance", what)
    result.SeriesInstanceUID = work.uid(encoding.series, what)
    result.InstanceNumber = encoding.instance_number
    stamp(result, source, work, encoding)
    ending = f" ({DISCLAIMER})" if work.card.clearance == Clearance.RESEARCH else ""
    title = clean(f"{heading} - AI: {work.card.title}", LONG_STRING - len(ending))
    result.SeriesDescription = title + ending
    return encoded(encoding, result)
