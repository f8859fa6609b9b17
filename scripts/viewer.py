"""A newcomer's look at the results: Orthanc, the node and the OHIF viewer on this machine, and a study sent.

    python scripts/viewer.py [--study FOLDER] [--reading NAME] [--models FOLDER] [--profile NAME] [--port PORT]

Prints the address that opens the study with the AI's overlay, and runs until Ctrl-C.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import urllib.request
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from pacs_ai import config
from pacs_ai.built_in_profiles import BUILT_IN, DEFAULT_PROFILE
from pacs_ai.deliver import scu
from pacs_ai.demo import journey, study
from pacs_ai.demo import reading as readings
from pacs_ai.demo.board import make_board
from pacs_ai.demo.node import AE_TITLE, DemoNode
from pacs_ai.errors import PacsAiError, UserError
from pacs_ai.states import JobState
from pacs_ai.testing import Phantom, samples

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pacs_ai.demo.board import Board
    from pacs_ai.demo.node import Snapshot
    from pacs_ai.demo.reading import Reading
    from pacs_ai.demo.study import Study
    from pacs_ai.store.views import ResultView

BED = Path(__file__).resolve().parents[1] / "orthanc-test"
#: Large enough to look at, small enough for a machine that draws without a GPU.
SAMPLE = Phantom(slices=120, rows=320, columns=320)
STEPS = ("orthanc", "viewer", "node", "study", *journey.STEPS)
#: What orthanc-test/autoroute.lua sends to the node.
ROUTED = {"CT", "MR"}
SEG_SOP_CLASS_UID = "1.2.840.10008.5.1.4.1.1.66.4"
#: Program -> the Debian packages that bring it.
PROGRAMS = {"Orthanc": "orthanc orthanc-dicomweb", "nginx": "nginx-light", "npm": "npm"}


def main() -> int:
    """Show it; 0 after Ctrl-C, 1 where it failed."""
    arguments = arguments_of()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does, in order
    try:
        reading = readings.find(arguments.reading, arguments.models) if arguments.reading else None
        show(arguments.study, arguments.profile, arguments.port, reading)
    except KeyboardInterrupt:
        print("\nEnded; nothing is kept.")
        return 0
    except PacsAiError as error:
        print(f"make viewer: {error}", file=sys.stderr)
        return 1
    return 0


def arguments_of() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Show AI results in the OHIF viewer on this machine.")
    parser.add_argument("--study", type=Path, help="folder with a CT or MR in DICOM (default: a sample)")
    parser.add_argument("--reading", default="", help="what is run on it (default: the lung densitometry)")
    parser.add_argument("--models", type=Path, default=config.Config().models_folder, help="installed packages")
    parser.add_argument("--profile", default=DEFAULT_PROFILE, choices=sorted(BUILT_IN))
    parser.add_argument("--port", type=int, default=0, help="port of the viewer (default: a free one)")
    return parser.parse_args()


def show(folder: Path | None, profile: str, viewer_port: int, reading: Reading | None = None) -> None:
    """Start everything, send the study, print its address, and wait for Ctrl-C."""
    refuse_without_programs()
    if reading is not None and folder is None:
        samples.refuse_without(reading.name)
    console = Console()
    with ExitStack() as running:
        place = Path(running.enter_context(tempfile.TemporaryDirectory(prefix="pacs-ai-viewer-")))
        with make_board(console, STEPS) as board:
            dicom_port, http_port = study_ports()
            node = DemoNode(place / "node", dicom_port, "ORTHANC", profile, reading)
            board.begin("orthanc")
            running.enter_context(started(orthanc_command(place, dicom_port, http_port, node.port)))
            board.end("orthanc", f"the PACS: http://127.0.0.1:{http_port}/")
            board.begin("viewer", words="its first start fetches OHIF by npm, 50 MB")
            lines = running.enter_context(started(viewer_command(http_port, viewer_port)))
            viewer = next(line.split()[1] for line in lines if line.startswith("OHIF"))
            board.end("viewer", f"OHIF: {viewer}")
            board.begin("node")
            running.enter_context(node)
            sent = prepare(folder, place, board, reading)
            journey.wait_for_node(node, board)
            board.end("node", f"{AE_TITLE} on port {node.port}")
            send(sent, dicom_port, board)
            seen = journey.follow(node, board, routed(http_port))
            results = [result for job in seen.jobs for result in node.results(job.id)]
        tell(console, seen, results, viewer)
        threading.Event().wait()


def refuse_without_programs() -> None:
    """Raise `UserError` with what to install where something is missing."""
    path = "/usr/bin:/usr/sbin:/usr/local/bin:/usr/local/sbin"
    packages = [words for name, words in PROGRAMS.items() if not (shutil.which(name) or shutil.which(name, path=path))]
    if packages:
        raise UserError(f"not everything is installed; as root: apt-get install {' '.join(packages)}")


def study_ports() -> tuple[int, int]:
    """Return two loopback ports that are free now: for Orthanc's DICOM and HTTP."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        return int(one.getsockname()[1]), int(other.getsockname()[1])


