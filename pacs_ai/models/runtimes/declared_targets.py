"""The networks, inferers and transforms that a declared bundle may build, by name; nothing else is ever imported.

Taken in are components that compute on what they are given: they read and write no file, open no connection and run
no code of the bundle. A name may be given as MONAI knows it ("UNet", "monai.networks.nets.UNet", "Resized" or
"ResizeD"); the module is always the one of this table.
"""

from __future__ import annotations

import importlib
import inspect
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

NETS = "monai.networks.nets"
_NETWORKS = """
    AttentionUnet AutoEncoder BasicUNet BasicUNetPlusPlus Classifier DenseNet DenseNet121 DenseNet169 DenseNet201
    DenseNet264 DiNTS DynUNet EfficientNetBN FlexibleUNet HighResNet MedNeXt Regressor ResNet SegResNet
    SegResNetDS SegResNetVAE SENet154 SEResNet50 SEResNet101 SEResNet152 SEResNext50 SEResNext101 SwinUNETR
    TopologyInstance UNet UNETR VNet resnet10 resnet18 resnet34 resnet50 resnet101 vista3d132
"""
_INFERERS = "SimpleInferer SlidingWindowInferer SlidingWindowInfererAdapt SliceInferer"
_TRANSFORMS = """
    Activationsd AsDiscreted BorderPadd CastToTyped CenterSpatialCropd ClipIntensityPercentilesd Compose ConcatItemsd
    CopyItemsd CropForegroundd DeleteItemsd DivisiblePadd EnsureChannelFirstd EnsureTyped FillHolesd Flipd
    FromMetaTensord FlattenSubKeysd Identity Identityd Invertd LabelFilterd Lambdad
    MaskIntensityd MeanEnsembled NormalizeIntensityd Orientationd Resized ResizeWithPadOrCropd
    Rotate90d ScaleIntensityd ScaleIntensityRanged ScaleIntensityRangePercentilesd SelectItemsd Spacingd SpatialPadd
    SqueezeDimd ThresholdIntensityd ToDeviced ToNumpyd ToTensord Transposed VoteEnsembled
"""
_LAYERS = """
    BatchNorm1d BatchNorm2d BatchNorm3d Conv1d Conv2d Conv3d Dropout Flatten GELU InstanceNorm2d InstanceNorm3d
    LeakyReLU Linear MaxPool2d MaxPool3d ReLU Sequential Sigmoid Softmax Tanh Upsample
"""
_DETECTION = {
    "AnchorGenerator": "monai.apps.detection.utils.anchor_utils",
    "AnchorGeneratorWithAnchorShape": "monai.apps.detection.utils.anchor_utils",
    "RetinaNet": "monai.apps.detection.networks.retinanet_network",
    "RetinaNetDetector": "monai.apps.detection.networks.retinanet_detector",
    "resnet_fpn_feature_extractor": "pacs_ai.models.networks.retinanet",
    "AffineBoxToWorldCoordinated": "monai.apps.detection.transforms.dictionary",
    "ClipBoxToImaged": "monai.apps.detection.transforms.dictionary",
    "ConvertBoxModed": "monai.apps.detection.transforms.dictionary",
}
#: Name -> module that has it.
TARGETS: Mapping[str, str] = {
    **dict.fromkeys(_NETWORKS.split(), NETS),
    **dict.fromkeys(_INFERERS.split(), "monai.inferers"),
    **dict.fromkeys(_TRANSFORMS.split(), "monai.transforms"),
    **dict.fromkeys(_LAYERS.split(), "torch.nn"),
    **_DETECTION,
    "TorchVisionFCModel": "pacs_ai.models.networks.inception",
    "KeepLargestConnectedComponentd": "pacs_ai.models.runtimes.declared_components",
    "device": "torch",
}
#: Argument that would fetch weights from the Internet: MONAI's components are always given False.
FETCHES = "pretrained"
#: Arguments that MONAI took away, and that had no effect on the component before.
OBSOLETE = {"SwinUNETR": {"img_size"}}
VARIANT = re.compile(r"(D|Dict)$")


class NotDeclared(ValueError):  # noqa: N818 - what the declared loader does not take; becomes a PipelineFault
    """Something is no part of what a declared bundle may say; the message says what."""


def found(name: Any) -> tuple[str, str]:
    """Return the listed name ("UNet" of "monai.networks.nets.UNet") and its module; `NotDeclared` for any other."""
    if not isinstance(name, str):
        raise NotDeclared("it is no name")
    *parents, last = name.strip().split(".")
    for candidate in (last, VARIANT.sub("d", last)):
        module = TARGETS.get(candidate)
        if module is not None and _is_its(parents, module):
            return candidate, module
    if parents and parents[0] not in {"monai", "torch"}:
        raise NotDeclared(f"{name} is code of the bundle's own")
    raise NotDeclared(f"{name} is not among the networks, inferers and transforms that are allowed")


def _is_its(parents: Sequence[str], module: str) -> bool:
    """Whether a name's parents are none, or those of the library that has the module."""
    return not parents or parents[0] == ("torch" if module.startswith("torch") else "monai")


def make(name: Any, named: Mapping[str, Any], arguments: Sequence[Any] = ()) -> Any:
    """Build a listed component.

    Raises
    ------
    NotDeclared
        It is not listed, or not to be had on this machine.
    """
    target, module = found(name)
    try:
        maker: Callable[..., Any] = getattr(importlib.import_module(module), target)
    except (ImportError, AttributeError) as error:
        raise NotDeclared(f"this machine has no {module}.{target} ({error})") from error
    given = {key: value for key, value in named.items() if key not in OBSOLETE.get(target, ())}
    if module.startswith("monai") and FETCHES in inspect.signature(maker).parameters:
        given[FETCHES] = False
    return maker(*arguments, **given)
