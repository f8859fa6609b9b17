"""The chest-film student: the first eleven blocks of EfficientNet-Lite0, and one linear answer per finding.

An answer sees the means of the last maps over a grid of 5 x 5 fields of the film, so that it can know where it looks.
It is linear: what each place contributes to it is the finding's class activation map, exactly (after Zhou et al., CVPR
2016). How far a film is from those of the training is told by the Mahalanobis distance of the means over the whole film
(after Lee et al., NeurIPS 2018).
"""

from __future__ import annotations

import torch
from torch import nn

from pacs_ai.models.networks.efficientnet_lite import EfficientNetLite

#: Blocks of the backbone, the channels that they end with, and the fields of the film along each axis.
BLOCKS, CHANNELS, FIELDS = 11, 112, 5


class ChestStudent(nn.Module):
    """Film (n, 3, rows, columns), -1 to 1, to logits and maps.

    Parameters
    ----------
    answers
        Findings.
    """

    weight: torch.Tensor
    bias: torch.Tensor
    mean: torch.Tensor
    axes: torch.Tensor

    def __init__(self, answers: int) -> None:
        super().__init__()
        self.backbone = EfficientNetLite(BLOCKS)
        self.register_buffer("weight", torch.zeros(answers, CHANNELS, FIELDS, FIELDS))
        self.register_buffer("bias", torch.zeros(answers))
        self.register_buffer("mean", torch.zeros(CHANNELS))
        self.register_buffer("axes", torch.eye(CHANNELS))

    def maps(self, film: torch.Tensor) -> torch.Tensor:
        """Return (n, 112, rows / 16, columns / 16)."""
        found: torch.Tensor = self.backbone(film)
        return found

    def logits(self, maps: torch.Tensor) -> torch.Tensor:
        """Return (n, answers)."""
        fields = nn.functional.adaptive_avg_pool2d(maps, FIELDS)
        return torch.einsum("ncrk,acrk->na", fields, self.weight) + self.bias

    def activation(self, maps: torch.Tensor) -> torch.Tensor:
        """Return (n, answers, rows / 16, columns / 16): what each place contributes, whose sum is the logit."""
        rows, columns = maps.shape[2:]
        weight = nn.functional.interpolate(self.weight, size=(rows, columns), mode="nearest")
        share = FIELDS**2 / (rows * columns)
        return torch.einsum("ncrk,acrk->nark", maps, weight) * share + self.bias[:, None, None] / (rows * columns)

    def distance(self, maps: torch.Tensor) -> torch.Tensor:
        """Return (n,) distances from the training films, about 1 for a film like them."""
        return ((maps.mean(dim=(2, 3)) - self.mean) @ self.axes.T).square().mean(dim=1).sqrt()

    def forward(self, film: torch.Tensor) -> torch.Tensor:
        """Return the logits."""
        return self.logits(self.maps(film))
