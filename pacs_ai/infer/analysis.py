"""One analysis, whoever orders it, the node or a person: read the series, run the pipeline, encode what it found."""

from __future__ import annotations

import logging
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pydicom

from pacs_ai.encode.check import check_sources
from pacs_ai.encode.identity import cured
from pacs_ai.encode.results import encode
from pacs_ai.errors import PacsAiError, PipelineFault, Refused
from pacs_ai.infer import contract
from pacs_ai.infer.admission import admit_modality
from pacs_ai.infer.alignment import align, on_own_grid
from pacs_ai.infer.device import is_out_of_memory
from pacs_ai.infer.frames import load_frames
from pacs_ai.infer.plausible import remarks_on
from pacs_ai.infer.time_series import load_time_series
from pacs_ai.infer.volume import load_volume
from pacs_ai.infer.waveform import load_waveform
from pacs_ai.log import trace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from pacs_ai.dicom.evidence import Evidence
    from pacs_ai.encode.encoded import Encoded
    from pacs_ai.encode.provenance import Work
    from pacs_ai.infer.order import StepName
    from pacs_ai.pipeline import Card, Findings, Given, Input, Pipeline
    from pacs_ai.profiles import Encoding

_log = logging.getLogger(__name__)


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
    """What was read: by name of input the images and their instances; and faults that were handled, in words."""

    inputs: Mapping[str, Given]
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
    card: Card,
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
    card
        The pipeline's card, which says how each input is read.
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
        As `load` and `encode`.
    MemoryError
        Out of memory, also the GPU's.
    """
    with steps("loading"):
        material = load(card, inputs)
    pipeline = prepared()
    unusual = contract.accept(card, material.inputs)
    check_sources(material.evidence, material.inputs)
    with steps("loading"):
        given, aligned = align(card, material.inputs)
    with steps("inferring"), foreign_code(name, "running"):
        returned = pipeline.run(given)
    with foreign_code(name, "returning its findings"):
        findings = on_own_grid(card, contract.check(card, given, returned))
        remarks = (*aligned, *remarks_on(card, given, findings))
    with steps("encoding"):
        encoded = encode(findings, material.evidence, given, work_of(card), wanted, remarks)
    notes = (*material.notes, *unusual, *remarks)
    return Analysis(Material(given, material.evidence, notes), findings, encoded)


def load(card: Card, inputs: Mapping[str, Sequence[tuple[Path, str]]]) -> Material:
    """Read each input as the card wants it: a volume, images, a volume over time, a waveform; errors as of these."""
    given: dict[str, Given] = {}
    evidence: dict[str, Evidence] = {}
    notes: list[str] = []
    for name, files in inputs.items():
        given[name], evidence[name], told = _read(card, name, files)
        notes += [f"{name}: {note}" for note in (*told, *cured(evidence[name].datasets[0]))]
    return Material(given, evidence, tuple(notes))


def _read(card: Card, name: str, files: Sequence[tuple[Path, str]]) -> tuple[Given, Evidence, tuple[str, ...]]:
    """Read one input; of a series of another modality that is what is said, not what its images then lack."""
    wanted = card.inputs.get(name)
    try:
        return _read_as(wanted, files)
    except Refused:
        if wanted is not None:
            ds = pydicom.dcmread(files[0][0], stop_before_pixels=True, specific_tags=["Modality"], force=True)
            admit_modality(name, str(ds.get("Modality") or ""), wanted, card)
        raise


def _read_as(wanted: Input | None, files: Sequence[tuple[Path, str]]) -> tuple[Given, Evidence, tuple[str, ...]]:
    paths, digests = [path for path, _ in files], dict(files)
    given = "volume" if wanted is None else wanted.given
    if given == "frames":
        images = load_frames(paths, digests=digests)
        return images.frames, images.evidence, images.notes
    if given == "time-series":
        timed = load_time_series(paths, digests=digests)
        return timed.series, timed.evidence, timed.notes
    if given == "waveform":
        recorded = load_waveform(paths, digests=digests)
        return recorded.waveform, recorded.evidence, recorded.notes
    loaded = load_volume(paths, digests=digests)
    return loaded.volume, loaded.evidence, loaded.notes


@contextmanager
def foreign_code(name: str, doing: str) -> Iterator[None]:
    """Turn what a pipeline raises into this node's errors: memory into a crash, the unexpected into its fault."""
    try:
        yield
    except (PacsAiError, MemoryError):
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise MemoryError(str(error)) from error
        _log.error("pipeline %s: %s", name, trace(error))
        raise PipelineFault(
            f"pipeline {name} broke while {doing}: {type(error).__name__}; the log has the traceback"
        ) from error
