"""Key map of DenseNet-169 checkpoints with torchvision's names, such as MURA baselines have, to MONAI's names.

``features.denseblock1.denselayer1.norm1`` becomes ``...denselayer1.layers.norm1``, ``classifier`` becomes
``class_layers.out``; ``norm.1`` of the oldest checkpoints is read as ``norm1``.
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

_FRONT = re.compile(r"^(?:module\.)?(?:(?:densenet169|model|net|backbone)\.)?")
_OLD = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12])\.")
_LAYER = re.compile(r"(denselayer\d+)\.(?=(?:norm|conv)[12]\.)")
LAST_BLOCK = "features.denseblock4.denselayer32.layers.conv2.weight"
_LAST = re.compile(r"^(?:classifier|fc)\.(?:0\.)?")


def name_of(key: str) -> str:
    """Return MONAI's name of a tensor by torchvision's."""
    key = _OLD.sub(r"\1\2.", _FRONT.sub("", key, count=1))
    return _LAST.sub("class_layers.out.", _LAYER.sub(r"\1.layers.", key))


def densenet169(folder: Path, options: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Read a checkpoint (``file``, default checkpoint.pt) of 3 channels and one answer.

    Raises
    ------
    PipelineFault
        The file is none, needs code to be opened, or is of another network; errors as `torch_state.read`.
    """
    read = torch_state.read(folder, str(options.get("file", "checkpoint.pt")))
    named = {name_of(key): tensor for key, tensor in read.items()}
    last = named.get("class_layers.out.weight")
    if last is None or tuple(last.shape) != (1, 1664) or LAST_BLOCK not in named:
        raise PipelineFault("this is no DenseNet-169 with one answer: its blocks or its last layer are others")
    return named
