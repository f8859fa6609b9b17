"""Call a peer by hand: whether it is there, and whether it takes what is sent."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pacs_ai.cli import words
from pacs_ai.cli.session import Session, pass_session
from pacs_ai.cli.words import TROUBLE, as_json, example, with_comments
from pacs_ai.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pacs_ai.config import Config
    from pacs_ai.deliver.scu import Outcome
    from pacs_ai.network_sections import Peer

_ADDRESS = re.compile(r"(?P<ae>[^@]+)@(?P<host>[^@]+):(?P<port>\d{1,5})")


@click.command(epilog=example("pacs-ai echo main-pacs", "pacs-ai echo ORTHANC@192.0.2.7:4242"))
@click.argument("peer", metavar="PEER | AE@HOST:PORT")
@as_json
@pass_session
def echo(session: Session, peer: str, *, as_json: bool) -> None:
    """Ask a peer whether it is there (C-ECHO).

    PEER is the name of a [[peer]] of the configuration, or an address. Exit code 0: it answered. 1: it did not.
    """
    from pacs_ai.deliver import addresses, scu

    config = session.config
    result = scu.echo(addresses.remote(config, peer_of(config, peer)))
    if as_json:
        words.print_json({"peer": peer, "answered": result.ms is not None, "ms": result.ms, "words": result.words})
    elif result.ms is not None:
        click.echo(f"{result.words} in {result.ms:.0f} ms")
    else:
        click.echo(f"pacs-ai: {result.words}", err=True)
    click.get_current_context().exit(0 if result.ms is not None else TROUBLE)


@click.command(epilog=example("pacs-ai send main-pacs /data/chest-ct", "pacs-ai send PACS_AI@localhost:11112 a.dcm"))
@click.argument("peer", metavar="PEER | AE@HOST:PORT")
@click.argument("paths", nargs=-1, required=True, metavar="PATH...", type=click.Path(path_type=Path, exists=True))
@with_comments
@as_json
@pass_session
def send(session: Session, peer: str, paths: Sequence[Path], *, comments: bool, as_json: bool) -> None:
    """Send DICOM files, or whole folders, to a peer (C-STORE).

    They are sent as they are, byte for byte. Exit code 0: the peer has all of them. 1: it does not.
    """
    from pacs_ai.cli import progress
    from pacs_ai.deliver import addresses, scu

    config = session.config
    remote = addresses.remote(config, peer_of(config, peer))
    found = scu.scan(paths)
    if not found.instances:
        why = f": {found.skipped[0][0]}: {found.skipped[0][1]}" if found.skipped else ""
        raise UserError(f"nothing to send: no DICOM file in {', '.join(map(str, paths))}{why}")
    with progress.counted(f"sending to {remote.ae_title}", len(found.instances)) as step:
        answers = scu.send_files(remote, found.instances, lambda _done, _total, _outcome: step())
    outcomes = answers if comments else [replace(one, comment="") for one in answers]
    missing = [outcome for outcome in outcomes if not outcome.stored]
    if as_json:
        words.print_json(
            {
                "peer": str(remote),
                "outcomes": outcomes,
                "skipped": [{"file": path, "why": why} for path, why in found.skipped],
            }
        )
    else:
        _summarise(str(remote), outcomes, missing, found.skipped)
    click.get_current_context().exit(TROUBLE if missing else 0)


def _summarise(
    remote: str, outcomes: Sequence[Outcome], missing: Sequence[Outcome], skipped: Sequence[tuple[Path, str]]
) -> None:
    click.echo(f"{remote} has {len(outcomes) - len(missing)} of {words.many(len(outcomes), 'instance')}")
    if skipped:
        path, why = skipped[0]
        click.echo(f"{words.many(len(skipped), 'file')} left out; the first, {path.name}: {why}")
    reasons: dict[str, list[Outcome]] = {}
    for outcome in missing:
        reasons.setdefault(words.said(outcome.words, outcome.comment), []).append(outcome)
    for reason, those in reasons.items():
        click.echo(f"pacs-ai: not stored: {words.many(len(those), 'instance')}: {reason}", err=True)


def peer_of(config: Config, name: str) -> Peer:
    """Return the configured peer of that name, or one for ``AE@HOST:PORT``; `UserError` where it is neither."""
    from pydantic import ValidationError

    from pacs_ai.model_sections import faults_in
    from pacs_ai.network_sections import Peer

    match = _ADDRESS.fullmatch(name)
    if match is None:
        return config.peer_named(name)
    try:
        return Peer(name="address", ae_title=match["ae"], host=match["host"].strip("[]"), port=int(match["port"]))
    except ValidationError as error:
        raise UserError(f"{name} is no address, which is written AE@HOST:PORT:\n{faults_in(error, Peer)}") from error
