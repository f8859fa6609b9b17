"""What the author of a pipeline runs before a hospital does: card, findings, repetition, odd input.

``check_pipeline(MyLiver(), {"image": volume})`` returns the findings, or raises with a sentence that says what is
wrong. It runs on the CPU, on the volumes given; without any, a CT input gets a small chest phantom.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from pacs_ai.errors import PipelineFault, Refused, UserError
from pacs_ai.pipeline import Pipeline
from pacs_ai.testing.phantom import Phantom

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pacs_ai.pipeline import Card, Code, Findings, Measurement, Segment, Volume

_SMALL = Phantom(slices=60, rows=128, columns=128)
#: Longest Code Value (SH), Coding Scheme Designator (SH) and Code Meaning (LO), PS3.5 6.2.
_CODE_LENGTHS = {"value": 16, "scheme": 16, "meaning": 64}


def check_pipeline(pipeline: Pipeline, inputs: Mapping[str, Volume] | None = None) -> Findings:
    """Check that a pipeline keeps its contract.

    Its card is complete and can be coded; it runs on the given volumes and leaves them as they were; its findings
    lie on the grid, carry labels of the card, and finite measurements in UCUM units; the same input gives the same
    findings again; on nothing but air and on nothing but noise it finds something valid, nothing, or refuses.

    Parameters
    ----------
    pipeline
        The pipeline, not prepared yet.
    inputs
        Input name -> volume; None: a chest phantom of 60 x 128 x 128 voxels for each CT input.

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
        No inputs were given, and the card wants other modalities than CT.
    """
    if not isinstance(pipeline, Pipeline):
        raise PipelineFault(f"{type(pipeline).__name__} is no pipeline: it needs card, prepare(device) and run(inputs)")
    card = pipeline.card
    check_card(card)
    volumes = dict(inputs) if inputs is not None else _phantoms(card)
    if volumes.keys() != card.inputs.keys():
        raise UserError(f"give one volume for each input of the card: {', '.join(card.inputs)}")
    pipeline.prepare("cpu")
    before = _digest_inputs(volumes)
    findings = pipeline.run(volumes)
    check_findings(card, volumes, findings)
    again = pipeline.run(volumes)
    if _digest_inputs(volumes) != before:
        raise PipelineFault("run() changed the voxels of its input: copy them before writing")
    if _digest_findings(findings) != _digest_findings(again):
        raise PipelineFault("the same input gave other findings the second time: seed what is random")
    for word, odd in _odd_inputs(volumes):
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


def check_findings(card: Card, inputs: Mapping[str, Volume], findings: Findings) -> None:
    """Check findings against the card and the inputs that they were made from; PipelineFault where they disagree."""
    if findings.grid not in inputs:
        raise PipelineFault(f"the findings lie on the grid of {findings.grid!r}, which is no input of the card")
    labels = {label.name for label in card.labels}
    names = [segment.label for segment in findings.segments]
    if len(set(names)) < len(names):
        raise PipelineFault("two segments bear the same label")
    for segment in findings.segments:
        _check_segment(segment, labels, inputs[findings.grid].voxels.shape)
    for measurement in findings.measurements:
        _check_measurement(measurement, labels)


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


def _check_segment(segment: Segment, labels: set[str], shape: tuple[int, ...]) -> None:
    what = f"segment {segment.label!r}"
    if segment.label not in labels:
        raise PipelineFault(f"{what}: the card has no such label")
    voxels = segment.voxels
    if voxels.shape != shape:
        raise PipelineFault(f"{what}: its shape is {voxels.shape}, the input's is {shape} (slices, rows, columns)")
    if voxels.dtype.kind not in "bu":
        raise PipelineFault(f"{what}: its voxels are {voxels.dtype}; they have to be bool or unsigned integers")
    if segment.number < 1 or (voxels.dtype.kind == "u" and segment.number > np.iinfo(voxels.dtype).max):
        raise PipelineFault(f"{what}: its number {segment.number} cannot stand in {voxels.dtype} voxels")


def _check_measurement(measurement: Measurement, labels: set[str]) -> None:
    what = f"measurement {measurement.concept.meaning!r}"
    _check_code(measurement.concept, what)
    _check_code(measurement.unit, f"{what}: its unit")
    for code in (measurement.method, measurement.derivation):
        if code is not None:
            _check_code(code, f"{what}: its method or derivation")
    if measurement.unit.scheme != "UCUM":
        raise PipelineFault(f"{what}: its unit has to be a UCUM code, not one of {measurement.unit.scheme}")
    if not np.isfinite(measurement.value):
        raise PipelineFault(f"{what}: its value {measurement.value} is no number; leave it out where there is none")
    if measurement.label is not None and measurement.label not in labels:
        raise PipelineFault(f"{what}: the card has no label {measurement.label!r}")


def _phantoms(card: Card) -> dict[str, Volume]:
    other = [name for name, accepted in card.inputs.items() if "CT" not in accepted.modality]
    if other:
        raise UserError(f"give volumes for {', '.join(other)}: the phantom is a CT")
    volume = _SMALL.volume()
    return dict.fromkeys(card.inputs, volume)


def _odd_inputs(inputs: Mapping[str, Volume]) -> Iterator[tuple[str, dict[str, Volume]]]:
    """Yield the inputs with air instead of the patient, and with noise."""
    rng = np.random.default_rng(0)
    yield "nothing but air", {n: replace(v, voxels=np.full_like(v.voxels, -1000)) for n, v in inputs.items()}
    yield (
        "nothing but noise",
        {
            n: replace(v, voxels=rng.integers(-1000, 1000, v.voxels.shape, dtype=np.int16).astype(v.voxels.dtype))
            for n, v in inputs.items()
        },
    )


def _check_odd(pipeline: Pipeline, word: str, inputs: Mapping[str, Volume]) -> None:
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


def _digest_inputs(inputs: Mapping[str, Volume]) -> str:
    total = hashlib.sha256()
    for name, volume in sorted(inputs.items()):
        total.update(name.encode())
        total.update(np.ascontiguousarray(volume.voxels).tobytes())
        total.update(np.ascontiguousarray(volume.affine).tobytes())
    return total.hexdigest()


def _digest_findings(findings: Findings) -> str:
    total = hashlib.sha256(repr((findings.grid, findings.measurements)).encode())
    for segment in findings.segments:
        total.update(f"{segment.label} {segment.number}".encode())
        total.update(np.packbits(segment.mask).tobytes())
    return total.hexdigest()
