"""Compare contents of one SOP Instance UID while no transaction is open: others may then write to the database."""

from __future__ import annotations

import errno
import time
from typing import TYPE_CHECKING, Any

from pacs_ai.dicom.equality import Sameness, allowance, compare
from pacs_ai.errors import NotUnderstood, Unavailable
from pacs_ai.store.schema import Role

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from pacs_ai.dicom.arrival import Arrival

#: SHA-256 of the content that is analysed, and of one that came under the same UID.
Pair = tuple[str, str]
#: So many verdicts are remembered for when a transaction failed, and is tried again.
_REMEMBERED = 1024
#: After so long all that was spent may be spent again, in seconds: about three times as long as it takes to spend it.
_RECOVERY_SECONDS = 6.0
#: Errors that say nothing about the files.
_PASSING = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.EINTR}


class Uncompared(Exception):  # noqa: N818 - no fault: compare, and begin anew
    """A transaction needs to know of these pairs whether they are the same; it changed nothing."""

    def __init__(self, pairs: Sequence[Pair]) -> None:
        super().__init__(f"{len(pairs)} pairs of contents are not compared yet")
        self.pairs = pairs


class Comparisons:
    """Compares pairs, and knows what was found lately: a file's name is the digest of its content.

    Whatever is sent, comparing takes a part of one thread's time only: `equality.allowance` is what it may cost at
    once, and what was spent of it comes back within seconds. What is beyond that is not compared.

    Parameters
    ----------
    path_of
        SHA-256 -> where that file lies.
    clock
        Monotonic, in seconds.
    """

    def __init__(self, path_of: Callable[[str], Path], clock: Callable[[], float] = time.monotonic) -> None:
        self._path_of, self._clock = path_of, clock
        self._known: dict[Pair, Sameness] = {}
        self._full, self._allowed, self._at = allowance(), allowance(), clock()

    def learn(self, pairs: Sequence[Pair]) -> dict[Pair, Sameness]:
        """Compare pairs, and return what each is; Unavailable where this machine has no room for it now."""
        now = self._clock()
        self._allowed.recover(self._full, (now - self._at) / _RECOVERY_SECONDS)
        self._at = now
        found: dict[Pair, Sameness] = {}
        for pair in pairs:
            known = self._known.get(pair)
            if known is not None:
                found[pair] = known
                continue
            try:
                found[pair] = compare(self._path_of(pair[0]), self._path_of(pair[1]), self._allowed)
            except (NotUnderstood, OSError) as error:
                if isinstance(error, OSError) and error.errno in _PASSING:
                    raise Unavailable(f"contents cannot be compared now: {error.strerror}") from error
                found[pair] = Sameness.UNREADABLE  # the stored one can no longer be read: a person has to know
            else:
                self._remember(pair, found[pair])
        return found

    def _remember(self, pair: Pair, sameness: Sameness) -> None:
        self._known[pair] = sameness
        if len(self._known) > _REMEMBERED:
            self._known.pop(next(iter(self._known)), None)


def pairs_of(arrivals: Sequence[Arrival], known: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Pair]:
    """Return what has to be compared before arrivals are recorded, in their order.

    Parameters
    ----------
    known
        SOP Instance UID -> rows of the instances that are there under it.
    """
    rows = [row for there in known.values() for row in there]
    contents = {(row["sop_instance_uid"], row["sha256"]) for row in rows}
    disputed = {(row["sop_instance_uid"], row["sha256"]) for row in rows if row["role"] == Role.CONFLICT}
    firsts = [row for row in rows if row["role"] == Role.CURRENT]
    current = {row["sop_instance_uid"]: row["sha256"] for row in firsts if row["purged_at"] is None}
    gone = {row["sop_instance_uid"]: row["sha256"] for row in firsts if row["purged_at"] is not None}
    pairs: dict[Pair, None] = {}
    for arrival in arrivals:
        uid, sha256 = arrival.header.sop_instance_uid, arrival.sha256
        if (uid, sha256) in contents:
            if uid in gone and (uid, sha256) not in disputed:
                del gone[uid]
                current[uid] = sha256
        elif uid in current:
            pairs[current[uid], sha256] = None
        else:
            current[uid] = sha256
            gone.pop(uid, None)
        contents.add((uid, sha256))
    return list(pairs)
