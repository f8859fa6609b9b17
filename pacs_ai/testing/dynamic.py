"""A pipeline for tests that is given a volume over time: a map of the time to peak, and what lights up late."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pacs_ai.pipeline import ANATOMICAL_STRUCTURE, Card, Code, Findings, Input, Label, Map, Measurement, Segment

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pacs_ai.pipeline import TimeSeries

TIME_TO_PEAK = Code("113069", "DCM", "Time To Peak")
SECOND = Code("s", "UCUM", "s")
LATE = Label("Late", ANATOMICAL_STRUCTURE, Code("12738006", "SCT", "Brain"))
#: A voxel that brightens by less holds no contrast medium, in modality values.
LEAST_RISE = 10.0


class TimeToPeak:
    """Maps when each voxel is brightest, and calls late what peaks after the middle of the peaks.

    Parameters
    ----------
    min_times
        Fewest phases.
    """

    def __init__(self, min_times: int = 4) -> None:
        self.card = Card(
            name="testing-time-to-peak",
            version="1.0",
            manufacturer="pacs_ai",
            title="Time to peak",
            inputs={"image": Input(("CT", "MR"), given="time-series", min_times=min_times)},
            labels=(LATE,),
            procedure=Code("77477000", "SCT", "Computerized axial tomography"),
            intended_use="tests",
        )

    def prepare(self, device: str) -> None:
        """Nothing to load."""

    def run(self, inputs: Mapping[str, TimeSeries]) -> Findings:
        """Compute the map."""
        given = inputs["image"]
        voxels = given.voxels.astype(np.float32)
        lit = np.ptp(voxels, axis=0) >= LEAST_RISE
        peak = np.where(lit, given.times_s[voxels.argmax(axis=0)], 0.0).astype(np.float32)
        ends = [float(peak[lit].min()), float(peak[lit].max())] if lit.any() else [0.0, 0.0]
        late = lit & (peak > sum(ends) / 2)
        return Findings(
            segments=(Segment(LATE.name, late),),
            measurements=(Measurement(TIME_TO_PEAK, ends[1], SECOND, LATE.name),) if late.any() else (),
            maps=(Map("Time to peak", TIME_TO_PEAK, SECOND, peak),),
        )
