"""The commands."""

from __future__ import annotations

from pathlib import Path

import click

from pacs_ai import config as configuration
from pacs_ai import log


@click.group()
@click.option("--config", "-c", "path", type=click.Path(path_type=Path))
@click.pass_context
def main(context: click.Context, path: Path | None) -> None:
    """Cli."""
    context.obj = (path, configuration.load(path))


@main.command()
@click.argument("kind", required=False)
@click.option("--device")
@click.option("--supervisor", type=int)
@click.pass_obj
def run(obj, kind, device, supervisor):
    from pacs_ai import node

    log.configure(kind or "node", "debug")
    node.run(obj[1], obj[0], kind, device, supervisor)
