"""One structured report (SR, TID 1500) per pipeline result: values, outlines, and what was not found."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from highdicom.sr import CodedConcept

from pacs_ai.encode.provenance import LONG_STRING, clean, concept
from pacs_ai.encode.reports.absence import absent_kinds, absent_names
from pacs_ai.encode.reports.content import code, container, dcm, root, sct, text, with_children
from pacs_ai.encode.reports.document import COMMENT, algorithm_items, document, language, observer, procedure, statement
from pacs_ai.encode.reports.group_items import FINDING, Cited, evaluation_item, group_item, modifiers, segment_number
from pacs_ai.encode.reports.groups import Group, absent_labels, evaluations_of, groups_of, marked
from pacs_ai.encode.reports.tree import encoded_report
from pacs_ai.pipeline import TimeSeries, Waveform

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pydicom import Dataset

    from pacs_ai.dicom.evidence import Evidence
    from pacs_ai.encode.case import Case
    from pacs_ai.encode.encoded import Encoded
    from pacs_ai.pipeline import Given, Label
    from pacs_ai.profiles import Encoding

#: Title of a measurement report (CID 7021). Viewers draw its regions, and some fail on a group without a region.
MEASUREMENT_REPORT = dcm("126000", "Imaging Measurement Report")
#: Title of a report with a group that has no region (CID 7000): viewers then show its text.
TEXT_REPORT = CodedConcept("18748-4", "LN", "Diagnostic Imaging Report")
IMAGING_MEASUREMENTS = dcm("126010", "Imaging Measurements")
QUALITATIVE_EVALUATIONS = CodedConcept("C0034375", "UMLS", "Qualitative Evaluations")
ABSENT = sct("272519000", "Absent")
#: The form whose groups refer to segments instead of drawing them.
SEGMENTS = "segments"


def encode_report(case: Case, encoding: Encoding, segmentation: Encoded | None) -> tuple[Encoded, ...]:
    """Return the SR, which cites the SEG where there is one.

    Its title is "Imaging Measurement Report" where every group has a region, so that viewers draw them; groups of the
    whole image then get a mark. Where no group has one, or where groups refer to segments (the form `segments`), the
    title is another, because OHIF shows a black viewport for a group without a region under that title.
    """
    groups = groups_of(case)
    cited = Cited.of(segmentation, case) if segmentation is not None and encoding.form == SEGMENTS else None
    referring = any(segment_number(group, cited) for group in groups)
    drawn = not referring and any(group.region is not None for group in groups)
    if drawn:
        groups = marked(groups, case)
    tree = root(
        MEASUREMENT_REPORT if drawn else TEXT_REPORT,
        (
            language(),
            *observer(case.work),
            procedure(case.work),
            text(COMMENT, statement(case.work)),
            *(text(COMMENT, remark) for remark in case.remarks),
            *_body(case, groups, cited),
        ),
        "1500",
    )
    sop_class_uid = encoding.details.sop_class_uid
    report = document(tree, sop_class_uid, case.source, case.work, encoding, case.evidence, segmentation)
    return (encoded_report(encoding, report),)


def _body(case: Case, groups: Sequence[Group], cited: Cited | None) -> Iterator[Dataset]:
    """Yield the measurements, then the answers about the whole image and what was looked for and not found."""
    if groups:
        algorithm, slices = algorithm_items(case.work), case.own.slices
        recording = slices[0] if isinstance(case.given, Waveform) else None
        yield container(
            IMAGING_MEASUREMENTS, (group_item(group, slices, algorithm, cited, recording) for group in groups)
        )
    absent = absent_labels(case.findings, case.counts, case.card)
    answers = evaluations_of(case, groups)
    if absent or answers or not groups:
        yield _qualitative_evaluations(case, groups, absent)


def _qualitative_evaluations(case: Case, groups: Sequence[Group], absent: Sequence[Label]) -> Dataset:
    """Return answers about the whole image and what was not found, in words and codes (PS3.16 TID 1500 rows 12-14)."""
    answers = evaluations_of(case, groups)
    labels = {label.name: label for label in case.card.labels}
    names = absent_names(absent, case.card.labels)
    items = [text(FINDING, summary(case.inputs, case.evidence, names, found=bool(groups or answers)))]
    items += [evaluation_item(one, None if one.label is None else labels[one.label]) for one in answers]
    kinds = absent_kinds(absent, case.card.labels)
    items += [_absence(label, shared) for label, shared in _with_names(kinds, case.card.labels)]
    return container(QUALITATIVE_EVALUATIONS, items)


def summary(
    inputs: Mapping[str, Given], evidence: Mapping[str, Evidence], absent: Sequence[str], *, found: bool
) -> str:
    """Return in words how much was looked at and the names of what was not found."""
    counted: Counter[str] = Counter()
    for name, one in evidence.items():
        given = inputs[name]
        times = len(given.voxels) if isinstance(given, TimeSeries) else 1
        counted["recording" if isinstance(given, Waveform) else "image"] += len(one.slices) * times
    analysed = " and ".join(f"{count} {what}{'' if count == 1 else 's'}" for what, count in counted.items())
    named = f" Looked for and absent: {', '.join(absent)}." if absent else ""
    return f"{'' if found else 'Nothing found. '}{analysed} analysed.{named}"


def _with_names(absent: Sequence[Label], labels: Sequence[Label]) -> Iterator[tuple[Label, bool]]:
    """Yield the absent labels, each with whether another label of the card is of the same type."""
    of_type = Counter((label.type.value, label.type.scheme) for label in labels)
    for label in absent:
        yield label, of_type[label.type.value, label.type.scheme] > 1


def _absence(label: Label, shared: bool) -> Dataset:
    """Return "<type>: Absent"; of one of several labels of a type its modifier stands in the name that people read."""
    name = concept(label.type)
    if shared and label.modifier is not None:
        name.CodeMeaning = clean(f"{label.type.meaning} ({label.modifier.meaning.lower()})", LONG_STRING)
    return with_children(code(name, ABSENT), modifiers(label))
