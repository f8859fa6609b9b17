"""Basic Text SR: a report of plain sentences, which every viewer and every older PACS can show."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydicom.uid import BasicTextSRStorage

from pacs_ai.encode.reports.content import root, text
from pacs_ai.encode.reports.document import COMMENT, algorithm_items, document, language, observer, procedure, statement

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pydicom import Dataset

    from pacs_ai.dicom.evidence import Evidence
    from pacs_ai.encode.encoded import Encoded
    from pacs_ai.encode.provenance import Work
    from pacs_ai.profiles import Encoding


def basic_text(
    source: Dataset,
    work: Work,
    encoding: Encoding,
    title: Dataset,
    items: Sequence[Dataset],
    evidence: Mapping[str, Evidence],
    *,
    segmentation: Encoded | None = None,
    comment: str | None = None,
) -> Dataset:
    """Return a Basic Text SR (PS3.3 A.35.1), stamped and ready for `encoded`; the disclaimer is its first line.

    Parameters
    ----------
    source
        The instance that patient and study are copied from.
    encoding
        Gives series, numbers and UIDs; its kind need not be a report.
    title
        Document title, a concept of CID 7000; not of CID 7021, whose regions viewers look for.
    items
        Children of the root, made by `content.container`, `content.text` and the like. A CONTAINER may contain
        CONTAINER, TEXT, COMPOSITE and IMAGE; values and codes stand below a TEXT: PS3.3 Table A.35.1-2.
    evidence
        By name of input: every instance that the report is about.
    comment
        The first line; None for `document.statement`.
    """
    tree = root(
        title,
        (
            language(),
            text(COMMENT, statement(work) if comment is None else comment),
            *items,
            procedure(work),
            *observer(work),
            *algorithm_items(work),
        ),
    )
    return document(tree, BasicTextSRStorage, source, work, encoding, evidence, segmentation)
