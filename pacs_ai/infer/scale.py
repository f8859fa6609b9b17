"""How many millimetres a pixel of a radiograph or ultrasound image is in the patient, or why that is not known."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pacs_ai.dicom.geometry import read_numbers
from pacs_ai.dicom.reading import read_items, read_text, read_value
from pacs_ai.errors import Reason, Refused

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydicom import Dataset

#: Modalities whose Pixel Spacing is measured in the patient by their physics, without magnification.
_WITHOUT_MAGNIFICATION = ("CT", "MR", "PT", "NM", "US", "IVUS", "OCT")
#: Pixel Spacing differs from Imager Pixel Spacing by more than this part where it was corrected (PS3.3 10.7.1.3).
_CORRECTED = 1e-3
_CENTIMETRES = 3  #: Physical Units, PS3.3 C.8.5.5.1.3
_TWO_DIMENSIONAL = 1  #: Region Spatial Format, PS3.3 C.8.5.5.1.1
_MM_PER_CM = 10.0


@dataclass(frozen=True)
class Scale:
    """Rows and columns in mm, or None; and why, in words, "" where there is nothing to say."""

    spacing: tuple[float, float] | None
    note: str = ""


def read_scale(ds: Dataset, groups: Sequence[Dataset] = ()) -> Scale:
    """Return the spacing of neighbouring rows and columns in the patient (PS3.3 10.7.1.3).

    Of an X-ray projection Imager Pixel Spacing is that of the detector, on which the patient's shadow is enlarged: it
    is divided by Estimated Radiographic Magnification Factor where there is one, and else used for nothing. Pixel
    Spacing counts where it was calibrated (Pixel Spacing Calibration Type), or differs from the detector's. Of
    ultrasound the regions count (C.8.5.5), where they agree.

    Parameters
    ----------
    ds
        The image.
    groups
        Items of functional groups that describe the frame, if it is of an enhanced image.
    """
    try:
        if regions := read_items(ds, "SequenceOfUltrasoundRegions"):
            return _of_regions(regions)
        given = _first_pair((ds, *groups), "PixelSpacing")
        if given is not None and read_text(ds, "Modality") in _WITHOUT_MAGNIFICATION:
            return Scale(given)
        return _of_projection(ds, given)
    except Refused as refusal:
        return Scale(None, f"no length is known: {refusal}")


def _of_projection(ds: Dataset, given: tuple[float, float] | None) -> Scale:
    detector = _first_pair((ds,), "ImagerPixelSpacing")
    if given is not None and read_text(ds, "PixelSpacingCalibrationType"):
        return Scale(given)
    if given is not None and detector is not None and not _alike(given, detector):
        return Scale(given)
    factor = _factor(ds)
    if detector is not None and factor is not None:
        return Scale((detector[0] / factor, detector[1] / factor))
    if detector is not None:
        return Scale(None, "no length is known: the pixel spacing is that of the detector, without calibration")
    if given is not None:
        return Scale(None, "no length is known: the pixel spacing does not say how it was calibrated")
    return Scale(None)


def _of_regions(regions: Sequence[Dataset]) -> Scale:
    """Return the spacing where all regions are images in centimetres of one scale; rows go along y."""
    found = set()
    for region in regions:
        units = (read_value(region, "PhysicalUnitsXDirection"), read_value(region, "PhysicalUnitsYDirection"))
        if units != (_CENTIMETRES, _CENTIMETRES) or read_value(region, "RegionSpatialFormat") != _TWO_DIMENSIONAL:
            return Scale(None, "no length is known: the image has regions that are no picture in centimetres")
        deltas = (read_numbers(region, f"PhysicalDelta{axis}", 1)[0] for axis in "YX")
        rows, columns = (abs(delta) * _MM_PER_CM for delta in deltas)
        if not (0 < rows < math.inf and 0 < columns < math.inf):
            return Scale(None, "no length is known: a region of the image has no size in centimetres")
        found.add((rows, columns))
    if len(found) > 1:
        return Scale(None, f"no length is known: the image has {len(found)} regions of different scale")
    return Scale(found.pop())


def _first_pair(places: Sequence[Dataset], keyword: str) -> tuple[float, float] | None:
    for place in places:
        if read_value(place, keyword) not in (None, ""):
            rows, columns = read_numbers(place, keyword, 2)
            if not (0 < rows < math.inf and 0 < columns < math.inf):
                raise Refused(f"the pixel spacing {rows:g} x {columns:g} mm is implausible", Reason.RESOLUTION)
            return rows, columns
    return None


def _factor(ds: Dataset) -> float | None:
    """Return Estimated Radiographic Magnification Factor (0018,1114), None where it is absent or below 1."""
    if read_value(ds, "EstimatedRadiographicMagnificationFactor") in (None, ""):
        return None
    factor = read_numbers(ds, "EstimatedRadiographicMagnificationFactor", 1)[0]
    return factor if 1 <= factor < math.inf else None


def _alike(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return all(abs(a - b) <= _CORRECTED * max(a, b) for a, b in zip(one, other, strict=True))
