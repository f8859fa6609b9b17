"""Take C-STORE requests apart and answer them in the thread that reads them, leaving every other message to pynetdicom.

pynetdicom hands each message to a second thread that looks for it a thousand times a second, and encodes a response
through data set objects: some 2 ms of interpreter time for one slice. Here one slice costs a tenth of that, and an
idle association next to nothing. A peer that sends the next request before it has its answer is not read meanwhile.
"""

from __future__ import annotations

import queue
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.pdu_primitives import P_DATA

if TYPE_CHECKING:
    from pynetdicom.association import Association

#: Longest command set; the longest that the Standard needs is below 1 KiB.
MAX_COMMAND_BYTES = 16384

_C_STORE_RQ = 0x0001
_C_STORE_RSP = 0x8001
_NO_DATA_SET = 0x0101
_COMMAND, _LAST = 1, 2  # bits of the message control header (PS3.8 E.2)

# Elements of group 0000 (PS3.7 E.1).
_GROUP_LENGTH = 0x0000
_AFFECTED_SOP_CLASS_UID = 0x0002
_COMMAND_FIELD = 0x0100
_MESSAGE_ID = 0x0110
_MESSAGE_ID_RESPONDED_TO = 0x0120
_PRIORITY = 0x0700
_COMMAND_DATA_SET_TYPE = 0x0800
_STATUS = 0x0900
_ERROR_COMMENT = 0x0902
_AFFECTED_SOP_INSTANCE_UID = 0x1000

#: How long the association's own thread sleeps when there is nothing for it, in seconds.
_REST_SECONDS = 0.25


class ProtocolFault(Exception):  # noqa: N818 - named after what the peer did
    """The peer broke PS3.7 or PS3.8; the association has to be aborted."""


@dataclass(frozen=True)
class StoreRequest:
    """One C-STORE-RQ (PS3.7 9.3.1.1), its text as it came without padding.

    Parameters
    ----------
    abstract_syntax, transfer_syntax
        Of the presentation context it came over.
    data_set
        Encoded; None where it was longer than the limit, and thrown away.
    """

    context_id: int
    abstract_syntax: str
    transfer_syntax: str
    message_id: int
    sop_class_uid: str
    sop_instance_uid: str
    priority: int
    data_set: bytes | None


@dataclass(frozen=True)
class Answer:
    """Status (0000,0900) and Error Comment (0000,0902), "" for none, of a response."""

    status: int
    comment: str = ""


Serve = Callable[["Association", StoreRequest], Answer]


