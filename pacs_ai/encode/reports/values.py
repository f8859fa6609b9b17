"""The findings as flat names and values, for report templates that fill their fields from a structured report.

The rule by which a template finds its field:

- Every value is a child of the root; nothing is nested, so a field is found by its Concept Name alone.
- The Concept Name is unique in the report and the same in every report: its Code Value, of the private coding scheme
  ``99PACSAI``, is ``V`` and 12 hexadecimal digits of a digest of the label's name (with the ordinal of a detection),
  the Standard's concept, its method and its derivation. Neither the pipeline's name and version nor the value is part
  of it, so a new version, or another model with the same labels, fills the same fields. Code Meaning is what a person
  reads: "Right lung: Volume", "Nodule 2: Long Axis".
- What the name means in the Standard's terms stands below it: "Equivalent Meaning of Concept Name" (TID 1210) is the
  measurement's own concept; Finding Site or Finding, with laterality, is the label; method and derivation follow.
- Each label that was looked for has a field "<label>: Finding", Present or Absent, whatever was found.
- Values have four significant digits as text (Numeric Value), and all as a number (Floating Point Value).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from highdicom.sr import CodedConcept
from pydicom import Dataset
from pydicom.uid import BasicTextSRStorage

from pacs_ai.dicom.identifiers import digest
from pacs_ai.encode.provenance import LONG_STRING, MANUFACTURER, clean
from pacs_ai.encode.reports.content import Relation, code, coded, dcm, decimal, number, root, text, with_children
from pacs_ai.encode.reports.document import COMMENT, algorithm_items, document, language, observer, procedure, statement
from pacs_ai.encode.reports.group_items import (
    DERIVATION,
    MEASUREMENT_METHOD,
    about,
)
from pacs_ai.encode.reports.groups import CERTAINTY, Group, absent_labels, evaluations_of, groups_of, percent
from pacs_ai.encode.reports.report import TEXT_REPORT
from pacs_ai.encode.reports.tree import encoded_report
from pacs_ai.encode.reports.wording import name_of, quantity
from pacs_ai.pipeline import PERCENT, Classification, Code, Label, Measurement

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pacs_ai.encode.case import Case
    from pacs_ai.encode.encoded import Encoded
    from pacs_ai.profiles import Encoding

PRIVATE_SCHEME = "99PACSAI"
EQUIVALENT_MEANING = dcm("121050", "Equivalent Meaning of Concept Name")
PRESENT = Code("52101004", "SCT", "Present")
ABSENT = Code("272519000", "SCT", "Absent")
NUMBER_OF_FINDINGS = Code("COUNT", PRIVATE_SCHEME, "Number of findings")
PRESENCE = Code("121071", "DCM", "Finding")
COUNT = Code("{count}", "UCUM", "count")
THOUSAND = 1000


@dataclass(frozen=True)
class Field:
    """One name with its value: a number, or a coded answer.

    Parameters
    ----------
    prefix
        "Right lung", "Nodule 2"; "" for the whole image.
    value
        A measurement, or an answer in words and codes.
    label
        What it is about.
    """

    prefix: str
    value: Measurement | Classification
    label: Label | None = None

    @property
    def concept(self) -> Code:
        """The Standard's concept."""
        return self.value.concept

    @property
    def name(self) -> str:
        """What people read."""
        own = name_of(self.value) if isinstance(self.value, Measurement) else self.value.concept.meaning
        return f"{self.prefix}: {own}" if self.prefix else own

    @property
    def qualifiers(self) -> tuple[Code | None, Code | None]:
        """Method and derivation."""
        return (self.value.method, self.value.derivation) if isinstance(self.value, Measurement) else (None, None)


def encode_values(case: Case, encoding: Encoding, _cited: Encoded | None) -> tuple[Encoded, ...]:
    """Return the report: Enhanced SR with numbers and codes, or Basic Text SR with the same names and texts."""
    plain = encoding.details.sop_class_uid == BasicTextSRStorage
    write = _as_text if plain else _as_value
    fields = [write(name, field) for name, field in _named(fields_of(case))]
    tree = root(
        TEXT_REPORT,
        (
            language(),
            *observer(case.work),
            procedure(case.work),
            *algorithm_items(case.work),
            text(COMMENT, statement(case.work)),
            *(text(COMMENT, remark) for remark in case.remarks),
            *fields,
        ),
    )
    report = document(tree, encoding.details.sop_class_uid, case.source, case.work, encoding, case.evidence)
    report.CodingSchemeIdentificationSequence = [_private_scheme()]
    return (encoded_report(encoding, report),)


