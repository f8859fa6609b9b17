"""What a pipeline may be given, and what it must give back; both checked at the border, with reasons in words."""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from pacs_ai.encode.frames import count_voxels
from pacs_ai.errors import PipelineFault, Refused
from pacs_ai.pipeline import Card, Findings, Segment, Volume

if TYPE_CHECKING:
    from collections.abc import Mapping

#: The digest of every mask is kept of so many segments at most: it costs a pass over the volume each.
_MOST_DIGESTS = 16


def accept(card: Card, volumes: Mapping[str, Volume]) -> None:
    """Raise `Refused` where the inputs are not what the card accepts."""
    missing = sorted(set(card.inputs) - set(volumes))
    if missing:
        raise Refused(f"{', '.join(missing)} missing: {card.title} needs {', '.join(card.inputs)}")
    for name, wanted in card.inputs.items():
        volume = volumes[name]
        if volume.modality not in wanted.modality:
            raise Refused(
                f"{name} is {volume.modality or 'without Modality'}; {card.title} takes {' or '.join(wanted.modality)}"
            )
        slices, spacing = volume.voxels.shape[0], volume.spacing[0]
        if slices < wanted.min_slices:
            raise Refused(f"{name} has {slices} slices; {card.title} needs at least {wanted.min_slices}")
        if wanted.max_slice_spacing_mm is not None and spacing > wanted.max_slice_spacing_mm + 1e-3:
            raise Refused(
                f"{name} has slices {spacing:.2f} mm apart; "
                f"{card.title} takes at most {wanted.max_slice_spacing_mm:g} mm"
            )
        if not np.isfinite(volume.voxels).all() if volume.voxels.dtype.kind == "f" else False:
            raise Refused(f"{name} has voxels that are no numbers")
        if volume.voxels.min() == volume.voxels.max():
            raise Refused(f"{name} is empty: every voxel has the same value")


def check(card: Card, volumes: Mapping[str, Volume], findings: Findings) -> None:
    """Raise `PipelineFault` where the findings break the contract of `pacs_ai.pipeline`."""
    if not isinstance(findings, Findings):
        raise PipelineFault(f"{card.name} returned {type(findings).__name__}, not Findings")
    names = {label.name for label in card.labels}
    if findings.segments and findings.grid not in volumes:
        raise PipelineFault(f"{card.name} returned segments on the grid {findings.grid!r}, which is no input")
    for segment in findings.segments:
        if segment.label not in names:
            raise PipelineFault(f"{card.name} returned the label {segment.label!r}, which is not on its card")
        shape = volumes[findings.grid].voxels.shape
        if segment.voxels.shape != shape:
            raise PipelineFault(f"{card.name}: {segment.label} has the shape {segment.voxels.shape}, the input {shape}")
    for measurement in findings.measurements:
        if measurement.label is not None and measurement.label not in names:
            raise PipelineFault(f"{card.name} measured {measurement.label!r}, which is not on its card")
        if not math.isfinite(measurement.value):
            raise PipelineFault(f"{card.name}: {measurement.concept.meaning} of {measurement.label} is no number")


def summary(findings: Findings, volumes: Mapping[str, Volume], notes: tuple[str, ...]) -> dict[str, Any]:
    """Return what of the findings is kept in the job's row."""
    grid = volumes.get(findings.grid)
    counts = count_voxels(findings.segments).sum(axis=1).tolist()
    many = len(findings.segments) > _MOST_DIGESTS
    return {
        "segments": [
            {
                "label": segment.label,
                "voxels": count,
                "volume_ml": round(count * grid.voxel_ml, 3) if grid else 0.0,
                "sha256": "" if many else mask_digest(segment),
            }
            for segment, count in zip(findings.segments, counts, strict=True)
        ],
        "measurements": [
            {
                "label": measurement.label,
                "concept": measurement.concept.meaning,
                "derivation": measurement.derivation.meaning if measurement.derivation else None,
                "value": measurement.value,
                "unit": measurement.unit.value,
            }
            for measurement in findings.measurements
        ],
        "notes": list(notes),
    }


def mask_digest(segment: Segment) -> str:
    """Return the SHA-256 of a mask's shape and bits, in (slice, row, column) order."""
    mask = np.ascontiguousarray(segment.mask)
    return hashlib.sha256(repr(mask.shape).encode() + np.packbits(mask).tobytes()).hexdigest()


def headline(findings: Findings) -> str:
    """Return one line for people: how much was found."""
    if not findings.segments and not findings.measurements:
        return "nothing found"
    return f"{len(findings.segments)} segment(s), {len(findings.measurements)} measurement(s)"
