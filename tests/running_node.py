"""The real node as a subprocess, for the stories: started, killed, looked into through its database, held to account.

`RunningNode.account()` asserts what must hold after any fault: what was answered Success is on disk and in the index,
the same work was done once, and no state changed without its journal row.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from free_ports import free_port

from pacs_ai import config
from pacs_ai.deliver import scu
from pacs_ai.states import JobState
from pacs_ai.store import processes, schema, views
from pacs_ai.store.database import Database
from pacs_ai.store.files import Files
from pacs_ai.store.schema import Role

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from pacs_ai.states import SeriesState

SENDER = "SENDER"
#: Patient's Name, Patient ID and Accession Number of the phantoms, and of the marker patient.
_PATIENTS = re.compile(rb"Phantom\^|PHANTOM-?\d|ZZPHI\^|ZZACC")
#: Generous, because the machine may be busy: nothing waits so long that goes right.
DEADLINE_SECONDS = 90.0
_QUICK: Mapping[str, Mapping[str, Any]] = {
    "store": {"folder": "data", "min_free_gb": 0.05, "min_free_percent": 0},
    "receive": {
        "bind": "127.0.0.1",
        "quiet_seconds": 2.0,
        "released_seconds": 0.3,
        "grace_seconds": 5.0,
        "ahead_mb": 16,
    },
    "deliver": {"first_backoff_seconds": 0.3, "longest_backoff_seconds": 1.0},
    "infer": {"devices": ["cpu"]},
}


def until(
    condition: Callable[[], Any],
    seconds: float = DEADLINE_SECONDS,
    what: str = "it",
    why: Callable[[], str] = str,
    every: float = 0.01,
) -> Any:
    """Return what `condition` returns as soon as that is true; AssertionError with `why()` after `seconds`.

    It is asked `every` so many seconds: what takes minutes is not slowed down by being asked.
    """
    deadline = time.monotonic() + seconds
    pause = threading.Event()
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{what} did not come within {seconds:g} s\n{why()}"
        pause.wait(every)
    return found


def peer_table(name: str, ae_title: str, port: int, **further: Any) -> dict[str, Any]:
    """Return a [[peer]] on loopback, which gets one SEG and one SR unless `further` names another profile."""
    return {"name": name, "ae_title": ae_title, "host": "127.0.0.1", "port": port, "profile": "plain", **further}


#: One SEG and the SR that cites it.
PLAIN = {"name": "plain", "objects": [{"kind": "segmentation"}, {"kind": "report"}]}


def as_toml(tables: Mapping[str, Any]) -> str:
    """Write tables and lists of tables as TOML."""
    lines: list[str] = []
    for name, content in tables.items():
        for table in content if isinstance(content, list) else [content]:
            lines.append(f"[[{name}]]" if isinstance(content, list) else f"[{name}]")
            lines += [f"{_key(key)} = {_value(value)}" for key, value in table.items()]
            lines.append("")
    return "\n".join(lines)


def _key(key: object) -> str:
    return json.dumps(str(key))


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_key(key)} = {_value(one)}" for key, one in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_value(one) for one in value) + "]"
    return json.dumps(str(value) if isinstance(value, Path) else value)


def _children(pid: int) -> list[int]:
    found: list[int] = []
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += [int(word) for word in (task / "children").read_text().split()]
    return found


def descendants(pid: int) -> list[int]:
    """Return the process and all below it, now."""
    return [pid, *(one for child in _children(pid) for one in descendants(child))]


def is_alive(pid: int) -> bool:
    """Tell whether the process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in {"Z", "X"}
    except OSError:
        return False


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process so far, user and system."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_mb(pid: int) -> float:
    """Return the proportional share of memory of a process (PSS) in MB."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1000


class RunningNode:
    """One node: its folder, its configuration, its processes.

    Parameters
    ----------
    folder
        For configuration, log and data.
    peer, route, pipeline
        Tables of the configuration.
    python_path
        Folders with installed plugins, beside those of this environment.
    sections
        Keys to set in the other tables: ``receive={"quiet_seconds": 5}``.
    """

    ae_title = "PACS_AI"

    def __init__(
        self,
        folder: Path,
        *,
        peer: Sequence[Mapping[str, Any]] = (),
        route: Sequence[Mapping[str, Any]] = (),
        pipeline: Sequence[Mapping[str, Any]] = (),
        profile: Sequence[Mapping[str, Any]] = (PLAIN,),
        port: int = 0,
        python_path: Sequence[Path] = (),
        **sections: Mapping[str, Any],
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.port = folder, port or free_port()
        self.log_path = folder / "node.log"
        self.config_path = folder / "pacs-ai.toml"
        tables: dict[str, Any] = {name: {**_QUICK.get(name, {}), **sections.get(name, {})} for name in _QUICK}
        tables |= {name: dict(keys) for name, keys in sections.items() if name not in tables}
        tables["receive"]["port"] = self.port
        tables |= {"peer": list(peer), "profile": list(profile), "pipeline": list(pipeline), "route": list(route)}
        self.config_path.write_text(as_toml(tables), encoding="utf-8")
        self.config = config.load(self.config_path)
        self.files_folder = self.config.store.folder / "files"
        self.acked: set[str] = set()
        self._environment = dict(os.environ)
        if python_path:
            self._environment["PYTHONPATH"] = os.pathsep.join(map(str, python_path))
        self._process: subprocess.Popen[bytes] | None = None
        self._known: set[int] = set()
        self._database: Database | None = None

    # Life

    def start(self, *, wait: bool = True) -> RunningNode:
        """Start the node and wait until it answers C-ECHO."""
        assert self._process is None, "the node runs already"
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "pacs_ai", "--config", str(self.config_path), "run"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment,
            )
        if wait:
            self.until(self.answers, what="an answer to C-ECHO")
        return self

    def answers(self) -> bool:
        """Tell whether the node answers a C-ECHO; AssertionError where it has ended."""
        process = self._process
        assert process is not None
        assert process.poll() is None, f"the node ended with status {process.returncode}\n{self.log()}"
        self._known |= set(descendants(process.pid))
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=2.0):
            return scu.echo(self.remote()).ms is not None
        return False

    def stop(self, seconds: float = 60.0) -> int:
        """End the node as an administrator does (SIGTERM); returns its exit status. Nothing may stay behind."""
        process = self._process
        if process is None:
            return 0
        self._note_processes()
        process.send_signal(signal.SIGTERM)
        try:
            status = process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"the node did not stop within {seconds:g} s\n{self.log()}") from None
        self._process = None
        self.until(self.has_gone, what="the end of every process")
        return status

    def kill(self) -> None:
        """End every process of the node at once (SIGKILL), as a power cut would."""
        process = self._process
        if process is None:
            return
        self._note_processes()
        process.send_signal(signal.SIGKILL)
        for pid in self._known:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()
        self._process = None
        self.until(self.has_gone, what="the end of every process")

    def kill_supervisor(self) -> None:
        """End the supervisor alone (SIGKILL); the others have to notice."""
        assert self._process is not None
        self._note_processes()
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        self._process = None

    def signal_process(self, kind: str, number: signal.Signals = signal.SIGKILL) -> int:
        """Send a signal to the one process of a kind (`receive`, `route`, `infer`, `deliver`, `infer child`)."""
        self._note_processes()
        pid = self.pid(kind)
        os.kill(pid, number)
        return pid

    def owner(self, job_id: int) -> str:
        """Return the worker that holds a job: kind, boot, process id, start time."""
        with self.read() as connection:
            return connection.execute(sa.select(schema.job.c.owner).where(schema.job.c.id == job_id)).scalar_one()

    def has_gone(self) -> bool:
        """Tell whether none of the processes that the node ever had is left."""
        self._known = {pid for pid in self._known if is_alive(pid)}
        return not self._known

    def _note_processes(self) -> None:
        if self._process is not None:
            self._known |= set(descendants(self._process.pid))

    def close(self) -> None:
        """End what still runs, for the end of a test."""
        self.kill()
        if self._database is not None:
            self._database.close()
            self._database = None

    @property
    def has_ended(self) -> bool:
        """Whether it was stopped or killed, or never started."""
        return self._process is None

    @property
    def supervisor_pid(self) -> int:
        """Process id of the supervisor."""
        assert self._process is not None
        return self._process.pid

    def pid(self, kind: str) -> int:
        """Return the process id of the one process of a kind, as soon as it is entered in the list."""
        if kind == "infer child":
            return int(self.until(lambda: self._infer_child(self.pid("infer")), what="the child that runs models"))
        return int(self.until(lambda: self._entered(kind), what=f"process {kind}"))

    def _entered(self, kind: str) -> int | None:
        with self.read() as connection:
            return next((one.pid for one in processes.running(connection) if one.kind == kind), None)

    @staticmethod
    def _infer_child(parent: int) -> int | None:
        for pid in _children(parent):
            with suppress(OSError):
                if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    return pid
        return None

    def log(self, lines: int = 60) -> str:
        """Return the end of the log."""
        text = self.log_path.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(text[-lines:])

    # Sending

    def remote(self, calling_ae_title: str = SENDER) -> scu.Remote:
        """Return the node as a peer."""
        return scu.Remote(self.ae_title, "127.0.0.1", self.port, calling_ae_title)

    def send(self, paths: Iterable[Path], calling_ae_title: str = SENDER) -> list[scu.Outcome]:
        """Send files on one association; what was answered Success is held against the node by `account`."""
        outcomes = scu.send_files(self.remote(calling_ae_title), scu.scan(paths).instances)
        self.acked |= {outcome.sop_instance_uid for outcome in outcomes if outcome.stored}
        return outcomes

    def send_all(self, paths: Iterable[Path], calling_ae_title: str = SENDER) -> None:
        """Send files on one association; AssertionError where one of them was not answered Success."""
        refused = [one.words for one in self.send(paths, calling_ae_title) if not one.stored]
        assert refused == [], self.log()

    # Looking

    @contextmanager
    def read(self) -> Iterator[Any]:
        """Yield a connection to the node's database; nothing is written."""
        if self._database is None:
            self._database = Database(self.config.database_url)
        with self._database.read() as connection:
            yield connection

    @contextmanager
    def orders(self) -> Iterator[Database]:
        """Yield the node's database for an operator's orders (`pacs_ai.store.orders`)."""
        database = Database(self.config.database_url)
        try:
            yield database
        finally:
            database.close()

    def until(self, condition: Callable[[], Any], seconds: float = DEADLINE_SECONDS, what: str = "it") -> Any:
        """Return what `condition` returns as soon as that is true; AssertionError with the log's end otherwise."""
        return until(condition, seconds, what, lambda: f"{self.summary()}\n{self.log()}")

    def summary(self) -> str:
        """Return the states and reasons of everything."""
        if self._database is None:
            return ""
        lines = [f"series {one.id} {one.state}: {one.reason}" for study in self.studies() for one in study.series]
        lines += [f"job {one.id} {one.pipeline} {one.state}: {one.reason}" for one in self.jobs()]
        lines += [f"delivery {one.id} {one.kind} {one.peer} {one.state}: {one.reason}" for one in self.deliveries()]
        return "\n".join(lines)

    def studies(self) -> list[views.StudyView]:
        """Return the studies."""
        with self.read() as connection:
            return views.studies(connection)

    def series(self, series_instance_uid: str) -> views.SeriesView | None:
        """Return a series, None where it is not there."""
        found = [one for study in self.studies() for one in study.series]
        return next((one for one in found if one.series_instance_uid == series_instance_uid), None)

    def state_of(self, series_instance_uid: str) -> SeriesState | None:
        """Return the state of a series, None where it is not there; its row comes a moment after Success."""
        found = self.series(series_instance_uid)
        return found.state if found is not None else None

    def jobs(self, study_instance_uid: str | None = None) -> list[views.JobView]:
        """Return the jobs, of one study or all, the oldest first."""
        with self.read() as connection:
            return views.jobs(connection, study_instance_uid=study_instance_uid, limit=1000)[::-1]

    def job(self, study_instance_uid: str) -> views.JobView | None:
        """Return the study's only job, None before there is one."""
        found = self.jobs(study_instance_uid)
        assert len(found) <= 1, self.summary()
        return found[0] if found else None

    def job_in(self, study_instance_uid: str, *states: JobState, seconds: float = DEADLINE_SECONDS) -> views.JobView:
        """Return the study's only job as soon as it is in one of the states."""
        return self.until(
            lambda: (job := self.job(study_instance_uid)) is not None and job.state in states and job,
            seconds,
            f"a job that is {' or '.join(states)}",
        )

    def deliveries(self, job_id: int | None = None) -> list[views.DeliveryView]:
        """Return the deliveries, of one job or all, the oldest first."""
        with self.read() as connection:
            return views.deliveries(connection, job_id=job_id, limit=1000)[::-1]

    def delivered(self, study_instance_uid: str, count: int = 2, seconds: float = DEADLINE_SECONDS) -> views.JobView:
        """Return the study's only job as soon as `count` of its results are sent."""
        job = self.job_in(study_instance_uid, JobState.DONE, seconds=seconds)
        self.until(
            lambda: sum(one.state == "sent" for one in self.deliveries(job.id)) >= count,
            seconds,
            f"{count} sent results of job {job.id}",
        )
        return job

    def results(self, job_id: int) -> list[views.ResultView]:
        """Return what was encoded for a job, in the order in which it is sent."""
        with self.read() as connection:
            return views.results(connection, job_id)

    def result_bytes(self, job_id: int) -> dict[str, bytes]:
        """Return SOP Instance UID -> file, as it lies in the outbox."""
        files = Files(self.files_folder)
        return {one.sop_instance_uid: files.read(one.sha256) for one in self.results(job_id)}

    def instances(self) -> list[Any]:
        """Return the rows of every received instance."""
        with self.read() as connection:
            return list(connection.execute(sa.select(schema.instance)))

    # Holding to account

    def name_no_patient(self) -> None:
        """Assert that the log, whatever happened, names none of the patients that tests send (PRI-01)."""
        log = self.log_path.read_bytes() if self.log_path.exists() else b""
        named = [line for line in log.splitlines() if _PATIENTS.search(line)]
        assert named == [], f"the log of the node names a patient: {named[:3]}"

    def account(self) -> None:
        """Assert what must hold after any fault; rows come a moment after Success."""
        current: set[str] = set()

        def are_all_indexed() -> bool:
            current.update(row.sop_instance_uid for row in self.instances() if row.role == Role.CURRENT)
            return self.acked <= current

        self.until(are_all_indexed, what="all acknowledged instances in the index")
        rows = self.instances()
        files = Files(self.files_folder)
        broken = [row.sha256 for row in rows if row.purged_at is None and not files.verify(row.sha256)]
        assert broken == [], "files are missing or differ from their digest"
        for job in self.jobs():
            assert all(files.verify(one.sha256) for one in self.results(job.id)), f"results of job {job.id} are damaged"
        self._assert_once()
        self._assert_journal()

    def _assert_once(self) -> None:
        wanted = [
            (job.pipeline, job.pipeline_version, tuple(sorted(job.sources)), job.generation)
            for job in self.jobs()
            if job.state is not JobState.SUPERSEDED
        ]
        assert len(wanted) == len(set(wanted)), f"the same work stands in two jobs\n{self.summary()}"

    def _assert_journal(self) -> None:
        tables = {"series": schema.series, "job": schema.job, "delivery": schema.delivery}
        with self.read() as connection:
            moves = list(connection.execute(sa.select(schema.journal).order_by(schema.journal.c.id)))
            for subject, table in tables.items():
                for row in connection.execute(sa.select(table.c.id, table.c.state)):
                    life = [move for move in moves if (move.subject, move.subject_id) == (subject, str(row.id))]
                    states = [move.after for move in life]
                    starts = [move.before for move in life][1:]
                    assert starts == states[:-1], f"{subject} {row.id} changed its state without a journal row"
                    if states:
                        assert states[-1] == row.state, f"{subject} {row.id} is {row.state}, its journal says {states}"
                    else:
                        assert (subject, row.state) == ("series", "receiving"), f"{subject} {row.id} has no journal"


@contextmanager
def nodes(folder: Path) -> Iterator[Callable[..., RunningNode]]:
    """Yield what makes nodes, each in a folder of its own below `folder`; what still runs is ended afterwards."""
    made: list[RunningNode] = []

    def make(**tables: Any) -> RunningNode:
        made.append(RunningNode(folder / f"node{len(made)}", **tables))
        return made[-1]

    try:
        yield make
    finally:
        for node in made:
            node.close()
    for node in made:
        node.name_no_patient()