def orthanc_command(place: Path, dicom_port: int, http_port: int, node_port: int) -> list[str]:
    options = {"--folder": place / "orthanc", "--dicom-port": dicom_port, "--http-port": http_port}
    options |= {"--node-port": node_port, "--stable-seconds": 1}
    return [str(BED / "start.py"), *(str(word) for pair in options.items() for word in pair)]


def viewer_command(orthanc_port: int, port: int) -> list[str]:
    return [str(BED / "ohif.py"), "serve", "--fullest-slice", "--orthanc-port", str(orthanc_port), "--port", str(port)]


@contextmanager
def started(command: Sequence[str]) -> Iterator[list[str]]:
    """Run one of the bed's scripts and yield what it printed until it was ready; `UserError` where it never was."""
    process = subprocess.Popen(
        [sys.executable, *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C is ours, and ends them in order
    )
    try:
        assert process.stdout is not None
        lines: list[str] = []
        while (line := process.stdout.readline().strip()) != "ready":
            if not line and process.poll() is not None:
                raise UserError(process.communicate()[1].strip() or f"{command[0]} ended")
            lines.append(line)
        yield lines
    finally:
        process.terminate()
        process.communicate()


def prepare(folder: Path | None, place: Path, board: Board, reading: Reading | None) -> Study:
    """Return what is sent."""
    if folder is None and reading is not None:
        samples.write(reading.name, place / "study")
        folder = place / "study"
    if folder is not None:
        board.begin("study")
        sent = study.given(folder)
        board.end("study", f"{len(sent.instances)} instances in {folder}")
        return sent
    board.begin("study", SAMPLE.slices)
    sent = study.sample(place / "study", SAMPLE, lambda done: board.advance("study", done))
    board.end("study", f"chest CT phantom, {SAMPLE.slices} slices of {SAMPLE.rows} x {SAMPLE.columns}")
    return sent


def send(sent: Study, dicom_port: int, board: Board) -> None:
    """Store the study in Orthanc, which sends its CT and MR series on to the node."""
    board.begin("received", len(sent.instances))
    remote = scu.Remote("ORTHANC", "127.0.0.1", dicom_port, "MODALITY")
    outcomes = scu.send_files(remote, sent.instances, lambda done, _total, _outcome: board.advance("received", done))
    refused = [one for one in outcomes if not one.stored]
    if len(refused) == len(outcomes):
        raise UserError(f"Orthanc stored none of {len(outcomes)} instances: {refused[0].words}")
    words = f"; {len(refused)} not: {refused[0].words}" if refused else ""
    board.end("received", f"{len(outcomes) - len(refused)} instances in Orthanc, which sends them to the node{words}")


def routed(http_port: int) -> int:
    """Return how many instances Orthanc sends on to the node; `UserError` where it sends none."""
    with urllib.request.urlopen(f"http://127.0.0.1:{http_port}/series?expand", timeout=60) as answer:
        series = json.load(answer)
    count = sum(len(one["Instances"]) for one in series if one["MainDicomTags"].get("Modality") in ROUTED)
    if not count:
        raise UserError("the study holds no CT or MR, and no other is sent on; name another with STUDY=FOLDER")
    return count


def tell(console: Console, seen: Snapshot, results: Sequence[ResultView], viewer: str) -> None:
    """Print what came of it, and the address to open."""
    for job in seen.jobs:
        if job.state is not JobState.DONE:
            console.print(f"[red]✘[/] job {job.id} is {job.state}: {job.reason}", soft_wrap=True)
    if not seen.jobs:
        reasons = ", ".join(dict.fromkeys(one.reason for one in seen.series))
        console.print(f"[red]✘[/] nothing was analysed: {reasons}", soft_wrap=True)
    console.print("\n[bold]Open this in a browser[/] (Ctrl-C here ends everything):\n")
    console.print(f"  {address(seen, results, viewer)}\n", markup=False, highlight=False, soft_wrap=True)
    console.print("Double-click SEG or SR on the left to show either; scroll through the slices with the wheel.")


def address(seen: Snapshot, results: Sequence[ResultView], viewer: str) -> str:
    """Return the address that opens the study, with its segmentation where there is one."""
    shown = next((one for one in results if one.sop_class_uid == SEG_SOP_CLASS_UID), None)
    uid = shown.study_instance_uid if shown else seen.series[0].study_instance_uid
    first = f"&initialSeriesInstanceUID={shown.series_instance_uid}" if shown else ""
    return f"{viewer}viewer?StudyInstanceUIDs={uid}{first}"


if __name__ == "__main__":
    sys.exit(main())
