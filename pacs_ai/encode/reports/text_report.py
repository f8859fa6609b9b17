"""The findings as readable text, a Basic Text SR, for viewers that draw a report's outlines and print nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from highdicom.sr import CodedConcept

from pacs_ai.encode.reports.absence import absent_names
from pacs_ai.encode.reports.basic_text import basic_text
from pacs_ai.encode.reports.content import Relation, container, image, text, with_children
from pacs_ai.encode.reports.document import COMMENT, statement
from pacs_ai.encode.reports.group_items import FINDING, SOURCE
from pacs_ai.encode.reports.groups import Group, absent_labels, evaluations_of, groups_of
from pacs_ai.encode.reports.report import TEXT_REPORT, summary
from pacs_ai.encode.reports.tree import encoded_report
from pacs_ai.encode.reports.wording import answer, joined, sentences

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydicom import Dataset

    from pacs_ai.encode.case import Case
    from pacs_ai.encode.encoded import Encoded
    from pacs_ai.pipeline import Classification
    from pacs_ai.profiles import Encoding

ABSENT = "Looked for and absent: "
#: Section heading (CID 7001).
FINDINGS = CodedConcept("59776-5", "LN", "Findings")


def encode_text_report(case: Case, encoding: Encoding, _cited: Encoded | None) -> tuple[Encoded, ...]:
    """Return the report: first that an algorithm made it, then a line for each finding, then what was not found.

    A line names the image on which the finding is seen best and refers to it. Values are rounded to what a person
    reads; the report of kind `report` has them in full.
    """
    items = [container(FINDINGS, _lines(case))]
    comment = f"AI: {case.card.title}. {statement(case.work)}"
    report = basic_text(case.source, case.work, encoding, TEXT_REPORT, items, case.evidence, comment=comment)
    return (encoded_report(encoding, report),)


def _lines(case: Case) -> Iterator[Dataset]:
    groups = groups_of(case)
    answers = evaluations_of(case, groups)
    for group in groups:
        yield from _group_lines(group, case)
    for one in answers:
        yield text(FINDING, _answer(one))
    yield text(FINDING, summary(case.inputs, case.evidence, (), found=bool(groups or answers)))
    absent = absent_labels(case.findings, case.counts, case.card)
    for line in joined(ABSENT, absent_names(absent, case.card.labels), ", "):
        yield text(FINDING, line)
    for remark in case.remarks:
        yield text(COMMENT, remark)


def _group_lines(group: Group, case: Case) -> Iterator[Dataset]:
    """Yield what a group says; its first line refers to the image."""
    for number, sentence in enumerate(sentences(group, case)):
        line = text(FINDING, sentence)
        if group.region is not None and number == 0:
            source = case.own.slices[group.region.index]
            line = with_children(line, [image(SOURCE, source, Relation.INFERRED_FROM)])
        yield line


def _answer(given: Classification) -> str:
    return answer(given) if given.label is None else f"{given.label}: {answer(given)}"
