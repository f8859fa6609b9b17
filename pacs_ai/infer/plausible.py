"""The output gate: whether what was found can be, by the ranges and the questions that the card states."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pacs_ai.encode.ground import shown_as
from pacs_ai.errors import PipelineFault, Reason, Refused
from pacs_ai.pipeline import MILLILITRE, VOLUME, Measurement, Volume

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pacs_ai.pipeline import Card, Classification, Code, Expected, Findings, Given, Question


#: UCUM units that may stand for one another -> how much of the first of their kind each is.
SCALES: Mapping[str, tuple[str, float]] = {
    "ml": ("volume", 1.0), "mL": ("volume", 1.0), "cm3": ("volume", 1.0), "mm3": ("volume", 1e-3),
    "l": ("volume", 1e3), "L": ("volume", 1e3),
    "mm": ("length", 1.0), "cm": ("length", 10.0), "m": ("length", 1e3),
    "mm2": ("area", 1.0), "cm2": ("area", 100.0), "ms": ("time", 1.0), "s": ("time", 1e3),
}  # fmt: skip


def remarks_on(card: Card, inputs: Mapping[str, Given], findings: Findings) -> tuple[str, ...]:
    """Return for each value outside of its expected range a sentence for the reader.

    Of a segment whose volume the pipeline does not state, the volume of its voxels counts; of one without voxels it
    is 0.

    Raises
    ------
    Refused
        Where a value lies outside of a range that refuses, or a segment of a volume is all of it.
    PipelineFault
        Where an answer is given that the card does not have, or may not be given, or a value in a unit that cannot be
        compared with its range's.
    """
    _check_answers(card, findings)
    _check_whole(inputs, findings)
    told = []
    for expected in card.expected:
        for value in _values(expected, inputs, findings):
            if expected.low <= value <= expected.high:
                continue
            remark = _remark(expected, value)
            if expected.refuse:
                raise Refused(f"{remark}; the result was withheld", Reason.IMPLAUSIBLE_RESULT)
            told.append(remark)
    return tuple(dict.fromkeys(told))


def _remark(expected: Expected, value: float) -> str:
    of = f" of {expected.label}" if expected.label else ""
    unit = expected.unit.meaning
    return (
        f"{expected.concept.meaning}{of} is {value:.4g} {unit}, outside the expected range of "
        f"{expected.low:g} to {expected.high:g} {unit}"
    )


def _values(expected: Expected, inputs: Mapping[str, Given], findings: Findings) -> Iterator[float]:
    stated = [one for one in findings.measurements if one.label == expected.label and _is(one.concept, expected)]
    stated += [
        one
        for detection in findings.detections
        if detection.label == expected.label
        for one in detection.measurements
        if _is(one.concept, expected)
    ]
    yield from (_in_unit(one, expected) for one in stated)
    if not stated and _is(VOLUME, expected) and _same(expected.unit, MILLILITRE):
        yield from _volumes(expected, inputs, findings)


def _in_unit(stated: Measurement, expected: Expected) -> float:
    """Return a value in the unit of its range."""
    if _same(stated.unit, expected.unit):
        return stated.value
    kind, scale = SCALES.get(stated.unit.value, ("", 1.0))
    wanted, divisor = SCALES.get(expected.unit.value, ("none", 1.0))
    if kind != wanted:
        of = f" of {expected.label}" if expected.label else ""
        raise PipelineFault(
            f"the pipeline states {expected.concept.meaning}{of} in {stated.unit.value}, its card expects it in "
            f"{expected.unit.value}"
        )
    return stated.value * scale / divisor


def _volumes(expected: Expected, inputs: Mapping[str, Given], findings: Findings) -> Iterator[float]:
    given = shown_as(inputs[findings.grid]) if findings.grid in inputs else None
    if isinstance(given, Volume):
        for segment in findings.segments:
            if segment.label == expected.label:
                yield int(np.count_nonzero(segment.mask)) * given.voxel_ml


def _is(concept: Code, expected: Expected) -> bool:
    return _same(concept, expected.concept)


def _same(one: Code, other: Code) -> bool:
    return (one.value, one.scheme) == (other.value, other.scheme)


def _check_whole(inputs: Mapping[str, Given], findings: Findings) -> None:
    """Refuse a segment that is all of its volume: no structure is, and a model that broke down says so."""
    if findings.segments and isinstance(shown_as(inputs[findings.grid]), Volume):
        for segment in findings.segments:
            if segment.voxels.size > 1 and bool(segment.mask.all()):
                raise Refused(
                    f"{segment.label} would be the whole image, which cannot be; the result was withheld",
                    Reason.IMPLAUSIBLE_RESULT,
                )


def _check_answers(card: Card, findings: Findings) -> None:
    every = [*findings.classifications, *(one for found in findings.detections for one in found.classifications)]
    for answer in every:
        asked = [question for question in card.questions if _answers(answer, question)]
        if asked and not any(question.reported for question in asked):
            raise PipelineFault(
                f"{card.name} answers '{asked[0].name}', for which its card says that it is no better than chance: "
                "leave the answer out"
            )
        if card.questions and not asked and answer.probability is not None:
            raise PipelineFault(
                f"{card.name} gives a probability for '{answer.concept.meaning}: {answer.value.meaning}', which is no "
                "question of its card"
            )


def _answers(answer: Classification, question: Question) -> bool:
    values = [question.positive, *([question.negative] if question.negative is not None else [])]
    return _same(answer.concept, question.concept) and any(_same(answer.value, value) for value in values)
