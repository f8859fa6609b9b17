"""When a series is complete: pure rules over what is known of it, with the reason in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class Waits:
    """The configured waits, in seconds (``[receive]`` of the configuration)."""

    quiet: float
    released: float
    idle_association: float


@dataclass(frozen=True)
class Bringer:
    """One association that brought some of the series."""

    is_open: bool
    released: bool
    idle_seconds: float = 0.0  #: since it last brought some of this series, while it is open
    ended_seconds: float = 0.0  #: since it was seen to have ended


@dataclass(frozen=True)
class Verdict:
    """Whether the series is complete, why, and where it is not: when to look again at the latest."""

    complete: bool
    reason: str
    again_seconds: float = 0.0


def judge(instances: int, quiet_seconds: float, bringers: Sequence[Bringer], waits: Waits) -> Verdict:
    """Judge one series.

    Parameters
    ----------
    instances
        Current instances of the series.
    quiet_seconds
        Since anything of the series arrived.
    bringers
        The associations that brought some of it.
    waits
        What to wait for.
    """
    alone = len(bringers) == 1 and bringers[0].released and not bringers[0].is_open
    if alone and instances >= 2:
        waited, released = min(quiet_seconds, bringers[0].ended_seconds), min(waits.released, waits.quiet)
        if waited < released:
            return Verdict(False, "its one association released", released - waited)
        words = f"one association brought all {instances} instances and released; quiet for {released:g} s since"
        return Verdict(True, words)
    if quiet_seconds < waits.quiet:
        return Verdict(False, "instances are arriving", waits.quiet - quiet_seconds)
    still_open = [b for b in bringers if b.is_open]
    holding = [b for b in still_open if b.idle_seconds < waits.idle_association]
    if holding:
        left = min(waits.idle_association - b.idle_seconds for b in holding)
        return Verdict(False, f"quiet, but {len(holding)} association(s) that brought some of it are open", left)
    words = f"quiet for {waits.quiet:g} s"
    if still_open:
        words += f"; {len(still_open)} open association(s) brought none of it for {waits.idle_association:g} s"
    else:
        words += f" after {len(bringers)} association(s) ended"
    return Verdict(True, words)
