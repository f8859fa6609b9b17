"""Tell whether two files hold the same image where their pixel data are encoded differently, by decoding both.

This runs decoders over bytes of strangers, and is therefore called in a worker's child process only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pydicom
from pydicom.pixels.utils import pixel_array

from pacs_ai.dicom.reading import READING_FAULTS
from pacs_ai.errors import NotUnderstood

if TYPE_CHECKING:
    from pathlib import Path


def compare_pixels(a: Path, b: Path) -> bool:
    """Tell whether the decoded samples of two files are equal, colours as RGB.

    Raises
    ------
    NotUnderstood
        The pixel data of one of them cannot be decoded.
    """
    try:
        samples_a, samples_b = (pixel_array(pydicom.dcmread(path)) for path in (a, b))
    except (*READING_FAULTS, RuntimeError, MemoryError) as fault:
        raise NotUnderstood("the pixel data cannot be decoded, so they cannot be compared") from fault
    return samples_a.dtype == samples_b.dtype and np.array_equal(samples_a, samples_b)
