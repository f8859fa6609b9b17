"""What a pipeline may be given, and what it must give back; both checked at the border, with reasons in words."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from pacs_ai.encode.case import first_of_study
from pacs_ai.encode.check import check_findings
from pacs_ai.errors import PipelineFault, Refused
from pacs_ai.pipeline import Findings, Frames, Volume

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pacs_ai.pipeline import Array, Card, Given, Input

#: Hounsfield units of 12 bits. A scanner's padding lies below, implants on an extended scale above: that is told, but
#: a CT with no voxel inside is none.
USUAL_HU = (-1024, 3071)


def accept(card: Card, inputs: Mapping[str, Given]) -> tuple[str, ...]:
    """Return what is unusual about the inputs, in words.

    Raises
    ------
    Refused
        Where they are not what the card accepts, or hold nothing that can be analysed.
    """
    missing = sorted(set(card.inputs) - set(inputs))
    if missing:
        raise Refused(f"{', '.join(missing)} missing: {card.title} needs {', '.join(card.inputs)}")
    notes: list[str] = []
    for name, wanted in card.inputs.items():
        given = inputs[name]
        if given.modality not in wanted.modality:
            raise Refused(
                f"{name} is {given.modality or 'without Modality'}; {card.title} takes {' or '.join(wanted.modality)}"
            )
        if isinstance(given, Frames):
            _accept_frames(name, given, wanted, card)
        elif isinstance(given, Volume):
            _accept_volume(name, given, wanted, card)
            notes += _unusual(name, given)
    return tuple(notes)


def _accept_volume(name: str, volume: Volume, wanted: Input, card: Card) -> None:
    slices, spacing = volume.shape[0], volume.spacing[0]
    if slices < wanted.min_slices:
        raise Refused(f"{name} has {slices} slices; {card.title} needs at least {wanted.min_slices}")
    if wanted.max_slice_spacing_mm is not None and spacing > wanted.max_slice_spacing_mm + 1e-3:
        raise Refused(
            f"{name} has slices {spacing:.2f} mm apart; {card.title} takes at most {wanted.max_slice_spacing_mm:g} mm"
        )
    low, high = _range(volume.voxels, name)
    if low == high:
        raise Refused(f"{name} is empty: every voxel has the same value")
    if volume.modality == "CT" and (high < USUAL_HU[0] or low > USUAL_HU[1]):
        raise Refused(f"{name} has values from {low:g} to {high:g}, which are no Hounsfield units")


def _accept_frames(name: str, frames: Frames, wanted: Input, card: Card) -> None:
    if len(frames.images) < wanted.min_slices:
        raise Refused(f"{name} has {len(frames.images)} images; {card.title} needs at least {wanted.min_slices}")
    ranges = [_range(frame.pixels, name) for frame in frames.images]
    if all(low == high for low, high in ranges):
        raise Refused(f"{name} is empty: every pixel of an image has the same value")


def _range(voxels: Array, name: str) -> tuple[float, float]:
    """Return the smallest and the largest value; NaN and infinity show in one of them."""
    low, high = float(voxels.min()), float(voxels.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise Refused(f"{name} has voxels that are no numbers")
    return low, high


def _unusual(name: str, volume: Volume) -> tuple[str, ...]:
    """Return a note on values of a CT that no 12-bit scanner yields."""
    if volume.modality != "CT":
        return ()
    low, high = _range(volume.voxels, name)
    if USUAL_HU[0] <= low and high <= USUAL_HU[1]:
        return ()
    return (f"{name}: values from {low:g} to {high:g} HU lie outside {USUAL_HU[0]} to {USUAL_HU[1]}",)


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
