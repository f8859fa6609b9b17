"""Small deterministic pipelines over radiographs, mammograms and ultrasound, for tests and for trying a viewer."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from pacs_ai.pipeline import (
    ANATOMICAL_STRUCTURE,
    MILLIMETRE,
    MORPHOLOGIC_ABNORMALITY,
    Card,
    Classification,
    Code,
    Detection,
    Findings,
    Input,
    Label,
    Measurement,
    Region,
    Segment,
    Shape,
)
from pacs_ai.testing.lesions import diameters, outline

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pacs_ai.pipeline import Frame, Frames

Array = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]

_OPACITY = Label("Bright area", MORPHOLOGIC_ABNORMALITY, Code("112001", "DCM", "Opacity"), colour=(255, 60, 60))
_PEAK = Label("Brightest point", MORPHOLOGIC_ABNORMALITY, Code("112001", "DCM", "Opacity"), colour=(255, 200, 0))
_HEAD = Label("Head", ANATOMICAL_STRUCTURE, Code("69536005", "SCT", "Head"), colour=(120, 180, 255))
_QUALITY = Code("111101", "DCM", "Image Quality")
_GOOD = Code("122741", "DCM", "Good image quality")
_POOR = Code("122742", "DCM", "Poor image quality")
_CIRCUMFERENCE = Code("11984-2", "LN", "Head Circumference")
_PERIMETER = Code("131191004", "SCT", "Perimeter")
_ANY_PROCEDURE = Code("363679005", "SCT", "Imaging procedure")
_PROJECTIONS = ("CR", "DX", "MG", "RF", "XA", "RG", "OP", "GM", "XC", "OT")
#: An image is looked at on at most so many rows and columns.
_WORKED_ON = 512


def grey(frame: Frame) -> npt.NDArray[np.float32]:
    """Return the brightness of an image, colour or not, (rows, columns)."""
    pixels = np.asarray(frame.pixels, np.float32)
    return pixels if pixels.ndim == 2 else pixels.mean(axis=2)


def _bright_area(image: Array) -> Mask:
    """Return the largest connected area brighter than 97 of 100 smoothed pixels."""
    step = max(1, -(-max(image.shape) // _WORKED_ON))
    smooth = ndimage.gaussian_filter(image[::step, ::step], 3)
    labels, count = ndimage.label(smooth > np.percentile(smooth, 97))
    if not count:
        return np.zeros(image.shape, np.bool_)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    whole = ndimage.binary_fill_holes(labels == sizes.argmax())
    rows, columns = image.shape
    return np.asarray(whole.repeat(step, axis=0).repeat(step, axis=1)[:rows, :columns])


class RadiographRegions:
    """Marks on each image the largest bright area (outline, ellipse, diameters) and the brightest point."""

    card = Card(
        name="testing-radiograph",
        version="1.0",
        manufacturer="pacs_ai",
        title="Bright areas",
        inputs={"image": Input((*_PROJECTIONS, "US"), given="frames")},
        labels=(_OPACITY, _PEAK),
        procedure=Code("43468-8", "LN", "XR unspecified body region"),
        intended_use="tests",
    )

    def prepare(self, device: str) -> None:
        """Nothing to load."""

    def run(self, inputs: Mapping[str, Frames]) -> Findings:
        """Mark them."""
        given = inputs["image"]
        images = [grey(frame) for frame in given.images]
        masks = [_bright_area(image) for image in images]
        found = [
            detection
            for index, (frame, image, mask) in enumerate(zip(given.images, images, masks, strict=True))
            for detection in _regions(frame, image, mask, index)
        ]
        contrast = max(float(image.std() / max(float(np.ptp(image)), 1e-6)) for image in images)
        return Findings(
            segments=(Segment(_OPACITY.name, np.stack(masks)),) if given.shape is not None else (),
            detections=tuple(found),
            classifications=(Classification(_QUALITY, _GOOD if contrast > 0.05 else _POOR, 0.8),),
        )


def _regions(frame: Frame, image: Array, mask: Mask, index: int) -> list[Detection]:
    if not mask.any():
        return []
    row, column = (int(value) for value in np.argwhere(mask).min(axis=0))
    section = mask[row : row + _WORKED_ON * 16, column:]
    axes = diameters(_thin(section), (row, column), frame.spacing or (1.0, 1.0), index)
    line = outline(section, (row, column), index)
    probability = round(float(image[mask].mean() - image.mean()) / max(float(np.ptp(image)), 1e-6), 4)
    peak_row, peak_column = np.unravel_index(np.where(mask, image, image.min()).argmax(), image.shape)
    point = np.asarray([[peak_column + 0.5, peak_row + 0.5]], np.float32)
    return [
        Detection(_OPACITY.name, line, axes, min(max(probability, 0.0), 1.0), measurements=_length(frame, line)),
        Detection(_OPACITY.name, _ellipse(mask, index), probability=0.5),
        Detection(_PEAK.name, Region(Shape.POINT, point, index), probability=0.25),
    ]


def _thin(section: Mask) -> Mask:
    """Return the section cut to its box."""
    rows, columns = np.flatnonzero(section.any(axis=1)), np.flatnonzero(section.any(axis=0))
    return section[: rows[-1] + 1, : columns[-1] + 1]


def _length(frame: Frame, line: Region | None) -> tuple[Measurement, ...]:
    if frame.spacing is None or line is None:
        return ()
    steps = np.diff(line.points[:, ::-1] * np.asarray(frame.spacing), axis=0)
    return (Measurement(_PERIMETER, float(np.linalg.norm(steps, axis=1).sum()), MILLIMETRE),)


def _ellipse(mask: Mask, index: int) -> Region:
    """Return the ellipse with the area's centre and moments, no larger than the image."""
    points = np.argwhere(mask)[:, ::-1] + 0.5
    return _as_ellipse(points, 2.0, mask.shape, index)


