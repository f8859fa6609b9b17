"""Read from an encoded instance the attributes that the index and the routing rules need, and prove it whole.

The data set is neither parsed into objects nor copied: `read_header` walks it once (`structure`), refuses what is
truncated or malformed, and decodes only what `INDEXED` names.
"""

from __future__ import annotations

import math
import re
import struct
import zlib
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian

from pacs_ai.dicom import characters
from pacs_ai.dicom.structure import Place, Wanted, locate
from pacs_ai.errors import NotUnderstood

if TYPE_CHECKING:
    from collections.abc import Mapping

_PATIENT = ("PatientID", "IssuerOfPatientID", "PatientName", "PatientBirthDate", "PatientSex", "PatientAge")
_STUDY = (
    "StudyInstanceUID",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "AccessionNumber",
    "StudyDescription",
    "RequestedProcedurePriority",
)
_SERIES = (
    "SeriesInstanceUID",
    "SeriesDate",
    "SeriesTime",
    "SeriesNumber",
    "SeriesDescription",
    "Modality",
    "BodyPartExamined",
    "ProtocolName",
    "Laterality",
    "PatientPosition",
    "Manufacturer",
    "ManufacturerModelName",
    "SoftwareVersions",
    "StationName",
    "InstitutionName",
)
_IMAGE = (
    "SOPClassUID",
    "SOPInstanceUID",
    "InstanceNumber",
    "ImageType",
    "AcquisitionNumber",
    "AcquisitionDate",
    "AcquisitionTime",
    "ContentDate",
    "ContentTime",
    "NumberOfFrames",
    "Rows",
    "Columns",
    "SliceThickness",
    "SpacingBetweenSlices",
    "PixelSpacing",
    "ImagerPixelSpacing",
    "ImageOrientationPatient",
    "ImagePositionPatient",
    "FrameOfReferenceUID",
    "ConvolutionKernel",
    "ContrastBolusAgent",
    "KVP",
    "ScanningSequence",
    "SequenceVariant",
    "ScanOptions",
    "MRAcquisitionType",
    "SequenceName",
    "EchoTime",
    "RepetitionTime",
    "InversionTime",
    "FlipAngle",
    "MagneticFieldStrength",
    "GantryDetectorTilt",
    "PhotometricInterpretation",
    "SamplesPerPixel",
    "BitsAllocated",
    "BitsStored",
    "PixelRepresentation",
    "RescaleIntercept",
    "RescaleSlope",
    "BurnedInAnnotation",
    "LossyImageCompression",
    "ViewPosition",
    "ImageLaterality",
    "PresentationIntentType",
    "ConversionType",
    "ContentLabel",
)
#: Keywords of the attributes that a `Header` holds where the instance has them.
INDEXED: tuple[str, ...] = _PATIENT + _STUDY + _SERIES + _IMAGE

#: What is also taken from inside a sequence, where the data set itself has none: the priority of the order, and the
#: geometry of the first frame of an enhanced multi-frame image (PS3.3 C.7.6.16).
_GEOMETRY = (
    "SliceThickness",
    "SpacingBetweenSlices",
    "PixelSpacing",
    "ImageOrientationPatient",
    "ImagePositionPatient",
)
_NESTED = {
    "RequestAttributesSequence": ("RequestedProcedurePriority",),
    "SharedFunctionalGroupsSequence": _GEOMETRY,
    "PerFrameFunctionalGroupsSequence": _GEOMETRY,
}
_UIDS = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
_UID = re.compile(r"[0-9]+(\.[0-9]+)*")

#: Characters kept of one attribute; PS3.5 Table 6.2-1 allows 64 per value for most, and peers may send megabytes.
MAX_CHARACTERS = 1024
#: Bounds on what a deflated data set may grow to (PS3.5 A.5): times its own size, and bytes.
MAX_INFLATION = 1000
MAX_INFLATED_BYTES = 4 << 30
_INFLATE_STEP = 1 << 16

