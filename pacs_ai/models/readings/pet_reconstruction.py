"""PET images from sinograms by a network, beside filtered back-projection and OSEM, each with its misfit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pacs_ai.errors import Reason, Refused
from pacs_ai.models.readings.pet_sinogram import SIZE, refiner_input, scale_of
from pacs_ai.models.readings.tomography import scanner
from pacs_ai.pipeline import Card, Code, Derived, Findings, Measurement, Volume

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pacs_ai.models.networks.pet_reconstruction import Refiner
    from pacs_ai.models.package import Package
    from pacs_ai.pipeline import Array

#: Planes that are reconstructed at once.
PLANES = 16
#: Fewest counts in a plane from which a misfit means anything.
LEAST_COUNTS = 1000.0
#: What suits the training slices best: the Hann window of the back-projection; passes and smoothing (pixels) of OSEM.
OF_FBP = 0.5
OF_OSEM, SMOOTHED = 4, 1.2
#: Value of Image Type (0008,0008) by which a sinogram is known.
SINOGRAM = "SINOGRAM"
_RATIO = Code("{ratio}", "UCUM", "ratio")
#: CID 7203 has no derivation for a reconstruction; two are concepts of CID 10033, the network's is this node's own.
NETWORK = Code("PETNET", "99PACSAI", "Reconstruction by a neural network")
BACK_PROJECTION = Code("113962", "DCM", "Filtered Back Projection")
ITERATIVE = Code("113963", "DCM", "Iterative Reconstruction")
#: Title of the derived series, how it was made, and the concept of its misfit.
SERIES = (
    ("Network", NETWORK, Code("MISFITNET", "99PACSAI", "Misfit of the network to the sinograms")),
    ("Filtered back-projection", BACK_PROJECTION, Code("MISFITFBP", "99PACSAI", "Misfit of FBP to the sinograms")),
    ("OSEM", ITERATIVE, Code("MISFITOSEM", "99PACSAI", "Misfit of OSEM to the sinograms")),
)


class PetReconstruction:
    """Reconstructs each plane of ``sinogram`` three times: by the network, by back-projection and by OSEM.

    A sinogram comes as a PET image with SINOGRAM in its Image Type, units CNTS, 180 degrees in its rows. Position,
    orientation, Frame of Reference and Pixel Spacing are those of the image that is to be reconstructed, as wide as
    the sinogram has bins; the derived series therefore lie where the received one says.

    The misfit is the mean over bins of (counts - expected)^2 / expected, expected counts being the projections of the
    result: about 1 where they differ by chance alone. It needs no truth, and shows a network that made things up.

    Parameters
    ----------
    package
        Has no settings.
    """

    def __init__(self, package: Package) -> None:
        self._package = package
        self._network: Refiner | None = None
        self._device = "cpu"

    @property
    def card(self) -> Card:
        """What ``model.toml`` says."""
        return self._package.card

    def prepare(self, device: str) -> None:
        """Load the network onto the device."""
        from pacs_ai.models.networks.pet_reconstruction import Refiner

        network = Refiner()
        network.load_state_dict({name: one.float() for name, one in self._package.tensors().items()})
        self._network, self._device = network.eval().to(device), device

    def run(self, inputs: Mapping[str, Volume]) -> Findings:
        """Return three derived series on the grid of ``sinogram``, and the misfit of each.

        Raises
        ------
        Refused
            Where the series holds no sinograms of the kind that the network knows.
        """
        if self._network is None:
            self.prepare(self._device)
        volume = inputs["sinogram"]
        _check(volume)
        counts = np.asarray(volume.voxels, np.float32)
        made = [np.empty(counts.shape, np.float32) for _ in SERIES]
        for first in range(0, len(counts), PLANES):
            part = slice(first, first + PLANES)
            geometry = scanner(SIZE, SIZE)
            made[0][part] = self._reconstructed(counts[part])
            made[1][part] = np.maximum(geometry.filtered(counts[part], hann=OF_FBP), 0)
            made[2][part] = _smooth(geometry.osem(counts[part], iterations=OF_OSEM))
        misfits = (Measurement(one[2], _misfit(counts, image), _RATIO) for one, image in zip(SERIES, made, strict=True))
        images = (Derived(one[0], one[1], image) for one, image in zip(SERIES, made, strict=True))
        return Findings(measurements=tuple(misfits), images=tuple(images), grid="sinogram")

    def _reconstructed(self, counts: Array) -> Array:
        import torch

        assert self._network is not None
        with torch.inference_mode():
            answer = self._network(torch.from_numpy(refiner_input(counts)).to(self._device))
        image = answer[:, 0].float().cpu().numpy() * scale_of(counts)[:, None, None]
        return np.asarray(image * scanner(SIZE, SIZE).circle)


def _smooth(images: Array) -> Array:
    """Return OSEM's images as they are usually shown: smoothed within their planes."""
    from scipy import ndimage

    return np.asarray(ndimage.gaussian_filter(images, (0, SMOOTHED, SMOOTHED)) * scanner(SIZE, SIZE).circle)


def _check(volume: Volume) -> None:
    """Refuse what is no sinogram, or one of another kind."""
    _, angles, bins = volume.shape
    header = volume.header
    if SINOGRAM not in header.get("ImageType", "").upper().split("\\"):
        raise Refused(f"sinogram is a series of images: its Image Type does not say {SINOGRAM}", Reason.MODALITY)
    if header.get("Units", "") != "CNTS":
        raise Refused("the sinogram is not in counts (Units CNTS): its noise cannot be known", Reason.INTENSITY)
    if (angles, bins) != (SIZE, SIZE):
        words = f"the sinograms have {angles} angles and {bins} bins; the network knows {SIZE} and {SIZE}"
        raise Refused(words, Reason.GEOMETRY)
    stated = (("StartAngle", 0.0), ("ScanArc", 180.0), ("AngularStep", 180.0 / SIZE))
    for keyword, wanted in stated:
        if _is(header.get(keyword, ""), wanted):
            continue
        raise Refused(
            f"the sinogram's {keyword} is {header.get(keyword, 'not stated')}, it should be {wanted:g} degrees",
            Reason.GEOMETRY,
        )
    _, row, column = volume.spacing
    if abs(row - column) > 1e-3:
        words = "the sinogram's Pixel Spacing is not square: bins are as wide as pixels are high"
        raise Refused(words, Reason.GEOMETRY)
    if float(volume.voxels.min()) < 0:
        words = "the sinogram has negative counts: randoms were subtracted, and its noise is no longer Poisson's"
        raise Refused(words, Reason.INTENSITY)


def _is(stated: str, wanted: float) -> bool:
    """Tell whether a header states a number; what is none is another."""
    try:
        return abs(float(stated) - wanted) < 1e-3
    except ValueError:
        return False


def _misfit(counts: Array, images: Array) -> float:
    """Return the mean squared deviation of counts from the images' projections, in units of what chance gives."""
    geometry = scanner(SIZE, SIZE)
    total, bins = 0.0, 0
    for first in range(0, len(counts), PLANES):
        given, image = counts[first : first + PLANES], images[first : first + PLANES]
        enough = given.sum((1, 2)) >= LEAST_COUNTS
        if not enough.any():
            continue
        expected, given = geometry.project(image[enough]), given[enough]
        seen = expected > 1
        total += float((np.square(given - expected)[seen] / expected[seen]).sum(dtype=np.float64))
        bins += int(seen.sum())
    if not bins:
        words = f"no plane of the sinogram has {LEAST_COUNTS:g} counts: there is nothing to reconstruct"
        raise Refused(words, Reason.INTENSITY)
    return total / bins
