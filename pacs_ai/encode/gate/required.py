"""What an object of each kind must say at its root: attributes that need a value, and attributes that may be empty.

Type 1 and type 2 attributes of the mandatory modules of each IOD (PS3.3 Annex A), and what this node promises beside.
A test holds the table against highdicom's copy of the Standard.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Of every result: Patient, General Study, General Series, SOP Common; and what this node always states.
ALWAYS = (
    "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "Modality", "SeriesNumber",
    "InstanceNumber", "InstanceCreationDate", "Manufacturer", "ManufacturerModelName", "DeviceSerialNumber",
    "SoftwareVersions", "ContentQualification", "SeriesDescription", "ContributingEquipmentSequence",
)  # fmt: skip
#: Type 2 of every result.
ALWAYS_PRESENT = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "AccessionNumber",
    "ReferringPhysicianName", "StudyID",
)  # fmt: skip
_PIXELS = (
    "SamplesPerPixel", "PhotometricInterpretation", "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit",
    "PixelRepresentation",
)  # fmt: skip
_CONTENT = ("ContentDate", "ContentTime")
_FUNCTIONAL_GROUPS = (
    "NumberOfFrames", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
    "DimensionOrganizationSequence", "DimensionIndexSequence",
)  # fmt: skip
_SEGMENTATION = (
    *_PIXELS, *_CONTENT, *_FUNCTIONAL_GROUPS, "ImageType", "LossyImageCompression", "SegmentationType",
    "SegmentSequence", "ContentLabel", "ReferencedSeriesSequence",
)  # fmt: skip
_TREE = (*_CONTENT, "ValueType", "ContinuityOfContent", "ConceptNameCodeSequence", "ContentSequence")
_REPORT = (*_TREE, "CompletionFlag", "VerificationFlag", "CurrentRequestedProcedureEvidenceSequence")
_REPORT_PRESENT = ("ReferencedPerformedProcedureStepSequence", "PerformedProcedureCodeSequence")
_SR = "1.2.840.10008.5.1.4.1.1.88."
#: SOP Class UID -> attributes that need a value there, beside `ALWAYS`.
VALUED: Mapping[str, tuple[str, ...]] = {
    "1.2.840.10008.5.1.4.1.1.66.4": _SEGMENTATION,
    "1.2.840.10008.5.1.4.1.1.66.7": _SEGMENTATION,
    f"{_SR}34": _REPORT,
    f"{_SR}33": _REPORT,
    f"{_SR}22": _REPORT,
    f"{_SR}11": _REPORT,
    f"{_SR}59": (*_TREE, "CurrentRequestedProcedureEvidenceSequence"),
    "1.2.840.10008.5.1.4.1.1.30": (
        *_CONTENT, *_FUNCTIONAL_GROUPS, "ImageType", "SamplesPerPixel", "PhotometricInterpretation", "Rows", "Columns",
        "BitsAllocated", "BurnedInAnnotation", "RecognizableVisualFeatures", "LossyImageCompression", "ContentLabel",
        "PresentationLUTShape",
    ),
    "1.2.840.10008.5.1.4.1.1.7": (*_PIXELS, "ConversionType"),
    "1.2.840.10008.5.1.4.1.1.7.4": (
        *_PIXELS, "ConversionType", "NumberOfFrames", "BurnedInAnnotation",
    ),
    "1.2.840.10008.5.1.4.1.1.481.3": (
        "StructureSetLabel", "StructureSetDate", "StructureSetROISequence", "ROIContourSequence",
        "RTROIObservationsSequence",
    ),
    "1.2.840.10008.5.1.4.1.1.11.1": (
        "ContentLabel", "PresentationCreationDate", "PresentationCreationTime", "ReferencedSeriesSequence",
        "DisplayedAreaSelectionSequence",
    ),
    "1.2.840.10008.5.1.4.1.1.104.1": (
        "ConversionType", "BurnedInAnnotation", "EncapsulatedDocument", "MIMETypeOfEncapsulatedDocument",
    ),
}  # fmt: skip
#: SOP Class UID -> attributes that are there, with or without a value, beside `ALWAYS_PRESENT`.
PRESENT: Mapping[str, tuple[str, ...]] = {
    "1.2.840.10008.5.1.4.1.1.66.4": ("ContentDescription",),
    "1.2.840.10008.5.1.4.1.1.66.7": ("ContentDescription",),
    f"{_SR}34": _REPORT_PRESENT,
    f"{_SR}33": _REPORT_PRESENT,
    f"{_SR}22": _REPORT_PRESENT,
    f"{_SR}11": _REPORT_PRESENT,
    f"{_SR}59": ("ReferencedPerformedProcedureStepSequence",),
    "1.2.840.10008.5.1.4.1.1.30": ("PositionReferenceIndicator", "ContentDescription", "AcquisitionContextSequence"),
    "1.2.840.10008.5.1.4.1.1.481.3": ("OperatorsName", "StructureSetTime"),
    "1.2.840.10008.5.1.4.1.1.11.1": ("ContentDescription",),
    "1.2.840.10008.5.1.4.1.1.104.1": (
        "ContentDate", "ContentTime", "AcquisitionDateTime", "ConceptNameCodeSequence", "DocumentTitle",
    ),
}  # fmt: skip
#: Of images of the source's own kind.
VALUED_IMAGE = (*_PIXELS, "ImageType")
