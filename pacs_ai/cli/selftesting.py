"""Let an administrator see whether the hospital's own viewer shows results where they belong."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pacs_ai.cli import words
from pacs_ai.cli.peers import peer_of
from pacs_ai.cli.session import Session, pass_session
from pacs_ai.cli.words import TROUBLE, as_json, example

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydicom import Dataset

    from pacs_ai.deliver.connection import Remote
    from pacs_ai.deliver.scu import Outcome
    from pacs_ai.encode.encoded import Encoded
    from pacs_ai.profiles import Plan

PICTURE = "expected.png"
_LOOK = """\
Open the study "pacs_ai orientation self-test" of the patient PACS-AI-SELFTEST in your viewer and look:

  1. The letters are readable and not mirrored. In an axial slice L is on the right of the screen, R on the left,
     A above and P below; H lies in the slices at the head end, F in those at the feet end.
  2. Each overlay covers exactly its letter: red L, green R, blue A, yellow P, violet H, turquoise F.
  3. Each value belongs to its letter, and each outline lies on the slice where its letter is.

Where an overlay is mirrored, shifted or on other slices, do not use this viewer for results of this node.
The study is of no patient; delete it when you have looked."""


@click.command(epilog=example("pacs-ai selftest main-pacs", "pacs-ai selftest main-pacs --out /tmp/selftest"))
@click.argument("peer", metavar="PEER | AE@HOST:PORT")
@click.option("--profile", help="Profile to test. Default: the peer's own.")
@click.option(
    "--out",
    "-o",
    type=click.Path(path_type=Path, file_okay=False),
    help=f"Keep what is sent in this folder, with {PICTURE}: what a correct viewer shows.",
)
@as_json
@pass_session
def selftest(session: Session, peer: str, profile: str | None, out: Path | None, *, as_json: bool) -> None:
    """Send a peer letters and their known places, to check its viewer.

    The CT shows letters for left, right, front, back, head and feet; the result marks each of them, written as the
    peer's profile says. Exit code 0: the peer has everything; whether its viewer shows it right, a person has to see.
    """
    from pacs_ai.deliver import addresses, scu

    config = session.config
    chosen = peer_of(config, peer)
    plan = config.plan_of(profile or chosen.profile)
    remote = addresses.remote(config, chosen)
    with tempfile.TemporaryDirectory(prefix="pacs-ai-selftest-") as scratch:
        folder = out or Path(scratch)
        made = _make(folder, _taken(plan, remote), config.node.name)
        outcomes = [replace(one, comment="") for one in scu.send_files(remote, scu.scan(made).instances)]
    missing = [outcome for outcome in outcomes if not outcome.stored]
    if as_json:
        words.print_json({"peer": str(remote), "outcomes": outcomes})
    else:
        _say(str(remote), outcomes, missing, out)
    click.get_current_context().exit(TROUBLE if missing else 0)


def _taken(plan: Plan, remote: Remote) -> Plan:
    """Return the plan as the peer takes it: what it refuses replaced where the profile says by what."""
    from pacs_ai import profiles
    from pacs_ai.deliver import scu
    from pacs_ai.doctor.fitting import pair_of

    pairs = {pair for pair in map(pair_of, profiles.encodings([plan])) if pair is not None}
    answers = scu.accepted_contexts(remote, sorted(pairs))
    refused = {(one.sop_class_uid, one.transfer_syntax_uid) for one in answers if not one.accepted}
    reached: Plan | None = plan
    while reached is not None:
        plan = reached
        steps = (profiles.fall_back(plan, c.encoding.key) for c in plan if pair_of(c.encoding) in refused)
        reached = next((step for step in steps if step is not None), None)
    return plan


def _make(folder: Path, plan: Plan, node: str) -> list[Path]:
    """Write the series and its results, and return the files in the order in which they are sent."""
    from pacs_ai.encode.pictures.montage import montage
    from pacs_ai.testing import compass

    moment = datetime.now(UTC).replace(microsecond=0)
    datasets = compass.compass_series(moment)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, ds in enumerate(datasets, 1):
        paths.append(folder / f"CT-{number:03d}.dcm")
        ds.save_as(paths[-1], enforce_file_format=True)
    for number, one in enumerate(_encoded(datasets, plan, node, moment), 1):
        paths.append(folder / f"result-{number:02d}-{one.kind}.dcm")
        one.write(paths[-1])
    montage(compass.GRID.volume(), compass.compass_findings(), compass.CARD, folder / PICTURE)
    return paths


def _encoded(datasets: Sequence[Dataset], plan: Plan, node: str, moment: datetime) -> tuple[Encoded, ...]:
    from pacs_ai import __version__
    from pacs_ai.dicom.evidence import Evidence, FrameReference
    from pacs_ai.dicom.identifiers import digest
    from pacs_ai.encode.provenance import Work
    from pacs_ai.encode.results import encode
    from pacs_ai.testing import compass

    sources = tuple(datasets)
    evidence = Evidence(sources, tuple(FrameReference(ds.SOPClassUID, ds.SOPInstanceUID) for ds in sources))
    work = Work(
        job_key=digest("selftest", node, moment.isoformat()),
        generation=0,
        created_at=moment,
        card=compass.CARD,
        model_digest="",
        settings_digest="",
        parameters="",
        node_name=node,
        software_version=__version__,
    )
    wanted = tuple(choice.encoding for choice in plan)
    return encode(compass.compass_findings(), {"image": evidence}, {"image": compass.GRID.volume()}, work, wanted)


def _say(remote: str, outcomes: Sequence[Outcome], missing: Sequence[Outcome], out: Path | None) -> None:
    click.echo(f"{remote} has {len(outcomes) - len(missing)} of {words.many(len(outcomes), 'instance')}.")
    for reason in dict.fromkeys(outcome.words for outcome in missing):
        click.echo(f"pacs-ai: not stored: {reason}", err=True)
    if out is not None:
        click.echo(f"What a correct viewer shows: {out / PICTURE}")
    click.echo(f"\n{_LOOK}")
