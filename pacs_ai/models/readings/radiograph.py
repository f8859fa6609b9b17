"""A radiograph's grey values brought to the size and range that the networks of chest films were trained on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from pacs_ai.models.readings.shrinking import resized

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pacs_ai.pipeline import Array

#: Rows and columns of the student's films.
SIDE = 320
#: Grey values below and above these percentiles are cut off.
_CUT = (1.0, 99.0)
#: Mean and standard deviation of ImageNet, red, green, blue.
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_SHORT, _CROP = 256, 224


def is_raw(header: Mapping[str, str]) -> bool:
    """Tell whether an image is the detector's, for processing and not for presentation (PS3.3 C.8.11.1.1.1)."""
    return header.get("PresentationIntentType", "") == "FOR PROCESSING"


def shrunk(pixels: Array, side: int = SIDE) -> torch.Tensor:
    """Return the film as (side, side) float32, each axis scaled by itself as the NIH's films were."""
    return torch.from_numpy(resized(pixels, side, side, "lanczos").copy())


def normalised(pixels: Array) -> torch.Tensor:
    """Return (1, 320, 320) float32, 0 to 1 between the 1st and the 99th percentile of the shrunken film."""
    return _stretched(shrunk(pixels))[None]


def student_views(pixels: Array) -> torch.Tensor:
    """Return (1, 3, 320, 320): what the student sees, -1 to 1."""
    return normalised(pixels)[None].expand(-1, 3, -1, -1) * 2 - 1


def chexnet_views(pixels: Array) -> torch.Tensor:
    """Return (10, 3, 224, 224): corners and centre of the film with its short side at 256, and their mirror images.

    As CheXNet was tested (Rajpurkar et al. 2017, arXiv 1711.05225, and its replicas), with the mean and deviation of
    ImageNet.
    """
    rows, columns = pixels.shape
    factor = _SHORT / min(rows, columns)
    small = resized(pixels, max(round(rows * factor), _CROP), max(round(columns * factor), _CROP), "triangle")
    film = eight_bits(torch.from_numpy(small.copy()), pixels)
    down, right = film.shape[0] - _CROP, film.shape[1] - _CROP
    corners = ((0, 0), (0, right), (down, 0), (down, right), (down // 2, right // 2))
    crops = torch.stack([film[r : r + _CROP, c : c + _CROP] for r, c in corners])
    crops = torch.cat((crops, crops.flip(-1)))[:, None].expand(-1, 3, -1, -1)
    return (crops - torch.tensor(_MEAN).view(3, 1, 1)) / torch.tensor(_DEVIATION).view(3, 1, 1)


def xrv_views(pixels: Array) -> torch.Tensor:
    """Return (1, 1, 224, 224), -1024 to 1024: the middle square of the film, as torchxrayvision wants it."""
    side = min(pixels.shape)
    top, left = (pixels.shape[0] - side) // 2, (pixels.shape[1] - side) // 2
    square = pixels[top : top + side, left : left + side]
    small = torch.from_numpy(resized(square, _CROP, _CROP, "triangle").copy())
    return (eight_bits(small, pixels) * 2 - 1)[None, None] * 1024


def eight_bits(film: torch.Tensor, pixels: Array) -> torch.Tensor:
    """Return the film from 0 to 1: as it is where its values are those of 8 bits, else between two percentiles."""
    return film / 255 if pixels.min() >= 0 and pixels.max() <= 255 else _stretched(film)


def _stretched(film: torch.Tensor) -> torch.Tensor:
    low, high = np.percentile(film.numpy(), _CUT)
    return ((film - float(low)) / max(float(high - low), 1e-6)).clamp(0, 1)
