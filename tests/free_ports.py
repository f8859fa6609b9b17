"""Loopback ports for the servers that tests start: ports that nothing else on this machine is about to take."""

from __future__ import annotations

import itertools
import os
import re
import socket

#: Ports below those that Linux gives to connections and to servers that ask for any (32768 and up): what was found free
#: here stays free until the server that it is for has started, and while that server is stopped and started again.
FIRST, PORTS_OF_A_WORKER, WORKERS = 12000, 2000, 10


def _own_ports() -> range:
    """Return the ports of this process, where pytest-xdist runs several: each worker has its own."""
    number = int(re.sub(r"\D", "", os.environ.get("PYTEST_XDIST_WORKER", "")) or 0) % WORKERS
    return range(FIRST + number * PORTS_OF_A_WORKER, FIRST + (number + 1) * PORTS_OF_A_WORKER)


def _from_anywhere() -> itertools.cycle[int]:
    """Give this process's ports for ever; two runs of the tests at a time begin at different ones."""
    own = _own_ports()
    start = os.getpid() * 37 % len(own)
    return itertools.cycle([*own[start:], *own[:start]])


_PORTS = _from_anywhere()


def free_port() -> int:
    """Return a loopback port on which nobody listens, at each call another; `AssertionError` where all are taken."""
    for port in itertools.islice(_PORTS, PORTS_OF_A_WORKER):
        with socket.socket() as sock:
            try:
                sock.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError(f"none of the {PORTS_OF_A_WORKER} ports from {_own_ports()[0]} on is free")
