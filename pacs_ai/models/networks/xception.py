"""Xception with a second input for what is known of the patient: what the skin lesion classifier is.

Chollet, "Xception: Deep Learning with Depthwise Separable Convolutions", CVPR 2017, in the flavour of Keras: BatchNorm
with epsilon 0.001, and padding "same" that puts an odd pixel at the end.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Sequence

_EPSILON = 1e-3
#: Channels after each block that halves the image.
_ENTRY = (128, 256, 728)
_MIDDLE_BLOCKS = 8
FEATURES = 2048


def _same(x: Tensor, size: int, stride: int, value: float) -> Tensor:
    """Pad (batch, channels, rows, columns) so that a window of `size` yields ceil(n / stride) rows and columns."""
    pads = []
    for n in (x.shape[3], x.shape[2]):
        total = max((math.ceil(n / stride) - 1) * stride + size - n, 0)
        pads += [total // 2, total - total // 2]
    return functional.pad(x, pads, value=value)


class Separable(nn.Module):
    """A depthwise 3 x 3 and a pointwise convolution, then BatchNorm."""

    def __init__(self, incoming: int, outgoing: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(incoming, incoming, 3, padding=1, groups=incoming, bias=False)
        self.pointwise = nn.Conv2d(incoming, outgoing, 1, bias=False)
        self.norm = nn.BatchNorm2d(outgoing, _EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, incoming, rows, columns) -> (batch, outgoing, rows, columns)."""
        normed: Tensor = self.norm(self.pointwise(self.depthwise(x)))
        return normed


class Block(nn.Module):
    """Separable convolutions beside a shortcut, which a block that halves the image convolves as well.

    Parameters
    ----------
    channels
        Before and after each separable convolution.
    halves
        Whether rows and columns are halved.
    activated
        Whether the first convolution is preceded by an activation.
    """

    def __init__(self, channels: Sequence[int], *, halves: bool, activated: bool = True) -> None:
        super().__init__()
        self.separable = nn.ModuleList(Separable(before, after) for before, after in pairwise(channels))
        self.halves, self.activated = halves, activated
        if halves:
            self.shortcut = nn.Conv2d(channels[0], channels[-1], 1, stride=2, bias=False)
            self.norm = nn.BatchNorm2d(channels[-1], _EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, rows, columns), halved or not."""
        y = x
        for number, separable in enumerate(self.separable):
            y = separable(functional.relu(y) if number or self.activated else y)
        if not self.halves:
            return x + y
        pooled = functional.max_pool2d(_same(y, 3, 2, -math.inf), 3, 2)
        added: Tensor = pooled + self.norm(self.shortcut(x))
        return added


class Xception(nn.Module):
    """Photograph, (batch, 3, rows, columns) normalised -> (batch, 2048) features."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 32, 3, stride=2, bias=False)
        self.first_norm = nn.BatchNorm2d(32, _EPSILON)
        self.second = nn.Conv2d(32, 64, 3, bias=False)
        self.second_norm = nn.BatchNorm2d(64, _EPSILON)
        widths = (64, *_ENTRY)
        entry = [
            Block((before, after, after), halves=True, activated=number > 0)
            for number, (before, after) in enumerate(pairwise(widths))
        ]
        middle = [Block((728,) * 4, halves=False) for _ in range(_MIDDLE_BLOCKS)]
        self.blocks = nn.ModuleList([*entry, *middle, Block((728, 728, 1024), halves=True)])
        self.last = nn.ModuleList([Separable(1024, 1536), Separable(1536, FEATURES)])

    def forward(self, x: Tensor) -> Tensor:
        """Return the features of normalised photographs."""
        x = functional.relu(self.first_norm(self.first(x)))
        x = functional.relu(self.second_norm(self.second(x)))
        for block in self.blocks:
            x = block(x)
        for separable in self.last:
            x = functional.relu(separable(x))
        return x.mean(dim=(2, 3))


class LesionClassifier(nn.Module):
    """Photograph and patient -> probability of each class.

    Parameters
    ----------
    known
        Numbers that say what is known of the patient.
    classes
        How many.
    """

    def __init__(self, known: int = 10, classes: int = 7) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("variance", torch.ones(3))
        self.features = Xception()
        self.image, self.image_norm = nn.Linear(FEATURES, 264), nn.BatchNorm1d(264, _EPSILON)
        self.patient, self.patient_norm = nn.Linear(known, 224), nn.BatchNorm1d(224, _EPSILON)
        self.patient_2, self.patient_2_norm = nn.Linear(224, 64), nn.BatchNorm1d(64, _EPSILON)
        self.both, self.both_norm = nn.Linear(264 + 64, 32), nn.BatchNorm1d(32, _EPSILON)
        self.classes = nn.Linear(32, classes)

    def forward(self, pixels: Tensor, known: Tensor) -> Tensor:
        """Return (batch, classes) probabilities of (batch, 3, rows, columns) RGB 0 to 255 and (batch, known)."""
        assert isinstance(self.mean, Tensor) and isinstance(self.variance, Tensor)  # noqa: PT018 - for mypy
        normalised = (pixels - self.mean[:, None, None]) / self.variance.sqrt().clamp_min(1e-7)[:, None, None]
        image = self.image_norm(functional.relu(self.image(self.features(normalised))))
        patient = self.patient_norm(functional.relu(self.patient(known)))
        patient = self.patient_2_norm(functional.relu(self.patient_2(patient)))
        both = self.both_norm(functional.relu(self.both(torch.cat([image, patient], dim=1))))
        return torch.softmax(self.classes(both), dim=1)


class Familiarity:
    """How far an image lies from the training images, by what each BatchNorm of the network remembers of them.

    Of every channel the square of (mean over this image - running mean) / running variance, averaged over channels and
    then over layers: images of the kind trained on share a small part of the variance, others stand off in many layers.

    Parameters
    ----------
    network
        Whose two-dimensional BatchNorm layers are watched from now on.
    """

    def __init__(self, network: nn.Module) -> None:
        self._seen: list[float] = []
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.register_forward_pre_hook(self._watch)

    def _watch(self, module: nn.Module, given: tuple[Tensor, ...]) -> None:
        assert isinstance(module.running_mean, Tensor)
        assert isinstance(module.running_var, Tensor)
        off = given[0].mean(dim=(0, 2, 3)) - module.running_mean
        self._seen.append(float((off**2 / (module.running_var + _EPSILON)).mean()))

    def taken(self) -> float:
        """Return the distance of what ran since the last call."""
        seen, self._seen = self._seen, []
        return sum(seen) / max(len(seen), 1)