def _as_ellipse(points: Array, reach: float, shape: tuple[int, ...], index: int) -> Region:
    """Return the ellipse of (column, row) points: `reach` standard deviations along its principal axes."""
    centre = points.mean(axis=0)
    values, vectors = np.linalg.eigh(np.cov(points.T) + np.eye(2) * 1e-3)
    halves = [vectors[:, k] * reach * math.sqrt(float(values[k])) for k in (1, 0)]
    ends = np.stack([centre - halves[0], centre + halves[0], centre - halves[1], centre + halves[1]])
    room = np.minimum(centre, np.asarray(shape[::-1]) - centre)
    excess = max(1.0, float((np.abs(ends - centre) / np.maximum(room, 1e-6)).max()))
    return Region(Shape.ELLIPSE, (centre + (ends - centre) / excess).astype(np.float32), index)


class UltrasoundHead:
    """Fits an ellipse through the bright echoes of each frame, and measures its circumference where mm are known."""

    card = Card(
        name="testing-ultrasound-head",
        version="1.0",
        manufacturer="pacs_ai",
        title="Head",
        inputs={"image": Input(("US",), given="frames")},
        labels=(_HEAD,),
        procedure=_ANY_PROCEDURE,
        intended_use="tests",
    )

    def prepare(self, device: str) -> None:
        """Nothing to load."""

    def run(self, inputs: Mapping[str, Frames]) -> Findings:
        """Fit them, frame by frame."""
        given = inputs["image"]
        regions = [_head(grey(frame), index) for index, frame in enumerate(given.images)]
        found = [
            Detection(_HEAD.name, region, probability=0.6, measurements=_circumference(frame, region))
            for frame, region in zip(given.images, regions, strict=True)
            if region is not None
        ]
        segments: tuple[Segment, ...] = ()
        if given.shape is not None:
            masks = [_inside(region, frame.pixels.shape) for frame, region in zip(given.images, regions, strict=True)]
            segments = (Segment(_HEAD.name, np.stack(masks)),)
        return Findings(segments=segments, detections=tuple(found))


def _head(image: Array, index: int) -> Region | None:
    """Return the ellipse through the brightest 3 of 100 pixels, strays left out; None where nothing is bright."""
    smooth = ndimage.gaussian_filter(image, 2)
    points = np.argwhere(smooth > np.percentile(smooth, 97))[:, ::-1] + 0.5
    if len(points) < 8:
        return None
    distance = np.linalg.norm(points - np.median(points, axis=0), axis=1)
    kept = points[distance <= np.percentile(distance, 90)]
    return _as_ellipse(kept, math.sqrt(2.0), image.shape, index)


def _semi_axes(region: Region) -> tuple[Array, Array, Array]:
    """Return centre, and both half axes as vectors, (column, row)."""
    a, b, c, d = np.asarray(region.points, np.float64)
    return (a + b) / 2, (b - a) / 2, (d - c) / 2


def _circumference(frame: Frame, region: Region) -> tuple[Measurement, ...]:
    """Return Ramanujan's circumference of the ellipse in mm."""
    if frame.spacing is None:
        return ()
    _, *halves = _semi_axes(region)
    a, b = (float(np.linalg.norm(half[::-1] * np.asarray(frame.spacing))) for half in halves)
    length = math.pi * (3 * (a + b) - math.sqrt((3 * a + b) * (a + 3 * b)))
    return (Measurement(_CIRCUMFERENCE, length, MILLIMETRE),)


def _inside(region: Region | None, shape: tuple[int, ...]) -> Mask:
    """Return (rows, columns) bool of the pixels whose centres lie in the ellipse."""
    rows, columns = shape[:2]
    if region is None:
        return np.zeros((rows, columns), np.bool_)
    centre, long, short = _semi_axes(region)
    x, y = np.arange(columns) + 0.5 - centre[0], (np.arange(rows) + 0.5 - centre[1])[:, None]
    along = (x * long[0] + y * long[1]) / max(float(long @ long), 1e-6)
    across = (x * short[0] + y * short[1]) / max(float(short @ short), 1e-6)
    return np.asarray(along**2 + across**2 <= 1)
