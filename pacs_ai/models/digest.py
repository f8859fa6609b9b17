"""A model folder is what its administrator named: every file by its SHA-256, none missing, none more, no links."""

from __future__ import annotations

import hashlib
import stat
from typing import TYPE_CHECKING

from pacs_ai.errors import PipelineFault

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

#: Faults that one message names; more are counted.
NAMED = 8


def _entries(folder: Path) -> Iterator[Path]:
    """Yield all that lies below the folder and is no directory; links are yielded, never followed."""
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.is_symlink():
            yield from _entries(path)
        else:
            yield path


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def digests(folder: Path) -> dict[str, str]:
    """Make the table of a folder's files: path relative to it, with ``/`` -> SHA-256 in hex, sorted.

    Raises
    ------
    PipelineFault
        The folder is not there, or holds a symbolic link, a pipe, a device: what they lead to is not the folder's own.
    """
    if not folder.is_dir():
        raise PipelineFault(f"there is no folder {folder}: put the model there, or correct the path in [[pipeline]]")
    table: dict[str, str] = {}
    for path in _entries(folder):
        name = path.relative_to(folder).as_posix()
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode):
            raise PipelineFault(f"{name} in {folder} is a symbolic link: put a copy of the file in its place")
        if not stat.S_ISREG(mode):
            raise PipelineFault(f"{name} in {folder} is no regular file: take it away")
        table[name] = sha256(path)
    return dict(sorted(table.items()))


def verify(folder: Path, files: Mapping[str, str], table: str = "[[pipeline]]") -> None:
    """Compare every file of the folder with a table of digests; nothing is parsed or executed.

    Parameters
    ----------
    folder
        Of the model.
    files
        Path within it -> SHA-256 (hex).
    table
        Where people find that table.

    Raises
    ------
    PipelineFault
        A file is missing, not in the table, or differs; the message names them and says what to do.
    """
    found = digests(folder)
    faults = [f"{name} is missing" for name in files if name not in found]
    faults += [f"{name} is not in the table" for name in found if name not in files]
    faults += [f"{name} differs" for name in files if name in found and found[name] != files[name].lower()]
    if faults:
        named = "; ".join(faults[:NAMED]) + (f"; and {len(faults) - NAMED} more" if len(faults) > NAMED else "")
        raise PipelineFault(
            f"the files in {folder} are not those that {table} names by digest, so nothing was run: {named}. "
            f"Restore the files; only if you trust the new ones, renew the table in {table}"
        )


def verified_bytes(folder: Path, name: str, files: Mapping[str, str]) -> bytes:
    """Read one file whole and return its bytes only if their SHA-256 is the configured one.

    Raises
    ------
    PipelineFault
        The file is missing, a link, not in the table, or differs.
    """
    path = folder / name
    if name not in files:
        raise PipelineFault(f"{name} of {folder} is not in the table of digests: add it to [[pipeline]]")
    if path.is_symlink() or not path.is_file():
        raise PipelineFault(f"{name} is missing in {folder}, or is a symbolic link: put the file there")
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != files[name].lower():
        raise PipelineFault(f"{name} in {folder} differs from its configured digest: restore it, or renew the table")
    return content


def digest_of(files: Mapping[str, str]) -> str:
    """Return one SHA-256 (hex) over a table: the digest of the model as a whole."""
    lines = "".join(f"{value.lower()}  {name}\n" for name, value in sorted(files.items()))
    return hashlib.sha256(lines.encode()).hexdigest()
