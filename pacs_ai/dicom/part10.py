"""Take a DICOM file (PS3.10) apart into its transfer syntax and its encoded data set."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from pacs_ai.dicom.elements import SHORT_VR
from pacs_ai.errors import NotUnderstood

_PREAMBLE_BYTES = 128
_HEADER = struct.Struct("<HH2sH")
_LENGTH = struct.Struct("<L")
_META_GROUP = 0x0002
_TRANSFER_SYNTAX_UID = 0x0010


@dataclass(frozen=True)
class Part10:
    """A file's transfer syntax and its data set as encoded; `memoryview` of the bytes that were given."""

    transfer_syntax_uid: str
    data_set: memoryview


def split(raw: bytes) -> Part10:
    """Return transfer syntax and data set of a file's bytes.

    Raises
    ------
    NotUnderstood
        There is no preamble with DICM, or the file meta information is broken or names no transfer syntax
        (PS3.10 7.1).
    """
    if raw[_PREAMBLE_BYTES : _PREAMBLE_BYTES + 4] != b"DICM":
        raise NotUnderstood("this is no DICOM file: DICM is missing after the first 128 bytes")
    at, transfer_syntax_uid = _PREAMBLE_BYTES + 4, ""
    try:
        while raw[at : at + 2] == b"\2\0":
            _, element, vr, length = _HEADER.unpack_from(raw, at)
            at += 8
            if vr not in SHORT_VR:
                (length,) = _LENGTH.unpack_from(raw, at)
                at += 4
            if element == _TRANSFER_SYNTAX_UID:
                transfer_syntax_uid = raw[at : at + length].rstrip(b"\0 ").decode("ascii", "replace")
            at += length
    except struct.error:
        raise NotUnderstood("the file meta information is truncated") from None
    if at > len(raw):
        raise NotUnderstood("the file meta information is truncated")
    if not transfer_syntax_uid:
        raise NotUnderstood("the file meta information names no transfer syntax")
    return Part10(transfer_syntax_uid, memoryview(raw)[at:])
