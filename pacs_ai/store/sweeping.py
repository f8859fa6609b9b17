"""Delete the files that no row names, and what was left half written.

Their row may be about to be committed, and a file's age is told by the wall clock, which may be set meanwhile. So a
file goes only where this process saw it twice, unchanged and named by no row, with a while between by its own
monotonic clock.
"""

from __future__ import annotations

import contextlib
import fcntl
import time
from typing import TYPE_CHECKING

from pacs_ai.store.layout import NEW, SHA256, SHARDS, locked

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

#: Between the two looks.
SECOND_LOOK_SECONDS = 600.0
#: So many are remembered, in some 150 MB; the others wait for a later look.
_MOST_SEEN = 500_000


class Sweeper:
    """What one process has seen of the files that no row names.

    Parameters
    ----------
    folder
        The store's folder.
    clock
        Monotonic seconds.
    """

    def __init__(self, folder: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._folder = folder
        self._clock = clock
        self._looked_at = clock()
        self._seen: dict[str, tuple[int, float]] = {}  # place -> when it was changed, by its own account; since when
        self.saw_all = True  #: whether the last look came to its end

    @property
    def is_due(self) -> bool:
        """Whether files were seen that a second look may take."""
        return bool(self._seen) and self._clock() - self._looked_at >= SECOND_LOOK_SECONDS

    def look(self, keep: Callable[[str], bool], *, older_than_seconds: float) -> None:
        """See which files nobody keeps.

        Parameters
        ----------
        keep
            Asked with a SHA-256: does a row name it?
        older_than_seconds
            Younger files are not looked at.
        """
        before, self._seen = self._seen, {}
        self._looked_at, self.saw_all = self._clock(), True
        for place, changed_ns in self._older(time.time_ns() - int(older_than_seconds * 1e9)):
            if len(self._seen) >= _MOST_SEEN:
                self.saw_all = False
                return
            if not _is_kept(place, keep):
                known = before.get(place)
                self._seen[place] = known if known and known[0] == changed_ns else (changed_ns, self._looked_at)

    def take(self, keep: Callable[[str], bool]) -> list[str]:
        """Delete what was seen long enough ago, is as it was, and is kept by nobody now; return the digests."""
        due = self._clock() - SECOND_LOOK_SECONDS
        gone = []
        for place in [place for place, (_, since) in self._seen.items() if since <= due]:
            changed_ns, _ = self._seen.pop(place)
            if not _is_kept(place, keep) and _delete(self._folder / place, changed_ns) and not _is_new(place):
                gone.append(_name(place))
        return gone

    def _older(self, before_ns: int) -> Iterator[tuple[str, int]]:
        """Give the files that were last changed before a time (Unix, ns), folder by folder, and when that was."""
        for folder in (NEW, *SHARDS):
            for path in (self._folder / folder).iterdir():
                with contextlib.suppress(FileNotFoundError):
                    changed_ns = path.lstat().st_mtime_ns
                    if changed_ns < before_ns:
                        yield f"{folder}/{path.name}", changed_ns


def _is_new(place: str) -> bool:
    return place.startswith(f"{NEW}/")


def _name(place: str) -> str:
    return place.partition("/")[2]


def _is_kept(place: str, keep: Callable[[str], bool]) -> bool:
    """Tell whether a file is none of the store's, or one that a row names; what is not whole yet has no row."""
    return not _is_new(place) and (SHA256.fullmatch(_name(place)) is None or keep(_name(place)))


def _delete(path: Path, changed_ns: int) -> bool:
    """Delete a file unless it was changed, or came again, meanwhile; tells whether."""
    with contextlib.suppress(FileNotFoundError), locked(path.parent, fcntl.LOCK_EX):
        if path.lstat().st_mtime_ns == changed_ns:
            path.unlink()
            return True
    return False
