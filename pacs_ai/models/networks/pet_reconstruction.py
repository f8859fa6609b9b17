"""A small encoder-decoder that makes a PET image from a sinogram, the back-projection being given."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

#: Slope of the activations below zero.
_LEAK = 0.1


def _pair(given: int, made: int, *, stride: int = 1) -> nn.Sequential:
    """Return two 3 x 3 convolutions, the first of which may halve the size."""
    return nn.Sequential(
        nn.Conv2d(given, made, 3, stride, 1),
        nn.LeakyReLU(_LEAK),
        nn.Conv2d(made, made, 3, 1, 1),
        nn.LeakyReLU(_LEAK),
    )


class Refiner(nn.Module):
    """Filtered back-projection, made better: an encoder-decoder with skips behind an operator that is known.

    The back-projection is not learned (Maier et al., Nature Machine Intelligence 1, 2019: known operators lower the
    largest error that a network can make; Jin et al., IEEE TIP 26, 2017, do so for CT), so few weights suffice.

    Parameters
    ----------
    widths
        Channels at a half, a quarter and an eighth of the size.
    """

    def __init__(self, widths: tuple[int, int, int] = (32, 64, 96)) -> None:
        super().__init__()
        first, second, third = widths
        self.enter = _pair(8, first)
        self.down = _pair(first, second, stride=2)
        self.deep = _pair(second, third, stride=2)
        self.up = _pair(third + second, second)
        self.leave = _pair(second + first, first)
        self.last = nn.Conv2d(first, 4, 3, 1, 1)

    def forward(self, seen: torch.Tensor) -> torch.Tensor:
        """(planes, 2, size, size) of back-projection and its expected noise -> (planes, 1, size, size), not negative.

        `size` is a multiple of 8.
        """
        folded = functional.pixel_unshuffle(seen, 2)
        first = self.enter(folded)
        second = self.down(first)
        third = self.deep(second)
        up = self.up(torch.cat([functional.interpolate(third, scale_factor=2), second], 1))
        near = self.leave(torch.cat([functional.interpolate(up, scale_factor=2), first], 1))
        return functional.relu(seen[:, :1] + functional.pixel_shuffle(self.last(near), 2))
