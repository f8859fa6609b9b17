"""Key maps of the public chest-film checkpoints, both DenseNet-121: CheXNet's, and torchxrayvision's.

CheXNet as published by its replicas: ``state_dict`` of a DataParallel module, ``module.densenet121.features...`` and
``module.densenet121.classifier.0.weight`` (a Sequential with a sigmoid), the layers of the oldest of them named
``norm.1``, ``conv.2``. torchxrayvision: ``features...`` and ``classifier.weight``, with one input channel and 18
answers. Its published files are pickled modules, which nothing here opens: their owner writes the tensors out first,
``torch.save(model.state_dict(), "xrv.pt")``.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from pacs_ai.errors import PipelineFault
from pacs_ai.models.convert.formats import torch_state

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import torch

_FRONT = re.compile(r"^(?:module\.)?(?:(?:densenet121|model|net|backbone)\.)?")
_OLD_LAYER = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12])\.")
_OLD_CLASSIFIER = re.compile(r"^classifier\.0\.")
#: Left out: counters of batch normalisation, and the working points that newer versions of torchxrayvision keep.
_UNREAD = re.compile(r"num_batches_tracked$|^op_threshs$")


def name_of(key: str) -> str:
    """Return the name of a tensor in `DenseNet121` by its name in a public checkpoint."""
    key = _OLD_LAYER.sub(r"\1\2.", _FRONT.sub("", key, count=1))
    return _OLD_CLASSIFIER.sub("classifier.", key)


def chexnet(folder: Path, options: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Read a CheXNet checkpoint (``file``): 3 channels, 14 answers; errors as `torch_state.read` and `_checked`."""
    return _checked(_renamed(folder, options), 3, 14, "CheXNet")


def torchxrayvision(folder: Path, options: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Read a DenseNet of torchxrayvision (``file``): 1 channel, 18 answers; errors as `chexnet`."""
    return _checked(_renamed(folder, options), 1, 18, "torchxrayvision's DenseNet-121")


def _renamed(folder: Path, options: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    tensors = torch_state.read(folder, str(options.get("file", "checkpoint.pt")))
    named = {name_of(key): tensor for key, tensor in tensors.items()}
    return {name: tensor for name, tensor in named.items() if not _UNREAD.search(name)}


def _checked(tensors: dict[str, torch.Tensor], channels: int, answers: int, whose: str) -> dict[str, torch.Tensor]:
    """Return the tensors where their names and shapes are the network's; `PipelineFault` says what differs."""
    import torch

    from pacs_ai.models.networks.densenet import DenseNet121

    with torch.device("meta"):
        wanted = {
            name: tuple(tensor.shape)
            for name, tensor in DenseNet121(channels, answers).state_dict().items()
            if not _UNREAD.search(name)
        }
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if found == wanted:
        return tensors
    missing, surplus = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    other = sorted(name for name in wanted.keys() & found.keys() if wanted[name] != found[name])
    told = [
        f"{len(names)} tensors {what} ({', '.join(names[:3])})"
        for what, names in (("are missing", missing), ("are unknown", surplus), ("have another shape", other))
        if names
    ]
    raise PipelineFault(f"this is no checkpoint of {whose} ({channels} channels, {answers} answers): {'; '.join(told)}")
