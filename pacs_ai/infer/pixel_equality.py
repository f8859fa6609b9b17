"""Tell whether two files hold the same image where their pixel data are encoded differently, by decoding both.

This runs decoders over bytes of strangers, and is therefore called in a worker's child process only. What the files
claim is checked before, and frames are decoded one at a time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pydicom

from pacs_ai.dicom.reading import READING_FAULTS
from pacs_ai.errors import NotUnderstood, Refused
from pacs_ai.infer.colour import check_colour, decode_colour
from pacs_ai.infer.pixels import GREYSCALES, decode, read_layout, split_frames

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import numpy.typing as npt


def compare_pixels(a: Path, b: Path) -> bool:
    """Tell whether the decoded samples of two files are equal, colours as RGB.

    Raises
    ------
    NotUnderstood
        The pixel data of one of them cannot be decoded, or claim what they cannot hold.
    """
    try:
        return all(x.dtype == y.dtype and np.array_equal(x, y) for x, y in zip(_frames(a), _frames(b), strict=True))
    except (*READING_FAULTS, OSError, RuntimeError, MemoryError, Refused) as fault:
        raise NotUnderstood("the pixel data cannot be decoded, so they cannot be compared") from fault


def _frames(path: Path) -> Iterator[npt.NDArray[np.generic]]:
    ds = pydicom.dcmread(path)
    layout = read_layout(ds, ds.file_meta.TransferSyntaxUID)
    is_grey = layout.photometric_interpretation in GREYSCALES
    if not is_grey:
        check_colour(layout)
    for encoded in split_frames(layout, ds.PixelData):
        yield decode(layout, encoded) if is_grey else decode_colour(layout, ds, encoded)
