"""Vessels of the retina in colour photographs of the fundus, as vessels or as arteries and veins apart."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from pacs_ai.errors import PipelineFault, Reason, Refused
from pacs_ai.models.readings.fundus import Field, find_field
from pacs_ai.pipeline import PERCENT, Code, Findings, Frames, Measurement, Segment

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from pacs_ai.models.networks.wnet import WNet
    from pacs_ai.models.package import Package
    from pacs_ai.pipeline import Array, Frame

#: Neither SNOMED CT, LOINC nor DCM has a code for these; the scheme is this node's own.
VESSEL_DENSITY = Code("VESSELDENSITY", "99PACSAI", "Retinal vessel density")
AREA_SHARE = Code("RETINALSHARE", "99PACSAI", "Share of visible retina")
ARTERY_VEIN_RATIO = Code("AVAREARATIO", "99PACSAI", "Artery-to-vein area ratio")
RATIO = Code("{ratio}", "UCUM", "ratio")
#: Below this share of the retina, in %, no vessels were found that could be meant.
LEAST_DENSITY = 1.0
#: Probability from which a pixel is a vessel, where there is one class.
THRESHOLD = 0.5
_SLAB_ROWS = 256


class Retina:
    """A W-Net package as a pipeline.

    The disc in which the retina is seen is cut out as a square, brought to the side that the network was trained on,
    and the probabilities are brought back linearly onto the photograph's grid, a few rows at a time. Measured are, for
    the photographs together,

    - the vessel density: per cent of the visible retina that is vessel (area density, as in Fraz et al., Computer
      Methods and Programs in Biomedicine 108 (2012) 407-433), and the share of each label;
    - where arteries and veins are told apart, the ratio of their areas. This is not the arteriolar-to-venular diameter
      ratio of Knudtson et al. (Current Eye Research 27 (2003) 143-149), which takes the calibres of the six largest
      vessels in a zone about the optic disc.

    Parameters
    ----------
    package
        With `Layout`, ``side`` (pixels), and ``arteries`` and ``veins`` (names of labels) in its settings.
    """

    def __init__(self, package: Package) -> None:
        self.card = package.card
        self._package = package
        settings = package.model.settings
        self._side = int(settings.get("side", 512))
        self._arteries = str(settings.get("arteries", ""))
        self._veins = str(settings.get("veins", ""))
        self._names = {value: table.name for value, table in sorted(package.model.labels.items())}
        self._network: WNet | None = None
        self._device = "cpu"

    def prepare(self, device: str) -> None:
        """Load the weights onto the device ("cpu", "cuda:0")."""
        from pacs_ai.models.networks.wnet import Layout, WNet

        layout = Layout.of(self._package.model.settings)
        if self._side % layout.multiple:
            raise PipelineFault(f"side of {self.card.name} is {self._side}, no multiple of {layout.multiple}")
        self._network = WNet.loaded(layout, self._package.tensors()).to(device)
        self._device = device

    def run(self, inputs: Mapping[str, Frames]) -> Findings:
        """Outline the vessels in every photograph of ``image``.

        Returns
        -------
        Findings
            One label map (images, rows, columns; uint8) of all segments, and the measurements.

        Raises
        ------
        Refused
            A picture is no photograph of the retina, both eyes are shown, sizes differ, or no vessel is found.
        """
        frames = inputs["image"]
        if frames.shape is None:
            words = "the photographs of the series are of different sizes: send them as series of their own"
            raise Refused(words, Reason.GEOMETRY)
        eyes = {frame.header.get("ImageLaterality") or frame.header.get("Laterality", "") for frame in frames.images}
        if {"L", "R"} <= eyes:
            words = "the series shows both eyes, which are not measured together: send each as a series of its own"
            raise Refused(words, Reason.LATERALITY)
        labels = np.zeros(frames.shape, np.uint8)
        seen = 0
        for index, frame in enumerate(frames.images):
            field = find_field(frame, f"photograph {index + 1}" if len(frames.images) > 1 else "the photograph")
            inside = field.mask(labels.shape[1:])
            labels[index] = np.where(inside, self.label(frame, field), np.uint8(0))
            seen += int(np.count_nonzero(inside))
        counts = np.bincount(labels.ravel(), minlength=max(self._names) + 1)
        density = 100.0 * float(counts[1:].sum()) / seen
        if density < LEAST_DENSITY:
            words = f"vessels cover only {density:.1f} % of what is seen: no retina was recognised"
            raise Refused(words, Reason.IMPLAUSIBLE_RESULT)
        present = {value: name for value, name in self._names.items() if counts[value]}
        return Findings(
            segments=tuple(Segment(name, labels, value) for value, name in present.items()),
            measurements=(
                Measurement(VESSEL_DENSITY, density, PERCENT),
                *(
                    Measurement(AREA_SHARE, 100.0 * float(counts[value]) / seen, PERCENT, name)
                    for value, name in present.items()
                ),
                *self._ratio({name: float(counts[value]) for value, name in present.items()}),
            ),
        )

    def _ratio(self, areas: Mapping[str, float]) -> tuple[Measurement, ...]:
        if not (areas.get(self._arteries) and areas.get(self._veins)):
            return ()
        return (Measurement(ARTERY_VEIN_RATIO, areas[self._arteries] / areas[self._veins], RATIO),)

    def label(self, frame: Frame, field: Field) -> Array:
        """Return the labels of one photograph on its grid, (rows, columns) uint8."""
        import torch
        from torch.nn import functional

        if self._network is None:
            raise PipelineFault(f"{self.card.name} was not prepared")
        square, corner = _square(frame.pixels, field)
        image = torch.from_numpy(square).to(self._device).permute(2, 0, 1)[None].float() / 255.0
        with torch.inference_mode():
            image = functional.interpolate(image, (self._side, self._side), mode="bilinear", antialias=True)
            logits = self._network(image)[0]
            found = logits.sigmoid() if len(logits) == 1 else logits.softmax(0)
        return _back(found.cpu(), square.shape[0], corner, frame.pixels.shape[:2])


def _square(pixels: Array, field: Field) -> tuple[Array, tuple[int, int]]:
    """Return the square about the disc, black where it leaves the picture, and row and column of its first pixel."""
    side = 2 * math.ceil(field.radius) + 1
    top, left = round(field.row - (side - 1) / 2), round(field.column - (side - 1) / 2)
    square = np.zeros((side, side, 3), np.uint8)
    rows, columns = _shared(top, side, pixels.shape[0]), _shared(left, side, pixels.shape[1])
    square[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left] = pixels[rows, columns]
    return square, (top, left)


def _shared(first: int, side: int, size: int) -> slice:
    return slice(max(0, first), max(0, min(size, first + side)))


def _back(found: torch.Tensor, side: int, corner: tuple[int, int], shape: tuple[int, int]) -> Array:
    """Bring probabilities (classes, n, n) of a square linearly onto the photograph, and choose there."""
    labels = np.zeros(shape, np.uint8)
    rows, columns = _shared(corner[0], side, shape[0]), _shared(corner[1], side, shape[1])
    wide = _linear(found, columns.start - corner[1], columns.stop - corner[1], side, axis=2)
    for start in range(rows.start, rows.stop, _SLAB_ROWS):
        stop = min(rows.stop, start + _SLAB_ROWS)
        part = _linear(wide, start - corner[0], stop - corner[0], side, axis=1)
        chosen = part[0] >= THRESHOLD if len(part) == 1 else part.argmax(0)
        labels[start:stop, columns] = chosen.numpy().astype(np.uint8)
    return labels


def _linear(found: torch.Tensor, start: int, stop: int, side: int, axis: int) -> torch.Tensor:
    """Return pixels `start` to `stop` of `side` along an axis, linearly between those that there are."""
    import torch

    size = found.shape[axis]
    at = ((torch.arange(start, stop) + 0.5) * size / side - 0.5).clamp(0, size - 1)
    low = at.floor().long().clamp(max=size - 2)
    shape = [1, 1, 1]
    shape[axis] = -1
    weight = (at - low).view(shape)
    return found.index_select(axis, low) * (1 - weight) + found.index_select(axis, low + 1) * weight
