"""Where the frames of a segmentation lie: on the slices of a volume, or on images that have no place in the patient."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from pydicom import Dataset
from pydicom.uid import ComputedRadiographyImageStorage, CTImageStorage

from pacs_ai.encode.explicit import element, sequence
from pacs_ai.encode.grid import Grid, frame_of_reference
from pacs_ai.pipeline import Frames

if TYPE_CHECKING:
    from pacs_ai.dicom.evidence import FrameReference
    from pacs_ai.encode.case import Case

#: Attributes of the patient and the study that highdicom asks of a source; the identity is stamped on later.
IDENTITY = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate",
    "StudyTime", "ReferringPhysicianName",
)  # fmt: skip


@dataclass(frozen=True)
class Layout:
    """The places that the frames of a segmentation can have.

    Parameters
    ----------
    shape
        (slices, rows, columns) or (images, rows, columns).
    slices
        The received frame of each slice or image.
    order
        Indices of the slices or images in the order in which frames follow one another: along the normal of
        highdicom's volumes, or as the images were given.
    contents, positions
        Per slice or image, encoded: what its Frame Content Sequence says before the Dimension Index Values, and its
        Plane Position Sequence. A slice has its position, an image its number in the series (Stack ID, In-Stack
        Position Number, PS3.3 C.7.6.16.2.2), the other is empty.
    grid
        None where the images have no place in the patient.
    stand_in
        An image with the geometry of the first slice, for highdicom to make a template from.
    """

    shape: tuple[int, int, int]
    slices: tuple[FrameReference, ...]
    order: npt.NDArray[np.intp]
    contents: tuple[bytes, ...]
    positions: tuple[bytes, ...]
    grid: Grid | None
    stand_in: Dataset

    @classmethod
    def of(cls, case: Case) -> Layout | None:
        """Return the layout of what the findings lie on; None for images that are not of one size.

        Raises
        ------
        Refused
            Where a slice of a volume lacks its position, or the first one its orientation or pixel spacing.
        """
        return _of_images(case, case.given) if isinstance(case.given, Frames) else _of_volume(case)

    def climbs(self, used: npt.NDArray[np.intp]) -> bool:
        """Return whether these slices, in this order, follow one another along the normal at one distance."""
        return self.grid is not None and self.grid.climbs(used)


def _of_volume(case: Case) -> Layout:
    grid = Grid.of(case.own)
    return Layout(
        shape=case.volume.shape,
        slices=grid.slices,
        order=grid.along_normal,
        contents=(b"",) * len(grid.slices),
        positions=tuple(sequence(0x00209113, element(0x00200032, b"DS", place.encode())) for place in grid.places),
        grid=grid,
        stand_in=_slice(case, grid),
    )


def _of_images(case: Case, given: Frames) -> Layout | None:
    """Return the layout of projection or ultrasound images: they lie on their own matrix, and nowhere (PS3.3 A.51.5.1).

    No Pixel Measures: highdicom reads none without a Slice Thickness, and a projection has none.
    """
    if given.shape is None:
        return None
    count = len(given.images)
    return Layout(
        shape=given.shape,
        slices=case.own.slices,
        order=np.arange(count),
        contents=tuple(
            element(0x00209056, b"SH", b"1") + element(0x00209057, b"UL", struct.pack("<I", number))
            for number in range(1, count + 1)
        ),
        positions=(b"",) * count,
        grid=None,
        stand_in=_blank(case, ComputedRadiographyImageStorage, given.shape),
    )


def _slice(case: Case, grid: Grid) -> Dataset:
    source = case.source
    image = _blank(case, CTImageStorage, case.volume.shape)
    image.FrameOfReferenceUID = frame_of_reference(source)
    image.PositionReferenceIndicator = source.get("PositionReferenceIndicator") or None
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
        setattr(image, keyword, grid.measures[keyword])
    image.SliceThickness = grid.measures.get("SliceThickness") or round(case.volume.spacing[0], 6)
    spacing = grid.spacing()
    if spacing is not None:
        image.SpacingBetweenSlices = spacing
    return image


def _blank(case: Case, sop_class_uid: str, shape: tuple[int, int, int]) -> Dataset:
    """Return a single-frame image without geometry and without identity."""
    image = Dataset()
    image.SOPClassUID = sop_class_uid
    image.SOPInstanceUID = case.own.slices[0].sop_instance_uid
    image.StudyInstanceUID = case.source.StudyInstanceUID
    image.SeriesInstanceUID = case.source.SeriesInstanceUID
    image.Modality = case.source.Modality
    _, image.Rows, image.Columns = shape
    for keyword in IDENTITY:
        setattr(image, keyword, None)
    return image
