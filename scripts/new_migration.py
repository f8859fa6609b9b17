"""Write the migration from the newest one to today's schema: scripts/new_migration.py "What it does"."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from alembic import autogenerate
from alembic.migration import MigrationContext

from pacs_ai.store import migrate, schema
from pacs_ai.store.database import Database

_TEMPLATE = '''"""{title}."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "{revision}"
down_revision = {parent!r}
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    {up}


def downgrade() -> None:
    """There is no way back: restore the copy of the data folder that was made before."""
    raise NotImplementedError("restore the copy of the data folder that was made before the upgrade")
'''


def main(title: str) -> None:
    folder = Path(migrate.__file__).parent / "migrations" / "versions"
    known = sorted(path.stem for path in folder.glob("[0-9]*.py"))
    with tempfile.TemporaryDirectory() as scratch:
        database = Database(f"sqlite:///{scratch}/x.sqlite")
        migrate.upgrade(database)
        with database.read() as connection:
            context = MigrationContext.configure(connection, opts={"compare_type": True})
            changes = autogenerate.produce_migrations(context, schema.metadata)
    assert changes.upgrade_ops is not None
    revision = f"{len(known) + 1:04d}"
    body = autogenerate.render_python_code(changes.upgrade_ops)
    body = body.replace("pacs_ai.store.schema.Instant(precision=53)", "sa.Float(53)")
    body = "\n".join(line for line in body.splitlines() if not line.strip().startswith("#")).strip()
    path = folder / f"{revision}_{title.lower().replace(' ', '_')}.py"
    path.write_text(_TEMPLATE.format(title=title, revision=revision, parent=known[-1][:4] if known else None, up=body))
    print(path)


if __name__ == "__main__":
    main(sys.argv[1])
