"""The one database: SQLite on one machine, PostgreSQL where several share the work.

SQLite runs in WAL mode with synchronous=FULL, so that a commit is on the platter when it returns (both are read back
when the database is opened); writers queue at BEGIN IMMEDIATE. Where somebody deletes or replaces its file, SQLite goes
on in the one that has no name any more: that is looked for with every transaction.
"""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy import Connection, event
from sqlalchemy.dialects import sqlite
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from pacs_ai.errors import Unavailable, UserError
from pacs_ai.store.bell import Bell, SqliteBell

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator

__all__ = ["Bell", "Connection", "Contended", "Database"]

#: NOTIFY on it wakes who waits.
CHANNEL = "pacs_ai"
#: Rings the bell where this transaction wrote anything; a transaction that only looked wakes nobody.
_RING = sa.text(f"SELECT pg_notify('{CHANNEL}', '') WHERE pg_current_xact_id_if_assigned() IS NOT NULL")
#: SQLSTATEs of PostgreSQL: serialization_failure, deadlock_detected.
_CONTENDED = frozenset({"40001", "40P01"})
#: Longest wait for another's lock.
_BUSY_SECONDS = 5.0
#: libpq's parameters: a server that is gone is noticed within half a minute.
_POSTGRES = {
    "client_encoding": "utf8",
    "connect_timeout": 5,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 25_000,
}


class Contended(Unavailable):
    """Two transactions stood in each other's way and this one was undone; it may go through at once."""


#: What SQLite says -> what may be the matter.
_HINTS = {
    "disk I/O error": " (is the disk full, read-only or broken?)",
    "unable to open database file": " (may this user read and write store.folder?)",
    "readonly database": " (may this user write store.folder, and is it mounted for writing?)",
    "malformed": " (its file is damaged: stop the node and restore a backup)",
    "not a database": " (its file is damaged, or of another program: stop the node and restore a backup)",
}


def understood(url: str) -> sa.URL:
    """Return a database's URL in its parts; UserError where it is none, or of another kind of database."""
    try:
        parsed = sa.make_url(url)
    except SQLAlchemyError as error:
        raise UserError(f"store.database is no database URL: {error}") from error
    if parsed.get_backend_name() not in {"sqlite", "postgresql"} or parsed.get_driver_name() not in {
        "pysqlite",
        "psycopg",
    }:
        raise UserError("store.database must be sqlite:///PATH or postgresql+psycopg://USER@HOST/NAME")
    return parsed


