"""The node in one process that may be killed at any instruction: receiver, router, two workers, courier, all real.

What is not the node's own: the models run in this process (no child of a child, and no torch), and the wait between
two steps is shorter. Everything durable, every transaction and every byte on the wire is the product's.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
import types
from collections import Counter, deque
from functools import cache
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from pacs_ai.receive.service import Services


def _stand_in_for_torch() -> None:
    """Give `import torch` a module with the few names that are asked for: torch itself takes seconds to import."""
    torch: Any = types.ModuleType("torch")
    torch.__version__ = "0"
    torch.device = lambda wanted: types.SimpleNamespace(type=wanted)
    torch.Tensor = type("Tensor", (), {})
    torch.OutOfMemoryError = torch.AcceleratorError = type("OutOfMemoryError", (RuntimeError,), {})
    sys.modules.setdefault("torch", torch)


_stand_in_for_torch()

from pacs_ai import loop  # noqa: E402
from pacs_ai.config import Config, Tls  # noqa: E402
from pacs_ai.credentials import Credentials  # noqa: E402
from pacs_ai.deliver.courier import Courier  # noqa: E402
from pacs_ai.infer import child, worker  # noqa: E402
from pacs_ai.infer.order import Order, Ready  # noqa: E402
from pacs_ai.models.registry import GROUP, Registry  # noqa: E402
from pacs_ai.pipeline import (  # noqa: E402
    ANATOMICAL_STRUCTURE,
    MILLILITRE,
    VOLUME,
    Card,
    Code,
    Findings,
    Input,
    Label,
    Measurement,
    Segment,
)
from pacs_ai.receive import commitment, indexing, scp  # noqa: E402
from pacs_ai.receive.ingest import DurableIngest  # noqa: E402
from pacs_ai.receive.scp import Listen, Receiver  # noqa: E402
from pacs_ai.route.router import Router  # noqa: E402
from pacs_ai.store import commitments, pledges, queue, schema  # noqa: E402
from pacs_ai.store.ahead import Ahead  # noqa: E402
from pacs_ai.store.database import Database  # noqa: E402
from pacs_ai.store.files import Files  # noqa: E402
from pacs_ai.store.index import Index  # noqa: E402
from pacs_ai.store.life import Receives  # noqa: E402
from pacs_ai.store.owners import this_process  # noqa: E402
from pacs_ai.tls import server_context  # noqa: E402

LEAST_SLICES = 3
#: Of a segment that is written ahead to: few records fill it, so that it is used again and again.
_SEGMENT_BYTES, _SEGMENTS = 64 << 10, 3
_BODY = Label("Body", ANATOMICAL_STRUCTURE, Code("38266002", "SCT", "Entire body"))
_ENCODING = threading.Lock()
_LOOK_SECONDS = 60.0
#: After so long what a killed process had taken, a request or a look, is taken by its successor.
_LEASE_SECONDS = 0.4


class Bright:
    """A pipeline that marks what is brighter than water: deterministic, and done in a millisecond."""

    card = Card(
        name="bright",
        version="1.0",
        manufacturer="prove",
        title="Bright",
        inputs={"image": Input(("CT",))},
        labels=(_BODY,),
        procedure=Code("25045-6", "LN", "CT unspecified body region"),
        intended_use="tests",
        model_digest="0" * 64,
    )

    def prepare(self, device):
        """Nothing to load."""

    def run(self, inputs):
        """Return one segment and its volume."""
        volume = inputs["image"]
        mask = np.asarray(volume.voxels > 0)
        ml = float(np.count_nonzero(mask)) * volume.voxel_ml
        return Findings((Segment("Body", mask),), (Measurement(VOLUME, ml, MILLILITRE, "Body"),))


_PLUGINS = [EntryPoint("bright", "prove.victim:Bright", GROUP)]


class Bench:
    """`pacs_ai.infer.bench.Bench` without a process of its own: the child's own code, called."""

    pid, is_alive = 0, True

    def __init__(self, config: Config, device: str) -> None:
        self.ready: Ready | None = None
        self.last_used, self.orders = time.monotonic(), 0
        self._bench = child.Bench(config, device)
        self._said: deque[Any] = deque([Ready(device, self._bench.warm())])

    def receive(self, seconds: float) -> Any:
        """Return what was said."""
        return self._said.popleft() if self._said else None

    def send(self, order: Order) -> None:
        """Do the order; its steps are said one by one."""
        self.last_used = time.monotonic()
        self.orders += 1
        with _ENCODING:
            done = self._bench.serve(order, types.SimpleNamespace(send=self._said.append))
        self._said.append(done)

    def end(self) -> None:
        """Nothing to end."""


