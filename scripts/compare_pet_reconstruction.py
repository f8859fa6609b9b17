"""Compare the trained PET reconstruction with filtered back-projection and OSEM, slice by slice.

    python scripts/compare_pet_reconstruction.py --to FOLDER

FOLDER is that of `train_pet_reconstruction.py`. Windows and smoothing of the two classical methods are chosen by the
best PSNR on slices of the training set, so that they are not made to lose. Printed are the mean of each figure over the
slices with the 95 % interval of a bootstrap over them. They are slices of one patient and of one phantom: the intervals
say nothing of other patients.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage
from train_pet_reconstruction import network, noisy

from pacs_ai.models.readings.pet_sinogram import SIZE, refiner_input, scale_of
from pacs_ai.models.readings.tomography import scanner
from pacs_ai.pipeline import Array

#: Coincidences in a plane.
COUNTS = (1e5, 3e5, 1e6)
#: Slices of the training set by which the classical methods are tuned, at the middle number of coincidences.
TUNED_ON = 24
HANN = (0.3, 0.4, 0.5, 0.6, 0.8, 1.0)
ITERATIONS, SIGMA = (1, 2, 4), (0.0, 0.6, 0.9, 1.2, 1.5)
Method = Callable[[Array], Array]


def psnr(image: Array, truth: Array) -> float:
    """Return the peak signal-to-noise ratio in dB, the peak being the largest value of the truth."""
    seen = scanner(SIZE, SIZE).circle
    return float(10 * np.log10(truth.max() ** 2 / np.mean((image - truth)[seen] ** 2)))


def ssim(image: Array, truth: Array) -> float:
    """Return the structural similarity (Wang et al., IEEE TIP 13, 2004) in windows of 7 x 7, mean over the field."""
    first, second = 0.01 * truth.max(), 0.03 * truth.max()

    def mean(values: Array) -> Array:
        return np.asarray(ndimage.uniform_filter(values.astype(np.float64), 7))

    a, b = mean(image), mean(truth)
    aa, bb, ab = mean(image * image) - a * a, mean(truth * truth) - b * b, mean(image * truth) - a * b
    found = (2 * a * b + first**2) * (2 * ab + second**2) / ((a * a + b * b + first**2) * (aa + bb + second**2))
    return float(found[scanner(SIZE, SIZE).circle].mean())


def bias(image: Array, truth: Array) -> float:
    """Return by how much, in per cent, the mean of the truth's brightest fiftieth is wrong."""
    hot = truth >= np.percentile(truth[scanner(SIZE, SIZE).circle], 98)
    return float(100 * (image[hot].mean() / truth[hot].mean() - 1))


def by_network(to: Path) -> Method:
    """Return the trained network as a method."""
    model = network()
    model.load_state_dict(torch.load(to / "refiner.pt", weights_only=True)["model"])
    model.eval()

    def method(sinograms: Array) -> Array:
        with torch.inference_mode():
            made = model(torch.from_numpy(refiner_input(sinograms)))[:, 0].numpy() * scale_of(sinograms)[:, None, None]
        return np.asarray(made * scanner(SIZE, SIZE).circle)

    return method


def by_fbp(hann: float) -> Method:
    """Return filtered back-projection with that cut-off."""
    return lambda sinograms: np.maximum(scanner(SIZE, SIZE).filtered(sinograms, hann=hann), 0)


def by_osem(iterations: int, sigma: float) -> Method:
    """Return OSEM of 8 subsets with Gaussian smoothing by so many pixels."""
    return lambda sinograms: np.asarray(
        ndimage.gaussian_filter(scanner(SIZE, SIZE).osem(sinograms, iterations=iterations), (0, sigma, sigma))
    )


def tuned(to: Path) -> dict[str, Method]:
    """Return the classical methods with what suits the training slices best."""
    images = np.load(to / "train.npy")
    chosen = images[:: len(images) // TUNED_ON][:TUNED_ON]
    sinograms, truth = noisy(chosen, np.full(len(chosen), COUNTS[1]), np.random.default_rng(1))

    def well(method: Method) -> float:
        return float(np.mean([psnr(a, b) for a, b in zip(method(sinograms), truth, strict=True)]))

    hann = max(HANN, key=lambda one: well(by_fbp(one)))
    osem = max(itertools.product(ITERATIONS, SIGMA), key=lambda one: well(by_osem(*one)))
    print(f"FBP: Hann window at {hann} of Nyquist; OSEM: {osem[0]} iterations of 8 subsets, sigma {osem[1]} pixels")
    return {"FBP": by_fbp(hann), "OSEM": by_osem(*osem)}


def interval(values: Array) -> tuple[float, float, float]:
    """Return the mean and its 95 % interval by a bootstrap."""
    rng = np.random.default_rng(2)
    means = np.mean(values[rng.integers(0, len(values), (2000, len(values)))], axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(values.mean()), float(low), float(high)


def main() -> None:
    """Print the table, and write it into the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=Path, required=True)
    parser.add_argument("--every", type=int, default=1, help="take only every so many slices")
    parser.add_argument("--counts", type=float, nargs="+", default=COUNTS)
    wanted = parser.parse_args()
    to = wanted.to
    methods = {"network": by_network(to), **tuned(to)}
    table = []
    for name, counts in itertools.product(("patient", "phantom"), wanted.counts):
        images = np.load(to / f"{name}.npy")[:: wanted.every]
        sinograms, truth = noisy(images, np.full(len(images), counts), np.random.default_rng(3))
        for method, act in methods.items():
            made = act(sinograms)
            for figure, measure in (("PSNR", psnr), ("SSIM", ssim), ("bias", bias)):
                values = np.array([measure(a, b) for a, b in zip(made, truth, strict=True)])
                row = (name, len(images), counts, method, figure, *interval(values))
                table.append(row)
                print("{} ({} slices) {:.0e} {} {} {:.3f} [{:.3f}, {:.3f}]".format(*row), flush=True)
    (to / f"comparison-{wanted.counts[0]:.0e}.json").write_text(json.dumps(table, indent=1))


if __name__ == "__main__":
    main()
