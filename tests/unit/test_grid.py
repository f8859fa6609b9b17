from __future__ import annotations

import numpy as np
import pytest

from pacs_ai.errors import Refused
from pacs_ai.models.grid import aligned, linear, nearest, ras_affine, reoriented, same_grid
from pacs_ai.pipeline import Volume

#: An oblique grid with unequal spacing: (slice, row, column) -> LPS.
AFFINE = np.array([[0.1, 0.2, 0.8, -10], [0.3, 0.7, -0.2, -20], [2.0, -0.1, 0.1, 30], [0, 0, 0, 1.0]])


def test_a_voxel_is_at_the_same_place_in_both_conventions():
    left, back, up, _ = AFFINE @ [3, 4, 5, 1]
    assert np.allclose(ras_affine(AFFINE) @ [5, 4, 3, 1], [-left, -back, up, 1])
    assert np.allclose(ras_affine(ras_affine(AFFINE)), AFFINE)


def test_same_grid_is_judged_at_the_corners():
    shape = (300, 512, 512)
    assert same_grid(shape, AFFINE, shape, AFFINE + 1e-9)
    assert not same_grid(shape, AFFINE, (299, 512, 512), AFFINE)
    turned = AFFINE.copy()
    turned[0, 2] += 1e-4  # 0.05 mm at the last column
    assert not same_grid(shape, AFFINE, shape, turned)


@pytest.mark.parametrize("codes", ["LPS", "RAS", "SLA", "PIR"])
def test_reoriented_moves_no_voxel(codes):
    voxels = np.arange(24).reshape(2, 3, 4)
    turned, affine = reoriented(voxels, AFFINE, codes)
    for value in (0, 7, 23):
        here, there = np.argwhere(voxels == value)[0], np.argwhere(turned == value)[0]
        assert np.allclose(AFFINE @ [*here, 1], affine @ [*there, 1])
    back, again = reoriented(turned, affine, AFFINE)
    assert np.array_equal(back, voxels)
    assert np.allclose(again, AFFINE)


def test_nearest_keeps_the_outermost_voxels():
    voxels = np.arange(1, 25, dtype=np.uint8).reshape(2, 3, 4)
    assert np.array_equal(nearest(voxels, AFFINE, voxels.shape, AFFINE + 1e-12), voxels)
    finer = AFFINE @ np.diag([1, 1, 0.5, 1])
    doubled = nearest(voxels, AFFINE, (2, 3, 7), finer)
    assert np.array_equal(doubled[..., ::2], voxels)
    shifted = AFFINE.copy()
    shifted[:3, 3] += AFFINE[:3, 0]
    moved = nearest(voxels, AFFINE, voxels.shape, shifted)
    assert np.array_equal(moved[0], voxels[1])
    assert not moved[1].any()


def test_linear_is_exact_for_a_plane_and_smallest_outside():
    place = np.tensordot(AFFINE, np.concatenate([np.indices((6, 8, 9)), np.ones((1, 6, 8, 9))]), axes=1)
    plane = 2 * place[0] - 3 * place[1] + place[2]
    target = AFFINE @ np.array([[0.7, 0, 0, 1], [0, 0.6, 0, 1.5], [0, 0, 0.9, 0.3], [0, 0, 0, 1]])
    got = linear(plane, AFFINE, (5, 9, 30), target)
    place = np.tensordot(target, np.concatenate([np.indices((5, 9, 30)), np.ones((1, 5, 9, 30))]), axes=1)
    expected = 2 * place[0] - 3 * place[1] + place[2]
    assert np.allclose(got[..., :9], expected[..., :9], atol=1e-3)
    assert np.allclose(got[..., 12:], plane.min())


def test_a_series_on_the_same_grid_is_not_copied():
    volume = Volume(np.zeros((2, 3, 4), np.int16), AFFINE, "MR")
    assert aligned(volume, volume, "t1", "t2") is volume.voxels
    far = AFFINE.copy()
    far[2, 3] += 100
    with pytest.raises(Refused, match="the series t2 and t1 show different places"):
        aligned(Volume(volume.voxels, far, "MR"), volume, "t2", "t1")
