"""The upper layer and its messages by hand (PS3.7, PS3.8), and a sender: they share no code with the node."""

from __future__ import annotations

import io
import socket
import ssl
import struct
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydicom import Dataset
from pydicom.filereader import read_dataset
from pydicom.filewriter import dcmwrite

if TYPE_CHECKING:
    from collections.abc import Iterable

CT = "1.2.840.10008.5.1.4.1.1.2"
#: Storage Commitment Push Model, and its well-known instance (PS3.4 J.3).
COMMITMENT, COMMITMENT_INSTANCE = "1.2.840.10008.1.20.1", "1.2.840.10008.1.20.1.1"
IMPLICIT, EXPLICIT = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1"
#: Longest PDUs that a peer here takes, and sends unless told otherwise.
PDU_BYTES = 16_384
#: Longest wait for anything a peer says.
PATIENCE_SECONDS = 60.0

ASSOCIATE_RQ, ASSOCIATE_AC, ASSOCIATE_RJ, P_DATA, RELEASE_RQ, RELEASE_RP, ABORT = range(1, 8)
#: Command Field (0000,0100), PS3.7 E.1; a response has the bit 0x8000 as well.
C_STORE, C_FIND, N_EVENT_REPORT, N_ACTION, RESPONSE = 0x0001, 0x0020, 0x0100, 0x0130, 0x8000
#: Command Data Set Type (0000,0800) of a message without a data set.
NO_DATA_SET = 0x0101
_NO_DATA = struct.pack("<H", NO_DATA_SET)


class Gone(RuntimeError):  # noqa: N818 - said of the other side
    """The other side closed, aborted or rejected; `pdu_type` says how, 0 where the connection just ended."""

    def __init__(self, pdu_type: int = 0) -> None:
        super().__init__(f"PDU type {pdu_type}" if pdu_type else "connection closed")
        self.pdu_type = pdu_type


def item(kind: int, value: bytes) -> bytes:
    return struct.pack(">BxH", kind, len(value)) + value


def pdu(kind: int, body: bytes) -> bytes:
    return struct.pack(">BxL", kind, len(body)) + body


def read_pdu(connection: socket.socket) -> tuple[int, bytes]:
    """Return type and body of the next PDU; `Gone` where there is none."""
    kind, length = struct.unpack(">BxL", _read(connection, 6))
    return kind, _read(connection, length)


def _read(connection: socket.socket, count: int) -> bytes:
    found = bytearray()
    while len(found) < count:
        try:
            piece = connection.recv(min(65536, count - len(found)))
        except OSError:
            raise Gone from None
        if not piece:
            raise Gone
        found += piece
    return bytes(found)


def command_set(**words: int | str) -> bytes:
    """Encode a command set (PS3.7 6.3.1); keys are ``c`` and the element's four hex digits."""
    elements = b""
    for key, value in sorted(words.items()):
        raw = struct.pack("<H", value) if isinstance(value, int) else value.encode() + b"\0" * (len(value) % 2)
        elements += struct.pack("<HHL", 0, int(key[1:], 16), len(raw)) + raw
    return struct.pack("<HHLL", 0, 0, 4, len(elements)) + elements


def read_command(raw: bytes) -> dict[int, bytes]:
    """Return element number -> value of a command set."""
    found, at = {}, 0
    while at + 8 <= len(raw):
        _, element, length = struct.unpack_from("<HHL", raw, at)
        found[element] = raw[at + 8 : at + 8 + length]
        at += 8 + length
    return found


def p_data(context_id: int, raw: bytes, *, is_command: bool, pdu_bytes: int = PDU_BYTES) -> bytes:
    """Return the P-DATA-TF PDUs of one command or data set, none longer than so many bytes."""
    found, room = b"", pdu_bytes - 12
    for start in range(0, len(raw), room):
        piece = raw[start : start + room]
        control = is_command | (2 if start + room >= len(raw) else 0)
        found += pdu(P_DATA, struct.pack(">LBB", len(piece) + 2, context_id, control) + piece)
    return found


@dataclass(frozen=True)
class Message:
    """A whole DIMSE message: its presentation context, command set and encoded data set."""

    context_id: int
    command: dict[int, bytes]
    data_set: bytes

    def number(self, element: int) -> int:
        """Return an element of VR US."""
        return int(struct.unpack("<H", self.command[element])[0])

    def uid(self, element: int) -> str:
        """Return an element of VR UI."""
        return self.command[element].rstrip(b"\0").decode()


def read_message(connection: socket.socket) -> Message | int:
    """Return the next message, or the type of a PDU that is none; `Gone` where the connection ended."""
    command, data_set, context_id = b"", bytearray(), 0
    while True:
        kind, body = read_pdu(connection)
        if kind != P_DATA:
            return kind
        at, is_whole = 0, False
        while at < len(body):
            length, context_id, control = struct.unpack_from(">LBB", body, at)
            piece = body[at + 6 : at + 4 + length]
            at += 4 + length
            if control & 1:
                command += piece
            else:
                data_set += piece
            is_whole = control == 2 or (control == 3 and read_command(command)[0x0800] == _NO_DATA)
        if is_whole:
            return Message(context_id, read_command(command), bytes(data_set))


