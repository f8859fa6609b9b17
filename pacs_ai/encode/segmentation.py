"""One binary Segmentation (SEG) per pipeline result, on the source's own grid, citing exactly the source frames."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from highdicom.color import CIELabColor
from highdicom.seg import SegmentAlgorithmTypeValues, SegmentationTypeValues, SegmentDescription
from highdicom.seg import Segmentation as HighdicomSegmentation
from pydicom import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from pacs_ai.encode.encoded import encoded
from pacs_ai.encode.explicit import element_head, item
from pacs_ai.encode.frames import derivation_image, functional_groups, overlap, pack
from pacs_ai.encode.grid import Grid, frame_of_reference
from pacs_ai.encode.identity import own_copy, request_items
from pacs_ai.encode.provenance import (
    LONG_STRING,
    MANUFACTURER,
    MODEL_NAME,
    Work,
    algorithm,
    clean,
    concept,
    stamp,
    tracking,
)
from pacs_ai.errors import Permanent

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pacs_ai.dicom.evidence import Evidence
    from pacs_ai.encode.case import Case
    from pacs_ai.encode.encoded import Encoded
    from pacs_ai.pipeline import Segment, Volume
    from pacs_ai.profiles import Encoding

#: Pixel data of defined length ends below 4 GiB; many receivers read it with signed 32 bit arithmetic.
MAX_BYTES = 2**31 - 2


def encode_segmentation(case: Case, encoding: Encoding, _cited: Encoded | None) -> tuple[Encoded, ...]:
    """Return the SEG of the segments that have voxels; none where no segment has one.

    Raises
    ------
    Permanent
        Where the pixel data would not fit into one instance.
    Refused
        Where a source lacks its position or orientation.
    """
    if not case.filled:
        return ()
    segments = tuple(segment for segment, _ in case.filled)
    counts = np.stack([row for _, row in case.filled])
    evidence, volume, work = case.own, case.volume, case.work
    grid = Grid.of(evidence)
    overlapping = overlap(segments, counts)
    frames, places = _frame_order(counts, grid, overlapping)
    _check_size(len(frames), volume)
    template = _template(segments, evidence, grid, volume, work, encoding)
    groups = _functional_groups(template, grid, frames, places, len(segments))
    _complete(template, evidence, work, encoding)
    template.SegmentsOverlap = "YES" if overlapping else "NO"
    if len(segments) == 1 and grid.climbs(np.flatnonzero(counts[0])):
        template.DimensionOrganizationType = "3D"  # PS3.3 C.7.6.17.3
    template.NumberOfFrames = len(frames)
    pixels = pack(segments, frames)
    return (encoded(encoding, template, groups, element_head(0x7FE00010, b"OB", len(pixels)), pixels),)


def _frame_order(
    counts: npt.NDArray[np.int64], grid: Grid, overlapping: bool
) -> tuple[list[tuple[int, int]], dict[int, int]]:
    """Return the frames (segment after segment, along the normal) and each used slice's place along the normal.

    A segment has a frame on the slices that it uses. Where segments overlap it has one, if need be empty, on every
    slice that any segment uses: OHIF 3.13 shows no slice that only some of the overlapping segments have.
    """
    used = [int(index) for index in grid.along_normal if counts[:, index].any()]
    frames = [(row, index) for row in range(len(counts)) for index in used if overlapping or counts[row, index]]
    return frames, {index: place for place, index in enumerate(used, 1)}


def _check_size(frames: int, volume: Volume) -> None:
    rows, columns = volume.voxels.shape[1:]
    size = frames * rows * columns // 8
    if size > MAX_BYTES:
        raise Permanent(
            f"the segmentation has {frames} frames of {rows} x {columns} pixels and would take {size / 2**30:.1f} GiB; "
            "one DICOM instance can hold 2 GiB: let the pipeline return fewer labels or a coarser series"
        )


def _template(
    segments: Sequence[Segment], evidence: Evidence, grid: Grid, volume: Volume, work: Work, encoding: Encoding
) -> HighdicomSegmentation:
    """Return highdicom's SEG of one slice in which every segment has one pixel: all but frames and references."""
    rows, columns = volume.voxels.shape[1:]
    seeds = np.zeros((1, rows, columns), np.uint16)
    seeds.reshape(-1)[: len(segments)] = np.arange(1, len(segments) + 1)
    return HighdicomSegmentation(
        source_images=[_stand_in(evidence, grid, volume)],
        pixel_array=seeds,
        segmentation_type=SegmentationTypeValues.BINARY,
        segment_descriptions=[describe(segment, number, work) for number, segment in enumerate(segments, 1)],
        series_instance_uid=work.uid(encoding.series),
        series_number=encoding.series_number,
        sop_instance_uid=work.uid(encoding.key, "instance", 1),
        instance_number=encoding.instance_number,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=MODEL_NAME,
        software_versions=MODEL_NAME,
        device_serial_number=work.device_serial_number,
        content_label="SEGMENTATION",
        content_description=work.series_description,
        transfer_syntax_uid=ExplicitVRLittleEndian,
    )


