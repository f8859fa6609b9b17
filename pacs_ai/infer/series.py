"""Whether the received instances are the images of one series of one patient, judged before any pixel is read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydicom.datadict import dictionary_description

from pacs_ai.dicom.reading import read_text
from pacs_ai.errors import Reason, Refused

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydicom import Dataset

    from pacs_ai.infer.source import Received

#: Attributes that all images of a series have in common: a result copies its patient and study from them.
#: Those of a volume have SOP Class UID in common too; an ultrasound series may hold images and clips.
COMMON_KEYWORDS = (
    "PatientID",
    "IssuerOfPatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "Modality",
)

#: Why several images may lie at one position: what to call it, and the attributes that differ then.
DIMENSIONS = (
    ("several diffusion weightings", ("DiffusionBValue", "DiffusionGradientOrientation")),
    ("several echoes", ("EchoTime", "EffectiveEchoTime", "EchoNumbers")),
    (
        "several time points",
        ("TemporalPositionIdentifier", "TemporalPositionIndex", "TriggerTime", "FrameReferenceTime"),
    ),
    ("several inversion times", ("InversionTime",)),
    ("several tube voltages", ("KVP",)),
    ("several reconstruction kernels", ("ConvolutionKernel",)),
    ("several kinds of image", ("ImageType", "FrameType", "ComplexImageComponent")),
    ("several acquisitions", ("AcquisitionNumber",)),
    ("several time points", ("AcquisitionDateTime", "FrameAcquisitionDateTime", "AcquisitionTime", "ContentTime")),
)


def check_series(received: Sequence[Received]) -> tuple[tuple[Received, ...], tuple[str, ...]]:
    """Return the images that may form a volume, and what was left out or completed, in words.

    Raises
    ------
    Refused
        Where there are none, where they disagree in `COMMON_KEYWORDS`, or where no result could refer to them.
    """
    images, left_out = _without_localizers(received)
    completed = _complete_identity(images)
    _check_common(images, (*COMMON_KEYWORDS, "SOPClassUID"))
    return images, (*left_out, *completed)


def check_images(received: Sequence[Received]) -> tuple[str, ...]:
    """Return what was completed, in words, of images that need form no volume.

    Raises
    ------
    Refused
        As `check_series`, and where two images have one SOP Instance UID.
    """
    if not received:
        raise Refused("the series holds no image", Reason.TOO_FEW)
    completed = _complete_identity(received)
    _check_common(received, COMMON_KEYWORDS)
    if len({each.sop_instance_uid for each in received}) < len(received):
        raise Refused("two images have the same SOP Instance UID", Reason.IDENTITY)
    return completed


def _is_localizer(ds: Dataset) -> bool:
    """Tell whether Image Type value 3 or later says LOCALIZER (PS3.3 C.8.2.1.1.1, C.8.3.1.1.1)."""
    return "LOCALIZER" in read_text(ds, "ImageType").upper().split("\\")[2:]


def _without_localizers(received: Sequence[Received]) -> tuple[tuple[Received, ...], tuple[str, ...]]:
    if not received:
        raise Refused("the series holds no image", Reason.TOO_FEW)
    images = tuple(each for each in received if not _is_localizer(each.ds))
    if not images:
        raise Refused("the series holds localizers (scout images) only", Reason.LOCALIZER)
    count = len(received) - len(images)
    return images, (f"{count} of {len(received)} images are localizers and were left out",) if count else ()


def _complete_identity(images: Sequence[Received]) -> tuple[str, ...]:
    """Take a missing SOP Class UID from the file's meta information; refuse instances that cannot be referred to."""
    count = 0
    for each in images:
        if not each.sop_instance_uid:
            raise Refused("an image has no SOP Instance UID, so no result can refer to it", Reason.IDENTITY)
        sop_class_uid = read_text(each.ds, "SOPClassUID")
        if not sop_class_uid:
            each.ds.SOPClassUID = read_text(each.ds.file_meta, "MediaStorageSOPClassUID")
            count += 1
    if not count:
        return ()
    return (f"{count} of {len(images)} images have no SOP Class UID; the one in the file header was used",)


def _check_common(images: Sequence[Received], keywords: Sequence[str]) -> None:
    for keyword in keywords:
        values = {read_text(each.ds, keyword) for each in images}
        if len(values) > 1:
            raise Refused(
                f"{dictionary_description(keyword)} is not the same in all images: {len(values)} different values "
                f"in {len(images)} images",
                Reason.IDENTITY,
            )
        if values == {""} and keyword in ("StudyInstanceUID", "SeriesInstanceUID", "Modality", "SOPClassUID"):
            raise Refused(f"{dictionary_description(keyword)} is missing", Reason.UNREADABLE)


def differing(attributes: Sequence[Sequence[Dataset]]) -> tuple[str, str] | None:
    """Say what tells images at one position apart: its name and the keyword that differs; None where nothing does."""
    for name, keywords in DIMENSIONS:
        for keyword in keywords:
            if len({"".join(read_text(ds, keyword) for ds in each) for each in attributes}) > 1:
                return name, keyword
    return None
