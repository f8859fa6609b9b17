"""pyapetnet's network: a PET image and the T1 of the same head in, the PET of a guided reconstruction out.

Schramm et al., Approximating anatomically-guided PET reconstruction in image space using a convolutional neural
network, NeuroImage 224, 2021. Its batch normalisation is part of the convolutions here, so that tiles are exact.
"""

from __future__ import annotations

import torch
from torch import nn

#: Layers that change a voxel see one voxel further each: the margin of a tile.
REACH = 8


class _Layer(nn.Module):
    """A convolution and an activation with a slope of its own for each channel."""

    def __init__(self, fed: int, made: int) -> None:
        super().__init__()
        self.convolution = nn.Conv3d(fed, made, 3, padding=1)
        self.slope = nn.PReLU(made)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return self.slope(self.convolution(values))  # type: ignore[no-any-return]


class Apetnet(nn.Module):
    """The network with `own` channels for each of the two images, then `common` channels in `layers` layers."""

    def __init__(self, own: int = 15, common: int = 30, layers: int = REACH - 1) -> None:
        super().__init__()
        self.pet, self.t1 = _Layer(1, own), _Layer(1, own)
        self.common = nn.ModuleList([_Layer(2 * own if k == 0 else common, common) for k in range(layers)])
        self.last = nn.Conv3d(common, 1, 1)

    def forward(self, pet: torch.Tensor, t1: torch.Tensor) -> torch.Tensor:
        """(1, 1, x, y, z) of both images, each about 0 to 1 -> the same shape, not negative."""
        values = torch.cat([self.pet(pet), self.t1(t1)], 1)
        for layer in self.common:
            values = layer(values)
        return torch.relu(self.last(values) + pet)
