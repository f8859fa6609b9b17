"""A pipeline's card: who made it, what goes in, what comes out, what it is meant for, how good it was found to be."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pacs_ai.pipeline.codes import Code


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
        What `run` gets: the series as one `Volume`, its images as `Frames` (radiographs, mammograms, ultrasound,
        photographs), a `TimeSeries`, or a `Waveform`.
    body_part
        Accepted Body Part Examined (0018,0015), where the series states one; () for any.
    view
        Accepted View Position (0018,5101) or code meaning of the View Code Sequence; () for any.
    align
        Whether the volume is brought onto the grid of the card's first input before `run`: by their Frame of
        Reference, or by rigid registration where these differ, with a note of its quality.
    laterality
        Accepted Image Laterality (0020,0062) or Laterality (0020,0060), which the image must then state; () for any.
    min_age_years, max_age_years
        Ages that the model was made for; a series that does not tell the age is accepted with a note.
    contrast
        Whether a contrast medium (Contrast/Bolus Agent, 0018,0010) has to be absent or present.
    phase
        Accepted contrast phases ("portal", "arterial"), where Series Description or Protocol Name tells one; () for
        any.
    lossy, burned_in
        Whether images that were compressed with loss (0028,2110), or have text in their pixels (0028,0301), are
        accepted.
    min_rows, min_columns
        Fewest rows and columns.
    max_pixel_spacing_mm
        Largest distance of neighbouring rows or columns in mm, None for any; an image that tells none is refused.
    intensity
        Least and greatest modality value between which nine tenths of the voxels must lie; None for any.
    min_times
        Fewest times of a `TimeSeries`.
    min_seconds
        Shortest `TimeSeries` or `Waveform`.
    channels
        Channels that a `Waveform` must have ("II"); () for any.
    """

    modality: tuple[str, ...]
    min_slices: int = 1
    max_slice_spacing_mm: float | None = None
    given: Literal["volume", "frames", "time-series", "waveform"] = "volume"
    body_part: tuple[str, ...] = ()
    view: tuple[str, ...] = ()
    align: bool = False
    laterality: tuple[str, ...] = ()
    min_age_years: float | None = None
    max_age_years: float | None = None
    contrast: Literal["any", "without", "with"] = "any"
    phase: tuple[str, ...] = ()
    lossy: bool = True
    burned_in: bool = True
    min_rows: int = 1
    min_columns: int = 1
    max_pixel_spacing_mm: float | None = None
    intensity: tuple[float, float] | None = None
    min_times: int = 2
    min_seconds: float = 0.0
    channels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Question:
    """A question that a classifier answers with a probability: "Is there a pneumothorax?".

    Parameters
    ----------
    name
        By which the pipeline, the card's figures and people refer to it.
    concept
        What is asked for, as in `Classification.concept`.
    positive, negative
        The two coded answers; `negative` None: below the threshold nothing is said.
    threshold
        Calibrated probability from which the answer is `positive`.
    reported
        False where the model was found to be no better than chance: the answer is not given to anybody.
    """

    name: str
    concept: Code
    positive: Code
    negative: Code | None = None
    threshold: float = 0.5
    reported: bool = True


@dataclass(frozen=True)
class Expected:
    """A range within which a measurement lies in nearly everybody; outside, the result is marked and says so.

    Parameters
    ----------
    concept, unit
        As in `Measurement`.
    low, high
        In `unit`, inclusive.
    label
        Label of the card, None for a measurement of the whole image.
    refuse
        Whether a value outside refuses the result instead of marking it.
    """

    concept: Code
    unit: Code
    low: float
    high: float
    label: str | None = None
    refuse: bool = False


@dataclass(frozen=True)
class Performance:
    """One figure of how good the model was found to be.

    Parameters
    ----------
    on
        The cases, and where the truth comes from.
    cases
        How many.
    metric
        "Dice of the liver", "AUC of effusion", "HC error in mm (mean absolute)".
    value
        What was measured.
    low, high
        95 % interval; None below 20 cases, of which every one is listed instead.
    note
        What a reader must know ("may be among the training images").
    """

    on: str
    cases: int
    metric: str
    value: float
    low: float | None = None
    high: float | None = None
    note: str = ""


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
    questions
        Every classification that it may return with a probability.
    expected
        The output gate.
    licence, source
        Of the weights: licence, and where they come from with whom to cite.
    training
        What the model was trained on.
    performance
        What was measured, and on what.
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
    questions: tuple[Question, ...] = ()
    expected: tuple[Expected, ...] = ()
    licence: str = ""
    source: str = ""
    training: str = ""
    performance: tuple[Performance, ...] = ()

    def label(self, name: str) -> Label:
        """Return the label of that name; KeyError where the card has none."""
        return {label.name: label for label in self.labels}[name]
