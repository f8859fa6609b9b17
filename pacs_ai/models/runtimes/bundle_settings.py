"""What the settings of a package with a MONAI bundle may say; read without torch."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from pacs_ai.errors import PipelineFault

if TYPE_CHECKING:
    from collections.abc import Mapping

ACTIVATIONS = ("", "softmax", "sigmoid", "none")


@dataclass(frozen=True)
class BundleSettings:
    """[settings] of a package whose runtime is ``monai-bundle``.

    Parameters
    ----------
    config
        Path of the inference configuration in the package; "": ``configs/inference.json``, ``.yaml`` or ``.yml``.
    overrides
        Id in the configuration ("inferer#roi_size") -> value.
    orientation
        Axis codes ("LPS") to which a volume is turned before the bundle's own preprocessing; "": as received.
    mixed_precision
        torch.autocast on CUDA; None: as the bundle says.
    memory_limit_gb
        Refuse a series whose arrays would need more; None: what is free.
    seed_weights
        Random weights of this seed instead of the package's, for trials; the card says so.
    activation
        Of a classifier: what turns the network's output into probabilities ("softmax", "sigmoid"; "none" where its
        postprocessing does); "": as its postprocessing tells.
    """

    config: str = ""
    overrides: Mapping[str, Any] = field(default_factory=dict)
    orientation: str = ""
    mixed_precision: bool | None = None
    memory_limit_gb: float | None = None
    seed_weights: int | None = None
    activation: str = ""

    @classmethod
    def of(cls, settings: Mapping[str, Any], name: str) -> BundleSettings:
        """Read the table of the package `name`; `PipelineFault` names what it may not say."""
        unknown = sorted(set(settings) - {one.name for one in fields(cls)})
        if unknown:
            known = ", ".join(one.name for one in fields(cls))
            raise PipelineFault(f"settings of {name} name {', '.join(unknown)}: known are {known}")
        read = cls(**settings)
        if read.activation not in ACTIVATIONS:
            raise PipelineFault(f"activation in settings of {name} is one of {', '.join(ACTIVATIONS[1:])}")
        return read
