"""DenseNet-121 with the parameter names of its public chest-film checkpoints (CheXNet, torchxrayvision).

After Huang et al., Densely Connected Convolutional Networks, CVPR 2017 (arXiv 1608.06993): growth 32, blocks of 6, 12,
24 and 16 layers, bottlenecks of four times the growth.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import nn

GROWTH, BLOCKS, FIRST, BOTTLENECK = 32, (6, 12, 24, 16), 64, 4
#: Channels of the last feature map.
LAST = 1024


class DenseLayer(nn.Module):
    """A 1 x 1 and a 3 x 3 convolution, each after normalisation and ReLU; the output is put beside the input."""

    def __init__(self, given: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(given)
        self.conv1 = nn.Conv2d(given, BOTTLENECK * GROWTH, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(BOTTLENECK * GROWTH)
        self.conv2 = nn.Conv2d(BOTTLENECK * GROWTH, GROWTH, 3, padding=1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (n, given + growth, rows, columns)."""
        y = self.conv1(nn.functional.relu(self.norm1(x)))
        y = self.conv2(nn.functional.relu(self.norm2(y)))
        return torch.cat((x, y), dim=1)


class Transition(nn.Module):
    """Half as many channels, rows and columns."""

    def __init__(self, given: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(given)
        self.conv = nn.Conv2d(given, given // 2, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (n, given / 2, rows / 2, columns / 2)."""
        return nn.functional.avg_pool2d(self.conv(nn.functional.relu(self.norm(x))), 2)


class DenseNet121(nn.Module):
    """Image (n, channels, rows, columns) to logits (n, answers).

    Parameters
    ----------
    channels
        Of the image: 3 for CheXNet, 1 for torchxrayvision.
    answers
        How many.
    """

    def __init__(self, channels: int, answers: int) -> None:
        super().__init__()
        parts: list[tuple[str, nn.Module]] = [
            ("conv0", nn.Conv2d(channels, FIRST, 7, stride=2, padding=3, bias=False)),
            ("norm0", nn.BatchNorm2d(FIRST)),
            ("relu0", nn.ReLU()),
            ("pool0", nn.MaxPool2d(3, stride=2, padding=1)),
        ]
        width = FIRST
        for number, count in enumerate(BLOCKS, start=1):
            layers: OrderedDict[str, nn.Module] = OrderedDict(
                (f"denselayer{k + 1}", DenseLayer(width + k * GROWTH)) for k in range(count)
            )
            parts.append((f"denseblock{number}", nn.Sequential(layers)))
            width += count * GROWTH
            if number < len(BLOCKS):
                parts.append((f"transition{number}", Transition(width)))
                width //= 2
        parts.append(("norm5", nn.BatchNorm2d(width)))
        self.features = nn.Sequential(OrderedDict(parts))
        self.classifier = nn.Linear(width, answers)

    def maps(self, image: torch.Tensor) -> torch.Tensor:
        """Return the last feature maps (n, 1024, rows / 32, columns / 32), of which the classifier sees the means."""
        return nn.functional.relu(self.features(image))

    def logits(self, maps: torch.Tensor) -> torch.Tensor:
        """Return (n, answers)."""
        made: torch.Tensor = self.classifier(maps.mean(dim=(2, 3)))
        return made

    def activation(self, maps: torch.Tensor) -> torch.Tensor:
        """Return (n, answers, rows / 32, columns / 32): the class activation maps (Zhou et al., CVPR 2016)."""
        return torch.einsum("ncrk,ac->nark", maps, self.classifier.weight)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return the logits."""
        return self.logits(self.maps(image))
