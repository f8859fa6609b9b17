"""What a worker's parent process and its child say to each other."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from pacs_ai.errors import Reason

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime
    from pathlib import Path

    from pacs_ai.profiles import Encoding

StepName = Literal["loading", "inferring", "encoding"]
Policy = Literal["refused", "failed", "transient", "crash", "conflict"]


@dataclass(frozen=True)
class Reported:
    """An SR of an earlier revision that was delivered: the new one names it as its predecessor."""

    study_instance_uid: str
    series_instance_uid: str
    sop_class_uid: str
    sop_instance_uid: str


@dataclass(frozen=True)
class Order:
    """One job for the child.

    Parameters
    ----------
    inputs
        Name -> (file, SHA-256) of every instance.
    unverified
        (file, other file) of instances whose pixels have to be compared before anything is analysed.
    encodings
        What to make of the findings, for all destinations, fallbacks too.
    output
        Folder, on the store's file system, for the encoded objects.
    """

    job_id: int
    job_key: str
    generation: int
    created_at: datetime
    pipeline: str
    model_digest: str
    settings_digest: str
    inputs: Mapping[str, tuple[tuple[Path, str], ...]]
    unverified: tuple[tuple[Path, Path], ...]
    predecessors: tuple[Reported, ...]
    encodings: tuple[Encoding, ...]
    node_name: str
    output: Path


@dataclass(frozen=True)
class EncodedFile:
    """One encoded object in the order's output folder."""

    path: Path
    kind: str
    encoding: str
    study_instance_uid: str
    series_instance_uid: str
    sop_instance_uid: str
    sop_class_uid: str
    transfer_syntax_uid: str


@dataclass(frozen=True)
class Ready:
    """The child is up: models that routes name are loaded."""

    device: str
    broken: Mapping[str, str]


@dataclass(frozen=True)
class Step:
    """The child begins a step of the job."""

    name: StepName


@dataclass(frozen=True)
class Done:
    """The job's results.

    Parameters
    ----------
    files
        In the order in which they are sent.
    findings
        For the job's row: segments with voxel counts and digests of their masks, measurements.
    timings
        Seconds per step.
    summary
        One line for people.
    """

    files: tuple[EncodedFile, ...]
    findings: Mapping[str, Any]
    timings: Mapping[str, float]
    summary: str


@dataclass(frozen=True)
class Trouble:
    """The job did not end with results; what the policy is and why, in words and, of a refusal, as a code."""

    policy: Policy
    words: str
    timings: Mapping[str, float] = field(default_factory=dict)
    reason: Reason = Reason.OTHER


Message = Ready | Step | Done | Trouble