def prepare() -> None:
    """Bend what has to be bent, once, before any fork."""
    registry = Registry((), _PLUGINS)
    Registry.of = classmethod(lambda cls, config: registry)  # type: ignore[method-assign]
    worker.Bench = Bench  # type: ignore[misc,assignment]
    scp.acceptor_contexts = cache(scp.acceptor_contexts)  # most of a start's time, and the same each time
    indexing._AGAIN_SECONDS, indexing._QUIET_SECONDS = 0.02, 0.05
    loop._PAUSES = (0.05, 0.2)
    commitments.LONGEST_WAIT = pledges.LONGEST_WAIT = _LEASE_SECONDS
    pledges._LOOK_AGAIN_SECONDS = 0.05
    queue.MOST_CRASHES = 1_000_000  # a job that is killed three times here is no poison


def configuration(folder: Path, keeper_port: int, database: str = "") -> Config:
    """Return the node's configuration: series are complete at once, so that much happens before the next kill."""
    return Config.model_validate(
        {
            "store": {"folder": folder, "database": database, "min_free_gb": 0, "min_free_percent": 0},
            "receive": {
                "quiet_seconds": 0.03,
                "released_seconds": 0.001,
                "idle_association_seconds": 0.05,
                "commitment": True,
            },
            "peer": [
                {
                    "name": "keeper",
                    "ae_title": "KEEPER",
                    "host": "127.0.0.1",
                    "port": keeper_port,
                    "profile": "plain",
                    "connect_seconds": 20,
                    "answer_seconds": 20,
                    "commitment": True,
                    "commitment_seconds": 0.2,
                },
                # who sends: it hears there what is kept
                {"name": "sender", "ae_title": "SENDER", "host": "127.0.0.1", "port": keeper_port},
            ],
            "profile": [{"name": "plain", "objects": [{"kind": "segmentation"}, {"kind": "report"}]}],
            "route": [
                {
                    "when": {"modality": "CT", "min_instances": LEAST_SLICES},
                    "run": "bright",
                    "deliver_to": ["keeper"],
                }
            ],
            "deliver": {"first_backoff_seconds": 0.02, "longest_backoff_seconds": 0.05},
        }
    )


def make_store(folder: Path) -> None:
    """Lay out an empty store with this release's schema, durably."""
    folder.mkdir(parents=True)
    make_tables(f"sqlite:///{folder / 'pacs_ai.sqlite'}")
    files = Files(folder / "files")
    # with no free segment behind that which is written to, indexing would wait for no association's end
    for made in [_ahead(folder, files) for _ in range(_SEGMENTS - 1)]:
        made.close()


def make_tables(url: str) -> None:
    """Lay out this release's schema."""
    database = Database(url)
    schema.metadata.create_all(database.engine)
    database.close()


def _ahead(folder: Path, files: Files) -> Ahead:
    return Ahead(folder / "ahead", files.disk, segment_bytes=_SEGMENT_BYTES, most=_SEGMENTS)


def _listen(tls: str, services: Services) -> Listen:
    if not tls:
        return Listen(port=0, services=services)
    files = {
        f"{name}_file": Path(tls) / f"{stem}.pem" for name, stem in (("certificate", "node"), ("trusted", "authority"))
    }
    own = Tls(key_file=Path(tls) / "node.key", **files)
    return Listen(port=0, tls=Credentials(own, server_context).context, tls_port=0, services=services)


