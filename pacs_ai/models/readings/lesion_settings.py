"""What a package of the lesion detector may set; the defaults are those of MONAI's ``lung_nodule_ct_detection``."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from pacs_ai.errors import PipelineFault
from pacs_ai.models.readings.seeded import whole

if TYPE_CHECKING:
    from collections.abc import Mapping

Three = tuple[int, int, int]


@dataclass(frozen=True)
class LesionSettings:
    """[settings] of a package whose runtime is ``lesion-detection``; axes are x, y, z of the patient.

    Parameters
    ----------
    spacing_mm
        Grid of the network.
    window_hu
        Attenuation that becomes 0, and that becomes 1.
    anchors
        Box sizes in voxels at the finest level; each is doubled from level to level.
    layers, first_stride, divisible
        Of the network.
    window
        Largest block that is computed at once; larger series are covered by windows.
    overlap
        Of neighbouring windows, as a fraction.
    candidate_threshold, candidates_per_level, overlap_between_boxes, most
        Choice of boxes: smallest probability, most of one level, largest intersection over union of two boxes that are
        both kept, most of all.
    threshold
        Smallest probability of what is reported.
    smallest_mm, largest_mm
        Range of the sphere-equivalent diameter of what is reported.
    seed_weights
        Random weights of this seed instead of the package's, for trials; the card says so.
    """

    spacing_mm: tuple[float, float, float] = (0.703125, 0.703125, 1.25)
    window_hu: tuple[float, float] = (-1024.0, 300.0)
    anchors: tuple[Three, ...] = ((6, 8, 4), (8, 6, 5), (10, 10, 6))
    layers: tuple[int, ...] = (1, 2)
    first_stride: Three = (2, 2, 1)
    divisible: Three = (16, 16, 8)
    window: Three = (512, 512, 192)
    overlap: float = 0.25
    candidate_threshold: float = 0.02
    candidates_per_level: int = 1000
    overlap_between_boxes: float = 0.22
    most: int = 300
    threshold: float = 0.5
    smallest_mm: float = 3.0
    largest_mm: float = 100.0
    seed_weights: int | None = None

    @classmethod
    def of(cls, settings: Mapping[str, Any], name: str) -> LesionSettings:
        """Read the table of the package `name`; `PipelineFault` names what it may not say."""
        known = {one.name for one in fields(cls)}
        unknown = sorted(set(settings) - known)
        if unknown:
            raise PipelineFault(f"settings of {name} name {', '.join(unknown)}: known are {', '.join(sorted(known))}")
        read = cls(**{key: _fixed(value) for key, value in settings.items()})
        whole(read.seed_weights, name)
        if not 0 < read.candidate_threshold <= read.threshold <= 1:
            raise PipelineFault(f"settings of {name}: 0 < candidate_threshold <= threshold <= 1 must hold")
        if min(read.spacing_mm) <= 0 or any(
            size % part for size, part in zip(read.window, read.divisible, strict=True)
        ):
            raise PipelineFault(f"settings of {name}: spacing_mm is positive, window a multiple of divisible")
        return read


def _fixed(value: Any) -> Any:
    return tuple(_fixed(item) for item in value) if isinstance(value, list) else value
