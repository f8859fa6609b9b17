"""An actor's loop: one unit of work per step, rest when there is none, stop when asked."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from pacs_ai.errors import Transient

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

#: Seconds to rest after a step failed, doubled up to the last.
_PAUSES = (0.2, 0.5, 1.0, 2.0, 5.0)


def run(step: Callable[[], bool], rest: Callable[[], None], stop: threading.Event) -> None:
    """Call `step` until `stop` is set.

    Parameters
    ----------
    step
        Does one unit of work; True: there may be more, False: nothing to do now.
    rest
        Waits a little or until woken; called after a step that had nothing to do.
    stop
        Ends the loop after the step in progress.

    A `Transient` error of either (database away, disk full) is logged and the step tried again after a pause: the
    step's transaction was rolled back, so nothing is half done. Any other error ends the loop, and the supervisor
    starts the process anew.
    """
    failures = 0
    while not stop.is_set():
        try:
            if not step() and not stop.is_set():
                rest()
        except Transient as error:
            pause = _PAUSES[min(failures, len(_PAUSES) - 1)]
            failures += 1
            logging.getLogger("pacs_ai.loop").warning("step postponed for %.1f s: %s", pause, error)
            stop.wait(pause)
            continue
        failures = 0
