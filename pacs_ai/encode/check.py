"""The gate: nothing enters the outbox that is of another patient, lies elsewhere, or says what was not found.

Three doors: `check_sources` before anything is analysed, `check_findings` before anything is encoded, and
`check_results`, which opens what was encoded again as a stranger would. `check_notice` is the last one for what is
said where there are no findings.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from pacs_ai.dicom.reading import READING_FAULTS
from pacs_ai.encode.case import PRIOR
from pacs_ai.encode.gate.context import Context
from pacs_ai.encode.gate.findings import check_findings
from pacs_ai.encode.gate.identity import (
    check_citations,
    check_frame_of_reference,
    check_identity,
    check_uids,
    source_of,
)
from pacs_ai.encode.gate.images import check_image
from pacs_ai.encode.gate.opened import Opened
from pacs_ai.encode.gate.places import check_annotations, check_contours, check_frames, check_map
from pacs_ai.encode.gate.report import check_regions, check_report, check_values
from pacs_ai.encode.gate.sources import ONE_PATIENT, check_sources
from pacs_ai.encode.gate.voxels import check_segmentation
from pacs_ai.errors import Permanent
from pacs_ai.profiles import Kind

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from pydicom import Dataset

    from pacs_ai.encode.case import Case
    from pacs_ai.encode.encoded import Encoded
    from pacs_ai.pipeline import Card

__all__ = ["ONE_PATIENT", "PRIOR", "check_findings", "check_notice", "check_results", "check_sources"]


def check_results(results: Sequence[Encoded], case: Case) -> None:
    """Open the encoded results again and hold them against what was received and found.

    Costs 0.1 s for a SEG of 300 slices: every frame's source, place and number of voxels is compared, and the voxels
    of `gate_voxels.COMPARED` of them.

    Raises
    ------
    Permanent
        Where a result cites an instance that was not read, is of another patient, lies elsewhere, lacks what its kind
        requires, claims what the pipeline is not cleared for, or holds other values than were found.
    """
    opened = [_open(result) for result in results]
    try:
        made = {one.encoded.sop_instance_uid: one.number_of_frames for one in opened}
        segments = {one.encoded.sop_instance_uid: _segments(one) for one in opened if one.is_segmentation}
        context = Context(case, made, segments)
        numbers: Counter[str] = Counter()
        for one in opened:
            encoding = one.encoded.encoding
            numbers[encoding.key] += 1
            source = source_of(case, encoding, numbers[encoding.key])
            check_identity(one, source, case.card)
            check_frame_of_reference(one, case, source)
            check_uids(one, case, numbers[encoding.key])
            check_citations(one, context)
            _SPECIAL[encoding.kind](one, context, numbers[encoding.key])
    except READING_FAULTS as fault:
        raise Permanent(f"a result that was encoded cannot be read again: {type(fault).__name__}") from fault


def check_notice(notice: Encoded, source: Dataset, card: Card, cited: Collection[str]) -> None:
    """Hold what is said where there are no findings ("not analysed", "rejected", "retracted") against its source.

    Parameters
    ----------
    notice
        A report, a key object selection or a picture.
    source
        The data set whose patient, study and order it shares.
    cited
        SOP Instance UIDs of all that it may refer to: what was received, or the objects that it retracts.

    Raises
    ------
    Permanent
        As `check_results`.
    """
    opened = _open(notice)
    check_identity(opened, source, card)
    strange = {uid for uid, _ in opened.cited.references} - set(cited)
    if strange:
        raise Permanent(f"the {notice.kind} cites {len(strange)} instances that it is not about")


def _open(result: Encoded) -> Opened:
    try:
        return Opened.of(result)
    except READING_FAULTS as fault:
        raise Permanent(f"the {result.kind} that was encoded cannot be read again") from fault


def _segments(opened: Opened) -> dict[int, str]:
    return {int(item.SegmentNumber): str(item.get("TrackingUID")) for item in opened.ds.get("SegmentSequence", ())}


def _segmentation(opened: Opened, context: Context, _number: int) -> None:
    check_segmentation(opened, context)


def _report(opened: Opened, context: Context, _number: int) -> None:
    check_report(opened, context)


def _tree(opened: Opened, context: Context, _number: int) -> None:
    check_regions(opened, context)


def _values(opened: Opened, context: Context, _number: int) -> None:
    tree = check_regions(opened, context)
    if opened.encoded.encoding.form == "enhanced":
        check_values(tree, context.case.findings.measurements)


def _overlay(opened: Opened, context: Context, _number: int) -> None:
    if context.case.has_volume:
        check_frames(opened, context)


def _annotations(opened: Opened, context: Context, _number: int) -> None:
    check_annotations(opened, context)


def _contours(opened: Opened, context: Context, _number: int) -> None:
    check_contours(opened, context)


def _nothing_more(_opened: Opened, _context: Context, _number: int) -> None:
    """Pages have no place in the patient."""


#: What is checked of each kind beside identity, UIDs and citations; the number counts the objects of an encoding.
_SPECIAL: Mapping[Kind, Callable[[Opened, Context, int], None]] = {
    Kind.SEGMENTATION: _segmentation,
    Kind.REPORT: _report,
    Kind.TEXT_REPORT: _tree,
    Kind.VALUES: _values,
    Kind.PARAMETRIC_MAP: check_map,
    Kind.SECONDARY_CAPTURE: _nothing_more,
    Kind.OVERLAY: _overlay,
    Kind.STRUCTURE_SET: _contours,
    Kind.KEY_OBJECTS: _tree,
    Kind.PRESENTATION_STATE: _annotations,
    Kind.SUMMARY: _nothing_more,
    Kind.DERIVED_IMAGES: check_image,
}
