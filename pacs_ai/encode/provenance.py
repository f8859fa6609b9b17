"""Who made a result, with what and when: stated from the job, stamped on every object beside the identity."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from typing import TYPE_CHECKING

from highdicom import AlgorithmIdentificationSequence
from highdicom.sr import CodedConcept
from pydicom import Dataset, config
from pydicom.dataset import FileMetaDataset
from pydicom.uid import UID, AllTransferSyntaxes

from pacs_ai.dicom.identifiers import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME, derive_uid, digest
from pacs_ai.encode.identity import copy_identity, own_copy
from pacs_ai.pipeline import Card, Clearance, Code
from pacs_ai.profiles import Kind

if TYPE_CHECKING:
    from pacs_ai.profiles import Encoding

#: Who made the equipment, and its model name (PS3.3 C.7.5.1).
MANUFACTURER = "pacs_ai"
MODEL_NAME = "pacs_ai"
DISCLAIMER = "not for clinical use"
LONG_STRING = 64  # characters of VR LO, PS3.5 6.2
_TRANSFER_SYNTAXES = {uid.keyword: uid for uid in AllTransferSyntaxes}

#: Algorithm family (CID 7162).
ARTIFICIAL_INTELLIGENCE = CodedConcept("123110", "DCM", "Artificial Intelligence")
PROCESSING_EQUIPMENT = CodedConcept("109102", "DCM", "Processing Equipment")
ACQUISITION_EQUIPMENT = CodedConcept("109101", "DCM", "Acquisition Equipment")

#: What tells the series of one result apart, where its Modality does not.
_WHAT = {
    Kind.TEXT_REPORT: "text",
    Kind.VALUES: "values",
    Kind.PARAMETRIC_MAP: "map",
    Kind.SECONDARY_CAPTURE: "picture",
    Kind.OVERLAY: "overlay",
}

EQUIPMENT = (
    "Manufacturer", "InstitutionName", "InstitutionAddress", "StationName", "InstitutionalDepartmentName",
    "ManufacturerModelName", "DeviceSerialNumber", "SoftwareVersions", "SpatialResolution", "DateOfLastCalibration",
)  # fmt: skip


@dataclass(frozen=True)
class Predecessor:
    """A delivered SR of an earlier revision that the new one replaces (Predecessor Documents, PS3.3 C.17.2)."""

    study_instance_uid: str
    series_instance_uid: str
    sop_class_uid: str
    sop_instance_uid: str


@dataclass(frozen=True)
class Work:
    """Everything about the job that a result states; all times come from the job's row, never from the clock.

    Parameters
    ----------
    job_key
        What identifies the job: digest of the source instances, pipeline, version, model digest and settings.
    generation
        Raised by a re-run; part of every UID.
    created_at
        When the job was made, with a time zone. Dates are written in the source's time zone where it states one
        (Timezone Offset From UTC), else in the zone that this value carries.
    card
        The pipeline's card.
    model_digest, settings_digest
        SHA-256 (hex) of the weights and of the pipeline's settings.
    parameters
        For people, such as "device=cpu; torch 2.13.0".
    node_name
        Identifies this node; its device UID and serial number derive from it.
    software_version
        Version of this node.
    predecessors
        Delivered SRs of an earlier revision.
    """

    job_key: str
    generation: int
    created_at: datetime
    card: Card
    model_digest: str
    settings_digest: str
    parameters: str
    node_name: str
    software_version: str
    predecessors: tuple[Predecessor, ...] = ()

    def uid(self, kind: str, *parts: object) -> UID:
        """Return the UID that belongs to this kind of thing in this job: same work, same UID."""
        return derive_uid(self.job_key, self.generation, kind, *parts)

    @property
    def device_uid(self) -> UID:
        """Device UID of this node (PS3.16 TID 1004), the same for all its jobs."""
        return derive_uid("device", self.node_name)

    @property
    def model_uid(self) -> UID | None:
        """Device UID of the model: the same wherever these weights run, None without a model digest."""
        return derive_uid("model", self.model_digest) if self.model_digest else None

    @property
    def device_serial_number(self) -> str:
        """Device Serial Number (0018,1000) of this node."""
        return digest("device", self.node_name)[:16]

    @property
    def software_versions(self) -> list[str]:
        """Software Versions (0018,1020): the node, the pipeline, the model."""
        card = self.card
        model = [f"model sha256 {self.model_digest[:40]}"] if self.model_digest else []
        versions = [f"pacs_ai {self.software_version}", f"{card.name} {card.version}", *model]
        return [clean(version, LONG_STRING) for version in versions]

    @property
    def algorithm_parameters(self) -> tuple[str, ...]:
        """What the algorithm ran with, one statement each."""
        stated = (
            f"model sha256={self.model_digest}" if self.model_digest else "",
            f"settings sha256={self.settings_digest}" if self.settings_digest else "",
            clean(self.parameters, 1024),
        )
        return tuple(parameter for parameter in stated if parameter)

    @property
    def series_description(self) -> str:
        """Series Description (0008,103E): tells a radiologist what it is; at most 64 characters."""
        return self.described("")

    def described(self, what: str) -> str:
        """Return the same for one kind of object: "AI: Lungs, text (not for clinical use)"."""
        research = self.card.clearance == Clearance.RESEARCH
        ending = f"{what and f', {what}'}{f' ({DISCLAIMER})' if research else ''}"
        return clean(f"AI: {self.card.title}", LONG_STRING - len(ending)) + ending


def clean(value: str, limit: int, ending: str = "...") -> str:
    """Return the text as one ASCII line of at most `limit` characters, fit for every character repertoire.

    Accents are dropped, other characters become "?", control characters and backslashes (the value separator, PS3.5
    6.1.3) become blanks.
    """
    plain = unicodedata.normalize("NFKD", value.translate({0x2013: "-", 0x2014: "-", 0x2019: "'", 0xD7: "x"}))
    plain = "".join(character for character in plain if not unicodedata.combining(character))
    plain = plain.encode("ascii", "replace").decode("ascii")
    plain = "".join(character if character.isprintable() and character != "\\" else " " for character in plain)
    plain = " ".join(plain.split())
    return plain if len(plain) <= limit else plain[: limit - len(ending)].rstrip() + ending


def tracking(work: Work, label: str) -> tuple[str, str]:
    """Return Tracking ID and Tracking UID of a segment: equal in the SEG and in the SR (PS3.3 C.8.20.2.6)."""
    return clean(label, LONG_STRING), str(work.uid("tracking", label))


def concept(code: Code) -> CodedConcept:
    """Return highdicom's form of a coded concept, Code Meaning within its 64 characters."""
    return CodedConcept(code.value, code.scheme, clean(code.meaning, LONG_STRING) or code.value)


