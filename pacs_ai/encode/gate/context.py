"""What every check of one job's results needs: what was received, where it lies, which segments there are."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from pacs_ai.encode.gate.sources import Sources
from pacs_ai.encode.grid import Grid

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    from pacs_ai.encode.case import Case


@dataclass(frozen=True)
class Context:
    """One job at the gate.

    Parameters
    ----------
    case
        What was found, in which images, by which job.
    made
        SOP Instance UID -> number of frames, of the results of this job.
    segments
        SOP Instance UID of each segmentation -> Segment Number -> Tracking UID.
    """

    case: Case
    made: Mapping[str, int]
    segments: Mapping[str, Mapping[int, str]]

    @cached_property
    def sources(self) -> Sources:
        """What was received."""
        return Sources(self.case.evidence)

    @cached_property
    def slices(self) -> dict[tuple[str, int | None], int]:
        """(SOP Instance UID, frame number) of a received frame -> its slice or image."""
        return {(ref.sop_instance_uid, ref.frame_number): index for index, ref in enumerate(self.case.own.slices)}

    @cached_property
    def grid(self) -> Grid:
        """Where the slices of a volume lie."""
        return Grid.of(self.case.own)

    @cached_property
    def outlines(self) -> npt.NDArray[np.float64]:
        """(slices, 3, 3): `outline` of each slice of a volume."""
        _, rows, columns = self.case.volume.shape
        measures = self.grid.measures
        positions = self.grid.positions
        return np.array([outline({**measures, "ImagePositionPatient": at}, rows, columns) for at in positions])


def numbers_of(value: Any) -> npt.NDArray[np.float64]:
    """Return the values of an attribute as numbers."""
    return np.array([float(one) for one in value])


def outline(place: Mapping[str, Any], rows: int, columns: int) -> npt.NDArray[np.float64]:
    """Return (3, 3): where in the patient three outer corners of an image lie, in mm (PS3.3 Equation C.7.6.2.1-1)."""
    across, down = numbers_of(place["ImageOrientationPatient"]).reshape(2, 3)
    row_spacing, column_spacing = numbers_of(place["PixelSpacing"])
    corner = numbers_of(place["ImagePositionPatient"]) - (across * column_spacing + down * row_spacing) / 2
    return np.array([corner, corner + across * column_spacing * columns, corner + down * row_spacing * rows])
