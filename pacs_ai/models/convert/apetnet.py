"""pyapetnet's networks, published as TensorFlow variables, under the names that this node's network has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pacs_ai.errors import PipelineFault
from pacs_ai.models.convert.formats import tf_bundle

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pacs_ai.pipeline import Array

#: Keras' default, which the authors kept.
_EPSILON = 1e-3
_KEY = "{}/{}/.ATTRIBUTES/VARIABLE_VALUE"


def from_variables(folder: Path, _options: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Read the variables in the order of the layers: both first layers side by side, seven more, the last.

    Batch normalisation is multiplied into the kernel and the bias of the convolution before it.

    Parameters
    ----------
    folder
        Where ``variables.index`` and its shard lie.
    _options
        There are none.

    Returns
    -------
    dict
        As `Apetnet` takes them; kernels turned from [x, y, z, in, out] to [out, in, x, y, z].

    Raises
    ------
    PipelineFault
        A variable is missing: it is another model.
    """
    arrays = tf_bundle.read(folder, "variables")
    found: dict[str, torch.Tensor] = {}
    for which, name in enumerate(("pet", "t1")):
        place = (2 * which, 4 + 2 * which, 8 + which)
        found |= _layer(arrays, name, place, 6 + 4 * which)
    for layer in range(7):
        first = 10 + 5 * layer
        found |= _layer(arrays, f"common.{layer}", (first, first + 2, first + 4), 18 + 7 * layer)
    found["last.weight"] = torch.tensor(_turned(_array(arrays, "trainable_variables", 45)))
    found["last.bias"] = torch.tensor(_array(arrays, "trainable_variables", 46))
    return found


def _layer(arrays: Mapping[str, Array], name: str, place: tuple[int, int, int], moving: int) -> dict[str, torch.Tensor]:
    """Return one layer; `place` of kernel, scale and slope among what was trained, `moving` of mean among all."""
    kernel, bias, scale, shift = (
        _array(arrays, "trainable_variables", number) for number in (place[0], place[0] + 1, place[1], place[1] + 1)
    )
    mean, variance = (_array(arrays, "variables", number) for number in (moving, moving + 1))
    factor = (scale / np.sqrt(variance + _EPSILON)).astype(np.float32)
    return {
        f"{name}.convolution.weight": torch.tensor(_turned(kernel) * factor[:, None, None, None, None]),
        f"{name}.convolution.bias": torch.tensor((bias - mean) * factor + shift),
        f"{name}.slope.weight": torch.tensor(_array(arrays, "trainable_variables", place[2]).ravel()),
    }


def _array(arrays: Mapping[str, Array], kind: str, number: int) -> Array:
    key = _KEY.format(kind, number)
    if key not in arrays:
        raise PipelineFault(f"there is no {kind} number {number}: these are not the variables of pyapetnet")
    return arrays[key]


def _turned(kernel: Array) -> Array:
    if kernel.ndim != 5:
        raise PipelineFault(f"a kernel has {kernel.ndim} axes in place of 5: these are not pyapetnet's variables")
    return np.ascontiguousarray(kernel.transpose(4, 3, 0, 1, 2))
