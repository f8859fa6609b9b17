"""Take a stream of bytes apart into DICOM PDUs (PS3.8 9.3), in whatever pieces it comes, with lengths checked first.

No PDU's body is held but that of the few short ones: fragments of messages are handed on as they come, so that neither
the length of a PDU nor that of an instance costs memory here.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Protocol

#: Type, reserved, length (PS3.8 9.3.1).
HEADER = struct.Struct(">BxL")
#: Length, Presentation Context ID, message control header (PS3.8 9.3.5.1, E.2).
_VALUE_HEADER = struct.Struct(">LBB")

# PDU types (PS3.8 9.3.1).
ASSOCIATE_RQ, ASSOCIATE_AC, ASSOCIATE_RJ, P_DATA, RELEASE_RQ, RELEASE_RP, ABORT = range(1, 8)

#: An A-ASSOCIATE-RQ without any item (PS3.8 Table 9-11).
MIN_REQUEST_BYTES = 68
#: Body of A-ASSOCIATE-RJ, A-RELEASE-RQ, A-RELEASE-RP and A-ABORT (PS3.8 9.3.4, 9.3.6 to 9.3.8).
_SHORT_BYTES = 4
#: Headers and pieces that are taken apart at one go: fragments of no bytes at all cost time too, everybody's.
STEPS = 128


class Malformed(Exception):  # noqa: N818 - named after what came
    """A PDU breaks PS3.8 9.3; `is_pdu` tells whether its type is that of a PDU at all."""

    def __init__(self, words: str, *, is_pdu: bool = True) -> None:
        super().__init__(words)
        self.is_pdu = is_pdu


@dataclass(frozen=True)
class Lengths:
    """Longest bodies: of an A-ASSOCIATE-RQ, and of a P-DATA-TF as it was advertised (PS3.8 D.1), in bytes."""

    request_bytes: int = 262144
    data_bytes: int = 131072


class Sink(Protocol):
    """Whom the pieces are handed to."""

    @property
    def is_full(self) -> bool:
        """Whether nothing more is wanted for now."""

    def begins(self, kind: int) -> None:
        """Take note that a PDU of that type comes, before anything of its body is looked at."""

    def body(self, kind: int, content: bytes) -> None:
        """Take the whole body of a PDU other than P-DATA-TF."""

    def fragment(self, context_id: int, control: int, piece: memoryview, complete: bool) -> None:
        """Take the next piece of a presentation data value; `complete` with its last one."""


class Framer:
    """Where one connection's stream stands."""

    def __init__(self, sink: Sink, lengths: Lengths) -> None:
        self._sink = sink
        self._lengths = lengths
        self._header = bytearray()  # of a PDU or a presentation data value, as far as it came
        self._body: bytearray | None = None
        self._kind = 0
        self._left = 0  # bytes to come of the PDU
        self._value_left = 0  # and of the presentation data value within
        self._context_id = 0
        self._control = 0
        self._steps = 0

    @property
    def is_amid_pdu(self) -> bool:
        """Whether a PDU has begun and is not complete."""
        return bool(self._left or self._header)

    def feed(self, received: memoryview) -> int:
        """Hand on what came; return how many bytes were taken, fewer than all where the sink is full or it is enough.

        After `STEPS` it is enough, so that no connection keeps the others waiting.

        Raises
        ------
        Malformed
            A length beyond the limits, or parts of a P-DATA-TF that do not add up.
        """
        at, end = 0, len(received)
        self._steps = STEPS
        while at < end and self._steps and not self._sink.is_full:
            self._steps -= 1
            if self._left == 0:
                at = self._pdu_header(received, at)
            elif self._body is not None:
                at = self._short_body(received, at, self._body)
            elif self._value_left == 0:
                at = self._value_header(received, at)
            else:
                at = self._fragment(received, at)
        return at

    def enough(self) -> None:
        """Let `feed` return once it has taken what it is about."""
        self._steps = 0

    def _take_header(self, received: memoryview, at: int, size: int) -> int:
        piece = received[at : at + size - len(self._header)]
        self._header += piece
        return at + len(piece)

    def _pdu_header(self, received: memoryview, at: int) -> int:
        if not self._header:
            self._check_kind(received[at])
            self._sink.begins(received[at])
            if self._sink.is_full:
                return at
        at = self._take_header(received, at, HEADER.size)
        if len(self._header) == HEADER.size:
            self._kind, self._left = HEADER.unpack(self._header)
            self._header.clear()
            self._check_length()
            self._body = None if self._kind == P_DATA else bytearray()
        return at

    def _check_kind(self, kind: int) -> None:
        if not ASSOCIATE_RQ <= kind <= ABORT:
            raise Malformed("bytes that are no DICOM PDU", is_pdu=False)

    def _check_length(self) -> None:
        shortest, longest = {
            ASSOCIATE_RQ: (MIN_REQUEST_BYTES, self._lengths.request_bytes),
            P_DATA: (_VALUE_HEADER.size, self._lengths.data_bytes),
        }.get(self._kind, (_SHORT_BYTES, _SHORT_BYTES))
        if not shortest <= self._left <= longest:
            length, self._left = self._left, 0
            raise Malformed(
                f"a PDU of type {self._kind} and {length} bytes, between {shortest} and {longest} are taken"
            )

    def _short_body(self, received: memoryview, at: int, body: bytearray) -> int:
        piece = received[at : at + self._left]
        body += piece
        self._left -= len(piece)
        if self._left == 0:
            self._body = None
            self._sink.body(self._kind, bytes(body))
        return at + len(piece)

    def _value_header(self, received: memoryview, at: int) -> int:
        at = self._take_header(received, at, _VALUE_HEADER.size)
        if len(self._header) == _VALUE_HEADER.size:
            length, self._context_id, self._control = _VALUE_HEADER.unpack(self._header)
            self._header.clear()
            self._left -= _VALUE_HEADER.size
            self._value_left = length - 2
            rest = self._left - self._value_left
            if self._value_left < 0 or rest < 0 or 0 < rest < _VALUE_HEADER.size:
                raise Malformed("presentation data values that do not fill their PDU")
            if self._value_left == 0:
                self._sink.fragment(self._context_id, self._control, received[at:at], True)
        return at

    def _fragment(self, received: memoryview, at: int) -> int:
        piece = received[at : at + self._value_left]
        self._value_left -= len(piece)
        self._left -= len(piece)
        self._sink.fragment(self._context_id, self._control, piece, self._value_left == 0)
        return at + len(piece)
