"""Whether a result lies where its sources lie: frames, derived images and contours, in the patient and on the image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pacs_ai.encode.explicit import elements, items, text, values
from pacs_ai.encode.gate.context import numbers_of, outline
from pacs_ai.encode.gate.opened import REFERENCED_FRAME_NUMBER, REFERENCED_SOP_INSTANCE_UID, frame_numbers
from pacs_ai.encode.grid import frame_geometry
from pacs_ai.errors import Permanent

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import numpy.typing as npt
    from pydicom import Dataset

    from pacs_ai.encode.gate.context import Context
    from pacs_ai.encode.gate.opened import Opened
    from pacs_ai.encode.gate.sources import Sources
    from pacs_ai.encode.grid import Grid

ROI_CONTOUR = 0x30060039
CONTOURS = 0x30060040
CONTOUR_DATA = 0x30060050
OF_A_CONTOUR = frozenset({REFERENCED_SOP_INSTANCE_UID, REFERENCED_FRAME_NUMBER, CONTOUR_DATA})
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


def check_frames(opened: Opened, context: Context) -> list[int]:
    """Return which slice each frame lies on, after comparing its place and the slice that it cites with the source's.

    A picture may be enlarged: its frames then cover the slices from edge to edge. A frame cites its slice in its
    Derivation Image Sequence or, where there is one frame, in the root's Source Image Sequence.

    Raises
    ------
    Permanent
        Where a frame lies on no slice, two lie on one, or one cites another slice.
    """
    ds, kind = opened.ds, opened.kind
    groups = ds.get("PerFrameFunctionalGroupsSequence")
    used: list[int] = []
    for number in range(1, opened.number_of_frames + 1):
        here = _edges(frame_geometry(ds, number if groups else None), ds)
        apart = np.abs(context.outlines - here).max(axis=(1, 2))
        nearest = int(apart.argmin())
        cited = {context.slices.get(one) for one in _cited(groups[number - 1] if groups else ds)}
        if apart[nearest] > POSITION_TOLERANCE_MM or nearest in used or not cited <= {nearest}:
            raise Permanent(f"a frame of the {kind} does not lie where its source frame lies")
        used.append(nearest)
    return used


def _cited(holder: Dataset) -> Iterator[tuple[str, int | None]]:
    """Yield what a frame says that it was made from."""
    for derivation in (holder, *holder.get("DerivationImageSequence", ())):
        for source in derivation.get("SourceImageSequence", ()):
            number = source.get("ReferencedFrameNumber")
            yield str(source.ReferencedSOPInstanceUID), None if number is None else int(number)


def check_map(opened: Opened, context: Context, number: int) -> None:
    """Compare a parametric map's frames and numbers with the map that was returned as the `number`-th; else Permanent.

    The numbers are compared as they are written, float32, in all frames.
    """
    maps = context.case.findings.maps
    if number > len(maps):
        raise Permanent("there are more parametric maps than the pipeline returned")
    voxels = maps[number - 1].voxels
    frames = check_frames(opened, context)
    size = 4 * int(opened.ds.Rows) * int(opened.ds.Columns)
    for n, index in enumerate(frames):
        written = opened.octets(n * size, (n + 1) * size).view("<f4")
        if not np.array_equal(written, voxels[index].ravel()):
            raise Permanent("a parametric map holds other numbers than the pipeline returned")


def check_annotations(opened: Opened, context: Context) -> None:
    """Refuse a presentation state that draws beyond its image, or on one that was not read (PS3.3 C.10.5)."""
    for annotation in opened.ds.get("GraphicAnnotationSequence", ()):
        images = [
            context.sources.datasets.get(str(one.ReferencedSOPInstanceUID))
            for one in annotation.ReferencedImageSequence
        ]
        for graphic in annotation.get("GraphicObjectSequence", ()):
            points = np.asarray(graphic.GraphicData, np.float64).reshape(-1, 2)
            for image in images if graphic.GraphicAnnotationUnits == "PIXEL" else ():
                if image is None:
                    raise Permanent("the presentation state draws on an image that was not read")
                check_points(points, image, opened.kind)


def _edges(place: Mapping[str, Any], ds: Dataset) -> npt.NDArray[np.float64]:
    if not all(keyword in place for keyword in PLACED):
        raise Permanent("a frame of a result has no place in the patient")
    return outline(place, int(ds.Rows), int(ds.Columns))


def check_contours(opened: Opened, context: Context) -> None:
    """Hold every contour of a structure set against the slice that it cites (PS3.3 C.8.8.6), and stated volumes.

    Raises
    ------
    Permanent
        Where a point leaves the plane or the image, a contour cites no slice, or a volume is not that of the voxels.
    """
    case = context.case
    if not case.has_volume:
        raise Permanent("there are contours in the patient, and the images have no place there")
    wanted = [float(row.sum()) * case.volume.voxel_ml for _, row in case.filled]
    stated = [
        float(roi.get("ROIVolume") or volume) for roi, volume in zip(_regions(opened, wanted), wanted, strict=True)
    ]
    if not np.allclose(stated, wanted, rtol=1e-6):
        raise Permanent("a region's volume is not that of the segment's voxels")
    head = opened.head
    for region in items(head, *opened.tags[ROI_CONTOUR]):
        for tag, _, first, last in elements(head, *region):
            for contour in items(head, first, last) if tag == CONTOURS else ():
                _check_contour(head, contour, context.sources)


def _regions(opened: Opened, wanted: list[float]) -> list[Dataset]:
    regions = list(opened.ds.StructureSetROISequence)
    if len(regions) != len(wanted):
        raise Permanent("the structure set does not have one region for each segment")
    return regions


def _check_contour(head: bytes, contour: tuple[int, int], sources: Sources) -> None:
    found = dict(values(head, *contour, OF_A_CONTOUR))
    source = sources.datasets.get(text(found.get(REFERENCED_SOP_INSTANCE_UID, b"")))
    if source is None:
        raise Permanent("a contour cites no image that was read")
    numbers = frame_numbers(found.get(REFERENCED_FRAME_NUMBER, b""))
    points = np.array(found.get(CONTOUR_DATA, b"").split(b"\\"), np.float64).reshape(-1, 3)
    place = frame_geometry(source, numbers[0] if numbers else None)
    at = points - numbers_of(place["ImagePositionPatient"])
    orientation = numbers_of(place["ImageOrientationPatient"])
    row, column = orientation[:3], orientation[3:]
    if np.abs(at @ np.cross(row, column)).max() > PLANE_TOLERANCE_MM + 1e-4 * np.abs(at).max():
        raise Permanent("a contour leaves the plane of the slice that it cites")
    down, across = numbers_of(place["PixelSpacing"])
    rows, columns = at @ column / down, at @ row / across
    inside = (rows.min() > -1, columns.min() > -1, rows.max() < int(source.Rows), columns.max() < int(source.Columns))
    if not all(inside):
        raise Permanent("a contour leaves the image that it cites")


def check_points(points: npt.NDArray[np.float64], source: Dataset, kind: str) -> None:
    """Refuse points (points, 2) of (column, row) that leave the image; (0, 0) is the outer corner (C.18.6.1.2)."""
    limits = np.array([float(source.Columns), float(source.Rows)])
    if not np.isfinite(points).all() or points.min() < -EDGE_TOLERANCE or np.any(points > limits + EDGE_TOLERANCE):
        raise Permanent(f"the {kind} draws a region that leaves its image")
