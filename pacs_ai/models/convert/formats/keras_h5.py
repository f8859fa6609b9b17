"""Keras models in HDF5 (``.h5``, ``.hdf5``, ``.weights.h5``) or in a ``.keras`` archive: their arrays, nothing else.

The stored architecture is never looked at: its Lambda layers would be code. In the file only hard links are followed;
soft, external and virtual ones, and filters that HDF5 would load from a plug-in, are refused.
"""

from __future__ import annotations

import lzma
import tempfile
import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pacs_ai.errors import PipelineFault
from pacs_ai.models.convert.formats.bounds import DISK, LARGEST, MANY, inside, is_zip, memory

if TYPE_CHECKING:
    from pacs_ai.pipeline import Array

#: Filters that are part of HDF5 itself: deflate, shuffle, fletcher32, szip, nbit, scaleoffset.
FILTERS = range(1, 7)
#: Arrays may be at most this many times as long as the file: weights hardly compress, zeros do.
EXPANDS = 64
#: Deepest nesting of groups.
DEEPEST = 16
_WEIGHTS = "model.weights.h5"


def read(folder: Path, name: str) -> dict[str, Array]:
    """Read a model's arrays.

    Parameters
    ----------
    folder
        Where the file lies.
    name
        Of the file; a ``.keras`` archive is a zip with ``model.weights.h5`` inside.

    Returns
    -------
    dict
        Path in the file without ``model_weights/`` and ``:0`` (``conv3d_1/kernel``, ``layers/dense/vars/0``) -> array,
        sorted by path; the optimizer's are left out.

    Raises
    ------
    PipelineFault
        It is no HDF5 file, or one with links, foreign filters, or more elements than its bytes can stand for.
    """
    path = inside(folder, name)
    if not is_zip(path):
        return _read(path)
    with tempfile.TemporaryDirectory() as room:
        return _read(_unpacked(path, Path(room) / _WEIGHTS))


def _unpacked(path: Path, to: Path) -> Path:
    """Write the weights of a ``.keras`` archive to a file of their own."""
    try:
        with zipfile.ZipFile(path) as archive:
            member = archive.getinfo(_WEIGHTS)
            if member.file_size > min(LARGEST, EXPANDS * path.stat().st_size):
                raise PipelineFault(f"{_WEIGHTS} of {path.name} claims {member.file_size} bytes: get the original")
            with archive.open(member) as stream, to.open("wb") as out:
                while chunk := stream.read(1 << 20):  # zipfile stops at the size that the entry states
                    out.write(chunk)
    except (KeyError, ValueError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError) as error:
        raise PipelineFault(f"{path.name} is no Keras archive with {_WEIGHTS}: {error}") from error
    except OSError as error:
        if error.errno in DISK:
            raise
        raise PipelineFault(f"{path.name} is no Keras archive with {_WEIGHTS}: {error}") from error
    return to


def _read(path: Path) -> dict[str, Array]:
    import h5py  # type: ignore[import-untyped]

    try:
        with memory(path.name, path.stat().st_size), h5py.File(path, "r") as file:
            root = file["model_weights"] if "model_weights" in file and _hard(file, "model_weights") else file
            return dict(sorted(_Walk(path).arrays(root).items()))
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        raise PipelineFault(f"{path.name} is no HDF5 file that can be read: {error}") from error


def _hard(group: Any, name: str) -> bool:
    """Whether the link is a hard one; PipelineFault where it leads elsewhere."""
    import h5py

    if not isinstance(group.get(name, getlink=True), h5py.HardLink):
        raise PipelineFault(
            f"{group.name.rstrip('/')}/{name} is a soft or external link, which leads to other files: get the original"
        )
    return True


class _Walk:
    """One pass over a file, with what it may still yield."""

    def __init__(self, path: Path) -> None:
        self._name = path.name
        self._left = min(LARGEST, EXPANDS * path.stat().st_size)
        self._objects = 0

    def arrays(self, group: Any, prefix: str = "", depth: int = 0) -> dict[str, Array]:
        """Return the arrays below a group."""
        import h5py

        if depth > DEEPEST:
            raise PipelineFault(f"{self._name} nests groups deeper than {DEEPEST}: it is no Keras model")
        found: dict[str, Array] = {}
        for name in group:
            self._objects += 1
            if self._objects > MANY:
                raise PipelineFault(f"{self._name} holds more than {MANY} objects: it is no Keras model")
            _hard(group, name)
            one, path = group[name], f"{prefix}{name}"
            if isinstance(one, h5py.Dataset):
                found[path.removesuffix(":0")] = self._array(one)
            elif isinstance(one, h5py.Group) and not (depth == 0 and name in {"optimizer", "optimizer_weights"}):
                found.update(self.arrays(one, f"{path}/", depth + 1))
        return found

    def _array(self, one: Any) -> Array:
        properties = one.id.get_create_plist()
        filters = [properties.get_filter(index)[0] for index in range(properties.get_nfilters())]
        if one.is_virtual or one.external or any(number not in FILTERS for number in filters):
            raise PipelineFault(
                f"{one.name} of {self._name} lies in other files, or wants a filter that is no part of HDF5: "
                "have its author save it plainly"
            )
        if one.dtype.kind not in "fiub" or one.shape is None:
            raise PipelineFault(f"{one.name} of {self._name} holds {one.dtype}, not numbers: get the original")
        size = int(one.dtype.itemsize)
        for length in one.shape:
            size *= int(length)
        self._left -= size
        if self._left < 0:
            raise PipelineFault(
                f"{one.name} of {self._name} claims {size} bytes, more than the file can hold: get the original"
            )
        return np.ascontiguousarray(one[()], dtype=one.dtype.newbyteorder("="))
