"""From stored values to the brightness of a radiograph or ultrasound image: Modality LUT, and high is bright."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from pydicom import Dataset
from pydicom.pixels.processing import apply_modality_lut

from pacs_ai.dicom.geometry import read_numbers
from pacs_ai.dicom.reading import READING_FAULTS, read_items, read_value
from pacs_ai.errors import Reason, Refused

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pacs_ai.infer.pixels import Layout
    from pacs_ai.pipeline import Array

#: Types that whole numbers are kept in, the first that holds them.
_WHOLE = (np.dtype(np.int16), np.dtype(np.uint16))


@dataclass(frozen=True)
class Scaling:
    """How stored values become modality values (PS3.3 C.11.1): by a table, or else by a line."""

    slope: float
    intercept: float
    table: Dataset | None = None


def read_scaling(places: Sequence[Dataset]) -> Scaling:
    """Return the scaling that the first of the data sets with one has; values as stored where there is none.

    Raises
    ------
    Refused
        Where the numbers are none.
    """
    for place in places:
        if items := read_items(place, "ModalityLUTSequence"):
            holder = Dataset()
            holder.ModalityLUTSequence = [items[0]]
            return Scaling(1.0, 0.0, holder)
        if read_value(place, "RescaleSlope") in (None, "") and read_value(place, "RescaleIntercept") in (None, ""):
            continue
        slope, intercept = (read_numbers(place, keyword, 1)[0] for keyword in ("RescaleSlope", "RescaleIntercept"))
        if slope == 0:
            raise Refused("Rescale Slope is 0", Reason.UNREADABLE)
        return Scaling(slope, intercept)
    return Scaling(1.0, 0.0)


def brightness(layout: Layout, stored: Array, scaling: Scaling) -> Array:
    """Return (rows, columns) modality values, MONOCHROME1 turned about the middle of what can be stored.

    int16 or uint16 if every value fits exactly, else float32.
    """
    if scaling.table is not None:
        values, ends = _through_table(stored, scaling.table)
    else:
        values, ends = _along_line(layout, stored, scaling)
    if layout.photometric_interpretation == "MONOCHROME1":
        values = ends[0] + ends[1] - values
    return _smallest(values, ends)


def _through_table(stored: Array, table: Dataset) -> tuple[Array, tuple[float, float]]:
    try:
        values = apply_modality_lut(stored, table)
        bits = int(table.ModalityLUTSequence[0].LUTDescriptor[2])
    except READING_FAULTS as fault:
        raise Refused("the Modality LUT cannot be read", Reason.UNREADABLE) from fault
    return values.astype(np.int64), (0, 2**bits - 1)


def _along_line(layout: Layout, stored: Array, scaling: Scaling) -> tuple[Array, tuple[float, float]]:
    slope, intercept = scaling.slope, scaling.intercept
    low, high = sorted(bound * slope + intercept for bound in layout.bounds)
    if slope.is_integer() and intercept.is_integer() and max(abs(low), abs(high)) < 2**62:
        return stored.astype(np.int64) * int(slope) + int(intercept), (int(low), int(high))
    return stored.astype(np.float64) * slope + intercept, (low, high)


def _smallest(values: Array, ends: tuple[float, float]) -> Array:
    """Return the values in the smallest type for what can be stored, or else for what is."""
    if values.dtype.kind != "f":
        for low, high in (ends, (int(values.min()), int(values.max()))):
            for dtype in _WHOLE:
                if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
                    return values.astype(dtype)
    return values.astype(np.float32)
