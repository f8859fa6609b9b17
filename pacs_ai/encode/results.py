"""From findings to what the PACS gets: one SEG where there is anything to draw, and one SR that cites it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pacs_ai.encode.check import check_findings, check_results, check_sources
from pacs_ai.encode.encoded import Encoded
from pacs_ai.encode.frames import count_voxels
from pacs_ai.encode.report import encode_report
from pacs_ai.encode.segmentation import encode_segmentation

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pacs_ai.dicom.evidence import Evidence
    from pacs_ai.encode.provenance import Work
    from pacs_ai.pipeline import Findings, Volume

__all__ = ["Encoded", "encode"]


def encode(
    findings: Findings, evidence: Mapping[str, Evidence], volumes: Mapping[str, Volume], work: Work
) -> tuple[Encoded, ...]:
    """Return the result objects in the order in which they are delivered: the SEG, then the SR that cites it.

    Same arguments, same bytes. Segments without voxels are not in the SEG; the SR names them as looked for and absent.
    Where no segment has a voxel there is an SR only, which says so.

    Parameters
    ----------
    findings
        What the pipeline returned; the segments lie on the grid of the input `findings.grid`.
    evidence, volumes
        By name of input. Names that begin with "prior" may be of another study of the patient.
    work
        The job.

    Raises
    ------
    Refused
        Where the sources disagree or lack what a result needs.
    PipelineFault
        Where the findings do not fit the card or the volume.
    Permanent
        Where the SEG would exceed 2 GiB, or what was encoded is not what was found.
    """
    check_sources(evidence)
    if not findings.segments and findings.grid not in volumes:
        findings = replace(findings, grid=next(iter(volumes)))  # nothing lies on a grid, so any input's images serve
    check_findings(findings, work.card, volumes)
    own, volume = evidence[findings.grid], volumes[findings.grid]
    counts = count_voxels(findings.segments)
    filled = [row for row, count in enumerate(counts) if count.any()]
    segmentation = None
    if filled:
        segments = tuple(findings.segments[row] for row in filled)
        segmentation = encode_segmentation(segments, own, volume, work, counts[filled])
    report = encode_report(findings, evidence, volumes, work, counts, segmentation)
    results = (report,) if segmentation is None else (segmentation, report)
    check_results(results, evidence, findings, volume)
    return results
