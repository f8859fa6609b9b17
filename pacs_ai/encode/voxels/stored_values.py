"""From modality values back to stored values: with the source's own rescale where they fit, else with a new one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pacs_ai.pipeline import Array, Frames, Volume

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydicom import Dataset

    from pacs_ai.dicom.evidence import FrameReference
    from pacs_ai.encode.case import Case
    from pacs_ai.encode.ground import Ground

#: Fewer steps than this, of values that are no whole steps, would lose what the pipeline computed.
LEAST_STEPS = 256


@dataclass(frozen=True)
class Storage:
    """How the pixels of an image are stored (PS3.3 C.7.6.3)."""

    bits_allocated: int
    bits_stored: int
    signed: bool

    @property
    def bounds(self) -> tuple[int, int]:
        """Least and greatest value that can be stored."""
        if self.signed:
            return -(1 << (self.bits_stored - 1)), (1 << (self.bits_stored - 1)) - 1
        return 0, (1 << self.bits_stored) - 1

    @property
    def dtype(self) -> np.dtype[np.integer]:
        """Type in the file."""
        return np.dtype(f"<{'i' if self.signed else 'u'}{self.bits_allocated // 8}")


@dataclass(frozen=True)
class Rescale:
    """Stored value -> modality value (PS3.3 C.11.1), as text of at most 16 characters.

    Parameters
    ----------
    slope, intercept
        Rescale Slope and Intercept.
    turned
        Sum of the least and the greatest value that can be stored, where the values that pipelines get are turned
        (MONOCHROME1 of projection images); None otherwise.
    """

    slope: str = "1"
    intercept: str = "0"
    turned: int | None = None

    def stored(self, values: Array) -> Array:
        """Return the stored values, float64, not rounded."""
        steps: Array = (values.astype(np.float64) - float(self.intercept)) / float(self.slope)
        return steps if self.turned is None else self.turned - steps


@dataclass(frozen=True)
class Scheme:
    """How a series of derived images is stored.

    Parameters
    ----------
    storage
        The same for all images.
    rescales
        Of each slice or image.
    own
        Whether the rescale is the source's.
    """

    storage: Storage
    rescales: tuple[Rescale, ...]
    own: bool

    def pixels(self, values: Array, index: int) -> Array:
        """Return one slice or image as it is stored."""
        low, high = self.storage.bounds
        return np.clip(np.rint(self.rescales[index].stored(values)), low, high).astype(self.storage.dtype)


def read_storage(ds: Dataset) -> Storage:
    """Return how a received image is stored."""
    allocated = int(ds.get("BitsAllocated") or 16)
    return Storage(allocated, int(ds.get("BitsStored") or allocated), int(ds.get("PixelRepresentation") or 0) == 1)


def choose(case: Case, voxels: Array) -> Scheme:
    """Return how these modality values are stored.

    Bits and sign of the source where the values fit, then 16 bits; where no whole step of the source's rescale holds
    them, 65536 steps from the least to the greatest value (of PET from 0, PS3.3 C.8.9.4).

    Parameters
    ----------
    case
        The analysis.
    voxels
        (slices, rows, columns) modality values.
    """
    by_uid = {str(ds.SOPInstanceUID): ds for ds in case.own.datasets}
    rescales = tuple(_rescale(case, by_uid[one.sop_instance_uid], one) for one in case.own.slices)
    given = read_storage(case.source)
    wide = (Storage(16, 16, given.signed), Storage(16, 16, not given.signed))
    ends = [_ends(rescale.stored(plane)) for rescale, plane in zip(rescales, voxels, strict=True)]
    steps = max(high - low for low, high in ends)
    fine = steps >= LEAST_STEPS or all(
        np.array_equal(np.rint(rescale.stored(plane)), rescale.stored(plane))
        for rescale, plane in zip(rescales, voxels, strict=True)
    )
    for storage in (given, *wide) if given.bits_allocated in (8, 16) else wide:
        low, high = storage.bounds
        if fine and all(low <= least and greatest <= high for least, greatest in ends):
            return Scheme(storage, rescales, own=True)
    return _new(voxels, case.given.modality, rescales)


def _ends(stored: Array) -> tuple[float, float]:
    return float(np.rint(stored.min())), float(np.rint(stored.max()))


def _new(voxels: Array, modality: str, rescales: Sequence[Rescale]) -> Scheme:
    low, high = float(voxels.min()), float(voxels.max())
    if modality == "PT":
        step = max(abs(low), abs(high)) / 32767 or 1.0
        rescale, storage = Rescale(f"{step:.9g}", "0"), Storage(16, 16, signed=True)
    else:
        rescale = Rescale(f"{(high - low) / 65535 or 1.0:.9g}", f"{low:.9g}")
        storage = Storage(16, 16, signed=False)
    return Scheme(storage, (rescale,) * len(rescales), own=False)


def _rescale(case: Case, ds: Dataset, source: FrameReference) -> Rescale:
    turned = isinstance(case.given, Frames) and ds.get("PhotometricInterpretation") == "MONOCHROME1"
    if ds.get("ModalityLUTSequence"):
        return Rescale()  # the table's outcome becomes what is stored
    holders = _transformations(ds, source, case.ground)
    found = next((one for one in holders if one.get("RescaleSlope") not in (None, "")), None)
    total = sum(read_storage(ds).bounds) if turned else None
    if found is None:
        return Rescale(turned=total)
    return Rescale(str(found.RescaleSlope), str(found.get("RescaleIntercept") or "0"), total)


def _transformations(ds: Dataset, source: FrameReference, given: Ground) -> list[Dataset]:
    """Return where a frame's rescale may stand, its own functional groups first.

    What stands at the root of an enhanced image is not read into a volume.
    """
    number = source.frame_number or 1
    per_frame = ds.get("PerFrameFunctionalGroupsSequence") or []
    groups = [*per_frame[number - 1 : number], *(ds.get("SharedFunctionalGroupsSequence") or [])]
    items = [item for group in groups for item in group.get("PixelValueTransformationSequence") or []]
    return items if per_frame and isinstance(given, Volume) else [*items, ds]
