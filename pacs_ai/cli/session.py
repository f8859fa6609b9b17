"""What every command starts from: which configuration file counts, and the node's database behind it."""

from __future__ import annotations

import getpass
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pacs_ai import lean

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pacs_ai.config import Config
    from pacs_ai.store.database import Connection, Database

#: Where the configuration is looked for, the first that is there.
PLACES = (Path("pacs-ai.toml"), Path("/etc/pacs-ai/pacs-ai.toml"))


@dataclass(frozen=True)
class Session:
    """One call of `pacs-ai`.

    Parameters
    ----------
    given
        The file named by ``--config``, None where it was not given.
    command
        The command that was called; where it needs no decoders, none are loaded.
    """

    given: Path | None
    command: str | None = None

    @cached_property
    def path(self) -> Path | None:
        """The configuration file that counts; None: the built-in defaults."""
        if self.given is not None:
            return self.given
        return next((place.resolve() for place in PLACES if place.is_file()), None)

    @property
    def place(self) -> str:
        """What the configuration is called in messages."""
        return str(self.path) if self.path is not None else "the built-in defaults (no pacs-ai.toml was found)"

    @cached_property
    def config(self) -> Config:
        """The configuration; `UserError` with every fault where it has any."""
        if self.command not in lean.COMMANDS_WITH_PIXELS:
            lean.load_pydicom()
        from pacs_ai import config

        return config.load(self.path)

    @contextmanager
    def database(self) -> Iterator[Database]:
        """Open the node's database, which is there once the node has been started; `UserError` where it is not."""
        from pacs_ai.errors import UserError
        from pacs_ai.store import probe, version
        from pacs_ai.store.database import Database

        url = self.config.database_url
        if not probe.is_made(url):
            raise UserError(
                f"there is no database in {self.config.store.folder}: start the node once (pacs-ai run), or name the "
                f"configuration file of the node that you mean (pacs-ai --config FILE); used was {self.place}"
            )
        database = Database(url)
        try:
            version.check(database)
            yield database
        finally:
            database.close()

    @contextmanager
    def ordering(self) -> Iterator[Database]:
        """Open the node's database for an order; the audit trail gets who gave it, and what was ordered."""
        from pacs_ai.store import trail
        from pacs_ai.store.clock import now

        with self.database() as database:
            if self.config.audit.is_kept:
                order = trail.Notice(trail.NoticeKind.COMMAND, now(), _order(), actor=self.actor)
                trail.note(database, [order])
            yield database

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """Open the node's database and yield a connection that sees one consistent state."""
        with self.database() as database, database.read() as connection:
            yield connection

    @property
    def actor(self) -> str:
        """Who gives an order, for the journal: the login name of this terminal."""
        try:
            return f"operator:{getpass.getuser()}"[:128]
        except (KeyError, OSError):  # a uid without a name, in a container
            return "operator"


pass_session = click.make_pass_decorator(Session)


def _order() -> str:
    """Return the command that runs, with what was given to it."""
    context = click.get_current_context()
    given = [
        f"{name}={_told(value)}" for name, value in sorted(context.params.items()) if value not in (None, False, ())
    ]
    return " ".join((context.command_path, *given))


def _told(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
