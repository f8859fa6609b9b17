"""Small U-Net that outlines the fetal head in one ultrasound frame; trained by ``scripts/train_fetal_head.py``.

After Ronneberger et al., U-Net, MICCAI 2015 (doi 10.1007/978-3-319-24574-4_28). The first step rearranges each 2 x 2
pixels into channels and the last one back (Shi et al., CVPR 2016), so that the work is done on a quarter of the
pixels while the outline is still drawn on all of them.
"""

from __future__ import annotations

import torch
from torch import nn

#: Rows and columns of the frame that the network was trained on.
ROWS, COLUMNS = 128, 192
#: Channels of each level, from the finest.
WIDTHS = (16, 32, 64, 96, 112)
_SHUFFLE = 2


class Step(nn.Sequential):
    """Two 3 x 3 convolutions, each with batch normalisation and ReLU."""

    def __init__(self, given: int, width: int) -> None:
        layers: list[nn.Module] = []
        for channels in (given, width):
            layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        super().__init__(*layers)


class FetalUNet(nn.Module):
    """Frame (n, 1, rows, columns), grey values 0 to 1, to logits of the head of the same shape.

    Rows and columns must be multiples of 32.
    """

    def __init__(self) -> None:
        super().__init__()
        given = (_SHUFFLE**2, *WIDTHS[:-1])
        self.down = nn.ModuleList(Step(a, b) for a, b in zip(given, WIDTHS, strict=True))
        self.up = nn.ModuleList(Step(a + b, b) for a, b in zip(WIDTHS[:0:-1], WIDTHS[-2::-1], strict=True))
        self.head = nn.Conv2d(WIDTHS[0], _SHUFFLE**2, 1)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """Return the logits."""
        x = nn.functional.pixel_unshuffle(frames, _SHUFFLE)
        kept = []
        for level, step in enumerate(self.down):
            x = step(x if level == 0 else nn.functional.max_pool2d(x, 2))
            kept.append(x)
        kept.pop()
        for step in self.up:
            finer = kept.pop()
            x = nn.functional.interpolate(x, size=finer.shape[2:], mode="bilinear", align_corners=False)
            x = step(torch.cat((x, finer), dim=1))
        return nn.functional.pixel_shuffle(self.head(x), _SHUFFLE)
