"""Measure how fast results are delivered, beside dcmtk's storescu, to the same Orthanc in the same run.

    scripts/bench_deliver.py

Twenty results of one SEG and one SR each, as `ct-lung` yields them on the sample chest, and one SEG with a frame for
each label and slice, are sent by this node's own sender and by storescu, in turns, each time into an empty Orthanc.
The node's sender runs as it does in the node, in a process that is there already; storescu's start is counted, since
it has to be started for each use (about 0.02 s). TCP_NODELAY is on at every end. A sender is done when the last
response has come.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import tempfile
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import bench
from rich.console import Console
from rich.table import Table

from pacs_ai import profiles
from pacs_ai.deliver import scu
from pacs_ai.deliver.connection import Remote
from pacs_ai.encode.provenance import Work
from pacs_ai.encode.results import encode
from pacs_ai.infer.volume import load_volume
from pacs_ai.models.lung import CtLung
from pacs_ai.profiles import Kind, Profile, Wanted
from pacs_ai.testing import Phantom, write_phantom

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pacs_ai.pipeline import Findings

ORTHANC = bench.Server("Orthanc", "ORTHANC", "orthanc")
STORESCU = bench.tool("storescu")


def make_results(folder: Path, studies: int) -> list[Path]:
    """Write the objects that are sent."""
    loaded = load_volume(write_phantom(folder / "series", Phantom()))
    inputs, evidence = {"image": loaded.volume}, {"image": loaded.evidence}
    pipeline = CtLung()
    pipeline.prepare("cpu")
    findings = pipeline.run(inputs)
    work = Work("bench", 0, datetime(2026, 1, 1, tzinfo=UTC), pipeline.card, "a" * 64, "b" * 64, "", "bench", "0")
    plain = profiles.plan(Profile("plain", (Wanted(Kind.SEGMENTATION), Wanted(Kind.REPORT))), 9001)
    full = profiles.plan(Profile("full", (Wanted(Kind.SEGMENTATION, frames="full"),)), 9001)
    paths = []
    for number in range(studies):
        wanted = [choice.encoding for choice in plain]
        paths += _write(folder, f"{number:02d}", findings, evidence, inputs, replace(work, job_key=str(number)), wanted)
    wanted = [choice.encoding for choice in full]
    return paths + _write(folder, "full", findings, evidence, inputs, work, wanted)


def _write(folder: Path, name: str, findings: Findings, *arguments: object) -> list[Path]:
    paths = []
    for one in encode(findings, *arguments):  # type: ignore[arg-type]
        paths.append(folder / f"{name}-{one.kind}.dcm")
        one.write(paths[-1])
    return paths


def by_node(port: int, paths: Sequence[Path]) -> None:
    """Send as the courier does."""
    remote = Remote("ORTHANC", "127.0.0.1", port, "PACS_AI", 10, 60, 60, 60)
    outcomes = list(scu.send(remote, scu.scan(paths).instances))
    if not all(outcome.stored for outcome in outcomes) or len(outcomes) != len(paths):
        raise SystemExit(f"not all was stored: {outcomes[0].words}")


def by_storescu(port: int, paths: Sequence[Path]) -> None:
    """Send with dcmtk, with PDUs as long as it can."""
    command = [str(STORESCU), "-R", "-pdu", "131072", "-aec", "ORTHANC", "127.0.0.1", str(port), *map(str, paths)]
    subprocess.run(command, check=True, env={**os.environ, "TCP_NODELAY": "1"}, capture_output=True)


def deliver(arguments: argparse.Namespace) -> None:
    """Print the table."""
    if STORESCU is None or not ORTHANC.is_installed():
        raise SystemExit("install dcmtk and orthanc: they are what is compared with")
    senders = {"this node": by_node, "dcmtk storescu": by_storescu}
    seconds: dict[str, list[float]] = {name: [] for name in senders}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        scratch = Path(name)
        paths = make_results(scratch, arguments.studies)
        size = sum(path.stat().st_size for path in paths) / 1e6
        for turn in range(arguments.rounds):
            for sender in sorted(senders, reverse=bool(turn % 2)):
                with bench.running(ORTHANC, scratch) as port:
                    began = time.perf_counter()
                    senders[sender](port, paths)
                    seconds[sender].append(time.perf_counter() - began)
    table = Table(title=f"{len(paths)} objects, {size:.0f} MB, to Orthanc", title_justify="left")
    for column in ("sender", "seconds (median)", "MB/s", "to storescu", "rounds"):
        table.add_column(column, justify="left" if column == "sender" else "right")
    other = statistics.median(seconds["dcmtk storescu"])
    for sender, each in seconds.items():
        middle = statistics.median(each)
        spread = f"{min(each):.2f} to {max(each):.2f}"
        table.add_row(sender, f"{middle:.2f}", f"{size / middle:.0f}", f"{other / middle:.2f}x", spread)
    Console(width=100).print(table)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what the benchmark takes."""
    parser.add_argument("--studies", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="on the disk to measure; default the system's folder")
    parser.set_defaults(run=deliver)


if __name__ == "__main__":
    own = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(own)
    chosen = own.parse_args()
    chosen.run(chosen)
