"""The instances that a volume was built from, slice by slice, as they were received."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydicom import Dataset


@dataclass(frozen=True)
class FrameReference:
    """Where one slice came from: the received SOP Instance UID and, in a multi-frame image, the frame (from 1)."""

    sop_class_uid: str
    sop_instance_uid: str
    frame_number: int | None = None


@dataclass(frozen=True)
class Evidence:
    """The source data sets of one volume.

    Parameters
    ----------
    datasets
        As received (same SOP Instance UIDs), without pixel data, each once; single-frame sources in slice order.
    slices
        One reference per slice of the volume, in the volume's slice order.
    """

    datasets: tuple[Dataset, ...]
    slices: tuple[FrameReference, ...]
