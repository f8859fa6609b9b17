"""Which routes want a series, and which condition failed where one does not: of the node's index, or of a folder."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pacs_ai.cli import words
from pacs_ai.cli.session import Session, pass_session
from pacs_ai.cli.words import as_json, example
from pacs_ai.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pacs_ai.config import Route
    from pacs_ai.dicom.folder import FolderSeries
    from pacs_ai.route.plan import Plan
    from pacs_ai.route.rules import Check
    from pacs_ai.store.views import SeriesView

_MARKS = {"run": ("✓", "green"), "wait": ("…", "yellow"), "no": ("✗", "red")}


@dataclass(frozen=True)
class Explained:
    """What every route says of one series; for each route's inputs the single conditions."""

    view: SeriesView
    plans: Sequence[tuple[Plan, Mapping[str, Sequence[Check]]]]


@click.command(epilog=example("pacs-ai explain /data/incoming/study-17", "pacs-ai explain 1.2.840.113619.2.1"))
@click.argument("what", metavar="PATH | STUDY")
@click.option("--calling-ae", default="", help="For a PATH: AE title of the sender that is assumed.")
@click.option("--called-ae", default="", help="For a PATH: AE title that is assumed to be called. Default: the first.")
@click.option("--all", "every", is_flag=True, help="Show the conditions that are met too.")
@as_json
@pass_session
def explain(session: Session, what: str, calling_ae: str, called_ae: str, *, every: bool, as_json: bool) -> None:
    """Say which routes want a study's series, and why others do not.

    The study is a file or folder of DICOM files, read here without the node, or one that the node has received: its
    Study Instance UID, Accession Number or Patient ID.
    """
    config = session.config
    if Path(what).exists():
        called = called_ae or config.receive.ae_titles[0]
        studies = _from_folder(Path(what), calling_ae, called)
    else:
        studies = _from_index(session, what)
    explained = [one for study in studies for one in _explained(study, config.route)]
    if as_json:
        words.print_json([_as_table(one) for one in explained])
        return
    for one in explained:
        _show(one, every=every)
    if not config.route:
        click.echo(f"there is no [[route]] in {session.place}, so nothing is analysed")


def _from_index(session: Session, key: str) -> list[Sequence[SeriesView]]:
    from pacs_ai.store import views

    with session.reading() as connection:
        found = views.studies(connection, uid=key)
    if not found:
        raise UserError(f"{key} is neither a file or folder here nor a study that the node has received")
    return [study.series for study in found]


def _from_folder(path: Path, calling_ae: str, called_ae: str) -> list[Sequence[SeriesView]]:
    from pacs_ai.cli import progress
    from pacs_ai.dicom import folder

    files = folder.find_files(path)
    with progress.counted("reading", len(files)) as step:
        found = folder.read(files, step)
    if found.skipped:
        first, why = found.skipped[0]
        click.echo(f"{words.many(len(found.skipped), 'file')} left out; the first, {first.name}: {why}", err=True)
    studies: dict[str, list[SeriesView]] = {}
    for number, series in enumerate(found.series, start=1):
        views = studies.setdefault(series.header.study_instance_uid, [])
        views.append(_view(number, series, calling_ae, called_ae))
    return list(studies.values())


def _view(number: int, series: FolderSeries, calling_ae: str, called_ae: str) -> SeriesView:
    """Return the series as the index would know it once it is complete."""
    from pacs_ai.states import SeriesState
    from pacs_ai.store.views import SeriesView

    at = datetime.fromtimestamp(0, UTC)
    return SeriesView(
        id=number,
        study_id=0,
        study_instance_uid=series.header.study_instance_uid,
        series_instance_uid=series.header.series_instance_uid,
        modality=series.header.modality,
        header=series.header.values,
        state=SeriesState.COMPLETE,
        revision=1,
        routed_revision=0,
        instances=len(series.files),
        priority=2,
        calling_ae_title=calling_ae,
        called_ae_title=called_ae,
        first_received_at=at,
        last_received_at=at,
        completed_at=at,
        reason="",
        own_result=False,
    )


def _explained(study: Sequence[SeriesView], routes: Sequence[Route]) -> Iterator[Explained]:
    from pacs_ai.route.plan import facts_of, plans_for
    from pacs_ai.route.rules import explain as checks_of

    for view in study:
        facts = facts_of(view)
        plans = []
        for plan in plans_for(view, study, routes):
            conditions = {"image": plan.route.when} if plan.route.when is not None else plan.route.inputs
            plans.append((plan, {name: checks_of(when, facts) for name, when in conditions.items()}))
        yield Explained(view, plans)


def _as_table(one: Explained) -> dict[str, Any]:
    view = one.view
    return {
        "study_instance_uid": view.study_instance_uid,
        "series_instance_uid": view.series_instance_uid,
        "modality": view.modality,
        "instances": view.instances,
        "state": view.state,
        "routes": [
            {
                "route": plan.route.title,
                "pipeline": plan.route.run,
                "deliver_to": plan.route.deliver_to,
                "verdict": plan.verdict,
                "words": plan.words,
                "inputs": {name: source.series_instance_uid for name, source in plan.inputs.items()},
                "conditions": checks,
            }
            for plan, checks in one.plans
        ],
    }


def _show(one: Explained, *, every: bool) -> None:
    from rich.text import Text

    out, view = words.console(), one.view
    header = view.header
    facts = [
        view.modality or "no modality",
        words.many(view.instances, "instance"),
        header.get("SeriesDescription", ""),
    ]
    title = f"series {header.get('SeriesNumber', '-')}: {', '.join(filter(None, facts))}"
    out.print(Text.assemble((title, "bold"), (f"  {view.series_instance_uid}", "dim")))
    for plan, checks in one.plans:
        mark, style = _MARKS[plan.verdict]
        goal = ", ".join(plan.route.deliver_to) or "nobody"
        route = f"{plan.route.title}: " if plan.route.title != plan.route.run else ""
        out.print(Text.assemble((f"  {mark} ", style), (f"{route}{plan.route.run}", "bold"), f", results to {goal}"))
        for line in _lines(plan, checks, every=every):
            out.print(Text(f"      {line}"))


def _lines(plan: Plan, checks: Mapping[str, Sequence[Check]], *, every: bool) -> Iterator[str]:
    if plan.verdict != "no" or plan.words.startswith("never analysed"):
        yield plan.words
        for name, source in plan.inputs.items() if len(checks) > 1 else ():
            yield f"{name} is series {source.header.get('SeriesNumber', source.series_instance_uid)}"
    several = len(checks) > 1
    for name, found in checks.items():
        for check in found:
            if every or (plan.verdict == "no" and not check.passed and not plan.words.startswith("never analysed")):
                mark = "met:" if check.passed else "not met:"
                yield f"{f'{name}: ' if several else ''}{mark} {check.words}"
