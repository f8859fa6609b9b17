"""Read from an encoded instance the attributes that the index and the routing rules need, and prove it whole.

The data set is neither parsed into objects nor copied: it is walked once (`structure`), while it comes or where it
lies, what is truncated or malformed is refused, and only what `INDEXED` names is decoded.
"""

from __future__ import annotations

import math
import re
import struct
import threading
import zlib
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING

from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian

from pacs_ai.dicom import characters
from pacs_ai.dicom.structure import Value, Walk, Wanted
from pacs_ai.errors import NotUnderstood

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

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
_INFLATED_STEP = 1 << 20
#: One data set at a time is walked through, and for so many bytes: threads that compute hold up those that answer.
_WALKING = threading.Lock()
_WALKED_STEP = 1 << 18

#: Stated VRs under which a UID and a Patient ID are read; b"" is implicit VR. Under others, readers differ.
_IDENTITY_VRS = dict.fromkeys(_UIDS, frozenset({b"", b"UI", b"UN"}))
_IDENTITY_VRS["PatientID"] = frozenset({b"", b"UN", b"LO", b"LT", b"SH", b"ST", b"UC", b"UT"})
#: It says how the Patient ID is to be read.
_IDENTITY_VRS["SpecificCharacterSet"] = _IDENTITY_VRS["PatientID"] | {b"CS"}
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
    most=MAX_CHARACTERS,
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


class Scan:
    """A look at a data set that comes piece by piece, of which only the values that are wanted stay in memory.

    Parameters
    ----------
    transfer_syntax_uid
        Of the data set; one that is not known is read as explicit VR little endian, as all encapsulated ones are.
    length
        Of the whole data set in bytes, where it is known.

    Raises
    ------
    NotUnderstood
        The data set is truncated or malformed (`structure.Walk`), inflates beyond the bounds, or lacks a sound
        SOP Class, SOP Instance, Study Instance or Series Instance UID: digits and dots, at most 64 (PS3.5 9.1).
        One of these or the Patient ID has a value representation under which readers differ about it.
        Leading zeros of a component are let pass, since real archives hold them.
        `feed` raises as soon as it shows, `header` at the end.
    """

    def __init__(self, transfer_syntax_uid: str, *, length: int | None = None) -> None:
        big_endian = transfer_syntax_uid == ExplicitVRBigEndian
        implicit = transfer_syntax_uid == ImplicitVRLittleEndian
        self._order = ">" if big_endian else "<"
        self._inflating = Inflating() if transfer_syntax_uid in DEFLATED else None
        known = {} if length is None or self._inflating is not None else {"length": length}
        self._walk = Walk(_WANTED, implicit=implicit, big_endian=big_endian, **known)

    def feed(self, piece: bytes | bytearray | memoryview) -> None:
        """Take the next bytes of the data set; they are not needed any more when this returns."""
        if self._inflating is None:
            self._walk_on(piece)
            return
        for inflated in self._inflating.feed(piece):
            self._walk_on(inflated)

    def _walk_on(self, piece: bytes | bytearray | memoryview) -> None:
        view = memoryview(piece)
        for start in range(0, len(view), _WALKED_STEP):
            with _WALKING:
                self._walk.feed(view[start : start + _WALKED_STEP])

    def header(self) -> Header:
        """Return the indexed attributes; there are no more bytes."""
        if self._inflating is not None:
            self._inflating.end()
        found = self._walk.end()
        for keyword, known in _IDENTITY_VRS.items():
            if keyword in found and found[keyword].vr not in known:
                raise NotUnderstood(f"the {keyword} is stated to be of another value representation than it is")
        character_set = ""
        if "SpecificCharacterSet" in found:
            character_set = _text("SpecificCharacterSet", found.pop("SpecificCharacterSet"), "", self._order)
        values = {keyword: _text(keyword, value, character_set, self._order) for keyword, value in found.items()}
        _check_identity(values)
        return Header(MappingProxyType({keyword: text for keyword, text in values.items() if text}))


