"""Parallel-beam tomography in a plane: sinograms from images, and back by filtered back-projection or OSEM.

Angles are k * 180 / `angles` degrees, k from 0; at 0 a projection is the sum of each column.
The bins of a projection are as wide as a pixel, and their centre is the image's. Not modelled: attenuation, scatter,
randoms, the size of the detectors.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

import numpy as np
import scipy.fft
import scipy.sparse

if TYPE_CHECKING:
    from pacs_ai.pipeline import Array

#: Stands for zero where something is divided.
_TINY = np.float32(1e-9)


@dataclass(frozen=True)
class Scanner:
    """The geometry of the sinograms of square images.

    Parameters
    ----------
    size
        Rows and columns of the image, and bins of a projection.
    angles
        Projections over 180 degrees.
    """

    size: int
    angles: int

    @cached_property
    def matrix(self) -> scipy.sparse.csr_matrix:
        """(angles * bins, pixels) float32: each pixel within the field's circle is shared by its two nearest bins."""
        centre = (self.size - 1) / 2
        row, column = (axis.ravel() - centre for axis in np.mgrid[: self.size, : self.size].astype(np.float64))
        seen = np.flatnonzero(np.hypot(row, column) <= centre)
        parts = []
        for k, angle in enumerate(np.arange(self.angles) * np.pi / self.angles):
            place = column[seen] * np.cos(angle) + row[seen] * np.sin(angle) + centre
            low = np.clip(np.floor(place).astype(np.int64), 0, self.size - 2)
            share = place - low
            for bins, weight in ((low, 1 - share), (low + 1, share)):
                parts.append((k * self.size + bins, seen, weight.astype(np.float32)))
        rows, columns, weights = (np.concatenate(one) for one in zip(*parts, strict=True))
        shape = (self.angles * self.size, self.size**2)
        return scipy.sparse.csr_matrix((weights, (rows, columns)), shape=shape)

    @cached_property
    def _transposed(self) -> scipy.sparse.csr_matrix:
        return self.matrix.T.tocsr()

    @cached_property
    def circle(self) -> Array:
        """(size, size) bool: the pixels that every projection sees."""
        centre = (self.size - 1) / 2
        row, column = np.mgrid[: self.size, : self.size] - centre
        return np.asarray(np.hypot(row, column) <= centre)

    def project(self, images: Array) -> Array:
        """Return the sinograms (planes, angles, bins) float32 of images (planes, size, size): sums along lines."""
        flat = np.asarray(images, np.float32).reshape(len(images), -1)
        return np.asarray((self.matrix @ flat.T).T).reshape(len(images), self.angles, self.size)

    def back_project(self, sinograms: Array) -> Array:
        """Return the transpose of `project`: (planes, angles, bins) -> (planes, size, size) float32."""
        flat = np.asarray(sinograms, np.float32).reshape(len(sinograms), -1)
        return np.asarray((self._transposed @ flat.T).T).reshape(len(sinograms), self.size, self.size)

    def filtered(self, sinograms: Array, *, hann: float | None = None) -> Array:
        """Return the filtered back-projection (Kak and Slaney, Computerized Tomographic Imaging, 1988, 3.3).

        Parameters
        ----------
        sinograms
            (planes, angles, bins).
        hann
            Cut-off of a Hann window on the ramp as a part of the Nyquist frequency; None: the bare ramp.

        Returns
        -------
        Array
            (planes, size, size) float32; may be negative.
        """
        length = 2 * scipy.fft.next_fast_len(self.size)
        ramp = _ramp(length)
        if hann is not None:
            frequency = scipy.fft.rfftfreq(length) / (0.5 * hann)
            ramp = ramp * np.where(frequency < 1, 0.5 + 0.5 * np.cos(np.pi * frequency), 0)
        spectrum = scipy.fft.rfft(np.asarray(sinograms, np.float32), length, axis=-1)
        sharpened = scipy.fft.irfft(spectrum * ramp.astype(np.float32), length, axis=-1)[..., : self.size]
        return self.back_project(sharpened) * np.float32(np.pi / self.angles)

    def osem(self, sinograms: Array, *, subsets: int = 8, iterations: int = 4) -> Array:
        """Return what OSEM gives, ordered-subsets expectation maximisation (Hudson and Larkin, IEEE TMI 13, 1994).

        Parameters
        ----------
        sinograms
            (planes, angles, bins), counts.
        subsets
            A divisor of `angles`.
        iterations
            Passes over all subsets.

        Returns
        -------
        Array
            (planes, size, size) float32, not negative; 0 outside of the circle.
        """
        counts = np.asarray(sinograms, np.float32)
        flat = np.ascontiguousarray(counts.reshape(len(counts), -1).T)
        image = np.repeat(self.circle.reshape(-1, 1), len(counts), axis=1) * np.float32(1)
        image *= flat.sum(axis=0) / self.angles / self.circle.sum()
        rows = np.arange(self.angles * self.size).reshape(self.angles, self.size)
        parts = [rows[first::subsets].ravel() for first in range(subsets)]
        operators = [(part, self.matrix[part], self.matrix[part].T.tocsr()) for part in parts]
        for _ in range(iterations):
            for part, forward, backward in operators:
                ratio = flat[part] / np.maximum(forward @ image, _TINY)
                weight = np.asarray(backward.sum(axis=1), np.float32)
                image *= (backward @ ratio) / np.maximum(weight, _TINY)
        return np.asarray(image.T).reshape(len(counts), self.size, self.size)


@lru_cache(maxsize=4)
def scanner(size: int, angles: int) -> Scanner:
    """Return the scanner of that geometry, with the matrices that it has made so far."""
    return Scanner(size, angles)


def _ramp(length: int) -> Array:
    """Return the ramp filter at the frequencies of `rfft`, made in space, so that its mean is right (ibid., 3.3)."""
    index = np.concatenate([np.arange(length // 2 + 1), np.arange(length // 2 - 1, 0, -1)])
    kernel = np.zeros(length)
    kernel[0] = 0.25
    odd = index % 2 == 1
    kernel[odd] = -1 / (np.pi * index[odd]) ** 2
    return np.asarray(2 * scipy.fft.rfft(kernel).real) / 2
