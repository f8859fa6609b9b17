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
import time
import traceback
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pacs_ai import __version__
from pacs_ai.dicom.equality import compare_pixels
from pacs_ai.encode.check import check_sources
from pacs_ai.encode.provenance import Predecessor, Work
from pacs_ai.encode.results import encode
from pacs_ai.errors import Conflict, PacsAiError, Permanent, PipelineFault, Refused, Transient
from pacs_ai.infer import contract
from pacs_ai.infer.order import Done, EncodedFile, Order, Ready, Step, Trouble
from pacs_ai.infer.volume import load_volume
from pacs_ai.log import configure
from pacs_ai.models.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from multiprocessing.connection import Connection

    from pacs_ai.config import Config
    from pacs_ai.dicom.evidence import Evidence
    from pacs_ai.pipeline import Findings, Pipeline, Volume

_log = logging.getLogger(__name__)
_PR_SET_PDEATHSIG = 1


def main(connection: Connection[Any, Any], config: Config, device: str, parent: int) -> None:
    """Serve orders until the parent closes the pipe."""
    _die_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the supervisor's
    configure(f"infer-child[{device}]", config.log.level, config.log.format)
    bench = Bench(config, device)
    connection.send(Ready(bench.device, bench.warm()))
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


def resolve_device(wanted: str) -> str:
    """Return "cuda:0" for "auto" where there is an NVIDIA GPU, else "cpu"; Permanent where a named one is missing."""
    import torch

    if wanted == "auto":
        return "cuda:0" if torch.cuda.is_available() else "cpu"
    if wanted.startswith("cuda") and not torch.cuda.is_available():
        raise Permanent(f"infer.devices names {wanted}, but torch {torch.__version__} finds no NVIDIA GPU here")
    return wanted


class Bench:
    """The loaded models and the device they run on."""

    def __init__(self, config: Config, device: str) -> None:
        self.device = resolve_device(device)
        self._config = config
        self._registry = Registry(config.pipeline)
        self._prepared: dict[str, Pipeline] = {}

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
            pipeline = self._registry.create(name)
            with foreign_code(name, "preparing"):
                pipeline.prepare(self.device)
            self._prepared[name] = pipeline
        return self._prepared[name]

    def serve(self, order: Order, connection: Connection[Any, Any]) -> Done | Trouble:
        """Do one job; every way in which it can end is a message."""
        timings: dict[str, float] = {}
        try:
            return self._analyse(order, connection, timings)
        except Refused as error:
            return Trouble("refused", str(error), timings)
        except Conflict as error:
            return Trouble("conflict", str(error), timings)
        except Transient as error:
            return Trouble("transient", str(error), timings)
        except PacsAiError as error:
            return Trouble("failed", str(error), timings)
        except MemoryError:
            return Trouble("crash", "out of memory", timings)
        except Exception as error:  # noqa: BLE001 - the outermost loop of the process
            _log.error("job %d: %s", order.job_id, traceback.format_exc())
            return Trouble(
                "failed", f"unexpected {type(error).__name__}; the log of the worker has the traceback", timings
            )

    def _analyse(self, order: Order, connection: Connection[Any, Any], timings: dict[str, float]) -> Done:
        for one, other in order.unverified:
            if not compare_pixels(one, other):
                raise Conflict("two instances with one SOP Instance UID and equal headers differ in their pixels")
        connection.send(Step("loading"))
        with _timed(timings, "loading"):
            volumes, evidence, notes = self._load(order)
        pipeline = self.pipeline(order.pipeline)
        contract.accept(pipeline.card, volumes)
        check_sources(evidence)
        connection.send(Step("inferring"))
        with _timed(timings, "inferring"), foreign_code(order.pipeline, "running"):
            findings = pipeline.run(volumes)
        contract.check(pipeline.card, volumes, findings)
        connection.send(Step("encoding"))
        with _timed(timings, "encoding"):
            files = self._encode(order, pipeline, volumes, evidence, findings)
        return Done(
            files=files,
            findings=contract.summary(findings, volumes, notes),
            timings=timings,
            summary=contract.headline(findings),
        )

    def _load(self, order: Order) -> tuple[dict[str, Volume], dict[str, Evidence], tuple[str, ...]]:
        volumes, evidence, notes = {}, {}, []
        for name, files in order.inputs.items():
            loaded = load_volume([path for path, _ in files], digests=dict(files))
            volumes[name], evidence[name] = loaded.volume, loaded.evidence
            notes += [f"{name}: {note}" for note in loaded.notes]
        return volumes, evidence, tuple(notes)

    def _encode(
        self,
        order: Order,
        pipeline: Pipeline,
        volumes: Mapping[str, Volume],
        evidence: Mapping[str, Evidence],
        findings: Findings,
    ) -> tuple[EncodedFile, ...]:
        import torch

        work = Work(
            job_key=order.job_key,
            generation=order.generation,
            created_at=order.created_at,
            card=pipeline.card,
            model_digest=order.model_digest,
            settings_digest=order.settings_digest,
            parameters=f"device={self.device.partition(':')[0]}; torch={torch.__version__}",
            node_name=order.node_name,
            software_version=__version__,
            series_number=order.series_number,
            predecessors=tuple(
                Predecessor(p.study_instance_uid, p.series_instance_uid, p.sop_class_uid, p.sop_instance_uid)
                for p in order.predecessors
            ),
        )
        order.output.mkdir(parents=True, exist_ok=True, mode=0o700)
        files = []
        for ordinal, encoded in enumerate(encode(findings, evidence, volumes, work)):
            path = order.output / f"{order.job_key[:16]}-{ordinal}.part"
            path.write_bytes(encoded.to_bytes())
            files.append(
                EncodedFile(
                    path=path,
                    kind=encoded.kind,
                    study_instance_uid=str(encoded.dataset.StudyInstanceUID),
                    series_instance_uid=encoded.series_instance_uid,
                    sop_instance_uid=encoded.sop_instance_uid,
                    sop_class_uid=encoded.sop_class_uid,
                    transfer_syntax_uid=str(encoded.dataset.file_meta.TransferSyntaxUID),
                )
            )
        return tuple(files)


@contextmanager
def foreign_code(name: str, doing: str) -> Iterator[None]:
    """Turn what a pipeline raises into this node's errors: memory into a crash, the unexpected into its fault."""
    import torch

    try:
        yield
    except (PacsAiError, MemoryError):
        raise
    except torch.OutOfMemoryError as error:
        torch.cuda.empty_cache()
        raise MemoryError(str(error)) from error
    except Exception as error:
        _log.error("pipeline %s: %s", name, traceback.format_exc())
        raise PipelineFault(
            f"pipeline {name} broke while {doing}: {type(error).__name__}; the log of the worker has the traceback"
        ) from error


@contextmanager
def _timed(timings: dict[str, float], step: str) -> Iterator[None]:
    start = time.monotonic()
    try:
        yield
    finally:
        timings[step] = round(time.monotonic() - start, 3)
