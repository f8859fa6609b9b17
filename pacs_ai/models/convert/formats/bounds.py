"""How much of a foreign weight file is believed: paths that stay inside its folder, sizes that its bytes can hold."""

from __future__ import annotations

import errno
import resource
import zipfile
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from pacs_ai.errors import PipelineFault

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import IO

#: Largest weight file that is read, bytes: the largest published network that this node could run, and room to spare.
LARGEST = 8 << 30
#: Address space that a reader may add beyond what the file itself accounts for, bytes (libraries, buffers).
ROOM = 2 << 30
#: Most arrays of one model.
MANY = 100_000
#: Most dimensions of one array.
DIMENSIONS = 16
#: What goes wrong with a disk, and is no fault of the file that is read or unpacked.
DISK = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EACCES}


def inside(folder: Path, name: str) -> Path:
    """Return the path of a regular file that lies within the folder.

    Raises
    ------
    PipelineFault
        The name is absolute, climbs out with ``..``, leads through a symbolic link, or is no file, or it is too large.
    """
    pure = PurePosixPath(name)
    if not name or pure.is_absolute() or ".." in pure.parts or "\\" in name or "\0" in name:
        raise PipelineFault(f"{name!r} leads out of the model's folder, so it is not read: get the model's original")
    path = folder
    for part in pure.parts:
        path /= part
        if path.is_symlink():
            raise PipelineFault(f"{name} is a symbolic link: put a copy of the file in its place")
    if not path.is_file():
        raise PipelineFault(f"there is no file {name} in {folder}: put it there")
    if path.stat().st_size > LARGEST:
        raise PipelineFault(f"{name} has {path.stat().st_size} bytes; weight files of up to {LARGEST} are read")
    return path


def is_zip(file: Path | IO[bytes]) -> bool:
    """Whether a file is read as a zip; also a damaged one, which is found to be so where it is opened."""
    try:
        return zipfile.is_zipfile(file)
    except zipfile.BadZipFile:
        return True


def elements(shape: object, name: str) -> int:
    """Return how many elements an array of that shape has; PipelineFault where it is no shape.

    Parameters
    ----------
    shape
        As the file states it: a list of counts.
    name
        Of the array, for the message.
    """
    if not isinstance(shape, list | tuple) or len(shape) > DIMENSIONS:
        raise PipelineFault(f"{name} states no shape of at most {DIMENSIONS} dimensions: get the model's original")
    count = 1
    for length in shape:
        if not isinstance(length, int) or isinstance(length, bool) or length < 0:
            raise PipelineFault(f"{name} states the shape {str(shape)[:100]}, which is none: get the model's original")
        count *= length
        if count > LARGEST:
            raise PipelineFault(f"{name} claims {count} elements or more: no network that this node runs has such one")
    return count


def too_much(name: str, size: int) -> PipelineFault:
    """Return the refusal of a file of `size` bytes for which no memory would suffice."""
    return PipelineFault(
        f"{name} asks for far more memory than its {size} bytes can stand for: it is damaged or made to harm; "
        "get the model's original"
    )


@contextmanager
def memory(name: str, size: int) -> Iterator[None]:
    """Limit the address space while a file is read: what it makes a library ask for beyond that is refused.

    Parameters
    ----------
    name
        Of the file, for the message.
    size
        Its bytes.

    Raises
    ------
    PipelineFault
        Memory beyond some times the file's size was asked for.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    now = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    wanted = now + 4 * size + ROOM
    ends = [one for one in (soft, hard, wanted) if one != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min(ends), hard))
    try:
        yield
    except MemoryError as error:
        raise too_much(name, size) from error
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
