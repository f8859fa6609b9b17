"""Which series of a folder serve a pipeline's inputs: by subfolder, by the only one there is, or by a route."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from pacs_ai.cli import progress, words
from pacs_ai.dicom import folder as folders
from pacs_ai.errors import UserError
from pacs_ai.route.rules import SeriesFacts, bind, matches, why_no_source

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from pacs_ai.config import Route
    from pacs_ai.dicom.folder import Folder, FolderSeries
    from pacs_ai.pipeline import Card

Files = dict[str, tuple["Path", str]]


def choose(
    folder: Path, pipeline: str, card: Card, routes: Sequence[Route], series_uid: str | None
) -> Mapping[str, Files]:
    """Return name of input -> SOP Instance UID -> (file, SHA-256).

    Raises
    ------
    UserError
        The folder holds no DICOM images, or leaves open which of its series is meant; the message lists them.
    """
    of_pipeline = [route for route in routes if route.run == pipeline]
    if len(card.inputs) > 1:
        subfolders = {name: folder / name for name in card.inputs}
        if all(path.is_dir() for path in subfolders.values()):
            return {name: _only(_read(path), path).files for name, path in subfolders.items()}
        return _bound(_read(folder), folder, card, of_pipeline)
    (name,) = card.inputs
    return {name: _single(_read(folder), folder, of_pipeline, series_uid).files}


def _read(folder: Path) -> Folder:
    files = folders.find_files(folder)
    with progress.counted("reading", len(files)) as step:
        found = folders.read(files, step)
    if found.skipped:
        first, why = found.skipped[0]
        click.echo(f"{words.many(len(found.skipped), 'file')} left out; the first, {first.name}: {why}", err=True)
    return found


def _facts(series: FolderSeries) -> SeriesFacts:
    return SeriesFacts(header=series.header, instances=len(series.files))


def _sources(found: Folder) -> list[FolderSeries]:
    return [series for series in found.series if why_no_source(_facts(series)) is None]


def _only(found: Folder, folder: Path) -> FolderSeries:
    sources = _sources(found)
    if len(sources) != 1:
        raise UserError(f"{folder} must hold one series, but holds {_listed(found.series)}")
    return sources[0]


def _single(found: Folder, folder: Path, routes: Sequence[Route], series_uid: str | None) -> FolderSeries:
    if series_uid is not None:
        chosen = [series for series in found.series if series.header.series_instance_uid == series_uid]
        if not chosen:
            raise UserError(f"{folder} has no series {series_uid}, but {_listed(found.series)}")
        return chosen[0]
    sources = _sources(found)
    if len(sources) > 1:
        whens = [route.when for route in routes if route.when is not None]
        wanted = [series for series in sources if any(matches(when, _facts(series)) for when in whens)]
        sources = wanted if len(wanted) == 1 else sources
        if len(wanted) == 1:
            click.echo(
                f"of {len(found.series)} series {_facts(wanted[0]).words} was taken, which a route wants", err=True
            )
    if len(sources) != 1:
        raise UserError(f"{folder} holds {_listed(found.series)}choose one with --series UID")
    return sources[0]


def _bound(found: Folder, folder: Path, card: Card, routes: Sequence[Route]) -> dict[str, Files]:
    names = ", ".join(card.inputs)
    several = [route for route in routes if route.inputs]
    if not several:
        raise UserError(
            f"{card.name} needs the inputs {names}: put each series into a subfolder of {folder} with that name, or "
            "configure a [[route]] whose `inputs` say by which conditions they are told apart"
        )
    by_uid = {series.header.series_instance_uid: series for series in found.series}
    binding = bind(several[0].inputs, [_facts(series) for series in found.series])
    if not binding.complete:
        raise UserError(f"{folder}: {'; '.join(binding.missing.values())}")
    for remark in binding.remarks:
        click.echo(remark, err=True)
    return {name: by_uid[facts.series_instance_uid].files for name, facts in binding.chosen.items()}


def _listed(series: Sequence[FolderSeries]) -> str:
    lines = [
        f"\n  {one.header.series_instance_uid}  {one.header.modality or '-'} "
        f"{one.header.get('SeriesDescription') or 'without description'}, {words.many(len(one.files), 'instance')}"
        for one in series
    ]
    return f"{len(series)} series{''.join(lines)}\n"
