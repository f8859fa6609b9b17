"""How the place where data lie behaves: kind of file system, speed of a synced write, durability of the database."""

from __future__ import annotations

import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy as sa

from pacs_ai.errors import UserError

if TYPE_CHECKING:
    from pacs_ai.store.database import Database

_SQLITE = "sqlite:///"
_TRIES = 5
#: Settings of `synchronous_commit` with which PostgreSQL flushes its own log before it answers, whatever standbys do.
_FLUSHED = frozenset({"on", "local", "remote_write", "remote_apply"})
_BLOCK = b"\0" * 65536


@dataclass(frozen=True)
class Mount:
    """The file system that a path lies on."""

    place: str
    kind: str
    source: str


def mount_of(path: Path) -> Mount:
    """Return what is mounted where the path lies, by /proc/self/mountinfo (proc(5)); OSError where it is not there."""
    real = str(path.resolve(strict=True))
    best = Mount("", "unknown", "")
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines():
        left, _, right = line.partition(" - ")
        place = left.split()[4].encode().decode("unicode_escape")
        kind, source = right.split()[:2]
        inside = real == place or real.startswith(place.rstrip("/") + "/")
        if inside and len(place) >= len(best.place):
            best = Mount(place, kind, source)
    return best


def sync_milliseconds(folder: Path) -> float:
    """Return how long a write of 64 kB takes until it is on the disk, median of five, in ms; OSError where none can."""
    times = []
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".probe-") as file:
        for _ in range(_TRIES):
            start = time.perf_counter()
            file.write(_BLOCK)
            file.flush()
            os.fsync(file.fileno())
            times.append((time.perf_counter() - start) * 1000)
    return sorted(times)[_TRIES // 2]


def is_made(url: str) -> bool:
    """Tell whether there can be a database at the URL: False where it is SQLite and its file is not there."""
    return not url.startswith(_SQLITE) or Path(url.removeprefix(_SQLITE)).is_file()


def prove_encoding(database: Database) -> None:
    """Raise UserError where a PostgreSQL database cannot hold every character; where it is away, others say so."""
    if database.is_sqlite:
        return
    from pacs_ai.store.postgres import encoding_of  # psycopg: a node on SQLite does without

    encoding = encoding_of(database.url)
    if encoding not in {"", "UTF8"}:
        raise UserError(
            f"store.database is encoded in {encoding}, which does not hold every name: make one with "
            "CREATE DATABASE ... ENCODING 'UTF8' TEMPLATE template0"
        )


def durability(database: Database) -> tuple[bool, str]:
    """Return whether a commit is on the disk when it returns, and what the database says about it."""
    with database.read() as connection:
        if database.is_sqlite:
            mode = str(connection.execute(sa.text("PRAGMA journal_mode")).scalar_one())
            level = int(connection.execute(sa.text("PRAGMA synchronous")).scalar_one())
            return (mode, level) == ("wal", 2), f"journal_mode={mode}, synchronous={level} (2 is FULL)"
        version = str(connection.execute(sa.text("SHOW server_version")).scalar_one())
        commit = str(connection.execute(sa.text("SHOW synchronous_commit")).scalar_one())
        sync = str(connection.execute(sa.text("SHOW fsync")).scalar_one())
    sound = commit in _FLUSHED and sync == "on"
    return sound, f"PostgreSQL {version}, fsync={sync}, synchronous_commit={commit}"
