"""All that a researcher imports to bring a model: its card, the volumes it gets, the findings it returns.

A pipeline is any object with a `card`, a `prepare` and a `run` (`Pipeline` below); no base class, no DICOM writing,
no disk. It is found by the entry-point group ``pacs_ai.pipelines``::

    [project.entry-points."pacs_ai.pipelines"]
    my-liver = "my_package:MyLiver"

Raise `pacs_ai.errors.Refused` where the input cannot be analysed: its message is what the reader sees.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from pacs_ai.pipeline.card import Card, Clearance, Expected, Input, Label, Performance, Question
from pacs_ai.pipeline.codes import (
    ANATOMICAL_STRUCTURE,
    HOUNSFIELD_UNIT,
    LEFT,
    MILLILITRE,
    MILLIMETRE,
    MORPHOLOGIC_ABNORMALITY,
    PERCENT,
    RIGHT,
    VOLUME,
    Code,
)
from pacs_ai.pipeline.findings import (
    Classification,
    Derived,
    Detection,
    Diameters,
    Findings,
    Map,
    Measurement,
    Region,
    Segment,
    Shape,
)
from pacs_ai.pipeline.given import Array, Frame, Frames, Given, TimeSeries, Volume, Waveform

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "ANATOMICAL_STRUCTURE",
    "HOUNSFIELD_UNIT",
    "LEFT",
    "MILLILITRE",
    "MILLIMETRE",
    "MORPHOLOGIC_ABNORMALITY",
    "PERCENT",
    "RIGHT",
    "VOLUME",
    "Array",
    "Card",
    "Classification",
    "Clearance",
    "Code",
    "Derived",
    "Detection",
    "Diameters",
    "Expected",
    "Findings",
    "Frame",
    "Frames",
    "Given",
    "Input",
    "Label",
    "Map",
    "Measurement",
    "Performance",
    "Pipeline",
    "Question",
    "Region",
    "Segment",
    "Shape",
    "TimeSeries",
    "Volume",
    "Waveform",
]


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
