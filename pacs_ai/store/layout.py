"""How the store's folder is laid out: 256 folders of finished files, one of those being written, and their locks."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
from typing import TYPE_CHECKING

from pacs_ai.store.disk import READ

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SHA256 = re.compile(r"[0-9a-f]{64}")
SHARDS = tuple(f"{number:02x}" for number in range(256))
#: Of files that are not whole yet.
NEW = ".new"


@contextlib.contextmanager
def locked(folder: Path, kind: int) -> Iterator[None]:
    """Hold a folder's lock (`fcntl.LOCK_SH`, `LOCK_EX`): who finds a file already there against who sweeps it away."""
    descriptor = os.open(folder, READ | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, kind)
        yield
    finally:
        os.close(descriptor)
