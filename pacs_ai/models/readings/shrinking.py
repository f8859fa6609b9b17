"""Images brought to another number of rows and columns, by the filters that the training images were made with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from pacs_ai.pipeline import Array

Filter = Literal["lanczos", "box", "triangle"]
_FILTERS = {
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
    "triangle": Image.Resampling.BILINEAR,
}


def resized(pixels: Array, rows: int, columns: int, kind: Filter) -> Array:
    """Return (rows, columns) float32 of an image (rows, columns); "box" is the mean over areas."""
    image = Image.fromarray(np.ascontiguousarray(pixels, np.float32))
    return np.asarray(image.resize((columns, rows), _FILTERS[kind]), np.float32)
