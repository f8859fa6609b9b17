"""One analysis as every encoder gets it: what was found, in which images, by which job."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from pacs_ai.encode.voxels.survey import count_voxels
from pacs_ai.pipeline import Frames, Volume

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    import numpy.typing as npt
    from pydicom import Dataset

    from pacs_ai.dicom.evidence import Evidence
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
    """

    findings: Findings
    evidence: Mapping[str, Evidence]
    inputs: Mapping[str, Given]
    work: Work

    @classmethod
    def of(cls, findings: Findings, evidence: Mapping[str, Evidence], inputs: Mapping[str, Given], work: Work) -> Case:
        """Return the case; findings that lie on no grid are given the first input's, so that its images serve."""
        on_a_grid = findings.segments or findings.detections or findings.maps or findings.images
        if not on_a_grid and findings.grid not in inputs:
            findings = replace(findings, grid=first_of_study(inputs))
        return cls(findings, evidence, inputs, work)

    @property
    def card(self) -> Card:
        """The pipeline's card."""
        return self.work.card

    @property
    def own(self) -> Evidence:
        """The instances of the input that the findings lie on."""
        return self.evidence[self.findings.grid]

    @property
    def source(self) -> Dataset:
        """The instance that patient and study are copied from."""
        return self.own.datasets[0]

    @property
    def given(self) -> Given:
        """The input that the findings lie on."""
        return self.inputs[self.findings.grid]

    @property
    def volume(self) -> Volume:
        """The input that the findings lie on, a volume; TypeError where it is frames."""
        if not isinstance(self.given, Volume):
            raise TypeError(f"the input {self.findings.grid!r} is no volume")
        return self.given

    @property
    def has_volume(self) -> bool:
        """Whether the findings lie on a volume, and not on projection or ultrasound images."""
        return not isinstance(self.given, Frames)

    @cached_property
    def counts(self) -> npt.NDArray[np.int64]:
        """Voxels of each segment in each slice, (segments, slices)."""
        return count_voxels(self.findings.segments)

    @cached_property
    def filled(self) -> tuple[tuple[Segment, npt.NDArray[np.int64]], ...]:
        """The segments that have voxels, each with its voxels per slice."""
        pairs = zip(self.findings.segments, self.counts, strict=True)
        return tuple((segment, row) for segment, row in pairs if row.any())
