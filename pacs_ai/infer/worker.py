"""A worker: claims a job, has its child process do it, and puts the results into the outbox.

The parent never imports torch: it holds the claim and beats while the child runs the model, ends a child that hangs
past its time limit or whose job was cancelled, and starts a new one after a crash.
"""

from __future__ import annotations

import logging
import shutil
import time
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from pacs_ai.errors import Transient, WorkerLost
from pacs_ai.infer.bench import Bench
from pacs_ai.infer.commission import order_of
from pacs_ai.infer.order import Done, EncodedFile, Order, Ready, Step, Trouble
from pacs_ai.store import queue
from pacs_ai.store.filling import NewResult
from pacs_ai.store.owners import BEAT_SECONDS, Watch, is_dead
from pacs_ai.store.queue import Claim, Lost

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable
    from pathlib import Path

    from pacs_ai.config import Config
    from pacs_ai.store.database import Database
    from pacs_ai.store.files import Files, StoredFile

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

_POLL_SECONDS = 0.25
_SWEEP_SECONDS = 5.0
_INSIST_SECONDS = 1.0
#: A child that has not loaded its models by then is ended.
_START_SECONDS = 600.0
#: Stands for the colons of an owner's name in the name of its scratch folder.
_FOR_COLON = "-"
#: A scratch folder of another boot or host that was not touched for so long belongs to nobody.
_ABANDONED_SECONDS = 86_400.0


