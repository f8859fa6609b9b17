"""Who holds a claim, and whether that process is dead: told at once on the same boot, by its beat elsewhere."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TypeVar

#: A claim whose beat stood still for so long, by the sweeper's own monotonic clock, is taken over.
STANDSTILL_SECONDS = 30.0
#: How often the holder of a claim raises its beat.
BEAT_SECONDS = 5.0


@cache
def _boot() -> str:
    """Twelve characters that are equal for processes that can see each other's pids: boot and pid namespace."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    namespace = Path("/proc/self/ns/pid").readlink()
    return hashlib.sha256(f"{boot} {namespace}".encode()).hexdigest()[:12]


def _started(pid: int) -> str | None:
    """Return the process's start time in clock ticks since boot; None where there is no such live process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in {"Z", "X"} else fields[19]


def this_process(kind: str) -> str:
    """Return this process's name as an owner of claims: kind, boot, pid, start time."""
    pid = os.getpid()
    return f"{kind}:{_boot()}:{pid}:{_started(pid)}"


def is_here(owner: str) -> bool:
    """Tell whether the owner runs, or ran, on this boot, so that `is_dead` knows."""
    return owner.split(":")[1:2] == [_boot()]


def is_dead(owner: str) -> bool:
    """Tell whether the owner ran on this boot and is no more; False where that cannot be known from here."""
    parts = owner.split(":")
    if len(parts) != 4 or parts[1] != _boot():
        return False
    return _started(int(parts[2])) != parts[3]


@dataclass(frozen=True)
class Held:
    """A claim as it stands in its row."""

    owner: str
    fence: int
    beat: int


Key = TypeVar("Key", bound=Hashable)


@dataclass
class Watch:
    """What one sweeper has seen of others' claims: since when, by its own clock, each beat has stood still.

    Parameters
    ----------
    clock
        Monotonic seconds.
    standstill_seconds
        A beat that stood still for so long is lost.
    """

    clock: Callable[[], float] = time.monotonic
    standstill_seconds: float = STANDSTILL_SECONDS
    _seen: dict[str, dict[object, tuple[int, int, float]]] = field(default_factory=dict)
    _looked: dict[str, float] = field(default_factory=dict)

    def lost(self, subject: str, claims: Mapping[Key, Held]) -> list[Key]:
        """Return which of all claims on this subject (jobs, destinations) may be taken over; call it every few seconds.

        Where the last call is long ago, the sweeper itself stood still or the database was away, so that nobody could
        beat: every claim is then seen as for the first time.
        """
        at = self.clock()
        before = self._seen.get(subject, {})
        if at - self._looked.get(subject, at) > self.standstill_seconds / 2:
            before = {}
        self._looked[subject] = at
        seen: dict[object, tuple[int, int, float]] = {}
        for key, held in claims.items():
            fence, beat, since = before.get(key, (held.fence, held.beat, at))
            seen[key] = (held.fence, held.beat, since if (fence, beat) == (held.fence, held.beat) else at)
        self._seen[subject] = seen
        return [key for key, held in claims.items() if is_dead(held.owner) or self._stands(at, seen[key])]

    def _stands(self, at: float, seen: tuple[int, int, float]) -> bool:
        return at - seen[2] >= self.standstill_seconds
