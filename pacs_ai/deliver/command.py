"""The command sets of the services used: what is asked of a peer, and what it answered (PS3.7 9.3, 10.3, Annex E)."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

COMMAND_GROUP_LENGTH = 0x0000_0000
AFFECTED_SOP_CLASS_UID = 0x0000_0002
REQUESTED_SOP_CLASS_UID = 0x0000_0003
COMMAND_FIELD = 0x0000_0100
MESSAGE_ID = 0x0000_0110
MESSAGE_ID_BEING_RESPONDED_TO = 0x0000_0120
PRIORITY = 0x0000_0700
COMMAND_DATA_SET_TYPE = 0x0000_0800
STATUS = 0x0000_0900
ERROR_COMMENT = 0x0000_0902
AFFECTED_SOP_INSTANCE_UID = 0x0000_1000
REQUESTED_SOP_INSTANCE_UID = 0x0000_1001
EVENT_TYPE_ID = 0x0000_1002
ACTION_TYPE_ID = 0x0000_1008

# Command Field, PS3.7 Table E.1-1.
C_STORE_RQ = 0x0001
C_FIND_RQ = 0x0020
C_ECHO_RQ = 0x0030
N_EVENT_REPORT_RQ = 0x0100
N_ACTION_RQ = 0x0130
RESPONSE = 0x8000

# Command Data Set Type, PS3.7 E.1.
NO_DATA_SET = 0x0101
DATA_SET = 0x0001

MEDIUM_PRIORITY = 0x0000


@dataclass(frozen=True)
class Answer:
    """A response: whose it is, and what it says; or a request of the peer's own.

    Parameters
    ----------
    command
        Command Field (0000,0100), 0x8001 for C-STORE-RSP.
    message_id
        Message ID Being Responded To (0000,0120).
    status
        Status (0000,0900), None where the peer left it out.
    sop_class_uid, sop_instance_uid
        As affected; "" where the peer left them out, which PS3.7 9.3.1.2 allows.
    comment
        Error Comment (0000,0902), printable ASCII only. It is the peer's text and may name a patient: for no log.
    has_data_set
        A data set follows.
    own_message_id, type_id
        Message ID (0000,0110) and Event Type ID (0000,1002), of a request.
    """

    command: int
    message_id: int | None
    status: int | None
    sop_class_uid: str
    sop_instance_uid: str
    comment: str
    has_data_set: bool
    own_message_id: int | None = None
    type_id: int | None = None


def encode(elements: Mapping[int, int | str]) -> bytes:
    """Return a command set, Implicit VR Little Endian with its group length (PS3.7 6.3.1); int is US, str is UI."""
    body = b"".join(_element(tag, elements[tag]) for tag in sorted(elements))
    return struct.pack("<HHLL", 0, 0, 4, len(body)) + body


def c_store_request(message_id: int, sop_class_uid: str, sop_instance_uid: str) -> bytes:
    """Return the command set of C-STORE-RQ (PS3.7 Table 9.3-1)."""
    return encode(
        {
            AFFECTED_SOP_CLASS_UID: sop_class_uid,
            COMMAND_FIELD: C_STORE_RQ,
            MESSAGE_ID: message_id,
            PRIORITY: MEDIUM_PRIORITY,
            COMMAND_DATA_SET_TYPE: DATA_SET,
            AFFECTED_SOP_INSTANCE_UID: sop_instance_uid,
        }
    )


def c_echo_request(message_id: int, sop_class_uid: str) -> bytes:
    """Return the command set of C-ECHO-RQ (PS3.7 Table 9.3-12)."""
    return encode(
        {
            AFFECTED_SOP_CLASS_UID: sop_class_uid,
            COMMAND_FIELD: C_ECHO_RQ,
            MESSAGE_ID: message_id,
            COMMAND_DATA_SET_TYPE: NO_DATA_SET,
        }
    )


def c_find_request(message_id: int, sop_class_uid: str) -> bytes:
    """Return the command set of C-FIND-RQ (PS3.7 Table 9.3-3)."""
    return encode(
        {
            AFFECTED_SOP_CLASS_UID: sop_class_uid,
            COMMAND_FIELD: C_FIND_RQ,
            MESSAGE_ID: message_id,
            PRIORITY: MEDIUM_PRIORITY,
            COMMAND_DATA_SET_TYPE: DATA_SET,
        }
    )


def n_action_request(message_id: int, sop_class_uid: str, sop_instance_uid: str, action_type_id: int) -> bytes:
    """Return the command set of N-ACTION-RQ (PS3.7 Table 10.3-7)."""
    return encode(
        {
            REQUESTED_SOP_CLASS_UID: sop_class_uid,
            COMMAND_FIELD: N_ACTION_RQ,
            MESSAGE_ID: message_id,
            COMMAND_DATA_SET_TYPE: DATA_SET,
            REQUESTED_SOP_INSTANCE_UID: sop_instance_uid,
            ACTION_TYPE_ID: action_type_id,
        }
    )


def n_event_report_request(message_id: int, sop_class_uid: str, sop_instance_uid: str, event_type_id: int) -> bytes:
    """Return the command set of N-EVENT-REPORT-RQ (PS3.7 Table 10.3-1)."""
    return encode(
        {
            AFFECTED_SOP_CLASS_UID: sop_class_uid,
            COMMAND_FIELD: N_EVENT_REPORT_RQ,
            MESSAGE_ID: message_id,
            COMMAND_DATA_SET_TYPE: DATA_SET,
            AFFECTED_SOP_INSTANCE_UID: sop_instance_uid,
            EVENT_TYPE_ID: event_type_id,
        }
    )


def n_event_report_response(request: Answer, status: int) -> bytes:
    """Return the command set of N-EVENT-REPORT-RSP (PS3.7 Table 10.3-2)."""
    return encode(
        {
            AFFECTED_SOP_CLASS_UID: request.sop_class_uid,
            COMMAND_FIELD: N_EVENT_REPORT_RQ | RESPONSE,
            MESSAGE_ID_BEING_RESPONDED_TO: request.own_message_id or 0,
            COMMAND_DATA_SET_TYPE: NO_DATA_SET,
            STATUS: status,
            AFFECTED_SOP_INSTANCE_UID: request.sop_instance_uid,
        }
    )


def decode(encoded: bytes) -> Answer:
    """Return what a response says.

    Raises
    ------
    ValueError
        The bytes are no command set, or have no Command Field.
    """
    elements = _elements(encoded)
    command = _number(elements, COMMAND_FIELD)
    if command is None:
        raise ValueError("the command set has no Command Field")
    data_set_type = _number(elements, COMMAND_DATA_SET_TYPE)
    return Answer(
        command=command,
        message_id=_number(elements, MESSAGE_ID_BEING_RESPONDED_TO),
        status=_number(elements, STATUS),
        sop_class_uid=_text(elements, AFFECTED_SOP_CLASS_UID),
        sop_instance_uid=_text(elements, AFFECTED_SOP_INSTANCE_UID),
        comment=_text(elements, ERROR_COMMENT),
        has_data_set=data_set_type not in {None, NO_DATA_SET},
        own_message_id=_number(elements, MESSAGE_ID),
        type_id=_number(elements, EVENT_TYPE_ID),
    )


def _element(tag: int, value: int | str) -> bytes:
    raw = struct.pack("<H", value) if isinstance(value, int) else value.encode("ascii")
    raw += b"\0" * (len(raw) % 2)
    return struct.pack("<HHL", tag >> 16, tag & 0xFFFF, len(raw)) + raw


def _elements(encoded: bytes) -> dict[int, bytes]:
    elements: dict[int, bytes] = {}
    position = 0
    while position < len(encoded):
        if position + 8 > len(encoded):
            raise ValueError("the command set ends within an element")
        group, number, length = struct.unpack_from("<HHL", encoded, position)
        position += 8
        if group != 0 or position + length > len(encoded):
            raise ValueError("the command set has an element of another group or of an impossible length")
        elements[number] = encoded[position : position + length]
        position += length
    return elements


def _number(elements: Mapping[int, bytes], tag: int) -> int | None:
    raw = elements.get(tag, b"")
    return int.from_bytes(raw, "little") if len(raw) == 2 else None


def _text(elements: Mapping[int, bytes], tag: int) -> str:
    raw = elements.get(tag, b"").rstrip(b"\0 ")[:64]
    return "".join(chr(octet) if 0x20 <= octet < 0x7F else f"\\x{octet:02X}" for octet in raw)
