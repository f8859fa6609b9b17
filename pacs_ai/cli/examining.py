"""Examine the installation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from pacs_ai.cli import words
from pacs_ai.cli.session import Session, pass_session
from pacs_ai.cli.words import TROUBLE, as_json, example

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from pacs_ai.doctor.findings import Finding

_STYLES = {"ok": "green", "warning": "yellow", "fault": "bold red"}


@click.command(epilog=example("pacs-ai doctor", "pacs-ai --config new.toml doctor --json"))
@as_json
@pass_session
def doctor(session: Session, *, as_json: bool) -> None:
    """Examine all that the node needs; say what to do about faults.

    Configuration, certificates, libraries, data folder, database, audit trail, decoders, device, port, and every peer
    by C-ECHO and by what it accepts. Changes nothing; the node may run or not. Exit code 0: no fault, perhaps
    warnings. 1: faults.
    """
    from pacs_ai.cli import progress
    from pacs_ai.doctor import Level, examinations

    found: list[Finding] = []
    with progress.steps(transient=True) as begin:
        for name, look in examinations(session.config):
            begin(name)
            found += look()
    faults = [finding for finding in found if finding.level is Level.FAULT]
    if as_json:
        words.print_json({"configuration": session.place, "sound": not faults, "findings": found})
    else:
        click.echo(f"configuration: {session.place}")
        show(found, words.console())
    click.get_current_context().exit(TROUBLE if faults else 0)


def show(found: Sequence[Finding], out: Console) -> None:
    """Print findings as a table, what to do under each fault, and their number."""
    from rich.text import Text

    drawn = words.table("", "what", "which", "how it stands")
    for finding in found:
        style = _STYLES[finding.level]
        told = Text.assemble(finding.words, (f"\n→ {finding.advice}" if finding.advice else "", "italic"))
        words.rows(drawn, [(Text(finding.level, style=style), finding.area, finding.subject, told)])
    out.print(drawn)
    counts = {level: sum(finding.level == level for finding in found) for level in ("fault", "warning")}
    out.print()
    out.print(f"{words.many(counts['fault'], 'fault')}, {words.many(counts['warning'], 'warning')}")
