"""Four mammograms at once: one trunk for all views, each breast from its two, density and suspicion as answers.

The plan of Wu et al., "Deep Neural Networks Improve Radiologists' Performance in Breast Cancer Screening", IEEE TMI 39
(2020): a residual trunk shared by the views, features joined by breast. He et al., CVPR 2016, for the residual blocks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Views in the order of the network's second axis.
VIEWS = ("cc_left", "mlo_left", "cc_right", "mlo_right")
WIDTHS = (32, 64, 128, 256)
#: Classes of breast composition.
DENSITIES = 4


class Residual(nn.Module):
    """Two 3 x 3 convolutions beside a short cut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.short = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return (n, outputs, rows / stride, columns / stride)."""
        value = functional.relu(self.norm1(self.conv1(image)))
        return functional.relu(self.norm2(self.conv2(value)) + self.short(image))


class MultiView(nn.Module):
    """(studies, 4 views, 1, rows, columns), breasts turned alike -> logits of density and of suspicion.

    Parameters
    ----------
    widths
        Channels of the trunk's stages; each halves rows and columns.
    """

    def __init__(self, widths: Sequence[int] = WIDTHS) -> None:
        super().__init__()
        first = widths[0]
        self.stem = nn.Conv2d(1, first, 7, 4, 3, bias=False)
        self.norm = nn.BatchNorm2d(first)
        pairs = zip((first, *widths[:-1]), widths, strict=True)
        self.stages = nn.Sequential(
            *(nn.Sequential(Residual(a, b, 2), Residual(b, b, 1)) for a, b in pairs),
        )
        self.breast = nn.Linear(2 * widths[-1], widths[-1])
        self.density = nn.Linear(widths[-1], DENSITIES)
        self.suspicion = nn.Linear(widths[-1], 1)

    def forward(self, views: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return density, (studies, 4), and suspicion of the left and the right breast, (studies, 2)."""
        studies, count = views.shape[:2]
        value = functional.relu(self.norm(self.stem(views.flatten(0, 1))))
        value = self.stages(value)
        seen = value.mean((2, 3)).unflatten(0, (studies, count))
        breasts = functional.relu(self.breast(seen.unflatten(1, (2, 2)).flatten(2)))
        return self.density(breasts.mean(1)), self.suspicion(breasts).squeeze(2)
