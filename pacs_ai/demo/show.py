"""The demo from its first line to its last: start, send, follow, read back, prove, draw."""

from __future__ import annotations

import fcntl
import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from pacs_ai.built_in_profiles import DEFAULT_PROFILE
from pacs_ai.demo import journey, study
from pacs_ai.demo.board import make_board
from pacs_ai.demo.node import DemoNode
from pacs_ai.demo.pacs import AE_TITLE, DemoPacs
from pacs_ai.demo.reading import DEFAULT, PROFILE, Reading
from pacs_ai.demo.result import Outcome, examine
from pacs_ai.encode.reports.wording import unit_sign
from pacs_ai.errors import UserError
from pacs_ai.models.registry import Registry
from pacs_ai.states import JobState
from pacs_ai.testing import samples

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from pacs_ai.demo.board import Board
    from pacs_ai.demo.node import Snapshot
    from pacs_ai.demo.study import Study
    from pacs_ai.pipeline import Card, Measurement
    from pacs_ai.store.views import ResultView
    from pacs_ai.testing import Phantom

_MARKER = ".pacs-ai-demo"
#: Files of results that are named; derived images may be hundreds.
_FILES = 6
_STEPS = ("node", "study", *journey.STEPS, "read back")


def run(
    study_folder: Path | None,
    out: Path,
    keep: bool = False,
    reading: Reading | None = None,
    *,
    phantom: Phantom = study.SAMPLE,
    stall_seconds: float = journey.STALL_SECONDS,
) -> int:
    """Show a study's whole journey on this machine alone, and prove that the results are right.

    Parameters
    ----------
    study_folder
        A folder with DICOM files; None: the reading's sample, which is the phantom whose lung volumes are known.
    out
        Gets what the demo PACS received (``pacs``), the picture, the phantom (``study``) and the node's own folder
        (``node``).
    keep
        Leave the node's own folder (database, instances, log) in place; it stays in any case where something failed.
    reading
        What is shown, from `pacs_ai.demo.reading.find`; None: the lung densitometry.
    phantom
        What is sent where no folder is given.
    stall_seconds
        The demo gives up when nothing happened for so long.

    Returns
    -------
    int
        0 where the results arrived and everything looked at was right, else 1.

    Raises
    ------
    UserError
        A folder cannot be used.
    NodeFailed
        The node ended or stood still; the message shows the end of its log.
    """
    console = Console()
    other = None if reading is None or reading.is_default else reading
    shown = other or Reading(DEFAULT, Registry(()).card(DEFAULT))
    if other is not None and study_folder is None:
        samples.refuse_without(other.name)
    with _folder(out):
        with make_board(console, _STEPS) as board, DemoPacs(out / "pacs") as pacs:
            with DemoNode(out / "node", pacs.port, AE_TITLE, PROFILE if other else DEFAULT_PROFILE, other) as node:
                board.begin("node", words="starting the node and the demo PACS")
                sent = _study(study_folder, out, shown, board, phantom)
                journey.wait_for_node(node, board)
                board.end("node", f"listens on port {node.port}, demo PACS on port {pacs.port}")
                seen = journey.follow(node, board, journey.send(node, sent.instances, board), stall_seconds)
                results = {job.id: node.results(job.id) for job in seen.jobs}
            outcomes = _read_back(seen, results, pacs.kept(), sent, out, board, shown)
        proved = _tell(console, seen, outcomes, sent, shown)
        if proved and not keep:
            shutil.rmtree(out / "node")
        else:
            console.print(f"The node's own folder is kept: {out / 'node'}", soft_wrap=True)
    return 0 if proved else 1


