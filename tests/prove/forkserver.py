"""A process with every module imported that forks a node whenever one is wanted, in a few milliseconds.

It reads one JSON object per line (`make`: a store, `tables`: those of a server, `fork`: a node, `reap`: its status) and
answers each with one.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any


def serve() -> None:
    """Obey until the harness closes the pipe."""
    from prove import bugs, faults, stories, victim, warm  # noqa: F401 - imported before any fork

    victim.prepare()
    try:
        with tempfile.TemporaryDirectory(prefix="prove-warm-") as folder:
            warm.warm(Path(folder))
    except BaseException:  # noqa: BLE001 - the outermost frame of a process
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(71)  # threads of the node still run
    gc.collect()
    gc.freeze()
    _say({"ready": True})
    for line in sys.stdin:
        word = json.loads(line)
        if word["do"] == "fork":
            _say({"pid": _fork(word["order"])})
        elif word["do"] == "make":
            victim.make_store(Path(word["folder"]))
            _say({"made": word["folder"]})
        elif word["do"] == "tables":
            victim.make_tables(word["url"])
            _say({"made": word["url"]})
        else:
            _, status = os.waitpid(word["pid"], 0)
            _say({"status": os.waitstatus_to_exitcode(status)})


def _fork(order: dict[str, Any]) -> int:
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    with open(order["log"], "a") as log:  # noqa: PTH123 - its descriptor outlives the block
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    try:
        from prove import victim

        victim.live(order)
    except BaseException:  # noqa: BLE001 - the outermost frame of a process
        traceback.print_exc()
    sys.stderr.flush()
    os._exit(71)


def _say(words: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(words) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    serve()
