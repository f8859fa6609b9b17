"""The destination of a harness: it keeps what it gets, commits to it, and may be as rude as peers are.

It is the sender's ear as well: what the node keeps of what it was sent, it says on an association of its own.
"""

from __future__ import annotations

import random
import socket
import struct
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

from pydicom import Dataset

from prove import wire
from prove.wire import COMMITMENT, COMMITMENT_INSTANCE, RESPONSE, Gone, Message, command_set, item, p_data, pdu

if TYPE_CHECKING:
    from collections.abc import Callable

#: What a rude one may do with an object, most often nothing, and with what weight; it keeps what comes after that.
_WITH_OBJECTS = {(): 85, ("refuse",): 3, ("abort",): 3, ("abort",) * 5: 3, ("mute",): 3, ("lose",): 3}
#: How it answers a request to commit.
_WITH_REQUESTS = {("here",): 40, ("elsewhere",): 30, ("first",): 10, ("never",): 10, ("abort",): 5, ("refuse",): 5}
#: Whether it breaks off a query, or the node's answer.
_WITH_OTHERS = {(): 90, ("abort",): 10}
#: One association in so many it rejects for now.
_REJECTS = 30
#: Failure Reason (0008,1197) of an instance that it has not got (PS3.3 C.14.1.1).
_NOT_THERE = 0x0112
_OUT_OF_RESOURCES, _PROCESSING_FAILURE, _PENDING = 0xA700, 0x0110, 0xFF00


class Manners:
    """What becomes of whatever the destination is asked: the best, or, where it is rude, at times the worst.

    Each object, request and study meets with a few faults at most, so that all comes to rest in the end.
    """

    def __init__(self, seed: int, *, is_rude: bool) -> None:
        self._random, self._is_rude = random.Random(seed), is_rude
        self._lock = threading.Lock()
        self._left: dict[str, list[str]] = {}

    def takes_association(self) -> bool:
        """Whether the next association is accepted."""
        with self._lock:
            return not self._is_rude or self._random.randrange(_REJECTS) > 0

    def with_object(self, uid: str) -> str:
        """Return "" where it is to be kept; else `refuse`, `abort` before it, `mute` behind it, or `lose` it."""
        return self._next(f"object {uid}", _WITH_OBJECTS)

    def with_request(self, transaction_uid: str) -> str:
        """Return how it answers: `here`, `first` (before it responds), `elsewhere`; or `never`, `abort`, `refuse`."""
        return self._next(f"request {transaction_uid}", _WITH_REQUESTS) or "here"

    def with_query(self, study: str) -> str:
        """Return "" where it is to be answered, else `abort`."""
        return self._next(f"query {study}", _WITH_OTHERS)

    def with_report(self, transaction_uid: str) -> str:
        """Return "" where the node's answer is to be taken, else `abort`."""
        return self._next(f"report {transaction_uid}", _WITH_OTHERS)

    def _next(self, name: str, choices: dict[tuple[str, ...], int]) -> str:
        if not self._is_rude:
            return ""
        with self._lock:
            if name not in self._left:
                self._left[name] = list(self._random.choices(list(choices), list(choices.values()))[0])
            left = self._left[name]
            return left.pop() if left else ""