#: Stated VRs under which a UID and a Patient ID are read; b"" is implicit VR. Under others, readers differ.
_IDENTITY_VRS = dict.fromkeys(_UIDS, frozenset({b"", b"UI", b"UN"}))
_IDENTITY_VRS["PatientID"] = frozenset({b"", b"UN", b"LO", b"LT", b"SH", b"ST", b"UC", b"UT"})
_NUMBER_FORMATS = {b"US": "H", b"SS": "h", b"UL": "L", b"SL": "l", b"FL": "f", b"FD": "d"}
_CHARACTER_SET_VRS = frozenset({b"LO", b"LT", b"PN", b"SH", b"ST", b"UC", b"UT"})
#: Deflated Explicit VR little endian, and JPIP (HTJ2K) Referenced Deflate.
DEFLATED = {DeflatedExplicitVRLittleEndian, "1.2.840.10008.1.2.4.95", "1.2.840.10008.1.2.4.205"}


def _tag(keyword: str) -> int:
    tag = tag_for_keyword(keyword)
    assert tag is not None, keyword
    return tag


def _tags(*keywords: str) -> Mapping[int, str]:
    return {_tag(keyword): keyword for keyword in keywords}


_WANTED = Wanted(
    top=_tags("SpecificCharacterSet", *INDEXED),
    within={_tag(sequence): _tags(*keywords) for sequence, keywords in _NESTED.items()},
)
_VRS = {keyword: dictionary_VR(tag).encode() for tag, keyword in _WANTED.top.items()}


@dataclass(frozen=True)
class Header:
    """What one instance says about itself.

    Parameters
    ----------
    values
        DICOM keyword -> text; several values joined by backslashes, without padding; absent where the instance has
        none or an empty one.
    """

    values: Mapping[str, str]

    def get(self, keyword: str, default: str = "") -> str:
        """Return the attribute's text, or `default` where the instance has none."""
        return self.values.get(keyword, default)

    def each(self, keyword: str) -> tuple[str, ...]:
        """Return the attribute's values one by one; () where the instance has none."""
        text = self.values.get(keyword, "")
        return tuple(text.split("\\")) if text else ()

    @property
    def sop_class_uid(self) -> str:
        """SOP Class UID (0008,0016)."""
        return self.values["SOPClassUID"]

    @property
    def sop_instance_uid(self) -> str:
        """SOP Instance UID (0008,0018)."""
        return self.values["SOPInstanceUID"]

    @property
    def study_instance_uid(self) -> str:
        """Study Instance UID (0020,000D)."""
        return self.values["StudyInstanceUID"]

    @property
    def series_instance_uid(self) -> str:
        """Series Instance UID (0020,000E)."""
        return self.values["SeriesInstanceUID"]

    @property
    def patient_id(self) -> str:
        """Patient ID (0010,0020), "" where there is none."""
        return self.get("PatientID")

    @property
    def modality(self) -> str:
        """Modality (0008,0060), "" where there is none."""
        return self.get("Modality")


def read_header(data_set: bytes | memoryview, transfer_syntax_uid: str) -> Header:
    """Return the indexed attributes of an encoded data set, having proved it whole and its identity sound.

    Parameters
    ----------
    data_set
        As it came in C-STORE, or as it follows the file meta in a file (PS3.10).
    transfer_syntax_uid
        Its transfer syntax; one that is not known is read as explicit VR little endian, as all encapsulated ones are.

    Raises
    ------
    NotUnderstood
        The data set is truncated or malformed (`structure.locate`), inflates beyond the bounds, or lacks a sound
        SOP Class, SOP Instance, Study Instance or Series Instance UID: digits and dots, at most 64 (PS3.5 9.1).
        One of these or the Patient ID has a value representation under which readers differ about it.
        Leading zeros of a component are let pass, since real archives hold them.
    """
    big_endian = transfer_syntax_uid == ExplicitVRBigEndian
    if transfer_syntax_uid in DEFLATED:
        data_set = inflate(data_set)
    implicit = transfer_syntax_uid == ImplicitVRLittleEndian
    places = locate(data_set, _WANTED, implicit=implicit, big_endian=big_endian)
    for keyword, known in _IDENTITY_VRS.items():
        if keyword in places and places[keyword].vr not in known:
            raise NotUnderstood(f"the {keyword} is stated to be of another value representation than it is")
    order = ">" if big_endian else "<"
    character_set = ""
    if "SpecificCharacterSet" in places:
        character_set = _text(data_set, "SpecificCharacterSet", places.pop("SpecificCharacterSet"), "", order)
    values = {keyword: _text(data_set, keyword, place, character_set, order) for keyword, place in places.items()}
    _check_identity(values)
    return Header(MappingProxyType({keyword: text for keyword, text in values.items() if text}))


