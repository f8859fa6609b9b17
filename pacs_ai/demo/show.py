"""The demo from its first line to its last: start, send, follow, read back, prove, draw."""

from __future__ import annotations

import fcntl
import shutil
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from pacs_ai.demo import journey, proof, readback, study
from pacs_ai.demo.board import make_board
from pacs_ai.demo.node import PIPELINE, DemoNode
from pacs_ai.demo.pacs import DemoPacs
from pacs_ai.encode.pictures.montage import montage
from pacs_ai.errors import UserError
from pacs_ai.infer.volume import load_volume
from pacs_ai.models.registry import Registry
from pacs_ai.pipeline import Findings
from pacs_ai.states import JobState

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from pacs_ai.demo.board import Board
    from pacs_ai.demo.node import Snapshot
    from pacs_ai.demo.proof import Check
    from pacs_ai.demo.study import Study
    from pacs_ai.pipeline import Measurement
    from pacs_ai.store.views import JobView, ResultView
    from pacs_ai.testing import Phantom

_MARKER = ".pacs-ai-demo"
_STEPS = ("node", "study", *journey.STEPS, "read back")


@dataclass(frozen=True)
class Outcome:
    """What came of one job.

    Parameters
    ----------
    files
        Where the demo PACS keeps the results.
    values
        As read from the SR.
    checks
        What was looked at.
    picture
        The montage; None where nothing arrived that could be drawn.
    """

    files: tuple[Path, ...]
    values: tuple[Measurement, ...]
    checks: tuple[Check, ...]
    picture: Path | None


