"""The ellipse fit: exact on exact points, close on noisy ones, silent where there is no ellipse."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import ellipe

from pacs_ai.models.readings.ellipse import Ellipse, fit_ellipse, overlap

ELLIPSES = st.builds(
    lambda x, y, long, ratio, angle: Ellipse((x, y), long, long * ratio, angle),
    st.floats(-500, 2000),
    st.floats(-500, 2000),
    st.floats(1, 900),
    st.floats(0.3, 0.98),
    st.floats(-1.5, 1.5),
)


@given(ELLIPSES)
@settings(max_examples=60, deadline=None)
def test_points_of_an_ellipse_give_it_back(ellipse):
    found = fit_ellipse(ellipse.outline(50))
    assert found is not None
    assert found.centre == pytest.approx(ellipse.centre, abs=1e-3 * ellipse.long)
    assert (found.long, found.short) == pytest.approx((ellipse.long, ellipse.short), rel=1e-4)
    assert math.cos(2 * (found.angle - ellipse.angle)) == pytest.approx(1, abs=1e-4)
    assert found.ends == pytest.approx(_either_way(found.ends, ellipse.ends), abs=2e-3 * ellipse.long)


def _either_way(found, ends):
    """Return the ends in the order in which `found` has them: an axis has no direction."""
    pairs = [ends[[0, 1]], ends[[2, 3]]]
    pairs = [pair if np.linalg.norm(pair[0] - one[0]) < np.linalg.norm(pair[0] - one[1]) else pair[::-1]
             for pair, one in zip(pairs, (found[:2], found[2:]), strict=True)]  # fmt: skip
    return np.concatenate(pairs)


@given(ELLIPSES)
@settings(max_examples=60, deadline=None)
def test_the_circumference_is_the_elliptic_integral(ellipse):
    exact = 4 * ellipse.long * ellipe(1 - (ellipse.short / ellipse.long) ** 2)
    assert ellipse.circumference == pytest.approx(exact, rel=3e-5)


def test_half_an_outline_with_noise_still_gives_the_circumference():
    truth = Ellipse((320, 240), 150, 115, 0.3)
    noisy = truth.outline(360)[:220] + np.random.default_rng(5).normal(0, 1, (220, 2))
    found = fit_ellipse(noisy)
    assert found is not None
    assert found.circumference == pytest.approx(truth.circumference, rel=0.02)


@pytest.mark.parametrize(
    "points",
    [
        np.zeros((0, 2)),
        np.ones((20, 2)),
        np.stack([np.arange(20), 2 * np.arange(20)], axis=1),
        Ellipse((0, 0), 2, 1, 0).outline(5),
    ],
    ids=["none", "one place", "a line", "five points"],
)
def test_what_is_no_ellipse_gives_none(points):
    assert fit_ellipse(points) is None


def test_the_mask_has_the_area_and_lies_where_the_ellipse_is():
    ellipse = Ellipse((70.5, 40.5), 30, 20, 0.5)
    mask = ellipse.mask(90, 140)
    assert mask.sum() == pytest.approx(ellipse.area, rel=0.01)
    rows, columns = np.nonzero(mask)
    assert (columns.mean() + 0.5, rows.mean() + 0.5) == pytest.approx(ellipse.centre, abs=0.1)
    assert overlap(ellipse, ellipse, (90, 140)) == 1
    assert overlap(ellipse, Ellipse((500, 500), 5, 5, 0), (90, 140)) == 0
