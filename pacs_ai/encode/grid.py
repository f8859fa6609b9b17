"""Where each received slice lies in the patient, read from single-frame and multi-frame images alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from highdicom.spatial import get_normal_vector, get_volume_positions

from pacs_ai.dicom.identifiers import derive_uid
from pacs_ai.errors import Reason, Refused

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydicom import Dataset

    from pacs_ai.dicom.evidence import Evidence, FrameReference

KEYWORDS = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "SpacingBetweenSlices")
MACROS = ("PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence")
SPACING_TOLERANCE_MM = 1e-3


@dataclass(frozen=True)
class Grid:
    """The slices of one series, in the volume's slice order.

    Parameters
    ----------
    slices
        The received frame of each slice.
    places
        Image Position (Patient) of each slice as the source writes it, values joined by backslashes.
    positions
        (slices, 3) the same as numbers, mm.
    measures
        Position, orientation, Pixel Spacing and, where stated, Slice Thickness and Spacing Between Slices of the first
        slice.
    """

    slices: tuple[FrameReference, ...]
    places: tuple[str, ...]
    positions: npt.NDArray[np.float64]
    measures: Mapping[str, Any]

    @classmethod
    def of(cls, evidence: Evidence) -> Grid:
        """Read the grid of a series.

        Raises
        ------
        Refused
            Where an image lacks its position, or the first one its orientation or pixel spacing.
        """
        by_uid = {str(ds.SOPInstanceUID): ds for ds in evidence.datasets}
        found = [frame_geometry(by_uid[ref.sop_instance_uid], ref.frame_number) for ref in evidence.slices]
        _require(found)
        return cls(
            slices=evidence.slices,
            places=tuple("\\".join(str(value) for value in one["ImagePositionPatient"]) for one in found),
            positions=np.array([[float(value) for value in one["ImagePositionPatient"]] for one in found]),
            measures=found[0],
        )

    @property
    def orientation(self) -> list[float]:
        """Image Orientation (Patient) (0020,0037)."""
        return [float(value) for value in self.measures["ImageOrientationPatient"]]

    @property
    def along_normal(self) -> npt.NDArray[np.intp]:
        """Slice indices in ascending order along the normal of highdicom's volumes (rows down, columns right)."""
        normal = get_normal_vector(self.orientation, index_convention=("D", "R"))
        return np.argsort(self.positions @ np.asarray(normal), kind="stable")

    def spacing(self) -> Any:
        """Return the distance between slice centres, mm, as the source states it where that is true, else as measured.

        None where there is but one slice or no single distance.
        """
        if len(self.slices) < 2:
            return None
        measured, _ = get_volume_positions(self.positions, self.orientation)
        if measured is None:
            return None
        stated = self.measures.get("SpacingBetweenSlices")
        if stated is not None and abs(float(stated) - measured) < SPACING_TOLERANCE_MM:
            return stated
        return round(float(measured), 6)

    def climbs(self, used: npt.NDArray[np.intp]) -> bool:
        """Return whether these slices, in this order, follow one another along the normal at one distance."""
        if len(used) < 2:
            return False
        spacing, _ = get_volume_positions(self.positions[used], self.orientation, sort=False)
        return spacing is not None and bool(spacing > 0)


def frame_of_reference(source: Dataset) -> str:
    """Return the Frame of Reference UID of a source; one that derives from its series where it has none.

    De-identified series have lost it, and a SEG cannot be without (PS3.3 A.51.3): its frames and their source frames
    share one by definition.
    """
    return str(source.get("FrameOfReferenceUID") or derive_uid("frame of reference", str(source.SeriesInstanceUID)))


def _require(found: list[dict[str, Any]]) -> None:
    for keyword, name in (
        ("ImageOrientationPatient", "Image Orientation (Patient)"),
        ("PixelSpacing", "Pixel Spacing"),
    ):
        if keyword not in found[0]:
            raise Refused(
                f"the images of this series have no {name}, so nothing can be drawn over them", Reason.GEOMETRY
            )
    lacking = sum("ImagePositionPatient" not in one for one in found)
    if lacking:
        raise Refused(
            f"{lacking} of {len(found)} images have no Image Position (Patient), so nothing can be drawn over them",
            Reason.GEOMETRY,
        )


def frame_geometry(ds: Dataset, frame_number: int | None) -> dict[str, Any]:
    """Return the attributes of `KEYWORDS` that the frame has, from wherever the image keeps them.

    Single-frame images have them at the root (PS3.3 C.7.6.2), multi-frame ones in the functional groups, shared or
    per frame (C.7.6.16).
    """
    groups = [ds]
    if frame_number is not None and "PerFrameFunctionalGroupsSequence" in ds:
        shared = ds.get("SharedFunctionalGroupsSequence") or []
        holders = [*shared[:1], ds.PerFrameFunctionalGroupsSequence[frame_number - 1]]
        groups = [holder[macro].value[0] for holder in holders for macro in MACROS if holder.get(macro)]
    return {
        keyword: group[keyword].value
        for group in groups
        for keyword in KEYWORDS
        if keyword in group and group[keyword].value not in (None, "")
    }
