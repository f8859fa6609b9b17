"""Whether a result lies where its sources lie: frames, derived images and contours, in the patient and on the image."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pacs_ai.encode.explicit import text, values
from pacs_ai.encode.grid import Grid, frame_geometry
from pacs_ai.errors import Permanent

if TYPE_CHECKING:
    import numpy.typing as npt
    from pydicom import Dataset

    from pacs_ai.encode.case import Case
    from pacs_ai.encode.gate_opened import Opened
    from pacs_ai.encode.gate_sources import Sources

IMAGE_POSITION_PATIENT = 0x00200032
#: Positions and lengths are written in 16 characters at most (VR DS, PS3.5 6.2).
POSITION_TOLERANCE_MM = 1e-3
#: A contour lies in the plane of the slice that it cites.
PLANE_TOLERANCE_MM = 0.01
#: Of Graphic Data, float32, in pixels.
EDGE_TOLERANCE = 1e-3
#: How a group of Image Plane attributes is called in words.
PLACED = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")


def check_shared(shared: Dataset, grid: Grid, kind: str) -> None:
    """Compare Pixel Spacing and orientation of the shared functional groups with the source's; else Permanent."""
    spacing = shared.PixelMeasuresSequence[0].PixelSpacing
    orientation = shared.PlaneOrientationSequence[0].ImageOrientationPatient
    same = np.allclose([float(value) for value in spacing], [float(v) for v in grid.measures["PixelSpacing"]])
    if not same or not np.allclose([float(value) for value in orientation], grid.orientation):
        raise Permanent(f"the {kind} has another pixel spacing or orientation than its source")


def check_frames(opened: Opened, case: Case) -> None:
    """Compare a multi-frame result that has a place in the patient (a parametric map) with the slices of its source.

    Raises
    ------
    Permanent
        Where a frame lies on no slice, or two on one.
    """
    grid = Grid.of(case.own)
    ds, kind = opened.ds, opened.kind
    size = (int(ds.Rows), int(ds.Columns))
    if case.given.shape is None or size != case.given.shape[1:]:
        raise Permanent(f"the {kind} has {size[0]} x {size[1]} pixels, its source other ones")
    check_shared(ds.SharedFunctionalGroupsSequence[0], grid, kind)
    used: set[int] = set()
    for first, last in opened.groups:
        place = dict(values(opened.head, first, last, frozenset({IMAGE_POSITION_PATIENT})))
        at = np.array([float(value) for value in text(place.get(IMAGE_POSITION_PATIENT, b"")).split("\\") if value])
        if at.size != 3:
            raise Permanent(f"a frame of the {kind} has no place")
        distances = np.linalg.norm(grid.positions - at, axis=1)
        nearest = int(distances.argmin())
        if distances[nearest] > POSITION_TOLERANCE_MM or nearest in used:
            raise Permanent(f"a frame of the {kind} does not lie where its source frame lies")
        used.add(nearest)
    if len(used) != opened.number_of_frames:
        raise Permanent(f"the {kind} has another number of frames than it describes")


def check_image(opened: Opened, case: Case, number: int) -> None:
    """Compare a derived image with the source image of the same number: size and, on a volume, its plane.

    Parameters
    ----------
    number
        Which of the images it is, from 1.

    Raises
    ------
    Permanent
        Where it lies elsewhere.
    """
    ds, kind = opened.ds, opened.kind
    own = {str(one.SOPInstanceUID): one for one in case.own.datasets}
    if number > len(case.own.slices):
        raise Permanent(f"there are more {kind} than images")
    source = own[case.own.slices[number - 1].sop_instance_uid]
    if (int(ds.Rows), int(ds.Columns)) != (int(source.Rows), int(source.Columns)):
        raise Permanent(f"the {kind} are of another size than their source")
    if not case.has_volume:
        return
    for n in range(opened.number_of_frames):
        reference = case.own.slices[number - 1 + n]
        many = opened.number_of_frames > 1 or "PerFrameFunctionalGroupsSequence" in ds
        here = frame_geometry(ds, n + 1 if many else None)
        there = frame_geometry(own[reference.sop_instance_uid], reference.frame_number)
        for keyword in PLACED:
            if keyword not in here or not np.allclose(_numbers(here[keyword]), _numbers(there[keyword]), atol=1e-6):
                raise Permanent(f"the {kind} and their source differ in {keyword}")


def _numbers(value: object) -> npt.NDArray[np.float64]:
    return np.array([float(one) for one in value])  # type: ignore[attr-defined]


def check_contours(opened: Opened, case: Case, sources: Sources) -> None:
    """Hold every contour of a structure set against the slice that it cites (PS3.3 C.8.8.6).

    Raises
    ------
    Permanent
        Where a point leaves the plane or the image, or a contour cites no slice.
    """
    for roi in opened.ds.ROIContourSequence:
        for contour in roi.get("ContourSequence", ()):
            cited = contour.get("ContourImageSequence")
            if not cited:
                raise Permanent("a contour cites no image")
            source = sources.datasets.get(str(cited[0].ReferencedSOPInstanceUID))
            if source is None:
                raise Permanent("a contour cites an image that was not read")
            number = cited[0].get("ReferencedFrameNumber")
            _check_contour(np.array(contour.ContourData, np.float64).reshape(-1, 3), source, number)
    if not case.has_volume:
        raise Permanent("there are contours in the patient, and the images have no place there")


def _check_contour(points: npt.NDArray[np.float64], source: Dataset, number: object) -> None:
    place = frame_geometry(source, None if number is None else int(str(number)))
    at = points - _numbers(place["ImagePositionPatient"])
    orientation = _numbers(place["ImageOrientationPatient"])
    row, column = orientation[:3], orientation[3:]
    normal = np.cross(row, column)
    if np.abs(at @ normal).max() > PLANE_TOLERANCE_MM + 1e-4 * np.abs(at).max():
        raise Permanent("a contour leaves the plane of the slice that it cites")
    down, across = _numbers(place["PixelSpacing"])
    rows, columns = at @ column / down, at @ row / across
    inside = (rows.min() > -1, columns.min() > -1, rows.max() < int(source.Rows), columns.max() < int(source.Columns))
    if not all(inside):
        raise Permanent("a contour leaves the image that it cites")


def check_points(points: npt.NDArray[np.float64], source: Dataset, kind: str) -> None:
    """Refuse points (points, 2) of (column, row) that leave the image; (0, 0) is the outer corner (C.18.6.1.2)."""
    limits = np.array([float(source.Columns), float(source.Rows)])
    if not np.isfinite(points).all() or points.min() < -EDGE_TOLERANCE or np.any(points > limits + EDGE_TOLERANCE):
        raise Permanent(f"the {kind} draws a region that leaves its image")
