"""Refuses what must not leave: sources of two patients, findings that fit nothing, references to images never read."""

from __future__ import annotations

import math
import struct
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
from pydicom import Dataset, config, dcmread
from pydicom.datadict import tag_for_keyword

from pacs_ai.dicom.reading import read_text
from pacs_ai.encode.explicit import elements, items, text, values
from pacs_ai.encode.frames import count_voxels, popcounts
from pacs_ai.encode.grid import Grid
from pacs_ai.errors import Permanent, PipelineFault, Refused

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pacs_ai.dicom.evidence import Evidence
    from pacs_ai.encode.case import Case
    from pacs_ai.encode.encoded import Encoded
    from pacs_ai.pipeline import Card, Findings, Given, Segment, Volume

PRIOR = "prior"
#: What all sources of one result must agree on, by the name that people know it by.
ONE_PATIENT = {
    "PatientID": "Patient ID",
    "IssuerOfPatientID": "Issuer of Patient ID",
    "PatientBirthDate": "Patient's Birth Date",
    "PatientSex": "Patient's Sex",
}
ONE_SERIES = {
    "SeriesInstanceUID": "Series Instance UID",
    "FrameOfReferenceUID": "Frame of Reference UID",
    "Rows": "Rows",
    "Columns": "Columns",
}
#: Pixel Spacing of two images of one series, relative: half a pixel over 512 columns.
PIXEL_SPACING_TOLERANCE = 1e-3
#: Attributes that a result must have a value for (type 1 of the SEG's and the SR's modules).
REQUIRED = (
    "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "Modality", "SeriesNumber",
    "InstanceNumber", "ContentDate", "ContentTime", "Manufacturer", "ContentQualification", "SeriesDescription",
)  # fmt: skip
REFERENCED_SOP_INSTANCE_UID = 0x00081155
REFERENCED_FRAME_NUMBER = 0x00081160
IMAGE_POSITION_PATIENT = 0x00200032
REFERENCED_SEGMENT_NUMBER = 0x0062000B
OF_A_FRAME = frozenset(
    {REFERENCED_SOP_INSTANCE_UID, REFERENCED_FRAME_NUMBER, IMAGE_POSITION_PATIENT, REFERENCED_SEGMENT_NUMBER}
)
#: Sequences whose references are no evidence: order, replaced reports, studies and patients.
NOT_EVIDENCE = frozenset(
    tag_for_keyword(keyword) or 0
    for keyword in (
        "ReferencedRequestSequence", "RequestAttributesSequence", "PredecessorDocumentsSequence",
        "ReferencedStudySequence", "ReferencedPatientSequence",
    )
)  # fmt: skip
#: Where a file's File Meta Information Group Length has its value (PS3.10 7.1).
META_LENGTH_AT = 128 + 4 + 8
REQUIRED_SEG = ("SegmentSequence", "FrameOfReferenceUID", "ReferencedSeriesSequence", "NumberOfFrames")
REQUIRED_SR = ("ContentSequence", "CompletionFlag", "VerificationFlag", "CurrentRequestedProcedureEvidenceSequence")


def check_sources(evidence: Mapping[str, Evidence]) -> None:
    """Refuse sources that are not of one patient and study, or series that are not one series; costs about 20 ms.

    Parameters
    ----------
    evidence
        By name of input. Names that begin with "prior" may be of another study.

    Raises
    ------
    Refused
        In words, without any patient's value.
    """
    everything = [ds for one in evidence.values() for ds in one.datasets]
    if not everything:
        raise Refused("there is no source image")
    with config.disable_value_validation():
        for keyword, name in ONE_PATIENT.items():
            _agree(everything, keyword, f"the images carry more than one {name}: they may not be of one patient")
        current = [ds for name, one in evidence.items() if not name.startswith(PRIOR) for ds in one.datasets]
        _agree(current, "StudyInstanceUID", "the images are of more than one study")
        for name, one in evidence.items():
            for keyword, meaning in ONE_SERIES.items():
                _agree(one.datasets, keyword, f"the images of the input '{name}' have more than one {meaning}")
            _agree_on_spacing(name, one)
            _check_references(name, one)


