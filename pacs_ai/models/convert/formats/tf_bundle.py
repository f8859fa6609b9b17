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
from pacs_ai.models.convert.formats import protobuf
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
        shards = _Shards(folder, prefix, protobuf.number(protobuf.fields(entries.pop(b"", b"")), 1) or 1)
        return {key.decode(): shards.array(key.decode(), protobuf.fields(value)) for key, value in _numeric(entries)}
    except (protobuf.Cut, struct.error, UnicodeDecodeError) as error:
        raise PipelineFault(f"{path.name} is no index of TensorFlow variables: {error}. Get the original") from error


def _numeric(entries: dict[bytes, bytes]) -> Iterator[tuple[bytes, bytes]]:
    for key, value in sorted(entries.items()):
        if protobuf.number(protobuf.fields(value), 1) != _STRING:
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

    def array(self, key: str, fields: protobuf.Fields) -> Array:
        """Return the array of one entry."""
        kind = _TYPES.get(protobuf.number(fields, 1))
        if kind is None:
            raise PipelineFault(f"{key} is of TensorFlow's type number {protobuf.number(fields, 1)}, which is not read")
        if 7 in fields:
            raise PipelineFault(f"{key} is stored in slices (a partitioned variable): have its author save it whole")
        shape = [
            protobuf.number(protobuf.fields(one), 1)
            for one in protobuf.messages(protobuf.fields(protobuf.message(fields, 2)), 2)
        ]
        count, offset, size = elements(shape, key), protobuf.number(fields, 4), protobuf.number(fields, 5)
        content = self._content(protobuf.number(fields, 3))
        if size != count * np.dtype(kind).itemsize or offset + size > len(content):
            raise PipelineFault(f"{key} of shape {shape} claims bytes {offset} to {offset + size} of {len(content)}")
        return np.frombuffer(content, kind, count, offset).reshape(shape).copy()


def _entries(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield every key with its value."""
    if len(content) < 48 or struct.unpack("<Q", content[-8:])[0] != MAGIC:
        raise protobuf.Cut("it has not the footer of one")
    footer, offset = content[-48:], 0
    for _ in range(2):  # the handle of the metaindex, which is empty
        _, offset = protobuf.varint(footer, offset)
    start, offset = protobuf.varint(footer, offset)
    size, _ = protobuf.varint(footer, offset)
    for _, handle in _block(content, start, size):
        at, rest = protobuf.varint(handle, 0)
        yield from _block(content, at, protobuf.varint(handle, rest)[0])


def _block(content: bytes, start: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """Yield the entries of one block."""
    block = content[start : start + size]
    if len(block) < 4 or start + size >= len(content):
        raise protobuf.Cut("a block lies beyond its end")
    if content[start + size] != 0:
        raise protobuf.Cut("a block is compressed, as TensorFlow writes none")
    end = len(block) - 4 - 4 * struct.unpack("<I", block[-4:])[0]
    offset, key = 0, b""
    while offset < end:
        shared, offset = protobuf.varint(block, offset)
        fresh, offset = protobuf.varint(block, offset)
        length, offset = protobuf.varint(block, offset)
        if shared > len(key) or offset + fresh + length > end:
            raise protobuf.Cut("an entry lies beyond its block")
        key = key[:shared] + block[offset : offset + fresh]
        offset += fresh + length
        yield key, block[offset - length : offset]
