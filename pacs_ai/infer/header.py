"""What pipelines may judge a series by: the attributes that `Volume.header` and `Frame.header` hold, as text."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pacs_ai.dicom.reading import read_items, read_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pydicom import Dataset

#: A date as DICOM writes it (PS3.5 6.2, DA), and more years than anybody lives.
_DATE = re.compile(r"\d{8}")
_OLDEST = 140

#: Of a volume, where the series has them.
HEADER_KEYWORDS = (
    "AcquisitionContrast",
    "AngularStep",
    "BodyPartExamined",
    "BurnedInAnnotation",
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


#: View Code Sequence (PS3.16 CID 4010 and 4014, SNOMED CT and the SNOMED-RT IDs of older images) -> View Position.
VIEWS: Mapping[str, str] = {
    "272479007": "PA", "R-10214": "PA", "399348003": "AP", "R-10206": "AP",
    "399173006": "LL", "R-10236": "LL", "399198007": "RL", "R-10232": "RL",
    "399162004": "CC", "R-10242": "CC", "399368009": "MLO", "R-10226": "MLO",
    "399260004": "ML", "R-10224": "ML", "399352003": "LM", "R-10228": "LM",
}  # fmt: skip


def read_view(places: Sequence[Dataset]) -> dict[str, str]:
    """Return View Code Sequence and its modifiers by their meanings, and View Position where only the code tells it."""
    codes = [item for place in places for item in read_items(place, "ViewCodeSequence")]
    if not codes:
        return {}
    modifiers = [read_text(item, "CodeMeaning") for item in read_items(codes[0], "ViewModifierCodeSequence")]
    stated = next(filter(None, (read_text(place, "ViewPosition") for place in places)), "")
    found = {
        "ViewCodeSequence": read_text(codes[0], "CodeMeaning"),
        "ViewModifierCodeSequence": "\\".join(filter(None, modifiers)),
        "ViewPosition": stated or VIEWS.get(read_text(codes[0], "CodeValue"), ""),
    }
    return {keyword: text for keyword, text in found.items() if text}


def read_header(places: Sequence[Dataset], keywords: Sequence[str]) -> dict[str, str]:
    """Return the keywords that any of the data sets has a value for, each from the first that has one."""
    texts = {keyword: next(filter(None, (read_text(place, keyword) for place in places)), "") for keyword in keywords}
    if "PatientAge" in texts and not texts["PatientAge"]:
        texts["PatientAge"] = next(filter(None, map(_age, places)), "")
    return {keyword: text for keyword, text in texts.items() if text}


def _age(ds: Dataset) -> str:
    """Return the age at the study as an Age String in years, from the date of birth, "" where the dates are unknown."""
    born, studied = (read_text(ds, keyword) for keyword in ("PatientBirthDate", "StudyDate"))
    if not (_DATE.fullmatch(born) and _DATE.fullmatch(studied)) or studied < born:
        return ""
    years = int(studied[:4]) - int(born[:4]) - (studied[4:] < born[4:])
    return f"{years:03d}Y" if years < _OLDEST else ""


def nested(group: Dataset) -> list[Dataset]:
    """Return the items of the sequences of a functional groups item."""
    return [item for element in group if element.VR == "SQ" for item in element.value]


def lossy(ds: Dataset) -> tuple[str, ...]:
    """Return the note on an image that was compressed with loss, none of others."""
    return ("the images were compressed with loss",) if read_text(ds, "LossyImageCompression") == "01" else ()
