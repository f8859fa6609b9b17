"""A head on the models' grid lies where nibabel puts it; labels come back by the heaviest of their neighbours."""

from __future__ import annotations

import itertools

import nibabel
import nibabel.processing
import numpy as np
import pytest
import scipy.ndimage

from pacs_ai.errors import Refused
from pacs_ai.models.readings import conform
from pacs_ai.models.readings.conform import conformed_affine, labels_on
from pacs_ai.pipeline import Volume

SIDE = 72
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    """A smaller grid than the models', for speed; its size is in no formula."""
    monkeypatch.setattr(conform, "SIDE", SIDE)


def cloud(shape, seed=0):
    rough = scipy.ndimage.gaussian_filter(np.random.default_rng(seed).random(shape), 2)
    return (1000 * (rough - rough.min()) / np.ptp(rough)).astype(np.float32)


def oblique(spacing, degrees):
    angle = np.deg2rad(degrees)
    turn = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    # slices to the head, rows to the back, columns to the left
    axes = np.array([[0, 0, 1], [0, 1, 0], [1, 0, 0]], float)
    affine = np.eye(4)
    affine[:3, :3] = turn @ axes * spacing
    affine[:3, 3] = [-30, -25, -20]
    return affine


def test_the_grid_is_nibabels_for_an_upright_series_of_one_millimetre():
    voxels, affine = cloud((40, 50, 60)), oblique((1, 1, 1), 0)
    image = nibabel.Nifti1Image(voxels, LPS @ affine)
    theirs = nibabel.processing.conform(image, (SIDE,) * 3, (1, 1, 1), order=1, orientation="LIA")
    assert np.allclose(LPS @ conformed_affine(voxels.shape, affine), theirs.affine @ shift_of(theirs, voxels, affine))
    ours = conform.conform(Volume(voxels, affine, "MR"))
    assert np.array_equal(ours.affine, conformed_affine(voxels.shape, affine))
    assert nibabel.aff2axcodes(LPS @ ours.affine) == ("L", "I", "A")


def shift_of(theirs, voxels, affine):
    """Between the two conventions of what is the middle of an even number of voxels: whole voxels."""
    between = np.linalg.inv(theirs.affine) @ LPS @ conformed_affine(voxels.shape, affine)
    assert np.allclose(between, np.rint(between))
    assert np.abs(between[:3, 3]).max() <= 1
    return between


@pytest.mark.parametrize(("spacing", "degrees"), [((1.2, 0.86, 0.9), 15), ((2.0, 1.0, 1.0), 0), ((1, 1, 1), -30)])
def test_intensities_are_those_that_nibabel_resamples(spacing, degrees):
    voxels, affine = cloud((40, 50, 60)), oblique(spacing, degrees)
    ours = conform.conform(Volume(voxels, affine, "MR"))
    image = nibabel.Nifti1Image(voxels, LPS @ affine)
    theirs = nibabel.processing.resample_from_to(image, ((SIDE,) * 3, LPS @ ours.affine), order=1).get_fdata()
    inside = theirs > 1
    top = np.quantile(theirs[inside], 0.999)
    expected = np.clip(255 * theirs[inside] / top, 0, 255)
    assert np.abs(ours.voxels[inside] - expected).mean() < 1.0
    assert np.corrcoef(ours.voxels[inside], expected)[0, 1] > 0.999


def test_a_blank_series_is_refused():
    with pytest.raises(Refused, match="one value"):
        conform.conform(Volume(np.full((20, 20, 20), 7, np.int16), np.eye(4), "MR"))


@pytest.mark.parametrize("degrees", [0, 20])
def test_labels_are_the_arg_max_of_the_linear_indicators(degrees, monkeypatch):
    monkeypatch.setattr(conform, "SLAB_VOXELS", 500)
    shape, affine = (14, 16, 18), oblique((1.3, 0.8, 1.1), degrees)
    small = np.random.default_rng(1).integers(0, 5, (24, 24, 24)).astype(np.uint8)
    grid = np.eye(4)
    grid[:3, :3] *= 1.5
    grid[:3, 3] = [-32, -27, -22]
    found = labels_on(small, grid, shape, affine)
    turn = np.linalg.inv(grid) @ affine
    votes = np.stack(
        [
            scipy.ndimage.affine_transform(
                (small == one).astype(float),
                turn[:3, :3],
                turn[:3, 3],
                output_shape=shape,
                order=1,
                mode="grid-constant",
            )
            for one in range(5)
        ]
    )
    # what reaches over the edge of the grid is background there
    votes[0] += 1 - votes.sum(0)
    best = np.sort(votes, axis=0)
    clear = best[-1] - best[-2] > 1e-4
    assert clear.mean() > 0.9
    assert np.array_equal(found[clear], votes.argmax(0)[clear])


def test_outside_of_the_grid_there_is_no_label():
    labels = np.ones((8, 8, 8), np.uint8)
    far = np.eye(4)
    far[:3, 3] = 100
    assert not labels_on(labels, np.eye(4), (5, 5, 5), far).any()


def test_every_orientation_comes_back_where_it_was():
    voxels = cloud((30, 32, 34))
    expected = np.rint(np.clip(voxels * 255 / np.quantile(voxels[voxels > 0], 0.999), 0, 255)) // 64
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1, -1), repeat=3):
            affine = np.eye(4)
            affine[:3, :3] = np.eye(3)[:, order] * signs
            head = conform.conform(Volume(voxels, affine, "MR"))
            back = labels_on((head.voxels // 64).astype(np.uint8), head.affine, voxels.shape, affine)
            assert (back == expected).mean() > 0.97, (order, signs)
