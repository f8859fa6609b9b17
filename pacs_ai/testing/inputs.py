"""What a pipeline is tried on where its author gives nothing: a chest phantom or its radiograph, air, and noise."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from pacs_ai.errors import UserError
from pacs_ai.pipeline import Frame, Frames, TimeSeries, Waveform
from pacs_ai.testing.phantom import Phantom
from pacs_ai.testing.samples.ecg import Heart, ecg

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from pacs_ai.pipeline import Array, Card, Derived, Detection, Findings, Given, Input, Map, Volume

_SMALL = Phantom(slices=60, rows=128, columns=128)
#: Bits of the synthetic radiograph's pixels.
_RADIOGRAPH_BITS = 12
#: Pixels of the radiograph per voxel of the phantom.
_ENLARGED = 3


def phantom_inputs(card: Card) -> dict[str, Given]:
    """Return a small chest phantom for each CT input, its radiograph for images, and an ECG for a waveform.

    Raises
    ------
    UserError
        The card wants volumes of another modality.
    """
    given: dict[str, Given] = {}
    volume = _SMALL.volume()
    for name, wanted in card.inputs.items():
        if wanted.given == "frames":
            given[name] = radiographs(volume, wanted)
        elif wanted.given == "waveform":
            given[name] = ecg(Heart(), max(10.0, wanted.min_seconds))
        elif wanted.given == "time-series":
            given[name] = _over_time(volume, wanted)
        elif "CT" in wanted.modality:
            given[name] = volume
        else:
            raise UserError(f"give volumes for {name}: the phantom is a CT")
    return given


def _over_time(volume: Volume, wanted: Input) -> TimeSeries:
    """Return the volume again and again, a second apart, its denser half brightening to the middle and fading."""
    times = max(wanted.min_times, 8, round(wanted.min_seconds) + 1)
    rise = np.hanning(times + 2)[1:-1] * 100
    bright = volume.voxels > -200
    voxels = np.stack([np.where(bright, volume.voxels + np.int16(step), volume.voxels) for step in rise])
    return TimeSeries(voxels, volume.affine, np.arange(times, dtype=np.float64), wanted.modality[0], volume.header)


def radiographs(volume: Volume, wanted: Input) -> Frames:
    """Return as many images as the input needs: the volume seen from the front, dense parts bright, of known scale."""
    seen = volume.voxels.astype(np.float32).mean(axis=1)[::-1]
    scaled = (seen - seen.min()) / max(float(np.ptp(seen)), 1e-6) * (2**_RADIOGRAPH_BITS - 1)
    pixels = np.kron(scaled, np.ones((_ENLARGED, _ENLARGED), np.float32)).astype(np.int16)
    spacing = (volume.spacing[0] / _ENLARGED, volume.spacing[2] / _ENLARGED)
    header = {"BodyPartExamined": "CHEST", "ViewPosition": "AP", "PatientOrientation": "L\\F"}
    images = tuple(Frame(np.roll(pixels, k, axis=1), spacing, header) for k in range(max(1, wanted.min_slices)))
    return Frames(images, wanted.modality[0], header)


def odd_inputs(inputs: Mapping[str, Given]) -> Iterator[tuple[str, dict[str, Given]]]:
    """Yield the inputs with air instead of the patient (black, of images), and with noise."""
    rng = np.random.default_rng(0)

    def air(pixels: Array, lowest: int) -> Array:
        return np.full_like(pixels, lowest)

    def noise(pixels: Array, lowest: int) -> Array:
        highest = 255 if pixels.dtype == np.uint8 else 1000
        return rng.integers(lowest, highest, pixels.shape, dtype=np.int16).astype(pixels.dtype)

    for word, act in (("nothing but air", air), ("nothing but noise", noise)):
        yield word, {name: _changed(given, act) for name, given in inputs.items()}


def _changed(given: Given, act: Callable[[Array, int], Array]) -> Given:
    if isinstance(given, Frames):
        return replace(given, images=tuple(replace(one, pixels=act(one.pixels, 0)) for one in given.images))
    if isinstance(given, Waveform):
        return replace(given, samples=act(given.samples, 0))
    return replace(given, voxels=act(given.voxels, -1000))


def digest_inputs(inputs: Mapping[str, Given]) -> str:
    """Return one SHA-256 (hex) over all pixels and places of the inputs."""
    total = hashlib.sha256()
    for name, given in sorted(inputs.items()):
        total.update(name.encode())
        for array in _arrays(given):
            total.update(np.ascontiguousarray(array).tobytes())
    return total.hexdigest()


def _arrays(given: Given) -> list[Array]:
    if isinstance(given, Frames):
        return [one.pixels for one in given.images]
    if isinstance(given, Waveform):
        return [given.samples]
    times = [given.times_s] if isinstance(given, TimeSeries) else []
    return [given.voxels, given.affine, *times]


def digest_findings(findings: Findings) -> str:
    """Return one SHA-256 (hex) over all that was found."""
    total = hashlib.sha256(repr((findings.grid, findings.measurements, findings.classifications)).encode())
    for segment in findings.segments:
        total.update(f"{segment.label} {segment.number}".encode())
        total.update(np.packbits(segment.mask).tobytes())
    for detection in findings.detections:
        plain = replace(detection, region=None, diameters=None)
        total.update(repr(plain).encode())
        total.update(repr(_places(detection)).encode())
    made: tuple[Map | Derived, ...] = (*findings.maps, *findings.images)
    for one in made:
        total.update(repr(_described(one)).encode())
        total.update(np.ascontiguousarray(one.voxels).tobytes())
    return total.hexdigest()


def _places(detection: Detection) -> list[Any]:
    region, axes = detection.region, detection.diameters
    found: list[Any] = []
    if region is not None:
        found += [region.shape, region.index, np.asarray(region.points).tolist()]
    if axes is not None:
        found += [axes.index, np.asarray(axes.long_axis).tolist(), np.asarray(axes.short_axis).tolist()]
    return found


def _described(one: Map | Derived) -> dict[str, Any]:
    return {name: value for name, value in vars(one).items() if name != "voxels"}
