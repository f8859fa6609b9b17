"""Whether the folder of files and the database belong together: a file that no row names is deleted after an hour.

<store>/files/store.id    a random number, which the database holds too
"""

from __future__ import annotations

import os
import secrets
from typing import TYPE_CHECKING

import sqlalchemy as sa

from pacs_ai.errors import UserError
from pacs_ai.store import schema
from pacs_ai.store.disk import CREATE, READ, write
from pacs_ai.store.version import database_name

if TYPE_CHECKING:
    from pathlib import Path

    from pacs_ai.store.database import Database
    from pacs_ai.store.files import Files

_NAME = "store.id"
_identity = schema.identity


def join(database: Database, files: Files) -> None:
    """Let folder and database know each other where they do not yet, and prove that they do.

    Raises
    ------
    UserError
        The folder's files have their rows in another database.
    OutOfResources, Unavailable
        Disk or database are not to be had.
    """
    theirs = _of_folder(files.folder)
    with database.write() as connection:
        found = connection.execute(sa.select(_identity.c.store_id)).scalar_one_or_none()
        if theirs is None and found is None:
            new = {"id": 1, "store_id": secrets.token_hex(16)}
            connection.execute(database.insert_new(_identity), new)
            found = connection.execute(sa.select(_identity.c.store_id)).scalar_one()
    if theirs is None and found is not None:  # the folder is the last to know: a crash before leaves it without
        _write(files, found)
    elif theirs != found:
        raise UserError(
            f"the files in {files.folder} have their rows in another database than {database_name(database)}, and "
            "would be deleted as if nobody knew them: put that database back (store.database, or its backup); or move "
            "that folder away, begin with an empty one, and send from it what is wanted again (pacs-ai send)"
        )


def _of_folder(folder: Path) -> str | None:
    try:
        with os.fdopen(os.open(folder / _NAME, READ), "rb") as file:
            return file.read(64).decode("ascii", "replace").strip()
    except FileNotFoundError:
        return None


def _write(files: Files, store_id: str) -> None:
    new, path = files.new_path(), files.folder / _NAME
    with files.disk.storing(new):
        descriptor = os.open(new, CREATE, 0o600)
        try:
            write(descriptor, store_id.encode() + b"\n")
            files.disk.sync(descriptor)
        finally:
            os.close(descriptor)
        new.replace(path)
        files.disk.sync_path(files.folder, READ | os.O_DIRECTORY)