def encoded(ds: Dataset, transfer_syntax_uid: str) -> bytes:
    """Return a data set without file meta."""
    raw = io.BytesIO()
    implicit = transfer_syntax_uid == IMPLICIT
    dcmwrite(raw, ds, implicit_vr=implicit, little_endian=True, enforce_file_format=False)
    return raw.getvalue()


def decoded(raw: bytes, transfer_syntax_uid: str) -> Dataset:
    """Read a data set without file meta."""
    return read_dataset(io.BytesIO(raw), transfer_syntax_uid == IMPLICIT, is_little_endian=True)


def references(named: Iterable[tuple[str, str]]) -> list[Dataset]:
    """Return the items of a sequence that names instances by SOP Class UID and SOP Instance UID."""
    items = []
    for sop_class, uid in named:
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, uid
        items.append(item)
    return items


def associate_rq(called: str, calling: str, contexts: Iterable[tuple[int, str]], roles: bytes = b"") -> bytes:
    """Return an A-ASSOCIATE-RQ that proposes SOP classes by context ID, in Explicit VR Little Endian."""
    body = struct.pack(">Hxx16s16s32x", 1, called.encode().ljust(16), calling.encode().ljust(16))
    body += item(0x10, b"1.2.840.10008.3.1.1.1")
    for number, sop_class in contexts:
        context = item(0x30, sop_class.encode()) + item(0x40, EXPLICIT.encode())
        body += item(0x20, bytes((number, 0, 0, 0)) + context)
    user = item(0x51, struct.pack(">L", PDU_BYTES)) + item(0x52, b"2.25.1") + roles
    return pdu(ASSOCIATE_RQ, body + item(0x50, user))


class Sender:
    """One association that sends CT images; `Gone` from any call means that nobody answers any more.

    Parameters
    ----------
    port
        Of the receiver, on loopback.
    called, calling
        AE titles.
    tls
        How TLS is spoken; None for the port without.
    pdu_bytes
        Longest PDU that it sends.
    """

    def __init__(
        self,
        port: int,
        called: str = "PACS_AI",
        calling: str = "SENDER",
        tls: ssl.SSLContext | None = None,
        pdu_bytes: int = PDU_BYTES,
    ) -> None:
        self._pdu_bytes = pdu_bytes
        try:
            self._connection = socket.create_connection(("127.0.0.1", port), PATIENCE_SECONDS)
            self._connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if tls is not None:
                self._connection = tls.wrap_socket(self._connection, server_hostname="127.0.0.1")
        except ssl.SSLCertVerificationError:
            raise
        except OSError:
            raise Gone from None
        self._messages = 0
        self._say(associate_rq(called, calling, ((1, CT), (3, COMMITMENT))))
        self._hear(ASSOCIATE_AC)

    def store(self, uid: str, data_set: bytes) -> int:
        """Send one instance and return the status of the response (PS3.7 9.3.1.2) that belongs to it."""
        self._messages += 1
        command = command_set(c0002=CT, c0100=C_STORE, c0110=self._messages, c0700=0, c0800=0, c1000=uid)
        return self._ask(1, uid, command, data_set)

    def commit(self, transaction_uid: str, uids: Iterable[str]) -> int:
        """Ask the receiver to keep CT images (N-ACTION, PS3.4 J.3.2), and return the status of its response."""
        self._messages += 1
        asked = Dataset()
        asked.TransactionUID = transaction_uid
        asked.ReferencedSOPSequence = references((CT, uid) for uid in uids)
        command = command_set(
            c0003=COMMITMENT, c0100=N_ACTION, c0110=self._messages, c0800=0, c1001=COMMITMENT_INSTANCE, c1008=1
        )
        return self._ask(3, COMMITMENT_INSTANCE, command, encoded(asked, EXPLICIT))

    def _ask(self, context_id: int, uid: str, command: bytes, data_set: bytes) -> int:
        self._say(
            p_data(context_id, command, is_command=True)
            + p_data(context_id, data_set, is_command=False, pdu_bytes=self._pdu_bytes)
        )
        answer = read_command(self._hear(P_DATA)[6:])
        assert struct.unpack("<H", answer[0x0120])[0] == self._messages, "the response to another request"
        assert answer.get(0x1000, uid.encode()).rstrip(b"\0").decode() == uid, "the response for another instance"
        return int(struct.unpack("<H", answer[0x0900])[0])

    def release(self) -> None:
        """End the association as the Standard wants it."""
        try:
            self._say(pdu(RELEASE_RQ, bytes(4)))
            self._hear(RELEASE_RP)
        finally:
            self.close()

    def abort(self) -> None:
        """End the association at once."""
        with suppress(Gone):
            self._say(pdu(ABORT, bytes(4)))
        self.close()

    def close(self) -> None:
        self._connection.close()

    def _say(self, raw: bytes) -> None:
        try:
            self._connection.sendall(raw)
        except OSError:
            self.close()
            raise Gone from None

    def _hear(self, wanted: int) -> bytes:
        try:
            kind, body = read_pdu(self._connection)
        except Gone:
            self.close()
            raise
        if kind != wanted:
            self.close()
            raise Gone(kind)
        return body
