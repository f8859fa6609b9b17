"""Key map of MONAI's ``lung_nodule_ct_detection``: the names of its RetinaNet, which are kept.

The checkpoint is a state dict of 190 tensors, plain or under ``model``; one that was saved by a DataParallel module or
by the detector around the network has ``module.`` or ``network.`` before each name, which is taken away.
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

_FRONT = re.compile(r"^(?:module\.)?(?:network\.)?")
#: One tensor of each part, and how many axes it has.
PARTS = {
    "feature_extractor.body.conv1.weight": 5,
    "feature_extractor.body.layer2.3.conv3.weight": 5,
    "feature_extractor.fpn.layer_blocks.1.weight": 5,
    "classification_head.cls_logits.weight": 5,
    "regression_head.bbox_reg.weight": 5,
}


def retinanet(folder: Path, options: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Read the checkpoint (``file``, default model.pt).

    Raises
    ------
    PipelineFault
        The file is none, needs code to be opened, or is of another network; errors as `torch_state.read`.
    """
    read = torch_state.read(folder, str(options.get("file", "model.pt")))
    named = {_FRONT.sub("", name, count=1): tensor for name, tensor in read.items()}
    missing = [name for name, axes in PARTS.items() if name not in named or named[name].ndim != axes]
    if missing:
        raise PipelineFault(
            f"this is no checkpoint of MONAI's lung_nodule_ct_detection: {missing[0]} is missing or of another shape"
        )
    return named
