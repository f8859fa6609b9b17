"""`pacs-ai retract`: withdraw results from every destination that has them, after saying what that will do."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import click

from pacs_ai.cli import words
from pacs_ai.cli.session import Session, pass_session
from pacs_ai.cli.words import as_json, example
from pacs_ai.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pacs_ai.config import Config
    from pacs_ai.store.database import Database
    from pacs_ai.store.retraction import Retraction

_UNITS = {"min": "minutes", "h": "hours", "d": "days"}
#: Options of the command line cannot come from the store: it would be imported for every help page.
_REASONS = ("safety", "quality", "worklist", "retention")


def _moment(context: click.Context, option: click.Parameter, text: str | None) -> datetime | None:
    """Return a point in time, in UTC; what has no time zone is this machine's."""
    if text is None:
        return None
    span = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(min|h|d)", text.strip())
    try:
        if span:
            return datetime.now(UTC) - timedelta(**{_UNITS[span[2]]: float(span[1])})
        return datetime.fromisoformat(text.strip()).astimezone(UTC)
    except (ValueError, OverflowError):
        words = f"{text!r} is no time: give 2h, 90min, 3d, 2026-11-01 or 2026-11-01T08:30"
        raise click.BadParameter(words, context, option) from None


@dataclass(frozen=True)
class _Choice:
    """Which jobs: by number, or of a pipeline in a span of time."""

    job_ids: Sequence[int]
    pipeline: str | None
    since: datetime | None
    until: datetime | None

    def check(self) -> None:
        """Refuse what is given amiss."""
        if bool(self.job_ids) == bool(self.pipeline):
            raise click.UsageError("name either jobs, or a --pipeline with --since; `pacs-ai jobs` lists them")
        if self.pipeline and self.since is None:
            raise click.UsageError("say since when with --since: nobody retracts all of a pipeline by mistake")
        if not self.pipeline and (self.since or self.until):
            raise click.UsageError("--since and --until belong to --pipeline")

    def find(self, database: Database) -> list[int]:
        """Return the jobs; `UserError` where there are none."""
        from pacs_ai.store import retraction

        if self.pipeline is None or self.since is None:
            return list(dict.fromkeys(self.job_ids))
        with database.read() as connection:
            found = retraction.find(connection, self.pipeline, self.since, self.until)
        if not found:
            raise UserError(f"{self.pipeline} has made no results in that time that could be retracted")
        return found


@click.command(
    epilog=example(
        'pacs-ai retract 17 --reason safety --because "left and right were swapped"',
        'pacs-ai retract --pipeline ct-lung --since 2h --reason quality --because "wrong weights"',
    )
)
@click.argument("job_ids", nargs=-1, type=int, metavar="[JOB]...")
@click.option("--pipeline", help="All jobs of this pipeline whose results were made since --since.")
@click.option("--since", callback=_moment, metavar="WHEN", help="2h, 90min, 3d, 2026-11-01 or 2026-11-01T08:30.")
@click.option("--until", callback=_moment, metavar="WHEN", help="Not those that were made later.")
@click.option(
    "--reason",
    type=click.Choice(_REASONS),
    required=True,
    help="Patient safety, quality, made for the wrong patient or order, or data retention policy.",
)
@click.option("--because", required=True, metavar="WORDS", help="Why, for the readers of the study; no patient's name.")
@click.option("--yes", is_flag=True, help="Do it without asking.")
@as_json
@pass_session
def retract(session: Session, /, reason: str, because: str, *, yes: bool, as_json: bool, **which: Any) -> None:
    """Withdraw results from every destination that may have them.

    Each destination gets a rejection note (IHE IOCM) that lists exactly what it has of the job. One whose profile says
    `honours_rejection_notes = false`, or that accepts no such note, gets a report and a picture that say RETRACTED.
    What was not sent yet is cancelled. `pacs-ai deliveries` shows the notes on their way.

    A rejection note hides results only in a PACS that honours it; another, Orthanc for one, stores it as mere data and
    shows the results as before. Look there, and set `honours_rejection_notes = false` where that is so.

    The pipeline goes on with new studies: `pacs-ai pause PIPELINE` stops it. `pacs-ai retry JOB` analyses a retracted
    study anew.
    """
    choice = _Choice(**which)
    choice.check()
    if not because.strip():
        raise click.UsageError("say why in --because: readers of the study see it")
    with session.ordering() as database:
        planned, wrong = _look(database, choice.find(database))
        if not yes:
            _show(planned, session.config)
        if planned and not yes:
            click.confirm(f"Retract {words.many(len(planned), 'job')}?", abort=True, err=True)
        done = _retract(session, database, [one.job_id for one in planned], reason, because.strip(), wrong)
    if as_json:
        words.print_json({"retracted": done, "not_retracted": wrong})
    else:
        for one in done:
            click.echo(_told(one))
    if wrong:
        raise UserError("; ".join(wrong))


def _look(database: Database, job_ids: Sequence[int]) -> tuple[list[Retraction], list[str]]:
    from pacs_ai.store import retraction

    planned, wrong = [], []
    for job_id in job_ids:
        try:
            with database.read() as connection:
                planned.append(retraction.look(connection, job_id))
        except UserError as error:
            wrong.append(str(error))
    return planned, wrong


def _retract(
    session: Session, database: Database, job_ids: Sequence[int], reason: str, because: str, wrong: list[str]
) -> list[Retraction]:
    from pacs_ai.store import retraction

    honours = _honours(session.config)
    done = []
    for job_id in job_ids:
        try:
            done.append(
                retraction.retract(
                    database, job_id, reason=reason, because=because, honours=honours, actor=session.actor
                )
            )
        except UserError as error:
            wrong.append(str(error))
    return done


def _honours(config: Config) -> dict[str, bool]:
    return {peer.name: config.profile_named(peer.profile).honours_rejection_notes for peer in config.peer}


def _show(planned: Sequence[Retraction], config: Config) -> None:
    honours = _honours(config)
    for one in planned:
        click.echo(f"job {one.job_id} ({one.pipeline}), study {one.study_instance_uid}", err=True)
        for peer, kinds in one.withdrawn.items():
            how = "a rejection note" if honours.get(peer, False) else "a report and a picture that say RETRACTED"
            click.echo(f"  {peer} has or may have {_counted(kinds)}: it gets {how}", err=True)
        if one.cancelled:
            click.echo(f"  not sent any more: {words.many(one.cancelled, 'delivery', 'deliveries')}", err=True)
        if not one.withdrawn:
            click.echo("  nothing of it has left the node", err=True)


def _counted(kinds: Sequence[str]) -> str:
    return ", ".join(kind if count == 1 else f"{count} {kind}" for kind, count in Counter(kinds).items())


def _told(one: Retraction) -> str:
    told = f"{', '.join(one.withdrawn)} will be told" if one.withdrawn else "nothing of it had left the node"
    cancelled = f"; {words.many(one.cancelled, 'delivery', 'deliveries')} cancelled" if one.cancelled else ""
    return f"job {one.job_id} is retracted: {told}{cancelled}"
