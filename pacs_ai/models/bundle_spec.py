"""What the configuration says of one MONAI bundle."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pacs_ai.pipeline import Clearance, Code, Input, Label

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


@dataclass(frozen=True)
class BundleSpec:
    """What the configuration says of one bundle.

    Parameters
    ----------
    folder, files
        The bundle, and the SHA-256 (hex) of every file in it by its path relative to the folder (`digest.digests`).
    labels
        What the *result* means: value in the label map -> label, or index of the channel -> label where the bundle's
        postprocessing ends in several channels of zeros and ones. Empty: the channels of ``metadata.json``, coded by
        `anatomy.guess_labels`; that is right for a softmax with a background, and refused where it would not be.
    inputs
        Names bound to image channels, in the channels' order. Empty: one input ``image``, or, of several channels,
        their names in ``metadata.json`` in lower case. All are brought onto the grid of the first.
    title, procedure, manufacturer, clearance
        For the card; empty: from ``metadata.json`` and the modality.
    config
        The inference configuration in the folder; empty: ``configs/inference.json``, ``.yaml`` or ``.yml``.
    weights
        The weights in the folder, a state dict, or TorchScript if they end in ``.ts``; empty: what the bundle's own
        ``CheckpointLoader`` names, else ``models/model.pt``, else ``models/model.ts``.
    overrides
        Id in the bundle's configuration (``inferer#roi_size``) -> value, as on ``monai.bundle run``'s command line.
    orientation
        Axis codes ("LPS") to which the volume is turned before the bundle's own preprocessing, for bundles that have
        no Orientation of their own; empty: as received, (column, row, slice).
    mixed_precision
        torch.autocast on CUDA; None: as the bundle's evaluator says, on where it says nothing.
    memory_limit_gb
        Refuse a series whose arrays would need more; None: the memory that is free, on the CPU.
    seed_weights
        For tests: run the network with random weights of this seed instead of a file's. The card says so.
    name
        In messages; empty: the folder's.
    """

    folder: Path
    files: Mapping[str, str]
    labels: Mapping[int, Label] = field(default_factory=dict)
    inputs: Mapping[str, Input] = field(default_factory=dict)
    title: str = ""
    procedure: Code | None = None
    manufacturer: str = ""
    clearance: Clearance = Clearance.RESEARCH
    config: str = ""
    weights: str = ""
    overrides: Mapping[str, Any] = field(default_factory=dict)
    orientation: str = ""
    mixed_precision: bool | None = None
    memory_limit_gb: float | None = None
    seed_weights: int | None = None
    name: str = ""
