"""Measure the journey of one CT series: from its last instance to the results in the PACS, split into its parts.

The whole node runs as `pacs-ai run` does, with SQLite on this machine's disk; the PACS is pynetdicom's SCP in a process
of its own, which writes what it gets. A 300-slice phantom of 512 x 512 is sent by the node's own SCU; each round is
another study. Times come from the node's rows (one machine, one clock); the first round also loads what is loaded once.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from pacs_ai import config as configuration
from pacs_ai.deliver.scu import Remote, echo, scan, send_files
from pacs_ai.states import DeliveryState, JobState
from pacs_ai.store import views
from pacs_ai.store.database import Database
from pacs_ai.testing import Phantom, write_phantom

if TYPE_CHECKING:
    from collections.abc import Iterator

DEADLINE_SECONDS = 300.0
PARTS = ("sending", "waiting", "starting", "loading", "inferring", "encoding", "committing", "delivering")


@dataclass(frozen=True)
class Round:
    """Seconds per part, and from the last instance to the last result in the PACS."""

    parts: dict[str, float]
    total: float

    @property
    def rest(self) -> float:
        """All but waiting and the model itself."""
        return self.total - self.parts["waiting"] - self.parts["inferring"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def serve_pacs(port: int, folder: str) -> None:
    """Run pynetdicom's SCP, which writes what it gets."""
    from pynetdicom import AE, AllStoragePresentationContexts, evt

    def store(event: Any) -> int:
        (Path(folder) / f"{event.request.AffectedSOPInstanceUID}.dcm").write_bytes(event.encoded_dataset())
        return 0x0000

    def no_delay(event: Any) -> None:
        event.assoc.dul.socket.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    ae = AE("PACS")
    ae.supported_contexts = AllStoragePresentationContexts
    ae.start_server(("127.0.0.1", port), evt_handlers=[(evt.EVT_C_STORE, store), (evt.EVT_CONN_OPEN, no_delay)])


@contextlib.contextmanager
def running_node(scratch: Path, device: str) -> Iterator[tuple[configuration.Config, Remote]]:
    """Run the node and its PACS on free loopback ports."""
    ports = free_port(), free_port()
    path = scratch / "pacs-ai.toml"
    path.write_text(
        f"""
[store]
folder = "data"
min_free_gb = 0.1
min_free_percent = 0
[receive]
bind = "127.0.0.1"
port = {ports[0]}
[infer]
devices = ["{device}"]
[log]
level = "warning"
[[peer]]
name = "pacs"
ae_title = "PACS"
host = "127.0.0.1"
port = {ports[1]}
[[route]]
when = {{ modality = "CT" }}
run = "ct-lung"
deliver_to = ["pacs"]
"""
    )
    (scratch / "pacs").mkdir()
    pacs = multiprocessing.Process(target=serve_pacs, args=(ports[1], str(scratch / "pacs")), daemon=True)
    pacs.start()
    node = subprocess.Popen([sys.executable, "-m", "pacs_ai", "--config", str(path), "run"])
    remote = Remote("PACS_AI", "127.0.0.1", ports[0], "BENCH")
    try:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while echo(remote).ms is None:
            if time.monotonic() > deadline or node.poll() is not None:
                raise SystemExit("the node did not start")
            time.sleep(0.1)
        yield configuration.load(path), remote
    finally:
        node.send_signal(signal.SIGTERM)
        node.wait(60)
        pacs.terminate()
        pacs.join()


def one_round(config: configuration.Config, remote: Remote, folder: Path) -> Round:
    """Send one study and wait for its results."""
    instances = scan([folder]).instances
    database = Database(config.database_url)
    begun = time.time()
    outcomes = send_files(remote, instances)
    last = time.time()
    if not all(outcome.stored for outcome in outcomes):
        raise SystemExit(next(outcome.words for outcome in outcomes if not outcome.stored))
    uid = _study_uid(instances[0].path)
    deadline = time.monotonic() + DEADLINE_SECONDS
    while time.monotonic() < deadline:
        with database.read() as connection:
            jobs = views.jobs(connection, study_instance_uid=uid)
            series = [s for study in views.studies(connection, uid=uid) for s in study.series]
            sent = views.deliveries(connection, job_id=jobs[0].id) if jobs else []
        if jobs and jobs[0].state in {JobState.FAILED, JobState.REFUSED}:
            raise SystemExit(f"the job is {jobs[0].state}: {jobs[0].reason}")
        if sent and all(delivery.state is DeliveryState.SENT for delivery in sent):
            database.close()
            return _split(begun, last, series[0], jobs[0], sent)
        time.sleep(0.02)
    raise SystemExit("no results in time")


def _study_uid(path: Path) -> str:
    from pydicom import dcmread

    return str(dcmread(path, stop_before_pixels=True).StudyInstanceUID)


def _split(begun: float, last: float, series: Any, job: Any, sent: Any) -> Round:
    completed, started, finished = (t.timestamp() for t in (series.completed_at, job.started_at, job.finished_at))
    arrived = max(delivery.sent_at.timestamp() for delivery in sent)
    timings = dict(job.timings)
    steps = sum(timings.values())
    parts = {
        "sending": last - begun,
        "waiting": completed - last,
        "starting": started - completed,
        **timings,
        "committing": finished - started - steps,
        "delivering": arrived - finished,
    }
    return Round(parts, arrived - last)


def journey(arguments: argparse.Namespace) -> None:
    """Run the rounds and print the table."""
    rounds = []
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as name:
        scratch = Path(name)
        with running_node(scratch, arguments.device) as (config, remote):
            for number in range(arguments.rounds):
                folder = scratch / f"study-{number}"
                write_phantom(folder, Phantom(slices=arguments.slices, seed=number + 1))
                rounds.append(one_round(config, remote, folder))
    print_table(arguments, rounds)
    if arguments.json:
        arguments.json.write_text(json.dumps([{**r.parts, "total": r.total, "rest": r.rest} for r in rounds], indent=1))


def print_table(arguments: argparse.Namespace, rounds: list[Round]) -> None:
    """Print every round and the median of all but the first."""
    today = datetime.now(UTC).date()
    title = f"{arguments.slices} slices of 512 x 512, ct-lung on {arguments.device}, {os.cpu_count()} CPUs, {today}"
    table = Table("seconds", *(f"round {i + 1}" for i in range(len(rounds))), "median of 2..", title=title)
    later = rounds[1:] or rounds
    for part in PARTS:
        values = [r.parts[part] for r in rounds]
        table.add_row(part, *(f"{v:.2f}" for v in values), f"{statistics.median(r.parts[part] for r in later):.2f}")
    for name, pick in (("last instance to results", "total"), ("all but waiting and inferring", "rest")):
        values = [getattr(r, pick) for r in rounds]
        table.add_row(name, *(f"{v:.2f}" for v in values), f"{statistics.median(getattr(r, pick) for r in later):.2f}")
    Console(width=120).print(table)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what `bench.py journey` takes."""
    parser.add_argument("--slices", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda:0")
    parser.add_argument(
        "--scratch", type=Path, help="folder on the disk to measure; default: the system's for temporary files"
    )
    parser.add_argument("--json", type=Path, help="also write the figures there")
    parser.set_defaults(run=journey)


if __name__ == "__main__":
    own = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(own)
    chosen = own.parse_args()
    chosen.run(chosen)
