"""TensorFlow.js models: ``model.json`` beside its ``.bin`` shards, layers or graph, whole or quantised.

``weightsManifest`` of the JSON is a list of groups; each names its shard files, whose bytes follow one another, and the
arrays that lie in them one after the other (TensorFlow.js, io types: WeightsManifestConfig). Quantised arrays are
``min + scale * integer``. Kernels keep TensorFlow's order: [height, width, in, out], [depth, height, width, in, out].
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from pacs_ai.errors import PipelineFault
from pacs_ai.models.convert.formats.bounds import MANY, elements, inside

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from pacs_ai.pipeline import Array

#: Longest ``model.json``, bytes.
LONGEST = 64 << 20
_TYPES = {"float32": "<f4", "float16": "<f2", "int32": "<i4", "uint8": "u1", "uint16": "<u2", "bool": "u1"}


def read(folder: Path, model: str = "model.json") -> dict[str, Array]:
    """Read a model's arrays.

    Parameters
    ----------
    folder
        Where ``model.json`` and the shards lie.
    model
        Name of the JSON file.

    Returns
    -------
    dict
        Name as in the manifest (``conv3d_0/kernel``) -> array, in the manifest's order; quantised ones as float32.

    Raises
    ------
    PipelineFault
        A shard is missing or leads out of the folder, the shards are longer or shorter than the arrays, a type is
        unknown, or the JSON is none.
    """
    arrays: dict[str, Array] = {}
    for group in _groups(folder, model):
        paths, weights = group.get("paths"), group.get("weights")
        if not isinstance(paths, list) or not isinstance(weights, list) or len(weights) > MANY:
            raise PipelineFault(f"weightsManifest of {model} has a group without paths or weights: get the original")
        content = b"".join(inside(folder, str(path)).read_bytes() for path in paths)
        arrays.update(_cut(content, weights, model))
    return arrays


def bare(content: bytes, shapes: Mapping[str, Sequence[int]]) -> dict[str, Array]:
    """Cut a bare ``.bin`` of little-endian float32 into arrays, in the order of `shapes`; errors as `read`."""
    weights = [{"name": name, "shape": list(shape), "dtype": "float32"} for name, shape in shapes.items()]
    return _cut(content, weights, "the .bin")


def layers(folder: Path, model: str = "model.json") -> list[dict[str, Any]]:
    """Return the layers of a layers model as JSON tables (class_name, name, config), in order; errors as `read`."""
    found = _json(folder, model)
    for key in ("modelTopology", "model_config", "config", "layers"):
        found = found.get(key) if isinstance(found, dict) else None
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise PipelineFault(f"{model} lists no layers: it is no layers model of TensorFlow.js")
    return found


def _json(folder: Path, model: str) -> Any:
    path = inside(folder, model)
    if path.stat().st_size > LONGEST:
        raise PipelineFault(f"{model} is longer than {LONGEST} bytes, which no description of layers is")
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise PipelineFault(f"{model} is no JSON: {error}") from error


def _groups(folder: Path, model: str) -> list[dict[str, Any]]:
    found = _json(folder, model)
    groups = found.get("weightsManifest") if isinstance(found, dict) else None
    if not isinstance(groups, list) or not groups or not all(isinstance(group, dict) for group in groups):
        raise PipelineFault(f"{model} has no weightsManifest: it is no TensorFlow.js model, or one without weights")
    return groups


def _cut(content: bytes, weights: Sequence[Any], model: str) -> dict[str, Array]:
    """Cut the arrays out of the bytes of a group; all bytes must be used."""
    arrays: dict[str, Array] = {}
    offset = 0
    for weight in weights:
        name, shape, kind, quantised = _entry(weight, model)
        count = elements(shape, name)
        size = count * kind.itemsize
        if offset + size > len(content):
            raise PipelineFault(f"{name} of {model} would end at byte {offset + size} of {len(content)}: it is cut off")
        array = np.frombuffer(content, kind, count, offset).reshape(shape)
        arrays[name] = _restored(array, quantised, name)
        offset += size
    if offset != len(content):
        raise PipelineFault(f"the arrays of {model} end at byte {offset} of {len(content)}: these are not its shards")
    return arrays


def _entry(weight: Any, model: str) -> tuple[str, list[int], np.dtype[Any], Mapping[str, Any]]:
    """Return name, shape, stored type and quantisation of one entry of the manifest."""
    if not isinstance(weight, dict) or not isinstance(weight.get("name"), str):
        raise PipelineFault(f"weightsManifest of {model} has an array without a name: get the original")
    quantised = weight.get("quantization") or {}
    stated = quantised.get("dtype") if isinstance(quantised, dict) and quantised else weight.get("dtype")
    if not isinstance(quantised, dict) or stated not in _TYPES:
        raise PipelineFault(f"{weight['name']} of {model} is of type {stated!r}; known are {', '.join(_TYPES)}")
    return weight["name"], weight.get("shape", []), np.dtype(_TYPES[stated]), quantised


def _restored(array: Array, quantised: Mapping[str, Any], name: str) -> Array:
    """Return an array of its own, with the quantisation undone."""
    if not quantised:
        return array.copy()
    if array.dtype == np.float16:
        return array.astype(np.float32)
    scale, least = quantised.get("scale"), quantised.get("min")
    if not isinstance(scale, int | float) or not isinstance(least, int | float) or not math.isfinite(scale + least):
        raise PipelineFault(f"{name} is quantised without a scale and a min: get the original")
    restored: Array = (array * np.float64(scale) + np.float64(least)).astype(np.float32)
    return restored
