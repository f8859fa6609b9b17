"""Small deterministic pipelines that find something of every kind in real series: for tests and for trying a viewer.

They analyse nothing that a person should act on. A [[pipeline]] names them by `use`, ``testing-everything`` for
instance; a node without such a section does not know them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

from pacs_ai.errors import Refused
from pacs_ai.pipeline import (
    ANATOMICAL_STRUCTURE,
    HOUNSFIELD_UNIT,
    MILLILITRE,
    MORPHOLOGIC_ABNORMALITY,
    VOLUME,
    Card,
    Classification,
    Code,
    Derived,
    Detection,
    Findings,
    Input,
    Label,
    Map,
    Measurement,
    Segment,
    Volume,
)
from pacs_ai.testing.lesions import Lesion, as_probability, body, diameters, find_lesions, outline
from pacs_ai.testing.radiographs import RadiographRegions, UltrasoundHead

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["BrightLesion", "Denoise", "Everything", "Probability", "RadiographRegions", "UltrasoundHead"]

_LESION = Label("Bright lesion", MORPHOLOGIC_ABNORMALITY, Code("52988006", "SCT", "Lesion"), colour=(255, 60, 60))
_BODY = Label("Body", ANATOMICAL_STRUCTURE, Code("38266002", "SCT", "Entire body"), colour=(120, 180, 255))
_PROCEDURE = Code("25045-6", "LN", "CT unspecified body region")
_ANY_PROCEDURE = Code("363679005", "SCT", "Imaging procedure")
_VOLUMES = ("CT", "MR", "PT")

_MEAN = Code("373098007", "SCT", "Mean")
_ATTENUATION = Code("112031", "DCM", "Attenuation Coefficient")
_INTENSITY = Code("110852", "DCM", "MR signal intensity")
_PURE = Code("{ratio}", "UCUM", "ratio")
_SHAPE = Code("300842002", "SCT", "Shape")
_ROUND = Code("42700002", "SCT", "Round")
_IRREGULAR = Code("49608001", "SCT", "Irregular")
_QUALITY = Code("111101", "DCM", "Image Quality")
_GOOD = Code("122741", "DCM", "Good image quality")
_PROBABILITY = Code("110854", "DCM", "Fractional Probabilistic Segmentation")
_SALIENCY = Code("130404", "DCM", "Saliency")
_BLUR = Code("113088", "DCM", "Gaussian blur")
_SMOOTHING = Code("113087", "DCM", "Smoothing")
#: Lesions are neither smaller nor larger.
_LESION_ML = (0.05, 30.0)
#: A lesion whose short axis is at least this part of the long one is called round.
_ROUND_FROM = 0.7


def _card(name: str, title: str, modality: tuple[str, ...], labels: tuple[Label, ...]) -> Card:
    return Card(
        name=name,
        version="1.0",
        manufacturer="pacs_ai",
        title=title,
        inputs={"image": Input(modality)},
        labels=labels,
        procedure=_PROCEDURE if modality == ("CT",) else _ANY_PROCEDURE,
        intended_use="tests",
    )


def _level(volume: Volume, wanted: float | None) -> float:
    """Return from which value a voxel is bright: 300 HU, or what only one voxel in two hundred exceeds."""
    if wanted is not None:
        return wanted
    return 300.0 if volume.modality == "CT" else float(np.percentile(volume.voxels, 99.5))


def _lesion_findings(volume: Volume, lesions: tuple[Lesion, ...]) -> Findings:
    """Return the lesions as one segment, their volume, and a detection of each."""
    mask = np.zeros(volume.shape, np.bool_)
    for lesion in lesions:
        mask[lesion.box] |= lesion.mask
    ml = int(np.count_nonzero(mask)) * volume.voxel_ml
    return Findings(
        (Segment(_LESION.name, mask),),
        (Measurement(VOLUME, ml, MILLILITRE, _LESION.name),),
        tuple(_detection(volume, lesion) for lesion in lesions),
    )


def _detection(volume: Volume, lesion: Lesion) -> Detection:
    index = lesion.largest_section
    section, row, column = lesion.section(index)
    axes = diameters(section, (row, column), volume.spacing[1:], index)
    ml = lesion.voxels * volume.voxel_ml
    values = volume.voxels[lesion.box][lesion.mask]
    mean = Measurement(_ATTENUATION, float(values.mean()), HOUNSFIELD_UNIT, derivation=_MEAN)
    return Detection(
        _LESION.name,
        region=outline(section, (row, column), index),
        diameters=axes,
        probability=round(ml / (ml + 1.0), 4),
        measurements=(Measurement(VOLUME, ml, MILLILITRE), *((mean,) if volume.modality == "CT" else ())),
        classifications=(Classification(_SHAPE, _shape(section), 0.75),),
    )


def _shape(section: np.ndarray) -> Code:
    rows, columns = np.flatnonzero(section.any(axis=1)), np.flatnonzero(section.any(axis=0))
    height, width = int(rows[-1] - rows[0]) + 1, int(columns[-1] - columns[0]) + 1
    return _ROUND if min(height, width) >= _ROUND_FROM * max(height, width) else _IRREGULAR


def _maps(volume: Volume, level: float, label: str) -> tuple[Map, Map]:
    """Return the probability of being bright, and how steeply the brightness changes, both smooth and 0 to 1."""
    smooth = ndimage.gaussian_filter(volume.voxels.astype(np.float32), 1.5)
    probability = as_probability((smooth - level) / max(abs(level) / 6, 1.0))
    steepness = np.sqrt(sum(ndimage.sobel(smooth, axis=axis) ** 2 for axis in (1, 2)))
    saliency = (steepness / max(float(steepness.max()), 1e-6)).astype(np.float32)
    return (
        Map("Probability", _PROBABILITY, _PURE, probability, label),
        Map("Saliency", _SALIENCY, _PURE, saliency),
    )


class BrightLesion:
    """Calls lesions what is connected and bright within the patient: one segment, a detection of each.

    Parameters
    ----------
    threshold
        From which value a voxel is bright; None: 300 HU, of MR and PET what one voxel in two hundred exceeds.
    most
        How many, the largest first.
    smallest_ml, largest_ml
        Smaller and larger ones, the skeleton for instance, are left out.
    """

    card = _card("testing-bright-lesion", "Bright lesions", _VOLUMES, (_LESION,))

    def __init__(
        self, threshold: float | None = None, most: int = 3, smallest_ml: float = 0.05, largest_ml: float = 30.0
    ) -> None:
        self._threshold, self._most, self._ml = threshold, most, (smallest_ml, largest_ml)

    def prepare(self, device: str) -> None:
        """Nothing to load."""

    def run(self, inputs: Mapping[str, Volume]) -> Findings:
        """Find them."""
        volume = inputs["image"]
        level = _level(volume, self._threshold)
        return _lesion_findings(volume, find_lesions(volume, level, self._most, self._ml))


class Probability:
    """Maps how probably each voxel is bright, and where the brightness changes: two parametric maps."""

    card = _card("testing-probability", "Brightness", _VOLUMES, (_LESION,))

    def prepare(self, device: str) -> None:
        """Nothing to load."""

    def run(self, inputs: Mapping[str, Volume]) -> Findings:
        """Compute both maps."""
        volume = inputs["image"]
        return Findings(maps=_maps(volume, _level(volume, None), _LESION.name))


class Denoise:
    """Makes the images anew with less noise: a derived series.

    Parameters
    ----------
    method
        ``gaussian`` or ``median``.
    """

    card = _card("testing-denoise", "Denoised", _VOLUMES, ())

    def __init__(self, method: str = "gaussian") -> None:
        if method not in ("gaussian", "median"):
            raise Refused(f"method is gaussian or median, not {method}")
        self._method = method

    def prepare(self, device: str) -> None:
        """Nothing to load."""

    def run(self, inputs: Mapping[str, Volume]) -> Findings:
        """Filter every slice by itself."""
        voxels = inputs["image"].voxels
        if self._method == "median":
            return Findings(images=(Derived("Denoised", _SMOOTHING, ndimage.median_filter(voxels, (1, 3, 3))),))
        return Findings(images=(_blurred(inputs["image"]),))


def _blurred(volume: Volume) -> Derived:
    smooth = ndimage.gaussian_filter(volume.voxels.astype(np.float32), (0, 1, 1))
    if volume.voxels.dtype.kind in "iu":
        smooth = np.rint(smooth).astype(volume.voxels.dtype)
    return Derived("Denoised", _BLUR, smooth)


class Everything:
    """Finds something of every kind in one volume: segments, one of them empty where nothing is bright, measurements,
    detections, classifications, maps and a derived series.
    """  # noqa: D205 - one sentence

    card = _card("testing-everything", "Everything", _VOLUMES, (_BODY, _LESION))

    def __init__(self, threshold: float | None = None, most: int = 3) -> None:
        self._threshold, self._most = threshold, most

    def prepare(self, device: str) -> None:
        """Nothing to load."""

    def run(self, inputs: Mapping[str, Volume]) -> Findings:
        """Find it all."""
        volume = inputs["image"]
        level = _level(volume, self._threshold)
        found = _lesion_findings(volume, find_lesions(volume, level, self._most, _LESION_ML))
        patient = body(volume)
        litres = Measurement(VOLUME, int(np.count_nonzero(patient)) * volume.voxel_ml, MILLILITRE, _BODY.name)
        return Findings(
            segments=(Segment(_BODY.name, patient), *found.segments),
            measurements=(litres, *found.measurements, _whole_image(volume)),
            detections=found.detections,
            classifications=(Classification(_QUALITY, _GOOD, 0.9),),
            maps=_maps(volume, level, _LESION.name),
            images=(_blurred(volume),),
        )


def _whole_image(volume: Volume) -> Measurement:
    mean = float(volume.voxels.mean(dtype=np.float64))
    if volume.modality == "CT":
        return Measurement(_ATTENUATION, mean, HOUNSFIELD_UNIT, derivation=_MEAN)
    return Measurement(_INTENSITY, mean, Code("{intensity}", "UCUM", "intensity"), derivation=_MEAN)
