"""Put DIMSE messages together from their fragments, and encode the responses (PS3.7 chapters 6, 9 and 10; PS3.8 E)."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from pacs_ai.receive.framing import P_DATA

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pacs_ai.receive.service import Answer

#: Longest command set; the longest that the Standard needs is below 1 KiB.
MAX_COMMAND_BYTES = 16384
#: Longest P-DATA-TF that is sent to a peer that would take any length.
MAX_SENT_BYTES = 131072
_VALUE_HEADER_BYTES = 6

C_STORE_RQ, C_ECHO_RQ, C_CANCEL_RQ = 0x0001, 0x0030, 0x0FFF
_RESPONSE = 0x8000
_NO_DATA_SET = 0x0101
_COMMAND, _LAST = 1, 2  # bits of the message control header (PS3.8 E.2)

# Elements of group 0000 (PS3.7 E.1).
_GROUP_LENGTH = 0x0000
_AFFECTED_SOP_CLASS_UID, _REQUESTED_SOP_CLASS_UID = 0x0002, 0x0003
_COMMAND_FIELD = 0x0100
_MESSAGE_ID = 0x0110
_MESSAGE_ID_RESPONDED_TO = 0x0120
_PRIORITY = 0x0700
_COMMAND_DATA_SET_TYPE = 0x0800
_STATUS = 0x0900
_ERROR_COMMENT = 0x0902
_AFFECTED_SOP_INSTANCE_UID, _REQUESTED_SOP_INSTANCE_UID = 0x1000, 0x1001
_EVENT_TYPE_ID, _ACTION_TYPE_ID = 0x1002, 0x1008


class ProtocolFault(Exception):  # noqa: N818 - named after what the peer did
    """The peer broke PS3.7 or PS3.8; the association has to be aborted."""


@dataclass(frozen=True)
class Context:
    """A presentation context that was accepted: its ID, and what it was agreed for."""

    context_id: int
    abstract_syntax: str
    transfer_syntax: str


@dataclass(frozen=True)
class Command:
    """The command set of one request, its text as it came without padding.

    Parameters
    ----------
    context
        It came over.
    elements
        Element number -> value, of group 0000.
    """

    context: Context
    elements: Mapping[int, bytes]

    @property
    def field(self) -> int:
        """Command Field (0000,0100)."""
        return _word(self.elements, _COMMAND_FIELD)

    @property
    def message_id(self) -> int:
        """Message ID (0000,0110)."""
        return _word(self.elements, _MESSAGE_ID)

    @property
    def has_data_set(self) -> bool:
        """Whether a data set follows (0000,0800)."""
        return _word(self.elements, _COMMAND_DATA_SET_TYPE) != _NO_DATA_SET

    @property
    def priority(self) -> int:
        """Priority (0000,0700): 0 medium, 1 high, 2 low; medium where it is missing or empty."""
        return _word(self.elements, _PRIORITY) if self.elements.get(_PRIORITY) else 0

    @property
    def sop_class_uid(self) -> str:
        """Affected or Requested SOP Class UID, "" where there is none."""
        return self._text(_AFFECTED_SOP_CLASS_UID) or self._text(_REQUESTED_SOP_CLASS_UID)

    @property
    def sop_instance_uid(self) -> str:
        """Affected or Requested SOP Instance UID, "" where there is none."""
        return self._text(_AFFECTED_SOP_INSTANCE_UID) or self._text(_REQUESTED_SOP_INSTANCE_UID)

    @property
    def type_id(self) -> int | None:
        """Event Type ID or Action Type ID, None where there is none, or it is empty."""
        for number in (_EVENT_TYPE_ID, _ACTION_TYPE_ID):
            if self.elements.get(number):
                return _word(self.elements, number)
        return None

    def check(self) -> None:
        """Raise `ProtocolFault` where a number that the answer or a service needs is missing or is none."""
        for number in (_PRIORITY, _EVENT_TYPE_ID, _ACTION_TYPE_ID):
            if self.elements.get(number):
                _word(self.elements, number)
        if self.field != C_CANCEL_RQ:
            _word(self.elements, _MESSAGE_ID)

    def _text(self, number: int) -> str:
        return self.elements.get(number, b"").decode("latin-1").rstrip("\0 ")


class Receiving(Protocol):
    """Whom messages are handed to, as they come."""

    def requested(self, command: Command) -> None:
        """Take a whole command set; where a data set follows, `data` comes next."""

    def data(self, piece: memoryview) -> None:
        """Take a piece of the data set; it is gone after the call."""

    def complete(self) -> None:
        """Take note that the data set is whole."""


class Messages:
    """The messages of one association, from the fragments that it brings.

    Parameters
    ----------
    contexts
        Presentation Context ID -> what was accepted.
    receiving
        Whom they are handed to.
    """

    def __init__(self, contexts: Mapping[int, Context], receiving: Receiving) -> None:
        self._contexts = contexts
        self._receiving = receiving
        self._command = bytearray()
        self._command_began = False  # if only by a fragment of no bytes
        self._context_id = 0  # of the message under way
        self._data_set_follows = False

    @property
    def is_amid_message(self) -> bool:
        """Whether a message has begun and is not complete."""
        return self._command_began or self._data_set_follows

    def fragment(self, context_id: int, control: int, piece: memoryview, *, complete: bool) -> None:
        """Take the next piece of a presentation data value.

        Raises
        ------
        ProtocolFault
            It is out of turn (PS3.8 E.1), over a context that was not accepted, or of a malformed or endless command.
        """
        if self._data_set_follows == bool(control & _COMMAND):
            raise ProtocolFault("a fragment out of turn")
        if context_id not in self._contexts or (self.is_amid_message and context_id != self._context_id):
            raise ProtocolFault("a fragment over a presentation context that was not accepted, or amid another message")
        self._context_id = context_id
        is_last = complete and bool(control & _LAST)
        if not self._data_set_follows:
            self._command_began = True
            self._command += piece
            if len(self._command) > MAX_COMMAND_BYTES:
                raise ProtocolFault("an endless command set")
            if is_last:
                self._begin()
            return
        if len(piece):
            self._receiving.data(piece)
        if is_last:
            self._data_set_follows = False
            self._receiving.complete()

    def _begin(self) -> None:
        encoded = bytes(self._command)
        self._command.clear()
        self._command_began = False
        command = Command(self._contexts[self._context_id], parse_command(encoded))
        if command.field & _RESPONSE:
            raise ProtocolFault("a response to no request")
        command.check()
        self._data_set_follows = command.has_data_set
        self._receiving.requested(command)


def parse_command(command: bytes) -> dict[int, bytes]:
    """Return element number -> value of a command set: group 0000, implicit VR little endian (PS3.7 6.3.1).

    Raises
    ------
    ProtocolFault
        Another group, an element that runs beyond the end, or elements out of order.
    """
    found: dict[int, bytes] = {}
    offset, last = 0, -1
    while offset < len(command):
        if offset + 8 > len(command):
            raise ProtocolFault("a truncated command set")
        group, number, length = struct.unpack_from("<HHL", command, offset)
        offset += 8
        if group or number <= last or length > len(command) - offset:
            raise ProtocolFault("a malformed command set")
        found[number] = command[offset : offset + length]
        offset, last = offset + length, number
    return found


def encode_response(command: Command, answer: Answer) -> bytes:
    """Return the command set of the response to a request (PS3.7 9.3 and 10.3): no data set, the UIDs that it named."""
    request = command.elements
    sop_class_uid = request.get(_AFFECTED_SOP_CLASS_UID) or request.get(_REQUESTED_SOP_CLASS_UID, b"")
    sop_instance_uid = request.get(_AFFECTED_SOP_INSTANCE_UID) or request.get(_REQUESTED_SOP_INSTANCE_UID, b"")
    elements = {
        _AFFECTED_SOP_CLASS_UID: sop_class_uid,
        _COMMAND_FIELD: struct.pack("<H", command.field | _RESPONSE),
        _MESSAGE_ID_RESPONDED_TO: struct.pack("<H", command.message_id),
        _COMMAND_DATA_SET_TYPE: struct.pack("<H", _NO_DATA_SET),
        _STATUS: struct.pack("<H", answer.status),
        _ERROR_COMMENT: answer.comment.encode("ascii")[:64],
        _AFFECTED_SOP_INSTANCE_UID: sop_instance_uid,
        _EVENT_TYPE_ID: request.get(_EVENT_TYPE_ID, b""),
        _ACTION_TYPE_ID: request.get(_ACTION_TYPE_ID, b""),
    }
    body = b"".join(_element(number, value) for number, value in elements.items() if value)
    return _element(_GROUP_LENGTH, struct.pack("<L", len(body))) + body


def fragments(command: bytes, context_id: int, maximum_length: int) -> bytes:
    """Return a command set as P-DATA-TF PDUs that the peer can take (PS3.8 9.3.5); 0 is no maximum.

    Raises
    ------
    ProtocolFault
        The peer's maximum leaves no room for a single byte.
    """
    room = min(maximum_length or MAX_SENT_BYTES, MAX_SENT_BYTES) - _VALUE_HEADER_BYTES
    if room < 1:
        raise ProtocolFault("a maximum length that nothing fits into")
    pieces = [command[start : start + room] for start in range(0, len(command), room)]
    controls = [_COMMAND] * (len(pieces) - 1) + [_COMMAND | _LAST]
    return b"".join(
        struct.pack(">BxLLBB", P_DATA, len(piece) + 6, len(piece) + 2, context_id, control) + piece
        for piece, control in zip(pieces, controls, strict=True)
    )


def _element(number: int, value: bytes) -> bytes:
    value += b" " * (len(value) % 2)
    return struct.pack("<HHL", 0, number, len(value)) + value


def _word(elements: Mapping[int, bytes], number: int) -> int:
    value = elements.get(number, b"")
    if len(value) != 2:
        raise ProtocolFault(f"element (0000,{number:04X}) is not two bytes long")
    return value[0] | value[1] << 8
