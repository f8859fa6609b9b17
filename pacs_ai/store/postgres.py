"""What only a node on PostgreSQL needs: to be woken by LISTEN and NOTIFY, and to know the database's encoding."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import psycopg
import sqlalchemy as sa

from pacs_ai.store.bell import Bell

if TYPE_CHECKING:
    import threading


#: Longest wait for the server to answer.
_CONNECT_SECONDS = 5


def _connect(url: str) -> psycopg.Connection[Any]:
    dsn = sa.make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    return psycopg.connect(dsn, autocommit=True, connect_timeout=_CONNECT_SECONDS)


def encoding_of(url: str) -> str:
    """Return how a database encodes text, "" where it is away.

    SQLAlchemy cannot connect to one without any encoding (SQL_ASCII), so it is asked without.
    """
    try:
        with _connect(url) as connection:
            return connection.info.parameter_status("server_encoding") or ""
    except psycopg.OperationalError:
        return ""


class PostgresBell(Bell):
    """LISTENs; a lost connection is opened anew, and the poll meanwhile is once a second."""

    def __init__(self, url: str, channel: str) -> None:
        self._channel = channel
        self._url = url
        self._connection: psycopg.Connection[Any] | None = None

    def wait(self, seconds: float, stop: threading.Event) -> bool:
        """Wait for a notification, in short turns so that `stop` is seen; what else has come is one ring with it."""
        until = time.monotonic() + seconds
        while not stop.is_set():
            left = until - time.monotonic()
            if left <= 0:
                return False
            try:
                connection = self._connected()
                heard = list(connection.notifies(timeout=min(left, 0.25), stop_after=1))
                if heard:
                    list(connection.notifies(timeout=0))
            except psycopg.Error:
                self.close()
                stop.wait(min(left, 1.0))
                continue
            if heard:
                return True
        return False

    def _connected(self) -> psycopg.Connection[Any]:
        if self._connection is None:
            self._connection = _connect(self._url)
            self._connection.execute(f"LISTEN {self._channel}")
        return self._connection

    def close(self) -> None:
        """Give back the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
