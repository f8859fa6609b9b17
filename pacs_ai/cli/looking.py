"""Look at the node's stations: what is there, in which state, and why."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from pacs_ai.cli import tables, words
from pacs_ai.cli.session import Session, pass_session
from pacs_ai.cli.words import as_json, example, with_comments
from pacs_ai.states import DeliveryState, JobState

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from pacs_ai.store.views import JobView, StudyView

_limit = click.option(
    "--limit", type=click.IntRange(min=1), default=20, show_default=True, help="Show so many, the newest first."
)


@click.command(epilog=example("pacs-ai status", "pacs-ai status --json"))
@as_json
@pass_session
def status(session: Session, *, as_json: bool) -> None:
    """Show at a glance how the node does, and what needs a person.

    Exit code 0: all is well. 1: something needs a person; it stands first, with what to do about it.
    """
    from pacs_ai.cli import glance

    look = glance.take(session)
    if as_json:
        words.print_json(look.as_table())
    else:
        glance.show(look, words.console())
    click.get_current_context().exit(words.TROUBLE if look.troubles else 0)


@click.command(epilog=example("pacs-ai studies", "pacs-ai studies ACC-2024-0815"))
@click.argument("key", required=False, metavar="[STUDY UID | ACCESSION NUMBER | PATIENT ID]")
@_limit
@as_json
@pass_session
def studies(session: Session, key: str | None, limit: int, *, as_json: bool) -> None:
    """List received studies, their series, and how they stand.

    Shows Patient ID and Accession Number, never a name: keep the output inside the hospital.
    """
    from pacs_ai.store import views

    with session.reading() as connection:
        found = views.studies(connection, uid=key, limit=limit)
    if as_json:
        words.print_json(found)
    elif not found:
        click.echo(f"no study has {key} as its UID, Accession Number or Patient ID" if key else "no study was received")
    else:
        out = words.console()
        for study in found:
            _show_study(out, study)


@click.command(epilog=example("pacs-ai jobs --state failed", "pacs-ai jobs 17"))
@click.argument("job_id", required=False, type=int, metavar="[JOB]")
@click.option("--state", type=click.Choice([state.value for state in JobState]), help="Only jobs in this state.")
@click.option("--study", metavar="UID", help="Only jobs of this study.")
@_limit
@as_json
@pass_session
def jobs(
    session: Session, job_id: int | None, state: str | None, study: str | None, limit: int, *, as_json: bool
) -> None:
    """List jobs, or show one in full.

    A job is the work of one pipeline on one study's series. With its number: where it comes from, how long each step
    took, what was found, where the results went, and its journal.
    """
    from pacs_ai.store import views

    if job_id is not None:
        from pacs_ai.cli import dossier

        dossier.show(session, job_id, as_json=as_json)
        return
    states = [JobState(state)] if state else None
    with session.reading() as connection:
        found = views.jobs(connection, states=states, study_instance_uid=study, limit=limit)
    if as_json:
        words.print_json(found)
    elif not found:
        click.echo("there is no such job" if state or study else "there are no jobs yet")
    else:
        words.console().print(_job_table(found))


@click.command(epilog=example("pacs-ai deliveries --peer main-pacs --state failed"))
@click.option("--peer", metavar="NAME", help="Only those to this peer.")
@click.option("--state", type=click.Choice([state.value for state in DeliveryState]), help="Only those in this state.")
@click.option("--job", "job_id", type=int, metavar="JOB", help="Only results of this job.")
@click.option("--unconfirmed", is_flag=True, help="Only those that the peer is asked to keep, and did not confirm.")
@with_comments
@_limit
@as_json
@pass_session
def deliveries(
    session: Session,
    peer: str | None,
    state: str | None,
    job_id: int | None,
    limit: int,
    *,
    unconfirmed: bool,
    comments: bool,
    as_json: bool,
) -> None:
    """List results on their way: state, tries, the peer's answer."""
    from pacs_ai.store import views

    states = [DeliveryState(state)] if state else None
    with session.reading() as connection:
        found = views.deliveries(
            connection,
            job_id=job_id,
            peer=peer,
            states=states,
            limit=limit,
            comments=comments,
            unconfirmed_only=unconfirmed,
        )
        tries = tables.next_tries(connection)
    if as_json:
        words.print_json(found)
    elif not found:
        click.echo(
            "there is no such delivery" if peer or state or job_id or unconfirmed else "nothing was delivered yet"
        )
    else:
        words.console().print(tables.delivery_table(found, tries))


def _show_study(out: Console, study: StudyView) -> None:
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    facts = [
        f"patient {study.patient_id or '-'}",
        f"accession {study.accession_number or '-'}",
        study.description or "no description",
        f"received {words.at(study.first_received_at)}",
    ]
    out.print(Text(f"study {study.study_instance_uid}", style="bold"))
    out.print(Text("  " + "  ·  ".join(facts)))
    grid = Table.grid(padding=(0, 2))
    for view in study.series:
        facts = [
            _what(view.modality, view.header.get("SeriesDescription", ""), own=view.own_result),
            words.many(view.instances, "instance"),
            f"revision {view.revision}",
        ]
        told = Text.assemble("  ·  ".join(facts), f"\n{view.reason}", (f"\n{view.series_instance_uid}", "dim"))
        words.rows(grid, [(tables.coloured(view.state), view.header.get("SeriesNumber", "-"), told)])
    out.print(Padding(grid, (0, 0, 1, 2)))


def _what(modality: str, description: str, *, own: bool) -> str:
    return " ".join(filter(None, (modality or "-", description, "(own result)" if own else "")))


def _job_table(found: Sequence[JobView]) -> object:
    from rich.text import Text

    drawn = words.table("job", "state", "pipeline", "made", "took", "reason, study")
    return words.rows(
        drawn,
        (
            (
                job.id,
                tables.coloured(job.state),
                f"{job.pipeline} {job.pipeline_version}" + (f" (run {job.generation + 1})" if job.generation else ""),
                words.at(job.created_at),
                took(job),
                Text.assemble(
                    ("overdue; " if job.overdue else "", "red"),
                    (f"{job.refused_for}: " if job.refused_for else "", "yellow"),
                    job.reason,
                    (f"\n{job.study_instance_uid}", "dim"),
                ),
            )
            for job in found
        ),
    )


def took(job: JobView) -> str:
    """Return how long the job's steps took, or how long it has run by now."""
    if job.state is JobState.RUNNING and job.started_at is not None:
        return words.lasting(words.since(job.started_at))
    return words.lasting(sum(job.timings.values())) if job.timings else "-"
