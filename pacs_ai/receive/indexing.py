"""Give every received instance its file and its row, in the order in which they came, and many at a time.

An instance is durable before it comes here where it was written ahead (`pacs_ai.store.ahead`): its sender was answered
already, so it is tried again until it goes through. Where it was written as a file of its own, its sender waits, and is
told what became of it. The end of an association comes in its place among the instances that it brought.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Protocol

from pacs_ai.errors import Transient, Unavailable
from pacs_ai.log import unexpected
from pacs_ai.receive.upkeep import Upkeep

if TYPE_CHECKING:
    from pacs_ai.dicom.arrival import Arrival
    from pacs_ai.store.ahead import Ahead
    from pacs_ai.store.files import Files, StoredFile
    from pacs_ai.store.segments import Place

LOGGER = logging.getLogger(__name__)

#: At most so many instances share one transaction.
MAX_BATCH = 64
#: Instances whose senders were answered may wait so long for others to share a transaction with, in seconds.
_GATHER_SECONDS = 0.1
#: What did not go through is tried again after so long, and a quiet moment is one of so long, in seconds.
_AGAIN_SECONDS = 0.25
_QUIET_SECONDS = 1.0
#: So many instances that were written ahead may be waiting; beyond that none is.
MAX_WAITING = 4096
#: Indexing is late where nothing went through for so long though something waits, or where something waits for longer
#: than that, in seconds: less than a series is quiet for before it is called complete.
_STALL_SECONDS, _LATE_SECONDS = 2.0, 5.0

#: Told what became of an instance: None once it is durable, else why it is not stored. From any thread, once.
Settle = Callable[["Exception | None"], None]


class Record(Protocol):
    """Commits the rows of arrivals in one transaction, and returns when that is durable."""

    def __call__(self, arrivals: Sequence[Arrival], marks: Mapping[str, tuple[str, int]] = ..., /) -> object:
        """Record arrivals; with them how far each segment's lap is recorded, name -> (lap, number)."""


@dataclass(frozen=True)
class Stored:
    """An instance with a file of its own, whose sender waits."""

    arrival: Arrival
    file: StoredFile
    settle: Settle


@dataclass(frozen=True)
class Kept:
    """An instance that was written ahead, and is durable."""

    arrival: Arrival
    place: Place
    at: float


@dataclass(frozen=True)
class _End:
    """An association's end."""

    assoc_id: str
    released: bool


