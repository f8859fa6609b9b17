"""What a report says: which values belong to which finding, and where on a source image they are drawn."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING

import numpy as np

from pacs_ai.encode.provenance import LONG_STRING, Work, clean, tracking
from pacs_ai.encode.reports.diameters import diameters, length_mm
from pacs_ai.encode.reports.outline import between, mark, outline
from pacs_ai.encode.voxels.survey import plane
from pacs_ai.pipeline import (
    LEFT,
    MILLILITRE,
    MILLIMETRE,
    MORPHOLOGIC_ABNORMALITY,
    PERCENT,
    RIGHT,
    VOLUME,
    Classification,
    Code,
    Detection,
    Frames,
    Label,
    Map,
    Measurement,
    Region,
    Shape,
    Waveform,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import numpy.typing as npt

    from pacs_ai.encode.case import Case
    from pacs_ai.encode.ground import Ground
    from pacs_ai.pipeline import Card, Diameters, Findings, Segment

WHOLE_IMAGE = "Whole image"
WHOLE_RECORDING = "Whole recording"
LONG_AXIS = Code("103339001", "SCT", "Long Axis")
SHORT_AXIS = Code("103340004", "SCT", "Short Axis")
AREA = Code("42798000", "SCT", "Area")
SQUARE_MILLIMETRE = Code("mm2", "UCUM", "mm2")
#: "The likelihood that the finding detected is in fact the type of finding identified" (PS3.16 Annex D), 0 to 100 %.
CERTAINTY = Code("111012", "DCM", "Certainty of Finding")
#: Image Laterality (0020,0062) and Laterality (0020,0060) of one side.
SIDES: Mapping[str, Code] = {"L": LEFT, "R": RIGHT}


class Template(StrEnum):
    """Template of a measurement group (PS3.16)."""

    PLANAR = "1410"  #: of a region on one image
    VOLUMETRIC = "1411"  #: of a region in space
    IMAGE = "1501"  #: of no region


@dataclass(frozen=True)
class Axis:
    """One diameter: what it is called, how long it is, and its two ends (column, row) on its image."""

    concept: Code
    length_mm: float
    line: Region


@dataclass(frozen=True)
class Group:
    """What one measurement group says.

    Parameters
    ----------
    name, uid
        Tracking Identifier and Tracking Unique Identifier.
    label
        Of the card; None for the whole image.
    template
        Which rows it has.
    region
        Where it is; None where it has no place of its own.
    axes
        Long and short axis of a lesion, where the spacing is known.
    probability
        0 to 1.
    """

    name: str
    uid: str
    label: Label | None
    template: Template
    region: Region | None = None
    measurements: tuple[Measurement, ...] = ()
    axes: tuple[Axis, ...] = ()
    probability: float | None = None
    classifications: tuple[Classification, ...] = ()

    @property
    def values(self) -> tuple[Measurement, ...]:
        """Every number of the group in the order in which it is shown; viewers show about five."""
        certainty = () if self.probability is None else (Measurement(CERTAINTY, percent(self.probability), PERCENT),)
        axes = (Measurement(axis.concept, axis.length_mm, MILLIMETRE) for axis in self.axes)
        return (*axes, *certainty, *self.measurements)


def percent(probability: float) -> float:
    """Return a probability as a percentage without the noise of its last binary digits."""
    return round(100.0 * float(probability), 6)


def groups_of(case: Case) -> tuple[Group, ...]:
    """Return a group per segment with voxels, per detection, per label that has values only, and of the whole image."""
    found = [*_of_segments(case), *_of_detections(case)]
    return (*found, *_without_place(case, {segment.label for segment, _ in case.filled}))


def marked(groups: Sequence[Group], case: Case) -> tuple[Group, ...]:
    """Return the groups, those without a place with a mark at the edge of the middle image instead.

    A group without image coordinates turns OHIF's viewport black. An outline of the whole image would be true, but
    its text, which stands to the right of it, is outside the picture; so the mark is a short strip at the left edge,
    each further one below the one before, and its group is called what it is: "Whole image".
    """
    middle = len(case.own.slices) // 2
    rows, columns = image_size(case.ground, middle)
    places = iter(range(len(groups)))
    return tuple(
        group
        if group.region is not None
        else replace(
            group,
            template=Template.PLANAR,
            region=Region(Shape.POLYLINE, mark(rows, columns, next(places)), middle),
        )
        for group in groups
    )


def image_size(given: Ground, index: int) -> tuple[int, int]:
    """Return rows and columns of one slice or image."""
    shape = given.images[index].pixels.shape if isinstance(given, Frames) else given.shape[1:]
    return shape[0], shape[1]


def spacing_of(given: Ground, index: int) -> tuple[float, float] | None:
    """Return the distance of rows and columns of one slice or image in mm, None where it is unknown."""
    return given.images[index].spacing if isinstance(given, Frames) else given.spacing[1:]


def _of_segments(case: Case) -> Iterator[Group]:
    for segment, row in case.filled:
        label = case.card.label(segment.label)
        index = int(row.argmax())
        region = Region(Shape.POLYLINE, outline(plane(segment, index)), index)
        name, uid = tracking(case.work, label.name)
        yield Group(
            name,
            uid,
            sided(label, case.ground, [int(image) for image in np.flatnonzero(row)]),
            Template.VOLUMETRIC if case.has_volume else Template.PLANAR,
            region,
            _with_size(_values(case.findings, label.name), segment, row, case),
            _axes_of_outline(label, region, case.ground),
            classifications=_classifications(case.findings, label.name),
        )


def sided(label: Label, given: Ground, indices: Sequence[int]) -> Label:
    """Return the label with the side that its images say (Image Laterality), where it has no modifier of its own.

    What is seen on images of both sides, or of one without a side, has none: its values are of both.
    """
    if label.modifier is not None or not isinstance(given, Frames):
        return label
    headers = [given.images[index].header for index in indices]
    sides = {header.get("ImageLaterality") or header.get("Laterality") or "" for header in headers}
    return replace(label, modifier=SIDES.get(sides.pop()) if len(sides) == 1 else None)


def _axes_of_outline(label: Label, region: Region, given: Ground) -> tuple[Axis, ...]:
    """Return the diameters of a lesion, from the outline of its largest cross-section."""
    spacing = spacing_of(given, region.index)
    if label.category.value != MORPHOLOGIC_ABNORMALITY.value or spacing is None:
        return ()
    return _axes(diameters(region.points, spacing, region.index), given)


def _axes(found: Diameters | None, given: Ground) -> tuple[Axis, ...]:
    spacing = None if found is None else spacing_of(given, found.index)
    if found is None or spacing is None:
        return ()
    return tuple(
        Axis(concept, length_mm(line, spacing), Region(Shape.POLYLINE, np.asarray(line, np.float32), found.index))
        for concept, line in ((LONG_AXIS, found.long_axis), (SHORT_AXIS, found.short_axis))
    )


def _of_detections(case: Case) -> Iterator[Group]:
    ordinals: Counter[str] = Counter()
    for detection in case.findings.detections:
        ordinals[detection.label] += 1
        name, uid = detection_tracking(case.work, detection.label, ordinals[detection.label])
        region = _place(detection)
        label = case.card.label(detection.label)
        yield Group(
            name,
            uid,
            label if region is None else sided(label, case.ground, [region.index]),
            Template.IMAGE if region is None else Template.PLANAR,
            region,
            detection.measurements,
            _axes(detection.diameters, case.ground),
            detection.probability,
            detection.classifications,
        )


def detection_tracking(work: Work, label: str, ordinal: int) -> tuple[str, str]:
    """Return Tracking Identifier and Tracking UID of the n-th detection of a label, from 1."""
    ending = f" {ordinal}"
    return clean(label, LONG_STRING - len(ending)) + ending, str(work.uid("tracking", label, ordinal))


def _place(detection: Detection) -> Region | None:
    """Return the region of a detection; of one that has diameters only, the quadrangle between their ends."""
    if detection.region is not None or detection.diameters is None:
        return detection.region
    found = detection.diameters
    return Region(Shape.POLYLINE, between(found.long_axis, found.short_axis), found.index)


def _without_place(case: Case, drawn: set[str]) -> Iterator[Group]:
    """Yield a group for each label that has values and no segment, then for the whole image."""
    for label in case.card.labels:
        values = _values(case.findings, label.name)
        if values and label.name not in drawn:
            answers = _classifications(case.findings, label.name)
            yield Group(*tracking(case.work, label.name), label, Template.IMAGE, None, values, classifications=answers)
    if values := _values(case.findings, None):
        name = WHOLE_RECORDING if isinstance(case.given, Waveform) else WHOLE_IMAGE
        yield Group(*tracking(case.work, name), None, Template.IMAGE, None, values)


def _values(findings: Findings, label: str | None) -> tuple[Measurement, ...]:
    return tuple(measurement for measurement in findings.measurements if measurement.label == label)


def _classifications(findings: Findings, label: str | None) -> tuple[Classification, ...]:
    return tuple(one for one in findings.classifications if one.label == label)


def _with_size(
    values: tuple[Measurement, ...], segment: Segment, row: npt.NDArray[np.int64], case: Case
) -> tuple[Measurement, ...]:
    """Return the values, led by the volume, or on images the area, of the voxels where the pipeline gave none."""
    size = _volume(segment, row, case) if case.has_volume else _area(segment, row, case)
    if size is None or any(_same(value.concept, size.concept) for value in values):
        return values
    return (size, *values)


def _volume(segment: Segment, row: npt.NDArray[np.int64], case: Case) -> Measurement:
    return Measurement(VOLUME, int(row.sum()) * case.volume.voxel_ml, MILLILITRE, segment.label)


def _area(segment: Segment, row: npt.NDArray[np.int64], case: Case) -> Measurement | None:
    index = int(row.argmax())
    spacing = spacing_of(case.ground, index)
    if spacing is None:
        return None
    return Measurement(AREA, int(row[index]) * spacing[0] * spacing[1], SQUARE_MILLIMETRE, segment.label)


def _same(first: Code, second: Code) -> bool:
    return (first.value, first.scheme) == (second.value, second.scheme)


def evaluations_of(case: Case, groups: Sequence[Group]) -> tuple[Classification, ...]:
    """Return the answers that no group carries: of the whole image, and of labels that have no group of their own."""
    carried = {id(one) for group in groups for one in group.classifications}
    return tuple(one for one in case.findings.classifications if id(one) not in carried)


def absent_labels(findings: Findings, counts: npt.NDArray[np.int64], card: Card) -> tuple[Label, ...]:
    """Return the labels of the card that were looked for and not found.

    Found is what has a voxel or a detection. Of a label that has only values, answers or a map, and no segment, nothing
    is said.
    """
    found = {segment.label for segment, row in zip(findings.segments, counts, strict=True) if row.any()}
    found |= {detection.label for detection in findings.detections}
    empty = {segment.label for segment in findings.segments} - found
    told: Sequence[Measurement | Classification | Map] = (
        *findings.measurements,
        *findings.classifications,
        *findings.maps,
    )
    spoken_of = {one.label for one in told if one.label is not None} - empty
    answered = {(one.concept.value, one.concept.scheme) for one in findings.classifications if one.label is None}
    spoken_of |= {label.name for label in card.labels if (label.type.value, label.type.scheme) in answered} - empty
    return tuple(label for label in card.labels if label.name not in found | spoken_of)
