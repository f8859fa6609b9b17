"""The projector, its transpose, and what filtered back-projection and OSEM make of sinograms whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest

from pacs_ai.errors import Refused
from pacs_ai.models.readings import pet_reconstruction, pet_sinogram
from pacs_ai.models.readings.tomography import scanner
from pacs_ai.pipeline import Volume

SMALL = scanner(48, 48)


def disc(size: int, row: float, column: float, radius: float) -> np.ndarray:
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    return ((y - row) ** 2 + (x - column) ** 2 < radius**2).astype(np.float32)


def test_projecting_and_back_projecting_are_transposes():
    rng = np.random.default_rng(0)
    image, sinogram = rng.random((1, 48, 48)), rng.random((1, 48, 48))
    assert np.sum(SMALL.project(image) * sinogram) == pytest.approx(
        np.sum(image * SMALL.back_project(sinogram)), rel=1e-4
    )


def test_each_projection_keeps_what_is_in_the_image():
    image = disc(48, 5, -7, 8)[None]
    assert SMALL.project(image).sum(axis=2) == pytest.approx(float(image.sum()), rel=1e-5)


def test_the_first_projection_looks_along_the_columns():
    image = disc(48, 12, -9, 2)[None]
    sinogram = SMALL.project(image)[0]
    assert sinogram[0].argmax() == pytest.approx(23.5 - 9, abs=1)
    assert sinogram[24].argmax() == pytest.approx(23.5 + 12, abs=1), "a quarter turn later, along the rows"


@pytest.mark.parametrize("place", [(0, 0), (10, -6)])
def test_filtered_back_projection_gives_the_values_back(place):
    image = disc(48, *place, 8)[None]
    made = SMALL.filtered(SMALL.project(image))
    inner, outer = disc(48, *place, 6) > 0, (disc(48, *place, 11) == 0) & SMALL.circle
    assert made[0][inner].mean() == pytest.approx(1.0, abs=0.02)
    assert abs(made[0][outer].mean()) < 0.02


def test_a_hann_window_takes_noise_away():
    counts = np.random.default_rng(1).poisson(SMALL.project(disc(48, 0, 0, 18)[None] * 20))
    inner = disc(48, 0, 0, 14) > 0
    assert SMALL.filtered(counts, hann=0.5)[0][inner].std() < 0.7 * SMALL.filtered(counts)[0][inner].std()


def test_osem_gives_the_values_back_and_is_never_negative():
    image = disc(48, 4, 4, 10)[None] + disc(48, 6, 6, 3)[None]
    made = SMALL.osem(SMALL.project(image), subsets=8, iterations=10)
    assert made.min() >= 0
    assert made[0][disc(48, 4, 4, 8) > 0].mean() == pytest.approx(image[0][disc(48, 4, 4, 8) > 0].mean(), rel=0.02)
    assert (made[0][~SMALL.circle] == 0).all()


def test_osem_of_nothing_is_nothing():
    assert SMALL.osem(np.zeros((1, 48, 48))).max() == 0


def test_what_the_network_is_given_hangs_not_on_the_number_of_counts():
    sinogram = SMALL.project(disc(48, 3, 2, 12)[None]) * 50
    few, many = pet_sinogram.refiner_input(sinogram), pet_sinogram.refiner_input(sinogram * 100)
    assert few[:, 0] == pytest.approx(many[:, 0], abs=1e-4)
    assert few[:, 1] == pytest.approx(10 * many[:, 1], rel=1e-3), "its noise does: a tenth for a hundred times as many"


def test_the_stated_noise_is_that_of_filtered_back_projection():
    rng = np.random.default_rng(2)
    clean = SMALL.project(disc(48, 0, 0, 20)[None] * 30)
    made = SMALL.filtered(rng.poisson(np.repeat(clean, 60, axis=0)), hann=pet_sinogram.SHARP)
    stated = (pet_sinogram.refiner_input(clean) * pet_sinogram.scale_of(clean)[:, None, None, None])[0, 1]
    inner = disc(48, 0, 0, 12) > 0
    assert made.std(axis=0)[inner].mean() == pytest.approx(stated[inner].mean(), rel=0.2)


def sinograms(**header: str) -> Volume:
    stated = {"ImageType": "ORIGINAL\\PRIMARY\\SINOGRAM", "Units": "CNTS", "StartAngle": "0", "ScanArc": "180"}
    counts = np.full((2, 128, 128), 5.0, np.float32)
    return Volume(counts, np.eye(4), "PT", {**stated, "AngularStep": "1.40625", **header})


def test_sinograms_as_they_should_be_are_taken():
    pet_reconstruction._check(sinograms())


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ({"ImageType": "ORIGINAL\\PRIMARY"}, "series of images"),
        ({"Units": "BQML"}, "not in counts"),
        ({"ScanArc": "360"}, "ScanArc is 360"),
        ({"ScanArc": "0\\180"}, "ScanArc is 0"),
        ({"StartAngle": ""}, "StartAngle is"),
    ],
)
def test_other_sinograms_are_refused_in_words(header, words):
    with pytest.raises(Refused, match=words):
        pet_reconstruction._check(sinograms(**header))


def test_a_misfit_is_one_for_the_truth_and_larger_for_what_was_made_up():
    geometry = scanner(128, 128)
    image = disc(128, 0, 0, 40)[None] * 3
    counts = np.random.default_rng(4).poisson(geometry.project(image)).astype(np.float32)
    assert pet_reconstruction._misfit(counts, image) == pytest.approx(1.0, abs=0.03)
    invented = image + 9 * disc(128, 20, 10, 5)[None]
    assert pet_reconstruction._misfit(counts, invented) > 1.3
