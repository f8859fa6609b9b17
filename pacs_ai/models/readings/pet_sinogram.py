"""What the PET reconstruction's network is given of a sinogram, and in which units its images are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pacs_ai.models.readings.tomography import scanner

if TYPE_CHECKING:
    from pacs_ai.pipeline import Array

#: Angles, bins, rows and columns of what the network was trained on.
SIZE = 128
#: Cut-off of the Hann window that the refined back-projection is filtered with, and of the one that gives the scale.
SHARP, SOFT = 1.0, 0.4
#: Sum of the squares of the sharp filter's values in space: how noise comes through it.
_NOISE_GAIN = 0.0075
_LEAST = np.float32(1e-6)


def scale_of(sinograms: Array) -> Array:
    """Return (planes,) float32: the brightness of each plane, by which the network's input and output are divided."""
    soft = scanner(sinograms.shape[2], sinograms.shape[1]).filtered(sinograms, hann=SOFT)
    return np.maximum(np.percentile(soft, 99.5, axis=(1, 2)).astype(np.float32), _LEAST)


def refiner_input(sinograms: Array) -> Array:
    """Return (planes, 2, size, size) float32: the filtered back-projection, and the noise that Poisson gives it.

    Parameters
    ----------
    sinograms
        (planes, angles, bins) counts.
    """
    geometry = scanner(sinograms.shape[2], sinograms.shape[1])
    scale = scale_of(sinograms)[:, None, None]
    sharp = geometry.filtered(sinograms, hann=SHARP)
    noise = np.sqrt(np.maximum(geometry.back_project(sinograms), 0) * np.float32(_NOISE_GAIN))
    noise *= np.float32(np.pi / geometry.angles)
    return np.stack([sharp / scale, noise / scale], axis=1)
