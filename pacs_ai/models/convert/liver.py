"""pyliverlesionseg's two networks, published as Keras models, under the names that this node's network has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from pacs_ai.errors import PipelineFault
from pacs_ai.models.convert.formats import keras_h5
from pacs_ai.models.networks.liver_unet import LESIONS, LIVER, Form, LiverUnet

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pacs_ai.pipeline import Array


def from_keras(folder: Path, options: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Read both models: ``conv3d_1`` ... in the order in which the authors' program made them.

    Parameters
    ----------
    folder
        Where the files lie.
    options
        ``liver`` and ``lesions``: their names (liver.hdf5, lesions.hdf5).

    Returns
    -------
    dict
        As `LiverUnet.loaded` takes them, behind ``liver.`` and ``lesions.``; kernels turned from [x, y, z, in, out] to
        [out, in, x, y, z].

    Raises
    ------
    PipelineFault
        A file holds other layers.
    """
    found: dict[str, torch.Tensor] = {}
    for name, form in (("liver", LIVER), ("lesions", LESIONS)):
        file = str(options.get(name, f"{name}.hdf5"))
        found |= {f"{name}.{key}": value for key, value in _state(keras_h5.read(folder, file), form, file).items()}
    return found


def _state(arrays: Mapping[str, Array], form: Form, file: str) -> dict[str, torch.Tensor]:
    network = LiverUnet(form)
    with torch.no_grad():
        for number, convolution in enumerate(network.convolutions(), 1):
            for parameter, kind in ((convolution.weight, "kernel"), (convolution.bias, "bias")):
                array = arrays.get(f"conv3d_{number}/conv3d_{number}/{kind}")
                given = (
                    None
                    if array is None
                    else torch.tensor(array.transpose(4, 3, 0, 1, 2) if array.ndim == 5 else array)
                )
                if given is None or parameter is None or given.shape != parameter.shape:
                    wanted = "" if parameter is None else f" of {tuple(parameter.shape)}"
                    raise PipelineFault(f"{file} has no {kind}{wanted} for convolution {number}: it is another model")
                parameter.copy_(given)
    return network.state_dict()