class Indexing:
    """A thread that gives instances their files and rows.

    Parameters
    ----------
    files
        Where the files are.
    record
        See `Record`.
    note_ended
        Told of each association's end, when all that it brought is recorded; None where nobody wants to know.
    ahead
        Where instances were written ahead to; None where they are not. What other processes left there is indexed too.
    is_recorded
        Tells of what was left whether its row was committed: name, lap, number (`pacs_ai.store.index`).
    """

    def __init__(
        self,
        files: Files,
        record: Record,
        note_ended: Callable[[str, bool], object] | None,
        ahead: Ahead | None,
        is_recorded: Callable[[str, str, int], bool],
    ) -> None:
        self._is_recorded = is_recorded
        self._files, self._record, self._note_ended, self._ahead = files, record, note_ended, ahead
        self._queue: deque[Stored | Kept | _End] = deque()
        self._changed = threading.Condition()
        self._is_closing = False
        self._urgent = 0  # so many of the queue are awaited by somebody
        self._kept = 0  # and so many of it were written ahead
        self._in_doubt = False  # whether the last try may have gone through though it failed
        self._singly = 0  # so many are indexed each alone
        self._moved_at = time.monotonic()
        self._open: set[str] = set()
        self._bringing: set[str] = set()  # they brought something, and have not ended
        self._ending: set[str] = set()  # their ends are in the queue
        self._thread = threading.Thread(target=self._run, name="indexing", daemon=True)
        self._is_started = False
        #: Why nothing goes through at this moment; None where it does.
        self.trouble: Transient | None = None
        self._upkeep = None if ahead is None else Upkeep(ahead, files, record, is_recorded, self)
        if ahead is not None and self._upkeep is not None:
            self._upkeep.recover(ahead.left)
            self._start()

    @property
    def waiting(self) -> int:
        """How many instances and ends wait."""
        return len(self._queue)

    @property
    def has_room(self) -> bool:
        """Whether a further instance may be written ahead."""
        return self._kept < MAX_WAITING

    @property
    def is_late(self) -> bool:
        """Whether what was answered Success waits for its row for longer than a moment, whatever the reason is."""
        with self._changed:
            first = next((entry for entry in self._queue if isinstance(entry, Kept)), None)
        if first is None:
            return self.trouble is not None
        now = time.monotonic()
        stalled = now - max(first.at, self._moved_at) > _STALL_SECONDS
        return stalled or now - first.at > _LATE_SECONDS or self.trouble is not None

    @property
    def is_recovering(self) -> bool:
        """Whether something that an earlier process had written ahead has no row yet."""
        return self._upkeep is not None and self._upkeep.is_recovering

    def add(self, entry: Stored | Kept) -> None:
        """Take an instance."""
        self._put(entry)

    def take_over(self, arrival: Arrival, place: Place) -> None:
        """Take an instance that another process was stopped from indexing."""
        self._put(Kept(arrival, place, time.monotonic()))

    def opened(self, assoc_id: str) -> None:
        """Take note of an association of this process."""
        self._open.add(assoc_id)

    def is_open(self, assoc_id: str) -> bool:
        """Whether an association of this process goes on."""
        return assoc_id in self._open

    def ended(self, assoc_id: str, released: bool) -> None:
        """Take an association's end; that of one that brought nothing waits for nobody, and fills no queue."""
        with self._changed:
            has_brought = assoc_id in self._bringing
            if not has_brought:
                self._open.discard(assoc_id)  # what comes too late ends it again
        if has_brought:
            self.end(assoc_id, released)
            self._open.discard(assoc_id)
        elif self._note_ended is not None:
            self._note_ended(assoc_id, released)

    def end(self, assoc_id: str, released: bool) -> None:
        """Have an association's end noted behind all that is here."""
        self._bringing.discard(assoc_id)
        if self._note_ended is not None:
            self._ending.add(assoc_id)
            self._put(_End(assoc_id, released))

    def close(self) -> None:
        """Return when all has gone through, or where it does not for now: what was written ahead is then left there."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        if self._is_started:
            self._thread.join()

    def _put(self, entry: Stored | Kept | _End) -> None:
        with self._changed:
            self._queue.append(entry)
            if not isinstance(entry, _End):
                self._bringing.add(entry.arrival.assoc_id)
            self._urgent += not isinstance(entry, Kept)
            self._kept += isinstance(entry, Kept)
            self._start()
            if len(self._queue) == 1 or not isinstance(entry, Kept):
                self._changed.notify_all()

    def _start(self) -> None:
        if not self._is_started:
            self._is_started = True
            self._thread.start()

    # -- the thread

    def _run(self) -> None:
        goes_on = True
        while goes_on:
            try:
                if not self._gather():
                    return
                is_through = self._step()
            except Exception as error:  # noqa: BLE001 - outermost loop: what was answered Success must have its row
                words = unexpected(error)
                if self._is_news(Unavailable(words)):
                    LOGGER.error("instances that were received cannot be indexed: %s; tried again", words)  # noqa: TRY400
                is_through = False
            goes_on = is_through or self._rest()

    def _gather(self) -> bool:
        """Wait until something is to be done; False at the end."""
        while not self._has_come():
            if self._is_closing:
                return False
            self.trouble = None  # nothing waits
            if self._upkeep is not None:
                self._upkeep.use(lambda: not self._queue and not self._is_closing)
        if self._upkeep is not None:
            self._upkeep.recover_adopted()
        with self._changed:
            while (seconds := self._spare_seconds(self._queue[0])) > 0:
                self._changed.wait(seconds)
        return True

    def _has_come(self) -> bool:
        """Wait a moment for something to be done."""
        with self._changed:
            return self._changed.wait_for(lambda: self._queue or self._is_closing, _QUIET_SECONDS) and bool(self._queue)

    def _spare_seconds(self, first: Stored | Kept | _End) -> float:
        """Return how long nobody minds that what is there waits for more to come."""
        if self._is_closing or self._urgent or not isinstance(first, Kept):
            return 0.0
        assert self._ahead is not None
        return 0.0 if self._ahead.is_low else first.at + _GATHER_SECONDS - time.monotonic()

    def _rest(self) -> bool:
        """Wait before what did not go through is tried again; False where it is not to be."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_closing, _AGAIN_SECONDS)
            return not self._is_closing

    def _step(self) -> bool:
        """Deal with what is first in the queue; False where it did not go through and stays there."""
        first = self._queue[0]
        if isinstance(first, _End):
            return self._end(first)
        batch: list[Stored | Kept] = []
        for entry in islice(tuple(self._queue), 1 if self._singly else MAX_BATCH):
            if isinstance(entry, _End):
                break
            batch.append(entry)
        self._singly = max(0, self._singly - 1)
        return self._index(batch)

    def _end(self, end: _End) -> bool:
        assert self._note_ended is not None
        try:
            self._note_ended(end.assoc_id, end.released)
        except Transient as error:
            self._let_go(error)
            if self._is_news(error):
                LOGGER.warning("end of an association cannot be noted yet: %s", error)
            return False
        except Exception as error:  # noqa: BLE001 - outermost loop: one association's end must not hold up the others
            LOGGER.warning("end of an association cannot be noted: %s", type(error).__name__)
        self._ending.discard(end.assoc_id)
        self._drop([end])
        return True

    def _index(self, batch: Sequence[Stored | Kept]) -> bool:
        """Index a batch; where one instance breaks it, each is indexed alone, so that only that one fails."""
        try:
            if self._in_doubt and (done := self._recorded(batch)):
                self._drop(done)
                self._end_again(done)
                return True
            self._in_doubt = False
            self._commit(batch)
        except Transient as error:
            self._in_doubt = True
            waiting = self._let_go(error)
            if waiting and self._is_news(error):
                LOGGER.warning("instances that were received cannot be indexed yet: %s", error)
            return not waiting
        except Exception as error:  # noqa: BLE001 - outermost loop: whatever it was, each waiter hears of it
            if len(batch) == 1:
                return self._give_up(batch[0], error)
            LOGGER.warning("%d instances are committed one by one after %s", len(batch), type(error).__name__)
            self._singly = len(batch)
            return True
        for entry in batch:
            if isinstance(entry, Stored):
                entry.settle(None)
        self._drop(batch)
        self._end_again(batch)
        return True

    def _end_again(self, batch: Sequence[Stored | Kept]) -> None:
        """End the associations that had ended before what they brought was durable: it was not in time."""
        for assoc_id in dict.fromkeys(entry.arrival.assoc_id for entry in batch):
            if assoc_id not in self._open and assoc_id not in self._ending:
                self.end(assoc_id, released=False)

    def _recorded(self, batch: Sequence[Stored | Kept]) -> list[Kept]:
        """Return what is recorded though its commit seemed to fail, as where a server died in it.

        Of several segments it may be any: the commit of a process that is no more can show late.
        """
        kept = [entry for entry in batch if isinstance(entry, Kept)]
        return [entry for entry in kept if self._is_recorded(entry.place.name, entry.place.lap, entry.place.number)]

    def _commit(self, batch: Sequence[Stored | Kept]) -> None:
        """Make files, the entries of their directories, and rows durable, in this order."""
        kept = [entry for entry in batch if isinstance(entry, Kept)]
        files = self._files.copy([entry.place.source(entry.arrival.sha256) for entry in kept])
        self._files.sync([*files, *(entry.file for entry in batch if isinstance(entry, Stored))])
        marks = {entry.place.name: (entry.place.lap, entry.place.number) for entry in kept}
        arrivals = [entry.arrival for entry in batch]
        if marks:
            self._record(arrivals, marks)
        else:
            self._record(arrivals)

    def _let_go(self, error: Transient) -> bool:
        """Tell all that wait for an answer why they are not stored; return whether others stay to be tried again.

        Their commit may have gone through all the same.
        """
        with self._changed:
            refused = [entry for entry in self._queue if isinstance(entry, Stored)]
            self._queue = deque(entry for entry in self._queue if not isinstance(entry, Stored))
            self._urgent -= len(refused)
            stays = bool(self._queue)
        for entry in refused:
            entry.settle(error)
        self._end_again(refused)
        return stays

    def _give_up(self, entry: Stored | Kept, error: Exception) -> bool:
        """Do with an instance that can never have a row what is left to do."""
        if isinstance(entry, Stored):
            self._drop([entry])
            entry.settle(error)
            return True
        assert self._upkeep is not None
        try:
            path = self._upkeep.set_aside(entry.arrival, entry.place)
        except Transient as shortage:
            if self._is_news(shortage):
                LOGGER.warning("an instance that cannot be indexed cannot be set aside yet: %s", shortage)
            return False
        LOGGER.error(
            "an instance that was received cannot be indexed (%s): it was set aside as %s; see pacs-ai doctor",
            type(error).__name__,
            path,
        )
        self._drop([entry])
        return True

    def _drop(self, entries: Sequence[Stored | Kept | _End]) -> None:
        """Take what is done from the queue, at whose head it stands, unless its commit was in doubt."""
        self.trouble, self._moved_at = None, time.monotonic()
        kept = [entry.place for entry in entries if isinstance(entry, Kept)]
        with self._changed:
            for entry in entries:
                self._queue.remove(entry)
            self._kept -= len(kept)
            self._urgent -= len(entries) - len(kept)
        if self._ahead is not None and self._upkeep is not None:
            self._upkeep.may_have_rows = True
            self._ahead.done(kept)

    def _is_news(self, error: Transient) -> bool:
        """Note why nothing goes through; tell whether it did before."""
        is_news, self.trouble = self.trouble is None, error
        return is_news
