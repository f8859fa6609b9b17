"""What the settings of a package with a MONAI bundle may say; read without torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, ValidationError

from pacs_ai.errors import PipelineFault
from pacs_ai.model_sections import Section, faults

if TYPE_CHECKING:
    from collections.abc import Mapping


class BundleSettings(Section):
    """``[settings]`` of a package with the runtime ``monai-bundle``."""

    config: str = ""
    """Inference configuration in the package; empty: `configs/inference.json`, `.yaml` or `.yml`."""
    overrides: dict[str, Any] = Field(default_factory=dict)
    """Id in the configuration (`inferer#roi_size`) -> value."""
    orientation: Annotated[str, Field(pattern="^([LR][PA][SI])?$")] = ""
    """Axis codes (`LPS`) to which a volume is turned before the bundle's own preprocessing; empty: as received."""
    mixed_precision: bool | None = None
    """torch.autocast on CUDA; empty: as the bundle says."""
    memory_limit_gb: Annotated[float, Field(gt=0)] | None = None
    """Refuse a series whose arrays would need more; empty: what is free."""
    seed_weights: int | None = None
    """Random weights of this seed instead of the package's, for trials; the card says so."""
    activation: Literal["", "softmax", "sigmoid", "none"] = ""
    """Of a classifier: what turns the network's output into probabilities (`none` where its postprocessing does);
    empty: as its postprocessing tells."""

    @classmethod
    def of(cls, settings: Mapping[str, Any], name: str) -> BundleSettings:
        """Read the table of the package `name`; `PipelineFault` names what it may not say."""
        try:
            return cls.model_validate(dict(settings))
        except ValidationError as error:
            raise PipelineFault(f"settings of {name}:\n{faults(error)}") from error
