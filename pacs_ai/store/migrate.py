"""Bring the database to this release's schema."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from alembic.config import Config as AlembicConfig
from alembic.runtime.environment import EnvironmentContext
from alembic.script import ScriptDirectory

from pacs_ai.store import probe, schema

if TYPE_CHECKING:
    from alembic.runtime.migration import MigrationContext

    from pacs_ai.store.database import Database

_FOLDER = Path(__file__).parent / "migrations"


def _alembic() -> tuple[AlembicConfig, ScriptDirectory]:
    config = AlembicConfig()
    config.set_main_option("script_location", str(_FOLDER))
    config.set_main_option("path_separator", "os")
    return config, ScriptDirectory.from_config(config)


def upgrade(database: Database) -> None:
    """Apply the migrations that are missing, in one transaction; several nodes at once are safe.

    UserError where the database cannot hold what the node writes.
    """
    probe.prove_encoding(database)
    config, scripts = _alembic()

    def missing(revision: str, _context: MigrationContext) -> Any:
        return scripts._upgrade_revs("head", revision)  # noqa: SLF001 - what alembic.command.upgrade itself calls

    with database.write() as connection:
        if not database.is_sqlite:
            connection.execute(sa.text("SET LOCAL lock_timeout = 0"))  # another's migration may take its time
            connection.execute(sa.text("SELECT pg_advisory_xact_lock(6150111)"))
        with EnvironmentContext(config, scripts, fn=missing, destination_rev="head") as environment:
            environment.configure(connection=connection, target_metadata=schema.metadata)
            environment.run_migrations()
