"""What a pipeline may be given, and what it must give back; both checked at the border, with reasons in words."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pacs_ai.encode.case import first_of_study
from pacs_ai.encode.check import check_findings
from pacs_ai.errors import PipelineFault, Reason, Refused
from pacs_ai.infer.admission import admit
from pacs_ai.pipeline import Findings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pacs_ai.pipeline import Card, Given


def accept(card: Card, inputs: Mapping[str, Given]) -> tuple[str, ...]:
    """Return what is unusual about the inputs, in words.

    Raises
    ------
    Refused
        Where they are not what the card accepts, or hold nothing that can be analysed.
    """
    missing = sorted(set(card.inputs) - set(inputs))
    if missing:
        words = f"{', '.join(missing)} missing: {card.title} needs {', '.join(card.inputs)}"
        raise Refused(words, Reason.MISSING_INPUT)
    return tuple(note for name, wanted in card.inputs.items() for note in admit(name, inputs[name], wanted, card))


def check(card: Card, inputs: Mapping[str, Given], findings: object) -> Findings:
    """Return the findings, which keep the contract of `pacs_ai.pipeline`.

    Findings that lie on no grid are given the first input's.

    Raises
    ------
    PipelineFault
        The first breach, in words.
    """
    if not isinstance(findings, Findings):
        raise PipelineFault(f"{card.name} returned {type(findings).__name__}, not Findings")
    on_a_grid = findings.segments or findings.detections or findings.maps or findings.images
    if not on_a_grid and findings.grid not in inputs:
        findings = replace(findings, grid=first_of_study(inputs))
    check_findings(findings, card, inputs)
    return findings