def read_header(data_set: bytes | bytearray | memoryview, transfer_syntax_uid: str) -> Header:
    """Return the indexed attributes of an encoded data set that is at hand; see `Scan`.

    Parameters
    ----------
    data_set
        As it came in C-STORE, or as it follows the file meta in a file (PS3.10).
    transfer_syntax_uid
        Its transfer syntax.

    Raises
    ------
    NotUnderstood
        See `Scan`.
    """
    scan = Scan(transfer_syntax_uid, length=len(data_set))
    scan.feed(data_set)
    return scan.header()


#: Behind a deflated data set: checksum and length of what it holds, and a NUL.
_MOST_BEHIND = 9
_BEHIND = "bytes follow the deflated data set"


class Inflating:
    """A deflated data set (PS3.5 A.5) on its way out of its compression, piece by piece and within bounds.

    Raises
    ------
    NotUnderstood
        It is no whole deflated stream, grows beyond `MAX_INFLATION` times its size or `MAX_INFLATED_BYTES`, or
        something follows it: not the NUL that makes its length even (PS3.5 A.5), nor, as some encoders leave it there,
        the checksum and length of what was deflated (RFC 1952 2.3).
    """

    def __init__(self) -> None:
        self._stream = zlib.decompressobj(-zlib.MAX_WBITS)
        self._came = self._grown = self._checksum = 0
        self._behind = b""

    def feed(self, piece: bytes | bytearray | memoryview) -> Iterator[bytes]:
        """Give what the next bytes hold, in pieces of at most 1 MiB."""
        self._came += len(piece)
        rest: bytes | bytearray | memoryview = piece
        while rest and not self._stream.eof:
            try:
                inflated = self._stream.decompress(rest, _INFLATED_STEP)
            except zlib.error:
                raise NotUnderstood("the data set is not deflated as its transfer syntax says") from None
            rest = self._stream.unconsumed_tail
            self._grown += len(inflated)
            self._checksum = zlib.crc32(inflated, self._checksum)
            limit = min(MAX_INFLATION * self._came, MAX_INFLATED_BYTES)
            if self._grown > limit:
                raise NotUnderstood(f"the deflated data set grows beyond {limit} bytes")
            yield inflated
            rest = rest or self._stream.unused_data
        self._check_behind(rest)

    def _check_behind(self, rest: bytes | bytearray | memoryview) -> None:
        """Refuse what cannot become one of the endings that are known."""
        self._behind += bytes(rest[:_MOST_BEHIND])
        if len(rest) > _MOST_BEHIND or len(self._behind) > _MOST_BEHIND:
            raise NotUnderstood(_BEHIND)

    def end(self) -> None:
        """Prove that all has come."""
        if not self._stream.eof:
            raise NotUnderstood("the deflated data set is truncated")
        trailer = struct.pack("<LL", self._checksum, self._grown & 0xFFFFFFFF)
        if self._behind.removeprefix(trailer) not in {b"", b"\0"}:
            raise NotUnderstood(_BEHIND)


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


def _text(keyword: str, value: Value, character_set: str, order: str) -> str:
    """Return one attribute's values as text, joined by backslashes; numbers of binary VR in decimal."""
    vr = _VRS[keyword] if value.vr in {b"", b"UN"} else value.vr
    if value.length > MAX_CHARACTERS and keyword in {"PatientID", "IssuerOfPatientID"}:
        raise NotUnderstood(f"{keyword} is longer than {MAX_CHARACTERS} bytes")
    if vr in _NUMBER_FORMATS:
        return _numbers_text(value.raw, order + _NUMBER_FORMATS[vr])
    return _decoded(vr, value.raw, character_set if vr in _CHARACTER_SET_VRS else "")


def _numbers_text(raw: bytes, form: str) -> str:
    whole = raw[: len(raw) - len(raw) % struct.calcsize(form)]
    return "\\".join([str(number) for (number,) in struct.iter_unpack(form, whole)])


@lru_cache(maxsize=1024)
def _decoded(vr: bytes, raw: bytes, character_set: str) -> str:
    """Return a text value's values; those of a series' instances are for the most part the same."""
    text = characters.decode(raw, character_set)
    if vr == b"PN":
        text = text.rstrip("= ")  # empty component groups at the end may be left out (PS3.5 6.2.1)
    return "\\".join([part.strip(" ") for part in text.split("\\")]) if "\\" in text else text.strip(" ")
