"""All that a researcher imports to bring a model: its card, the volumes it gets, the findings it returns.

A pipeline is any object with a `card`, a `prepare` and a `run` (`Pipeline` below); no base class, no DICOM writing,
no disk. It is found by the entry-point group ``pacs_ai.pipelines``::

    [project.entry-points."pacs_ai.pipelines"]
    my-liver = "my_package:MyLiver"

Raise `pacs_ai.errors.Refused` where the input cannot be analysed: its message is what the reader sees.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Mapping

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Code:
    """A coded concept: Code Value, Coding Scheme Designator and Code Meaning (PS3.3 Table 8.8-1)."""

    value: str
    scheme: str
    meaning: str


class Clearance(StrEnum):
    """Content Qualification (0018,9004), PS3.3 C.8.13.2.1.1: what results may be used for."""

    RESEARCH = "RESEARCH"
    PRODUCT = "PRODUCT"


@dataclass(frozen=True)
class Label:
    """What one segment is, coded.

    Parameters
    ----------
    name
        Segment Label (0062,0005) and the name by which `Segment` and `Measurement` refer to it; at most 64 characters.
    category, type
        Segmented Property Category and Type (PS3.3 C.8.20.4; CID 7150, 7151 and the CIDs they include).
    modifier
        Segmented Property Type Modifier, the laterality for instance (CID 244).
    colour
        Recommended display colour, sRGB 0 to 255.
    """

    name: str
    category: Code
    type: Code
    modifier: Code | None = None
    colour: tuple[int, int, int] = (255, 128, 0)


@dataclass(frozen=True)
class Input:
    """One named input and what it accepts; checked before `run` is called.

    Parameters
    ----------
    modality
        Accepted values of Modality (0008,0060).
    min_slices
        Fewest slices.
    max_slice_spacing_mm
        Largest distance between slice centres in mm, None for any.
    given
        What `run` gets: the series as one `Volume`, or its images as `Frames` (radiographs, mammograms, ultrasound).
    """

    modality: tuple[str, ...]
    min_slices: int = 1
    max_slice_spacing_mm: float | None = None
    given: Literal["volume", "frames"] = "volume"


@dataclass(frozen=True)
class Card:
    """Who made the algorithm, what goes in, what comes out, what it is meant for.

    Parameters
    ----------
    name, version, manufacturer
        Algorithm identification (PS3.16 TID 4019).
    title
        A few words for the radiologist ("Lungs"); Series Description becomes "AI: <title> ...".
    inputs
        Name -> what it accepts. A pipeline of one series calls it ``image``.
    labels
        Every segment that it may return.
    procedure
        Procedure reported (CID 100 where possible).
    clearance
        RESEARCH marks every object "not for clinical use" (Content Qualification).
    model_digest
        SHA-256 (hex) of weights and configuration; "" lets the registry take the digest of the module's source.
    """

    name: str
    version: str
    manufacturer: str
    title: str
    inputs: Mapping[str, Input]
    labels: tuple[Label, ...]
    procedure: Code
    intended_use: str
    clearance: Clearance = Clearance.RESEARCH
    model_digest: str = ""

    def label(self, name: str) -> Label:
        """Return the label of that name; KeyError where the card has none."""
        return {label.name: label for label in self.labels}[name]


@dataclass(frozen=True)
class Volume:
    """One series as a regular grid.

    Parameters
    ----------
    voxels
        (slices, rows, columns), modality values (HU for CT) after the Modality LUT; int16 where exact, else float32.
    affine
        (4, 4) float64: (slice, row, column, 1) -> (x, y, z, 1) in mm in the patient's LPS system
        (PS3.3 C.7.6.2.1.1: +x to the patient's left, +y to the back, +z to the head).
    modality
        Modality (0008,0060).
    header
        DICOM keyword -> value, as text, of attributes that pipelines judge by (BodyPartExamined, SeriesDescription,
        ConvolutionKernel, PatientAge, PatientPosition, ...), absent where the series has none.
    """

    voxels: Array
    affine: Array
    modality: str
    header: Mapping[str, str] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(slices, rows, columns), the shape of a segment."""
        slices, rows, columns = self.voxels.shape
        return slices, rows, columns

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Distance between neighbouring slices, rows and columns in mm."""
        s, r, c = (float(np.linalg.norm(self.affine[:3, axis])) for axis in range(3))
        return s, r, c

    @property
    def voxel_ml(self) -> float:
        """Volume of one voxel in mL."""
        return abs(float(np.linalg.det(self.affine[:3, :3]))) / 1000.0


@dataclass(frozen=True)
class Frame:
    """One image of a `Frames` input: a radiograph, a mammogram, one frame of an ultrasound clip.

    Parameters
    ----------
    pixels
        (rows, columns), or (rows, columns, 3) RGB uint8; greyscale after the Modality LUT, MONOCHROME1 turned so that
        high is bright; int16, uint16 or float32.
    spacing
        Distance of neighbouring rows and columns in mm; None where the image says none that holds in the patient.
    header
        DICOM keyword -> value, as text (ViewPosition, ImageLaterality, PatientOrientation, BodyPartExamined ...).
    """

    pixels: Array
    spacing: tuple[float, float] | None
    header: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Frames:
    """One series of projection or ultrasound images, which need not be of one size.

    Parameters
    ----------
    images
        In the order of Instance Number, the frames of a multi-frame image one after another.
    modality
        Modality (0008,0060): CR, DX, MG, US, ...
    header
        As `Volume.header`, of the first image.
    """

    images: tuple[Frame, ...]
    modality: str
    header: Mapping[str, str] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, int, int] | None:
        """(images, rows, columns), the shape of a segment; None where the images are not of one size."""
        sizes = {image.pixels.shape[:2] for image in self.images}
        if len(sizes) != 1:
            return None
        ((rows, columns),) = sizes
        return len(self.images), rows, columns


#: What a pipeline is given under each name.
Given = Volume | Frames


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
    """

    concept: Code
    value: Code
    probability: float | None = None
    label: str | None = None


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


@runtime_checkable
class Pipeline(Protocol):
    """What the node calls: `prepare` once per worker, `run` once per job, in a child process of its own."""

    @property
    def card(self) -> Card:
        """The card; cheap, read without a device and without importing torch."""

    def prepare(self, device: str) -> None:
        """Load weights onto the device ("cpu", "cuda:0")."""

    def run(self, inputs: Mapping[str, Any]) -> Findings:
        """Analyse; raise `pacs_ai.errors.Refused` with the reason where that is impossible."""


def _sct(value: str, meaning: str) -> Code:
    return Code(value, "SCT", meaning)


#: Segmented property category (CID 7150).
ANATOMICAL_STRUCTURE = _sct("123037004", "Anatomical Structure")
MORPHOLOGIC_ABNORMALITY = _sct("49755003", "Morphologically Altered Structure")
LEFT = _sct("7771000", "Left")
RIGHT = _sct("24028007", "Right")
VOLUME = _sct("118565006", "Volume")
MILLILITRE = Code("ml", "UCUM", "ml")
MILLIMETRE = Code("mm", "UCUM", "mm")
PERCENT = Code("%", "UCUM", "%")
HOUNSFIELD_UNIT = Code("[hnsf'U]", "UCUM", "Hounsfield unit")
