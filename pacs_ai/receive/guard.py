"""Judge who may come in: what an A-ASSOCIATE-RQ says of its two ends, and what is answered to those not let in."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import NamedTuple

from pacs_ai.receive.framing import ABORT, ASSOCIATE_RJ, HEADER

#: Protocol version, two reserved bytes, the two AE titles, 32 reserved bytes (PS3.8 Table 9-11).
_FIXED = struct.Struct(">H2x16s16s32x")

#: Type, reserved, length of an item or sub-item (PS3.8 9.3.2).
_ITEM = struct.Struct(">BxH")
#: Items, and sub-items of presentation contexts, that a request may have: each costs time that is everybody's. 128
#: contexts with each of the 39 transfer syntaxes that pydicom knows come to 5,250.
MOST_ITEMS = 6000
_ANY = 1 << 30

# Reasons of an A-ABORT of the service provider, PS3.8 Table 9-26.
NOT_SPECIFIED, UNEXPECTED_PDU, INVALID_PARAMETER = 0, 2, 6


class Rejection(NamedTuple):
    """An A-ASSOCIATE-RJ (PS3.8 Table 9-21) and its reason in words."""

    result: int
    source: int
    reason: int
    words: str

    def encode(self) -> bytes:
        """Return the PDU."""
        return struct.pack(">BxLxBBB", ASSOCIATE_RJ, 4, self.result, self.source, self.reason)


APPLICATION_CONTEXT_NOT_SUPPORTED = Rejection(1, 1, 2, "application context name not supported: not that of DICOM")
CALLING_AE_TITLE_NOT_RECOGNISED = Rejection(1, 1, 3, "calling AE title not recognised")
CERTIFICATE_OF_ANOTHER = Rejection(1, 1, 3, "its certificate bears another name than the one configured")
CALLED_AE_TITLE_NOT_RECOGNISED = Rejection(1, 1, 7, "called AE title not recognised")
TOO_MANY = Rejection(2, 3, 2, "local limit exceeded: as many associations as receive.max_associations")
TOO_MANY_OF_TITLE = Rejection(2, 3, 2, "local limit exceeded: receive.max_associations_per_peer of its AE title")
TOO_MANY_FROM_ADDRESS = Rejection(
    2, 3, 2, "local limit exceeded: receive.max_associations_per_address from its address"
)
CONGESTED = Rejection(2, 3, 1, "temporary congestion: too many association requests at one time")
PROTOCOL_VERSION_NOT_SUPPORTED = Rejection(1, 2, 2, "protocol version not supported: it does not speak version 1")
MAXIMUM_LENGTH_TOO_SHORT = Rejection(1, 2, 1, "it takes PDUs of a few bytes only")


def abort(reason: int) -> bytes:
    """Return an A-ABORT PDU of the service provider, PS3.8 Table 9-26: reason 2 unexpected PDU, 6 invalid value."""
    return struct.pack(">BxLxxBB", ABORT, 4, 2, reason)


class MalformedRequest(Exception):  # noqa: N818 - named after what came
    """The A-ASSOCIATE-RQ breaks PS3.8 9.3.2."""


@dataclass(frozen=True)
class AssociationRequest:
    """What an A-ASSOCIATE-RQ says of its two ends, without padding; None where an AE title is none (PS3.5 6.2, AE).

    `versions` are the protocol's that the requestor speaks, a bit for each (PS3.8 Table 9-11).
    """

    calling_ae_title: str | None
    called_ae_title: str | None
    raw_calling: str
    raw_called: str
    versions: int = 1

    @property
    def speaks_version_1(self) -> bool:
        """Whether the requestor speaks the one version that there is; no other bit is looked at."""
        return bool(self.versions & 1)


def examine(pdu: bytes) -> AssociationRequest:
    """Return versions and AE titles of a whole A-ASSOCIATE-RQ PDU, having checked its presentation contexts.

    Raises
    ------
    MalformedRequest
        Items that overrun, or more than `MOST_ITEMS`, no or more than 128 presentation contexts, context IDs that are
        even or repeated, a context without abstract or transfer syntax (PS3.8 9.3.2.2).
    """
    if len(pdu) < HEADER.size + _FIXED.size:
        raise MalformedRequest("too short")
    versions, called, calling = _FIXED.unpack_from(pdu, HEADER.size)
    items = items_of(memoryview(pdu)[HEADER.size + _FIXED.size :], MOST_ITEMS)
    contexts = [value for kind, value in items if kind == 0x20]
    if not 1 <= len(contexts) <= 128:
        raise MalformedRequest(f"{len(contexts)} presentation contexts")
    left = MOST_ITEMS - len(items)
    for context in contexts:
        kinds = [kind for kind, _ in items_of(context[4:], left)]
        left -= len(kinds)
        if kinds.count(0x30) != 1 or kinds.count(0x40) < 1 or context[0] % 2 == 0:
            raise MalformedRequest("a presentation context with an even ID or without its syntaxes")
    if len({context[0] for context in contexts}) < len(contexts):
        raise MalformedRequest("presentation contexts with the same ID")
    return AssociationRequest(
        _ae_title(calling), _ae_title(called), calling.decode("latin-1"), called.decode("latin-1"), versions
    )


def items_of(view: memoryview, most: int = _ANY) -> list[tuple[int, memoryview]]:
    """Return type and value of the items or sub-items that a view is made of.

    Raises
    ------
    MalformedRequest
        One runs beyond its end, or there are more than `most`.
    """
    found: list[tuple[int, memoryview]] = []
    offset, size = 0, len(view)
    while offset < size:
        if offset + 4 > size or len(found) == most:
            raise MalformedRequest("an item runs beyond its end" if len(found) < most else "too many items")
        kind, length = _ITEM.unpack_from(view, offset)
        start, offset = offset + 4, offset + 4 + length
        if offset > size or (kind == 0x20 and length < 4):
            raise MalformedRequest("an item runs beyond its end")
        found.append((kind, view[start:offset]))
    return found


def _ae_title(raw: bytes) -> str | None:
    title = raw.decode("latin-1").strip(" ")
    return title if title and title.isascii() and title.isprintable() and "\\" not in title else None


@dataclass(frozen=True)
class Bounds:
    """What one association may cost.

    Parameters
    ----------
    pdu_bytes
        Advertised Maximum Length: a longer P-DATA-TF is a protocol error (PS3.8 D.1).
    instance_bytes
        A longer data set is read and thrown away, up to a multiple (`desk.THROWN_TIMES`).
    network_seconds
        Silence that ends an association, between messages and amid one.
    bytes_per_second, pace_seconds
        Least pace of a message under way, averaged over each stretch of so many seconds.
    write_seconds
        A peer that takes nothing of an answer for so long is aborted.
    answer_seconds
        An instance that is not durable by then is answered "out of resources".
    """

    pdu_bytes: int = 131072
    instance_bytes: int = 4 << 30
    network_seconds: float = 60.0
    bytes_per_second: int = 8192
    pace_seconds: float = 30.0
    write_seconds: float = 10.0
    answer_seconds: float = 30.0


@dataclass(frozen=True)
class Limits:
    """What connections without an association may cost.

    Parameters
    ----------
    connections, connections_per_address
        Waiting at one time; beyond that the one that has waited longest (of that address) is closed.
    request_seconds
        From connecting to the last byte of the A-ASSOCIATE-RQ.
    handshake_seconds
        Of these, for the TLS handshake.
    request_bytes
        Longest A-ASSOCIATE-RQ. 128 contexts with all transfer syntaxes take 140,000. So much of each connection may
        be in memory: 256 MiB of 1,000, and 16 MiB of one address.
    asking_bytes
        Whole requests that wait for their answers, in all; a quarter of it from one address. There are `connections` at
        most, and as many from one address as a quarter, or as `connections_per_address`. Any other is rejected.
    """

    connections: int = 1000
    connections_per_address: int = 64
    request_seconds: float = 10.0
    handshake_seconds: float = 5.0
    request_bytes: int = 262144
    asking_bytes: int = 64 << 20
