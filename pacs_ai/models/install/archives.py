"""The few files of a wheel, a zip or a tarball that a recipe names, read without unpacking the rest.

An archive with a name that climbs out of a folder, a link, a device, two entries of one name, more entries than any
model has, or contents that its bytes cannot stand for, is refused whole: it was made to harm, or is damaged.
"""

from __future__ import annotations

import lzma
import stat
import tarfile
import zipfile
import zlib
from pathlib import PurePosixPath
from typing import IO, TYPE_CHECKING

from pacs_ai.errors import PipelineFault
from pacs_ai.models.convert.formats.bounds import DISK, LARGEST, memory

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

#: Most entries of an archive.
ENTRIES = 20_000
#: Contents may be at most this many times as long as the archive, and may always have `ALWAYS` bytes.
EXPANDS, ALWAYS = 200, 16 << 20
_CHUNK = 1 << 20


def is_archive(name: str) -> bool:
    """Whether a file of that name is read as an archive."""
    return name.endswith((".whl", ".zip", ".tgz", ".tar.gz", ".tar"))


def extract(archive: Path, members: Mapping[str, str], to: Path) -> None:
    """Write the members of an archive into a folder.

    Parameters
    ----------
    archive
        A zip (``.whl``, ``.zip``) or tarball (``.tgz``, ``.tar.gz``, ``.tar``).
    members
        Path within the archive -> name in the folder. Those that the archive does not have are left out.
    to
        The folder.

    Raises
    ------
    PipelineFault
        The archive is none, or holds what is told above.
    """
    try:
        with memory(archive.name, archive.stat().st_size):
            if archive.name.endswith((".whl", ".zip")):
                _from_zip(archive, members, to)
            else:
                _from_tar(archive, members, to)
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, ValueError) as error:
        raise _refused(archive, f"is damaged ({error})") from error
    except RuntimeError as error:  # zipfile: encrypted, or compressed in a way that is not known
        raise _refused(archive, f"cannot be read ({error})") from error
    except OSError as error:
        if error.errno in DISK:
            raise
        raise _refused(archive, f"is damaged ({error})") from error


def _refused(archive: Path, words: str) -> PipelineFault:
    return PipelineFault(f"{archive.name} {words}, so nothing of it was used: get the original archive")


class _Accepting:
    """What is known of the entries so far."""

    def __init__(self, archive: Path) -> None:
        self._archive = archive
        self._left = min(LARGEST, ALWAYS + EXPANDS * archive.stat().st_size)
        self._seen: set[str] = set()

    def __call__(self, name: str, size: int, *, plain: bool) -> None:
        """Accept one more entry, or raise."""
        pure = PurePosixPath(name)
        if not name or pure.is_absolute() or ".." in pure.parts or "\\" in name or "\0" in name or ":" in name:
            raise _refused(self._archive, f"has an entry {name[:100]!r} that leads out of its folder")
        if not plain:
            raise _refused(self._archive, f"has an entry {name[:100]!r} that is a link or a device")
        if name in self._seen:
            raise _refused(self._archive, f"has two entries of the name {name[:100]!r}")
        self._seen.add(name)
        self._left -= size
        if len(self._seen) > ENTRIES:
            raise _refused(self._archive, f"has more than {ENTRIES} entries, as no model has")
        if self._left < 0:
            raise _refused(self._archive, "would unpack to far more than its size can stand for")


def _from_zip(archive: Path, members: Mapping[str, str], to: Path) -> None:
    with zipfile.ZipFile(archive) as opened:
        accept = _Accepting(archive)
        for one in opened.infolist():
            kind = stat.S_IFMT(one.external_attr >> 16)
            accept(one.filename, one.file_size, plain=kind in {0, stat.S_IFREG, stat.S_IFDIR})
        for path, name in members.items():
            if path in opened.NameToInfo:
                with opened.open(path) as stream:
                    _copy(stream, to / name, opened.getinfo(path).file_size, archive)


def _from_tar(archive: Path, members: Mapping[str, str], to: Path) -> None:
    with tarfile.open(archive, "r|*") as opened:
        accept = _Accepting(archive)
        for one in _entries(opened):
            accept(one.name, one.size, plain=one.isfile() or one.isdir())
            if one.name in members and one.isfile():
                stream = opened.extractfile(one)
                assert stream is not None  # a regular file
                _copy(stream, to / members[one.name], one.size, archive)


def _entries(opened: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yield the entries as they come; sparse files, whose size is no measure of their bytes, as devices."""
    for one in opened:
        if one.sparse is not None or one.type not in (*tarfile.REGULAR_TYPES, tarfile.DIRTYPE):
            one.type = tarfile.BLKTYPE
        yield one


def _copy(stream: IO[bytes], to: Path, size: int, archive: Path) -> None:
    """Write at most `size` bytes."""
    with to.open("xb") as out:
        left = size
        while left and (chunk := stream.read(min(_CHUNK, left))):
            out.write(chunk)
            left -= len(chunk)
    if left:
        raise _refused(archive, f"is cut off within {to.name}")
