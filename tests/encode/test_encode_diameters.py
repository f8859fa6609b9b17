"""Diameters are those of the shape, in mm, whatever way it lies and however unequal rows and columns are."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pacs_ai.encode.reports.diameters import diameters, length_mm
from pacs_ai.encode.reports.outline import outline


def closed(points):
    return np.array([*points, points[0]], np.float32)


def lengths(points, spacing=(1.0, 1.0)):
    found = diameters(closed(points), spacing, 3)
    assert found.index == 3
    return length_mm(found.long_axis, spacing), length_mm(found.short_axis, spacing)


def test_a_rhombus_has_its_diagonals():
    assert lengths([(0, 5), (10, 0), (20, 5), (10, 10)]) == pytest.approx((20, 10), abs=1e-3)


def test_spacing_decides_which_axis_is_the_long_one():
    rhombus = [(0, 5), (10, 0), (20, 5), (10, 10)]
    found = diameters(closed(rhombus), (6.0, 1.0), 0)
    assert sorted(found.long_axis[:, 1].tolist()) == [0, 10]
    assert length_mm(found.long_axis, (6.0, 1.0)) == pytest.approx(60)
    assert length_mm(found.short_axis, (6.0, 1.0)) == pytest.approx(20, abs=1e-3)


def test_the_short_axis_stays_inside_a_bent_lesion():
    """A C whose arms are 2 thick: at its middle the widest chord runs through the back, not across the mouth."""
    shape = [(0, 0), (12, 0), (12, 2), (2, 2), (2, 8), (12, 8), (12, 10), (0, 10)]
    found = diameters(closed(shape), (1.0, 1.0), 0)
    middle = found.short_axis.mean(axis=0)
    assert not (2 < middle[0] < 12 and 2 < middle[1] < 8), "the mouth of the C"


def test_nothing_is_measured_of_a_line():
    assert diameters(closed([(0, 0), (5, 5), (10, 10)]), (1.0, 1.0), 0) is None


@settings(deadline=None, max_examples=40)
@given(
    angle=st.floats(0, math.pi),
    long=st.floats(12, 40),
    ratio=st.floats(0.4, 0.9),
    spacing=st.tuples(st.floats(0.5, 2), st.floats(0.5, 2)),
)
def test_an_ellipse_has_its_axes(angle, long, ratio, spacing):
    """Drawn into pixels, cut out again: right to about a pixel, at a right angle in mm."""
    rows, columns = np.mgrid[:160, :160]
    y, x = (rows + 0.5 - 80) * spacing[0], (columns + 0.5 - 80) * spacing[1]
    along, across = x * math.cos(angle) + y * math.sin(angle), -x * math.sin(angle) + y * math.cos(angle)
    mask = (along / (long / 2)) ** 2 + (across / (long * ratio / 2)) ** 2 <= 1
    found = diameters(outline(mask), spacing, 0)
    assert length_mm(found.long_axis, spacing) == pytest.approx(long, abs=1.5 * max(spacing))
    assert length_mm(found.short_axis, spacing) == pytest.approx(long * ratio, abs=2.5 * max(spacing))
    first, second = ((axis[1] - axis[0]) * np.array(spacing[::-1]) for axis in (found.long_axis, found.short_axis))
    assert abs(first @ second) < 1e-3 * np.linalg.norm(first) * np.linalg.norm(second) + 1e-2


def test_a_large_outline_is_measured_at_once():
    turn = np.linspace(0, 2 * np.pi, 8000, endpoint=False)
    wavy = 100 + 3 * np.sin(40 * turn)
    long, short = lengths(np.stack([200 + wavy * np.cos(turn), 200 + wavy * np.sin(turn)], axis=1))
    assert 200 < short <= long < 207
