"""TensorFlow variables (``variables.index`` beside ``variables.data-00000-of-00001``), read without TensorFlow.

The index is a sorted table in LevelDB's format: blocks of keys that share prefixes with the key before, an index block
of blocks, a footer of 48 bytes with the magic number (tensorflow/core/lib/io/format.h, table_builder.cc). Each value
is a BundleEntryProto (tensorflow/core/protobuf/tensor_bundle.proto): dtype 1, shape 2, shard 3, offset 4, size 5.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import numpy as np

from pacs_ai.errors import PipelineFault
from pacs_ai.models.convert.formats.bounds import MANY, elements, inside

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pacs_ai.pipeline import Array

MAGIC = 0xDB4775248B80FB57
#: Longest index, bytes.
LONGEST = 64 << 20
#: tensorflow/core/framework/types.proto: number -> numpy type. 7 is a string: the object graph, which is left out.
_TYPES = {1: "<f4", 2: "<f8", 3: "<i4", 4: "u1", 5: "<i2", 6: "i1", 9: "<i8", 10: "?", 17: "<u2", 19: "<f2"}
_STRING = 7


class _Cut(Exception):  # noqa: N818 - the sentence is made where the file's name is known
    """Bytes end before what they announce."""


def read(folder: Path, prefix: str = "variables") -> dict[str, Array]:
    """Read a checkpoint's arrays.

    Parameters
    ----------
    folder
        Where index and shards lie.
    prefix
        Their names without ``.index`` and ``.data-…``.

    Returns
    -------
    dict
        Key as stored (``layer_with_weights-0/kernel/.ATTRIBUTES/VARIABLE_VALUE``) -> array, sorted by key.

    Raises
    ------
    PipelineFault
        The index is none, is compressed, or names bytes that its shards do not have.
    """
    path = inside(folder, f"{prefix}.index")
    if path.stat().st_size > LONGEST:
        raise PipelineFault(f"{path.name} is longer than {LONGEST} bytes, which no table of variables is")
    try:
        entries = dict(_entries(path.read_bytes()))
        if len(entries) > MANY:
            raise PipelineFault(f"{path.name} names more than {MANY} variables: it is no network's")
        shards = _Shards(folder, prefix, _number(_fields(entries.pop(b"", b"")), 1) or 1)
        return {key.decode(): shards.array(key.decode(), _fields(value)) for key, value in _numeric(entries)}
    except (_Cut, struct.error, UnicodeDecodeError) as error:
        raise PipelineFault(f"{path.name} is no index of TensorFlow variables: {error}. Get the original") from error


def _numeric(entries: dict[bytes, bytes]) -> Iterator[tuple[bytes, bytes]]:
    for key, value in sorted(entries.items()):
        if _number(_fields(value), 1) != _STRING:
            yield key, value


class _Shards:
    """The data files of a checkpoint."""

    def __init__(self, folder: Path, prefix: str, count: int) -> None:
        if not 1 <= count <= 1000:
            raise PipelineFault(f"{prefix}.index names {count} shards: get the original")
        self._folder, self._prefix, self._count = folder, prefix, count
        self._read: dict[int, bytes] = {}

    def _content(self, shard: int) -> bytes:
        if shard not in self._read:
            name = f"{self._prefix}.data-{shard:05d}-of-{self._count:05d}"
            self._read[shard] = inside(self._folder, name).read_bytes()
        return self._read[shard]

    def array(self, key: str, fields: dict[int, list[int | bytes]]) -> Array:
        """Return the array of one entry."""
        kind = _TYPES.get(_number(fields, 1))
        if kind is None:
            raise PipelineFault(f"{key} is of TensorFlow's type number {_number(fields, 1)}, which is not read")
        if 7 in fields:
            raise PipelineFault(f"{key} is stored in slices (a partitioned variable): have its author save it whole")
        shape = [_number(_fields(one), 1) for one in _fields(_bytes(fields, 2)).get(2, []) if isinstance(one, bytes)]
        count, offset, size = elements(shape, key), _number(fields, 4), _number(fields, 5)
        content = self._content(_number(fields, 3))
        if size != count * np.dtype(kind).itemsize or offset + size > len(content):
            raise PipelineFault(f"{key} of shape {shape} claims bytes {offset} to {offset + size} of {len(content)}")
        return np.frombuffer(content, kind, count, offset).reshape(shape).copy()


def _entries(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield every key with its value."""
    if len(content) < 48 or struct.unpack("<Q", content[-8:])[0] != MAGIC:
        raise _Cut("it has not the footer of one")
    footer, offset = content[-48:], 0
    for _ in range(2):  # the handle of the metaindex, which is empty
        _, offset = _varint(footer, offset)
    start, offset = _varint(footer, offset)
    size, _ = _varint(footer, offset)
    for _, handle in _block(content, start, size):
        at, rest = _varint(handle, 0)
        yield from _block(content, at, _varint(handle, rest)[0])


def _block(content: bytes, start: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """Yield the entries of one block."""
    block = content[start : start + size]
    if len(block) < 4 or start + size >= len(content):
        raise _Cut("a block lies beyond its end")
    if content[start + size] != 0:
        raise _Cut("a block is compressed, as TensorFlow writes none")
    end = len(block) - 4 - 4 * struct.unpack("<I", block[-4:])[0]
    offset, key = 0, b""
    while offset < end:
        shared, offset = _varint(block, offset)
        fresh, offset = _varint(block, offset)
        length, offset = _varint(block, offset)
        if shared > len(key) or offset + fresh + length > end:
            raise _Cut("an entry lies beyond its block")
        key = key[:shared] + block[offset : offset + fresh]
        offset += fresh + length
        yield key, block[offset - length : offset]


def _varint(content: bytes, offset: int) -> tuple[int, int]:
    """Return a base-128 number and where it ends."""
    number = 0
    for shift in range(0, 70, 7):
        if offset >= len(content):
            raise _Cut("a number is cut off")
        byte = content[offset]
        offset += 1
        number |= (byte & 127) << shift
        if byte < 128:
            return number, offset
    raise _Cut("a number is longer than 64 bits")


def _fields(content: bytes) -> dict[int, list[int | bytes]]:
    """Return the fields of a protocol buffer: number -> values."""
    fields: dict[int, list[int | bytes]] = {}
    offset = 0
    while offset < len(content):
        key, offset = _varint(content, offset)
        value: int | bytes
        if key & 7 == 0:
            value, offset = _varint(content, offset)
        else:
            if key & 7 == 2:
                length, offset = _varint(content, offset)
            else:
                length = {1: 8, 5: 4}.get(key & 7, len(content) + 1)
            if offset + length > len(content):
                raise _Cut("a field is cut off")
            value, offset = content[offset : offset + length], offset + length
        fields.setdefault(key >> 3, []).append(value)
    return fields


def _number(fields: dict[int, list[int | bytes]], field: int) -> int:
    value = fields.get(field, [0])[-1]
    return value if isinstance(value, int) else 0


def _bytes(fields: dict[int, list[int | bytes]], field: int) -> bytes:
    value = fields.get(field, [b""])[-1]
    return value if isinstance(value, bytes) else b""
