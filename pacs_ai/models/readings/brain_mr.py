"""Tissue, structures or outline of the brain in a T1-weighted MR of the head, with their volumes.

One class for all MeshNet packages: which labels there are, how intensities are scaled and what is derived from the
volumes stands in the package's settings.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.ndimage

from pacs_ai.errors import PipelineFault, Reason, Refused
from pacs_ai.models.readings import conform, head_gate
from pacs_ai.pipeline import MILLILITRE, PERCENT, VOLUME, Code, Findings, Measurement, Segment, Volume

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pacs_ai.models.networks.meshnet import MeshNet
    from pacs_ai.models.package import Package
    from pacs_ai.pipeline import Array

#: Edge of the region that is read is a multiple of the largest dilation.
_EVEN = 16
#: Without fewer voxels of 1 mm than this there is no brain, in mL.
LEAST_BRAIN_ML = 200.0
#: In a T1-weighted image white matter is brighter than grey by at least this factor.
LEAST_CONTRAST = 1.03
_SCHEME = "99PACSAI"


@dataclass(frozen=True)
class Sum:
    """A measurement of several labels together, in mL, or of some of them as a share of all.

    Parameters
    ----------
    concept
        What it is.
    of
        Names of the labels.
    share_of
        Names of the labels that are 100 %; () for mL.
    """

    concept: Code
    of: tuple[str, ...]
    share_of: tuple[str, ...] = ()


@dataclass(frozen=True)
class Settings:
    """What a package says of its reading.

    Parameters
    ----------
    quantiles
        Of the whole conformed head, brought to 0 and 1; () for its least and greatest value.
    clipped
        Whether what lies outside is cut off.
    crop_above
        Part of the greatest value: the network sees the box around all that is brighter; None for the whole grid.
    sums
        Further measurements.
    white, grey
        Labels by whose brightness the contrast is checked; "" where the package has none.
    """

    quantiles: tuple[float, ...] = ()
    clipped: bool = False
    crop_above: float | None = None
    sums: tuple[Sum, ...] = ()
    white: str = ""
    grey: str = ""

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Settings:
        """Read them; `PipelineFault` where they are not understood."""
        try:
            crop = settings.get("crop_above")
            return cls(
                tuple(float(one) for one in settings.get("quantiles", ())),
                bool(settings.get("clipped", False)),
                None if crop is None else float(crop),
                tuple(_sum(one) for one in settings.get("sums", ())),
                str(settings.get("white", "")),
                str(settings.get("grey", "")),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise PipelineFault(f"the settings of the brain reading are not understood: {error!r}") from error


def _sum(table: Mapping[str, Any]) -> Sum:
    code, meaning = table["code"]
    return Sum(Code(code, _SCHEME, meaning), tuple(table["of"]), tuple(table.get("share_of", ())))


class BrainMr:
    """A MeshNet package as a pipeline.

    The series is brought onto the models' grid (`conform`), labelled there, freed of all but the largest connected
    part, and the labels brought back onto the series' own grid, on which volumes are counted. Sums and shares have no
    codes in SNOMED CT, LOINC or DCM that mean just that: they are coded in this node's scheme, 99PACSAI.

    Parameters
    ----------
    package
        With `Layout` and `Settings` in its settings.
    """

    def __init__(self, package: Package) -> None:
        self.card = package.card
        self._package = package
        self._settings = Settings.of(package.model.settings)
        self._names = {value: table.name for value, table in sorted(package.model.labels.items())}
        self._network: MeshNet | None = None
        self._device = "cpu"

    def prepare(self, device: str) -> None:
        """Load the weights onto the device ("cpu", "cuda:0")."""
        from pacs_ai.models.networks.meshnet import Layout, MeshNet

        layout = Layout.of(self._package.model.settings)
        self._network = MeshNet.loaded(layout, self._package.tensors()).to(device)
        self._device = device

    def run(self, inputs: Mapping[str, Volume]) -> Findings:
        """Label ``image``.

        Returns
        -------
        Findings
            One label map (slices, rows, columns; uint8) of all segments, the volume of each in mL, and the sums.

        Raises
        ------
        Refused
            The series is no T1-weighted MR of a whole head, or no brain is found in it.
        """
        volume = inputs["image"]
        head_gate.check_header(volume.header)
        head_gate.check_coverage(volume)
        head = conform.conform(volume)
        head_gate.check_head(head, volume)
        found = largest_part(self.label(head.voxels))
        self._check_found(head.voxels, found)
        labels = conform.labels_on(found, head.affine, volume.shape, volume.affine)
        counts = np.bincount(labels.ravel(), minlength=max(self._names) + 1)
        ml = {name: float(counts[value]) * volume.voxel_ml for value, name in self._names.items()}
        present = {value: name for value, name in self._names.items() if counts[value]}
        return Findings(
            segments=tuple(Segment(name, labels, value) for value, name in present.items()),
            measurements=(
                *(Measurement(VOLUME, ml[name], MILLILITRE, name) for name in present.values()),
                *(_measured(one, ml) for one in self._settings.sums),
            ),
        )

    def label(self, voxels: Array) -> Array:
        """Return the labels of a conformed head, (256, 256, 256) uint8 both."""
        import torch

        if self._network is None:
            raise PipelineFault(f"{self.card.name} was not prepared")
        box = self._box(voxels)
        image = torch.from_numpy(self._scaled(voxels)[box]).to(self._device)
        labels = np.zeros(voxels.shape, np.uint8)
        labels[box] = self._network.label(image).cpu().numpy()
        return labels

    def _scaled(self, voxels: Array) -> Array:
        """Return float32 intensities as the network was trained on them."""
        settings = self._settings
        values = voxels.astype(np.float32)
        low, high = np.quantile(voxels, settings.quantiles) if settings.quantiles else (values.min(), values.max())
        if high <= low:
            words = "nearly all voxels of the series have one value: there is no head to be seen"
            raise Refused(words, Reason.INTENSITY)
        scaled = (values - np.float32(low)) / np.float32(high - low)
        return np.clip(scaled, 0, 1) if settings.clipped else scaled

    def _box(self, voxels: Array) -> tuple[slice, slice, slice]:
        """Return the part of the grid that the network sees."""
        least = self._settings.crop_above
        if least is None:
            return slice(0, voxels.shape[0]), slice(0, voxels.shape[1]), slice(0, voxels.shape[2])
        bright = voxels > least * int(voxels.max())
        first, second, third = (
            _even(np.flatnonzero(bright.any(axis=tuple(one for one in range(3) if one != axis))), voxels.shape[axis])
            for axis in range(3)
        )
        return first, second, third

    def _check_found(self, head: Array, found: Array) -> None:
        """Refuse where there is no brain, or where the contrast is none of a T1-weighted image."""
        ml = float(np.count_nonzero(found)) / 1000.0
        if ml < LEAST_BRAIN_ML:
            words = f"only {ml:.0f} mL of brain were found: this is no T1-weighted MR of a head"
            raise Refused(words, Reason.IMPLAUSIBLE_RESULT)
        if not self._settings.white:
            return
        values = {name: value for value, name in self._names.items()}
        white = float(head[found == values[self._settings.white]].mean())
        grey = float(head[found == values[self._settings.grey]].mean())
        if white < LEAST_CONTRAST * grey:
            raise Refused(
                f"white matter is not brighter than grey matter ({white:.0f} to {grey:.0f} of 255): this series is not "
                "T1-weighted, or the brain was not recognised",
                Reason.OUT_OF_DISTRIBUTION,
            )


def _even(bright: Array, size: int) -> slice:
    """Return the range around some indices, made longer to a multiple of `_EVEN` within 0 to `size`."""
    low, high = int(bright[0]), int(bright[-1]) + 1
    length = min(size, -(-(high - low) // _EVEN) * _EVEN)
    start = min(max(0, low - (length - (high - low)) // 2), size - length)
    return slice(start, start + length)


def largest_part(labels: Array) -> Array:
    """Return the labels without all but the largest connected part of what is labelled (connected by faces)."""
    parts, count = scipy.ndimage.label(labels > 0)
    if count < 2:
        return labels
    largest = 1 + int(np.bincount(parts.ravel())[1:].argmax())
    return np.where(parts == largest, labels, np.uint8(0))


def _measured(one: Sum, ml: Mapping[str, float]) -> Measurement:
    """Return a sum in mL, or a share in per cent."""
    part = sum(ml[name] for name in one.of)
    if not one.share_of:
        return Measurement(one.concept, part, MILLILITRE)
    whole = sum(ml[name] for name in one.share_of)
    return Measurement(one.concept, 100.0 * part / whole if whole else 0.0, PERCENT)