class Database:
    """Connections, transactions and the bell that wakes the others.

    Parameters
    ----------
    url
        SQLAlchemy URL: ``sqlite:///path`` or ``postgresql+psycopg://...``.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        parsed = understood(url)
        self.is_sqlite = parsed.get_backend_name() == "sqlite"
        self._path = Path(parsed.database) if self.is_sqlite and parsed.database else None
        self._file: tuple[int, int] | None = None
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # an error's text holds the statement; what is bound to it is patients'
        self.engine = sa.create_engine(url, pool_pre_ping=not self.is_sqlite, hide_parameters=True, **self._options())
        self._reader = self.engine
        if self.is_sqlite:
            event.listen(self.engine, "do_connect", self._before_connect)
            event.listen(self.engine, "connect", self._configure_sqlite)
            event.listen(self.engine, "begin", _begin_sqlite)
        else:
            self._reader = self.engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)

    def _options(self) -> dict[str, Any]:
        if self.is_sqlite:
            return {"connect_args": {"timeout": _BUSY_SECONDS, "check_same_thread": False}, "pool_size": 8}
        return {"pool_size": 8, "connect_args": _POSTGRES | {"options": f"-c lock_timeout={_BUSY_SECONDS:g}s"}}

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """Yield a connection in one transaction, committed at the end; `Unavailable` where the database is away."""
        self._prove_there()
        with self._guarded(), self.engine.connect().execution_options(writes=True) as connection, connection.begin():
            yield connection
            if not self.is_sqlite:
                connection.execute(_RING)
        self._prove_there()  # else it was committed to a file that has no name

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Yield a connection that sees one consistent state."""
        self._prove_there()
        with self._guarded(), self._reader.connect() as connection, connection.begin():
            yield connection

    def _before_connect(self, *_: object) -> None:
        """Open nothing, and make no empty file, in the place of the one that was there."""
        self._prove_there()

    def _configure_sqlite(self, connection: sqlite3.Connection, _record: object) -> None:
        _configure_sqlite(connection)
        if self._file is None:
            self._file = self._found()

    def _found(self) -> tuple[int, int] | None:
        """Return what identifies the file that has the database's name now; None where none has."""
        if self._path is None:
            return None
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_dev, found.st_ino

    def _prove_there(self) -> None:
        """Raise Unavailable where SQLite's file is not the one that was opened first."""
        if self._file is not None and self._found() != self._file:
            raise Unavailable(
                f"the database's file {self._path} was deleted or replaced: stop the node, put the file back, start "
                "the node; what was answered Success meanwhile then gets its rows"
            )

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except DBAPIError as error:
            if isinstance(error, sa.exc.IntegrityError | sa.exc.ProgrammingError | sa.exc.DataError):
                raise
            if getattr(error.orig, "sqlstate", None) in _CONTENDED:
                raise Contended("another transaction was in the way") from error
            words = str(error.orig).partition("\n")[0]
            hint = next((hint for told, hint in _HINTS.items() if told in words), "")
            raise Unavailable(f"the database does not answer: {words}{hint}") from error
        except sa.exc.TimeoutError as error:
            raise Unavailable("the database has no free connection") from error

    def insert_new(self, table: sa.Table) -> Any:
        """Return an INSERT that skips a row which is there already (ON CONFLICT DO NOTHING)."""
        statement = self._insert(table)
        return statement.on_conflict_do_nothing()

    def insert_adding(self, table: sa.Table, keys: list[str], counter: sa.Column[int]) -> Any:
        """Return an INSERT that adds to the counter of a row which is there already."""
        statement = self._insert(table)
        added = counter + statement.excluded[counter.name]
        return statement.on_conflict_do_update(index_elements=keys, set_={counter.name: added})

    def insert_over(self, table: sa.Table, keys: list[str]) -> Any:
        """Return an INSERT that takes the place of a row which is there already."""
        statement = self._insert(table)
        others = {column.name: statement.excluded[column.name] for column in table.c if column.name not in keys}
        return statement.on_conflict_do_update(index_elements=keys, set_=others)

    def _insert(self, table: sa.Table) -> Any:
        """Return the dialect's INSERT, which knows ON CONFLICT."""
        if self.is_sqlite:
            return sqlite.insert(table)
        from sqlalchemy.dialects import postgresql  # psycopg comes with it

        return postgresql.insert(table)

    def bell(self) -> Bell:
        """Return something to wait on until the database changes."""
        if self.is_sqlite:
            return SqliteBell(self.engine)
        from pacs_ai.store.postgres import PostgresBell  # psycopg: a node on SQLite does without

        return PostgresBell(self.url, CHANNEL)

    def close(self) -> None:
        """Close every connection."""
        self.engine.dispose()


def _configure_sqlite(connection: sqlite3.Connection) -> None:
    connection.isolation_level = None  # transactions are begun by _begin_sqlite
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA foreign_keys=ON")
    mode = cursor.execute("PRAGMA journal_mode").fetchone()[0]
    synchronous = cursor.execute("PRAGMA synchronous").fetchone()[0]
    cursor.close()
    if (mode, synchronous) != ("wal", 2):
        raise UserError(
            f"SQLite cannot be made durable here (journal_mode={mode}, synchronous={synchronous}): put store.folder on "
            "a local file system"
        )


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
