"""What all associations of a receive process share, and what one request holds of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pacs_ai.receive import dimse

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Executor

    from pacs_ai.receive.dimse import Command
    from pacs_ai.receive.ingest import Ingest, Intake
    from pacs_ai.receive.service import Answer, Services

#: Of one instance so many bytes are held in memory, and twice as many while a part is being written.
HELD_BYTES = 1 << 20
#: Once all instances under way together hold so much, each may hold only the smaller part.
HELD_IN_ALL_BYTES = 256 << 20
_SMALL_HELD_BYTES = 1 << 16
#: A data set that is refused is read to its end and thrown away, up to this length or so many times the longest.
THROWN_BYTES, THROWN_TIMES = 64 << 20, 4
#: Longest information of an N-EVENT-REPORT or N-ACTION; a commitment of 100,000 instances has 15 MB. Once all hold
#: `HELD_IN_ALL_BYTES`, only the smaller part may come of a further one.
MAX_SERVICE_BYTES = 32 << 20
#: Threads that write and sync; a disk has no use for more at one time. While so many instances are overdue, each of
#: them may hang, and nothing more is begun.
THREADS = 16
#: Threads for everything else, where a long request on storage commitment takes seconds: no instance waits for it.
SERVICE_THREADS = 2


@dataclass
class Desk:
    """What all exchanges of a receiver share.

    Parameters
    ----------
    ingest
        Where instances go.
    pool
        `THREADS` for instances.
    service_pool
        `SERVICE_THREADS` for services.
    later
        Has a function called in the event loop's thread.
    instance_bytes, answer_seconds
        As in `guard.Bounds`.
    has_free_space
        Asked before each instance; None where the file system does not say.
    services
        What is served beside storing.
    ended
        Told once of each exchange whose association ended and of which nothing is under way any more.
    held
        Bytes of requests that are in memory: those that the pool has not given back count, whether or not a peer waits.
    overdue
        Instances that the pool has not given back though their peers were told that it takes too long.
    services_overdue
        The same of services.
    """

    ingest: Ingest
    pool: Executor
    service_pool: Executor
    later: Callable[..., object]
    instance_bytes: int
    answer_seconds: float
    has_free_space: Callable[[], bool | None]
    services: Services
    ended: Callable[..., object]
    held: int = 0
    overdue: int = 0
    services_overdue: int = 0

    @property
    def most(self) -> int:
        """How many bytes of one instance may be held."""
        return HELD_BYTES if self.held < HELD_IN_ALL_BYTES else _SMALL_HELD_BYTES

    @property
    def most_of_a_service(self) -> int:
        """How long what is no instance may be: it is held until it is whole."""
        return MAX_SERVICE_BYTES if self.held < HELD_IN_ALL_BYTES else _SMALL_HELD_BYTES

    @property
    def most_thrown_away(self) -> int:
        """How long a data set may be of which nothing is kept."""
        return max(THROWN_BYTES, THROWN_TIMES * self.instance_bytes)

    @property
    def hangs(self) -> bool:
        """Whether every thread may hang, so that nothing more is to be begun."""
        return self.overdue >= THREADS

    @property
    def services_hang(self) -> bool:
        """The same of services."""
        return self.services_overdue >= SERVICE_THREADS

    def count_overdue(self, message: Message, difference: int) -> None:
        """Count a message, or no longer."""
        if message.command.field == dimse.C_STORE_RQ:
            self.overdue += difference
        else:
            self.services_overdue += difference


@dataclass
class Message:
    """One request whose data set is arriving or being dealt with.

    Parameters
    ----------
    intake
        Where its bytes go; None for another service than storing.
    verdict
        What it will be answered whatever comes; its bytes are thrown away.
    held
        What came and was not handed on.
    lent
        So many bytes of it the pool has.
    length
        Of the data set so far.
    handing
        A part is being written at this moment.
    is_begun
        A part was handed on, so there may be a file.
    whole
        Nothing more comes.
    working_since
        Since when the peer waits for the node: for its answer, or for the disk to take more.
    is_overdue
        The pool has it for longer than the peer was let wait.
    """

    command: Command
    intake: Intake | None = None
    verdict: Answer | None = None
    held: bytearray = field(default_factory=bytearray)
    lent: int = 0
    length: int = 0
    handing: bool = False
    is_begun: bool = False
    whole: bool = False
    working_since: float | None = None
    is_overdue: bool = False