def _stand_in(evidence: Evidence, grid: Grid, volume: Volume) -> Dataset:
    """Return a single-frame image with the grid of the first slice, without identity: that is stamped on later."""
    source = evidence.datasets[0]
    image = Dataset()
    image.SOPClassUID = CTImageStorage
    image.SOPInstanceUID = grid.slices[0].sop_instance_uid
    image.StudyInstanceUID = source.StudyInstanceUID
    image.SeriesInstanceUID = source.SeriesInstanceUID
    image.FrameOfReferenceUID = frame_of_reference(source)
    image.PositionReferenceIndicator = source.get("PositionReferenceIndicator") or None
    image.Modality = source.Modality
    image.Rows, image.Columns = volume.voxels.shape[1:]
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
        setattr(image, keyword, grid.measures[keyword])
    image.SliceThickness = grid.measures.get("SliceThickness") or round(volume.spacing[0], 6)
    image.SpacingBetweenSlices = grid.spacing()
    if image.SpacingBetweenSlices is None:
        del image.SpacingBetweenSlices
    for keyword in ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID"):
        setattr(image, keyword, None)
    image.StudyDate = image.StudyTime = image.ReferringPhysicianName = None
    return image


def describe(segment: Segment, number: int, work: Work) -> SegmentDescription:
    """Return the item of the Segment Sequence (PS3.3 C.8.20.4) for one segment."""
    label = work.card.label(segment.label)
    identifier, uid = tracking(work, label.name)
    description = SegmentDescription(
        segment_number=number,
        segment_label=clean(label.name, LONG_STRING),
        segmented_property_category=concept(label.category),
        segmented_property_type=concept(label.type),
        algorithm_type=SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=algorithm(work),
        tracking_uid=uid,
        tracking_id=identifier,
        display_color=CIELabColor.from_rgb(*label.colour),
    )
    if label.modifier is not None:
        kind = description.SegmentedPropertyTypeCodeSequence[0]
        kind.SegmentedPropertyTypeModifierCodeSequence = [concept(label.modifier)]
    return description


def _functional_groups(
    template: HighdicomSegmentation,
    grid: Grid,
    frames: Sequence[tuple[int, int]],
    places: dict[int, int],
    segments: int,
) -> bytes:
    """Return the Per-frame Functional Groups Sequence, encoded; the template's own one frame goes."""
    derived = template.PerFrameFunctionalGroupsSequence[0].DerivationImageSequence[0]
    purpose = _encode(derived.SourceImageSequence[0].PurposeOfReferenceCodeSequence[0])
    derivation = _encode(derived.DerivationCodeSequence[0])
    prepared = [
        (
            derivation_image(ref.sop_class_uid, ref.sop_instance_uid, ref.frame_number, purpose, derivation),
            place,
        )
        for ref, place in zip(grid.slices, grid.places, strict=True)
    ]
    items = b"".join(item(content) for content in functional_groups(prepared, frames, places, segments))
    del template.PerFrameFunctionalGroupsSequence
    del template.PixelData
    return element_head(0x52009230, b"SQ", len(items)) + items


def _encode(ds: Dataset) -> bytes:
    target = DicomBytesIO()
    target.is_little_endian = True
    target.is_implicit_VR = False
    write_dataset(target, ds)
    return target.getvalue()


def _complete(template: HighdicomSegmentation, evidence: Evidence, work: Work, encoding: Encoding) -> None:
    """Give the template what depends on all images and on the job: references, dimensions, identity."""
    source = evidence.datasets[0]
    organization = work.uid(encoding.key, "dimension organization")
    template.DimensionOrganizationSequence[0].DimensionOrganizationUID = organization
    for index in template.DimensionIndexSequence:
        index.DimensionOrganizationUID = organization
    references = [_reference(ds) for ds in evidence.datasets]
    template.SourceImageSequence = references
    series = Dataset()
    series.SeriesInstanceUID = source.SeriesInstanceUID
    series.ReferencedInstanceSequence = references
    template.ReferencedSeriesSequence = [series]
    template.ContentCreatorName = None  # type 2, PS3.3 Table 10-12
    _copy_series(template, evidence)
    stamp(template, source, work, encoding)


def _reference(ds: Dataset) -> Dataset:
    reference = Dataset()
    reference.ReferencedSOPClassUID = ds.SOPClassUID
    reference.ReferencedSOPInstanceUID = ds.SOPInstanceUID
    return reference


def _copy_series(template: Dataset, evidence: Evidence) -> None:
    """Copy the order, the body part and a lossy history (PS3.3 C.7.3.1, C.7.6.1.1.5)."""
    source = evidence.datasets[0]
    for keyword in ("BodyPartExamined", "Laterality"):
        if source.get(keyword):
            template.add(own_copy(source[keyword]))
    order = request_items(source)
    if order:
        template.RequestAttributesSequence = order
    lossy = next((ds for ds in evidence.datasets if ds.get("LossyImageCompression") == "01"), None)
    template.LossyImageCompression = "00" if lossy is None else "01"
    for keyword in ("LossyImageCompressionRatio", "LossyImageCompressionMethod"):
        if lossy is not None and lossy.get(keyword):
            template.add(own_copy(lossy[keyword]))
