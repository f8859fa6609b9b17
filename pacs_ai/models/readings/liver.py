"""The liver in an abdominal CT and the lesions in it: outlined, counted, measured one by one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pacs_ai.errors import Reason, Refused
from pacs_ai.pipeline import (
    HOUNSFIELD_UNIT,
    MILLILITRE,
    VOLUME,
    Card,
    Classification,
    Code,
    Findings,
    Measurement,
    Segment,
    Volume,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pacs_ai.models.networks.liver_unet import LiverUnet
    from pacs_ai.models.package import Package
    from pacs_ai.pipeline import Array

LIVER = "Liver"
#: The card has a label for each of so many lesions, the largest first; what is left shares one.
NUMBERED = 20
FURTHER = "Further liver lesions"
#: Attenuation Coefficient with derivation Mean, as PS3.16 TID 1419 has it.
DENSITY = Code("112031", "DCM", "Attenuation Coefficient")
MEAN = Code("373098007", "SCT", "Mean")
#: Whether the series shows the whole liver; no code of DCM or SNOMED CT asks that.
COVERED = Code("LIVERCOV", "99PACSAI", "Liver covered by the series")
COMPLETE, PARTIAL = Code("255594003", "SCT", "Complete"), Code("255609007", "SCT", "Partial")
#: The CT's window for the networks, in HU.
WINDOW_HU = 200.0
#: Less than this is no liver.
LEAST_ML = 30.0
#: A liver that meets the first or last slice with more than this part of its largest section goes on beyond it.
CUT_FROM = 0.25
#: Part of the voxels that must have the density of soft tissue.
LEAST_TISSUE = 0.03


class LiverLesions:
    """Outlines the liver, then the lesions in it, by pyliverlesionseg's cascade.

    Preprocessing, windows and thresholds are the authors'; four steps differ. Hips are looked for below the waist
    (`liver_grid.abdomen`), where theirs are the maximum of all bone, which a metal hip leads astray. A series of less
    than 90 mm is continued at both ends, since in a window that is nearly empty half of the liver is missed. Outlines
    are brought back to the CT at the probability of a half, where theirs grow by up to a voxel of 3 mm. Lesions smaller
    than `smallest_ml` are left out.

    Parameters
    ----------
    package
        Settings: ``smallest_ml``.
    """

    def __init__(self, package: Package) -> None:
        self._package = package
        self._smallest_ml = float(package.model.settings.get("smallest_ml", 0.0))
        self._networks: tuple[LiverUnet, LiverUnet] | None = None
        self._device = "cpu"

    @property
    def card(self) -> Card:
        """What ``model.toml`` says."""
        return self._package.card

    def prepare(self, device: str) -> None:
        """Load both networks onto the device."""
        from pacs_ai.models.networks.liver_unet import LESIONS, LIVER, LiverUnet

        tensors = self._package.tensors()
        self._device = device
        self._networks = (
            LiverUnet.loaded(LIVER, tensors, "liver").to(device),
            LiverUnet.loaded(LESIONS, tensors, "lesions").to(device),
        )

    def run(self, inputs: Mapping[str, Volume]) -> Findings:
        """Outline and measure liver and lesions of ``image``.

        Returns
        -------
        Findings
            A segment of the liver, lesions included; a segment of each lesion, the largest first; of each its volume
            and mean density; and whether the series shows the whole liver.

        Raises
        ------
        Refused
            Where no liver is seen, or the series is no CT of soft tissue.
        """
        from pacs_ai.models.readings import liver_cascade, liver_grid

        if self._networks is None:
            self.prepare(self._device)
        assert self._networks is not None
        volume = inputs["image"]
        _check_densities(volume.voxels)
        voxels, spacing = liver_grid.upright(volume)
        liver = liver_cascade.find_liver(self._networks[0], voxels, spacing, self._device)
        if float(liver.sum()) * volume.voxel_ml < LEAST_ML:
            words = "no liver is seen in this series: it shows another part of the body, or hardly any of it"
            raise Refused(words, Reason.BODY_PART)
        lesions = liver_cascade.find_lesions(self._networks[1], voxels, spacing, liver, self._device)
        return _findings(
            volume, liver_grid.laid_back(liver, volume), liver_grid.laid_back(lesions, volume), self._smallest_ml
        )


def _check_densities(voxels: Array) -> None:
    """Refuse values that are no Hounsfield units of a body."""
    sample = voxels[:: max(1, len(voxels) // 20), ::4, ::4]
    if float(np.mean((sample > -150) & (sample < 250))) < LEAST_TISSUE:
        raise Refused(
            "hardly a voxel has the density of soft tissue in Hounsfield units: this series is no CT of an abdomen "
            "(a localizer, a derived image or another body part)",
            Reason.INTENSITY,
        )


def _findings(volume: Volume, liver: Array, lesions: Array, smallest_ml: float) -> Findings:
    """Return the segments and their values; `liver` and `lesions` are masks on the volume's grid."""
    numbers = _numbered(lesions, smallest_ml / volume.voxel_ml)
    whole = np.asarray(liver | (numbers > 0))
    names = [LIVER, *(f"Liver lesion {k}" for k in range(1, NUMBERED + 1)), FURTHER]
    counts = np.bincount(numbers.ravel(), minlength=len(names))
    sums = np.bincount(numbers.ravel(), np.asarray(volume.voxels, np.float64).ravel(), minlength=len(names))
    segments = [Segment(LIVER, whole)]
    values = [*_values(LIVER, int(whole.sum()), float(volume.voxels[whole].mean(dtype=np.float64)), volume)]
    for number, name in enumerate(names):
        if number and counts[number]:
            segments.append(Segment(name, numbers, number))
            values += _values(name, int(counts[number]), float(sums[number] / counts[number]), volume)
    sections = whole.sum((1, 2))
    cut = max(int(sections[0]), int(sections[-1])) > CUT_FROM * int(sections.max())
    covered = Classification(COVERED, PARTIAL if cut else COMPLETE, label=LIVER)
    return Findings(tuple(segments), tuple(values), classifications=(covered,))


def _numbered(lesions: Array, least: float) -> Array:
    """Return connected parts (faces, edges and corners) by size, uint8: 1 the largest; above `NUMBERED` all as one."""
    from scipy import ndimage

    parts, _ = ndimage.label(lesions, np.ones((3, 3, 3)))
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    table = np.zeros(len(sizes), np.uint8)
    for rank, part in enumerate(np.argsort(-sizes, kind="stable"), 1):
        if sizes[part] and sizes[part] >= least:
            table[part] = min(rank, NUMBERED + 1)
    return table[parts]


def _values(name: str, count: int, mean: float, volume: Volume) -> tuple[Measurement, Measurement]:
    return (
        Measurement(VOLUME, count * volume.voxel_ml, MILLILITRE, name),
        Measurement(DENSITY, mean, HOUNSFIELD_UNIT, name, derivation=MEAN),
    )
