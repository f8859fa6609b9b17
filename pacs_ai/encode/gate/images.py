"""Whether a derived image is its source's own kind, lies where its source lies, and holds what was returned."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pacs_ai.encode.gate.context import numbers_of
from pacs_ai.encode.grid import frame_geometry
from pacs_ai.errors import Permanent

if TYPE_CHECKING:
    import numpy.typing as npt
    from pydicom import Dataset

    from pacs_ai.encode.gate.context import Context
    from pacs_ai.encode.gate.opened import Opened

PLACED = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
TRANSFORMATION = "PixelValueTransformationSequence"


def check_image(opened: Opened, context: Context, number: int) -> None:
    """Compare a derived image with its source image: class, size and, on a volume, its plane and its values.

    Parameters
    ----------
    number
        Which of the images it is, from 1; one series after another.

    Raises
    ------
    Permanent
        Where it lies elsewhere, or holds other values than the pipeline returned.
    """
    ds, kind, case = opened.ds, opened.kind, context.case
    ordinal, place = divmod(number - 1, len(case.own.datasets))
    if ordinal >= len(case.findings.images):
        raise Permanent(f"there are more {kind} than the pipeline returned")
    source = case.own.datasets[place]
    same = (ds.SOPClassUID, int(ds.Rows), int(ds.Columns)) == (source.SOPClassUID, source.Rows, source.Columns)
    slices = sorted(
        (frame or 1, index) for (uid, frame), index in context.slices.items() if uid == source.SOPInstanceUID
    )
    if not same or opened.number_of_frames != len(slices):
        raise Permanent(f"the {kind} are of another kind or size than their source")
    voxels = case.findings.images[ordinal].voxels
    for n, (frame, index) in enumerate(slices if case.has_volume else ()):
        many = "PerFrameFunctionalGroupsSequence" in ds
        here = frame_geometry(ds, n + 1 if many else None)
        there = frame_geometry(source, frame if many else None)
        for keyword in PLACED:
            if keyword not in here or not np.allclose(numbers_of(here[keyword]), numbers_of(there[keyword]), atol=1e-6):
                raise Permanent(f"the {kind} and their source differ in {keyword}")
        _check_values(opened, n, voxels[index])


def _check_values(opened: Opened, frame: int, voxels: npt.NDArray[np.generic]) -> None:
    """Compare one frame's modality values, to half a step of what can be stored; padding may stay as it was."""
    ds = opened.ds
    sign = "i" if ds.PixelRepresentation else "u"
    dtype = np.dtype(f"<{sign}{int(ds.BitsAllocated) // 8}")
    size = int(ds.Rows) * int(ds.Columns) * dtype.itemsize
    stored = opened.octets(frame * size, (frame + 1) * size).view(dtype)
    slope, intercept = _rescale(ds, frame)
    differs = np.abs(stored * slope + intercept - voxels.ravel().astype(np.float64)) > abs(slope) * 0.51 + 1e-6
    padding = ds.get("PixelPaddingValue")
    if padding is not None:
        low, high = sorted((int(padding), int(ds.get("PixelPaddingRangeLimit") or padding)))
        differs &= (stored < low) | (stored > high)
    if differs.any():
        raise Permanent(f"the {opened.kind} hold other values than the pipeline returned")


def _rescale(ds: Dataset, frame: int) -> tuple[float, float]:
    """Return slope and intercept of a frame (PS3.3 C.11.1, C.7.6.16.2.9)."""
    holders = [ds]
    for name, n in (("SharedFunctionalGroupsSequence", 0), ("PerFrameFunctionalGroupsSequence", frame)):
        if name in ds and TRANSFORMATION in ds[name].value[n]:
            holders.append(ds[name].value[n][TRANSFORMATION].value[0])
    return float(holders[-1].get("RescaleSlope", 1)), float(holders[-1].get("RescaleIntercept", 0))
