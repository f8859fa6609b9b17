"""What pictures and pages say in words: each label's colour, its values, each detection, the whole image."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pacs_ai.encode.pictures.picture import Colour, label_name, readable, spacing_of
from pacs_ai.pipeline import (
    MILLILITRE,
    VOLUME,
    Card,
    Classification,
    Detection,
    Findings,
    Measurement,
    Volume,
    Waveform,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pacs_ai.encode.ground import Shown

Counts = npt.NDArray[np.int64]
WHOLE_IMAGE = "Whole image"
WHOLE_RECORDING = "Whole recording"
NOTHING_FOUND = "Nothing found"
#: UCUM symbols as people write them.
UNITS = {"[hnsf'U]": "HU", "1": "", "{ratio}": "", "ml": "mL"}


@dataclass(frozen=True)
class Line:
    """One line of a legend.

    Parameters
    ----------
    colour
        Of the label; None where nothing is drawn in it.
    name
        Label, detection, or the whole image.
    values
        (what, value with its unit), in characters that the pictures' font has.
    """

    colour: Colour | None
    name: str
    values: tuple[tuple[str, str], ...] = ()


def legend(findings: Findings, card: Card, given: Shown, counts: Counts) -> tuple[Line, ...]:
    """Return a line per label that has a segment or a value, per detection, and for the whole image.

    Parameters
    ----------
    findings, card, given
        What was found, by whom, in what.
    counts
        Voxels of each segment in each slice, (segments, slices).
    """
    lines = tuple(_lines(findings, card, given, counts))
    return lines or (Line(None, NOTHING_FOUND),)


def _lines(findings: Findings, card: Card, given: Shown, counts: Counts) -> Iterator[Line]:
    voxels = {segment.label: int(row.sum()) for segment, row in zip(findings.segments, counts, strict=True)}
    names = detection_names(findings, card)
    for label in card.labels:
        values = _of_label(findings, label.name)
        volume = _volume(given, voxels.get(label.name, 0), findings, label.name)
        found = voxels.get(label.name, 0) > 0
        detected = [each for each in zip(findings.detections, names, strict=True) if each[0].label == label.name]
        if found or values:
            yield Line(label.colour, label_name(card, label.name), (*volume, *values))
        elif label.name in voxels and not detected:
            yield Line(label.colour, label_name(card, label.name), (("not found", ""),))
        for detection, name in detected:
            told = _of_detection(detection, given)
            if told or len(detected) > 1 or not (found or values):  # the label's own line says it
                yield Line(label.colour, name, told)
    whole = _of_label(findings, None)
    if whole:
        yield Line(None, WHOLE_RECORDING if isinstance(given, Waveform) else WHOLE_IMAGE, whole)


def detection_names(findings: Findings, card: Card) -> tuple[str, ...]:
    """Return the name of each detection: its label, numbered where several bear it."""
    totals = Counter(detection.label for detection in findings.detections)
    seen: Counter[str] = Counter()
    names = []
    for detection in findings.detections:
        seen[detection.label] += 1
        number = f" {seen[detection.label]}" if totals[detection.label] > 1 else ""
        names.append(label_name(card, detection.label) + number)
    return tuple(names)


def _of_label(findings: Findings, label: str | None) -> tuple[tuple[str, str], ...]:
    measured = (one for one in findings.measurements if one.label == label)
    return (*_measured(measured), *_classified(one for one in findings.classifications if one.label == label))


def _volume(given: Shown, voxels: int, findings: Findings, label: str) -> tuple[tuple[str, str], ...]:
    """Return the volume from the voxel count, as the SR states it, where the pipeline gave none."""
    stated = any(one.label == label and one.concept.value == VOLUME.value for one in findings.measurements)
    if not voxels or stated or not isinstance(given, Volume):
        return ()
    return _measured([Measurement(VOLUME, voxels * given.voxel_ml, MILLILITRE)])


def _of_detection(detection: Detection, given: Shown) -> tuple[tuple[str, str], ...]:
    likely = () if detection.probability is None else (("Probability", percent(detection.probability)),)
    measured, classified = _measured(detection.measurements), _classified(detection.classifications)
    return (*likely, *_diameters(detection, given), *measured, *classified)


def _diameters(detection: Detection, given: Shown) -> tuple[tuple[str, str], ...]:
    diameters = detection.diameters
    if diameters is None or isinstance(given, Waveform) or (spacing := spacing_of(given, diameters.index)) is None:
        return ()
    step = np.array([spacing[1], spacing[0]])  # points are (column, row)
    lengths = [
        float(np.linalg.norm((np.asarray(axis)[1] - np.asarray(axis)[0]) * step))
        for axis in (diameters.long_axis, diameters.short_axis)
    ]
    return (("Diameters", " x ".join(number(length) for length in lengths) + " mm"),)


def _measured(measurements: Iterable[Measurement]) -> tuple[tuple[str, str], ...]:
    return tuple((readable(_name(one)), f"{number(one.value)} {_unit(one)}".rstrip()) for one in measurements)


def _classified(classifications: Iterable[Classification]) -> tuple[tuple[str, str], ...]:
    return tuple((readable(one.concept.meaning), _answer(one)) for one in classifications)


def _answer(one: Classification) -> str:
    likely = "" if one.probability is None else f" ({percent(one.probability)})"
    return readable(one.value.meaning) + likely


def percent(probability: float) -> str:
    """Return a probability as people read it."""
    return f"{100 * probability:.0f} %"


def _name(measurement: Measurement) -> str:
    """Return a short name: the abbreviation that a long one ends with, else derivation and concept."""
    meaning = measurement.concept.meaning
    short = re.search(r"\(([A-Z][A-Za-z0-9-]{1,9})\)$", meaning)
    if short is not None:
        meaning = short.group(1)
    if measurement.derivation is None:
        return meaning
    word = meaning if meaning[1:2].isupper() else meaning[:1].lower() + meaning[1:]  # "MR signal intensity"
    return f"{measurement.derivation.meaning} {word}"


def number(value: float) -> str:
    """Return a number in three digits or so."""
    if value == 0 or abs(value) >= 100:
        return f"{value:.0f}"
    if abs(value) < 1:
        return f"{value:.3g}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def _unit(measurement: Measurement) -> str:
    unit = measurement.unit.value
    return readable(UNITS.get(unit, unit.strip("{}")))
