"""What an operator orders: run again, cancel, pause, resume, decide a conflict. Each order is journalled."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Literal

import click

from pacs_ai.cli import words
from pacs_ai.cli.session import Session, pass_session
from pacs_ai.cli.words import example
from pacs_ai.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


@click.command(epilog=example("pacs-ai retry 17", "pacs-ai retry --delivery 31 --delivery 32"))
@click.argument("job_ids", nargs=-1, type=int, metavar="[JOB]...")
@click.option(
    "--delivery",
    "delivery_ids",
    multiple=True,
    type=int,
    metavar="ID",
    help="Send this delivery again, or have its peer asked again.",
)
@pass_session
def retry(session: Session, job_ids: Sequence[int], delivery_ids: Sequence[int]) -> None:
    """Run jobs again, or send deliveries again.

    A failed, refused or cancelled job is queued again. A job that is done or retracted is run anew: its results get
    UIDs of their own, name the earlier report as their predecessor, and go to each peer as its profile says now. So is
    a failed one whose pipeline, model or settings were replaced since: by those that are there now. A held, failed or
    cancelled delivery is sent at once, to the address that the configuration has for the peer now; so is a waiting one
    whose peer has moved. About one that was sent, and that its peer did not confirm however often it was asked, it is
    asked again.
    """
    from pacs_ai.models.registry import Registry
    from pacs_ai.route.works import identity_of
    from pacs_ai.store import orders, resending, unconfirmed
    from pacs_ai.store.enqueue import Address

    if not job_ids and not delivery_ids:
        raise click.UsageError("name jobs, or deliveries with --delivery; `pacs-ai jobs --state failed` lists them")
    config = session.config
    addresses = {p.name: Address(p.name, p.ae_title, p.host, p.port, config.plan_of(p.profile)) for p in config.peer}
    asked = {peer.name: addresses[peer.name] for peer in config.peer if peer.commitment}
    registry = Registry.of(config)
    with session.ordering() as database:

        def run_again(job_id: int) -> str:
            again = orders.retry(
                database, job_id, actor=session.actor, addresses=addresses, identity_of=partial(identity_of, registry)
            )
            return f"job {job_id} is queued again" if again == job_id else f"job {job_id} is run anew as job {again}"

        def send_again(delivery_id: int) -> str:
            if unconfirmed.ask_again(database, delivery_id, addresses=asked, actor=session.actor):
                return f"delivery {delivery_id}: its peer is asked again whether it keeps it"
            resending.retry(database, [delivery_id], actor=session.actor, addresses=addresses)
            return f"delivery {delivery_id} is sent again"

        _say(_each(job_ids, run_again) + _each(delivery_ids, send_again))


@click.command(epilog=example("pacs-ai cancel 17 18"))
@click.argument("job_ids", nargs=-1, type=int, required=True, metavar="JOB...")
@pass_session
def cancel(session: Session, job_ids: Sequence[int]) -> None:
    """End jobs, and what of them has not been sent.

    A job that waits, runs or is withheld is ended; of one that is done, the deliveries that are not through; of one
    that was refused, the report that says so, where it is not through; one that failed is set aside, so that `status`
    no longer asks for it, and so is what a destination lacks, could not be told or did not confirm.
    """
    from pacs_ai.store import orders

    with session.ordering() as database:

        def end(job_id: int) -> str:
            peers = [peer.name for peer in session.config.peer]
            if left := orders.cancel(database, job_id, actor=session.actor, peers=peers):
                words = f"{left} deliveries still wait: `pacs-ai cancel {job_id}` once more ends these"
                return f"job {job_id}: set aside what its destinations lack or did not confirm; {words}"
            return f"job {job_id}: cancelled what was not sent"

        _say(_each(job_ids, end))


@click.command(epilog=example('pacs-ai pause ct-lung --reason "new version on Monday"'))
@click.argument("pipeline")
@click.option("--reason", default="", help="For the journal.")
@pass_session
def pause(session: Session, pipeline: str, reason: str) -> None:
    """Stop a pipeline: its jobs are withheld until `resume`.

    What runs is finished, and what was done is delivered.
    """
    from pacs_ai.store import orders

    _check_known(session, pipeline)
    with session.ordering() as database:
        count = orders.pause(database, pipeline, actor=session.actor, reason=reason)
    click.echo(f"{pipeline} is paused; {words.many(count, 'job')} withheld")


@click.command(epilog=example("pacs-ai resume ct-lung"))
@click.argument("pipeline")
@pass_session
def resume(session: Session, pipeline: str) -> None:
    """Let a paused pipeline go on."""
    from pacs_ai.store import orders, views

    with session.ordering() as database:
        with database.read() as connection:
            paused = views.paused(connection)
        if pipeline not in paused:
            names = ", ".join(sorted(paused)) or "none is"
            raise UserError(f"pipeline {pipeline} is not paused (paused: {names})")
        count = orders.resume(database, pipeline, actor=session.actor)
    click.echo(f"{pipeline} goes on; {words.many(count, 'job')} released")


@click.command(epilog=example("pacs-ai resolve 1.2.826.0.1.3680043.8.498.1 --keep latest"))
@click.argument("series_uid")
@click.option(
    "--keep",
    type=click.Choice(["first", "latest"]),
    required=True,
    help="Which content is analysed where two came under one SOP Instance UID. The other stays on disk.",
)
@pass_session
def resolve(session: Session, series_uid: str, keep: Literal["first", "latest"]) -> None:
    """Decide a conflict: two contents under one SOP Instance UID.

    Until then the jobs of that series are withheld. `pacs-ai status` lists series in conflict.
    """
    from pacs_ai.store import orders

    with session.ordering() as database:
        count = orders.resolve(database, series_uid, keep=keep, actor=session.actor)
    click.echo(f"the {keep} content of {words.many(count, 'instance')} is kept; the series is analysed")


@click.command(epilog=example("pacs-ai lift --list", "pacs-ai lift 1.2.826.0.1.3680043.8.498.2"))
@click.argument("study_uids", nargs=-1, metavar="[STUDY]...")
@click.option("--list", "lists", is_flag=True, help="Only list the studies that are held.")
@pass_session
def lift(session: Session, study_uids: Sequence[str], *, lists: bool) -> None:
    """Let retention delete again what the node committed to keep.

    Where `receive.commitment` is on, a peer that the node has committed to may have deleted its own copy: make sure
    that the archive has these studies before you lift.
    """
    from pacs_ai.store import pledges

    if lists == bool(study_uids):
        raise click.UsageError("name studies by their Study Instance UID, or give --list")
    if lists:
        with session.reading() as connection:
            held = pledges.held(connection)
        for one in held:
            click.echo(f"{one.study_instance_uid}  {words.many(one.instances, 'instance')} since {words.at(one.since)}")
        if not held:
            click.echo("the node has committed to nothing")
        return
    with session.ordering() as database:
        count = pledges.lift(database, study_uids, actor=session.actor)
    if not count:
        raise UserError("the node has committed to nothing of that; `pacs-ai lift --list` lists what is held")
    click.echo(f"{words.many(count, 'instance')} may be deleted again")


def _each(numbers: Sequence[int], order: Callable[[int], str]) -> list[str]:
    """Carry out one order after the other and say what came of each; return why some could not be carried out."""
    wrong = []
    for number in dict.fromkeys(numbers):
        try:
            click.echo(order(number))
        except UserError as error:
            wrong.append(str(error))
    return wrong


def _say(wrong: list[str]) -> None:
    if wrong:
        raise UserError("; ".join(wrong))


def _check_known(session: Session, pipeline: str) -> None:
    from pacs_ai.models.registry import Registry

    registry = Registry.of(session.config)
    known = {*registry.names(), *registry.broken}
    if pipeline not in known:
        raise UserError(f"there is no pipeline {pipeline}; there are {', '.join(sorted(known)) or 'none'}")
