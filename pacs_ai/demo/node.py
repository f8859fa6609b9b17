"""The demo's node: the same program that a hospital runs, as a process of its own with a configuration made for it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from pacs_ai import config
from pacs_ai.built_in_profiles import DEFAULT_PROFILE
from pacs_ai.deliver import scu
from pacs_ai.demo import pacs
from pacs_ai.demo.reading import DEFAULT
from pacs_ai.errors import PacsAiError
from pacs_ai.states import DeliveryState, JobState, SeriesState
from pacs_ai.store import views
from pacs_ai.store.database import Database

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    from pacs_ai.demo.reading import Reading
    from pacs_ai.store.views import DeliveryView, JobView, ResultView, SeriesView

AE_TITLE = "PACS_AI"
PEER = "demo-pacs"
_STOP_SECONDS = 30.0
_MANY = 10_000
#: Length of the time that a log line begins with.
_STAMP = len("2026-01-01T00:00:00.000Z")

_CONFIGURATION = """\
# Written by `pacs-ai demo`. The journey of a study through this file: received, routed, analysed, delivered.

[store]
folder = "data"
min_free_gb = 1.0
min_free_percent = 0.0

[receive]
ae_titles = ["{ae_title}"]
bind = "127.0.0.1"
port = {port}
quiet_seconds = 3.0  # somebody looks on, and one association brings all

[[peer]]
name = "{peer}"
ae_title = "{pacs_ae_title}"
host = "127.0.0.1"
port = {pacs_port}
profile = "{profile}"

{further}"""
#: What a chest CT takes.
_LUNG = f"""\
[[route]]
when = {{ modality = "CT" }}
run = "{DEFAULT}"
deliver_to = ["{PEER}"]
"""

_FINAL_JOBS = {
    JobState.DONE,
    JobState.REFUSED,
    JobState.FAILED,
    JobState.WITHHELD,
    JobState.CANCELLED,
    JobState.SUPERSEDED,
}
_FINAL_DELIVERIES = {DeliveryState.SENT, DeliveryState.CONFIRMED, DeliveryState.FAILED, DeliveryState.CANCELLED}


class NodeFailed(PacsAiError):  # noqa: N818 - what happened, as the other errors of the node
    """The demo's node ended, or nothing moves in it; the message holds the last lines of its log."""


@dataclass(frozen=True)
class Snapshot:
    """What the node knows at one moment."""

    series: tuple[SeriesView, ...] = ()
    jobs: tuple[JobView, ...] = ()
    deliveries: tuple[DeliveryView, ...] = ()

    @property
    def instances(self) -> int:
        """Instances stored."""
        return sum(one.instances for one in self.series)

    @property
    def complete(self) -> tuple[SeriesView, ...]:
        """Series that are no longer being received."""
        return tuple(one for one in self.series if one.state not in {SeriesState.RECEIVING, SeriesState.REOPENED})

    @property
    def sent(self) -> int:
        """Deliveries that the peer answered."""
        return sum(one.state in {DeliveryState.SENT, DeliveryState.CONFIRMED} for one in self.deliveries)

    @property
    def settled(self) -> bool:
        """Whether nothing more will happen to the series received so far."""
        return (
            bool(self.series)
            and len(self.complete) == len(self.series)
            and all(one.state in _FINAL_JOBS for one in self.jobs)
            and all(one.state in _FINAL_DELIVERIES for one in self.deliveries)
        )


class DemoNode:
    """The node as a subprocess with its own folder; use it in a ``with`` statement.

    Parameters
    ----------
    folder
        For its configuration, its log and its data; made where it is missing.
    pacs_port, pacs_ae_title
        Where and as what the PACS listens that gets the results.
    profile
        Which objects it gets.
    reading
        What it runs on everything of the right kind; None: the lung densitometry on CT.
    """

    def __init__(
        self,
        folder: Path,
        pacs_port: int,
        pacs_ae_title: str = pacs.AE_TITLE,
        profile: str = DEFAULT_PROFILE,
        reading: Reading | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.configuration = folder / "pacs-ai.toml"
        self.log = folder / "node.log"
        self.port = _free_port()
        text = _CONFIGURATION.format(
            ae_title=AE_TITLE,
            port=self.port,
            peer=PEER,
            pacs_ae_title=pacs_ae_title,
            pacs_port=pacs_port,
            profile=profile,
            further=_LUNG if reading is None else reading.tables(PEER),
        )
        self.configuration.write_text(text, encoding="utf-8")
        self.config = config.load(self.configuration)
        self._process: subprocess.Popen[bytes] | None = None
        self._database: Database | None = None

    def __enter__(self) -> Self:
        """Start the node; it takes studies once `answers` is true."""
        command = [sys.executable, "-m", "pacs_ai", "--config", str(self.configuration), "run"]
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [*command, "--supervisor", str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is the demo's, which stops the node in order
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Let the node end in order; end what is left of it after `_STOP_SECONDS`."""
        if self._database is not None:
            self._database.close()
        process = self._process
        if process is None:
            return
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    @property
    def remote(self) -> scu.Remote:
        """The node as a peer to send to."""
        return scu.Remote(AE_TITLE, "127.0.0.1", self.port, pacs.AE_TITLE)

    def answers(self) -> bool:
        """Tell whether the node answers a C-ECHO; `NodeFailed` where it ended."""
        self.check()
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=1.0).close()
        except OSError:
            return False
        return scu.echo(self.remote).ms is not None

    def check(self) -> None:
        """Raise `NodeFailed` where the node ended by itself."""
        status = self._process.poll() if self._process is not None else None
        if status is not None:
            raise self.failure(f"the node ended by itself with status {status}")

    def failure(self, words: str) -> NodeFailed:
        """Return an error that shows the end of the node's log and says what to do."""
        return NodeFailed(
            f"{words}.\nThe last lines of its log ({self.log}):\n\n{self.tail()}\n\n"
            f"Its configuration is {self.configuration}. `pacs-ai --config {self.configuration} doctor` checks the "
            "machine and the configuration; then run the demo again."
        )

    def tail(self, lines: int = 15) -> str:
        """Return the last lines of the log, each message once."""
        told: dict[str, str] = {}
        for line in self.log.read_text(encoding="utf-8", errors="replace").splitlines():
            message = line[_STAMP:] if line[:1].isdigit() else line
            told.pop(message, None)
            told[message] = line
        return "\n".join(f"    {line}" for line in list(told.values())[-lines:]) or "    (empty)"

    def look(self) -> Snapshot:
        """Return what the node's database says; `Unavailable` while it does not answer."""
        with self._opened().read() as connection:
            studies = views.studies(connection, limit=_MANY)
            return Snapshot(
                series=tuple(series for study in studies for series in study.series if not series.own_result),
                jobs=tuple(views.jobs(connection, limit=_MANY)),
                deliveries=tuple(views.deliveries(connection, limit=_MANY)),
            )

    def results(self, job_id: int) -> list[ResultView]:
        """Return what of a job goes to the PACS; what it would get instead of something refused is encoded too."""
        with self._opened().read() as connection:
            sent = {one.sop_instance_uid for one in views.deliveries(connection, job_id=job_id, limit=_MANY)}
            return [one for one in views.results(connection, job_id) if one.sop_instance_uid in sent]

    def _opened(self) -> Database:
        if self._database is None:
            self._database = Database(self.config.database_url)
        return self._database


def _free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
