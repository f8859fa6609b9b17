"""The upper layer and C-STORE by hand (PS3.7, PS3.8): a sender and a keeper that share no code with the node."""

from __future__ import annotations

import socket
import ssl
import struct
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

CT = "1.2.840.10008.5.1.4.1.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"
PDU_BYTES = 16_384
#: Longest wait for anything a peer says.
PATIENCE_SECONDS = 60.0

ASSOCIATE_RQ, ASSOCIATE_AC, ASSOCIATE_RJ, P_DATA, RELEASE_RQ, RELEASE_RP, ABORT = range(1, 8)


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


def p_data(context_id: int, raw: bytes, *, is_command: bool) -> bytes:
    """Return the P-DATA-TF PDUs of one command or data set."""
    found, room = b"", PDU_BYTES - 12
    for start in range(0, len(raw), room):
        piece = raw[start : start + room]
        control = is_command | (2 if start + room >= len(raw) else 0)
        found += pdu(P_DATA, struct.pack(">LBB", len(piece) + 2, context_id, control) + piece)
    return found


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
    """

    def __init__(
        self, port: int, called: str = "PACS_AI", calling: str = "SENDER", tls: ssl.SSLContext | None = None
    ) -> None:
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
        context = bytes((1, 0, 0, 0)) + item(0x30, CT.encode()) + item(0x40, EXPLICIT.encode())
        user = item(0x51, struct.pack(">L", PDU_BYTES)) + item(0x52, b"2.25.1")
        body = struct.pack(">Hxx16s16s32x", 1, called.encode().ljust(16), calling.encode().ljust(16))
        body += item(0x10, b"1.2.840.10008.3.1.1.1") + item(0x20, context) + item(0x50, user)
        self._say(pdu(ASSOCIATE_RQ, body))
        self._hear(ASSOCIATE_AC)

    def store(self, uid: str, data_set: bytes) -> int:
        """Send one instance and return the status of the response (PS3.7 9.3.1.2) that belongs to it."""
        self._messages += 1
        command = command_set(c0002=CT, c0100=1, c0110=self._messages, c0700=0, c0800=0, c1000=uid)
        self._say(p_data(1, command, is_command=True) + p_data(1, data_set, is_command=False))
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


class Keeper:
    """A destination on loopback that accepts whatever is proposed and answers Success to all of it.

    Parameters
    ----------
    keep
        Called with SOP Instance UID, transfer syntax UID and data set, before the answer.
    answered
        Called with the SOP Instance UID, after the answer.
    broken
        Called with the error, where what came was not understood.
    """

    def __init__(
        self,
        keep: Callable[[str, str, bytes], object],
        answered: Callable[[str], object],
        broken: Callable[[Exception], object],
    ) -> None:
        self._keep, self._answered, self._broken = keep, answered, broken
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._serve, name="keeper", daemon=True).start()

    def close(self) -> None:
        """Listen no longer."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._talk, args=(connection,), daemon=True).start()

    def _talk(self, connection: socket.socket) -> None:
        try:
            self._converse(connection)
        except Exception as error:  # noqa: BLE001 - the outermost frame of a thread
            self._broken(error)

    def _converse(self, connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with connection, suppress(Gone, OSError):
            kind, body = read_pdu(connection)
            contexts, answer = _accept(body)
            connection.sendall(answer)
            command, data_set = b"", bytearray()
            while True:
                kind, body = read_pdu(connection)
                if kind == RELEASE_RQ:
                    connection.sendall(pdu(RELEASE_RP, bytes(4)))
                if kind != P_DATA:
                    return
                at = 0
                while at < len(body):
                    length, context_id, control = struct.unpack_from(">LBB", body, at)
                    piece = body[at + 6 : at + 4 + length]
                    at += 4 + length
                    if control & 1:
                        command += piece
                    else:
                        data_set += piece
                    if control == 2:
                        self._store(connection, context_id, contexts[context_id], command, bytes(data_set))
                        command, data_set = b"", bytearray()

    def _store(self, connection: socket.socket, context_id: int, syntax: str, raw: bytes, data_set: bytes) -> None:
        request = read_command(raw)
        uid, sop_class = (request[number].rstrip(b"\0").decode() for number in (0x1000, 0x0002))
        self._keep(uid, syntax, data_set)
        message = struct.unpack("<H", request[0x0110])[0]
        answer = command_set(c0002=sop_class, c0100=0x8001, c0120=message, c0800=0x0101, c0900=0, c1000=uid)
        connection.sendall(p_data(context_id, answer, is_command=True))
        self._answered(uid)


def _accept(request: bytes) -> tuple[dict[int, str], bytes]:
    """Return context ID -> transfer syntax, the first proposed, and the A-ASSOCIATE-AC that says so."""
    contexts, answer, at = {}, b"", 68
    while at + 4 <= len(request):
        kind, length = struct.unpack_from(">BxH", request, at)
        value = request[at + 4 : at + 4 + length]
        at += 4 + length
        if kind != 0x20:
            continue
        inner = 4
        while inner + 4 <= len(value):
            sub, size = struct.unpack_from(">BxH", value, inner)
            if sub == 0x40:
                syntax = value[inner + 4 : inner + 4 + size]
                contexts[value[0]] = syntax.rstrip(b"\0").decode()
                answer += item(0x21, bytes((value[0], 0, 0, 0)) + item(0x40, syntax))
                break
            inner += 4 + size
    user = item(0x51, struct.pack(">L", PDU_BYTES)) + item(0x52, b"2.25.2")
    body = request[:68] + item(0x10, b"1.2.840.10008.3.1.1.1") + answer + item(0x50, user)
    return contexts, pdu(ASSOCIATE_AC, body)
