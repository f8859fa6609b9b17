"""From findings to what the PACS gets: the objects that the destinations want, in the order of delivery."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pacs_ai.encode.case import Case
from pacs_ai.encode.check import check_findings, check_results, check_sources
from pacs_ai.encode.encoded import Encoded
from pacs_ai.encode.graphics.presentation_state import encode_presentation_state
from pacs_ai.encode.graphics.structure_set import encode_structure_set
from pacs_ai.encode.pictures.overlay import encode_overlay
from pacs_ai.encode.pictures.secondary_capture import encode_secondary_capture
from pacs_ai.encode.pictures.summary import encode_summary
from pacs_ai.encode.reports.key_objects import encode_key_objects
from pacs_ai.encode.reports.report import encode_report
from pacs_ai.encode.reports.text_report import encode_text_report
from pacs_ai.encode.reports.values import encode_values
from pacs_ai.encode.voxels.derived import encode_derived_images
from pacs_ai.encode.voxels.parametric_map import encode_parametric_map
from pacs_ai.encode.voxels.segmentation import encode_segmentation
from pacs_ai.pipeline import Waveform
from pacs_ai.profiles import Kind

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from pacs_ai.dicom.evidence import Evidence
    from pacs_ai.encode.provenance import Work
    from pacs_ai.pipeline import Findings, Given
    from pacs_ai.profiles import Encoding

__all__ = ["Encoded", "encode"]

#: Of a waveform; all others lie on images.
OF_WAVEFORMS = (Kind.REPORT, Kind.TEXT_REPORT, Kind.VALUES, Kind.SECONDARY_CAPTURE, Kind.SUMMARY)

#: (case, encoding, the segmentation that it cites) -> the objects; none where there is nothing of the kind to say.
ENCODERS: Mapping[Kind, Callable[[Case, Encoding, Encoded | None], tuple[Encoded, ...]]] = {
    Kind.SEGMENTATION: encode_segmentation,
    Kind.REPORT: encode_report,
    Kind.TEXT_REPORT: encode_text_report,
    Kind.VALUES: encode_values,
    Kind.SECONDARY_CAPTURE: encode_secondary_capture,
    Kind.OVERLAY: encode_overlay,
    Kind.PARAMETRIC_MAP: encode_parametric_map,
    Kind.DERIVED_IMAGES: encode_derived_images,
    Kind.SUMMARY: encode_summary,
    Kind.KEY_OBJECTS: encode_key_objects,
    Kind.STRUCTURE_SET: encode_structure_set,
    Kind.PRESENTATION_STATE: encode_presentation_state,
}


def encode(
    findings: Findings,
    evidence: Mapping[str, Evidence],
    inputs: Mapping[str, Given],
    work: Work,
    wanted: Sequence[Encoding],
    remarks: Sequence[str] = (),
) -> tuple[Encoded, ...]:
    """Return the result objects in the order in which they are delivered.

    Same arguments, same bytes. Segments without voxels are not in the SEG; the SR names them as looked for and absent.
    Where no segment has a voxel there is no SEG, and the SR says so.

    Parameters
    ----------
    findings
        What the pipeline returned; they lie on the grid of the input `findings.grid`.
    evidence, inputs
        By name of input. Names that begin with "prior" may be of another study of the patient.
    work
        The job.
    wanted
        What to make, segmentations before what cites them (`pacs_ai.profiles.encodings`).
    remarks
        What a reader must know of this result, in sentences without any value of a patient's identity.

    Raises
    ------
    Refused
        Where the sources disagree or lack what a result needs.
    PipelineFault
        Where the findings do not fit the card or the input.
    Permanent
        Where an object would exceed 2 GiB, or what was encoded is not what was found.
    """
    check_sources(evidence, inputs)
    case = Case.of(findings, evidence, inputs, work, remarks)
    check_findings(case.findings, work.card, inputs)
    made: dict[str, tuple[Encoded, ...]] = {}
    for encoding in wanted:
        if not _is_made(encoding, case):
            continue
        cited = made.get(encoding.cites, ())
        made[encoding.key] = ENCODERS[encoding.kind](case, encoding, cited[0] if cited else None)
    results = tuple(one for objects in made.values() for one in objects)
    check_results(results, case)
    return results


def _is_made(encoding: Encoding, case: Case) -> bool:
    """Tell whether there is such an object of what the findings lie on."""
    if isinstance(case.given, Waveform):
        return not encoding.only and encoding.kind in OF_WAVEFORMS
    return not encoding.only or (encoding.only == "volumes") == case.has_volume
