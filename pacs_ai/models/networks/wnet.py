"""W-Net: two small U-Nets in a row that outline the vessels of the retina; the second sees what the first found.

After Galdran et al., "State-of-the-art retinal vessel segmentation with minimalistic models", Scientific Reports 12
(2022) 6174 (doi:10.1038/s41598-022-09675-y). The names of the modules are those of the published checkpoints, so that
their tensors fit as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pacs_ai.errors import PipelineFault

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True)
class Layout:
    """The numbers of a W-Net.

    Parameters
    ----------
    channels
        At each resolution, the finest first; each further one has half the rows and columns.
    classes
        Channels of the output: 1 for vessels (sigmoid), 4 for background, arteries and veins (softmax).
    """

    channels: tuple[int, ...]
    classes: int

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Layout:
        """Read the settings of a package; `PipelineFault` where they describe no W-Net."""
        try:
            layout = cls(tuple(int(one) for one in settings["channels"]), int(settings["classes"]))
        except (KeyError, TypeError, ValueError) as error:
            raise PipelineFault(f"the settings describe no W-Net: {error!r}") from error
        if not (2 <= len(layout.channels) <= 6 and all(1 <= one <= 512 for one in (*layout.channels, layout.classes))):
            raise PipelineFault("a W-Net has 2 to 6 resolutions of 1 to 512 channels")
        return layout

    @property
    def multiple(self) -> int:
        """Rows and columns of an image are multiples of this."""
        return int(2 ** (len(self.channels) - 1))


class _Residual(nn.Module):
    """Two 3 x 3 convolutions beside a 1 x 1, after pooling where the resolution is halved."""

    def __init__(self, fed: int, channels: int, *, pooled: bool) -> None:
        super().__init__()
        self.pool = nn.MaxPool2d(2) if pooled else nn.Identity()
        self.shortcut = nn.Sequential(nn.Conv2d(fed, channels, 1, bias=False), nn.BatchNorm2d(channels))
        self.block = nn.Sequential(
            nn.Conv2d(fed, channels, 3, padding=1),
            nn.ReLU(),
            nn.BatchNorm2d(channels),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.BatchNorm2d(channels),
        )

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        image = self.pool(image)
        found: torch.Tensor = self.block(image) + self.shortcut(image)
        return found


class _Named(nn.Module):
    """Layers under the name ``block``."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.block = nn.Sequential(*layers)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.block(image)
        return found


class _Up(nn.Module):
    """Twice the resolution, joined with what was seen there on the way down."""

    def __init__(self, fed: int, channels: int) -> None:
        super().__init__()
        self.up_layer = _Named(nn.ConvTranspose2d(fed, channels, 2, stride=2))
        self.conv_bridge_layer = _Named(
            nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(), nn.BatchNorm2d(channels)
        )
        self.conv_layer = _Residual(2 * channels, channels, pooled=False)

    def forward(self, coarse: torch.Tensor, fine: torch.Tensor) -> torch.Tensor:
        joined = torch.cat([self.up_layer(coarse), self.conv_bridge_layer(fine)], dim=1)
        found: torch.Tensor = self.conv_layer(joined)
        return found


class _UNet(nn.Module):
    """One of the two."""

    def __init__(self, fed: int, layout: Layout) -> None:
        super().__init__()
        channels = layout.channels
        self.first = _Residual(fed, channels[0], pooled=False)
        self.down_path = nn.ModuleList(_Residual(fine, coarse, pooled=True) for fine, coarse in pairwise(channels))
        self.up_path = nn.ModuleList(_Up(coarse, fine) for coarse, fine in pairwise(channels[::-1]))
        self.final = nn.Conv2d(channels[0], layout.classes, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        seen = [self.first(image)]
        for down in self.down_path:
            seen.append(down(seen[-1]))
        found = seen.pop()
        for up in self.up_path:
            found = up(found, seen.pop())
        logits: torch.Tensor = self.final(found)
        return logits


class WNet(nn.Module):
    """Both U-Nets.

    Parameters
    ----------
    layout
        Its numbers.
    """

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self.layout = layout
        self.unet1 = _UNet(3, layout)
        self.unet2 = _UNet(3 + layout.classes, layout)

    @classmethod
    def loaded(cls, layout: Layout, tensors: Mapping[str, torch.Tensor]) -> WNet:
        """Return the network with its weights; `PipelineFault` where names or shapes are others."""
        network = cls(layout)
        wanted = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
        found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        if wanted != found:
            wrong = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
            raise PipelineFault(f"the weights are not those of this W-Net: {', '.join(wrong[:4])} differ")
        network.load_state_dict(dict(tensors))
        return network.eval()

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return logits (images, classes, rows, columns) of (images, 3, rows, columns) RGB from 0 to 1."""
        logits: torch.Tensor = self.unet2(torch.cat([image, self.unet1(image)], dim=1))
        return logits