def _agree(datasets: Sequence[Dataset], keyword: str, message: str) -> None:
    if len({read_text(ds, keyword) for ds in datasets}) > 1:
        raise Refused(message)


def _agree_on_spacing(name: str, evidence: Evidence) -> None:
    """Compare Pixel Spacing as numbers: 0.7 and 0.700000 are one."""
    given = [ds.PixelSpacing for ds in evidence.datasets if ds.get("PixelSpacing")]
    if 0 < len(given) < len(evidence.datasets):
        raise Refused(f"some images of the input '{name}' have no Pixel Spacing")
    spacings = np.array([[float(value) for value in one] for one in given]).reshape(-1, 2)
    if len(spacings) and np.any(np.ptp(spacings, axis=0) > PIXEL_SPACING_TOLERANCE * spacings.min(axis=0)):
        raise Refused(f"the images of the input '{name}' have more than one Pixel Spacing")


def _check_references(name: str, evidence: Evidence) -> None:
    known = {str(ds.SOPInstanceUID) for ds in evidence.datasets}
    if len(known) < len(evidence.datasets):
        raise Refused(f"an image of the input '{name}' came twice under one SOP Instance UID")
    if not evidence.slices or not {reference.sop_instance_uid for reference in evidence.slices} <= known:
        raise Refused(f"the slices of the input '{name}' are not among its images")


def check_findings(findings: Findings, card: Card, volumes: Mapping[str, Given]) -> None:
    """Hold the findings against the card and the volume that they were made from.

    Raises
    ------
    PipelineFault
        A label that the card lacks, a segment twice or of another shape, a measurement that is no finite number.
    """
    if findings.grid not in volumes:
        raise PipelineFault(f"the findings lie on the input '{findings.grid}', which the pipeline was not given")
    names = {label.name for label in card.labels}
    seen: set[str] = set()
    for segment in findings.segments:
        _check_segment(segment, names, seen, volumes[findings.grid])
        seen.add(segment.label)
    for measurement in findings.measurements:
        if measurement.label is not None and measurement.label not in names:
            raise PipelineFault(f"a measurement is of the label '{measurement.label}', which the card does not have")
        if not math.isfinite(measurement.value):
            raise PipelineFault(f"the measurement '{measurement.concept.meaning}' is {measurement.value}, not a number")


def _check_segment(segment: Segment, names: set[str], seen: set[str], volume: Given) -> None:
    if segment.label not in names:
        raise PipelineFault(f"a segment has the label '{segment.label}', which the card does not have")
    if segment.label in seen:
        raise PipelineFault(f"the pipeline returned the segment '{segment.label}' twice; a label has one segment")
    if segment.voxels.shape != volume.shape:
        raise PipelineFault(
            f"the segment '{segment.label}' has the shape {segment.voxels.shape}, "
            f"the volume {volume.shape}: segments lie on the grid of their input"
        )
    if segment.voxels.dtype.kind not in "bu":
        raise PipelineFault(
            f"the segment '{segment.label}' has the type {segment.voxels.dtype}; it must be bool or an unsigned integer"
        )
    if segment.number < 1:
        raise PipelineFault(f"the segment '{segment.label}' has the number {segment.number}; numbers begin at 1")


def check_results(results: Sequence[Encoded], case: Case) -> None:
    """Read the encoded results again and hold them against what was received and found; costs about 0.2 s.

    Raises
    ------
    Permanent
        Where a result cites an instance that was not read, lies elsewhere, or holds other voxels than were found.
    """
    own = case.own
    read = {str(ds.SOPInstanceUID) for one in case.evidence.values() for ds in one.datasets}
    made = {result.sop_instance_uid for result in results if result.kind == "SEG"}
    for result in results:
        ds = dcmread(BytesIO(b"".join(result.parts[:2])), stop_before_pixels=True)
        _check_identity(ds, own.datasets[0], result.kind)
        strange = _references(result.parts[0]) - read - (made if result.kind == "SR" else set())
        if strange:
            raise Permanent(f"the {result.kind} cites {len(strange)} instances that were not read")
        if result.kind == "SEG":
            _check_segmentation(ds, result.parts, own, case.findings, case.volume)


