"""What a pipeline may find: segments, measurements, detections, answers, maps, images made anew."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    from pacs_ai.pipeline.codes import Code
    from pacs_ai.pipeline.given import Array


@dataclass(frozen=True)
class Segment:
    """The voxels of one label, on the grid of the input named by `Findings.grid`.

    Parameters
    ----------
    label
        Name of a label of the card.
    voxels
        (slices, rows, columns), bool or unsigned; several segments may share one array (a label map). Of a `Frames`
        input (images, rows, columns), where its images are of one size.
    number
        The value in `voxels` that is this segment (1 for a mask).
    """

    label: str
    voxels: Array
    number: int = 1

    @property
    def mask(self) -> npt.NDArray[np.bool_]:
        """(slices, rows, columns) bool."""
        return self.voxels if self.voxels.dtype == np.bool_ else np.asarray(self.voxels == self.number)


@dataclass(frozen=True)
class Measurement:
    """A number with its meaning: concept, value, unit (UCUM), and the segment it belongs to (None: the whole image).

    A pure number has a UCUM annotation such as ``{score}`` or ``{count}``, or ``%``, as its unit, not ``1``: viewers
    print the unit behind the value, and a score of 0.7 would read "0.7 1".
    """

    concept: Code
    value: float
    unit: Code
    label: str | None = None
    method: Code | None = None
    derivation: Code | None = None


class Shape(StrEnum):
    """Graphic Type (0070,0023) of a region, PS3.3 C.18.6.1."""

    POINT = "POINT"  #: one point
    POLYLINE = "POLYLINE"  #: a line; a closed outline where the last point equals the first
    ELLIPSE = "ELLIPSE"  #: ends of the major axis, then of the minor axis


@dataclass(frozen=True)
class Region:
    """A place on one image.

    Parameters
    ----------
    shape
        What the points are.
    points
        (points, 2) float32 of (column, row); (0, 0) is the outer corner of the first pixel, so that its centre is
        (0.5, 0.5) (PS3.3 C.18.6.1.2).
    index
        Slice of the volume or image of the frames, from 0.
    """

    shape: Shape
    points: Array
    index: int


@dataclass(frozen=True)
class Diameters:
    """Longest diameter of a lesion and the longest one at a right angle to it: two lines on one image.

    Parameters
    ----------
    long_axis, short_axis
        (2, 2) float32: two points of (column, row), as in `Region.points`.
    index
        Slice or image, from 0.
    """

    long_axis: Array
    short_axis: Array
    index: int


@dataclass(frozen=True)
class Classification:
    """A coded answer: "Pneumothorax: present", "Breast density: B"; of a label, a detection or the whole image.

    Parameters
    ----------
    concept, value
        The question and the answer.
    probability
        0 to 1, None where the pipeline gives none.
    label
        Label of the card, None for the whole image.
    threshold
        Probability from which the answer would be the positive one; told beside it, for 5 % may be much. None where
        there is none.
    """

    concept: Code
    value: Code
    probability: float | None = None
    label: str | None = None
    threshold: float | None = None


@dataclass(frozen=True)
class Detection:
    """One finding at a place: a nodule, a mass, a fracture. Several may bear one label.

    Parameters
    ----------
    label
        Label of the card.
    region
        Where it is; None where `diameters` say it.
    diameters
        Of a lesion; their lengths in mm are added to the measurements where the spacing is known.
    probability
        That the finding is what the label says, 0 to 1.
    measurements, classifications
        Of this finding; their `label` is not read.
    """

    label: str
    region: Region | None = None
    diameters: Diameters | None = None
    probability: float | None = None
    measurements: tuple[Measurement, ...] = ()
    classifications: tuple[Classification, ...] = ()


@dataclass(frozen=True)
class Map:
    """A number for each voxel: a probability, a saliency, a physical quantity.

    Parameters
    ----------
    name
        For people, at most 64 characters ("Saliency").
    concept, unit
        What the numbers are (PS3.16 CID 7180 and the like) and their UCUM unit.
    voxels
        (slices, rows, columns) float32, finite, on the grid of `Findings.grid`.
    label
        Label of the card of which this is the probability, 0 to 1; None otherwise.
    """

    name: str
    concept: Code
    unit: Code
    voxels: Array
    label: str | None = None


@dataclass(frozen=True)
class Derived:
    """The images of an input made anew: denoised, sharpened, reconstructed. Becomes a series of the same kind.

    Parameters
    ----------
    title
        For people ("Denoised"); part of Series Description.
    derivation
        What was done (PS3.16 CID 7203).
    voxels
        (slices, rows, columns) on the grid of `Findings.grid`, modality values as the input's.
    """

    title: str
    derivation: Code
    voxels: Array


@dataclass(frozen=True)
class Findings:
    """What a pipeline found. Empty findings are an answer ("nothing found"), never a fault.

    Parameters
    ----------
    segments, measurements, detections, classifications, maps, images
        In the order in which they are shown.
    grid
        Name of the input on whose grid they lie.
    """

    segments: tuple[Segment, ...] = ()
    measurements: tuple[Measurement, ...] = ()
    detections: tuple[Detection, ...] = ()
    classifications: tuple[Classification, ...] = ()
    maps: tuple[Map, ...] = ()
    images: tuple[Derived, ...] = ()
    grid: str = "image"
