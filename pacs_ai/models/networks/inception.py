"""Inception v3 as MONAI's TorchVisionFCModel wraps it, with the names of public checkpoints, and without torchvision.

Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", CVPR 2016. Written here because
torchvision is no dependency of the node. The auxiliary head has weights, as checkpoints do, and is never computed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

ONE, THREE, FIVE = (1, 1), (3, 3), (5, 5)
WIDE, HIGH = (1, 7), (7, 1)
#: From values scaled as ImageNet's (mean 0.485, 0.456, 0.406; deviation 0.229, 0.224, 0.225) to mean and deviation 0.5.
SCALE = (0.229 / 0.5, 0.224 / 0.5, 0.225 / 0.5)
SHIFT = ((0.485 - 0.5) / 0.5, (0.456 - 0.5) / 0.5, (0.406 - 0.5) / 0.5)


class Unit(nn.Module):
    """Convolution, batch normalisation, ReLU."""

    def __init__(
        self, inputs: int, outputs: int, kernel: tuple[int, int], stride: int = 1, padding: tuple[int, int] = (0, 0)
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=0.001)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(batch, channels, rows, columns) in and out."""
        return functional.relu(self.bn(self.conv(image)))


class Mixed(nn.Module):
    """Branches side by side, their channels put behind one another.

    Parameters
    ----------
    inputs
        Channels.
    branches
        Each a chain of names and (outputs, kernel, stride); a tuple of two at its end splits the chain in two.
    pooled
        Channels to which the average-pooled input is brought; 0: the input is max-pooled at stride 2 instead.
    """

    def __init__(self, inputs: int, branches: list[list[Any]], pooled: int) -> None:
        super().__init__()
        self.chains: list[list[Any]] = []
        self.outputs = pooled or inputs
        for branch in branches:
            channels = inputs
            for step in branch:
                ends = step if isinstance(step, list) else [step]
                for name, outputs, kernel, stride in ends:
                    padding = (0, 0) if stride == 2 else (kernel[0] // 2, kernel[1] // 2)
                    self.add_module(name, Unit(channels, outputs, kernel, stride, padding))
                channels = ends[0][1]
            self.chains.append([[end[0] for end in step] if isinstance(step, list) else step[0] for step in branch])
            self.outputs += sum(end[1] for end in branch[-1]) if isinstance(branch[-1], list) else branch[-1][1]
        if pooled:
            self.branch_pool = Unit(inputs, pooled, ONE)
        self.pooled = pooled

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(batch, channels, rows, columns) in; `outputs` channels out."""
        found: list[torch.Tensor] = []
        for chain in self.chains:
            value = image
            for step in chain:
                if isinstance(step, list):
                    value = torch.cat([self.get_submodule(name)(value) for name in step], 1)
                else:
                    value = self.get_submodule(step)(value)
            found.append(value)
        if self.pooled:
            found.append(self.branch_pool(functional.avg_pool2d(image, 3, 1, 1)))
        else:
            found.append(functional.max_pool2d(image, 3, 2))
        return torch.cat(found, 1)


def _block_a(inputs: int, pooled: int) -> Mixed:
    one = [("branch1x1", 64, ONE, 1)]
    five = [("branch5x5_1", 48, ONE, 1), ("branch5x5_2", 64, FIVE, 1)]
    double = [("branch3x3dbl_1", 64, ONE, 1), ("branch3x3dbl_2", 96, THREE, 1), ("branch3x3dbl_3", 96, THREE, 1)]
    return Mixed(inputs, [one, five, double], pooled)


def _block_b(inputs: int) -> Mixed:
    double = [("branch3x3dbl_1", 64, ONE, 1), ("branch3x3dbl_2", 96, THREE, 1), ("branch3x3dbl_3", 96, THREE, 2)]
    return Mixed(inputs, [[("branch3x3", 384, THREE, 2)], double], 0)


def _block_c(inputs: int, inner: int) -> Mixed:
    seven = [("branch7x7_1", inner, ONE, 1), ("branch7x7_2", inner, WIDE, 1), ("branch7x7_3", 192, HIGH, 1)]
    double = [("branch7x7dbl_1", inner, ONE, 1), ("branch7x7dbl_2", inner, HIGH, 1), ("branch7x7dbl_3", inner, WIDE, 1)]
    double += [("branch7x7dbl_4", inner, HIGH, 1), ("branch7x7dbl_5", 192, WIDE, 1)]
    return Mixed(inputs, [[("branch1x1", 192, ONE, 1)], seven, double], 192)


def _block_d(inputs: int) -> Mixed:
    three = [("branch3x3_1", 192, ONE, 1), ("branch3x3_2", 320, THREE, 2)]
    seven = [("branch7x7x3_1", 192, ONE, 1), ("branch7x7x3_2", 192, WIDE, 1)]
    seven += [("branch7x7x3_3", 192, HIGH, 1), ("branch7x7x3_4", 192, THREE, 2)]
    return Mixed(inputs, [three, seven], 0)


def _block_e(inputs: int) -> Mixed:
    flat, upright = (1, 3), (3, 1)
    three = [("branch3x3_1", 384, ONE, 1), [("branch3x3_2a", 384, flat, 1), ("branch3x3_2b", 384, upright, 1)]]
    double: list[Any] = [("branch3x3dbl_1", 448, ONE, 1), ("branch3x3dbl_2", 384, THREE, 1)]
    double += [[("branch3x3dbl_3a", 384, flat, 1), ("branch3x3dbl_3b", 384, upright, 1)]]
    return Mixed(inputs, [[("branch1x1", 320, ONE, 1)], three, double], 192)


class _Auxiliary(nn.Module):
    """The head that only training uses."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.conv0 = Unit(inputs, 128, ONE)
        self.conv1 = Unit(128, 768, FIVE)
        self.fc = nn.Linear(768, 1000)


class Inception3(nn.Module):
    """The trunk: (batch, 3, rows, columns), rows and columns from 75 on, in; (batch, 2048) out.

    Parameters
    ----------
    transform_input
        Whether the input is scaled as ImageNet's and is brought to mean and deviation 0.5, as the public weights want.
    """

    def __init__(self, *, transform_input: bool) -> None:
        super().__init__()
        self.transform_input = transform_input
        self.Conv2d_1a_3x3 = Unit(3, 32, THREE, 2)
        self.Conv2d_2a_3x3 = Unit(32, 32, THREE)
        self.Conv2d_2b_3x3 = Unit(32, 64, THREE, 1, (1, 1))
        self.Conv2d_3b_1x1 = Unit(64, 80, ONE)
        self.Conv2d_4a_3x3 = Unit(80, 192, THREE)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = _block_a(192, 32), _block_a(256, 64), _block_a(288, 64)
        self.Mixed_6a = _block_b(288)
        self.Mixed_6b, self.Mixed_6c = _block_c(768, 128), _block_c(768, 160)
        self.Mixed_6d, self.Mixed_6e = _block_c(768, 160), _block_c(768, 192)
        self.AuxLogits = _Auxiliary(768)
        self.Mixed_7a = _block_d(768)
        self.Mixed_7b, self.Mixed_7c = _block_e(1280), _block_e(2048)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return the features of each image."""
        if self.transform_input:
            scale = image.new_tensor(SCALE)[None, :, None, None]
            image = image * scale + image.new_tensor(SHIFT)[None, :, None, None]
        value = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(image)))
        value = functional.max_pool2d(value, 3, 2)
        value = functional.max_pool2d(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(value)), 3, 2)
        blocks = ("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c")
        for block in blocks:
            value = self.get_submodule(f"Mixed_{block}")(value)
        return torch.flatten(functional.adaptive_avg_pool2d(value, 1), 1)


class TorchVisionFCModel(nn.Module):
    """Inception v3 with a last layer of its own; MONAI's component of that name, for this one network.

    Parameters
    ----------
    model_name
        "inception_v3".
    num_classes, bias
        Of the last layer.
    pool, use_conv
        None and False: other heads are not built.
    pretrained
        Nothing is ever fetched; True means that the weights want their input as ImageNet's (`Inception3`).
    """

    def __init__(
        self,
        model_name: str,
        num_classes: int = 1,
        *,
        pool: Any = None,
        use_conv: bool = False,
        bias: bool = True,
        pretrained: bool = False,
    ) -> None:
        super().__init__()
        if model_name != "inception_v3" or pool is not None or use_conv:
            raise ValueError(
                f"of torchvision's networks only inception_v3 with its own pooling is built, no {model_name}"
            )
        self.features = Inception3(transform_input=pretrained)
        self.fc = nn.Linear(2048, num_classes, bias=bias)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(batch, 3, rows, columns) -> (batch, classes)."""
        value: torch.Tensor = self.fc(self.features(image))
        return value
