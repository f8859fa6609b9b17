"""Keras' Xception skin lesion classifier (PyPI sklesion) by the names of `networks.xception.LesionClassifier`.

Keras 3 names the variables of a ``.keras`` file by the kind of layer, counted in the order of the layers; here that
order is written down once, and every shape is compared.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np

from pacs_ai.errors import PipelineFault
from pacs_ai.models.convert.formats import keras_h5

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from pacs_ai.pipeline import Array

_BODY = "layers/functional/layers"
_HALVING = (0, 1, 2, 11)
_BLOCKS = 12
_NORM = ("weight", "bias", "running_mean", "running_var")


def read(folder: Path, options: Mapping[str, Any]) -> dict[str, Array]:
    """Return the classifier's tensors as numpy arrays.

    Parameters
    ----------
    folder
        Holds the ``.keras`` file.
    options
        ``file``: its name.

    Raises
    ------
    PipelineFault
        The file has other variables, or of other shapes.
    """
    from pacs_ai.models.networks.xception import LesionClassifier

    published = keras_h5.read(folder, str(options.get("file", "model.keras")))
    found: dict[str, Array] = {}
    counts: Counter[str] = Counter()
    for name, kind in _layers():
        scope = _BODY if name.startswith("features.") else "layers"
        number = counts[f"{scope}/{kind}"]
        counts[f"{scope}/{kind}"] += 1
        found |= _tensors(name, kind, f"{scope}/{kind}{f'_{number}' if number else ''}/vars", published)
    expected = {key: tuple(value.shape) for key, value in LesionClassifier().state_dict().items()}
    given = {key: value.shape for key, value in found.items()}
    wrong = sorted(key for key in expected if expected[key] != given.get(key, ()) and "num_batches" not in key)
    if wrong:
        raise PipelineFault(f"{wrong[0]} is {given.get(wrong[0], 'missing')}, not {expected[wrong[0]]}: another model")
    return found


def _layers() -> Iterator[tuple[str, str]]:
    """Yield each layer's name here and kind there, in the order of the file's counting."""
    yield from (("features.first", "conv2d"), ("features.first_norm", "batch_normalization"))
    yield from (("features.second", "conv2d"), ("features.second_norm", "batch_normalization"))
    for block in range(_BLOCKS):
        halves = block in _HALVING
        for number in range(2 if halves else 3):
            yield from _separable(f"features.blocks.{block}.separable.{number}")
        if halves:
            yield f"features.blocks.{block}.shortcut", "conv2d"
            yield f"features.blocks.{block}.norm", "batch_normalization"
    for number in range(2):
        yield from _separable(f"features.last.{number}")
    for name in ("patient", "image", "patient_2", "both", "classes"):
        yield name, "dense"
    for name in ("patient_norm", "image_norm", "patient_2_norm", "both_norm"):
        yield name, "batch_normalization"
    yield "", "normalization"


def _separable(name: str) -> Iterator[tuple[str, str]]:
    yield name, "separable_conv2d"
    yield f"{name}.norm", "batch_normalization"


def _tensors(name: str, kind: str, path: str, published: Mapping[str, Array]) -> dict[str, Array]:
    """Return the tensors of one layer with the axes of torch."""
    values = [published[key] for number in range(4) if (key := f"{path}/{number}") in published]
    if kind == "batch_normalization":
        return {f"{name}.{part}": value for part, value in zip(_NORM, values, strict=False)}
    if kind == "normalization":
        return dict(zip(("mean", "variance"), values, strict=False))
    if kind == "dense":
        weight, bias = values if len(values) == 2 else (np.empty((0, 0)), np.empty(0))
        return {f"{name}.weight": weight.T, f"{name}.bias": bias}
    if kind == "conv2d":
        return {f"{name}.weight": value.transpose(3, 2, 0, 1) for value in values if value.ndim == 4}
    depthwise, pointwise = values if len(values) == 2 else (np.empty((0, 0, 0, 0)),) * 2
    return {
        f"{name}.depthwise.weight": depthwise.transpose(2, 3, 0, 1),
        f"{name}.pointwise.weight": pointwise.transpose(3, 2, 0, 1),
    }
