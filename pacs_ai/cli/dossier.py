"""One job in full: sources, steps, findings, results, deliveries, journal."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from pacs_ai.cli import tables, words
from pacs_ai.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import Console

    from pacs_ai.cli.session import Session
    from pacs_ai.store.journal import Entry
    from pacs_ai.store.views import JobView


def show(session: Session, job_id: int, *, as_json: bool) -> None:
    """Print one job; `UserError` where there is none of that number."""
    from pacs_ai.store import concerns, journal, views

    with session.reading() as connection:
        found = views.jobs(connection, job_id=job_id)
        if not found:
            raise UserError(f"there is no job {job_id}; `pacs-ai jobs` lists them")
        results = views.results(connection, job_id)
        tries = tables.next_tries(connection)
        sent = views.deliveries(connection, job_id=job_id, limit=1000)[::-1]
        looked = [one for one in concerns.of_jobs(connection) if one.job_id == job_id]
        story = journal.of(connection, "job", job_id)
        story += [entry for one in sent for entry in journal.of(connection, "delivery", one.id)]
    job, story = found[0], sorted(story, key=lambda entry: entry.at)
    if as_json:
        words.print_json({**asdict(job), "results": results, "deliveries": sent, "concerns": looked, "journal": story})
        return
    out = words.console()
    _head(out, job)
    for one in looked:
        click.echo(f"  ! {one.words}\n    → {one.advice}")
    _findings(out, job.findings)
    if results:
        _title(out, "results")
        drawn = words.table("what", "SOP Instance UID", "size", "SHA-256")
        out.print(words.rows(drawn, ((r.kind, r.sop_instance_uid, words.size(r.size), r.sha256[:16]) for r in results)))
    if sent:
        _title(out, "deliveries")
        out.print(tables.delivery_table(sent, tries))
    _title(out, "journal")
    out.print(_story(story))


def _title(out: Console, name: str) -> None:
    out.print()
    out.print(name, style="bold")


def _head(out: Console, job: JobView) -> None:
    from rich.text import Text

    coded = f" ({job.refused_for})" if job.refused_for else ""
    state = f"{job.state}{coded}{', overdue' if job.overdue else ''}: {job.reason}"
    out.print(Text(f"job {job.id}  {job.pipeline} {job.pipeline_version}", style="bold"))
    steps = ", ".join(f"{name} {words.lasting(seconds)}" for name, seconds in job.timings.items())
    tries = f"{words.many(job.attempts, 'attempt')}, {words.many(job.crashes, 'crash', 'crashes')}"
    lines: dict[str, str] = {
        "state": state,
        "study": job.study_instance_uid,
        **{f"input {name}": f"{uid} revision {revision}" for name, uid, revision in job.sources},
        "made": f"{words.at(job.created_at)}, started {words.at(job.started_at)}, ended {words.at(job.finished_at)}",
        "steps": steps or "none yet",
        "tries": tries + (f"; run {job.generation + 1} of this work" if job.generation else ""),
        "results to": ", ".join(job.destinations) or "nobody",
        "key": job.job_key,
    }
    for name, text in lines.items():
        out.print(Text(f"  {name:<12}{text}"))


def _findings(out: Console, findings: Mapping[str, Any]) -> None:
    if not findings:
        return
    _title(out, "findings")
    out.print(measured(findings))
    for note in findings.get("notes", ()):
        click.echo(f"  note: {note}")


def measured(findings: Mapping[str, Any]) -> object:
    """Return segments and measurements as a table (`pacs_ai.infer.summary` says what is in them)."""
    drawn = words.table("of", "what", "value", "unit")
    drawn.columns[2].justify = "right"
    cells = [(one["label"], "Segment", f"{one['voxels']}", "voxels") for one in findings.get("segments", ())]
    cells += [_value(one["label"], one) for one in findings.get("measurements", ())]
    for number, one in enumerate(findings.get("detections", ()), start=1):
        cells += _detected(f"{one['label']} {number}", one)
    cells += [_answer(one["label"], one) for one in findings.get("classifications", ())]
    for one in findings.get("maps", ()):
        cells.append((one["label"] or "whole image", f"Map: {one['name']}", _range(one), _unit(one["unit"])))
    cells += [("whole image", f"Series: {one['title']}", _range(one), "") for one in findings.get("images", ())]
    return words.rows(drawn, cells or [("-", "nothing found", "", "")])


_Cells = tuple[str, str, str, str]


def _unit(ucum: str) -> str:
    """Return a unit as people write it; an annotation says nothing that the concept does not."""
    return {"[hnsf'U]": "HU", "1": "", "ml": "mL"}.get(ucum, "" if ucum.startswith("{") else ucum)


def _value(of: str | None, one: Mapping[str, Any]) -> _Cells:
    what = f"{one['concept']} ({one['derivation']})" if one["derivation"] else one["concept"]
    return of or "whole image", what, f"{one['value']:.4g}", _unit(one["unit"])


def _answer(of: str | None, one: Mapping[str, Any]) -> _Cells:
    return of or "whole image", one["concept"], one["value"], _sure(one)


def _detected(of: str, one: Mapping[str, Any]) -> list[_Cells]:
    """Return what is known of one detection; images are counted from 1 for people."""
    place = one["region"] or one["diameters"]
    found = (of, "Detection", f"image {place['index'] + 1}", _sure(one))
    values = [_value(of, value) for value in one["measurements"]]
    return [found, *values, *(_answer(of, answer) for answer in one["classifications"])]


def _sure(one: Mapping[str, Any]) -> str:
    return "" if one["probability"] is None else f"p = {one['probability']:.2f}"


def _range(one: Mapping[str, Any]) -> str:
    return f"{one['low']:.4g} to {one['high']:.4g}"


def _story(story: list[Entry]) -> object:
    drawn = words.table("when", "who", "what", "why")
    for entry in story:
        subject = "" if entry.subject == "job" else f"{entry.subject} {entry.subject_id}: "
        move = f"{entry.before} to {entry.after}" if entry.before else entry.after
        words.rows(drawn, [(words.at(entry.at), _who(entry.actor), f"{subject}{entry.event}, {move}", entry.reason)])
    return drawn


def _who(actor: str) -> str:
    """Return a process's owner name (kind:boot:pid:start) as kind and pid; an operator as he is."""
    parts = actor.split(":")
    return f"{parts[0]} {parts[2]}" if len(parts) == 4 else actor or "-"
