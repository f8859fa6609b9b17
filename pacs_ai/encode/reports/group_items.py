"""A measurement group as content items: PS3.16 TID 1410 (a region), TID 1411 (a volume), TID 1501 (whole images)."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING

from pydicom import Dataset, dcmread

from pacs_ai.dicom.evidence import FrameReference
from pacs_ai.encode.reports.content import (
    Relation,
    code,
    coded,
    container,
    dcm,
    image,
    number,
    region,
    sct,
    text,
    uid,
    waveform,
    with_children,
)
from pacs_ai.encode.reports.groups import CERTAINTY, Group, Template, percent
from pacs_ai.pipeline import ANATOMICAL_STRUCTURE, MILLIMETRE, PERCENT, Classification, Label, Measurement, Region

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pacs_ai.encode.case import Case
    from pacs_ai.encode.encoded import Encoded
    from pacs_ai.encode.reports.groups import Axis

MEASUREMENT_GROUP = dcm("125007", "Measurement Group")
TRACKING_IDENTIFIER = dcm("112039", "Tracking Identifier")
TRACKING_UID = dcm("112040", "Tracking Unique Identifier")
FINDING_CATEGORY = sct("276214006", "Finding category")
FINDING = dcm("121071", "Finding")
FINDING_SITE = sct("363698007", "Finding Site")
LATERALITY = sct("272741003", "Laterality")
TOPOGRAPHICAL_MODIFIER = sct("106233006", "Topographical modifier")
MEASUREMENT_METHOD = sct("370129005", "Measurement Method")
DERIVATION = dcm("121401", "Derivation")
SOURCE = sct("260753009", "Source")
SOURCE_OF_MEASUREMENT = dcm("121112", "Source of Measurement")
IMAGE_REGION = dcm("111030", "Image Region")
REFERENCED_SEGMENT = dcm("121191", "Referenced Segment")
SOURCE_SERIES = dcm("121232", "Source series for segmentation")
#: CID 244; other modifiers of a label are topographical.
LATERALITIES = frozenset({"7771000", "24028007", "51440002", "66459002"})


@dataclass(frozen=True)
class Cited:
    """The segments that groups refer to instead of to an outline.

    Parameters
    ----------
    seg
        The SEG.
    numbers
        Tracking UID -> Segment Number.
    series_instance_uid
        The series that was segmented.
    """

    seg: FrameReference
    numbers: Mapping[str, int]
    series_instance_uid: str

    @classmethod
    def of(cls, encoded: Encoded, case: Case) -> Cited:
        """Read the Segment Numbers of a SEG of this case."""
        header = dcmread(BytesIO(bytes(encoded.parts[0])), stop_before_pixels=True, specific_tags=["SegmentSequence"])
        numbers = {
            str(item.TrackingUID): int(item.SegmentNumber) for item in header.SegmentSequence if "TrackingUID" in item
        }
        seg = FrameReference(encoded.sop_class_uid, encoded.sop_instance_uid)
        return cls(seg, numbers, str(case.source.SeriesInstanceUID))


def group_item(
    group: Group,
    slices: Sequence[FrameReference],
    algorithm: Sequence[Dataset],
    cited: Cited | None,
    recording: FrameReference | None = None,
) -> Dataset:
    """Return the CONTAINER of one measurement group.

    Parameters
    ----------
    slices
        The source frame of each slice or image.
    algorithm
        TID 4019.
    cited
        Where segments are referred to; None where their outlines are drawn.
    recording
        The waveform that the values were measured in; None of images.
    """
    label = group.label
    context = Relation.HAS_OBS_CONTEXT
    items = [
        text(TRACKING_IDENTIFIER, group.name, context),
        uid(TRACKING_UID, group.uid, context),
        *_finding(label),
        *algorithm,
        *(axis_item(axis, slices[axis.line.index]) for axis in group.axes),
        *(measurement_item(one, recording) for one in group.values[len(group.axes) :]),
        *laterality_of_finding(label),
        *(evaluation_item(one) for one in group.classifications),
        *_place(group, slices, cited),
    ]
    return container(MEASUREMENT_GROUP, items, group.template.value)


def _finding(label: Label | None) -> Iterator[Dataset]:
    if label is not None:
        yield code(FINDING_CATEGORY, coded(label.category))
        yield code(FINDING, coded(label.type))
        if label.category.value == ANATOMICAL_STRUCTURE.value:  # its own site
            yield from about(label)
        elif label.modifier is not None and label.modifier.value not in LATERALITIES:  # a lesion in the liver
            yield code(FINDING_SITE, coded(label.modifier), Relation.HAS_CONCEPT_MOD)


def modifiers(label: Label | None) -> list[Dataset]:
    """Return the side of a label, or its other modifier, as modifier of a concept."""
    if label is None or label.modifier is None:
        return []
    name = LATERALITY if label.modifier.value in LATERALITIES else TOPOGRAPHICAL_MODIFIER
    return [code(name, coded(label.modifier), Relation.HAS_CONCEPT_MOD)]


def about(label: Label) -> list[Dataset]:
    """Return a label as modifier of a concept: its site or its finding, with its side."""
    name = FINDING_SITE if label.category.value == ANATOMICAL_STRUCTURE.value else FINDING
    return [with_children(code(name, coded(label.type), Relation.HAS_CONCEPT_MOD), modifiers(label))]


def laterality_of_finding(label: Label | None) -> Iterator[Dataset]:
    """Yield the side of a finding that has no site to carry it."""
    if label is None or label.modifier is None or label.category.value == ANATOMICAL_STRUCTURE.value:
        return
    if label.modifier.value in LATERALITIES:
        yield code(LATERALITY, coded(label.modifier))


def measurement_item(measurement: Measurement, recording: FrameReference | None = None) -> Dataset:
    """Return a value with its method, its derivation and the waveform it rests on (PS3.16 TID 300 and 321)."""
    item = number(coded(measurement.concept), measurement.value, coded(measurement.unit))
    told = ((MEASUREMENT_METHOD, measurement.method), (DERIVATION, measurement.derivation))
    children = [code(name, coded(value), Relation.HAS_CONCEPT_MOD) for name, value in told if value is not None]
    if recording is not None:
        children.append(waveform(SOURCE_OF_MEASUREMENT, recording, Relation.INFERRED_FROM))
    return with_children(item, children)


def axis_item(axis: Axis, source: FrameReference) -> Dataset:
    """Return a diameter inferred from its own line on the image (PS3.16 TID 300 and 320)."""
    item = number(coded(axis.concept), axis.length_mm, coded(MILLIMETRE))
    return with_children(item, [_drawn(SOURCE_OF_MEASUREMENT, axis.line, source, Relation.INFERRED_FROM)])


def evaluation_item(answer: Classification, label: Label | None = None) -> Dataset:
    """Return an answer with its probability and, outside of its label's group, what it is about."""
    item = code(coded(answer.concept), coded(answer.value))
    children = modifiers(label) if label is None or label.type == answer.concept else about(label)
    if answer.probability is not None:
        certainty = number(coded(CERTAINTY), percent(answer.probability), coded(PERCENT), Relation.HAS_PROPERTIES)
        children.append(certainty)
    return with_children(item, children)


def segment_number(group: Group, cited: Cited | None) -> int:
    """Return the segment that a group refers to; 0 where it draws its region: TID 1411 alone has segments."""
    return 0 if cited is None or group.template is not Template.VOLUMETRIC else cited.numbers.get(group.uid, 0)


def _place(group: Group, slices: Sequence[FrameReference], cited: Cited | None) -> Iterator[Dataset]:
    """Yield where the finding is: a segment of a SEG, or its region on a source image."""
    segment = segment_number(group, cited)
    if cited is not None and segment:
        yield image(REFERENCED_SEGMENT, cited.seg, segment=segment)
        yield uid(SOURCE_SERIES, cited.series_instance_uid)
    elif group.region is not None:
        yield _drawn(IMAGE_REGION, group.region, slices[group.region.index], Relation.CONTAINS)


def _drawn(name: Dataset, place: Region, source: FrameReference, relation: Relation) -> Dataset:
    return region(name, place.shape, place.points, image(SOURCE, source, Relation.SELECTED_FROM), relation)
