"""Published weights in other formats, turned into safetensors by a person, off-line; nothing in them is executed."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from pacs_ai.errors import PipelineFault, UserError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import torch

#: Reader -> module:function; the function takes the folder of the members and the options, and returns the tensors
#: (name -> torch tensor or numpy array).
READERS: Mapping[str, str] = {
    # one line each, sorted
    "apetnet": "pacs_ai.models.convert.apetnet:from_variables",
    "chexnet": "pacs_ai.models.convert.chest_film:chexnet",
    "keras": "pacs_ai.models.convert.plain:keras",
    "liver": "pacs_ai.models.convert.liver:from_keras",
    "lung-nodules": "pacs_ai.models.convert.lung_nodules:retinanet",
    "meshnet-tfjs": "pacs_ai.models.convert.meshnet:from_tfjs",
    "nnunet": "pacs_ai.models.convert.nnunet:nnunet",
    "sklesion": "pacs_ai.models.convert.xception:read",
    "mura": "pacs_ai.models.convert.mura:densenet169",
    "tf-variables": "pacs_ai.models.convert.plain:tf_variables",
    "tfjs": "pacs_ai.models.convert.plain:tfjs_model",
    "torch": "pacs_ai.models.convert.plain:torch_checkpoint",
    "torchxrayvision": "pacs_ai.models.convert.chest_film:torchxrayvision",
}


def convert(reader: str, folder: Path, options: Mapping[str, Any] | None = None) -> bytes:
    """Turn published weights into the bytes of a safetensors file; equal weights and options give equal bytes.

    Parameters
    ----------
    reader
        One of `READERS`.
    folder
        Where the published files lie.
    options
        Of the reader.

    Raises
    ------
    UserError
        There is no such reader, or it does not take these options.
    PipelineFault
        The files are not what the reader reads, or need code to be opened; the message says what to do.
    """
    if reader not in READERS:
        raise UserError(f"there is no reader {reader}: known are {', '.join(sorted(READERS))}")
    module, _, name = READERS[reader].partition(":")
    return safetensors(getattr(importlib.import_module(module), name)(folder, dict(options or {})))


def safetensors(arrays: Mapping[str, Any]) -> bytes:
    """Return arrays (numpy or torch) as a safetensors file without metadata, in an order that hangs on names alone.

    Raises
    ------
    PipelineFault
        There are none, or such as a safetensors file cannot hold.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import save

    if not arrays:
        raise PipelineFault("there are no arrays in these files: they are not those that the reader expects")
    tensors: dict[str, torch.Tensor] = {}
    for name in sorted(arrays):
        one = arrays[name]
        try:
            tensors[name] = (one.detach() if isinstance(one, torch.Tensor) else torch.tensor(one)).clone().contiguous()
            save({name: tensors[name].flatten()[:1]})
        except (SafetensorError, TypeError, ValueError, KeyError) as error:
            raise PipelineFault(
                f"{name!a} is of type {one.dtype}, or has a name, that safetensors files do not know: have its author "
                "save it as float32"
            ) from error
    return save(tensors)
