"""Which schema this release works on; a database with another is refused, in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

import sqlalchemy as sa

from pacs_ai.errors import UserError

if TYPE_CHECKING:
    from pacs_ai.store.database import Database

#: The newest migration; held against the migrations by a test.
SCHEMA = "0001"


def check(database: Database) -> None:
    """Raise `UserError` where the database has another release's schema, or none."""
    with database.read() as connection:
        found = None
        if sa.inspect(connection).has_table("alembic_version"):
            found = connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar_one_or_none()
    if found == SCHEMA:
        return
    if found is None:
        raise UserError(f"there is no pacs_ai database at {database_name(database)} yet: start the node (pacs-ai run)")
    raise UserError(
        f"the database at {database_name(database)} has schema {found}, this release works on {SCHEMA}: start the node "
        "with this release once (pacs-ai run), or use the release that wrote it"
    )


def database_name(database: Database) -> str:
    """Return the database's URL without its password."""
    return sa.make_url(database.url).render_as_string(hide_password=True)
