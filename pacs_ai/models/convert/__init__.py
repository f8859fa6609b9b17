"""Published weights in other formats, turned into safetensors by a person, off-line; nothing in them is executed."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pacs_ai.errors import PipelineFault, UserError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import torch


@dataclass(frozen=True)
class Reader:
    """One way to read published weights.

    Parameters
    ----------
    place
        module:function; the function takes the folder of the published files and the options, and returns the tensors
        (name -> torch tensor or numpy array).
    texts
        Names of its options; ``file`` is the file that is read.
    values
        Names of options that are numbers, lists, true or false.
    """

    place: str
    texts: tuple[str, ...] = ("file",)
    values: tuple[str, ...] = ()


READERS: Mapping[str, Reader] = {
    # one line each, sorted
    "apetnet": Reader("pacs_ai.models.convert.apetnet:from_variables", ()),
    "chexnet": Reader("pacs_ai.models.convert.chest_film:chexnet"),
    "keras": Reader("pacs_ai.models.convert.plain:keras"),
    "liver": Reader("pacs_ai.models.convert.liver:from_keras", ("liver", "lesions")),
    "lung-nodules": Reader("pacs_ai.models.convert.lung_nodules:retinanet"),
    "meshnet-tfjs": Reader(
        "pacs_ai.models.convert.meshnet:from_tfjs",
        ("file", "activation"),
        ("channels", "classes", "dilations", "normalised"),
    ),
    "mura": Reader("pacs_ai.models.convert.mura:densenet169"),
    "nnunet": Reader("pacs_ai.models.convert.nnunet:nnunet", ("checkpoint",)),
    "sklesion": Reader("pacs_ai.models.convert.xception:read"),
    "tf-variables": Reader("pacs_ai.models.convert.plain:tf_variables"),
    "tfjs": Reader("pacs_ai.models.convert.plain:tfjs_model"),
    "torch": Reader("pacs_ai.models.convert.plain:torch_checkpoint", ("file", "key", "prefix")),
    "torchxrayvision": Reader("pacs_ai.models.convert.chest_film:torchxrayvision"),
}


def reader_named(name: str) -> Reader:
    """Return the reader of that name; `UserError` with those that there are."""
    if name not in READERS:
        raise UserError(f"there is no reader {name}: known are {', '.join(sorted(READERS))}")
    return READERS[name]


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
    known, given = reader_named(reader), dict(options or {})
    wrong = [name for name in given if name not in (*known.texts, *known.values)]
    wrong += [name for name in known.texts if not isinstance(given.get(name, ""), str)]
    if wrong:
        texts = f"texts as {', '.join(known.texts)}" if known.texts else "no texts"
        values = f", and {', '.join(known.values)}" if known.values else ""
        raise UserError(f"the reader {reader} takes no option {wrong[0]}={given[wrong[0]]!r}: it takes {texts}{values}")
    module, _, name = known.place.partition(":")
    return safetensors(getattr(importlib.import_module(module), name)(folder, given))


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
