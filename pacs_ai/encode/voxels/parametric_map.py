"""Parametric Maps: a number for each voxel on the source's own grid, with what it means and in which unit."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import numpy as np
from highdicom.pm import RealWorldValueMapping
from pydicom import Dataset
from pydicom.datadict import tag_for_keyword
from pydicom.uid import UID

from pacs_ai.encode.body_part import frame_anatomy
from pacs_ai.encode.encoded import encoded
from pacs_ai.encode.explicit import element, element_head, item, sequence
from pacs_ai.encode.grid import Grid, frame_of_reference
from pacs_ai.encode.pictures.secondary_capture import SOURCE_IMAGE, describe_series, disclaimer
from pacs_ai.encode.provenance import LONG_STRING, clean, concept, stamp
from pacs_ai.encode.voxels.codecs import MAX_BYTES
from pacs_ai.encode.voxels.frames import derivation_image
from pacs_ai.errors import Permanent
from pacs_ai.pipeline import Code

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pacs_ai.encode.case import Case
    from pacs_ai.encode.encoded import Encoded
    from pacs_ai.pipeline import Array, Map
    from pacs_ai.profiles import Encoding

FLOAT_PIXEL_DATA = 0x7FE00008
#: Image Derivation (CID 7203): no code says "by a neural network".
UNSPECIFIED = Code("112187", "DCM", "Unspecified method of calculation")
IMAGE_TYPE = ("DERIVED", "PRIMARY", "VOLUME", "QUANTITY")  # PS3.3 C.8.32.2
SHORT_STRING = 16  # characters of VR SH and CS


def encode_parametric_map(case: Case, encoding: Encoding, _cited: Encoded | None) -> tuple[Encoded, ...]:
    """Return one float32 Parametric Map for each map; none of projection or ultrasound images.

    Every slice has its frame, empty or not: viewers fail on maps of part of the slices. Frames ascend along the normal.

    Raises
    ------
    Permanent
        Where a map would not fit into one instance.
    Refused
        Where a source lacks its position or orientation.
    """
    if not case.has_volume or not case.findings.maps:
        return ()
    grid = Grid.of(case.own)
    _check_size(case)
    return tuple(_encode(one, case, encoding, grid, number) for number, one in enumerate(case.findings.maps, 1))


def _check_size(case: Case) -> None:
    size = 4 * int(np.prod(case.volume.shape))
    if size > MAX_BYTES:
        raise Permanent(
            f"a map of {' x '.join(map(str, case.volume.shape))} voxels would take {size / 2**30:.1f} GiB; one "
            "DICOM instance can hold 2 GiB: leave parametric maps out of the profile, or analyse a coarser series"
        )


def _encode(one: Map, case: Case, encoding: Encoding, grid: Grid, number: int) -> Encoded:
    order = [int(index) for index in grid.along_normal]
    result = _image(one, case, encoding, grid, number)
    groups = b"".join(item(content) for content in _frames(grid, order))
    stamp(result, case.source, case.work, encoding)
    pixels = [np.ascontiguousarray(one.voxels[index], "<f4").tobytes() for index in order]
    head = element_head(FLOAT_PIXEL_DATA, b"OF", sum(len(frame) for frame in pixels))
    return encoded(encoding, result, element_head(0x52009230, b"SQ", len(groups)) + groups, head, *pixels)


def _image(one: Map, case: Case, encoding: Encoding, grid: Grid, number: int) -> Dataset:
    """Return the map without what it says of each frame, and without its numbers (PS3.3 A.75.3)."""
    work = case.work
    result = Dataset()
    result.SOPClassUID = UID(encoding.details.sop_class_uid)
    result.SOPInstanceUID = work.uid(encoding.key, "instance", number)
    result.SeriesInstanceUID = work.uid(encoding.series, str(number))  # OHIF shows one map of a series
    result.Modality = encoding.details.modality
    result.InstanceNumber = encoding.instance_number + number - 1
    result.ImageType = list(IMAGE_TYPE)
    result.PixelPresentation = "MONOCHROME"
    result.ContentLabel = "MAP" if len(case.findings.maps) == 1 else f"MAP_{number}"
    result.ContentDescription = clean(f"AI: {one.name}", LONG_STRING)
    result.ContentCreatorName = None  # type 2, PS3.3 Table 10-12
    result.ImageComments = disclaimer(case)
    result.AcquisitionContextSequence = []
    result.BurnedInAnnotation = "NO"
    result.RecognizableVisualFeatures = "YES" if case.source.get("RecognizableVisualFeatures") == "YES" else "NO"
    result.PresentationLUTShape = "IDENTITY"
    result.SamplesPerPixel = 1
    result.PhotometricInterpretation = "MONOCHROME2"
    result.BitsAllocated = 32
    result.NumberOfFrames, result.Rows, result.Columns = case.volume.shape
    result.FrameOfReferenceUID = frame_of_reference(case.source)
    result.PositionReferenceIndicator = case.source.get("PositionReferenceIndicator") or None
    shared = _shared(one, case, grid)
    result.SharedFunctionalGroupsSequence = [shared]
    _set_dimensions(result, case, encoding, grid)
    describe_series(case, result)
    if "FrameAnatomySequence" in shared and "Laterality" in result:
        del result.Laterality  # Frame Laterality says it, PS3.3 C.7.3.1
    return result


def _set_dimensions(result: Dataset, case: Case, encoding: Encoding, grid: Grid) -> None:
    owner = Dataset()
    owner.DimensionOrganizationUID = case.work.uid(encoding.key, "dimension organization")
    result.DimensionOrganizationSequence = [owner]
    along = Dataset()
    along.DimensionOrganizationUID = owner.DimensionOrganizationUID
    along.DimensionIndexPointer = tag_for_keyword("ImagePositionPatient")
    along.FunctionalGroupPointer = tag_for_keyword("PlanePositionSequence")
    along.DimensionDescriptionLabel = "Image Position Patient"
    result.DimensionIndexSequence = [along]
    if grid.climbs(grid.along_normal):
        result.DimensionOrganizationType = "3D"  # PS3.3 C.7.6.17.3


def _shared(one: Map, case: Case, grid: Grid) -> Dataset:
    measures, orientation, identity, kind = Dataset(), Dataset(), Dataset(), Dataset()
    measures.PixelSpacing = grid.measures["PixelSpacing"]
    measures.SliceThickness = grid.measures.get("SliceThickness") or round(case.volume.spacing[0], 6)
    spacing = grid.spacing()
    if spacing is not None:
        measures.SpacingBetweenSlices = spacing
    orientation.ImageOrientationPatient = grid.measures["ImageOrientationPatient"]
    identity.RescaleIntercept, identity.RescaleSlope, identity.RescaleType = "0", "1", "US"
    kind.FrameType = list(IMAGE_TYPE)
    low, high = _range(one)
    shared = Dataset()
    anatomy = frame_anatomy(case.source)
    if anatomy is not None:
        shared.FrameAnatomySequence = [anatomy]
    shared.PixelMeasuresSequence = [measures]
    shared.PlaneOrientationSequence = [orientation]
    shared.FrameVOILUTSequence = [_window(low, high)]
    shared.PixelValueTransformationSequence = [identity]
    shared.RealWorldValueMappingSequence = [_mapping(one, low, high)]
    shared.ParametricMapFrameTypeSequence = [kind]
    return shared


def _range(one: Map) -> tuple[float, float]:
    """Return the least and the greatest number; of a probability 0 and 1."""
    if one.label is not None:
        return 0.0, 1.0
    planes: list[Array] = list(one.voxels)
    return min(float(plane.min()) for plane in planes), max(float(plane.max()) for plane in planes)


def _window(low: float, high: float) -> Dataset:
    window = Dataset()
    window.WindowCenter = f"{(low + high) / 2:.8g}"
    window.WindowWidth = f"{(high - low) or 1.0:.8g}"
    window.VOILUTFunction = "LINEAR_EXACT"  # a width below 1 is meant, PS3.3 C.11.2.1.3.2
    return window


def _mapping(one: Map, low: float, high: float) -> RealWorldValueMapping:
    """Say that the stored numbers are the quantity itself (PS3.3 C.7.6.16.2.11)."""
    return RealWorldValueMapping(
        lut_label=clean(one.name, SHORT_STRING, ending=""),
        lut_explanation=clean(one.name, LONG_STRING),
        unit=concept(one.unit),
        value_range=(low, high),
        slope=1.0,
        intercept=0.0,
        quantity_definition=concept(one.concept),
    )


def _frames(grid: Grid, order: list[int]) -> Iterator[bytes]:
    """Yield what is said of each frame: its source frame, its place along the normal, its position."""
    purpose, derivation = _coded(SOURCE_IMAGE), _coded(UNSPECIFIED)
    for place, index in enumerate(order, 1):
        source = grid.slices[index]
        yield (
            derivation_image(source.sop_class_uid, source.sop_instance_uid, source.frame_number, purpose, derivation)
            + sequence(0x00209111, element(0x00209157, b"UL", struct.pack("<I", place)))
            + sequence(0x00209113, element(0x00200032, b"DS", grid.places[index].encode()))
        )


def _coded(code: Code) -> bytes:
    """Return the item of a code sequence, encoded (PS3.3 Table 8.8-1)."""
    return (
        element(0x00080100, b"SH", code.value.encode())
        + element(0x00080102, b"SH", code.scheme.encode())
        + element(0x00080104, b"LO", code.meaning.encode())
    )
