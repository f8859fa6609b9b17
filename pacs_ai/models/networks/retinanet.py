"""RetinaNet in three dimensions as MONAI's ``lung_nodule_ct_detection`` has it, with the names of its checkpoint.

Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017; anchors and boxes as nnDetection (Baumgartner et al.,
MICCAI 2021). MONAI's network, anchors and detector are used; only the trunk is put together here, because MONAI's
needs torchvision for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from monai.apps.detection.networks.retinanet_detector import RetinaNetDetector
from monai.apps.detection.networks.retinanet_network import RetinaNet
from monai.apps.detection.utils.anchor_utils import AnchorGeneratorWithAnchorShape
from monai.networks.blocks.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool
from monai.networks.nets import resnet50
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pacs_ai.models.readings.lesion_settings import LesionSettings

#: Channels of the pyramid.
CHANNELS = 256


class _Body(nn.ModuleDict):
    """The first layers of a trunk, up to the last one whose features are wanted."""

    def __init__(self, trunk: nn.Module, wanted: Sequence[str]) -> None:
        children = dict(trunk.named_children())
        names = list(children)
        super().__init__({name: children[name] for name in names[: names.index(wanted[-1]) + 1]})
        self._wanted = tuple(wanted)

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        found: dict[str, torch.Tensor] = {}
        for name, module in self.items():
            image = module(image)
            if name in self._wanted:
                found[str(len(found))] = image
        return found


class PyramidTrunk(nn.Module):
    """A ResNet with a feature pyramid on top: (batch, 1, x, y, z) -> features by level, the finest first.

    Parameters
    ----------
    trunk
        MONAI's ResNet.
    layers
        Which of its four stages (1 to 4) are used.
    """

    def __init__(self, trunk: nn.Module, layers: Sequence[int], spatial_dims: int = 3) -> None:
        super().__init__()
        first = int(trunk.in_planes) // 8  # type: ignore[arg-type]
        self.body = _Body(trunk, [f"layer{layer}" for layer in layers])
        self.fpn = FeaturePyramidNetwork(
            spatial_dims=spatial_dims,
            in_channels_list=[first * 2 ** (layer - 1) for layer in layers],
            out_channels=CHANNELS,
            extra_blocks=LastLevelMaxPool(spatial_dims),
        )
        self.out_channels = CHANNELS

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the features by level."""
        found: dict[str, torch.Tensor] = self.fpn(self.body(image))
        return found


def resnet_fpn_feature_extractor(
    backbone: nn.Module,
    spatial_dims: int,
    pretrained_backbone: bool = False,
    returned_layers: Sequence[int] = (1, 2, 3),
    valid_trainable: None = None,
) -> PyramidTrunk:
    """Stand in for MONAI's function of this name, which needs torchvision; nothing is fetched or frozen."""
    if pretrained_backbone or valid_trainable is not None:
        raise ValueError("neither pretrained weights nor trainable layers can be chosen here")
    return PyramidTrunk(backbone, returned_layers, spatial_dims)


def network(settings: LesionSettings) -> nn.Module:
    """Build the network with the weights that its constructors draw."""
    trunk = resnet50(
        spatial_dims=3, n_input_channels=1, conv1_t_stride=list(settings.first_stride), conv1_t_size=[7, 7, 7]
    )
    built: nn.Module = RetinaNet(
        spatial_dims=3,
        num_classes=1,
        num_anchors=len(settings.anchors),
        feature_extractor=PyramidTrunk(trunk, settings.layers),
        size_divisible=settings.divisible,
        use_list_output=False,
    )
    return built


def detector(net: nn.Module, settings: LesionSettings) -> Any:
    """Put MONAI's detector around a network: anchors, choice of boxes, and windows where the image is larger.

    Parameters
    ----------
    net
        (1, 1, x, y, z) -> {"classification": levels, "box_regression": levels}.
    settings
        Anchors, thresholds, window.
    """
    anchors = AnchorGeneratorWithAnchorShape(
        feature_map_scales=[2**level for level in range(len(settings.layers) + 1)],
        base_anchor_shapes=[list(shape) for shape in settings.anchors],
    )
    built = RetinaNetDetector(
        network=net, anchor_generator=anchors, spatial_dims=3, num_classes=1, size_divisible=settings.divisible
    )
    built.set_target_keys(box_key="box", label_key="label")
    built.set_box_selector_parameters(
        score_thresh=settings.candidate_threshold,
        topk_candidates_per_level=settings.candidates_per_level,
        nms_thresh=settings.overlap_between_boxes,
        detections_per_img=settings.most,
    )
    built.set_sliding_window_inferer(
        roi_size=settings.window, overlap=settings.overlap, sw_batch_size=1, mode="constant", device="cpu"
    )
    return built.eval()
