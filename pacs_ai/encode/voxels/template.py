"""All of a segmentation but its frames: made by highdicom from one image, completed from the job and the sources."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from highdicom.color import CIELabColor
from highdicom.seg import SegmentAlgorithmTypeValues, SegmentationTypeValues, SegmentDescription
from highdicom.seg import Segmentation as HighdicomSegmentation
from pydicom import Dataset
from pydicom.datadict import tag_for_keyword
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.uid import ExplicitVRLittleEndian

from pacs_ai.encode.explicit import element_head, item
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
from pacs_ai.encode.voxels.frames import derivation_image, functional_groups

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pacs_ai.dicom.evidence import Evidence
    from pacs_ai.encode.case import Case
    from pacs_ai.encode.voxels.layout import Layout
    from pacs_ai.profiles import Encoding

#: Most segments that one segmentation can have: Segment Number is an unsigned 16 bit number.
MAX_SEGMENTS = 65535
REFERENCED_SEGMENT = tag_for_keyword("ReferencedSegmentNumber")


def make_template(
    kind: SegmentationTypeValues,
    labels: Sequence[str],
    layout: Layout,
    case: Case,
    encoding: Encoding,
    transfer_syntax: str,
    **options: Any,
) -> HighdicomSegmentation:
    """Return a segmentation without frames: everything but functional groups per frame and pixel data.

    highdicom makes it from one image in which every segment has one pixel; what depends on all images and on the job is
    put in afterwards, so that its cost does not grow with the frames.

    Parameters
    ----------
    kind
        BINARY, LABELMAP or FRACTIONAL.
    labels
        Label of each segment, in the order of the segment numbers.
    encoding
        Gives UIDs and numbers.
    transfer_syntax
        What is really written, which may be another than the encoding's.
    options
        Further arguments of highdicom's Segmentation.
    """
    work = case.work
    _, rows, columns = layout.shape
    seeds = np.zeros((1, rows, columns), np.uint16)
    few = min(len(labels), rows * columns)
    seeds.reshape(-1)[:few] = np.arange(1, few + 1)
    template = HighdicomSegmentation(
        source_images=[layout.stand_in],
        pixel_array=seeds,
        segmentation_type=kind,
        segment_descriptions=[describe(label, number, work) for number, label in enumerate(labels, 1)],
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
        **options,
    )
    del template.PixelData
    _complete(template, layout, case, encoding)
    stamp(template, case.source, work, replace(encoding, transfer_syntax=transfer_syntax))
    return template


def describe(name: str, number: int, work: Work) -> SegmentDescription:
    """Return the item of the Segment Sequence (PS3.3 C.8.20.4) for one segment."""
    label = work.card.label(name)
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


def finish(
    template: HighdicomSegmentation, layout: Layout, frames: Sequence[tuple[int, int]], *, by_segment: bool
) -> bytes:
    """Tell the template which frames there are, and return its Per-frame Functional Groups Sequence, encoded.

    Parameters
    ----------
    frames
        (index of the segment, slice) per frame.
    by_segment
        Whether each frame is of one segment.
    """
    numbered = by_segment and len(template.SegmentSequence) > 1
    if not numbered and layout.climbs(np.array([index for _, index in frames])):
        template.DimensionOrganizationType = "3D"  # PS3.3 C.7.6.17.3
    elif "DimensionOrganizationType" in template:
        del template.DimensionOrganizationType
    template.NumberOfFrames = len(frames)
    derived = template.PerFrameFunctionalGroupsSequence[0].DerivationImageSequence[0]
    purpose = _encode(derived.SourceImageSequence[0].PurposeOfReferenceCodeSequence[0])
    derivation = _encode(derived.DerivationCodeSequence[0])
    derivations = [
        derivation_image(one.sop_class_uid, one.sop_instance_uid, one.frame_number, purpose, derivation)
        for one in layout.slices
    ]
    groups = functional_groups(layout, derivations, frames, by_segment=by_segment, numbered=numbered)
    items = b"".join(item(content) for content in groups)
    del template.PerFrameFunctionalGroupsSequence
    return element_head(0x52009230, b"SQ", len(items)) + items


def _encode(ds: Dataset) -> bytes:
    target = DicomBytesIO()
    target.is_little_endian = True
    target.is_implicit_VR = False
    write_dataset(target, ds)
    return target.getvalue()


def _complete(template: HighdicomSegmentation, layout: Layout, case: Case, encoding: Encoding) -> None:
    """Give the template what depends on all images and on the job: references, dimensions, the series."""
    evidence, work = case.own, case.work
    if layout.grid is None:
        _index_by_image(template)
        template.PatientOrientation = _patient_orientation(evidence)
    organization = work.uid(encoding.key, "dimension organization")
    template.DimensionOrganizationSequence[0].DimensionOrganizationUID = organization
    for index in template.DimensionIndexSequence:
        index.DimensionOrganizationUID = organization
    if "SpacingBetweenSlices" not in layout.stand_in:
        _forget_spacing(template)
    references = [_reference(ds) for ds in evidence.datasets]
    template.SourceImageSequence = references
    series = Dataset()
    series.SeriesInstanceUID = case.source.SeriesInstanceUID
    series.ReferencedInstanceSequence = references
    template.ReferencedSeriesSequence = [series]
    template.ContentCreatorName = None  # type 2, PS3.3 Table 10-12
    _copy_series(template, evidence)


def _patient_orientation(evidence: Evidence) -> list[str]:
    """Return Patient Orientation where all images have the same one, else nothing (type 2C, PS3.3 C.7.6.1)."""
    found = [tuple(map(str, np.atleast_1d(ds.get("PatientOrientation") or []))) for ds in evidence.datasets]
    stated = {values if len(values) == 2 else () for values in found}
    return list(stated.pop()) if len(stated) == 1 else []


def _forget_spacing(template: HighdicomSegmentation) -> None:
    """Remove the 1.0 that highdicom states between slices of which there is one, or that lie unevenly."""
    for measures in template.SharedFunctionalGroupsSequence[0].get("PixelMeasuresSequence", ()):
        if "SpacingBetweenSlices" in measures:
            del measures.SpacingBetweenSlices


def _index_by_image(template: HighdicomSegmentation) -> None:
    """Make the number of the image the last dimension, where no image has a place in the patient."""
    by_image = Dataset()
    by_image.DimensionIndexPointer = tag_for_keyword("InStackPositionNumber")
    by_image.FunctionalGroupPointer = tag_for_keyword("FrameContentSequence")
    by_image.DimensionDescriptionLabel = "Image"
    of_segments = [one for one in template.DimensionIndexSequence if one.DimensionIndexPointer == REFERENCED_SEGMENT]
    template.DimensionIndexSequence = [*of_segments, by_image]


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