class Node:
    """All actors of a node over one folder.

    Parameters
    ----------
    folder
        The store's.
    keeper_port
        Of the destination.
    is_ahead
        Whether instances are written ahead before they have files and rows.
    database
        URL of another database than the folder's own.
    receives
        Whether it has a receiver; else it is a process of a node whose receive process is another.
    tls
        Folder with its certificate, where it listens on a TLS port too.
    """

    def __init__(
        self,
        folder: Path,
        keeper_port: int,
        *,
        is_ahead: bool = True,
        database: str = "",
        receives: bool = True,
        tls: str = "",
    ) -> None:
        self.config = configuration(folder, keeper_port, database)
        self.stop = threading.Event()
        self.files = Files(folder / "files")
        self._databases: list[Database] = []
        self._steps: Counter[str] = Counter()
        self.database_for_looking = self.database()
        if receives:
            self._receive(folder, is_ahead, tls)

    def _receive(self, folder: Path, is_ahead: bool, tls: str) -> None:
        """Be entered, take over what was left, and listen: as `pacs_ai.receive.process` does."""
        rows = self.database_for_looking
        self._receives = Receives(rows, folder, self.files.disk)
        index = Index(rows, self.files.path, self._receives.owner)
        ahead = _ahead(folder, self.files) if is_ahead else None
        self.ingest = DurableIngest(
            self.files,
            index.record,
            ahead=ahead,
            is_recorded=index.is_recorded,
            note_ended=index.association_ended,
        )
        self._receives.owes_nothing = lambda: self.ingest.owes_nothing
        self.say_whether_settled()
        services = commitment.services(self.config, rows, self._receives.owner)
        self.receiver = Receiver(_listen(tls, services), self.ingest)

    def say_whether_settled(self) -> None:
        """Say that it lives, and whether all that was answered Success has its rows."""
        self._receives.say(settled=self.ingest.is_settled)

    def database(self) -> Database:
        """Open the database once more: each actor has its own."""
        self._databases.append(Database(self.config.database_url))
        return self._databases[-1]

    def count(self, table: str) -> int:
        """Return how many rows a table has."""
        with self.database_for_looking.read() as connection:
            return int(connection.exec_driver_sql(f"SELECT count(*) FROM {table}").scalar_one())

    def router(self) -> Router:
        """Return a router."""
        return Router(self.config, self.database(), self.files, this_process("route"))

    def worker(self, number: int = 1) -> worker.Worker:
        """Return a worker that is ready to work."""
        owner = this_process(f"infer{number}")
        made = worker.Worker(self.config, self.database(), self.files, owner, "cpu", self.stop)
        made.start()
        return made

    def courier(self) -> Courier:
        """Return a courier."""
        return Courier(self.config, self.database(), self.files, this_process("deliver"))

    def run(self, until: threading.Event) -> None:
        """Have every actor step in a thread of its own until the event is set, then end in order."""
        courier = self.courier()
        steps = [self.router().step, self.worker(1).step, self.worker(2).step, courier.step, self.say_whether_settled]
        threads = [threading.Thread(target=self._loop, args=(step,), daemon=True) for step in steps]
        for thread in threads:
            thread.start()
        until.wait()
        self.receiver.stop(1.0)
        self.stop.set()
        for thread in threads:
            thread.join()
        courier.join(10.0)
        self.close()

    def look_around(self) -> None:
        """Return when each actor has looked twice for something to do, and found nothing the second time."""
        limit = time.monotonic() + _LOOK_SECONDS
        wanted = {step: count + 2 for step, count in self._steps.items()}
        while any(self._steps[step] < count for step, count in wanted.items()):
            if time.monotonic() > limit:
                os._exit(73)
            time.sleep(0.005)

    def _loop(self, counted: Any) -> None:
        def step() -> bool:
            found = counted()
            self._steps[counted.__qualname__] += 1
            return found

        self._steps[counted.__qualname__] += 0
        try:
            loop.run(step, lambda: self.stop.wait(0.015), self.stop)
        except BaseException:
            logging.getLogger("prove").exception("an actor ended")
            os._exit(70)  # as the supervisor would see it

    def close(self) -> None:
        """Close what is open."""
        self.ingest.close()
        self._receives.end()
        for database in self._databases:
            database.close()


def _journal_claims(path: Path) -> None:
    """Have every claimed job written down: the workers' own journal of side effects."""
    claim = queue.claim

    def journalled(database, owner, pipelines=None):
        held = claim(database, owner, pipelines)
        if held is not None:
            with path.open("a") as file:
                file.write(f"{held.job_id} {held.fence} {owner}\n")
        return held

    queue.claim = journalled


class Control:
    """The line to the harness: one JSON object per line, both ways."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(path)
        self._lines = self._socket.makefile("r")

    def say(self, **words: Any) -> None:
        """Tell the harness."""
        self._socket.sendall(json.dumps(words).encode() + b"\n")

    def hear(self) -> dict[str, Any] | None:
        """Return the harness's next word; None where it has gone."""
        line = self._lines.readline()
        return json.loads(line) if line else None


def live(order: dict[str, Any]) -> None:
    """Be the node until told to stop, or killed; never returns to the caller's stack."""
    from prove import bugs, faults, stories

    logging.basicConfig(
        filename=order["log"], level=logging.INFO, format="%(asctime)s %(process)d %(name)s %(message)s", force=True
    )
    logging.getLogger("highdicom").setLevel(logging.WARNING)
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1)
    control = Control(order["control"])
    shim = faults.Shim(order.get("points"))
    shim.install()
    if order.get("bug"):
        bugs.BUGS[order["bug"]].apply()
    _journal_claims(Path(order["claims"]))
    # in a story an association's end begins it, so that the k-th call is the same each time
    indexing._GATHER_SECONDS = 5.0 if order.get("story") else 0.05
    if not order.get("story"):  # what was used is written over again and again, between instances that come
        indexing._QUIET_SECONDS = 0.02
    database, is_ahead = order.get("database", ""), order.get("is_ahead", True)
    receives = order.get("story") != "routing"
    node = Node(
        Path(order["folder"]),
        order["keeper"],
        is_ahead=is_ahead,
        database=database,
        receives=receives,
        tls=order.get("tls", ""),
    )
    if receives:
        node.receiver.start()
    if order.get("story"):
        stories.STORIES[order["story"]](node, control, shim)
        os._exit(0)
    stopped = threading.Event()
    thread = threading.Thread(target=node.run, args=(stopped,))
    thread.start()
    control.say(port=node.receiver.port, tls_port=node.receiver.tls_port if order.get("tls") else 0)
    while (word := control.hear()) is not None and word.get("do") != "stop":
        if word["do"] == "look around":
            node.look_around()
        control.say(**shim.obey(word))
    stopped.set()
    thread.join()
    os._exit(0)
