"""Find the segments that no process holds: all of them at a start, and later those that a process left for good.

A process that is started anew is given the time to take its own again, so a running one takes what it has seen held by
nobody at two looks. What cannot be opened or read is told once, and tried again at every look.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import time
from typing import TYPE_CHECKING

from pacs_ai.log import unexpected
from pacs_ai.store import segments

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator
    from pathlib import Path

    from pacs_ai.dicom.arrival import Arrival
    from pacs_ai.store.disk import Disk
    from pacs_ai.store.segments import Place, Segment

LOGGER = logging.getLogger(__name__)

#: So often it is looked for segments that no process holds.
LOOK_SECONDS = 30.0


class Unheld:
    """The segments of a folder that no process holds, as one process sees them.

    Parameters
    ----------
    folder
        Where they lie.
    disk
        The file system below it.
    """

    def __init__(self, folder: Path, disk: Disk) -> None:
        self._folder, self._disk = folder, disk
        self._look_at = time.monotonic() + LOOK_SECONDS
        self._seen: set[str] = set()
        self._doubted: set[str] = set()

    @property
    def is_due(self) -> bool:
        """Whether it is time for another look."""
        return time.monotonic() >= self._look_at

    @property
    def is_unreadable(self) -> bool:
        """Whether a segment may hold instances that cannot be read now."""
        return bool(self._doubted)

    def is_doubtful(self, segment: Segment) -> bool:
        """Whether this one may hold instances behind those that could be read."""
        return segment.path.name in self._doubted

    def take_all(self) -> list[Segment]:
        """Hold all that no process holds, for a start."""
        return self._take(lambda _: True, ours=())

    def look(self, ours: Collection[str]) -> list[Segment]:
        """Hold those that no process held at the look before either, but what is `ours` by name."""
        self._look_at = time.monotonic() + LOOK_SECONDS
        before, self._seen = self._seen, set()
        try:
            taken = self._take(before.__contains__, ours)
        except OSError as error:
            LOGGER.warning("segments of other processes cannot be looked for: %s", self._disk.shortage(error))
            return []
        if taken:
            LOGGER.warning("took over %d segments that no process holds any more", len(taken))
        return taken

    def records(self, segment: Segment) -> list[tuple[Arrival, Place]]:
        """Return what can be read of a segment."""
        found: list[tuple[Arrival, Place]] = []
        try:
            found.extend(segments.records(segment))  # what was read before a fault stays
        except OSError as error:
            self._doubt(segment.path, "read", self._disk.shortage(error))
        except Exception as error:  # noqa: BLE001 - whatever is odd about one must not keep the others from being read
            self._doubt(segment.path, "read", unexpected(error))
        else:
            self._doubted.discard(segment.path.name)
        return found

    def _take(self, may_take: Callable[[str], bool], ours: Collection[str]) -> list[Segment]:
        """Hold some, by name; all of them at once, so that their order is kept."""
        taken: list[Segment] = []
        with self._alone():
            for path in sorted(self._folder.iterdir()):
                segment = None if path.suffix or path.name in ours else self._open(path)
                if segment is None:
                    continue
                if may_take(path.name):
                    taken.append(segment)
                else:
                    self._seen.add(path.name)
                    os.close(segment.descriptor)
        return taken

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the folder: of two processes that look for segments, one takes all that there are."""
        descriptor = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _open(self, path: Path) -> Segment | None:
        try:
            taken = segments.take(path)
        except OSError as error:
            if not path.is_symlink():  # nobody here makes one
                self._doubt(path, "opened", self._disk.shortage(error))
            return None
        if taken is None:
            self._doubted.discard(path.name)  # it is another process's, or gone
        return taken

    def _doubt(self, path: Path, what: str, why: object) -> None:
        """Remember that a file may hold instances and could not be opened or read."""
        if path.name not in self._doubted:
            LOGGER.error("%s may hold instances, but cannot be %s: %s", path, what, why)
        self._doubted.add(path.name)
