"""Protocol buffers without their definitions: numbers of fields and what they hold (protobuf.dev, encoding)."""

from __future__ import annotations

from pacs_ai.errors import PipelineFault


class Cut(Exception):  # noqa: N818 - the sentence is made where the file's name is known
    """Bytes end before what they announce."""


Fields = dict[int, list[int | bytes]]


def varint(content: bytes | memoryview, offset: int) -> tuple[int, int]:
    """Return a base-128 number of at most 64 bits and where it ends; `Cut` where it does not."""
    result = 0
    for shift in range(0, 70, 7):
        if offset >= len(content):
            raise Cut("a number is cut off")
        byte = content[offset]
        offset += 1
        result |= (byte & 127) << shift
        if byte < 128:
            return result, offset
    raise Cut("a number is longer than 64 bits")


def fields(content: bytes | memoryview, skip: frozenset[int] = frozenset()) -> Fields:
    """Return number of field -> its values in order: integers, or bytes; `Cut` where they end too early.

    Parameters
    ----------
    content
        One message.
    skip
        Fields that are passed over.
    """
    found: Fields = {}
    offset = 0
    while offset < len(content):
        key, offset = varint(content, offset)
        value: int | bytes
        if key & 7 == 0:
            value, offset = varint(content, offset)
        else:
            if key & 7 == 2:
                length, offset = varint(content, offset)
            else:
                length = {1: 8, 5: 4}.get(key & 7, len(content) + 1)
            if offset + length > len(content):
                raise Cut("a field is cut off")
            value = b"" if key >> 3 in skip else bytes(content[offset : offset + length])
            offset += length
        if key >> 3 not in skip:
            found.setdefault(key >> 3, []).append(value)
    return found


def number(found: Fields, field: int) -> int:
    """Return the last value of an integer field, 0 where there is none."""
    value = found.get(field, [0])[-1]
    return value if isinstance(value, int) else 0


def message(found: Fields, field: int) -> bytes:
    """Return the last value of a field of bytes, b"" where there is none."""
    value = found.get(field, [b""])[-1]
    return value if isinstance(value, bytes) else b""


def messages(found: Fields, field: int) -> list[bytes]:
    """Return all values of a repeated field of bytes."""
    return [value for value in found.get(field, []) if isinstance(value, bytes)]


def text(found: Fields, field: int, name: str) -> str:
    """Return a text; PipelineFault naming the file where it is none."""
    try:
        return message(found, field).decode()
    except UnicodeDecodeError as error:
        raise PipelineFault(f"{name} has a name that is no text: get the original") from error