def fields_of(case: Case) -> Iterator[Field]:
    """Yield every field, in the order of the card's labels, then the whole image's."""
    groups = groups_of(case)
    absent = absent_labels(case.findings, case.counts, case.card)
    for label in case.card.labels:
        of_label = [group for group in groups if group.label is not None and group.label.name == label.name]
        yield from _presence(label, of_label, absent=label in absent, case=case)
        for group in of_label:
            yield from _of_group(group)
    for group in groups:
        if group.label is None:
            yield from (Field("", value) for value in group.values)
    labels = {label.name: label for label in case.card.labels}
    for one in evaluations_of(case, groups):
        label_of = None if one.label is None else labels[one.label]
        yield from _answer(one.label or "", one, label_of)


def _presence(label: Label, groups: list[Group], *, absent: bool, case: Case) -> Iterator[Field]:
    detections = sum(detection.label == label.name for detection in case.findings.detections)
    seen = detections or any(group.region is not None for group in groups)
    if absent or seen:
        yield Field(label.name, Classification(PRESENCE, ABSENT if absent else PRESENT), label)
    if detections:
        yield Field(label.name, Measurement(NUMBER_OF_FINDINGS, detections, COUNT), label)


def _of_group(group: Group) -> Iterator[Field]:
    for value in group.values:
        yield Field(group.name, value, group.label)
    for one in group.classifications:
        yield from _answer(group.name, one, group.label)


def _answer(prefix: str, given: Classification, label: Label | None) -> Iterator[Field]:
    yield Field(prefix, given, label)
    if given.probability is not None:
        asked = f"{prefix}: {given.concept.meaning}" if prefix else given.concept.meaning
        yield Field(asked, Measurement(CERTAINTY, percent(given.probability), PERCENT), label)


def _named(fields: Iterable[Field]) -> Iterator[tuple[CodedConcept, Field]]:
    """Yield each field with its own Concept Name; a name that comes again is counted."""
    seen: Counter[str] = Counter()
    for field in fields:
        key = digest(field.prefix, *(one and (one.value, one.scheme) for one in (field.concept, *field.qualifiers)))
        seen[key] += 1
        ordinal = seen[key]
        if ordinal > 1:
            key = digest(key, ordinal)
        ending = f" ({ordinal})" if ordinal > 1 else ""
        meaning = clean(field.name, LONG_STRING - len(ending)) + ending
        yield CodedConcept(f"V{key[:12].upper()}", PRIVATE_SCHEME, meaning), field


def _as_value(name: CodedConcept, field: Field) -> Dataset:
    """Return a NUM or a CODE."""
    if isinstance(field.value, Classification):
        return with_children(code(name, coded(field.value.value)), _meaning(field))
    item = number(name, field.value.value, coded(field.value.unit))
    item.MeasuredValueSequence[0].NumericValue = _four_digits(field.value.value)
    return with_children(item, _meaning(field))


def _as_text(name: CodedConcept, field: Field) -> Dataset:
    """Return a TEXT, "904 mL" or "Absent"."""
    shown = field.value.value.meaning if isinstance(field.value, Classification) else quantity(field.value)
    return with_children(text(name, shown), _meaning(field))


def _four_digits(value: float) -> str:
    """Return a number with four significant digits, from 1000 on as an integer, as a Decimal String (PS3.5 6.2)."""
    return decimal(float(f"{value:.4g}" if abs(value) < THOUSAND else f"{value:.0f}"))


def _meaning(field: Field) -> list[Dataset]:
    """Return what a name means in the Standard's terms."""
    modifier = Relation.HAS_CONCEPT_MOD
    items = [code(EQUIVALENT_MEANING, coded(field.concept), modifier)]
    if field.label is not None:
        items += about(field.label)
    told = zip((MEASUREMENT_METHOD, DERIVATION), field.qualifiers, strict=True)
    return items + [code(name, coded(value), modifier) for name, value in told if value is not None]


def _private_scheme() -> Dataset:
    """Return what the private coding scheme is (Coding Scheme Identification, PS3.3 C.12.1)."""
    item = Dataset()
    item.CodingSchemeDesignator = PRIVATE_SCHEME
    item.CodingSchemeName = "Names of values in reports for templates"
    item.CodingSchemeResponsibleOrganization = MANUFACTURER
    return item
