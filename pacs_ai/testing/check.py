"""What the author of a pipeline runs before a hospital does: card, findings, repetition, odd input.

``check_pipeline(MyLiver(), {"image": volume})`` returns the findings, or raises with a sentence that says what is
wrong. It runs on the CPU, on the inputs given; without any, a CT input gets a small chest phantom, and an input
of images (`Input.given` is "frames") that phantom's radiograph.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np

from pacs_ai.errors import PipelineFault, Refused, UserError
from pacs_ai.infer import contract
from pacs_ai.pipeline import Pipeline
from pacs_ai.testing.inputs import digest_findings, digest_inputs, odd_inputs, phantom_inputs

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from pacs_ai.pipeline import Card, Classification, Code, Detection, Findings, Given, Measurement, Segment

#: Longest Code Value (SH), Coding Scheme Designator (SH) and Code Meaning (LO), PS3.5 6.2.
_CODE_LENGTHS = {"value": 16, "scheme": 16, "meaning": 64}


def check_pipeline(pipeline: Pipeline, inputs: Mapping[str, Given] | None = None) -> Findings:
    """Check that a pipeline keeps its contract.

    Its card is complete and can be coded; it runs on the given inputs and leaves them as they were; its findings
    lie on the grid and inside the images, carry labels of the card, codes that fit, probabilities from 0 to 1 and
    finite measurements in UCUM units; the same input gives the same findings again; on nothing but air and on nothing
    but noise it finds something valid, nothing, or refuses.

    Parameters
    ----------
    pipeline
        The pipeline, not prepared yet.
    inputs
        Input name -> volume or images; None: a chest phantom of 60 x 128 x 128 voxels for each CT input, a radiograph
        of it for each input of images.

    Returns
    -------
    Findings
        What it found on the inputs.

    Raises
    ------
    PipelineFault
        The first breach of the contract, in words.
    Refused
        The pipeline refused the inputs: give it some that it accepts.
    UserError
        No inputs were given, and the card wants volumes of another modality than CT.
    """
    if not isinstance(pipeline, Pipeline):
        raise PipelineFault(f"{type(pipeline).__name__} is no pipeline: it needs card, prepare(device) and run(inputs)")
    card = pipeline.card
    check_card(card)
    given = dict(inputs) if inputs is not None else phantom_inputs(card)
    if given.keys() != card.inputs.keys():
        raise UserError(f"give one volume for each input of the card: {', '.join(card.inputs)}")
    pipeline.prepare("cpu")
    before = digest_inputs(given)
    findings = pipeline.run(given)
    check_findings(card, given, findings)
    again = pipeline.run(given)
    if digest_inputs(given) != before:
        raise PipelineFault("run() changed the voxels of its input: copy them before writing")
    if digest_findings(findings) != digest_findings(again):
        raise PipelineFault("the same input gave other findings the second time: seed what is random")
    for word, odd in odd_inputs(given):
        _check_odd(pipeline, word, odd)
    return findings


def check_card(card: Card) -> None:
    """Check that a card can be written into DICOM objects; PipelineFault where it cannot."""
    for keyword in ("name", "version", "manufacturer", "title"):
        text = getattr(card, keyword)
        if not text.strip() or len(text) > 64:
            raise PipelineFault(f"the card's {keyword} has to be 1 to 64 characters long, not {len(text)}")
    if not card.intended_use.strip():
        raise PipelineFault("the card does not say what the pipeline is intended for")
    if not card.inputs:
        raise PipelineFault("the card declares no input")
    for name, accepted in card.inputs.items():
        if not accepted.modality or not all(re.fullmatch(r"[A-Z0-9_ ]{1,16}", m) for m in accepted.modality):
            raise PipelineFault(f"input {name!r}: its modalities have to be values of Modality (0008,0060), as 'CT'")
    if card.model_digest and not re.fullmatch(r"[0-9a-f]{64}", card.model_digest):
        raise PipelineFault("the card's model_digest is no SHA-256 in lower-case hexadecimal")
    _check_code(card.procedure, "the card's procedure")
    _check_labels(card)


def check_findings(card: Card, inputs: Mapping[str, Given], findings: Findings) -> None:
    """Check findings against the card and the inputs that they were made from; PipelineFault where they disagree.

    What the node itself checks (`pacs_ai.infer.contract`), and that every code can be written into DICOM objects.
    """
    contract.check(card, inputs, findings)
    for segment in findings.segments:
        _check_number(segment)
    _check_measurements(findings.measurements)
    _check_classifications(findings.classifications)
    for detection in findings.detections:
        _check_detection(detection)
    for one in findings.maps:
        what = f"map {one.name!r}"
        _check_code(one.concept, what)
        _check_unit(one.unit, what)
    for derived in findings.images:
        _check_code(derived.derivation, f"derived series {derived.title!r}: its derivation")


def _check_labels(card: Card) -> None:
    names = [label.name for label in card.labels]
    if len(set(names)) < len(names):
        raise PipelineFault("two labels of the card bear the same name")
    for label in card.labels:
        if not label.name.strip() or len(label.name) > 64:
            raise PipelineFault(f"label {label.name!r}: a Segment Label (0062,0005) has 1 to 64 characters")
        _check_code(label.category, f"label {label.name!r}: its category")
        _check_code(label.type, f"label {label.name!r}: its type")
        if label.modifier is not None:
            _check_code(label.modifier, f"label {label.name!r}: its modifier")
        if not all(0 <= part <= 255 for part in label.colour):
            raise PipelineFault(f"label {label.name!r}: its colour has to be red, green and blue from 0 to 255")


def _check_code(code: Code, what: str) -> None:
    for part, longest in _CODE_LENGTHS.items():
        text = getattr(code, part)
        if not text.strip() or len(text) > longest:
            raise PipelineFault(f"{what}: the code's {part} has to be 1 to {longest} characters long, not {text!r}")


def _check_number(segment: Segment) -> None:
    dtype = segment.voxels.dtype
    if dtype.kind == "u" and segment.number > np.iinfo(dtype).max:
        raise PipelineFault(f"segment {segment.label!r}: its number {segment.number} cannot stand in {dtype} voxels")


def _check_measurements(measurements: Iterable[Measurement]) -> None:
    for one in measurements:
        what = f"measurement {one.concept.meaning!r}"
        _check_code(one.concept, what)
        _check_unit(one.unit, what)
        for code in (one.method, one.derivation):
            if code is not None:
                _check_code(code, f"{what}: its method or derivation")


def _check_unit(unit: Code, what: str) -> None:
    _check_code(unit, f"{what}: its unit")
    if unit.scheme != "UCUM":
        raise PipelineFault(f"{what}: its unit has to be a UCUM code, not one of {unit.scheme}")


def _check_classifications(classifications: Iterable[Classification]) -> None:
    for one in classifications:
        _check_code(one.concept, f"classification {one.concept.meaning!r}")
        _check_code(one.value, f"classification {one.concept.meaning!r}: its answer")


def _check_detection(detection: Detection) -> None:
    _check_measurements(detection.measurements)
    _check_classifications(detection.classifications)


def _check_odd(pipeline: Pipeline, word: str, inputs: Mapping[str, Given]) -> None:
    try:
        findings = pipeline.run(inputs)
    except Refused:
        return
    except Exception as error:
        raise PipelineFault(
            f"run() raised {type(error).__name__} on {word}: {error}. Raise pacs_ai.errors.Refused with the reason, "
            "or return empty findings"
        ) from error
    check_findings(pipeline.card, inputs, findings)