def algorithm(work: Work) -> AlgorithmIdentificationSequence:
    """Return the Segmentation Algorithm Identification (PS3.3 Table 10-19)."""
    card = work.card
    sequence = AlgorithmIdentificationSequence(
        name=clean(card.name, LONG_STRING),
        family=ARTIFICIAL_INTELLIGENCE,
        version=clean(card.version, LONG_STRING),
        source=clean(card.manufacturer, LONG_STRING) or MANUFACTURER,
    )
    sequence[0].AlgorithmParameters = "; ".join(work.algorithm_parameters)
    return sequence


def stamp(result: Dataset, source: Dataset, work: Work, encoding: Encoding) -> None:
    """Give a result its identity, series, times, equipment and file meta information, in place.

    Parameters
    ----------
    result
        A result object as highdicom made it.
    source
        The data set whose patient, study and order it shares; not changed.
    work
        The job.
    encoding
        Gives Series Number and transfer syntax.
    """
    with config.disable_value_validation():  # the source's values stay as they are, right or wrong
        copy_identity(result, source)
    _set_times(result, work, _zone(source, work))
    result.SeriesNumber = encoding.series_number
    result.SeriesDescription = work.described(_WHAT.get(encoding.kind, ""))
    result.ContentQualification = work.card.clearance.value
    result.Manufacturer = MANUFACTURER
    result.ManufacturerModelName = MODEL_NAME
    result.DeviceSerialNumber = work.device_serial_number
    result.SoftwareVersions = work.software_versions
    result.ContributingEquipmentSequence = [*_acquisition_equipment(source), _processing_equipment(work)]
    result.file_meta = _file_meta(result, UID(_TRANSFER_SYNTAXES[encoding.transfer_syntax]))


def _zone(source: Dataset, work: Work) -> tzinfo | None:
    """Time zone of the source's dates and times, so that ours sort beside them (PS3.3 C.12.1.1.8)."""
    offset = str(source.get("TimezoneOffsetFromUTC") or "").strip()
    if len(offset) == 5 and offset[0] in "+-" and offset[1:].isdigit():
        minutes = int(offset[1:3]) * 60 + int(offset[3:])
        return timezone(timedelta(minutes=-minutes if offset[0] == "-" else minutes))
    return work.created_at.tzinfo


def _set_times(result: Dataset, work: Work, zone: tzinfo | None) -> None:
    moment = work.created_at.astimezone(zone)
    for name in ("InstanceCreation", "Content", "Series"):
        setattr(result, f"{name}Date", f"{moment:%Y%m%d}")
        setattr(result, f"{name}Time", f"{moment:%H%M%S.%f}")


def _acquisition_equipment(source: Dataset) -> list[Dataset]:
    if not source.get("Manufacturer"):  # type 1 of the item, PS3.3 C.12.1
        return []
    item = Dataset()
    with config.disable_value_validation():
        for keyword in EQUIPMENT:
            if source.get(keyword):
                item.add(own_copy(source[keyword]))
    item.PurposeOfReferenceCodeSequence = [ACQUISITION_EQUIPMENT]
    return [item]


def _processing_equipment(work: Work) -> Dataset:
    item = Dataset()
    item.PurposeOfReferenceCodeSequence = [PROCESSING_EQUIPMENT]
    item.Manufacturer = MANUFACTURER
    item.ManufacturerModelName = MODEL_NAME
    item.StationName = clean(work.node_name, 16, ending="")
    item.DeviceSerialNumber = work.device_serial_number
    if work.model_uid is not None:
        item.DeviceUID = work.model_uid
    item.SoftwareVersions = work.software_versions
    item.ContributionDateTime = f"{work.created_at.astimezone(UTC):%Y%m%d%H%M%S.%f}+0000"
    item.ContributionDescription = clean(f"{work.card.title}: {work.card.intended_use}", 1024)
    return item


def _file_meta(result: Dataset, transfer_syntax_uid: UID) -> FileMetaDataset:
    meta = FileMetaDataset()
    meta.FileMetaInformationVersion = b"\x00\x01"
    meta.MediaStorageSOPClassUID = result.SOPClassUID
    meta.MediaStorageSOPInstanceUID = result.SOPInstanceUID
    meta.TransferSyntaxUID = transfer_syntax_uid
    meta.ImplementationClassUID = IMPLEMENTATION_CLASS_UID
    meta.ImplementationVersionName = IMPLEMENTATION_VERSION_NAME
    return meta
