"""What a report says: which values belong to which label, and where on a source image they are drawn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pacs_ai.encode.frames import plane
from pacs_ai.encode.outline import outline, whole_frame
from pacs_ai.pipeline import MILLILITRE, VOLUME, Card, Findings, Label, Measurement, Segment, Volume

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    import numpy.typing as npt

    from pacs_ai.dicom.evidence import Evidence, FrameReference

WHOLE_IMAGE = "Whole image"


@dataclass(frozen=True)
class Group:
    """What one measurement group says: of which label, of which region on which received frame, which values."""

    name: str
    label: Label | None
    region: npt.NDArray[np.float32]
    source: FrameReference
    measurements: tuple[Measurement, ...]


def groups_of(
    findings: Findings, counts: npt.NDArray[np.int64], own: Evidence, volume: Volume, card: Card
) -> Iterator[Group]:
    """Yield a group per segment with voxels, then per label that has values only, then for the whole image.

    Groups without a region of their own get the frame of the middle slice, because a measurement group without image
    coordinates turns the viewport of some viewers black.
    """
    drawn = set()
    for segment, row in zip(findings.segments, counts, strict=True):
        if row.any():
            drawn.add(segment.label)
            index = int(row.argmax())
            values = _with_volume(_values(findings, segment.label), segment, int(row.sum()), volume)
            label = card.label(segment.label)
            yield Group(label.name, label, outline(plane(segment, index)), own.slices[index], values)
    middle = own.slices[len(own.slices) // 2]
    frame = whole_frame(volume.voxels.shape[1], volume.voxels.shape[2])
    for label in card.labels:
        values = _values(findings, label.name)
        if values and label.name not in drawn:
            yield Group(label.name, label, frame, middle, values)
    if values := _values(findings, None):
        yield Group(WHOLE_IMAGE, None, frame, middle, values)


def _values(findings: Findings, label: str | None) -> tuple[Measurement, ...]:
    return tuple(measurement for measurement in findings.measurements if measurement.label == label)


def _with_volume(
    values: tuple[Measurement, ...], segment: Segment, voxels: int, volume: Volume
) -> tuple[Measurement, ...]:
    """Return the values, led by the volume from the voxel count where the pipeline gave none."""
    if any((value.concept.value, value.concept.scheme) == (VOLUME.value, VOLUME.scheme) for value in values):
        return values
    return (Measurement(VOLUME, voxels * volume.voxel_ml, MILLILITRE, segment.label), *values)


def absent_labels(findings: Findings, counts: npt.NDArray[np.int64], card: Card) -> tuple[Label, ...]:
    """Return the labels of the card that no voxel bears."""
    found = {segment.label for segment, row in zip(findings.segments, counts, strict=True) if row.any()}
    return tuple(label for label in card.labels if label.name not in found)
