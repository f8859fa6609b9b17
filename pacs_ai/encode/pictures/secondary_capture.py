"""One picture page as a Secondary Capture for viewers that show nothing else: slices, legend, values, warning."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from pydicom import Dataset
from pydicom.uid import UID

from pacs_ai.dicom.evidence import FrameReference
from pacs_ai.encode.body_part import copy_body_part
from pacs_ai.encode.encoded import encoded
from pacs_ai.encode.identity import own_copy, request_items
from pacs_ai.encode.pictures.montage import page
from pacs_ai.encode.pictures.picture import NOT_VERIFIED
from pacs_ai.encode.provenance import DISCLAIMER, LONG_STRING, MANUFACTURER, MODEL_NAME, clean, concept, stamp
from pacs_ai.encode.voxels.codecs import photometric_interpretation, pixel_data
from pacs_ai.pipeline import Clearance, Code, Waveform

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pacs_ai.encode.case import Case
    from pacs_ai.encode.encoded import Encoded
    from pacs_ai.pipeline import Array
    from pacs_ai.profiles import Encoding

#: Slices on the page.
SLICES = 12
#: Purpose of Reference (CID 7202) and Image Derivation (CID 7203).
SOURCE_IMAGE = Code("121322", "DCM", "Source Image for Image Processing Operation")
SEGMENTATION = Code("113076", "DCM", "Segmentation")


def encode_secondary_capture(case: Case, encoding: Encoding, _cited: Encoded | None) -> tuple[Encoded, ...]:
    """Return one colour page; of empty findings it says "Nothing found".

    The page carries nobody's name, so Burned In Annotation is NO (PS3.3 C.7.6.1: text that identifies the patient).
    """
    sheet = np.asarray(page(case.given, case.findings, case.card, case.counts, SLICES, case.remarks))
    result = colour_image(case, encoding, sheet.shape[:2], 1)
    result.PatientOrientation = None  # type 2C: a page of several slices has none
    if not isinstance(case.given, Waveform):
        result.SourceImageSequence = [reference(one) for one in instances(case)]
    return (finished(case, encoding, result, [sheet]),)


def colour_image(case: Case, encoding: Encoding, shape: Sequence[int], number: int) -> Dataset:
    """Return a colour Secondary Capture without its pixels and identity (PS3.3 A.8.1, A.8.5).

    Parameters
    ----------
    case, encoding
        What it is made of, and as what.
    shape
        Rows and columns.
    number
        Which instance of this encoding it is, from 1: part of SOP Instance UID and Instance Number.
    """
    result = Dataset()
    result.SOPClassUID = UID(encoding.details.sop_class_uid)
    result.SOPInstanceUID = case.work.uid(encoding.key, "instance", number)
    result.SeriesInstanceUID = case.work.uid(encoding.series)
    result.Modality = encoding.details.modality
    result.InstanceNumber = encoding.instance_number + number - 1
    result.ImageType = ["DERIVED", "SECONDARY"]
    result.ConversionType = "WSD"
    result.SecondaryCaptureDeviceManufacturer = MANUFACTURER
    result.SecondaryCaptureDeviceManufacturerModelName = MODEL_NAME
    result.SecondaryCaptureDeviceSoftwareVersions = case.work.software_versions
    result.BurnedInAnnotation = "NO"
    result.ImageComments = disclaimer(case)
    result.DerivationDescription = clean(f"{case.card.name} {case.card.version}: {case.card.title}", 1024)
    if case.filled:
        result.DerivationCodeSequence = [concept(SEGMENTATION)]
    result.SamplesPerPixel = 3
    result.PhotometricInterpretation = photometric_interpretation(encoding.transfer_syntax, 3)
    result.PlanarConfiguration = 0  # PS3.3 A.8.5.4
    result.Rows, result.Columns = shape[:2]
    result.BitsAllocated = result.BitsStored = 8
    result.HighBit = 7
    result.PixelRepresentation = 0
    describe_series(case, result)
    return result


def disclaimer(case: Case) -> str:
    """Return what stands in Image Comments."""
    research = f", {DISCLAIMER}" if case.card.clearance == Clearance.RESEARCH else ""
    name, version = (clean(value, LONG_STRING) for value in (case.card.name, case.card.version))
    return f"{NOT_VERIFIED}{research}. Made by {name} {version}"


def describe_series(case: Case, result: Dataset) -> None:
    """Copy body part, side and order, a lossy history, and cite every instance that was read, in place."""
    copy_body_part(result, case.source)
    order = request_items(case.source)
    if order:
        result.RequestAttributesSequence = order
    lossy = next((ds for ds in case.own.datasets if ds.get("LossyImageCompression") == "01"), None)
    result.LossyImageCompression = "00" if lossy is None else "01"
    for keyword in ("LossyImageCompressionRatio", "LossyImageCompressionMethod"):
        if lossy is not None and lossy.get(keyword):
            result.add(own_copy(lossy[keyword]))
    if not isinstance(case.given, Waveform):  # an image of no images refers to none (PS3.3 C.12.2)
        result.ReferencedSeriesSequence = [_of_series(case)]


def _of_series(case: Case) -> Dataset:
    """Return the Common Instance Reference of the images that the findings lie on (PS3.3 C.12.2)."""
    series = Dataset()
    series.SeriesInstanceUID = case.source.SeriesInstanceUID
    series.ReferencedInstanceSequence = [_instance(ds.SOPClassUID, ds.SOPInstanceUID) for ds in case.own.datasets]
    return series


def _instance(sop_class_uid: str, sop_instance_uid: str) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID = sop_class_uid
    item.ReferencedSOPInstanceUID = sop_instance_uid
    return item


def instances(case: Case) -> list[FrameReference]:
    """Return each received instance once, without frames, in the order of the slices."""
    return [FrameReference(str(ds.SOPClassUID), str(ds.SOPInstanceUID)) for ds in case.own.datasets]


def reference(source: FrameReference) -> Dataset:
    """Return an item of the Source Image Sequence (PS3.3 C.12.4)."""
    item = _instance(source.sop_class_uid, source.sop_instance_uid)
    if source.frame_number is not None:
        item.ReferencedFrameNumber = source.frame_number
    item.PurposeOfReferenceCodeSequence = [concept(SOURCE_IMAGE)]
    return item


def finished(case: Case, encoding: Encoding, result: Dataset, frames: Iterable[Array]) -> Encoded:
    """Return the object with its identity and its pixels.

    Parameters
    ----------
    case, encoding
        As of `colour_image`.
    result
        Complete but for both.
    frames
        (rows, columns, 3) uint8 RGB each.
    """
    stamp(result, case.source, case.work, encoding)
    return encoded(encoding, result, *pixel_data(frames, encoding.transfer_syntax))
