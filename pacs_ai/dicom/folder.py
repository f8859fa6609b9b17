"""Series in a folder of DICOM files, as the index would know them: for `explain` and `infer` without a node."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pacs_ai.dicom import part10
from pacs_ai.dicom.attributes import Header, read_header
from pacs_ai.errors import NotUnderstood, UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path


@dataclass(frozen=True)
class FolderSeries:
    """One series of the folder.

    Parameters
    ----------
    header
        Of its first instance by name of file.
    files
        SOP Instance UID -> (file, SHA-256 in hex), one file for each instance.
    """

    header: Header
    files: dict[str, tuple[Path, str]]


@dataclass(frozen=True)
class Folder:
    """What was found: the series in the order of their files, and what was left out: (file, why)."""

    series: tuple[FolderSeries, ...]
    skipped: tuple[tuple[Path, str], ...]


def find_files(path: Path) -> list[Path]:
    """Return the files below a folder in the order of their names, or the one file; `UserError` where there is none."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UserError(f"there is no file or folder {path}")
    found = sorted(each for each in path.rglob("*") if each.is_file())
    if not found:
        raise UserError(f"the folder {path} is empty")
    return found


def read(files: Sequence[Path], note: Callable[[], None] = lambda: None) -> Folder:
    """Read every file and group them into series.

    Parameters
    ----------
    files
        What `find_files` returned.
    note
        Called after each file.

    Raises
    ------
    UserError
        None of them is a DICOM instance.
    """
    series: dict[tuple[str, str], FolderSeries] = {}
    skipped: list[tuple[Path, str]] = []
    for path in files:
        try:
            raw = path.read_bytes()
            part = part10.split(raw)
            header = read_header(part.data_set, part.transfer_syntax_uid)
        except (NotUnderstood, OSError) as error:
            skipped.append((path, str(error)))
        else:
            key = header.study_instance_uid, header.series_instance_uid
            found = series.setdefault(key, FolderSeries(header, {}))
            if header.sop_instance_uid in found.files:
                skipped.append((path, f"the same instance as {found.files[header.sop_instance_uid][0].name}"))
            else:
                found.files[header.sop_instance_uid] = path, hashlib.sha256(raw).hexdigest()
        note()
    if not series:
        raise UserError(f"{_where(files)} holds no DICOM images; the first file: {skipped[0][1]}")
    return Folder(tuple(series.values()), tuple(skipped))


def _where(files: Sequence[Path]) -> str:
    return str(files[0]) if len(files) == 1 else str(files[0].parent)
