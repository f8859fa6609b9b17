"""What a derived image takes over from the image it was made from, and what is no longer true of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydicom import DataElement, Dataset, config
from pydicom.datadict import dictionary_has_tag, dictionary_VR

from pacs_ai.dicom.reading import READING_FAULTS
from pacs_ai.encode.identity import CLINICAL_TRIAL, OPTIONAL_IDENTITY, REQUIRED_IDENTITY, own_copy, request_items
from pacs_ai.encode.pictures.secondary_capture import reference
from pacs_ai.encode.provenance import concept

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pacs_ai.dicom.evidence import FrameReference
    from pacs_ai.pipeline import Code

#: Value representations of one text, which some senders mistake for one another.
TEXTS = frozenset({"CS", "LO", "SH"})
FUNCTIONAL_GROUPS = frozenset({"SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"})
#: Value of Image Type by which a PET image is a sinogram: what is derived from one no longer is.
SINOGRAM = "SINOGRAM"
#: Repeating groups: curves (retired) and overlays.
REPEATING = (0x5000, 0x50FF), (0x6000, 0x60FF)
#: Left out: whose it is, which is copied apart; pixels and what was computed from them; signatures; the dose, which was
#: given once; who and what made the source, which the Contributing Equipment Sequence says; the procedure step that it
#: came from; where it is kept.
LEFT_OUT = frozenset((
    *REQUIRED_IDENTITY, *OPTIONAL_IDENTITY, *CLINICAL_TRIAL,
    "PixelData", "FloatPixelData", "DoubleFloatPixelData", "IconImageSequence", "ExtendedOffsetTable",
    "ExtendedOffsetTableLengths", "EncapsulatedPixelDataValueTotalLength", "PixelDataProviderURL",
    "SmallestImagePixelValue", "LargestImagePixelValue", "SmallestPixelValueInSeries", "LargestPixelValueInSeries",
    "DigitalSignaturesSequence", "MACParametersSequence", "EncryptedAttributesSequence", "OriginalAttributesSequence",
    "DataSetTrailingPadding", "ContributingEquipmentSequence",
    "CTDIvol", "CTDIPhantomTypeCodeSequence", "EstimatedDoseSaving", "DoseCheckAlertDetailsSequence",
    "DoseCheckNotificationDetailsSequence", "ExposureDoseSequence", "EntranceDose", "EntranceDoseInmGy", "OrganDose",
    "ImageAndFluoroscopyAreaDoseProduct", "CommentsOnRadiationDose", "CTExposureSequence",
    "InstitutionName", "InstitutionAddress", "InstitutionalDepartmentName", "InstitutionCodeSequence", "StationName",
    "DateOfLastCalibration", "TimeOfLastCalibration", "SpatialResolution", "GantryID", "DeviceUID", "DeviceID",
    "UDISequence", "ManufacturerDeviceClassUID", "InstanceCreatorUID",
    "OperatorsName", "OperatorIdentificationSequence", "PerformingPhysicianName",
    "PerformingPhysicianIdentificationSequence",
    "PerformedProcedureStepID", "PerformedProcedureStepDescription", "PerformedProcedureStepStartDate",
    "PerformedProcedureStepStartTime", "PerformedProcedureStepEndDate", "PerformedProcedureStepEndTime",
    "PerformedProtocolCodeSequence", "CommentsOnThePerformedProcedureStep", "PerformedStationAETitle",
    "PerformedStationName", "PerformedLocation", "RequestAttributesSequence",
    "RetrieveAETitle", "RetrieveURI", "RetrieveURL", "InstanceAvailability", "StorageMediaFileSetID",
    "StorageMediaFileSetUID", "SOPInstanceStatus", "SOPAuthorizationDateTime", "SOPAuthorizationComment",
    "RelatedGeneralSOPClassUID", "OriginalSpecializedSOPClassUID", "DerivationDescription", "DerivationCodeSequence",
    "SeriesDescription", "SeriesDescriptionCodeSequence", "ImageComments", "DerivationImageSequence",
))  # fmt: skip


def carried_over(source: Dataset) -> Dataset:
    """Return what still holds of a source image: no private attribute, nothing of `LEFT_OUT`, no references.

    References lead to instances that the node never read. Attributes whose bytes cannot be read are left out.
    """
    result = Dataset()
    with config.disable_value_validation():
        for element in _readable(source):
            if element.keyword in FUNCTIONAL_GROUPS:
                result.add(DataElement(element.tag, "SQ", [carried_over(item) for item in element.value]))
            elif not _refers(element):
                result.add(_cured(own_copy(element)))
    return result


def _readable(source: Dataset) -> Iterator[DataElement]:
    for tag in sorted(source.keys()):
        repeating = any(low <= tag.group <= high for low, high in REPEATING)
        if tag.is_private or repeating or tag.group < 0x0008 or not dictionary_has_tag(tag):
            continue
        try:
            element = source[tag]
        except READING_FAULTS:
            continue
        if element.keyword not in LEFT_OUT:
            yield element


def _refers(element: DataElement) -> bool:
    if element.VR != "SQ":
        return False
    return any(
        nested.keyword in ("ReferencedSOPInstanceUID", "ReferencedSOPClassUID") or _refers(nested)
        for item in element.value
        for nested in item
    )


def _cured(element: DataElement) -> DataElement:
    """Return the element without private attributes in it; a text bears the VR of the dictionary (PS3.6)."""
    if element.VR == "SQ":
        for item in element.value:
            item.remove_private_tags()
    elif element.VR in TEXTS and dictionary_VR(element.tag) in TEXTS:
        element.VR = dictionary_VR(element.tag)
    return element


def describe_derivation(
    result: Dataset, source: Dataset, code: Code, description: str, used: Sequence[FrameReference]
) -> None:
    """Say that an image is derived, how, and from which received instance, in place (PS3.3 C.7.6.1.1, C.12.4).

    Parameters
    ----------
    result
        As `carried_over` returned it.
    source
        The received image.
    code, description
        What was done.
    used
        The received frames, in the order of the result's frames.
    """
    enhanced = "PerFrameFunctionalGroupsSequence" in result
    primary = enhanced or source.get("Modality") == "PT"  # the only second value there is, PS3.3 C.8.16.1, C.8.9.4
    result.ImageType = _derived_type(source.get("ImageType"), primary=primary)
    result.DerivationDescription = description
    result.DerivationCodeSequence = [concept(code)]
    whole = type(used[0])(used[0].sop_class_uid, used[0].sop_instance_uid)
    result.SourceImageSequence = [reference(whole)]
    order = request_items(source)
    if order:
        result.RequestAttributesSequence = order
    instance, series = Dataset(), Dataset()
    instance.ReferencedSOPClassUID, instance.ReferencedSOPInstanceUID = whole.sop_class_uid, whole.sop_instance_uid
    series.SeriesInstanceUID = source.SeriesInstanceUID
    series.ReferencedInstanceSequence = [instance]
    result.ReferencedSeriesSequence = [series]
    if enhanced:
        result.SourceImageEvidenceSequence = [_evidence(source, series.SeriesInstanceUID, instance)]
        _describe_frames(result, code, used)


def _evidence(source: Dataset, series_instance_uid: str, instance: Dataset) -> Dataset:
    """Return the source in its series and study, which enhanced images state too (PS3.3 C.8.13.2.1)."""
    series, study = Dataset(), Dataset()
    series.SeriesInstanceUID = series_instance_uid
    series.ReferencedSOPSequence = [instance]
    study.StudyInstanceUID = source.StudyInstanceUID
    study.ReferencedSeriesSequence = [series]
    return study


def _derived_type(stated: object, *, primary: bool) -> list[str]:
    """Return Image Type or Frame Type."""
    values = [stated] if isinstance(stated, str) else [str(value) for value in stated or ()]  # type: ignore[attr-defined]
    kept = [value for value in values[2:] if value != SINOGRAM]
    return ["DERIVED", "PRIMARY" if primary else "SECONDARY", *kept]


def _describe_frames(result: Dataset, code: Code, used: Sequence[FrameReference]) -> None:
    """Keep the frames that were used, and say of each what it was derived from."""
    numbers = [one.frame_number or 1 for one in used]
    frames = [result.PerFrameFunctionalGroupsSequence[number - 1] for number in numbers]
    for frame, one in zip(frames, used, strict=True):
        derivation = Dataset()
        derivation.SourceImageSequence = [reference(one)]
        derivation.DerivationCodeSequence = [concept(code)]
        frame.DerivationImageSequence = [derivation]
        for content in frame.get("FrameContentSequence", []) if "DimensionIndexSequence" not in result else []:
            content.pop("DimensionIndexValues", None)  # of no dimension that is stated
    result.PerFrameFunctionalGroupsSequence = frames
    for holder in (*result.get("SharedFunctionalGroupsSequence", []), *frames):
        for group in holder:
            if group.keyword.endswith("FrameTypeSequence"):
                for item in group.value:
                    item.FrameType = _derived_type(item.get("FrameType"), primary=True)
