"""Make many instances durable with one sync: written one behind the other into files that are written over and over.

    <store>/ahead/<name>    a segment (`segments`), 0600; beside them what was set aside (`aside`)

A file, its directory and its row cost three syncs, and a file that grows costs the file system's journal besides. A
segment was filled with zeros once, so that to write it over and sync it is the cheapest that a disk knows. Files and
rows are made from its records afterwards, and by another process where this one dies; only then it begins a new lap.
What a lap held is written over with zeros in a quiet moment, so that no patient's bytes outlive their file.

Records are written by one thread at a time and in order: one that was believed is never behind one that is torn.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pacs_ai.errors import OutOfResources
from pacs_ai.log import unexpected
from pacs_ai.store import aside, segments
from pacs_ai.store.disk import Disk, write_at
from pacs_ai.store.segments import Place, Segment
from pacs_ai.store.unheld import Unheld

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from pacs_ai.dicom.arrival import Arrival

LOGGER = logging.getLogger(__name__)

#: Into so many segments the space of one process is divided.
SEGMENTS = 8
#: So much of the disk, in segments, must be free before another one is made.
_SPARE = 4
#: Told where an instance is durable, or why it is not.
Tell = Callable[[Place | OutOfResources], None]


@dataclass(frozen=True)
class _Waiting:
    """One record that is to be written at an offset."""

    place: Place
    offset: int
    head: bytes
    parts: Sequence[bytes | bytearray]
    tell: Tell


class Ahead:
    """The segments of one process.

    Parameters
    ----------
    folder
        Where they lie; made where it is missing.
    disk
        The file system below it.
    segment_bytes, most
        Size of one, and how many there may be; one is made at once, the others when they are needed.
    """

    def __init__(self, folder: Path, disk: Disk, *, segment_bytes: int = 32 << 20, most: int = SEGMENTS) -> None:
        self._folder, self._disk = folder, disk
        self._segment_bytes, self._most = segment_bytes, most
        self._turn = threading.Condition()
        self._writing = False
        self._waiting: list[_Waiting] = []
        self._active: Segment | None = None
        self._free: list[Segment] = []
        self._full: list[Segment] = []
        self._turns = 0
        self._is_short = self._wiping_failed = False
        self._unheld = Unheld(folder, disk)
        folder.mkdir(mode=0o700, exist_ok=True)
        disk.sync_path(folder.parent, os.O_RDONLY | os.O_DIRECTORY)
        #: What an earlier process left: to be indexed, and then `done`, in this order.
        self.left = self._read(self._unheld.take_all())
        if not self._free:
            self.prepare()

    # -- keeping

    def keep(self, arrival: Arrival, parts: Sequence[bytes | bytearray], tell: Tell) -> bool:
        """Make an instance durable and tell so; False where there is no room at this moment, and nobody is told.

        The thread that finds nobody writing writes for all that come while it does; the others return at once.
        """
        words = segments.words_of(arrival)
        with self._turn:
            place = self._reserve(segments.HEAD_BYTES + len(words), arrival.size)
            if place is None:
                return False
            try:
                head = segments.head(place, words, arrival.sha256)
                self._waiting.append(_Waiting(place, place.start - len(head), head, parts, tell))
            except BaseException:
                place.segment.left -= 1
                _distrust({place.segment})
                raise
            if self._writing:
                return True
            self._writing = True
        try:
            while batch := self._next():
                self._write(batch)
        except BaseException:
            self._writing = False  # else nobody would ever write again
            raise
        return True

    def _reserve(self, head_bytes: int, size: int) -> Place | None:
        needed = segments.whole_pages(head_bytes + size)
        segment = self._active
        if segment is not None and (segment.is_closed or segment.end + needed > segment.size):
            self._close_active()
            segment = None
        if segment is None:
            if not self._free or needed > self._segment_bytes:
                return None
            segment = self._active = self._free.pop()
            self._turns += 1
            segment.begin(self._turns)
        segment.count += 1
        segment.left += 1
        place = Place(segment, segment.lap.hex(), segment.count, segment.end + head_bytes, size)
        segment.end += needed
        return place

    def _close_active(self) -> None:
        if self._active is not None:
            self._active.is_closed = True
            self._full.append(self._active)
            self._active = None

    def _next(self) -> list[_Waiting]:
        with self._turn:
            batch, self._waiting = self._waiting, []
            if not batch:
                self._writing = False
                self._turn.notify_all()
            return batch

    def _write(self, batch: Sequence[_Waiting]) -> None:
        """Write records and sync; where that fails none of them is believed, nor any behind them in their segment."""
        touched = {waiting.place.segment for waiting in batch}
        fault = self._fault_of(batch, touched)
        if fault is not None:
            with self._turn:
                _distrust(touched)
            self.done([waiting.place for waiting in batch])
        for waiting in batch:
            self._tell(waiting, waiting.place if fault is None else fault)

    def _fault_of(self, batch: Sequence[_Waiting], touched: Iterable[Segment]) -> OutOfResources | None:
        """Write and sync; return why that failed, whatever it was, None where it did not."""
        try:
            self._disk.refuse_if_broken()
            self._refuse_if_broken(touched)
            for waiting in batch:
                end = waiting.offset + len(waiting.head) + waiting.place.size
                padding = bytes(segments.whole_pages(end) - end)
                write_at(waiting.place.segment.descriptor, [waiting.head, *waiting.parts, padding], waiting.offset)
            for segment in touched:
                self._disk.sync_content(segment.descriptor)
        except OSError as error:
            return self._disk.shortage(error)
        except OutOfResources as error:
            return error
        except Exception as error:  # noqa: BLE001 - outermost for all that wait: no sender may wait for ever
            LOGGER.error("instances were not written ahead: %s", unexpected(error))  # noqa: TRY400
            return OutOfResources(f"{self._folder}: {unexpected(error)}")
        return None

    def _tell(self, waiting: _Waiting, came: Place | OutOfResources) -> None:
        """Tell one; where that fails for one, the others are told all the same."""
        try:
            waiting.tell(came)
        except Exception as error:  # noqa: BLE001 - as above
            LOGGER.error("an instance was written ahead and cannot be indexed now: %s", unexpected(error))  # noqa: TRY400
            if isinstance(came, Place):  # never done, so the next process indexes it
                with contextlib.suppress(Exception):
                    waiting.tell(OutOfResources(f"{self._folder}: {unexpected(error)}"))

    def _refuse_if_broken(self, touched: Iterable[Segment]) -> None:
        if any(segment.is_broken for segment in touched):
            raise OutOfResources(f"{self._folder}: the record before could not be written")

    # -- letting go

    def done(self, places: Sequence[Place]) -> None:
        """Take note that nothing of these records is needed any more: their files and rows are durable."""
        with self._turn:
            for place in places:
                place.segment.left -= 1
            if self._active is not None and self._active.is_closed:
                self._close_active()
            empty = [segment for segment in self._full if segment.left == 0]
            self._full = [segment for segment in self._full if segment.left]
        for segment in empty:
            self._retire(segment)

    def rest(self) -> None:
        """Leave nothing to be recovered, where all that was written is done; for a quiet moment."""
        with self._turn:
            if self._active is None or self._active.left:
                return
            self._close_active()
        self.done([])

    def prepare(self) -> None:
        """Make another segment where there may be one; for a thread that may wait for the disk."""
        with self._turn:
            if len(self._free) + len(self._full) + (self._active is not None) >= self._most:
                return
        if not self._has_space():
            return
        try:
            segment = segments.make(self._folder, self._segment_bytes, self._disk)
        except (OSError, OutOfResources) as error:
            if not self._is_short:
                LOGGER.warning("no further segment could be made to write ahead to: %s", error)
            self._is_short = True
            return
        self._is_short = False
        with self._turn:
            self._free.append(segment)

    def _has_space(self) -> bool:
        state = os.statvfs(self._folder)
        return state.f_bavail * state.f_frsize >= _SPARE * self._segment_bytes

    def wipe(self) -> bool:
        """Write zeros over one piece of what earlier laps left; False where there is none, or this is not the moment.

        A segment is out of use only while a piece of it is written. Where the disk is short, or no other segment is
        free, or instances come, the rest waits.
        """
        with self._turn:
            if self._active is not None or self._wiping_failed or len(self._free) < 2:
                return False
            segment = next((one for one in self._free if one.used), None)
            if segment is None or not self._has_space():
                return False
            self._free.remove(segment)
        try:
            segments.wipe(segment, self._disk)
        except (OSError, OutOfResources) as error:
            words = self._disk.shortage(error) if isinstance(error, OSError) else error
            LOGGER.warning("what was written ahead cannot be written over with zeros: %s", words)
            self._wiping_failed = True
        with self._turn:
            self._free.insert(0, segment)
        return not self._wiping_failed

    @property
    def is_low(self) -> bool:
        """Whether there is no free segment behind the one that is written to."""
        return not self._free

    @property
    def is_unreadable(self) -> bool:
        """Whether a segment may hold instances that cannot be read now; it is tried again at every look."""
        return self._unheld.is_unreadable

    def set_aside(self, arrival: Arrival, place: Place) -> Path:
        """Keep the file of a record whose row can never be made where a person finds it; return its path."""
        pieces = segments.pieces(place.segment.descriptor, place.start, place.size)
        return aside.put(self._folder, self._disk, arrival, pieces)

    def was_set_aside(self) -> list[Path]:
        """Return the files that were set aside, by whatever process (`aside`)."""
        return aside.found(self._folder)

    def close(self) -> None:
        """Let go of the segments; what is not done is recovered by the next process."""
        with self._turn:
            self._turn.wait_for(lambda: not self._writing)
        self.rest()
        for segment in (*self._free, *self._full, *([self._active] if self._active else [])):
            os.close(segment.descriptor)
        self._free, self._full, self._active = [], [], None

    def _retire(self, segment: Segment) -> None:
        """Forget a lap durably, and have the segment ready for another."""
        segment.used = max(segment.used, segment.end)
        self._wiping_failed = False
        try:
            write_at(segment.descriptor, [bytes(segments.PAGE)], 0)
            self._disk.sync_content(segment.descriptor)
        except Exception as error:  # noqa: BLE001 - whatever it was, the others must not feel it
            words = self._disk.shortage(error) if isinstance(error, OSError) else unexpected(error)
            LOGGER.warning("a segment is not used again: %s", words)
            _close(segment)
            return
        with self._turn:
            if segment.size == self._segment_bytes and len(self._free) < self._most:
                self._free.append(segment)
                return
        self._clear_away(segment)

    def _clear_away(self, segment: Segment) -> None:
        with contextlib.suppress(OSError):  # it holds nothing; the next process tries again
            segment.path.unlink(missing_ok=True)
        _close(segment)

    # -- segments

    def adopt(self) -> list[tuple[Arrival, Place]]:
        """Take over what no process holds any more, and return what it holds, as `left`; for a quiet moment."""
        if not self._unheld.is_due:
            return []
        self._let_go_of_unreadable()
        held = (*self._free, *self._full, *([self._active] if self._active else []))
        return self._read(self._unheld.look({segment.path.name for segment in held}))

    def _read(self, taken: Iterable[Segment]) -> list[tuple[Arrival, Place]]:
        """Return what segments hold, in the order in which it came; an empty one is used, or cleared away."""
        found: list[tuple[int, list[tuple[Arrival, Place]]]] = []
        for segment in taken:
            records = self._unheld.records(segment)
            is_doubtful = self._unheld.is_doubtful(segment)
            is_held = bool(records) or is_doubtful
            if is_held:
                # behind what could be read there may be more: it is not used again
                segment.left, segment.is_closed = len(records) + is_doubtful, True
                found.append((segment.turn, records))
            with self._turn:
                if is_held:
                    self._full.append(segment)
                    continue
                if segment.size == self._segment_bytes and len(self._free) < self._most:
                    self._free.append(segment)
                    continue
            self._clear_away(segment)  # of another size, one too many, or its maker died over it
        self._turns = max((self._turns, *(turn for turn, _ in found)))
        return [record for _, records in sorted(found, key=lambda one: one[0]) for record in records]

    def _let_go_of_unreadable(self) -> None:
        """Let go of those of which all is done that could be read: the next looks read them again."""
        with self._turn:
            again = [one for one in self._full if self._unheld.is_doubtful(one) and one.left == 1]
            self._full = [one for one in self._full if one not in again]
        for segment in again:
            segment.left = 0
            _close(segment)


def _distrust(touched: Iterable[Segment]) -> None:
    """Have nothing more believed of segments: behind a record that is missing or torn none would be found again."""
    for segment in touched:
        segment.is_broken = segment.is_closed = True


def _close(segment: Segment) -> None:
    with contextlib.suppress(OSError):  # nothing more is written to it
        os.close(segment.descriptor)
