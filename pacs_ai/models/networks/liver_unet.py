"""The two U-Nets of pyliverlesionseg: the liver in voxels of 3 mm, and lesions in the liver in voxels of 1 x 1 x 3 mm.

After DeepVoxNet (Robben et al., KUL/ESAT/PSI/1801, 2018). Both normalise every channel over the whole window that they
are given, so that windows of another size, or another filling around the patient, give other results.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

#: Added to the standard deviation; slope of the activations below zero (Keras' defaults and the authors' setting).
_LEAST = 1e-7
_LEAK = 0.01
_FLAT, _CUBE = (3, 3, 1), (3, 3, 3)


@dataclass(frozen=True)
class Form:
    """What tells one of the two networks from the other.

    Parameters
    ----------
    step
        By how much each level is coarser than the one above.
    same
        Whether convolutions keep the size, by zeros around.
    residual
        Whether each pair of convolutions is bridged.
    smooth
        Whether enlarging is linear; otherwise values are repeated.
    deepest
        Kernel of the first convolution of the deepest level.
    window, result
        Voxels along x, y, z of what goes in and of what comes out: its middle.
    """

    step: int
    same: bool
    residual: bool
    smooth: bool
    deepest: tuple[int, int, int]
    window: tuple[int, int, int]
    result: tuple[int, int, int]


LIVER = Form(3, True, False, True, _CUBE, (189, 162, 162), (163, 136, 136))
LESIONS = Form(2, False, True, False, _FLAT, (180, 172, 86), (92, 84, 42))


def _normalised(values: torch.Tensor) -> torch.Tensor:
    """Return values of mean 0 and deviation 1 in each channel, then the leaky activation."""
    mean = values.mean((2, 3, 4), keepdim=True)
    deviation = values.std((2, 3, 4), keepdim=True, unbiased=False)
    return functional.leaky_relu_((values - mean).div_(deviation + _LEAST), _LEAK)


def _middle(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Return the middle of `values`, of the size of `like`."""
    cut = [(a - b) // 2 for a, b in zip(values.shape[2:], like.shape[2:], strict=True)]
    for axis, (start, size) in enumerate(zip(cut, like.shape[2:], strict=True), 2):
        values = values.narrow(axis, start, size)
    return values


class _Pair(nn.Module):
    """Two convolutions, each behind normalisation and activation, perhaps bridged."""

    def __init__(
        self, fed: int, widths: tuple[int, int], kernels: tuple[tuple[int, int, int], ...], form: Form, *, first: bool
    ) -> None:
        super().__init__()
        middle, out = widths
        pads = [tuple((size - 1) // 2 for size in kernel) if form.same else 0 for kernel in kernels]
        self.one = nn.Conv3d(fed, middle, kernels[0], padding=pads[0])  # type: ignore[arg-type]
        self.two = nn.Conv3d(middle, out, kernels[1], padding=pads[1])  # type: ignore[arg-type]
        self.bridge = nn.Conv3d(fed, out, 1) if form.residual and fed != out else None
        self._first, self._residual = first, form.residual

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        made = self.two(_normalised(self.one(values if self._first else _normalised(values))))
        if not self._residual:
            return made  # type: ignore[no-any-return]
        kept = _middle(values, made)
        return made.add_(kept if self.bridge is None else self.bridge(kept))  # type: ignore[no-any-return]

    def convolutions(self) -> Iterator[nn.Conv3d]:
        """Yield the convolutions in the order in which the authors' program made them."""
        yield self.one
        yield self.two
        if self.bridge is not None:
            yield self.bridge


class LiverUnet(nn.Module):
    """One of the two networks.

    Parameters
    ----------
    form
        `LIVER` or `LESIONS`.
    """

    def __init__(self, form: Form) -> None:
        super().__init__()
        self.form = form
        down, up = (_FLAT, _CUBE), (_CUBE, _FLAT)
        deepest = (form.deepest, _CUBE)
        self.down = nn.ModuleList(
            [
                _Pair(1, (20, 40), down, form, first=True),
                _Pair(40, (40, 80), down, form, first=False),
                _Pair(80, (80, 160), down, form, first=False),
                _Pair(160, (160, 160), deepest, form, first=False),
            ]
        )
        self.up = nn.ModuleList(
            [
                _Pair(320, (160, 80), up, form, first=False),
                _Pair(160, (80, 40), up, form, first=False),
                _Pair(80, (40, 20), up, form, first=False),
            ]
        )
        self.last = nn.Conv3d(20, 1, 1)

    def forward(self, window: torch.Tensor) -> torch.Tensor:
        """(1, 1, *window) of values between -0.5 and 0.5 -> (1, 1, *result) of probabilities; axes x, y, z of RAS."""
        kept: list[torch.Tensor] = []
        values = window
        for pair in self.down:
            if kept:
                values = functional.max_pool3d(values, self.form.step)
            values = pair(values)
            kept.append(values)
        kept.pop()
        for pair in self.up:
            values = self._enlarged(values)
            values = pair(torch.cat([_middle(kept.pop(), values), values], 1))
        return torch.sigmoid(self.last(_normalised(values)))

    def _enlarged(self, values: torch.Tensor) -> torch.Tensor:
        step = self.form.step
        larger = functional.interpolate(values, scale_factor=step, mode="nearest")
        return functional.avg_pool3d(larger, step, 1) if self.form.smooth else larger

    def convolutions(self) -> Iterator[nn.Conv3d]:
        """Yield the convolutions in the order in which the authors' program made, and numbered, them."""
        for pair in (*self.down, *self.up):
            yield from pair.convolutions()
        yield self.last

    @classmethod
    def loaded(cls, form: Form, tensors: Mapping[str, torch.Tensor], name: str) -> LiverUnet:
        """Return the network with the tensors whose names begin with `name` and a dot, ready to predict."""
        network = cls(form)
        own = {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}
        network.load_state_dict(own)
        return network.eval()
