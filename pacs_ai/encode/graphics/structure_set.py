"""One RT Structure Set (RTSTRUCT) per pipeline result: each segment as contours on the source's slices."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from pydicom import Dataset

from pacs_ai.encode.encoded import encoded, plain
from pacs_ai.encode.explicit import element, item, sequence
from pacs_ai.encode.graphics.contours import polygons
from pacs_ai.encode.grid import Grid, frame_of_reference
from pacs_ai.encode.identity import request_items
from pacs_ai.encode.provenance import DISCLAIMER, LONG_STRING, algorithm, clean, concept, stamp
from pacs_ai.encode.voxels.survey import plane
from pacs_ai.pipeline import ANATOMICAL_STRUCTURE, Clearance

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pacs_ai.dicom.evidence import Evidence, FrameReference
    from pacs_ai.encode.case import Case
    from pacs_ai.encode.encoded import Encoded
    from pacs_ai.pipeline import Label, Segment
    from pacs_ai.profiles import Encoding

#: Of one contour: Contour Data has VR DS, at most 65534 bytes in Explicit VR (PS3.5 7.1.2), and a point takes up to 36.
MAX_POINTS = 1800
#: Digits after the point, in mm. Rounding moves no line across a voxel centre.
DECIMALS = 4
#: Referenced SOP Class of a study (Detached Study Management), as every RTSTRUCT writes it.
STUDY = "1.2.840.10008.3.1.2.3.1"


def encode_structure_set(case: Case, encoding: Encoding, _cited: Encoded | None) -> tuple[Encoded, ...]:
    """Return the RTSTRUCT (PS3.3 A.19) of the segments that have voxels; none for projection and ultrasound images.

    Filled, the contours hold exactly the voxels of the segment. Holes are joined by keyholes (`encode.contours`).

    Raises
    ------
    Refused
        Where a source lacks its position or orientation.
    """
    if not case.filled or not case.has_volume:
        return ()
    work, source = case.work, case.source
    result = _document(case)
    frame = str(result.FrameOfReferenceUID)
    result.SOPInstanceUID = work.uid(encoding.key, "instance", 1)
    result.SeriesInstanceUID = work.uid(encoding.series)
    result.InstanceNumber = encoding.instance_number
    grid = Grid.of(case.own)
    result.ReferencedFrameOfReferenceSequence = [_frame_of_reference(case.own, frame)]
    regions, observations = [], []
    contours: list[bytes] = []
    for number, (segment, row) in enumerate(case.filled, 1):
        label = case.card.label(segment.label)
        regions.append(_region(case, label, int(row.sum()), number, frame))
        contours.append(item(_contours(segment, label, np.flatnonzero(row).tolist(), grid, number)))
        observations.append(_observation(label, number))
    result.StructureSetROISequence = regions
    stamp(result, source, work, encoding)
    result.StructureSetDate, result.StructureSetTime = result.ContentDate, result.ContentTime
    ending = Dataset()
    ending.RTROIObservationsSequence = observations
    ending.ApprovalStatus = "UNAPPROVED"
    return (encoded(encoding, result, element(0x30060039, b"SQ", b"".join(contours)), plain(ending)),)


def _document(case: Case) -> Dataset:
    """Return RT Series, Frame of Reference, Structure Set and Approval (PS3.3 A.19.3) but for the regions."""
    card = case.card
    result = Dataset()
    result.SOPClassUID = "1.2.840.10008.5.1.4.1.1.481.3"
    result.Modality = "RTSTRUCT"
    result.OperatorsName = None
    result.FrameOfReferenceUID = frame_of_reference(case.source)
    result.PositionReferenceIndicator = case.source.get("PositionReferenceIndicator") or None
    result.StructureSetLabel = clean(f"AI {card.title}", 16, ending="")
    result.StructureSetName = clean(f"AI: {card.title}", LONG_STRING)
    research = f"For research only, {DISCLAIMER}. " if card.clearance == Clearance.RESEARCH else ""
    made = f"Made by an algorithm ({card.name} {card.version}, {card.manufacturer}) and not reviewed by a person."
    result.StructureSetDescription = clean(f"{research}{made} Intended use: {card.intended_use}", 1024)
    order = request_items(case.source)
    if order:
        result.RequestAttributesSequence = order
    return result


def _frame_of_reference(own: Evidence, uid: str) -> Dataset:
    """Return the Frame of Reference with study, series and every image that the contours may lie on."""
    source = own.datasets[0]
    series = Dataset()
    series.SeriesInstanceUID = source.SeriesInstanceUID
    series.ContourImageSequence = [_image(str(ds.SOPClassUID), str(ds.SOPInstanceUID), None) for ds in own.datasets]
    study = Dataset()
    study.ReferencedSOPClassUID = STUDY
    study.ReferencedSOPInstanceUID = source.StudyInstanceUID
    study.RTReferencedSeriesSequence = [series]
    frame = Dataset()
    frame.FrameOfReferenceUID = uid
    frame.RTReferencedStudySequence = [study]
    return frame


def _image(sop_class_uid: str, sop_instance_uid: str, frame_number: int | None) -> Dataset:
    image = Dataset()
    image.ReferencedSOPClassUID = sop_class_uid
    image.ReferencedSOPInstanceUID = sop_instance_uid
    if frame_number is not None:
        image.ReferencedFrameNumber = frame_number
    return image


def _region(case: Case, label: Label, voxels: int, number: int, frame: str) -> Dataset:
    """Return one region of interest (Structure Set ROI Sequence, PS3.3 C.8.8.5)."""
    region = Dataset()
    region.ROINumber = number
    region.ReferencedFrameOfReferenceUID = frame
    region.ROIName = clean(label.name, LONG_STRING)
    region.ROIDescription = clean("AI, not verified", 1024)
    region.ROIVolume = f"{voxels * case.volume.voxel_ml:.9g}"  # cubic centimetres
    region.ROIGenerationAlgorithm = "AUTOMATIC"
    region.ROIGenerationDescription = clean(f"{case.card.name} {case.card.version}", LONG_STRING)
    region.ROIDerivationAlgorithmIdentificationSequence = algorithm(case.work)
    return region


def _observation(label: Label, number: int) -> Dataset:
    """Return what the region is (RT ROI Observations, PS3.3 C.8.8.8)."""
    observation = Dataset()
    observation.ObservationNumber = number
    observation.ReferencedROINumber = number
    observation.ROIObservationLabel = clean(label.name, 16, ending="")
    anatomical = label.category.value == ANATOMICAL_STRUCTURE.value
    observation.RTROIInterpretedType = "ORGAN" if anatomical else None
    observation.ROIInterpreter = None
    code = Dataset()
    code.update(concept(label.type))
    if label.modifier is not None:
        code.SegmentedPropertyTypeModifierCodeSequence = [concept(label.modifier)]
    observation.RTROIIdentificationCodeSequence = [code]
    observation.SegmentedPropertyCategoryCodeSequence = [concept(label.category)]
    return observation


def _contours(segment: Segment, label: Label, slices: Sequence[int], grid: Grid, number: int) -> bytes:
    """Return the contours of one segment (ROI Contour, PS3.3 C.8.8.6), slice after slice, as an encoded item.

    pydicom reads each of some hundred thousand decimal strings again before it writes it, which took half the time.
    """
    contours: list[bytes] = []
    for index in slices:
        image = _plain_image(grid.slices[index])
        for polygon in polygons(plane(segment, index), MAX_POINTS):
            contours.append(_contour(in_patient(polygon, grid, index), image, len(contours) + 1))
    colour = "\\".join(str(value) for value in label.colour).encode()
    return (
        element(0x3006002A, b"IS", colour)
        + sequence(0x30060040, *contours)
        + element(0x30060084, b"IS", str(number).encode())
    )


def in_patient(points: npt.NDArray[np.float64], grid: Grid, index: int) -> npt.NDArray[np.float64]:
    """Return where points of a slice lie in the patient.

    Parameters
    ----------
    points
        (points, 2) of (column, row), (0, 0) the outer corner of the first pixel.
    grid, index
        The series and the slice.

    Returns
    -------
    (points, 3) in mm, LPS (PS3.3 Equation C.7.6.2.1-1, which counts from the centre of the first pixel).
    """
    cosines = np.asarray(grid.orientation).reshape(2, 3)
    row_spacing, column_spacing = (float(value) for value in grid.measures["PixelSpacing"])
    steps = np.array([cosines[0] * column_spacing, cosines[1] * row_spacing])
    return np.asarray(grid.positions[index] + (points - 0.5) @ steps)


def _contour(places: npt.NDArray[np.float64], image: bytes, number: int) -> bytes:
    """Return the content of one item of the Contour Sequence."""
    points = "\\".join(_decimal(value) for value in places.ravel().tolist())
    return (
        image
        + element(0x30060042, b"CS", b"CLOSED_PLANAR")
        + element(0x30060046, b"IS", str(len(places)).encode())
        + element(0x30060048, b"IS", str(number).encode())
        + element(0x30060050, b"DS", points.encode())
    )


def _plain_image(reference: FrameReference) -> bytes:
    image = Dataset()
    image.ContourImageSequence = [_image(reference.sop_class_uid, reference.sop_instance_uid, reference.frame_number)]
    return plain(image)


def _decimal(value: float) -> str:
    """Return a Decimal String (VR DS) of at most 12 characters within 10 m of the origin."""
    text = f"{value:.{DECIMALS}f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text
