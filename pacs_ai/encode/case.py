"""One analysis as every encoder gets it: what was found, in which images, by which job."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from pacs_ai.dicom.evidence import Evidence
from pacs_ai.encode.ground import Ground, Shown, shown_as
from pacs_ai.encode.voxels.survey import count_voxels
from pacs_ai.pipeline import Frames, TimeSeries, Volume, Waveform

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    import numpy.typing as npt
    from pydicom import Dataset

    from pacs_ai.encode.provenance import Work
    from pacs_ai.pipeline import Card, Findings, Given, Segment


#: Inputs whose name begins so may be of another study of the patient.
PRIOR = "prior"


def first_of_study(inputs: Mapping[str, Given]) -> str:
    """Return the first input that is no prior: what lies on no grid belongs to its study; the first where all are."""
    return next((name for name in inputs if not name.startswith(PRIOR)), next(iter(inputs)))


@dataclass(frozen=True)
class Case:
    """What the encoders share.

    Parameters
    ----------
    findings
        What the pipeline returned, checked against the card.
    evidence, inputs
        By name of input. Names that begin with "prior" may be of another study of the patient.
    work
        The job.
    remarks
        What a reader must know of this result beside the findings, in sentences.
    """

    findings: Findings
    evidence: Mapping[str, Evidence]
    inputs: Mapping[str, Given]
    work: Work
    remarks: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        findings: Findings,
        evidence: Mapping[str, Evidence],
        inputs: Mapping[str, Given],
        work: Work,
        remarks: Sequence[str] = (),
    ) -> Case:
        """Return the case; findings that lie on no grid are given the first input's, so that its images serve."""
        on_a_grid = findings.segments or findings.detections or findings.maps or findings.images
        if not on_a_grid and findings.grid not in inputs:
            findings = replace(findings, grid=first_of_study(inputs))
        return cls(findings, evidence, inputs, work, tuple(remarks))

    @property
    def card(self) -> Card:
        """The pipeline's card."""
        return self.work.card

    @cached_property
    def own(self) -> Evidence:
        """The instances that the findings lie on; of a series over time those of its first time."""
        evidence = self.evidence[self.findings.grid]
        if not isinstance(self.inputs[self.findings.grid], TimeSeries):
            return evidence
        drawn_on = {one.sop_instance_uid for one in evidence.slices}
        return Evidence(tuple(ds for ds in evidence.datasets if str(ds.SOPInstanceUID) in drawn_on), evidence.slices)

    @property
    def source(self) -> Dataset:
        """The instance that patient and study are copied from."""
        return self.own.datasets[0]

    @cached_property
    def given(self) -> Shown:
        """What the findings are shown on."""
        return shown_as(self.inputs[self.findings.grid])

    @property
    def ground(self) -> Ground:
        """What the findings lie on, a volume or images; TypeError where it is a waveform."""
        if isinstance(self.given, Waveform):
            raise TypeError(f"the input {self.findings.grid!r} is a waveform, on which nothing lies")
        return self.given

    @property
    def volume(self) -> Volume:
        """The input that the findings lie on, a volume; TypeError where it is none."""
        if not isinstance(self.given, Volume):
            raise TypeError(f"the input {self.findings.grid!r} is no volume")
        return self.given

    @property
    def has_volume(self) -> bool:
        """Whether the findings lie on a volume."""
        return isinstance(self.given, Volume)

    @property
    def has_images(self) -> bool:
        """Whether the findings lie on projection or ultrasound images."""
        return isinstance(self.given, Frames)

    @cached_property
    def counts(self) -> npt.NDArray[np.int64]:
        """Voxels of each segment in each slice, (segments, slices)."""
        return count_voxels(self.findings.segments)

    @cached_property
    def filled(self) -> tuple[tuple[Segment, npt.NDArray[np.int64]], ...]:
        """The segments that have voxels, each with its voxels per slice."""
        pairs = zip(self.findings.segments, self.counts, strict=True)
        return tuple((segment, row) for segment, row in pairs if row.any())
