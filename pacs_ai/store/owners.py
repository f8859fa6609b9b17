"""Who holds a claim, and whether that process is dead: told at once on the same boot, by its beat elsewhere."""

from __future__ import annotations

import hashlib
import os
import time
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

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


def is_dead(owner: str) -> bool:
    """Tell whether the owner ran on this boot and is no more; False where that cannot be known from here."""
    parts = owner.split(":")
    if len(parts) != 4 or parts[1] != _boot():
        return False
    return _started(int(parts[2])) != parts[3]


@dataclass
class Watch:
    """What one sweeper has seen of others' claims: since when, by its own clock, each beat has stood still."""

    _seen: dict[tuple[str, object], tuple[int, int, float]] = field(default_factory=dict)

    def is_lost(self, subject: str, key: object, owner: str, fence: int, beat: int) -> bool:
        """Tell whether the claim may be taken over."""
        if is_dead(owner):
            return True
        now = time.monotonic()
        known = self._seen.get((subject, key))
        if known is None or known[:2] != (fence, beat):
            self._seen[subject, key] = (fence, beat, now)
            return False
        return now - known[2] >= STANDSTILL_SECONDS

    def keep(self, subject: str, keys: set[object]) -> None:
        """Forget the claims of this subject that are no more."""
        for known in [k for k in self._seen if k[0] == subject and k[1] not in keys]:
            del self._seen[known]