def _check_identity(ds: Dataset, source: Dataset, kind: str) -> None:
    lacking = [keyword for keyword in REQUIRED if not ds.get(keyword)]
    lacking += [keyword for keyword in (REQUIRED_SEG if kind == "SEG" else REQUIRED_SR) if not ds.get(keyword)]
    if lacking:
        raise Permanent(f"the {kind} lacks {', '.join(lacking)}")
    with config.disable_value_validation():
        for keyword in ("PatientName", "StudyInstanceUID", *ONE_PATIENT):
            if (ds.get(keyword) or None) != (source.get(keyword) or None):
                raise Permanent(f"the {kind} and its source differ in {keyword}")
    if kind == "SR" and ds.VerificationFlag != "UNVERIFIED":
        raise Permanent("the SR claims to be verified")


def _references(encoded: bytes | bytearray) -> set[str]:
    """Return every Referenced SOP Instance UID of a file but those of replaced reports and of the order."""
    file = bytes(encoded)
    (meta,) = struct.unpack_from("<I", file, META_LENGTH_AT)
    start = META_LENGTH_AT + 4 + meta
    wanted = frozenset({REFERENCED_SOP_INSTANCE_UID})
    return {text(uid) for _, uid in values(file, start, len(file), wanted, NOT_EVIDENCE)}


def _check_segmentation(
    ds: Dataset, parts: Sequence[bytes | bytearray], own: Evidence, findings: Findings, volume: Volume
) -> None:
    """Compare each frame's source, place and number of voxels with the findings."""
    grid = Grid.of(own)
    shape = (len(own.slices), int(ds.Rows), int(ds.Columns))
    if shape != volume.voxels.shape:
        raise Permanent(f"the SEG lies on {shape}, its source on {volume.voxels.shape}")
    shared = ds.SharedFunctionalGroupsSequence[0]
    _check_shared(shared, grid)
    alone = shared.get("SegmentIdentificationSequence")
    frames = _frames(bytes(parts[1]), 1 if alone else None)
    places = {
        (ref.sop_instance_uid, ref.frame_number): (index, place)
        for index, (ref, place) in enumerate(zip(own.slices, grid.places, strict=True))
    }
    found = np.zeros((len(ds.SegmentSequence), len(own.slices)), np.int64)
    counted = popcounts(parts[-1], int(ds.NumberOfFrames), shape[1] * shape[2])
    for (number, source, place), voxels in zip(frames, counted, strict=True):
        index, expected_place = places[source]
        if place != expected_place:
            raise Permanent("a frame of the SEG does not lie where its source frame lies")
        found[number - 1, index] += voxels
    expected = count_voxels(findings.segments)
    if not np.array_equal(found, expected[expected.any(axis=1)]):
        raise Permanent("the SEG's voxels are not those that the pipeline returned")


def _frames(groups: bytes, alone: int | None) -> Iterator[tuple[int, tuple[str, int | None], str]]:
    """Yield (segment number, source frame, Image Position (Patient)) of each frame."""
    ((_, _, start, end),) = elements(groups, 0, len(groups))
    for first, last in items(groups, start, end):
        found = dict(values(groups, first, last, OF_A_FRAME))
        number = alone or int.from_bytes(found[REFERENCED_SEGMENT_NUMBER], "little")
        frame = int(text(found[REFERENCED_FRAME_NUMBER])) if REFERENCED_FRAME_NUMBER in found else None
        yield number, (text(found[REFERENCED_SOP_INSTANCE_UID]), frame), text(found[IMAGE_POSITION_PATIENT])


def _check_shared(shared: Dataset, grid: Grid) -> None:
    spacing = shared.PixelMeasuresSequence[0].PixelSpacing
    orientation = shared.PlaneOrientationSequence[0].ImageOrientationPatient
    same = np.allclose([float(value) for value in spacing], [float(v) for v in grid.measures["PixelSpacing"]])
    if not same or not np.allclose([float(value) for value in orientation], grid.orientation):
        raise Permanent("the SEG has another pixel spacing or orientation than its source")
