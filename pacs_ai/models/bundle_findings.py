"""What goes into a bundle is checked, and what comes out is cut into coded segments; without torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pacs_ai.errors import PipelineFault, Reason, Refused
from pacs_ai.pipeline import Array, Label, Segment, Volume

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pacs_ai.models.bundle_chain import Result


def checked(name: str, inputs: Mapping[str, Volume]) -> Volume:
    """Return the volume of that name; `Refused` where it is missing, empty, or holds values that are no numbers."""
    if name not in inputs:
        raise Refused(f"the series {name} is missing", Reason.MISSING_INPUT)
    voxels = inputs[name].voxels
    if voxels.ndim != 3 or voxels.size == 0:
        raise Refused(f"the series {name} is no volume", Reason.GEOMETRY)
    if voxels.dtype.kind == "f" and not np.isfinite(voxels).all():
        words = f"the series {name} holds values that are no numbers, from which no result can be computed"
        raise Refused(words, Reason.INTENSITY)
    return inputs[name]


def segments(result: Result, labels: Mapping[int, Label], name: str) -> tuple[Segment, ...]:
    """Cut the result of the model `name` into segments: of a label map by value, of several channels by index.

    Raises
    ------
    PipelineFault
        The labels name what such a result cannot have.
    """
    if result.channels is not None:
        return _of_channels(result.channels, labels, name)
    values = result.label_map
    if 0 in labels:
        raise PipelineFault(
            f"{name} returns a label map, in which 0 is the background, but the labels name channel 0: "
            "write the table of the label map's values into labels of [[pipeline]]"
        )
    present = {int(value) for plane in values for value in np.flatnonzero(np.bincount(plane.reshape(-1)))}
    return tuple(Segment(label.name, values, number) for number, label in labels.items() if number in present)


def _of_channels(channels: tuple[Array, ...], labels: Mapping[int, Label], name: str) -> tuple[Segment, ...]:
    absent = [number for number in labels if number >= len(channels)]
    if absent:
        raise PipelineFault(
            f"{name} returns {len(channels)} channels, but the labels name channel {absent[0]}: "
            "correct labels of [[pipeline]]"
        )
    found = [(label, channels[number]) for number, label in labels.items()]
    return tuple(Segment(label.name, mask) for label, mask in found if mask.any())
