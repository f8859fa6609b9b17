"""The listening side of the node without sockets and threads: bytes in, bytes out, the same every time."""

from __future__ import annotations

import asyncio
import struct
from collections import deque
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from pacs_ai.dicom.arrival import AssociationInfo
from pacs_ai.dicom.attributes import read_header
from pacs_ai.dicom.contexts import DEFAULT_TRANSFER_SYNTAXES, acceptor_contexts
from pacs_ai.errors import Mismatch, NotUnderstood
from pacs_ai.receive import guard
from pacs_ai.receive.connection import Connection
from pacs_ai.receive.desk import Desk
from pacs_ai.receive.exchange import Exchange
from pacs_ai.receive.negotiation import Agreement, Negotiator
from pacs_ai.receive.scp import Listen, judge

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pacs_ai.receive.ingest import Announced, Settle

READ_BYTES = 1 << 18


class _AtOnce(Executor):
    """Runs what it is given at once."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        fn(*args, **kwargs)
        return Future()


@dataclass
class _Intake:
    """Reads the header of what came; keeps it where it is sound."""

    announced: Announced
    kept: list[tuple[str, bytes]]
    held: bytearray = field(default_factory=bytearray)

    def passing(self, piece: memoryview) -> None:
        """Look at nothing."""

    def append(self, piece: bytearray) -> None:
        self.held += piece

    def finish(self, rest: bytearray, settle: Settle) -> None:
        self.held += rest
        said = self.announced
        try:
            header = read_header(bytes(self.held), said.transfer_syntax_uid)
        except NotUnderstood as fault:
            settle(fault)
            return
        if (header.sop_class_uid, header.sop_instance_uid) != (said.sop_class_uid, said.sop_instance_uid):
            settle(Mismatch("another"))
            return
        self.kept.append((header.sop_instance_uid, bytes(self.held)))
        settle(None)

    def discard(self) -> None:
        self.held.clear()


class _Transport(asyncio.Transport):
    def __init__(self) -> None:
        super().__init__()
        self.written = bytearray()
        self.ended = self.paused = False

    def write(self, data: Any) -> None:
        assert not self.ended, "written after the end"
        self.written += data

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        pass

    def is_closing(self) -> bool:
        return self.ended

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return None

    def abort(self) -> None:
        self.ended = True


@dataclass
class Heard:
    """What the node answered, what it kept, and how it ended."""

    written: bytes
    kept: list[tuple[str, bytes]]
    dropped: bool
    words: list[str]

    def pdus(self) -> list[bytes]:
        """Return the PDUs that were sent; AssertionError where they are none."""
        found, rest = [], self.written
        while rest:
            kind, length = struct.unpack_from(">BxL", rest)
            assert 1 <= kind <= 7
            assert len(rest) >= 6 + length
            found.append(rest[: 6 + length])
            rest = rest[6 + length :]
        return found


class NodeInMemory:
    """Takes one conversation after the other; `connection.Door` of each."""

    def __init__(self) -> None:
        self.buffer = memoryview(bytearray(READ_BYTES))
        self.bounds = guard.Bounds()
        self.limits = guard.Limits()
        self.now = lambda: 0.0
        self._listen = Listen()
        self._negotiator = Negotiator(acceptor_contexts(DEFAULT_TRANSFER_SYNTAXES, ()), self.bounds.pdu_bytes)
        self._later: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._kept: list[tuple[str, bytes]] = []
        self._words: list[str] = []
        self._ended = 0
        self._desk = Desk(
            ingest=self,
            pool=_AtOnce(),
            service_pool=_AtOnce(),
            later=lambda call, *arguments: self._later.append((call, arguments)),
            instance_bytes=self.bounds.instance_bytes,
            answer_seconds=self.bounds.answer_seconds,
            has_free_space=lambda: True,
            services={},
            ended=self._note_end,
        )

    def converse(self, pieces: Sequence[bytes]) -> Heard:
        """Let a peer send pieces and go."""
        self._kept, self._words, self._ended = [], [], 0
        transport, connection = _Transport(), Connection(self, "192.0.2.1")
        connection.connection_made(transport)
        waiting = deque(pieces)
        while waiting and not transport.ended:
            assert not transport.paused, "the node reads no more, and owes nothing"
            piece = waiting.popleft()
            self.buffer[: len(piece)] = piece
            connection.buffer_updated(len(piece))
            self._catch_up()
        connection.connection_lost(None)
        self._catch_up()
        assert connection.exchange is None or self._ended == 1, "the end of the association was not told once"
        assert self._desk.held == 0, f"{self._desk.held} bytes are still held"
        assert self._desk.overdue == 0
        return Heard(bytes(transport.written), self._kept, transport.ended, self._words)

    def _catch_up(self) -> None:
        while self._later:
            call, arguments = self._later.popleft()
            call(*arguments)

    def _note_end(self, _exchange: Exchange) -> None:
        self._ended += 1

    # -- `ingest.Ingest`

    def begin(self, announced: Announced) -> _Intake:
        return _Intake(announced, self._kept)

    # -- `connection.Door`

    def ask(self, connection: Connection, _length: int) -> None:
        self._later.append((connection.decide, ()))

    def decide(self, connection: Connection, request: bytes) -> tuple[Agreement, Exchange] | guard.Rejection:
        asked = guard.examine(request)
        decided = judge(self._listen, asked, connection.address, ()) or self._negotiator.agree(request)
        if isinstance(decided, guard.Rejection):
            return decided
        info = AssociationInfo("0", asked.calling_ae_title, asked.called_ae_title, "192.0.2.1", datetime.now(UTC))
        return decided, Exchange(info, decided, self._desk, connection)

    def refused(self, connection: Connection, words: str) -> None:
        self._words.append(words)

    def forget(self, connection: Connection) -> None:
        pass

    def soon(self, go_on: Callable[[], None]) -> None:
        self._later.append((go_on, ()))
