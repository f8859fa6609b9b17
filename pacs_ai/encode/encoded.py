"""A result object as the bytes that will be stored and delivered, never encoded again."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from io import BytesIO
from typing import TYPE_CHECKING

from pydicom import Dataset, FileDataset, dcmread, dcmwrite
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset

if TYPE_CHECKING:
    from pathlib import Path

    from pacs_ai.profiles import Encoding


@dataclass(frozen=True)
class Encoded:
    """One result object in the DICOM File Format (PS3.10).

    Parameters
    ----------
    encoding
        What it is.
    sop_class_uid, sop_instance_uid, series_instance_uid, study_instance_uid, transfer_syntax_uid
        As in the data set and its file meta information.
    parts
        The file's bytes in order; in pieces, so that large pixel data is not copied.
    """

    encoding: Encoding
    sop_class_uid: str
    sop_instance_uid: str
    series_instance_uid: str
    study_instance_uid: str
    transfer_syntax_uid: str
    parts: tuple[bytes | bytearray, ...] = field(repr=False)

    @property
    def kind(self) -> str:
        """What people call it: SEG, SR, ..."""
        return self.encoding.label

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return sum(len(part) for part in self.parts)

    @property
    def sha256(self) -> str:
        """SHA-256 (hex) of the file."""
        running = hashlib.sha256()
        for part in self.parts:
            running.update(part)
        return running.hexdigest()

    @property
    def dataset(self) -> FileDataset:
        """The file read again, pixel data included."""
        return dcmread(BytesIO(self.to_bytes()))

    def to_bytes(self) -> bytes:
        """Return the file's bytes."""
        return b"".join(self.parts)

    def write(self, path: Path) -> None:
        """Write the file; OSError where that fails."""
        with path.open("wb") as target:
            target.writelines(self.parts)


def part10(dataset: Dataset) -> bytes:
    """Return the data set, with its `file_meta`, as DICOM File Format: preamble of zeros, group lengths computed."""
    target = BytesIO()
    dcmwrite(target, dataset, enforce_file_format=True)
    return target.getvalue()


def plain(ds: Dataset) -> bytes:
    """Return a data set in Explicit VR Little Endian, without file meta information: a further part of a file."""
    target = DicomBytesIO()
    target.is_little_endian, target.is_implicit_VR = True, False
    write_dataset(target, ds)
    return target.getvalue()


def encoded(encoding: Encoding, dataset: Dataset, *parts: bytes | bytearray) -> Encoded:
    """Return the data set, followed by further parts that are encoded already, as a result object."""
    return Encoded(
        encoding=encoding,
        sop_class_uid=str(dataset.SOPClassUID),
        sop_instance_uid=str(dataset.SOPInstanceUID),
        series_instance_uid=str(dataset.SeriesInstanceUID),
        study_instance_uid=str(dataset.StudyInstanceUID),
        transfer_syntax_uid=str(dataset.file_meta.TransferSyntaxUID),
        parts=(part10(dataset), *parts),
    )
