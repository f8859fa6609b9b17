"""One association with a peer as its requestor, in which every step ends by its deadline (PS3.8).

pynetdicom's own requestor waits without limit where a peer stops reading, and takes any answer for the one it asked
for. So the connection is driven here, on a plain blocking socket: one step after the other, without threads.
"""

from __future__ import annotations

import ssl
import struct
from collections import deque
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, BinaryIO, Self

from pacs_ai import tls
from pacs_ai.deliver import command, pdus
from pacs_ai.deliver.connection import Deadline, Remote, connect
from pacs_ai.errors import BrokenOff, Unavailable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import TracebackType

    from pynetdicom.presentation import PresentationContext

#: Longest A-ASSOCIATE-AC and longest command set that are read.
MAX_ASSOCIATE_LENGTH = 65_536
MAX_COMMAND_LENGTH = 16_384
#: Longest P-DATA-TF that is sent to a peer that would take any length.
MAX_SENT_PDU = 131_072
#: Bytes that are gathered into one write.
WRITE_SIZE = 262_144
#: Bytes of a presentation data value before its fragment, PS3.8 9.3.5.1.
VALUE_HEADER = 6
#: The farewell is a courtesy; no one waits longer for it.
RELEASE_SECONDS = 5.0


class Association:
    """An established association; a context manager that releases, or aborts after an error.

    Parameters
    ----------
    remote
        The peer.
    contexts
        What is proposed, at most 128.
    serves
        SOP classes of which the node is the SCP on this association (PS3.7 D.3.3.4).

    Raises
    ------
    Unavailable
        By every method: the peer could not be reached, refused, answered nonsense, stayed silent past its limit, or
        ended the association. The message says which, for an administrator. The association is over then.
    BrokenOff
        Of these, where it had sent a PDU, and not one that rejects the association for now.
    """

    def __init__(self, remote: Remote, contexts: Sequence[PresentationContext], serves: Sequence[str] = ()) -> None:
        self.remote = remote
        self._serves = serves
        self._received: deque[tuple[int, int, bytes]] = deque()
        self._socket = connect(remote)
        #: (SOP Class UID, Transfer Syntax UID) -> Presentation Context ID, PS3.8 9.3.2.2.
        self.accepted: dict[tuple[str, str], int] = {}
        #: The same for those that were refused -> result, PS3.8 Table 9-18.
        self.refused: dict[tuple[str, str], int] = {}
        #: Released or aborted.
        self.over = False
        self._heard = False
        self._fragment_length = 0
        try:
            self._negotiate(contexts)
        except BaseException:
            self.abort()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None or kind is GeneratorExit:
            self.release()
        else:
            self.abort()

    def request(self, context_id: int, command_set: bytes) -> None:
        """Send a command set (PS3.7 6.3.1), a request or the response to one."""
        with self._explained("stopped reading"):
            self._send(
                self._data_pdus(context_id, pdus.COMMAND_FRAGMENT, command_set, last=True),
                Deadline.after(self.remote.network_seconds),
            )

    def send_data_set(self, context_id: int, file: BinaryIO, length: int) -> None:
        """Send `length` bytes of `file` from where it stands, as they are.

        Raises
        ------
        OSError
            The file could not be read, or is shorter than `length`; the association has to be aborted.
        """
        remote = self.remote
        deadline = Deadline.after(remote.network_seconds + length / remote.slowest_bytes_per_second)
        block = max(WRITE_SIZE // self._fragment_length, 1) * self._fragment_length
        while length > 0:
            chunk = file.read(min(block, length))
            if not chunk:
                raise OSError("the file is shorter than it was")
            length -= len(chunk)
            with self._explained("stopped reading"):
                self._send(self._data_pdus(context_id, 0, chunk, last=length == 0), deadline)

    def answer(self) -> tuple[int, command.Answer]:
        """Wait for the response to what was asked last and return it with its Presentation Context ID."""
        deadline = Deadline.after(self.remote.dimse_seconds)
        with self._explained(f"did not answer within {self.remote.dimse_seconds:g} s"):
            context_id, answer = self._command(deadline)
        if answer.has_data_set:
            raise self._ended("sent an answer with a data set where none belongs")
        return context_id, answer

    def message(self, seconds: float, longest: int) -> tuple[int, command.Answer, bytes]:
        """Wait so long for a response or a request, with its data set of at most `longest` bytes, b"" without one."""
        deadline = Deadline.after(seconds)
        with self._explained(f"did not answer within {seconds:g} s"):
            context_id, answer = self._command(deadline)
            return context_id, answer, self._message_part(0, longest, deadline)[1] if answer.has_data_set else b""

    def send_bytes(self, context_id: int, data_set: bytes) -> None:
        """Send a short data set."""
        with self._explained("stopped reading"):
            deadline = Deadline.after(self.remote.network_seconds)
            self._send(self._data_pdus(context_id, 0, data_set, last=True), deadline)

    def _command(self, deadline: Deadline) -> tuple[int, command.Answer]:
        context_id, encoded = self._message_part(pdus.COMMAND_FRAGMENT, MAX_COMMAND_LENGTH, deadline)
        return context_id, self._decoded(encoded)

    def _message_part(self, kind: int, longest: int, deadline: Deadline) -> tuple[int, bytes]:
        """Return a whole command set or data set, with its Presentation Context ID."""
        encoded = b""
        while True:
            while not self._received:
                self._received.extend(self._fragments(deadline))
            context_id, control, fragment = self._received.popleft()
            if control & pdus.COMMAND_FRAGMENT != kind or len(encoded) + len(fragment) > longest:
                raise self._ended("sent something else than the answer to the request")
            encoded += fragment
            if control & pdus.LAST_FRAGMENT:
                return context_id, encoded

    def release(self) -> None:
        """Ask for the release and wait a little; whatever happens now does not change what was answered before."""
        deadline = Deadline.after(min(self.remote.acse_seconds, RELEASE_SECONDS))
        with suppress(OSError, Unavailable):
            self._send([pdus.RELEASE_RQ_PDU], deadline)
            while self._pdu(deadline)[0] != pdus.RELEASE_RP:
                pass
        self._close()

    def abort(self) -> None:
        """End the association at once (PS3.8 9.3.8)."""
        with suppress(OSError):
            self._socket.settimeout(0)
            self._socket.send(pdus.ABORT_PDU)
        self._close()

    def _close(self) -> None:
        self.over = True
        self._socket.close()

    def _negotiate(self, contexts: Sequence[PresentationContext]) -> None:
        remote = self.remote
        proposed = _numbered(contexts)
        request = pdus.associate_request(
            remote.ae_title, remote.calling_ae_title, proposed, remote.maximum_pdu_size, self._serves
        )
        deadline = Deadline.after(remote.acse_seconds)
        with self._explained(f"did not answer the association request within {remote.acse_seconds:g} s"):
            self._send([request], deadline)
            kind, body = self._pdu(deadline)
        if kind == pdus.ASSOCIATE_RJ:
            self._heard = not pdus.rejects_for_now(body)
            raise self._ended(pdus.rejection_words(body, remote.ae_title, remote.calling_ae_title))
        if kind != pdus.ASSOCIATE_AC:
            raise self._ended("answered the association request with something else")
        try:
            acceptance = pdus.read_acceptance(body)
        except ValueError as error:
            raise self._ended(f"answered the association request with a malformed PDU ({error})") from error
        for context in proposed:
            self._note(context, *acceptance.contexts.get(context.context_id, (pdus.NO_REASON, "")))
        length = min(acceptance.maximum_length or MAX_SENT_PDU, MAX_SENT_PDU)
        # Even, as all lengths of a data set are (PS3.5 7.1).
        self._fragment_length = (length - VALUE_HEADER) & ~1
        if self._fragment_length <= 0:
            raise self._ended(f"takes PDUs of at most {length} bytes, which holds no data")

    def _note(self, context: PresentationContext, result: int, syntax: str) -> None:
        """Keep what the peer said to one context; it may choose only among the proposed transfer syntaxes."""
        sop_class_uid = str(context.abstract_syntax)
        if result == pdus.ACCEPTED and syntax in context.transfer_syntax:
            self.accepted[sop_class_uid, syntax] = context.context_id
            return
        for refused in context.transfer_syntax:
            self.refused[sop_class_uid, str(refused)] = result

    def _decoded(self, encoded: bytes) -> command.Answer:
        try:
            answer = command.decode(encoded)
        except ValueError as error:
            raise self._ended(f"sent an answer that cannot be read ({error})") from error
        return answer

    def _data_pdus(self, context_id: int, kind: int, content: bytes, *, last: bool) -> Iterator[bytes | memoryview]:
        return pdus.data_pdus(context_id, kind, content, self._fragment_length, last=last)

    def _send(self, parts: Iterator[bytes | memoryview] | Sequence[bytes], deadline: Deadline) -> None:
        view = memoryview(b"".join(parts))
        try:
            while view:
                self._socket.settimeout(min(deadline.left(), self.remote.network_seconds))
                view = view[self._socket.send(view) :]
        except TimeoutError:
            raise
        except OSError:
            # The peer hung up; an A-ABORT or a TLS alert that it sent before says why.
            try:
                self._pdu(Deadline.after(1.0))
            except ssl.SSLError:
                raise
            except OSError:
                pass
            raise

    def _fragments(self, deadline: Deadline) -> list[tuple[int, int, bytes]]:
        kind, body = self._pdu(deadline)
        if kind != pdus.P_DATA:
            raise self._ended("sent something else than the answer to the request")
        try:
            return pdus.read_fragments(body)
        except ValueError as error:
            raise self._ended(f"sent a malformed P-DATA-TF PDU ({error})") from error

    def _pdu(self, deadline: Deadline) -> tuple[int, bytes]:
        """Return type and body of the next PDU; one that ends the association raises Unavailable with its reason."""
        kind, length = struct.unpack(">BxL", self._receive(6, deadline))
        limits = {pdus.ASSOCIATE_AC: MAX_ASSOCIATE_LENGTH, pdus.P_DATA: self.remote.maximum_pdu_size}
        if kind not in range(pdus.ASSOCIATE_AC, pdus.ABORT + 1) or length > limits.get(kind, 4):
            raise self._ended("sent bytes that are no DICOM PDU; is the port that of a DICOM service?")
        body = self._receive(length, deadline)
        self._heard = True
        if kind == pdus.ABORT:
            raise self._ended(pdus.abort_words(body))
        if kind == pdus.RELEASE_RQ:
            self._send([pdus.RELEASE_RP_PDU], deadline)
            raise self._ended("ended the association before it had answered")
        return kind, body

    def _receive(self, count: int, deadline: Deadline) -> bytes:
        received = bytearray()
        while len(received) < count:
            self._socket.settimeout(deadline.left())
            piece = self._socket.recv(count - len(received))
            if not piece:
                raise ConnectionResetError
            received += piece
        return bytes(received)

    def _ended(self, words: str) -> Unavailable:
        return (BrokenOff if self._heard else Unavailable)(f"{self.remote} {words}")

    @contextmanager
    def _explained(self, silence: str) -> Iterator[None]:
        """Turn socket errors into words."""
        try:
            yield
        except TimeoutError as error:
            raise self._ended(silence) from error
        except ssl.SSLError as error:
            raise self._ended(f"ended the connection: {tls.fault_words(error)}") from error
        except OSError as error:
            raise self._ended("closed the connection without an answer") from error


def _numbered(contexts: Sequence[PresentationContext]) -> list[PresentationContext]:
    for number, context in enumerate(contexts):
        context.context_id = 2 * number + 1
    return list(contexts)
