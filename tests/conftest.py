"""What all tests share: real public data, databases of both kinds, and one loud skip where something is missing."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest
import sqlalchemy as sa
import work_order
from hypothesis import HealthCheck, settings
from stations import Sender, Stations, WallClock

from pacs_ai.store import clock, migrate, schema
from pacs_ai.store.database import Database

if TYPE_CHECKING:
    from collections.abc import Iterator

    from xdist.remote import Producer

    from pacs_ai.store.enqueue import Source

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED = REPOSITORY.parent / "shared"


#: The same examples each time, however slow the machine is; `--hypothesis-profile=further` seeks others.
settings.register_profile(
    "same", deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("further", settings.get_profile("same"), derandomize=False)
settings.load_profile("same")

_LOGGERS = (None, "pacs_ai", "pynetdicom", "pydicom", "py.warnings")
_LEVELS = {name: logging.getLogger(name).level for name in _LOGGERS}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes longest, where several run at a time."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        work_order.first_the_longest(items)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> work_order.Together:
    """Let modules that share a server run on one worker."""
    return work_order.Together(config, log)


@pytest.fixture(scope="session", autouse=True)
def _hooks():
    """What pytest does about errors that nobody catches."""
    return sys.excepthook, threading.excepthook, sys.unraisablehook


@pytest.fixture(autouse=True)
def _logging_as_at_the_start(_hooks):
    """Undo what a command run in this process did to logging (`pacs_ai.log.configure`), in whatever fixture."""
    sys.excepthook, threading.excepthook, sys.unraisablehook = _hooks
    for name, level in _LEVELS.items():
        logging.getLogger(name).setLevel(level)
    logging.captureWarnings(capture=False)
    logging.raiseExceptions = True


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real public series (MANIFEST.json says what and whose)."""
    folder = SHARED / "data"
    if not (folder / "MANIFEST.json").exists():
        pytest.skip("REAL DATA MISSING: ../shared/data is not beside this checkout, so nothing real was tested here")
    return folder


@pytest.fixture(scope="session")
def shared_bundles() -> Path:
    """Folder of MONAI model-zoo configurations that nobody here wrote."""
    folder = SHARED / "bundles"
    if not folder.exists():
        pytest.skip("BUNDLES MISSING: ../shared/bundles is not beside this checkout, so no zoo bundle was tested here")
    return folder


