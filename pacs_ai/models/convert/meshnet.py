"""brainchop's MeshNets, published as TensorFlow.js, under the names that this node's network has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from pacs_ai.models.convert.formats import tfjs
from pacs_ai.models.convert.formats.bounds import inside
from pacs_ai.models.networks.meshnet import Layout

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


def from_tfjs(folder: Path, options: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Read the bare weights of a MeshNet: for each layer the kernel, then the bias where it has one.

    Parameters
    ----------
    folder
        Where the weights lie.
    options
        The numbers of `Layout` (``channels``, ``classes``, ``dilations``, ``activation``, ``normalised``), and
        ``file``, the name of the weights (model.bin).

    Returns
    -------
    dict
        As `MeshNet.loaded` takes them: kernels turned from [depth, height, width, in, out] to
        [out, in, depth, height, width].

    Raises
    ------
    PipelineFault
        The options describe no MeshNet, or the file is longer or shorter than this one's weights.
    """
    layout = Layout.of(options)
    content = inside(folder, str(options.get("file", "model.bin"))).read_bytes()
    arrays = tfjs.bare(content, {name: _published(shape) for name, shape in layout.shapes()})
    tensors = {name: torch.tensor(array) for name, array in arrays.items()}
    return {name: one.permute(4, 3, 0, 1, 2).contiguous() if one.ndim == 5 else one for name, one in tensors.items()}


def _published(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape under which TensorFlow keeps an array."""
    if len(shape) != 5:
        return shape
    out, fed, *kernel = shape
    return *kernel, fed, out
