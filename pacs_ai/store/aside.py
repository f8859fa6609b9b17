"""Keep what was received, answered Success, but can have no row, as a file that a person finds, until it has one.

<store>/ahead/<sha256>.dcm     the Part 10 file, 0600
<store>/ahead/<sha256>.json    what is known of its arrival: who sent it, when, over which association
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from pacs_ai.errors import UserError
from pacs_ai.store import segments
from pacs_ai.store.disk import READ, Disk, write

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from pacs_ai.config import Config
    from pacs_ai.dicom.arrival import Arrival

FOLDER = "ahead"
_FILE, _WORDS = ".dcm", ".json"


def put(folder: Path, disk: Disk, arrival: Arrival, pieces: Iterable[bytes]) -> Path:
    """Keep an instance durably; return the path of its file.

    Raises
    ------
    OutOfResources
        The disk is full or failed.
    """
    path = folder / f"{arrival.sha256}{_FILE}"
    for name, content in ((path.with_suffix(_WORDS), (segments.words_of(arrival),)), (path, pieces)):
        with disk.storing(name):
            descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                for piece in content:
                    write(descriptor, piece)
                disk.sync(descriptor)
            finally:
                os.close(descriptor)
            disk.sync_path(folder, READ | os.O_DIRECTORY)
    return path


def found(folder: Path) -> list[Path]:
    """Return the files that were set aside; none where there is no such folder."""
    try:
        return sorted(path for path in folder.iterdir() if path.suffix == _FILE)
    except FileNotFoundError:
        return []


def arrival_of(path: Path) -> Arrival:
    """Return what is known of the arrival of a file that was set aside; OSError where nothing is."""
    words = path.with_suffix(_WORDS).read_bytes()
    return segments.arrival_of(words, path.stem, path.stat().st_size)


def concern(config: Config) -> tuple[str, str] | None:
    """Return what an administrator should know of what was set aside, and what to do; None where nothing was.

    Raises
    ------
    UserError
        The folder cannot be looked into.
    """
    folder = (config.store.folder / FOLDER).resolve()
    try:
        count = len(found(folder))
    except OSError as error:
        raise UserError(f"{folder} cannot be read: {error.strerror}; run this as the node's user") from error
    if not count:
        return None
    what = "1 received instance" if count == 1 else f"{count} received instances"
    words = f"{what} could not be indexed, and no route sees it: kept as *{_FILE} in {folder}"
    advice = (
        "a fault of the node, report it. A receive process tries again when it starts: install the release that mends "
        "it, and restart. Or send the series again from where it came. The file goes once its instance is indexed"
    )
    return words, advice


def forget(path: Path) -> None:
    """Delete a file that was set aside, and has its row now."""
    path.unlink(missing_ok=True)
    path.with_suffix(_WORDS).unlink(missing_ok=True)
