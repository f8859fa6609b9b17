"""Whether a report says what was found: the values, the volumes, the segments, and regions on the images."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pacs_ai.encode.gate.places import check_points
from pacs_ai.encode.gate.tree import Node, read_tree
from pacs_ai.encode.provenance import tracking
from pacs_ai.errors import Permanent
from pacs_ai.pipeline import VOLUME

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from pacs_ai.encode.gate.context import Context
    from pacs_ai.encode.gate.opened import Opened
    from pacs_ai.pipeline import Measurement

TRACKING_UID = ("112040", "DCM")
MEASUREMENT_GROUP = ("125007", "DCM")
OF_VOLUME = (VOLUME.value, VOLUME.scheme)
#: Numeric Value (0040,A30A) has 16 characters.
RELATIVE_TOLERANCE = 1e-9
#: Rounded to four significant digits.
ROUNDED = 1e-3
EQUIVALENT_MEANING = ("121050", "DCM")


def check_regions(opened: Opened, context: Context) -> Node:
    """Return the content tree, after refusing regions that leave the image that they are drawn on.

    Raises
    ------
    Permanent
        Where a region leaves its image or lies on none.
    """
    tree = read_tree(opened.head, opened.start, len(opened.head))
    for node in tree.walk():
        if node.value_type == "SCOORD":
            image = next((child.reference for child in node.children if child.reference), None)
            source = None if image is None else context.sources.datasets.get(image[0])
            if source is None:
                raise Permanent(f"the {opened.kind} draws a region on no image that was read")
            check_points(node.points, source, opened.kind)
        for number in node.numbers if node.value_type == "NUM" else ():
            if not math.isfinite(number):
                raise Permanent(f"the {opened.kind} holds a value that is no finite number")
    return tree


def check_report(opened: Opened, context: Context) -> None:
    """Compare a TID 1500 report with the findings and with the segmentations of the same results.

    Raises
    ------
    Permanent
        Where a value, a volume or a segment differs.
    """
    case, tree = context.case, check_regions(opened, context)
    groups = [node for node in tree.walk() if node.value_type == "CONTAINER" and node.concept == MEASUREMENT_GROUP]
    by_label: dict[str, list[Node]] = {}
    for group in groups:
        uid = next((child.text for child in group.named(TRACKING_UID)), "")
        by_label.setdefault(uid, []).append(group)
        for node in group.walk():
            if node.reference and node.reference[2] is not None:
                _check_segment(node.reference[0], node.reference[2], uid, context.segments)
    for segment, row in case.filled:
        uid = tracking(case.work, segment.label)[1]
        if len(by_label.get(uid, ())) != 1:
            raise Permanent("the report does not have one group for each segment")
        values = [value for value in case.findings.measurements if value.label == segment.label]
        _check_values(by_label[uid][0], values)
        if case.has_volume and not any((value.concept.value, value.concept.scheme) == OF_VOLUME for value in values):
            _check_volume(by_label[uid][0], float(row.sum()) * case.volume.voxel_ml)
    check_values(tree, case.findings.measurements)


def _check_segment(sop_instance_uid: str, number: int, uid: str, segments: Mapping[str, Mapping[int, str]]) -> None:
    if segments.get(sop_instance_uid, {}).get(number) != uid:
        raise Permanent("the report and the segmentation number their segments differently")


def _check_volume(group: Node, expected: float) -> None:
    found = [node for node in group.walk() if node.value_type == "NUM" and node.concept == OF_VOLUME]
    if len(found) != 1 or not _states(found[0].numbers, expected):
        raise Permanent("the report's volume is not that of the segment's voxels")


def check_values(tree: Node, measurements: Iterable[Measurement]) -> None:
    """Refuse a report that does not state each of these values under a name that means their concept."""
    _check_values(tree, measurements)


def _check_values(tree: Node, measurements: Iterable[Measurement]) -> None:
    stated: dict[tuple[str, str], list[tuple[float, ...]]] = {}
    for node in tree.walk():
        if node.value_type == "NUM":
            meaning = next((child.code for child in node.named(EQUIVALENT_MEANING)), node.concept)
            stated.setdefault(meaning, []).append(node.numbers)
    for wanted in measurements:
        found = stated.get((wanted.concept.value, wanted.concept.scheme), [])
        if not any(_states(numbers, wanted.value) for numbers in found):
            raise Permanent(f"the report does not state the value of '{wanted.concept.meaning}' that was found")


def _states(numbers: tuple[float, ...], value: float) -> bool:
    """Tell whether a value is stated: exactly first, and after that perhaps rounded for people."""
    if not numbers or not math.isclose(numbers[0], value, rel_tol=RELATIVE_TOLERANCE, abs_tol=1e-12):
        return False
    return all(math.isclose(number, value, rel_tol=ROUNDED, abs_tol=1e-12) for number in numbers)
