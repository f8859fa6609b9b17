"""The commands of `pacs-ai`: what an administrator types, and what is said back in plain words."""

from __future__ import annotations

from pathlib import Path

import click

from pacs_ai.cli import (
    configuring,
    examining,
    explaining,
    looking,
    modelling,
    offline,
    ordering,
    peers,
    replaying,
    retracting,
    running,
    selftesting,
)
from pacs_ai.cli.session import Session, pass_session
from pacs_ai.cli.words import Group, example

__all__ = ["main", "pass_session"]


@click.group(
    cls=Group,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=example(
        "pacs-ai config check",
        "pacs-ai run",
        "pacs-ai status",
    ),
)
@click.option(
    "--config",
    "-c",
    "path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Configuration file. Without it ./pacs-ai.toml, else /etc/pacs-ai/pacs-ai.toml, else built-in defaults.",
)
@click.version_option(package_name="pacs_ai", message="pacs-ai %(version)s")
@click.pass_context
def main(context: click.Context, path: Path | None) -> None:
    """pacs_ai: the AI node for a PACS. It receives studies by DICOM, runs models on them, and sends SEG and SR back.

    A research tool, not a medical device: its results are marked as AI and as not verified.
    """
    context.obj = Session(path, context.invoked_subcommand)


for command in (
    running.run,
    running.demo,
    looking.status,
    looking.studies,
    looking.jobs,
    looking.deliveries,
    ordering.retry,
    ordering.cancel,
    ordering.pause,
    ordering.resume,
    ordering.resolve,
    ordering.lift,
    retracting.retract,
    explaining.explain,
    offline.infer,
    replaying.replay,
    peers.echo,
    peers.send,
    selftesting.selftest,
    modelling.models,
    configuring.config,
    examining.doctor,
):
    main.add_command(command)