def inflate(data_set: bytes | memoryview) -> bytes:
    """Return the data set that was deflated (PS3.5 A.5), piece by piece and within bounds.

    Raises
    ------
    NotUnderstood
        It is no whole deflated stream, or grows beyond `MAX_INFLATION` times its size or `MAX_INFLATED_BYTES`.
    """
    limit = min(MAX_INFLATION * len(data_set), MAX_INFLATED_BYTES)
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    inflated = bytearray()
    try:
        for start in range(0, len(data_set), _INFLATE_STEP):
            inflated += stream.decompress(data_set[start : start + _INFLATE_STEP])
            if len(inflated) > limit:
                raise NotUnderstood(f"the deflated data set grows beyond {limit} bytes")
    except zlib.error:
        raise NotUnderstood("the data set is not deflated as its transfer syntax says") from None
    if not stream.eof:
        raise NotUnderstood("the deflated data set is truncated")
    return bytes(inflated)


def numbers(header: Header, keyword: str) -> tuple[float, ...]:
    """Return the attribute's values as finite numbers; () where it is absent or any of them is none (DS, IS, US)."""
    try:
        found = tuple(float(text) for text in header.each(keyword))
    except ValueError:
        return ()
    return found if all(math.isfinite(number) for number in found) else ()


def is_uid(text: str) -> bool:
    """Tell whether a text is digits and dots as PS3.5 9.1 says, leading zeros aside."""
    return len(text) <= 64 and _UID.fullmatch(text) is not None


def _check_identity(values: Mapping[str, str]) -> None:
    for keyword in _UIDS:
        if not values.get(keyword):
            raise NotUnderstood(f"the data set has no {keyword}")
        if not is_uid(values[keyword]):
            raise NotUnderstood(f"the {keyword} is no UID: digits and dots, at most 64 characters")


def _text(data_set: bytes | memoryview, keyword: str, place: Place, character_set: str, order: str) -> str:
    """Return one attribute's values as text, joined by backslashes; numbers of binary VR in decimal."""
    vr = _VRS[keyword] if place.vr in {b"", b"UN"} else place.vr
    if place.length > MAX_CHARACTERS and keyword in {"PatientID", "IssuerOfPatientID"}:
        raise NotUnderstood(f"{keyword} is longer than {MAX_CHARACTERS} bytes")
    raw = bytes(data_set[place.start : place.start + min(place.length, MAX_CHARACTERS)])
    if vr in _NUMBER_FORMATS:
        form = order + _NUMBER_FORMATS[vr]
        whole = raw[: len(raw) - len(raw) % struct.calcsize(form)]
        return "\\".join([str(number) for (number,) in struct.iter_unpack(form, whole)])
    text = characters.decode(raw, character_set if vr in _CHARACTER_SET_VRS else "")
    if vr == b"PN":
        text = text.rstrip("= ")  # empty component groups at the end may be left out (PS3.5 6.2.1)
    return "\\".join([part.strip(" ") for part in text.split("\\")]) if "\\" in text else text.strip(" ")
