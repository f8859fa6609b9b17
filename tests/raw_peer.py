"""A peer made of bytes: it sends PDUs and messages as PS3.7 and PS3.8 lay them out, right ones and wrong ones."""

from __future__ import annotations

import socket
import struct
import time
from typing import TYPE_CHECKING, Self

from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

if TYPE_CHECKING:
    from collections.abc import Sequence

VERIFICATION = "1.2.840.10008.1.1"
RQ, AC, RJ, P_DATA, RELEASE_RQ, RELEASE_RP, ABORT = range(1, 8)
#: Nothing that is waited for takes as long on a machine that is not overloaded.
PATIENCE = 60.0

Context = tuple[int, str, tuple[str, ...]]


def item(kind: int, value: bytes) -> bytes:
    """Return an item or sub-item of an association PDU (PS3.8 9.3.2)."""
    return struct.pack(">BxH", kind, len(value)) + value


def pdu(kind: int, body: bytes, length: int | None = None) -> bytes:
    """Return a PDU, its length as it is or as it is said to be."""
    return struct.pack(">BxL", kind, len(body) if length is None else length) + body


def user_information(maximum: int | None = 131072, further: bytes = b"") -> bytes:
    """Return the user information item (PS3.7 D.3.3) with a maximum length, if any."""
    length = b"" if maximum is None else item(0x51, struct.pack(">L", maximum))
    return item(0x50, length + item(0x52, b"1.2.3.4") + further)


CT_CONTEXTS: tuple[Context, ...] = (
    (1, CTImageStorage, (ExplicitVRLittleEndian,)),
    (3, VERIFICATION, (ExplicitVRLittleEndian,)),
)


def associate_rq(
    calling: bytes = b"SENDER",
    called: bytes = b"PACS_AI",
    contexts: Sequence[Context] = CT_CONTEXTS,
    users: bytes | None = None,
) -> bytes:
    """Return an A-ASSOCIATE-RQ (PS3.8 9.3.2)."""
    body = struct.pack(">Hxx16s16s32x", 1, called.ljust(16), calling.ljust(16)) + item(0x10, b"1.2.840.10008.3.1.1.1")
    for number, abstract_syntax, syntaxes in contexts:
        inner = item(0x30, abstract_syntax.encode()) + b"".join(item(0x40, each.encode()) for each in syntaxes)
        body += item(0x20, bytes((number, 0, 0, 0)) + inner)
    return pdu(RQ, body + (user_information() if users is None else users))


def pdv(body: bytes, control: int, context_id: int = 1) -> bytes:
    """Return a P-DATA-TF of one presentation data value; control 1 is a command, 2 the last fragment (PS3.8 E.2)."""
    return pdu(P_DATA, struct.pack(">LBB", len(body) + 2, context_id, control) + body)


def _element(number: int, value: bytes) -> bytes:
    value += b"\0" * (len(value) % 2)
    return struct.pack("<HHL", 0, number, len(value)) + value


def command(field: int, sop_class: str = VERIFICATION, *, message_id: int = 7, uid: str = "", has_data: bool = False):
    """Return a command set (PS3.7 6.3.1) with the fields that most requests have."""
    words = {0x0100: field, 0x0110: message_id}
    body = _element(0x0002, sop_class.encode())
    body += b"".join(_element(number, struct.pack("<H", word)) for number, word in words.items())
    body += _element(0x0700, struct.pack("<H", 0)) if field == 1 else b""
    body += _element(0x0800, struct.pack("<H", 0 if has_data else 0x0101))
    body += _element(0x1000, uid.encode()) if uid else b""
    return _element(0x0000, struct.pack("<L", len(body))) + body


def store_command(uid: str = "1.2.3", sop_class: str = CTImageStorage, message_id: int = 7) -> bytes:
    """Return the command set of a C-STORE-RQ (PS3.7 9.3.1.1)."""
    return command(0x0001, sop_class, message_id=message_id, uid=uid, has_data=True)


def store(data_set: bytes, uid: str, *, sop_class: str = CTImageStorage, message_id: int = 7, context_id: int = 1):
    """Return a whole C-STORE-RQ in fragments that fit 128 KiB."""
    pieces = [data_set[start : start + 131066] for start in range(0, len(data_set), 131066)] or [b""]
    fragments = [pdv(piece, 2 if n == len(pieces) - 1 else 0, context_id) for n, piece in enumerate(pieces)]
    return pdv(store_command(uid, sop_class, message_id), 3, context_id) + b"".join(fragments)


def echo(message_id: int = 7, context_id: int = 3) -> bytes:
    """Return a C-ECHO-RQ."""
    return pdv(command(0x0030, message_id=message_id), 3, context_id)


