"""What the PACS received, read again as a viewer would: the masks of a SEG and the measured values of an SR."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from pydicom import dcmread

from pacs_ai.pipeline import Code, Measurement, Segment

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from pydicom import Dataset

    from pacs_ai.dicom.evidence import FrameReference

# Concepts of PS3.16 TID 1500 and TID 1411, in DCM.
_MEASUREMENT_GROUP = "125007"
_TRACKING_UID = "112040"
_DERIVATION = "121401"
#: Relationships of items that say who observed and how, not what was found.
_CONTEXT = {"HAS OBS CONTEXT", "HAS CONCEPT MOD"}


@dataclass(frozen=True)
class Received:
    """One SEG as received.

    Parameters
    ----------
    segments
        In the order of the Segment Sequence, masks (slices, rows, columns) in the order of the source slices.
    labels
        Tracking UID -> Segment Label: an SR's measurement group names its segment by the Tracking UID.
    """

    segments: tuple[Segment, ...]
    labels: dict[str, str]


def cited(path: Path) -> list[str]:
    """Return the SOP Instance UIDs of the images that a SEG was made from (PS3.3 C.12.2)."""
    ds = dcmread(path, stop_before_pixels=True)
    return [
        str(instance.ReferencedSOPInstanceUID)
        for series in ds.ReferencedSeriesSequence
        for instance in series.ReferencedInstanceSequence
    ]


def read_segmentation(path: Path, slices: Sequence[FrameReference]) -> Received:
    """Decode a binary SEG (PS3.3 A.51) onto the grid of its source.

    Parameters
    ----------
    path
        The SEG.
    slices
        The source frame of each slice of the grid.

    Raises
    ------
    KeyError
        Where a frame is derived from none of the slices.
    """
    ds = dcmread(path)
    places = {(ref.sop_instance_uid, ref.frame_number): index for index, ref in enumerate(slices)}
    shape = (len(slices), int(ds.Rows), int(ds.Columns))
    masks = {int(item.SegmentNumber): np.zeros(shape, np.bool_) for item in ds.SegmentSequence}
    pixels = np.frombuffer(ds.PixelData, np.uint8)
    bits = shape[1] * shape[2]
    shared = ds.SharedFunctionalGroupsSequence[0]
    for index, groups in enumerate(ds.PerFrameFunctionalGroupsSequence):
        identified = groups if "SegmentIdentificationSequence" in groups else shared
        number = int(identified.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
        masks[number][places[_source(groups)]] = _frame(pixels, index * bits, bits).reshape(shape[1:])
    return Received(
        segments=tuple(Segment(str(item.SegmentLabel), masks[int(item.SegmentNumber)]) for item in ds.SegmentSequence),
        labels={str(item.TrackingUID): str(item.SegmentLabel) for item in ds.SegmentSequence},
    )


def _source(groups: Dataset) -> tuple[str, int | None]:
    """Return the one source frame of a SEG's frame (PS3.3 C.7.6.16.2.6)."""
    source = groups.DerivationImageSequence[0].SourceImageSequence[0]
    frame = source.get("ReferencedFrameNumber")
    return str(source.ReferencedSOPInstanceUID), None if frame is None else int(frame)


def _frame(pixels: npt.NDArray[np.uint8], first: int, bits: int) -> npt.NDArray[np.bool_]:
    """Return the bits of one frame, first pixel in the lowest bit; frames follow without padding (PS3.5 8.1.1)."""
    span = pixels[first // 8 : -(-(first + bits) // 8)]
    return np.unpackbits(span, bitorder="little")[first % 8 : first % 8 + bits].view(np.bool_)


def read_values(path: Path, labels: dict[str, str]) -> tuple[Measurement, ...]:
    """Return the measured values of an SR (PS3.16 TID 1411), each with the label of the segment that it belongs to.

    Parameters
    ----------
    path
        The SR.
    labels
        Tracking UID -> Segment Label, of the SEG; groups of no segment belong to the whole image.
    """
    values: list[Measurement] = []
    for group in _containers(dcmread(path)):
        tracked = [str(item.UID) for item in group.ContentSequence if _concept(item) == _TRACKING_UID]
        label = labels.get(tracked[0]) if tracked else None
        values += [_measurement(item, label) for item in group.ContentSequence if item.ValueType == "NUM"]
    return tuple(values)


def read_text_report(path: Path) -> tuple[str, ...]:
    """Return what a Basic Text SR (PS3.3 A.35.1) reports, line by line, in the order of its content tree."""
    return tuple(line for text in _texts(dcmread(path)) for line in text.splitlines())


def _texts(item: Dataset) -> Iterator[str]:
    if item.get("TextValue"):
        yield str(item.TextValue)
    for child in item.get("ContentSequence", ()):
        if child.get("RelationshipType") not in _CONTEXT:
            yield from _texts(child)


def _containers(item: Dataset) -> Iterator[Dataset]:
    for child in item.get("ContentSequence", ()):
        if child.ValueType == "CONTAINER" and _concept(child) == _MEASUREMENT_GROUP:
            yield child
        else:
            yield from _containers(child)


def _concept(item: Dataset) -> str:
    names = item.get("ConceptNameCodeSequence")
    return str(names[0].CodeValue) if names else ""


def _measurement(item: Dataset, label: str | None) -> Measurement:
    measured = item.MeasuredValueSequence[0]
    derived = [
        _code(child.ConceptCodeSequence[0])
        for child in item.get("ContentSequence", ())
        if _concept(child) == _DERIVATION and child.ValueType == "CODE"
    ]
    return Measurement(
        concept=_code(item.ConceptNameCodeSequence[0]),
        value=float(measured.NumericValue),
        unit=_code(measured.MeasurementUnitsCodeSequence[0]),
        label=label,
        derivation=derived[0] if derived else None,
    )


def _code(ds: Dataset) -> Code:
    return Code(str(ds.CodeValue), str(ds.CodingSchemeDesignator), str(ds.CodeMeaning))
