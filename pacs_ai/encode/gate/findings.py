"""Refuses findings that fit nothing: unknown labels, other shapes, numbers that are none, places outside the image."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from pacs_ai.encode.reports.outline import MAX_POINTS
from pacs_ai.errors import PipelineFault
from pacs_ai.pipeline import Frames, Shape, Waveform

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from pacs_ai.pipeline import (
        Array,
        Card,
        Classification,
        Derived,
        Detection,
        Diameters,
        Findings,
        Given,
        Map,
        Measurement,
        Region,
        Segment,
    )

#: Fewest and most points of each shape (PS3.3 C.18.6.1.2).
POINTS = {Shape.POINT: (1, 1), Shape.POLYLINE: (2, MAX_POINTS), Shape.ELLIPSE: (4, 4)}
#: A point may lie by this much outside the image, in pixels: float32 rounds.
EDGE = 1e-3
LONG_STRING = 64


def check_findings(findings: Findings, card: Card, inputs: Mapping[str, Given]) -> None:
    """Hold the findings against the card and the input that they were made from.

    Raises
    ------
    PipelineFault
        A label that the card lacks, voxels of another shape or without a number, a place outside its image, a
        probability beyond 0 to 1, a measurement that is no finite number.
    """
    if findings.grid not in inputs:
        raise PipelineFault(f"the findings lie on the input '{findings.grid}', which the pipeline was not given")
    names, given = {label.name for label in card.labels}, inputs[findings.grid]
    seen: set[str] = set()
    for segment in findings.segments:
        _check_segment(segment, names, seen, given)
        seen.add(segment.label)
    _check_measurements(findings.measurements, names)
    _check_classifications(findings.classifications, names)
    for detection in findings.detections:
        _check_detection(detection, names, given)
    titles = [one.name for one in findings.maps] + [one.title for one in findings.images]
    if len(set(titles)) < len(titles):
        raise PipelineFault("two maps or derived series bear one name; a reader could not tell them apart")
    for one in findings.maps:
        _check_map(one, names, given)
    for derived in findings.images:
        _check_derived(derived, given)


def _check_label(label: str | None, names: set[str], what: str) -> None:
    if label is not None and label not in names:
        raise PipelineFault(f"{what} the label '{label}', which the card does not have")


def _check_shape(voxels: Array, given: Given, what: str) -> None:
    if isinstance(given, Waveform):
        raise PipelineFault(f"{what} lies on a waveform, which has no voxels; it has measurements and answers")
    if given.shape is None:
        raise PipelineFault(f"{what} lies on images of different sizes; such findings are detections or measurements")
    if voxels.shape != given.shape:
        raise PipelineFault(
            f"{what} has the shape {voxels.shape}, the input {given.shape}: it must lie on the grid of its input"
        )


def _check_segment(segment: Segment, names: set[str], seen: set[str], given: Given) -> None:
    name = f"the segment '{segment.label}'"
    _check_label(segment.label, names, "a segment has")
    if segment.label in seen:
        raise PipelineFault(f"the pipeline returned {name} twice; a label has one segment")
    _check_shape(segment.voxels, given, name)
    if segment.voxels.dtype.kind not in "bu":
        raise PipelineFault(f"{name} has the type {segment.voxels.dtype}; it must be bool or an unsigned integer")
    if segment.number < 1:
        raise PipelineFault(f"{name} has the number {segment.number}; numbers begin at 1")


def _check_measurements(measurements: Iterable[Measurement], names: set[str] | None) -> None:
    for one in measurements:
        if names is not None:
            _check_label(one.label, names, "a measurement is of")
        if not math.isfinite(one.value):
            raise PipelineFault(f"the measurement '{one.concept.meaning}' is {one.value}, not a number")


def _check_classifications(classifications: Iterable[Classification], names: set[str] | None) -> None:
    for one in classifications:
        if names is not None:
            _check_label(one.label, names, "a classification is of")
        _check_probability(one.probability, f"the classification '{one.concept.meaning}'")


def _check_probability(probability: float | None, what: str) -> None:
    if probability is not None and not 0 <= probability <= 1:
        raise PipelineFault(f"{what} has the probability {probability}; it must lie between 0 and 1")


def _check_detection(detection: Detection, names: set[str], given: Given) -> None:
    name = f"the detection of '{detection.label}'"
    _check_label(detection.label, names, "a detection has")
    _check_probability(detection.probability, name)
    _check_measurements(detection.measurements, None)
    _check_classifications(detection.classifications, None)
    if detection.region is None and detection.diameters is None:
        raise PipelineFault(f"{name} has no place: give it a region or diameters")
    if detection.region is not None:
        _check_region(detection.region, given, name)
    if detection.diameters is not None:
        _check_diameters(detection.diameters, given, name)


def _check_region(region: Region, given: Given, name: str) -> None:
    fewest, most = POINTS[region.shape]
    if not fewest <= len(region.points) <= most:
        raise PipelineFault(
            f"{name} has a {region.shape} of {len(region.points)} points; it may have {fewest} to {most}"
        )
    _check_place(region.points, region.index, given, name)


def _check_diameters(diameters: Diameters, given: Given, name: str) -> None:
    for axis in (diameters.long_axis, diameters.short_axis):
        if np.shape(axis) != (2, 2):
            raise PipelineFault(f"{name} has an axis of the shape {np.shape(axis)}; it must be (2, 2): two points")
        _check_place(axis, diameters.index, given, name)


def _check_place(points: Array, index: int, given: Given, name: str) -> None:
    """Refuse points outside the image; (0, 0) is the outer corner of its first pixel."""
    if isinstance(given, Waveform):
        raise PipelineFault(f"{name} lies on a waveform, which has no images")
    count = len(given.images) if isinstance(given, Frames) else given.shape[0]
    if not 0 <= index < count:
        raise PipelineFault(f"{name} lies on the image {index}; there are {count}, counted from 0")
    rows, columns = given.images[index].pixels.shape[:2] if isinstance(given, Frames) else given.shape[1:]
    at = np.asarray(points, np.float64)
    if at.ndim != 2 or at.shape[1] != 2:
        raise PipelineFault(f"{name} has points of the shape {at.shape}; they must be (points, 2): column, row")
    inside = np.isfinite(at).all() and at.min() >= -EDGE and at[:, 0].max() <= columns + EDGE
    if not inside or at[:, 1].max() > rows + EDGE:
        raise PipelineFault(f"{name} leaves its image of {columns} x {rows} pixels")


def _check_map(one: Map, names: set[str], given: Given) -> None:
    name = f"the map '{one.name}'"
    if not 0 < len(one.name) <= LONG_STRING:
        raise PipelineFault(f"a map's name has {len(one.name)} characters; it must have 1 to {LONG_STRING}")
    _check_label(one.label, names, "a map is of")
    _check_shape(one.voxels, given, name)
    if one.voxels.dtype != np.float32:
        raise PipelineFault(f"{name} has the type {one.voxels.dtype}; it must be float32")
    low, high = _range(one.voxels, name)
    if one.label is not None and (low < 0 or high > 1):
        raise PipelineFault(f"{name} runs from {low:g} to {high:g}; the probability of a label lies between 0 and 1")


def _check_derived(derived: Derived, given: Given) -> None:
    name = f"the derived series '{derived.title}'"
    _check_shape(derived.voxels, given, name)
    if derived.voxels.dtype.kind not in "iuf":
        raise PipelineFault(f"{name} has the type {derived.voxels.dtype}; it must be numbers")
    _range(derived.voxels, name)


def _range(voxels: Array, name: str) -> tuple[float, float]:
    """Return the smallest and the largest value; NaN and infinity show in one of them."""
    low, high = float(voxels.min()), float(voxels.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise PipelineFault(f"{name} holds a value that is not a finite number")
    return low, high
