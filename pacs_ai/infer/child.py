"""The process that runs models: it loads them once, and for each order reads, infers and encodes.

It is a process of its own because a pipeline is foreign code: it may hold the GIL for minutes, leak, crash in a codec
or take all memory. Its parent holds the job's claim, beats, and ends it at the time limit.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
from typing import TYPE_CHECKING, Any

from pacs_ai import __version__, lean
from pacs_ai.encode.provenance import Predecessor, Work
from pacs_ai.errors import Conflict, PacsAiError, Refused, Transient
from pacs_ai.infer.analysis import Steps, analyse, foreign_code
from pacs_ai.infer.device import is_broken, parameters, resolve_device
from pacs_ai.infer.isolation import cut_off
from pacs_ai.infer.order import Done, EncodedFile, Order, Policy, Ready, Step, Trouble
from pacs_ai.infer.pixel_equality import compare_pixels
from pacs_ai.infer.summary import headline, summary
from pacs_ai.log import configure, trace
from pacs_ai.models.registry import Registry
from pacs_ai.models.watch import Watch

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from pacs_ai.config import Config
    from pacs_ai.encode.encoded import Encoded
    from pacs_ai.pipeline import Card, Pipeline

_log = logging.getLogger(__name__)
_PR_SET_PDEATHSIG = 1
#: What the parent does about an error, by the first kind that fits.
_POLICIES: tuple[tuple[type[PacsAiError], Policy], ...] = (
    (Conflict, "conflict"),
    (Transient, "transient"),
    (PacsAiError, "failed"),
)


def main(connection: Connection[Any, Any], config: Config, device: str, parent: int) -> None:
    """Serve orders until the parent closes the pipe."""
    _die_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the supervisor's
    configure(f"infer-child[{device}]", config.log.level, config.log.format)
    cut_off()
    try:
        bench = Bench(config, device)
    except PacsAiError as error:  # no such device here: the job waits, and says why
        connection.send(Trouble("transient", str(error)))
        return
    broken = bench.warm()
    lean.collect_as_usual()
    connection.send(Ready(bench.device, broken))
    while True:
        try:
            order = connection.recv()
        except EOFError:
            return
        connection.send(bench.serve(order, connection))


def _die_with(parent: int) -> None:
    """Have the kernel end this process when its parent dies (prctl(2), PR_SET_PDEATHSIG)."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(1)


class Bench:
    """The loaded models and the device they run on."""

    def __init__(self, config: Config, device: str) -> None:
        self.device = resolve_device(device)
        self._config = config
        self._registry = Registry.of(config)
        self._created: dict[str, Pipeline] = {}
        self._prepared: dict[str, Pipeline] = {}
        self._watches: dict[str, Watch] = {}

    def warm(self) -> dict[str, str]:
        """Load what the routes name; returns name -> why it could not be loaded."""
        broken = {}
        for name in dict.fromkeys(route.run for route in self._config.route):
            try:
                self.pipeline(name)
            except PacsAiError as error:
                broken[name] = str(error)
        return broken

    def pipeline(self, name: str) -> Pipeline:
        """Return the prepared pipeline; it stays loaded."""
        if name not in self._prepared:
            pipeline = self._create(name)
            self._check(name)
            with foreign_code(name, "preparing"):
                pipeline.prepare(self.device)
            self._prepared[name] = pipeline
        return self._prepared[name]

    def _create(self, name: str) -> Pipeline:
        if name not in self._created:
            package, pipeline = self._registry.package(name), self._registry.create(name)
            if package is not None:
                self._watches[name] = Watch(package, pipeline.card.model_digest)
            self._created[name] = pipeline
        return self._created[name]

    def _check(self, name: str, digest: str = "") -> None:
        """Refuse a model package that was swapped (`Watch.check`)."""
        if name in self._watches:
            self._watches[name].check(digest)

    def serve(self, order: Order, connection: Connection[Any, Any]) -> Done | Trouble:
        """Do one job; every way in which it can end is a message."""
        timings: dict[str, float] = {}
        try:
            return self._analyse(order, connection, timings)
        except Refused as refusal:
            return Trouble("refused", str(refusal), timings, refusal.reason)
        except PacsAiError as error:
            if self.device != "cpu" and is_broken(error):
                return Trouble("crash", f"the device {self.device} failed: {error}", timings)
            policy = next(name for kind, name in _POLICIES if isinstance(error, kind))
            return Trouble(policy, str(error), timings)
        except MemoryError:
            return Trouble("crash", "out of memory", timings)
        except Exception as error:  # noqa: BLE001 - the outermost loop of the process
            _log.error("job %d: %s", order.job_id, trace(error))
            return Trouble(
                "failed", f"unexpected {type(error).__name__}; the log of the worker has the traceback", timings
            )

    def _analyse(self, order: Order, connection: Connection[Any, Any], timings: dict[str, float]) -> Done:
        for one, other in order.unverified:
            if not compare_pixels(one, other):
                raise Conflict("two instances with one SOP Instance UID and equal headers differ in their pixels")
        card = self._create(order.pipeline).card
        self._check(order.pipeline, order.model_digest)
        steps = Steps(lambda name: connection.send(Step(name)), timings)
        analysis = analyse(
            order.pipeline,
            card,
            lambda: self.pipeline(order.pipeline),
            order.inputs,
            lambda card: self._work(order, card),
            order.encodings,
            steps,
        )
        with steps("encoding"):
            files = _written(order, analysis.encoded)
        return Done(
            files=files,
            findings=summary(analysis.findings, analysis.material.inputs, analysis.material.notes),
            timings=timings,
            summary=headline(analysis.findings),
        )

    def _work(self, order: Order, card: Card) -> Work:
        return Work(
            job_key=order.job_key,
            generation=order.generation,
            created_at=order.created_at,
            card=card,
            model_digest=order.model_digest,
            settings_digest=order.settings_digest,
            parameters=parameters(self.device),
            node_name=order.node_name,
            software_version=__version__,
            predecessors=tuple(
                Predecessor(p.study_instance_uid, p.series_instance_uid, p.sop_class_uid, p.sop_instance_uid)
                for p in order.predecessors
            ),
        )


def _written(order: Order, encoded: tuple[Encoded, ...]) -> tuple[EncodedFile, ...]:
    order.output.mkdir(parents=True, exist_ok=True, mode=0o700)
    files = []
    for ordinal, one in enumerate(encoded):
        path = order.output / f"{order.job_key[:16]}-{ordinal}.part"
        one.write(path)
        files.append(
            EncodedFile(
                path=path,
                kind=one.kind,
                encoding=one.encoding.key,
                study_instance_uid=one.study_instance_uid,
                series_instance_uid=one.series_instance_uid,
                sop_instance_uid=one.sop_instance_uid,
                sop_class_uid=one.sop_class_uid,
                transfer_syntax_uid=one.transfer_syntax_uid,
            )
        )
    return tuple(files)
