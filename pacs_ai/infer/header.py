"""What pipelines may judge a series by: the attributes that `Volume.header` and `Frame.header` hold, as text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pacs_ai.dicom.reading import read_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydicom import Dataset

#: Of a volume, where the series has them.
HEADER_KEYWORDS = (
    "AcquisitionContrast",
    "AngularStep",
    "BodyPartExamined",
    "ContrastBolusAgent",
    "ConvolutionKernel",
    "DecayCorrection",
    "EchoTime",
    "FlipAngle",
    "GantryDetectorTilt",
    "ImageType",
    "InversionTime",
    "KVP",
    "Laterality",
    "LossyImageCompression",
    "MRAcquisitionType",
    "MagneticFieldStrength",
    "Manufacturer",
    "ManufacturerModelName",
    "PatientAge",
    "PatientPosition",
    "PatientSex",
    "PatientSize",
    "PatientWeight",
    "PixelPaddingValue",
    "ProtocolName",
    "RepetitionTime",
    "RescaleType",
    "ScanArc",
    "ScanOptions",
    "ScanningSequence",
    "SequenceName",
    "SequenceVariant",
    "SeriesDescription",
    "SliceThickness",
    "StartAngle",
    "StudyDescription",
    "Units",
    "XRayTubeCurrent",
)

#: Of projection and ultrasound images, beside those of a volume.
IMAGE_KEYWORDS = (
    *HEADER_KEYWORDS,
    "BreastImplantPresent",
    "BurnedInAnnotation",
    "CineRate",
    "DistanceSourceToDetector",
    "EstimatedRadiographicMagnificationFactor",
    "FrameTime",
    "HeartRate",
    "ImageLaterality",
    "ImagerPixelSpacing",
    "OrganExposed",
    "PartialView",
    "PatientOrientation",
    "PhotometricInterpretation",
    "PixelIntensityRelationship",
    "PixelIntensityRelationshipSign",
    "PixelSpacingCalibrationType",
    "PresentationIntentType",
    "PresentationLUTShape",
    "TransducerType",
    "ViewPosition",
    "WindowCenter",
    "WindowWidth",
)


def read_header(places: Sequence[Dataset], keywords: Sequence[str]) -> dict[str, str]:
    """Return the keywords that any of the data sets has a value for, each from the first that has one."""
    texts = {keyword: next(filter(None, (read_text(place, keyword) for place in places)), "") for keyword in keywords}
    return {keyword: text for keyword, text in texts.items() if text}


def nested(group: Dataset) -> list[Dataset]:
    """Return the items of the sequences of a functional groups item."""
    return [item for element in group if element.VR == "SQ" for item in element.value]


def lossy(ds: Dataset) -> tuple[str, ...]:
    """Return the note on an image that was compressed with loss, none of others."""
    return ("the images were compressed with loss",) if read_text(ds, "LossyImageCompression") == "01" else ()