def _postgres_programs() -> Path:
    """Folder with initdb and postgres: Debian keeps them out of PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    on_path = shutil.which("initdb")
    if not found and on_path is None:
        pytest.skip("POSTGRESQL MISSING: no initdb (Debian's postgresql), so nothing was tested on PostgreSQL here")
    return found[-1].parent if found else Path(str(on_path)).resolve().parent


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """Give the URL of a private PostgreSQL, without a database's name: a Unix socket in a new folder, no TCP."""
    programs = _postgres_programs()
    folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))  # short, for the socket's path has 107 characters at most
    user = "postgres" if os.geteuid() == 0 else None  # it refuses to run as root
    if user:
        shutil.chown(folder, user)
    try:
        initdb = [programs / "initdb", "-D", folder / "data", "-U", "pacs_ai", "-A", "trust", "--no-sync", "-E", "UTF8"]
        subprocess.run(initdb, user=user, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        options = {"listen_addresses": "", "unix_socket_directories": folder, "max_connections": 200, "fsync": "off"}
        options["autovacuum"] = "off"  # it would take locks and numbers of transactions amid whatever test
        command = [programs / "postgres", "-D", folder / "data"]
        command += [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
        with (folder / "log").open("wb") as log:
            server = subprocess.Popen(command, user=user, cwd=folder, stdout=log, stderr=log)
        try:
            _await_postgres(folder, server)
            yield f"postgresql+psycopg://pacs_ai@/{{}}?host={folder}"
        finally:
            server.send_signal(signal.SIGINT)  # the fast shutdown: ends sessions
            server.wait(60)
    finally:
        shutil.rmtree(folder)


def _await_postgres(folder: Path, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            psycopg.connect(host=str(folder), user="pacs_ai", dbname="postgres").close()
        except psycopg.OperationalError:
            assert server.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline, (folder / "log").read_text()
            threading.Event().wait(0.05)
        else:
            return


def _execute(url: str, statement: str) -> None:
    engine = sa.create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(sa.text(statement))
    engine.dispose()


@pytest.fixture(scope="session")
def migrated_postgres(postgres: str) -> str:
    """URL of a PostgreSQL database with this release's schema; `database` empties it before each test."""
    _execute(postgres.format("postgres"), "CREATE DATABASE pacs_ai")
    database = Database(postgres.format("pacs_ai"))
    migrate.upgrade(database)
    database.close()
    return postgres.format("pacs_ai")


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """File with this release's schema, to copy."""
    path = tmp_path_factory.mktemp("template") / "pacs_ai.sqlite"
    database = Database(f"sqlite:///{path}")
    migrate.upgrade(database)
    database.close()
    return path


#: From so much on, what deleted rows left behind would slow down all tests to come.
_LARGE_BYTES = 4_000_000


def _empty(url: str) -> None:
    """Delete all rows and begin to count anew, in a third of the time of TRUNCATE, which makes files anew."""
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
        (size,) = connection.execute("SELECT sum(pg_relation_size(relid)) FROM pg_stat_user_tables").fetchone()
        names = [table.name for table in reversed(schema.metadata.sorted_tables)]
        if size > _LARGE_BYTES:
            connection.execute(f"TRUNCATE {', '.join(names)} RESTART IDENTITY CASCADE")
            return
        connection.execute("; ".join(f"DELETE FROM {name}" for name in names))
        connection.execute(
            "SELECT setval(format('%I.%I', schemaname, sequencename)::regclass, 1, false) "
            "FROM pg_sequences WHERE last_value IS NOT NULL"
        )


_ON_BOTH = ["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)]


@pytest.fixture(params=_ON_BOTH)
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """URL of a new, empty database of its own: once SQLite, once PostgreSQL."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'empty.sqlite'}"
        return
    postgres = request.getfixturevalue("postgres")
    name = f"pacs_ai_{uuid.uuid4().hex}"
    _execute(postgres.format("postgres"), f"CREATE DATABASE {name}")
    yield postgres.format(name)
    _execute(postgres.format("postgres"), f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(params=_ON_BOTH)
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """Open a database without rows that has this release's schema: once SQLite, once PostgreSQL."""
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path / 'pacs_ai.sqlite'}"
        shutil.copy(request.getfixturevalue("sqlite_template"), tmp_path / "pacs_ai.sqlite")
    else:
        url = request.getfixturevalue("migrated_postgres")
        _empty(url)
    with pytest.MonkeyPatch.context() as patch:  # for thirty writers at a time on a slow disk
        patch.setattr("pacs_ai.store.database._BUSY_SECONDS", 60.0)
        opened = Database(url)
    yield opened
    opened.close()


@pytest.fixture
def stations(database: Database) -> Iterator[Stations]:
    """Look into the database; after the test every move must be accounted for."""
    found = Stations(database)
    yield found
    found.account()


@pytest.fixture
def sender(database: Database, tmp_path: Path) -> Sender:
    """Bring instances into the index."""
    return Sender(database, tmp_path / "files")


@pytest.fixture
def source(stations: Stations, sender: Sender) -> Source:
    """A complete series of two instances."""
    sender.send(numbers=[1, 2])
    return stations.complete()


@pytest.fixture
def wall(monkeypatch: pytest.MonkeyPatch) -> WallClock:
    """The wall clock, to be set wrong."""
    off = WallClock()
    monkeypatch.setattr(clock, "datetime", off)
    return off
