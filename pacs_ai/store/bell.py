"""What wakes an actor when another committed."""

from __future__ import annotations

import sqlite3
import time
from typing import TYPE_CHECKING

from pacs_ai.errors import Unavailable

if TYPE_CHECKING:
    import threading

    import sqlalchemy as sa

_POLL_SECONDS = 0.02


class Bell:
    """Wakes an actor when another committed."""

    def wait(self, seconds: float, stop: threading.Event) -> bool:
        """Return after a commit (True), after `seconds` or when `stop` is set (False)."""
        raise NotImplementedError

    def close(self) -> None:
        """Give back the connection."""


class SqliteBell(Bell):
    """Looks at ``PRAGMA data_version``, which changes when another connection commits."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._raw = engine.raw_connection()
        self._version = self._read()

    def _read(self) -> int:
        cursor = self._raw.cursor()
        try:
            return int(cursor.execute("PRAGMA data_version").fetchone()[0])
        except sqlite3.Error as error:
            raise Unavailable(f"the database does not answer: {error}") from error
        finally:
            cursor.close()

    def wait(self, seconds: float, stop: threading.Event) -> bool:
        """Look every 20 ms."""
        until = time.monotonic() + seconds
        while True:
            version = self._read()
            if version != self._version:
                self._version = version
                return True
            left = until - time.monotonic()
            if left <= 0 or stop.wait(min(_POLL_SECONDS, left)):
                return False

    def close(self) -> None:
        """Give back the connection."""
        self._raw.close()