def _short(group: int, number: int, vr: bytes, value: bytes) -> bytes:
    value += (b"\0" if vr == b"UI" else b" ") * (len(value) % 2)
    return struct.pack("<HH2sH", group, number, vr, len(value)) + value


def data_set(
    uid: str = "1.2.3", *, sop_class: str = CTImageStorage, pixels: int = 64, patient: bytes = b"P1", more: bytes = b""
) -> bytes:
    """Return a CT slice in explicit VR little endian.

    Parameters
    ----------
    pixels
        Bytes of pixel data.
    more
        Encoded elements between groups 0028 and 7FE0.
    """
    raw = _short(8, 5, b"CS", b"ISO_IR 192") + _short(8, 0x16, b"UI", sop_class.encode())
    raw += _short(8, 0x18, b"UI", uid.encode()) + _short(8, 0x60, b"CS", b"CT")
    raw += _short(0x10, 0x10, b"PN", b"Test^Raw") + _short(0x10, 0x20, b"LO", patient)
    raw += _short(0x20, 0xD, b"UI", b"1.2.77.1") + _short(0x20, 0xE, b"UI", b"1.2.77.2") + more
    return raw + struct.pack("<HH2sHL", 0x7FE0, 0x10, b"OW", 0, pixels) + bytes(pixels)


class RawPeer:
    """A TCP connection to the node; a context manager.

    Parameters
    ----------
    port
        Of the node, on the loopback interface.
    receive_buffer
        Bytes of the kernel's buffer; None lets the kernel choose.
    address
        It calls from.
    """

    def __init__(self, port: int, *, receive_buffer: int | None = None, address: str = "127.0.0.1") -> None:
        self.socket = socket.socket()
        self.socket.bind((address, 0))
        if receive_buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(PATIENCE)
        self.socket.connect(("127.0.0.1", port))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def send(self, raw: bytes) -> None:
        """Send bytes."""
        self.socket.sendall(raw)

    def next_pdu(self) -> bytes:
        """Return the next PDU; b"" where the node closed."""
        try:
            header = self._receive(6)
            return header + self._receive(struct.unpack(">BxL", header)[1]) if header else b""
        except ConnectionResetError:
            return b""

    def _receive(self, count: int) -> bytes:
        found = b""
        while len(found) < count and (piece := self.socket.recv(count - len(found))):
            found += piece
        return found

    def associate(self, raw: bytes | None = None) -> RawPeer:
        """Ask for an association, which must be accepted."""
        self.send(associate_rq() if raw is None else raw)
        assert (answer := self.next_pdu())[:1] == bytes((AC,)), answer
        return self

    def status(self) -> int:
        """Return the Status (0000,0900) of the next response (PS3.7 C)."""
        return self.response()[0x0900]

    def response(self) -> dict[int, int]:
        """Return the words of the next response's command set by element number; fragments are put together."""
        message, control = b"", 0
        while control != 3:
            whole = self.next_pdu()
            assert whole[:1] == bytes((P_DATA,)), whole
            control = whole[11]
            message += whole[12:]
        words, at = {}, 0
        while at < len(message):
            _, number, length = struct.unpack_from("<HHL", message, at)
            if length == 2:
                (words[number],) = struct.unpack_from("<H", message, at + 8)
            at += 8 + length
        return words

    def is_closed(self) -> bool:
        """Wait for the node to close; False where it sends something first."""
        try:
            return self.socket.recv(1) == b""
        except ConnectionResetError:
            return True

    def is_aborted(self, *reasons: int) -> bool:
        """Wait for an A-ABORT of the service provider (PS3.8 9.3.8) with one of the reasons, and for the close."""
        answer = self.next_pdu()
        return answer[:1] == bytes((ABORT,)) and answer[8] == 2 and answer[9] in reasons and self.is_closed()

    def is_quiet(self) -> bool:
        """Tell that the node has neither sent anything nor closed."""
        self.socket.settimeout(0)
        try:
            self.socket.recv(1)
        except BlockingIOError:
            return True
        finally:
            self.socket.settimeout(PATIENCE)
        return False

    def release(self) -> bool:
        """Release; True where the node agreed."""
        self.send(pdu(RELEASE_RQ, bytes(4)))
        return self.next_pdu()[:1] == bytes((RELEASE_RP,))

    def reset(self) -> None:
        """Close with a RST."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def close(self) -> None:
        """Close."""
        self.socket.close()


def echo_seconds(port: int) -> float:
    """Return how long another client's C-ECHO takes, from connecting to the answer."""
    begun = time.monotonic()
    with RawPeer(port) as peer:
        peer.associate(associate_rq(calling=b"ECHOER"))
        peer.send(echo())
        assert peer.status() == 0x0000
        took = time.monotonic() - begun
        assert peer.release()
    return took