class Keeper:
    """A destination on loopback that accepts whatever is proposed, keeps it and answers Success, its manners aside.

    Parameters
    ----------
    manners
        How it behaves.
    keep
        Called with SOP Instance UID, transfer syntax UID and data set, before the answer.
    answered
        Called with the SOP Instance UID, after the answer.
    committed
        Called with the SOP Instance UIDs that it commits to when the node has answered that Success.
    told
        Called with Transaction UID and the SOP Instance UIDs that the node keeps and does not keep of what it was sent.
    broken
        Called with the error, where what came was not understood.
    """

    def __init__(
        self,
        manners: Manners,
        *,
        keep: Callable[[str, str, bytes], object],
        answered: Callable[[str], object],
        committed: Callable[[list[str]], object],
        told: Callable[[str, list[str], list[str]], object],
        broken: Callable[[Exception], object],
    ) -> None:
        self._manners, self._keep, self._answered, self._broken = manners, keep, answered, broken
        self._committed, self._told = committed, told
        #: SOP Instance UID -> study, series and SOP class of what it has.
        self._has: dict[str, tuple[str, str, str]] = {}
        #: Of the node, for answers on associations of its own; 0 while it is not known.
        self.node_port = 0
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
            threading.Thread(target=self._guarded, args=(self._converse, connection), daemon=True).start()

    def _guarded(self, does: Callable[..., object], *arguments: object) -> None:
        try:
            with suppress(Gone, OSError):
                does(*arguments)
        except Exception as error:  # noqa: BLE001 - the outermost frame of a thread
            self._broken(error)

    def _converse(self, connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with connection:
            _, body = wire.read_pdu(connection)
            if not self._manners.takes_association():
                connection.sendall(pdu(wire.ASSOCIATE_RJ, bytes((0, 2, 3, 2))))  # for now, local limit (PS3.8 9.3.4)
                return
            contexts, answer = _accept(body)
            connection.sendall(answer)
            talk = _Talk(connection, contexts)
            while True:
                message = wire.read_message(connection)
                if message == wire.RELEASE_RQ:
                    connection.sendall(pdu(wire.RELEASE_RP, bytes(4)))
                if isinstance(message, int) or not self._serve_one(talk, message):
                    return

    def _serve_one(self, talk: _Talk, message: Message) -> bool:
        """Do what is asked; False where the association is over."""
        serve = {
            wire.C_STORE: self._store,
            wire.C_FIND: self._find,
            wire.N_ACTION: self._commit,
            wire.N_EVENT_REPORT: self._hear,
            wire.N_EVENT_REPORT | RESPONSE: self._heard,
        }[message.number(0x0100)]
        if serve(talk, message):
            return True
        talk.abort()
        return False

    # -- what it is sent

    def _store(self, talk: _Talk, message: Message) -> bool:
        uid, syntax = message.uid(0x1000), talk.contexts[message.context_id]
        does = self._manners.with_object(uid)
        if does == "abort":
            return False
        if does == "refuse":
            return talk.respond(message, _OUT_OF_RESOURCES)
        if does != "lose":
            ds = wire.decoded(message.data_set, syntax)
            self._keep(uid, syntax, message.data_set)
            self._has[uid] = (str(ds.StudyInstanceUID), str(ds.SeriesInstanceUID), message.uid(0x0002))
        if does == "mute":
            return False
        talk.respond(message, 0)
        self._answered(uid)
        return True

    def _find(self, talk: _Talk, message: Message) -> bool:
        """Show what of a series it has (C-FIND at the IMAGE level, PS3.4 C.4.1)."""
        syntax = talk.contexts[message.context_id]
        wanted = wire.decoded(message.data_set, syntax)
        study, series = str(wanted.StudyInstanceUID), str(wanted.SeriesInstanceUID)
        if self._manners.with_query(study):
            return False
        for uid, where in list(self._has.items()):
            if where[:2] == (study, series):
                match = Dataset()
                match.QueryRetrieveLevel = "IMAGE"
                match.StudyInstanceUID, match.SeriesInstanceUID, match.SOPInstanceUID = study, series, uid
                talk.respond(message, _PENDING, wire.encoded(match, syntax))
        return talk.respond(message, 0)

    # -- what it commits to

    def _commit(self, talk: _Talk, message: Message) -> bool:
        syntax = talk.contexts[message.context_id]
        asked = wire.decoded(message.data_set, syntax)
        does = self._manners.with_request(str(asked.TransactionUID))
        if does == "abort":
            return False
        if does == "refuse":
            return talk.respond(message, _PROCESSING_FAILURE)
        if does == "first":
            self._report(talk, message.context_id, syntax, asked)
        talk.respond(message, 0)
        if does == "here":
            self._report(talk, message.context_id, syntax, asked)
        elif does == "elsewhere":
            threading.Thread(target=self._guarded, args=(self._report_elsewhere, asked), daemon=True).start()
        return True

    def _report(self, talk: _Talk, context_id: int, syntax: str, asked: Dataset) -> None:
        """Say what of a request it has (N-EVENT-REPORT, PS3.4 J.3.3)."""
        named = [
            (str(one.ReferencedSOPClassUID), str(one.ReferencedSOPInstanceUID)) for one in asked.ReferencedSOPSequence
        ]
        kept = [one for one in named if self._has.get(one[1], ("", "", ""))[2] == one[0]]
        report = Dataset()
        report.TransactionUID = asked.TransactionUID
        if kept:
            report.ReferencedSOPSequence = wire.references(kept)
        if failed := wire.references(one for one in named if one not in kept):
            report.FailedSOPSequence = failed
            for one in failed:
                one.FailureReason = _NOT_THERE
        number = talk.ask(context_id, 2 if failed else 1, wire.encoded(report, syntax))
        talk.reported[number] = [uid for _, uid in kept]

    def _report_elsewhere(self, asked: Dataset) -> None:
        with socket.create_connection(("127.0.0.1", self.node_port), wire.PATIENCE_SECONDS) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            role = struct.pack(">H", len(COMMITMENT)) + COMMITMENT.encode() + bytes((0, 1))  # an SCP (PS3.7 D.3.3.4)
            connection.sendall(wire.associate_rq("PACS_AI", "KEEPER", ((1, COMMITMENT),), item(0x54, role)))
            kind, _ = wire.read_pdu(connection)
            if kind != wire.ASSOCIATE_AC:
                raise Gone(kind)
            talk = _Talk(connection, {1: wire.EXPLICIT})
            self._report(talk, 1, wire.EXPLICIT, asked)
            answer = wire.read_message(connection)
            if isinstance(answer, Message):
                self._heard(talk, answer)
                connection.sendall(pdu(wire.RELEASE_RQ, bytes(4)))
                wire.read_pdu(connection)

    def _heard(self, talk: _Talk, answer: Message) -> bool:
        """Note that the node has taken what it was told."""
        uids = talk.reported.pop(answer.number(0x0120))
        if answer.number(0x0900) == 0:
            self._committed(uids)
        return True

    # -- what the node keeps

    def _hear(self, talk: _Talk, message: Message) -> bool:
        said = wire.decoded(message.data_set, talk.contexts[message.context_id])
        transaction = str(said.TransactionUID)
        if self._manners.with_report(transaction):
            return False
        kept, failed = (
            [str(one.ReferencedSOPInstanceUID) for one in said.get(name) or ()]
            for name in ("ReferencedSOPSequence", "FailedSOPSequence")
        )
        self._told(transaction, kept, failed)
        return talk.respond(message, 0)


class _Talk:
    """One association: what it was accepted for, and what is said on it."""

    def __init__(self, connection: socket.socket, contexts: dict[int, str]) -> None:
        self._connection, self.contexts = connection, contexts
        self._asked = 0
        #: Message ID of an N-EVENT-REPORT -> the SOP Instance UIDs that it commits to.
        self.reported: dict[int, list[str]] = {}

    def respond(self, message: Message, status: int, data_set: bytes = b"") -> bool:
        """Send a response (PS3.7 9.3, 10.3); always True."""
        command = message.command
        words: dict[str, int | str] = {
            "c0002": message.uid(0x0002 if 0x0002 in command else 0x0003),
            "c0100": message.number(0x0100) | RESPONSE,
            "c0120": message.number(0x0110),
            "c0800": 0 if data_set else wire.NO_DATA_SET,
            "c0900": status,
        }
        if of := {0x1000, 0x1001} & command.keys():
            words["c1000"] = message.uid(of.pop())
        self._say(message.context_id, command_set(**words), data_set)
        return True

    def ask(self, context_id: int, event_type: int, data_set: bytes) -> int:
        """Send an N-EVENT-REPORT-RQ (PS3.7 10.3.1); returns its Message ID."""
        self._asked += 1
        command = command_set(
            c0002=COMMITMENT,
            c0100=wire.N_EVENT_REPORT,
            c0110=self._asked,
            c0800=0,
            c1000=COMMITMENT_INSTANCE,
            c1002=event_type,
        )
        self._say(context_id, command, data_set)
        return self._asked

    def abort(self) -> None:
        """End the association at once."""
        self._connection.sendall(pdu(wire.ABORT, bytes(4)))

    def _say(self, context_id: int, command: bytes, data_set: bytes) -> None:
        raw = p_data(context_id, command, is_command=True)
        self._connection.sendall(raw + (p_data(context_id, data_set, is_command=False) if data_set else b""))


def _accept(request: bytes) -> tuple[dict[int, str], bytes]:
    """Return context ID -> transfer syntax, the first proposed, and the A-ASSOCIATE-AC that says so.

    Roles are what is proposed.
    """
    contexts, answer, roles = {}, b"", b""
    for kind, value in _items(request[68:]):
        if kind == 0x50:
            roles = b"".join(item(sub, inner) for sub, inner in _items(value) if sub == 0x54)
        if kind == 0x20:
            syntax = next(inner for sub, inner in _items(value[4:]) if sub == 0x40)
            contexts[value[0]] = syntax.rstrip(b"\0").decode()
            answer += item(0x21, bytes((value[0], 0, 0, 0)) + item(0x40, syntax))
    user = item(0x51, struct.pack(">L", wire.PDU_BYTES)) + item(0x52, b"2.25.2") + roles
    body = request[:68] + item(0x10, b"1.2.840.10008.3.1.1.1") + answer + item(0x50, user)
    return contexts, pdu(wire.ASSOCIATE_AC, body)


def _items(raw: bytes) -> list[tuple[int, bytes]]:
    found, at = [], 0
    while at + 4 <= len(raw):
        kind, length = struct.unpack_from(">BxH", raw, at)
        found.append((kind, raw[at + 4 : at + 4 + length]))
        at += 4 + length
    return found
