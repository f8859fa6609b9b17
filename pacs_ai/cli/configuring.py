"""Look after the configuration: is it sound, what does it say, how is a model bundle entered."""

from __future__ import annotations

from pathlib import Path

import click

from pacs_ai.cli import words
from pacs_ai.cli.session import Session, pass_session
from pacs_ai.cli.words import TROUBLE, Group, as_json, example


@click.group(cls=Group, epilog=example("pacs-ai config check", "pacs-ai config show"))
def config() -> None:
    """Check the configuration, show it, enter a model bundle."""


@config.command(epilog=example("pacs-ai --config /etc/pacs-ai/pacs-ai.toml config check"))
@as_json
@pass_session
def check(session: Session, *, as_json: bool) -> None:
    """Check the configuration: is it sound, does it fit together.

    First every key of the file, then routes, pipelines and peers against each other.

    Exit code 0: sound, perhaps with warnings. 1: routes, pipelines and peers contradict each other. 2: a key is wrong.
    """
    from pacs_ai.cli.examining import show
    from pacs_ai.doctor import configuration
    from pacs_ai.doctor.findings import Level

    found = configuration.examine(session.config)
    faults = [finding for finding in found if finding.level is Level.FAULT]
    if as_json:
        words.print_json({"file": session.path, "sound": not faults, "findings": found})
    else:
        click.echo(session.place)
        show(found, words.console())
    click.get_current_context().exit(TROUBLE if faults else 0)


@config.command("show", epilog=example("pacs-ai config show", "pacs-ai config show --json"))
@as_json
@pass_session
def show_values(session: Session, *, as_json: bool) -> None:
    """Show every value in force and where it comes from.

    What is printed is a configuration file itself: defaults are commented out, secrets masked.
    """
    from pacs_ai.cli import effective

    found = effective.values(session.config, session.path)
    if as_json:
        words.print_json(found)
    else:
        click.echo(f"# {session.place}; what is commented out is a default\n")
        click.echo(effective.as_toml(found))


@config.command(epilog=example("pacs-ai config bundle /opt/models/spleen_ct_segmentation >> pacs-ai.toml"))
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
def bundle(folder: Path) -> None:
    """Print the [[pipeline]] table of a MONAI bundle.

    To be read, and pasted into the configuration. It names every file with its SHA-256: a bundle executes code, so the
    node runs only files that you have named. Labels are guessed from the bundle's own names; what could not be guessed
    is marked and has to be filled in.
    """
    from pacs_ai.cli import bundling

    click.echo(bundling.table(folder))
