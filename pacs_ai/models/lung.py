"""Right and left lung in a chest CT: their volumes, their mean density and how much of them is emphysema.

No weights: air is told from tissue by its density, lungs from other air by shape (`pacs_ai.models.lung_shape`).
Importing this module is cheap; torch and scipy come with the first `CtLung.prepare` or `CtLung.run`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pacs_ai.errors import Reason, Refused
from pacs_ai.models.digest import digest_of, sha256
from pacs_ai.pipeline import (
    ANATOMICAL_STRUCTURE,
    HOUNSFIELD_UNIT,
    LEFT,
    MILLILITRE,
    PERCENT,
    RIGHT,
    VOLUME,
    Card,
    Code,
    Findings,
    Input,
    Label,
    Measurement,
    Segment,
    Volume,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

Array = npt.NDArray[Any]

#: Lung voxels below this density count as emphysema (LAA-950).
EMPHYSEMA_HU = -950
#: Least extent from feet to head, and across, that a chest can have.
LEAST_EXTENT_MM = 120.0

_LUNG = Code("39607008", "SCT", "Lung")
MEAN_DENSITY = Code("112031", "DCM", "Attenuation Coefficient")
MEAN = Code("373098007", "SCT", "Mean")
LOW_ATTENUATION_AREA = Code("LAA950", "99PACSAI", "LAA-950")
PERCENTILE_15 = Code("PERC15", "99PACSAI", "Perc15")

_RIGHT_LUNG = Label("Right lung", ANATOMICAL_STRUCTURE, _LUNG, RIGHT, (64, 160, 255))
_LEFT_LUNG = Label("Left lung", ANATOMICAL_STRUCTURE, _LUNG, LEFT, (255, 160, 64))


#: What the algorithm consists of: a change in any of them is another model.
_SOURCES = ("lung.py", "lung_grid.py", "lung_shape.py")


class CtLung:
    """Right and left lung by density and shape.

    A lung is what a radiologist would outline on lung windows: parenchyma with the vessels, nodules and smaller
    bronchi that it encloses, without trachea and main bronchi, without the vessels of the hilum that lie at its
    surface. Per lung it measures

    - the volume in mL (118565006, SCT, "Volume");
    - the mean density in HU (112031, DCM, "Attenuation Coefficient") with derivation (373098007, SCT, "Mean");
    - LAA-950, the percentage of its voxels below -950 HU, and Perc15, the density below which 15 % of its voxels
      lie. Neither has a code in DCM, SNOMED CT, LOINC or IBSI: they are coded in this node's own scheme, 99PACSAI.
      Their meanings are the abbreviations, because viewers draw them beside the outline and clip long ones.

    Densities are those of the series as reconstructed: a sharp kernel or thin slices raise LAA-950 by their noise.

    Refused is a series that does not show a whole chest with two lungs. Lungs may touch an edge of the image with at
    most a quarter of their largest cross-section (recesses that the series just leaves out); beyond that the volumes
    would mislead.
    """

    card = Card(
        name="ct-lung",
        version="1.0.0",
        manufacturer="pacs_ai",
        title="Lungs",
        inputs={"image": Input(modality=("CT",), min_slices=20, max_slice_spacing_mm=10.0)},
        labels=(_RIGHT_LUNG, _LEFT_LUNG),
        procedure=Code("24627-2", "LN", "CT Chest"),
        intended_use=(
            "Outlines the lungs in a CT of the whole chest and measures volume, mean density and emphysema index. "
            "For research; not for diagnosis."
        ),
        model_digest=digest_of({name: sha256(Path(__file__).with_name(name)) for name in _SOURCES}),
    )

    def __init__(self) -> None:
        self._device = "cpu"

    def prepare(self, device: str) -> None:
        """Choose the device ("cpu", "cuda:0") and load torch and scipy."""
        from pacs_ai.models import lung_grid, lung_shape

        del lung_grid, lung_shape
        self._device = device

    def run(self, inputs: Mapping[str, Volume]) -> Findings:
        """Outline and measure both lungs of ``image``.

        Returns
        -------
        Findings
            Two segments in one label map (slices, rows, columns; uint8; 1 right, 2 left), and four measurements of
            each.

        Raises
        ------
        Refused
            Where the series is no CT of a whole chest.
        """
        from pacs_ai.models import lung_grid, lung_shape

        volume = inputs["image"]
        upright = lung_grid.Upright.of(volume.affine)
        _check_extent(volume, upright.order)
        voxels = lung_grid.upright_voxels(volume)
        _check_densities(voxels)
        s, r, c = (volume.spacing[axis] for axis in upright.order)
        coarse = lung_grid.coarsen(voxels, (s, r, c), self._device)
        lungs = lung_shape.find_lungs(coarse)
        labels = lung_grid.refine(voxels, lungs.labels, coarse.steps, threshold=lung_shape.AIR_HU, device=self._device)
        counts = lung_grid.histogram(voxels, labels, 3, self._device)
        segments = np.ascontiguousarray(upright.turn_back(labels))
        sides = ((_RIGHT_LUNG.name, 1), (_LEFT_LUNG.name, 2))
        return Findings(
            segments=tuple(Segment(name, segments, number) for name, number in sides),
            measurements=tuple(
                measurement for name, number in sides for measurement in _measure(name, counts[number], volume.voxel_ml)
            ),
        )


def _check_extent(volume: Volume, order: tuple[int, int, int]) -> None:
    """Refuse what is too small, or of too few planes, to show a chest."""
    if min(volume.voxels.shape) < 16:
        raise Refused(
            f"the series has only {min(volume.voxels.shape)} planes along one axis: too few for a chest", Reason.TOO_FEW
        )
    extent = [volume.voxels.shape[axis] * volume.spacing[axis] for axis in order]
    for mm, direction in zip(extent, ("from feet to head", "from front to back", "from right to left"), strict=True):
        if mm < LEAST_EXTENT_MM:
            raise Refused(f"the series covers only {mm:.0f} mm {direction}: too little for a chest", Reason.TOO_FEW)


def _check_densities(voxels: Array) -> None:
    """Refuse values that are no Hounsfield units: a CT of a chest has both air and tissue."""
    sample = voxels[:: max(1, len(voxels) // 40), ::4, ::4]
    air = float(np.mean((sample > -1100) & (sample < -700)))
    tissue = float(np.mean((sample > -150) & (sample < 250)))
    if air < 0.02 or tissue < 0.02:
        missing = "air" if air < tissue else "soft tissue"
        raise Refused(
            f"hardly a voxel has the density of {missing} in Hounsfield units: this series is no CT of a chest "
            "(a localizer, a derived image or another body part)",
            Reason.INTENSITY,
        )


def _measure(name: str, counts: Array, voxel_ml: float) -> tuple[Measurement, ...]:
    """Return the four measurements of one lung from its histogram (4096 bins of 1 HU, from -1024 HU)."""
    hu = np.arange(len(counts)) - 1024
    total = int(counts.sum())
    percentile = int(hu[np.searchsorted(np.cumsum(counts), 0.15 * total)])
    return (
        Measurement(VOLUME, total * voxel_ml, MILLILITRE, name),
        Measurement(MEAN_DENSITY, float(counts @ hu) / total, HOUNSFIELD_UNIT, name, derivation=MEAN),
        Measurement(LOW_ATTENUATION_AREA, 100.0 * int(counts[hu < EMPHYSEMA_HU].sum()) / total, PERCENT, name),
        Measurement(PERCENTILE_15, float(percentile), HOUNSFIELD_UNIT, name),
    )