def run(
    study_folder: Path | None,
    out: Path,
    keep: bool = False,
    *,
    phantom: Phantom = study.SAMPLE,
    stall_seconds: float = journey.STALL_SECONDS,
) -> int:
    """Show a study's whole journey on this machine alone, and prove that the results are right.

    Parameters
    ----------
    study_folder
        A folder with DICOM files; None: the phantom, whose lung volumes are known.
    out
        Gets what the demo PACS received (``pacs``), the picture, the phantom (``study``) and the node's own folder
        (``node``).
    keep
        Leave the node's own folder (database, instances, log) in place; it stays in any case where something failed.
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
    with _folder(out):
        with make_board(console, _STEPS) as board, DemoPacs(out / "pacs") as pacs:
            with DemoNode(out / "node", pacs.port) as node:
                sent = _start(node, pacs, study_folder, out, board, phantom)
                seen = journey.follow(node, board, journey.send(node, sent.instances, board), stall_seconds)
                results = {job.id: node.results(job.id) for job in seen.jobs}
            outcomes = _read_back(seen, results, pacs.kept(), sent, out, board)
        proved = _tell(console, seen, outcomes, sent)
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


def _start(
    node: DemoNode, pacs: DemoPacs, study_folder: Path | None, out: Path, board: Board, phantom: Phantom
) -> Study:
    """Have the study made while the node starts; return once both are there."""
    board.begin("node", words="starting the node and the demo PACS")
    if study_folder is None:
        board.begin("study", phantom.slices)
        sent = study.sample(out / "study", phantom, lambda done: board.advance("study", done))
        board.end("study", f"chest CT phantom, {phantom.slices} slices of {phantom.rows} x {phantom.columns}")
    else:
        board.begin("study")
        sent = study.given(study_folder)
        other = f", {sent.skipped} other files left out" if sent.skipped else ""
        board.end("study", f"{len(sent.instances)} instances in {study_folder}{other}")
    journey.wait_for_node(node, board)
    board.end("node", f"listens on port {node.port}, demo PACS on port {pacs.port}")
    return sent


def _read_back(
    seen: Snapshot,
    results: Mapping[int, Sequence[ResultView]],
    kept: Mapping[str, Path],
    sent: Study,
    out: Path,
    board: Board,
) -> dict[int, Outcome]:
    """Read what the PACS got, job by job."""
    done = [job for job in seen.jobs if job.state is JobState.DONE]
    outcomes: dict[int, Outcome] = {}
    if not done:
        return outcomes
    board.begin("read back", len(done))
    for number, job in enumerate(sorted(done, key=lambda job: job.id)):
        picture = out / ("montage.png" if number == 0 else f"montage-{number + 1}.png")
        outcomes[job.id] = examine(job, results[job.id], kept, sent, picture)
        board.advance("read back", number + 1)
    board.end("read back", "SEG and SR read, compared and drawn")
    return outcomes


def examine(
    job: JobView, results: Sequence[ResultView], kept: Mapping[str, Path], sent: Study, picture: Path
) -> Outcome:
    """Read one job's results from the PACS, compare them with the pipeline's and with the truth, and draw them.

    Parameters
    ----------
    job, results
        What the node did.
    kept
        SOP Instance UID -> file in the demo PACS.
    sent
        The study, with the truth where there is one.
    picture
        Where the montage is written.
    """
    arrival = proof.check_arrival(results, kept)
    files = tuple(kept[result.sop_instance_uid] for result in results if result.sop_instance_uid in kept)
    if not arrival.holds:
        return Outcome(files, (), (arrival,), None)
    by_kind = {result.kind: kept[result.sop_instance_uid] for result in results}
    paths = {instance.sop_instance_uid: instance.path for instance in sent.instances}
    loaded = load_volume([paths[uid] for uid in readback.cited(by_kind["SEG"])])
    received = readback.read_segmentation(by_kind["SEG"], loaded.evidence.slices)
    values = readback.read_values(by_kind["SR"], received.labels)
    checks = [arrival, *proof.check_voxels(job.findings.get("segments", ()), received.segments)]
    if sent.truth_ml is not None:
        checks += proof.check_volumes(sent.truth_ml, values, received.segments, loaded.volume.voxel_ml)
    card = Registry(()).create(PIPELINE).card
    montage(loaded.volume, Findings(received.segments, values), card, picture)
    return Outcome(files, values, tuple(checks), picture)


def _tell(console: Console, seen: Snapshot, outcomes: Mapping[int, Outcome], sent: Study) -> bool:
    """Print what came of it; tell whether everything looked at was right."""
    console.print()
    for job in sorted(seen.jobs, key=lambda job: job.id):
        if job.id in outcomes:
            _tell_outcome(console, outcomes[job.id])
        else:
            console.print(f"[red]✘[/] job {job.id} is {job.state}: ", end="")
            console.print(job.reason, markup=False, highlight=False, soft_wrap=True)
    for one in seen.deliveries:
        if one.sent_at is None:
            console.print(f"[red]✘[/] the {one.kind} is {one.state}: ", end="")
            console.print(one.reason, markup=False, highlight=False, soft_wrap=True)
    for reason in dict.fromkeys(one.reason for one in seen.series if not seen.jobs):
        console.print(f"[red]✘[/] no job for {PIPELINE}: ", end="")
        console.print(reason, markup=False, highlight=False, soft_wrap=True)
    failed = any(job.state not in {JobState.DONE, JobState.REFUSED} for job in seen.jobs)
    proved = bool(outcomes) and not failed and all(check.holds for one in outcomes.values() for check in one.checks)
    if proved and sent.truth_ml is None:
        console.print("Nobody has said what is right for this study: look at the picture.", soft_wrap=True)
    return proved


def _tell_outcome(console: Console, outcome: Outcome) -> None:
    if outcome.values:
        table = Table(
            "Measured value", "of", "", "unit", title="Read from the SR in the demo PACS", title_justify="left"
        )
        table.columns[2].justify = "right"
        for one in outcome.values:
            unit = {"[hnsf'U]": "HU", "ml": "mL"}.get(one.unit.value, one.unit.value)
            table.add_row(_meaning(one), one.label or "the whole image", f"{one.value:.1f}", unit)
        console.print(table)
    for check in outcome.checks:
        console.print("[green]✔[/]" if check.holds else "[red]✘[/]", end=" ")
        console.print(check.words, markup=False, highlight=False, soft_wrap=True)
    for path in (*outcome.files, *([outcome.picture] if outcome.picture else [])):
        console.print(f"  {path}", markup=False, highlight=False, soft_wrap=True)


def _meaning(measured: Measurement) -> str:
    derived = f" ({measured.derivation.meaning.lower()})" if measured.derivation else ""
    return measured.concept.meaning + derived
