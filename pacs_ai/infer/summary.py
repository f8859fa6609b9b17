"""What is kept of findings in the job's row and in findings.json: numbers, places and digests, never voxels."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np

from pacs_ai.encode.voxels.survey import count_voxels
from pacs_ai.pipeline import Volume

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from pacs_ai.pipeline import (
        Array,
        Classification,
        Code,
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

#: The digest of every mask is kept of so many segments at most: it costs a pass over the volume each.
_MOST_DIGESTS = 16
#: Points of a region that are kept; a longer outline is kept by its box alone.
_MOST_POINTS = 64


def summary(findings: Findings, inputs: Mapping[str, Given], notes: Iterable[str]) -> dict[str, Any]:
    """Return what of the findings is kept, as JSON holds it.

    ``segments``, ``measurements``, ``detections``, ``classifications``, ``maps``, ``images`` and ``notes``, each a list
    in the order of the findings.
    """
    return {
        "segments": _segments(findings, inputs.get(findings.grid)),
        "measurements": [{"label": one.label, **_measurement(one)} for one in findings.measurements],
        "detections": [_detection(one) for one in findings.detections],
        "classifications": [{"label": one.label, **_classification(one)} for one in findings.classifications],
        "maps": [_map(one) for one in findings.maps],
        "images": [_image(one) for one in findings.images],
        "notes": list(notes),
    }


def _segments(findings: Findings, given: Given | None) -> list[dict[str, Any]]:
    counts = count_voxels(findings.segments).sum(axis=1).tolist()
    many = len(findings.segments) > _MOST_DIGESTS
    voxel_ml = given.voxel_ml if isinstance(given, Volume) else None
    return [
        {
            "label": segment.label,
            "voxels": count,
            **({} if voxel_ml is None else {"volume_ml": round(count * voxel_ml, 3)}),
            "sha256": "" if many else mask_digest(segment),
        }
        for segment, count in zip(findings.segments, counts, strict=True)
    ]


def _measurement(one: Measurement) -> dict[str, Any]:
    return {
        "concept": one.concept.meaning,
        "derivation": one.derivation.meaning if one.derivation else None,
        "value": float(one.value),
        "unit": one.unit.value,
    }


def _classification(one: Classification) -> dict[str, Any]:
    return {"concept": one.concept.meaning, "value": one.value.meaning, "probability": _number(one.probability)}


def _detection(one: Detection) -> dict[str, Any]:
    return {
        "label": one.label,
        "probability": _number(one.probability),
        "region": None if one.region is None else _region(one.region),
        "diameters": None if one.diameters is None else _diameters(one.diameters),
        "measurements": [_measurement(value) for value in one.measurements],
        "classifications": [_classification(answer) for answer in one.classifications],
    }


def _region(region: Region) -> dict[str, Any]:
    points = np.asarray(region.points, np.float64)
    low, high = points.min(axis=0), points.max(axis=0)
    kept = points.round(2).tolist() if len(points) <= _MOST_POINTS else []
    return {
        "shape": region.shape.value,
        "index": int(region.index),
        "box": [round(float(value), 2) for value in (*low, *high)],
        "points": kept,
    }


def _diameters(one: Diameters) -> dict[str, Any]:
    axes = {"long_axis": one.long_axis, "short_axis": one.short_axis}
    places = {name: np.asarray(axis, np.float64).round(2).tolist() for name, axis in axes.items()}
    return {"index": int(one.index), **places}


def _map(one: Map) -> dict[str, Any]:
    return {
        "name": one.name,
        "label": one.label,
        "unit": one.unit.value,
        **_concept(one.concept),
        **_values(one.voxels),
    }


def _image(one: Derived) -> dict[str, Any]:
    return {"title": one.title, **_concept(one.derivation), **_values(one.voxels)}


def _concept(code: Code) -> dict[str, str]:
    return {"concept": code.meaning}


def _values(voxels: Array) -> dict[str, Any]:
    return {
        "low": float(voxels.min()),
        "mean": float(voxels.mean(dtype=np.float64)),
        "high": float(voxels.max()),
        "sha256": array_digest(voxels),
    }


def _number(value: float | None) -> float | None:
    return None if value is None else float(value)


def mask_digest(segment: Segment) -> str:
    """Return the SHA-256 of a mask's shape and bits, in (slice, row, column) order."""
    mask = np.ascontiguousarray(segment.mask)
    return hashlib.sha256(repr(mask.shape).encode() + np.packbits(mask).tobytes()).hexdigest()


def array_digest(voxels: Array) -> str:
    """Return the SHA-256 of an array's shape, type and little-endian bytes, in (slice, row, column) order."""
    little = np.ascontiguousarray(voxels, voxels.dtype.newbyteorder("<"))
    total = hashlib.sha256(f"{little.shape} {little.dtype.str}".encode())
    total.update(little.data)
    return total.hexdigest()


def headline(findings: Findings) -> str:
    """Return one line for people: how much was found."""
    counted = {
        "segment": len(findings.segments),
        "measurement": len(findings.measurements),
        "detection": len(findings.detections),
        "classification": len(findings.classifications),
        "map": len(findings.maps),
        "derived series": len(findings.images),
    }
    words = [f"{count} {name}{'' if name.endswith('s') else '(s)'}" for name, count in counted.items() if count]
    return ", ".join(words) or "nothing found"
