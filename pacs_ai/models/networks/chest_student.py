"""The chest-film student: EfficientNet-Lite0, and one linear answer per finding on the means of its last maps.

An answer is a mean over the film of the same weighted sum at each place, so that this sum is the finding's class
activation map, exactly (Zhou et al., CVPR 2016). What the film is far from is told by the Mahalanobis distance of
the means from those of the films that it was trained on (Lee et al., NeurIPS 2018).
"""

from __future__ import annotations

import torch
from torch import nn

from pacs_ai.models.networks.efficientnet_lite import HEAD, EfficientNetLite


class ChestStudent(nn.Module):
    """Film (n, 3, rows, columns), -1 to 1, to logits and maps.

    Parameters
    ----------
    answers
        Findings.
    components
        Principal components of the means that the distance looks at.
    """

    mean: torch.Tensor
    axes: torch.Tensor

    def __init__(self, answers: int, components: int) -> None:
        super().__init__()
        self.backbone = EfficientNetLite()
        self.classifier = nn.Linear(HEAD, answers)
        self.register_buffer("mean", torch.zeros(HEAD))
        self.register_buffer("axes", torch.zeros(components, HEAD))

    def maps(self, film: torch.Tensor) -> torch.Tensor:
        """Return (n, 1280, rows / 32, columns / 32), of which the classifier sees the means."""
        found: torch.Tensor = self.backbone(film)
        return found

    def forward(self, film: torch.Tensor) -> torch.Tensor:
        """Return the logits (n, answers)."""
        logits: torch.Tensor = self.classifier(self.maps(film).mean(dim=(2, 3)))
        return logits

    def distance(self, means: torch.Tensor) -> torch.Tensor:
        """Return (n,) distances of means (n, 1280) from the training films', about 1 for a film like them."""
        return ((means - self.mean) @ self.axes.T).square().mean(dim=1).sqrt()