class Worker:
    """One device's worker; `step` does one job.

    Parameters
    ----------
    stop
        Set when the process is to end: the job in progress is queued again.
    """

    def __init__(
        self, config: Config, database: Database, files: Files, owner: str, device: str, stop: threading.Event
    ) -> None:
        self._config = config
        self._database = database
        self._files = files
        self._owner = owner
        self._device = device
        self._stop = stop
        self._bench: Bench | None = None
        self._watch = Watch()
        self._swept = 0.0
        self._scratch = config.store.folder / "scratch" / owner.replace(":", _FOR_COLON)
        self._timeouts = {pipeline.name: pipeline.timeout_seconds for pipeline in config.pipeline}

    def start(self) -> None:
        """Clear what dead workers left, and load the models before the first job comes."""
        _clear_scratch(self._scratch.parent)
        self._bench = Bench(self._config, self._device)

    def close(self) -> None:
        """End the child."""
        if self._bench is not None:
            self._bench.end()
            self._bench = None
        shutil.rmtree(self._scratch, ignore_errors=True)

    def step(self) -> bool:
        """Do one job; False where there is none."""
        if time.monotonic() - self._swept >= _SWEEP_SECONDS:
            self._swept = time.monotonic()
            queue.sweep(self._database, self._watch, self._owner)
            self._unload_if_idle()
        held = queue.claim(self._database, self._owner)
        if held is None:
            self._hear_ready()
            return False
        try:
            self._work(held)
        except Lost:
            _log.info("job %d was cancelled, superseded or taken over while it ran", held.job_id)
        finally:
            shutil.rmtree(self._scratch, ignore_errors=True)
        self._renew()
        return True

    def _renew(self) -> None:
        """Replace a child that has done its share of jobs; the new one loads its models until the next job comes."""
        bench = self._bench
        if bench is not None and bench.orders >= self._config.infer.jobs_per_process and not self._stop.is_set():
            _log.info("%d jobs by one process: replaced by a fresh one", bench.orders)
            self._replace()

    def _unload_if_idle(self) -> None:
        bench = self._bench
        if bench is not None and time.monotonic() - bench.last_used > self._config.infer.idle_unload_seconds:
            _log.info("no work for %g s: models unloaded", self._config.infer.idle_unload_seconds)
            self._replace(start=False)

    def _hear_ready(self) -> None:
        """Take the child's first message while there is nothing else to do; replace a child that died."""
        bench = self._bench
        if bench is None or bench.ready is not None:
            return
        try:
            message = bench.receive(0)
        except WorkerLost as error:
            _log.error("%s while loading models", error)
            self._replace(start=False)
            return
        if isinstance(message, Ready):
            self._note_ready(bench, message)
        elif isinstance(message, Trouble):
            _log.error("no model can run on %s: %s", self._device, message.words)
            self._replace(start=False)

    def _note_ready(self, bench: Bench, message: Ready) -> None:
        bench.ready = message
        _log.info("ready on %s, process %s", message.device, bench.pid)
        for name, words in message.broken.items():
            _log.error("pipeline %s is disabled: %s", name, words)

    def _replace(self, *, start: bool = True) -> None:
        if self._bench is not None:
            self._bench.end()
        self._bench = Bench(self._config, self._device) if start else None

    def _living_bench(self) -> Bench:
        """Return the child; one that died while it had nothing to do is replaced, and is no crash of the next job."""
        if self._bench is None or not self._bench.is_alive:
            self._replace()
        assert self._bench is not None
        return self._bench

    def _work(self, held: Claim) -> None:
        try:
            order = self._order(held)
            answer = self._serve(held, order, self._living_bench())
        except WorkerLost as error:
            words = str(error)
            _log.error("job %d: %s", held.job_id, words)
            self._replace()
            self._insist(held, lambda: queue.crashed(self._database, held, words))
            return
        if answer is None:  # nobody waits for this child's answer
            self._replace(start=not self._stop.is_set())
            if self._stop.is_set():
                queue.put_back(self._database, held, "the node was stopped; it goes on when the node does")
                return
            raise Lost(f"job {held.job_id} is no longer wanted of {held.owner}")
        if isinstance(answer, Done):
            self._finish(held, order, answer)
        else:
            self._trouble(held, answer)

    def _order(self, held: Claim) -> Order:
        with self._database.read() as connection:
            return order_of(connection, self._files, self._config, held, self._scratch)

    def _serve(self, held: Claim, order: Order, bench: Bench) -> Done | Trouble | None:
        """Have the child do it, beating meanwhile; None where nobody wants the answer any more."""
        limit = self._timeouts.get(held.pipeline, 900.0)
        begun = beaten = time.monotonic()
        sent = False
        while True:
            if bench.ready is not None and not sent:
                bench.send(order)
                sent, begun = True, time.monotonic()
            message = bench.receive(_POLL_SECONDS)
            if isinstance(message, Done | Trouble):
                bench.last_used = time.monotonic()
                return message
            if isinstance(message, Ready):
                self._note_ready(bench, message)
            elif isinstance(message, Step):
                self._note_step(held, message)
            now = time.monotonic()
            if now - begun > (limit if sent else _START_SECONDS):
                raise WorkerLost(f"it ran longer than its time limit of {limit if sent else _START_SECONDS:g} s")
            if self._stop.is_set() or not self._still_wanted(held):
                return None
            if now - beaten >= BEAT_SECONDS:
                beaten = now
                with suppress(Transient):  # the database is away: the next beat tries again
                    queue.beat(self._database, held)

    def _note_step(self, held: Claim, step: Step) -> None:
        with suppress(Transient):
            queue.note(self._database, held, step.name)

    def _still_wanted(self, held: Claim) -> bool:
        try:
            return queue.is_held(self._database, held)
        except Transient:
            return True

    def _insist(self, held: Claim, call: Callable[[], _T]) -> _T:
        """Make a call that must not be lost, also while the disk is full or the database away; beat meanwhile."""
        while True:
            try:
                return call()
            except Transient as error:
                _log.warning("job %d is kept until the store takes it: %s", held.job_id, error)
                if self._stop.wait(_INSIST_SECONDS):
                    raise
            with suppress(Transient):
                queue.beat(self._database, held)

    def _finish(self, held: Claim, order: Order, done: Done) -> None:
        stored = self._store(held, done)
        results = [_as_result(file, one.sha256, one.size) for file, one in zip(done.files, stored, strict=True)]

        def finish() -> None:
            self._files.keep_young(stored)  # this may be tried for hours, and a sweep deletes what no row names
            queue.finish(
                self._database,
                held,
                results,
                findings=done.findings,
                timings=done.timings,
                summary=done.summary,
                encoded=[encoding.key for encoding in order.encodings],
                verified=[other.name for _, other in order.unverified],
            )

        self._insist(held, finish)
        steps = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in done.timings.items())
        _log.info("job %d (%s): %s (%s)", held.job_id, held.pipeline, done.summary, steps)

    def _store(self, held: Claim, done: Done) -> list[StoredFile]:
        """Make the encoded files durable under their digests."""
        adopted: list[StoredFile] = []

        def adopt(path: Path) -> StoredFile:
            self._files.keep_young(adopted)
            return self._files.adopt(path)

        for file in done.files:
            one = self._insist(held, partial(adopt, file.path))
            adopted.append(one)
        self._insist(held, lambda: self._files.sync(adopted))
        return adopted

    def _trouble(self, held: Claim, trouble: Trouble) -> None:
        _log.warning("job %d (%s) %s: %s", held.job_id, held.pipeline, trouble.policy, trouble.words)
        if trouble.policy == "refused":
            self._insist(held, lambda: queue.refuse(self._database, held, trouble.words, trouble.reason))
        elif trouble.policy == "failed":
            self._insist(held, lambda: queue.fail(self._database, held, trouble.words))
        elif trouble.policy == "transient":
            self._insist(held, lambda: queue.postpone(self._database, held, trouble.words))
        elif trouble.policy == "conflict":
            self._insist(held, lambda: queue.found_conflict(self._database, held, trouble.words))
        else:
            self._replace()
            self._insist(held, lambda: queue.crashed(self._database, held, trouble.words))


def _as_result(file: EncodedFile, sha256: str, size: int) -> NewResult:
    return NewResult(
        kind=file.kind,
        encoding=file.encoding,
        study_instance_uid=file.study_instance_uid,
        series_instance_uid=file.series_instance_uid,
        sop_instance_uid=file.sop_instance_uid,
        sop_class_uid=file.sop_class_uid,
        transfer_syntax_uid=file.transfer_syntax_uid,
        sha256=sha256,
        size=size,
    )


def _clear_scratch(folder: Path) -> None:
    """Delete what workers that are no more have left half written."""
    for left in folder.iterdir() if folder.is_dir() else ():
        with suppress(FileNotFoundError):
            if is_dead(left.name.replace(_FOR_COLON, ":")) or time.time() - left.stat().st_mtime > _ABANDONED_SECONDS:
                shutil.rmtree(left, ignore_errors=True)
