"""One analysis, whoever orders it, the node or a person: read the series, run the pipeline, encode what it found."""

from __future__ import annotations

import logging
import time
import traceback
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pacs_ai.encode.check import check_sources
from pacs_ai.encode.results import encode
from pacs_ai.errors import PacsAiError, PipelineFault
from pacs_ai.infer import contract
from pacs_ai.infer.volume import load_volume

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from pacs_ai.dicom.evidence import Evidence
    from pacs_ai.encode.encoded import Encoded
    from pacs_ai.encode.provenance import Work
    from pacs_ai.pipeline import Card, Findings, Pipeline, Volume
    from pacs_ai.profiles import Encoding

_log = logging.getLogger(__name__)

StepName = Literal["loading", "inferring", "encoding"]


class Steps:
    """Tells of each step as it begins, and adds up in `timings` how many seconds it took, also of one that failed."""

    def __init__(self, note: Callable[[StepName], None], timings: dict[str, float]) -> None:
        self._note = note
        self._timings = timings

    @contextmanager
    def __call__(self, name: StepName) -> Iterator[None]:
        """Enter a step, or enter it again."""
        if name not in self._timings:
            self._note(name)
        start = time.monotonic()
        try:
            yield
        finally:
            self._timings[name] = round(self._timings.get(name, 0.0) + time.monotonic() - start, 3)


@dataclass(frozen=True)
class Material:
    """What was read: by name of input the volume and its instances; and faults that were handled, in words."""

    volumes: Mapping[str, Volume]
    evidence: Mapping[str, Evidence]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Analysis:
    """What was read, what was found in it, and the encoded objects in the order in which they are sent."""

    material: Material
    findings: Findings
    encoded: tuple[Encoded, ...]


def analyse(
    name: str,
    prepared: Callable[[], Pipeline],
    inputs: Mapping[str, Sequence[tuple[Path, str]]],
    work_of: Callable[[Card], Work],
    wanted: Sequence[Encoding],
    steps: Steps,
) -> Analysis:
    """Do one analysis.

    Parameters
    ----------
    name
        What the configuration calls the pipeline.
    prepared
        Returns the pipeline, prepared for its device; called after the series are read.
    inputs
        Name of input -> (file, SHA-256 in hex) of every instance.
    work_of
        Returns what the results state of the job.
    wanted
        What to make of the findings.

    Raises
    ------
    Refused
        The input cannot be analysed.
    PipelineFault
        The pipeline broke, or broke its contract.
    PacsAiError
        As `load_volume` and `encode`.
    MemoryError
        Out of memory, also the GPU's.
    """
    with steps("loading"):
        material = load(inputs)
    pipeline = prepared()
    contract.accept(pipeline.card, material.volumes)
    check_sources(material.evidence, material.volumes)
    with steps("inferring"), foreign_code(name, "running"):
        findings = pipeline.run(material.volumes)
    contract.check(pipeline.card, material.volumes, findings)
    with steps("encoding"):
        encoded = encode(findings, material.evidence, material.volumes, work_of(pipeline.card), wanted)
    return Analysis(material, findings, encoded)


def load(inputs: Mapping[str, Sequence[tuple[Path, str]]]) -> Material:
    """Build the volume of each input from its files; errors as `load_volume`."""
    volumes, evidence, notes = {}, {}, []
    for name, files in inputs.items():
        loaded = load_volume([path for path, _ in files], digests=dict(files))
        volumes[name], evidence[name] = loaded.volume, loaded.evidence
        notes += [f"{name}: {note}" for note in loaded.notes]
    return Material(volumes, evidence, tuple(notes))


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
            f"pipeline {name} broke while {doing}: {type(error).__name__}; the log has the traceback"
        ) from error