@contextmanager
def _folder(out: Path) -> Iterator[None]:
    """Hold the demo's folder for this run, without what an earlier run left but the phantom."""
    if out.is_dir() and any(out.iterdir()) and not (out / _MARKER).exists():
        raise UserError(f"{out} holds other files; name an empty or a new folder with --out")
    try:
        out.mkdir(parents=True, exist_ok=True)
        with (out / _MARKER).open("w") as marker:
            try:
                fcntl.flock(marker, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise UserError(
                    f"another demo works in {out}; wait for it, or name another folder with --out"
                ) from None
            for name in ("node", "pacs"):
                shutil.rmtree(out / name, ignore_errors=True)
            for picture in out.glob("montage*.png"):
                picture.unlink()
            yield
    except PermissionError as error:
        raise UserError(f"{error.filename} cannot be written; name another folder with --out") from error


def _study(study_folder: Path | None, out: Path, reading: Reading, board: Board, phantom: Phantom) -> Study:
    """Return what is sent: the user's study, or the reading's sample."""
    if study_folder is not None:
        board.begin("study")
        sent = study.given(study_folder)
        other = f", {sent.skipped} other files left out" if sent.skipped else ""
        board.end("study", f"{len(sent.instances)} instances in {study_folder}{other}")
    elif reading.is_default:
        board.begin("study", phantom.slices)
        sent = study.sample(out / "study", phantom, lambda done: board.advance("study", done))
        board.end("study", f"chest CT phantom, {phantom.slices} slices of {phantom.rows} x {phantom.columns}")
    else:
        board.begin("study", words="making the sample")
        shutil.rmtree(out / "sample", ignore_errors=True)
        samples.write(reading.name, out / "sample")
        sent = study.given(out / "sample")
        board.end("study", f"sample of {reading.name}: {len(sent.instances)} instances")
    return sent


def _read_back(
    seen: Snapshot,
    results: Mapping[int, Sequence[ResultView]],
    kept: Mapping[str, Path],
    sent: Study,
    out: Path,
    board: Board,
    reading: Reading,
) -> dict[int, Outcome]:
    """Read what the PACS got, job by job."""
    done = [job for job in seen.jobs if job.state is JobState.DONE]
    outcomes: dict[int, Outcome] = {}
    if not done:
        return outcomes
    board.begin("read back", len(done))
    for number, job in enumerate(sorted(done, key=lambda job: job.id)):
        picture = out / ("montage.png" if number == 0 else f"montage-{number + 1}.png")
        outcomes[job.id] = examine(job, results[job.id], kept, sent, picture, reading)
        board.advance("read back", number + 1)
    board.end("read back", f"{'SEG and SR' if reading.is_default else 'results'} read, compared and drawn")
    return outcomes


def _tell(console: Console, seen: Snapshot, outcomes: Mapping[int, Outcome], sent: Study, reading: Reading) -> bool:
    """Print what came of it; tell whether everything looked at was right."""
    console.print()
    for job in sorted(seen.jobs, key=lambda job: job.id):
        if job.id in outcomes:
            _tell_outcome(console, outcomes[job.id], reading.card)
        else:
            console.print(f"[red]✘[/] job {job.id} is {job.state}: ", end="")
            console.print(job.reason, markup=False, highlight=False, soft_wrap=True)
    for one in seen.deliveries:
        if one.sent_at is None:
            console.print(f"[red]✘[/] the {one.kind} is {one.state}: ", end="")
            console.print(one.reason, markup=False, highlight=False, soft_wrap=True)
    for reason in dict.fromkeys(one.reason for one in seen.series if not seen.jobs):
        console.print(f"[red]✘[/] no job for {reading.name}: ", end="")
        console.print(reason, markup=False, highlight=False, soft_wrap=True)
    failed = any(job.state not in {JobState.DONE, JobState.REFUSED} for job in seen.jobs)
    proved = bool(outcomes) and not failed and all(check.holds for one in outcomes.values() for check in one.checks)
    if proved and sent.truth_ml is None:
        console.print("Nobody has said what is right for this study: look at the picture.", soft_wrap=True)
    return proved


def _tell_outcome(console: Console, outcome: Outcome, card: Card) -> None:
    if outcome.values:
        recorded = any(wanted.given == "waveform" for wanted in card.inputs.values())
        whole = "the whole recording" if recorded else "the whole image"
        table = Table(
            "Measured value", "of", "", "unit", title="Read from the SR in the demo PACS", title_justify="left"
        )
        table.columns[2].justify = "right"
        for one in outcome.values:
            table.add_row(_meaning(one), one.label or whole, _amount(one.value), unit_sign(one.unit))
        console.print(table)
    for line in outcome.text:
        console.print(f"  {line}", markup=False, highlight=False, soft_wrap=True)
    for check in outcome.checks:
        console.print("[green]✔[/]" if check.holds else "[red]✘[/]", end=" ")
        console.print(check.words, markup=False, highlight=False, soft_wrap=True)
    for path in (*outcome.files[:_FILES], *([outcome.picture] if outcome.picture else [])):
        console.print(f"  {path}", markup=False, highlight=False, soft_wrap=True)
    if len(outcome.files) > _FILES:
        console.print(f"  and {len(outcome.files) - _FILES} more in {outcome.files[0].parent}", soft_wrap=True)


def _amount(value: float) -> str:
    return f"{value:.1f}" if abs(value) >= 1 or value == 0 else f"{value:.3g}"


def _meaning(measured: Measurement) -> str:
    derived = f" ({measured.derivation.meaning.lower()})" if measured.derivation else ""
    return measured.concept.meaning + derived