class Dimse(DIMSEServiceProvider):  # type: ignore[misc]
    """The message layer of one association.

    Parameters
    ----------
    assoc
        Whose it is.
    serve
        Answers a C-STORE; called in the reading thread, must not raise.
    instance_bytes
        Longest data set that is kept.
    """

    def __init__(self, assoc: Association, serve: Serve, instance_bytes: int) -> None:
        super().__init__(assoc)
        self._serve = serve
        self._instance_bytes = instance_bytes
        self._contexts: dict[int, Any] = {}
        self._command = bytearray()
        self._head: dict[int, bytes] | None = None
        self._context_id = 0
        self._pieces: list[memoryview] | None = []
        self._length = 0
        self._is_foreign = False

    @property
    def is_amid_message(self) -> bool:
        """Tell whether a message has begun and is not complete."""
        return bool(self._command) or self._head is not None or self._is_foreign

    def receive_primitive(self, primitive: P_DATA) -> None:
        """Take the fragments of a P-DATA indication; abort where they break the protocol."""
        try:
            for context_id, fragment in primitive.presentation_data_value_list:
                self._take(context_id, fragment)
        except ProtocolFault:
            self.dul.socket.cut(6)

    def get_msg(self, block: bool = False) -> Any:
        """Return the next message of another kind; sleeps a little where pynetdicom would look again and again."""
        if block:
            return super().get_msg(block)
        try:
            return self.msg_queue.get(timeout=_REST_SECONDS)
        except queue.Empty:
            return None, None

    def _take(self, context_id: int, fragment: bytes) -> None:
        """Take one presentation data value: message control header and fragment (PS3.8 E.2)."""
        control = fragment[0] if fragment else -1
        if control < 0 or (self._head is not None or self._is_foreign) == bool(control & _COMMAND):
            raise ProtocolFault("a fragment out of turn")
        if self._is_foreign:
            self._pass_on(context_id, fragment, ends=bool(control & _LAST))
        elif control & _COMMAND:
            self._command += fragment[1:]
            if len(self._command) > MAX_COMMAND_BYTES:
                raise ProtocolFault("an endless command set")
            if control & _LAST:
                self._begin(context_id)
        else:
            self._append(memoryview(fragment)[1:])
            if control & _LAST:
                self._finish()

    def _begin(self, context_id: int) -> None:
        """Look at a whole command set: keep it where it is a C-STORE-RQ, pass it on where not."""
        command, self._command = bytes(self._command), bytearray()
        head = parse_command(command)
        has_data_set = _word(head, _COMMAND_DATA_SET_TYPE) != _NO_DATA_SET
        if _word(head, _COMMAND_FIELD) == _C_STORE_RQ and has_data_set:
            self._head, self._context_id, self._pieces, self._length = head, context_id, [], 0
        else:
            self._pass_on(context_id, bytes((_COMMAND | _LAST,)) + command, ends=not has_data_set)

    def _append(self, piece: memoryview) -> None:
        self._length += len(piece)
        if self._length > self._instance_bytes:
            self._pieces = None
        elif self._pieces is not None:
            self._pieces.append(piece)

    def _finish(self) -> None:
        """Serve the C-STORE that is now whole, and send the response."""
        head, pieces = self._head, self._pieces
        assert head is not None
        self._head, self._pieces = None, []
        if not self._contexts:
            self._contexts = {context.context_id: context for context in self.assoc.accepted_contexts}
        if self._context_id not in self._contexts:
            raise ProtocolFault("a presentation context that was not accepted")
        context = self._contexts[self._context_id]
        request = StoreRequest(
            context_id=self._context_id,
            abstract_syntax=str(context.abstract_syntax),
            transfer_syntax=str(context.transfer_syntax[0]),
            message_id=_word(head, _MESSAGE_ID),
            sop_class_uid=_text(head, _AFFECTED_SOP_CLASS_UID),
            sop_instance_uid=_text(head, _AFFECTED_SOP_INSTANCE_UID),
            priority=_word(head, _PRIORITY) if _PRIORITY in head else 0,
            data_set=None if pieces is None else b"".join(pieces),
        )
        del pieces
        answer = self._serve(self.assoc, request)
        command = encode_response(request, head, answer)
        self.dul.socket.send(fragments(command, self._context_id, self.maximum_pdu_size))

    def _pass_on(self, context_id: int, fragment: bytes, *, ends: bool) -> None:
        primitive = P_DATA()
        primitive.presentation_data_value_list = [[context_id, fragment]]
        self._is_foreign = not ends
        super().receive_primitive(primitive)


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


def encode_response(request: StoreRequest, head: dict[int, bytes], answer: Answer) -> bytes:
    """Return the command set of a C-STORE-RSP (PS3.7 9.3.1.2) to a request whose command set is `head`."""
    elements = {
        _AFFECTED_SOP_CLASS_UID: head.get(_AFFECTED_SOP_CLASS_UID, b""),
        _COMMAND_FIELD: struct.pack("<H", _C_STORE_RSP),
        _MESSAGE_ID_RESPONDED_TO: struct.pack("<H", request.message_id),
        _COMMAND_DATA_SET_TYPE: struct.pack("<H", _NO_DATA_SET),
        _STATUS: struct.pack("<H", answer.status),
        _ERROR_COMMENT: answer.comment.encode("ascii")[:64],
        _AFFECTED_SOP_INSTANCE_UID: head.get(_AFFECTED_SOP_INSTANCE_UID, b""),
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
    room = (maximum_length or 1 << 16) - 6
    if room < 1:
        raise ProtocolFault("a maximum length that nothing fits into")
    pieces = [command[start : start + room] for start in range(0, len(command), room)]
    controls = [_COMMAND] * (len(pieces) - 1) + [_COMMAND | _LAST]
    return b"".join(
        struct.pack(">BxLLBB", 0x04, len(piece) + 6, len(piece) + 2, context_id, control) + piece
        for piece, control in zip(pieces, controls, strict=True)
    )


def _element(number: int, value: bytes) -> bytes:
    value += b" " * (len(value) % 2)
    return struct.pack("<HHL", 0, number, len(value)) + value


def _word(head: dict[int, bytes], number: int) -> int:
    value = head.get(number, b"")
    if len(value) != 2:
        raise ProtocolFault(f"element (0000,{number:04X}) is not two bytes long")
    return value[0] | value[1] << 8


def _text(head: dict[int, bytes], number: int) -> str:
    return head.get(number, b"").decode("latin-1").rstrip("\0 ")
