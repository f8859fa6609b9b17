"""Planes become a regular grid, or are refused with the figures that say why."""

from __future__ import annotations

import math
from itertools import permutations, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import Dataset

from pacs_ai.dicom.geometry import Plane, check_alike, coincident, read_plane, stack
from pacs_ai.errors import Refused

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
UNIT = [tuple(float(s) if i == axis else 0.0 for i in range(3)) for axis in range(3) for s in (1, -1)]
AXIS_ALIGNED = [(*row, *column) for row, column in permutations(UNIT, 2) if abs(np.dot(row, column)) < 0.5]


def planes(places, orientation=AXIAL, spacing=(0.8, 0.7), thickness=2.0):
    """Return planes at these distances along the normal from (10, -20, 30)."""
    normal = np.cross(orientation[:3], orientation[3:])
    return [
        Plane(tuple(np.array([10.0, -20.0, 30.0]) + place * normal), orientation, spacing, thickness)
        for place in places
    ]


def attributes(**changes) -> Dataset:
    ds = Dataset()
    values = {
        "ImagePositionPatient": [1, 2, 3],
        "ImageOrientationPatient": list(AXIAL),
        "PixelSpacing": [0.5, 0.25],
        "SliceThickness": 3,
        **changes,
    }
    for keyword, value in values.items():
        if value is not None:
            setattr(ds, keyword, value)
    return ds


def refusal(act, *args) -> str:
    with pytest.raises(Refused) as raised:
        act(*args)
    return str(raised.value)


def formula(plane: Plane, row: int, column: int) -> np.ndarray:
    """PS3.3 equation C.7.6.2.1-1: i is the column index, j the row index."""
    x, y = np.array(plane.orientation[:3]), np.array(plane.orientation[3:])
    return x * plane.spacing[1] * column + y * plane.spacing[0] * row + np.array(plane.position)


def test_there_are_24_axis_aligned_orientations():
    assert len(set(AXIS_ALIGNED)) == 24


@pytest.mark.parametrize("orientation", AXIS_ALIGNED)
@pytest.mark.parametrize("places", [[0, 2.5, 5, 7.5], [7.5, 5, 2.5, 0], [5, 0, 7.5, 2.5]])
def test_affine_equals_the_standards_formula_for_every_plane(orientation, places):
    given_planes = planes(places, orientation)
    grid = stack(given_planes)
    for k, index in enumerate(grid.order):
        for row, column in product((0, 3), (0, 5)):
            assert np.allclose((grid.affine @ (k, row, column, 1))[:3], formula(given_planes[index], row, column))


@given(
    order=st.permutations(range(7)),
    spacing=st.floats(0.1, 20),
    angles=st.tuples(*[st.floats(-math.pi, math.pi)] * 3),
)
def test_any_order_and_any_oblique_orientation_give_the_same_ascending_right_handed_grid(order, spacing, angles):
    a, b, c = angles
    turn = (
        np.array([[math.cos(a), -math.sin(a), 0], [math.sin(a), math.cos(a), 0], [0, 0, 1]])
        @ np.array([[math.cos(b), 0, math.sin(b)], [0, 1, 0], [-math.sin(b), 0, math.cos(b)]])
        @ np.array([[1, 0, 0], [0, math.cos(c), -math.sin(c)], [0, math.sin(c), math.cos(c)]])
    )
    orientation = (*turn[:, 0].tolist(), *turn[:, 1].tolist())
    grid = stack(planes([spacing * k for k in order], orientation))
    assert [order[i] for i in grid.order] == list(range(7))
    assert np.allclose(grid.affine[:3, 0], turn[:, 2] * spacing)
    assert np.linalg.det(grid.affine[:3, [2, 1, 0]]) > 0
    assert not grid.notes


def test_missing_slices_are_counted_and_placed():
    text = refusal(stack, planes([k * 2.0 for k in range(12) if k not in (5, 6)]))
    assert text == "2 of 12 slices are missing: between z = 38.0 and 44.0 mm"


def test_one_missing_slice_in_a_descending_sagittal_stack():
    orientation = (0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
    text = refusal(stack, planes([9, 8, 7, 5, 4, 3], orientation))
    assert text == "1 of 7 slices is missing: between x = 15.0 and 17.0 mm"


def test_many_gaps_name_three():
    text = refusal(stack, planes([k for k in range(40) if k % 8 != 7]))
    assert text.startswith("4 of 39 slices are missing: between z = 36.0 and 38.0 mm")
    assert text.endswith("and in 1 more gaps")


def test_uneven_spacing_is_told_with_its_range():
    text = refusal(stack, planes([0, 1, 2, 3, 4, 5.5, 6.9]))
    assert text == "the slices are unevenly spaced: 1.00 to 1.50 mm apart, usually 1.00 mm"


def test_two_spacings_in_one_series_are_uneven_not_missing():
    assert "unevenly spaced: 2.50 to 5.00 mm" in refusal(stack, planes([0, 2.5, 5, 7.5, 12.5, 17.5, 22.5]))


def test_positions_rounded_to_a_tenth_are_taken_as_even_with_a_note():
    grid = stack(planes([round(0.625 * k, 1) for k in range(40)]))
    assert grid.affine[2, 0] == pytest.approx(0.625, abs=0.002)
    assert "taken as even" in grid.notes[0]


def test_gantry_tilt_is_refused_with_its_angle():
    tilt = math.radians(18.5)
    orientation = (1.0, 0.0, 0.0, 0.0, math.cos(tilt), -math.sin(tilt))
    tilted = [Plane((0.0, 0.0, 4.0 * k), orientation, (0.5, 0.5), 4.0) for k in range(10)]
    assert refusal(stack, tilted).startswith("the gantry was tilted by 18.5 degrees")


def test_a_table_that_jumps_sideways_is_no_tilt():
    jumped = [Plane((0.0 if k < 5 else 30.0, 0.0, 4.0 * k), AXIAL, (0.5, 0.5), 4.0) for k in range(10)]
    assert "shifted sideways" in refusal(stack, jumped)


def test_drift_below_half_a_pixel_is_rounding():
    drifting = [Plane((0.02 * k, 0.0, 4.0 * k), AXIAL, (0.5, 0.5), 4.0) for k in range(10)]
    assert stack(drifting).order == tuple(range(10))


def test_a_single_slice_takes_its_thickness():
    grid = stack(planes([0], thickness=3.5))
    assert grid.affine[2, 0] == 3.5
    assert "one slice only" in grid.notes[0]


@pytest.mark.parametrize("thickness", [None, 0.0])
def test_a_single_slice_without_thickness_is_refused(thickness):
    assert "no Slice Thickness" in refusal(stack, planes([0], thickness=thickness))


def test_mixed_orientations_are_counted():
    sagittal = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)
    text = refusal(check_alike, [*planes([0, 1, 2]), *planes([0], sagittal)])
    assert text == "the images are not parallel: 3 axial, 1 sagittal, up to 90.0 degrees apart"


def test_a_flipped_image_is_not_parallel_in_the_same_sense():
    flipped = (-1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
    assert "up to 180.0 degrees" in refusal(check_alike, [*planes([0, 1]), *planes([2], flipped)])


def test_mixed_pixel_spacing_is_refused():
    assert "0.7 to 0.9 mm" in refusal(check_alike, [*planes([0, 1]), *planes([2], spacing=(0.9, 0.9))])


def test_coincident_planes_are_grouped_ascending():
    assert coincident(planes([4, 0, 2.001, 2, 4])) == ((1,), (3, 2), (0, 4))


def test_plane_reads_rows_before_columns():
    ds = attributes()
    plane = read_plane(ds, ds, ds)
    assert plane == Plane((1.0, 2.0, 3.0), AXIAL, (0.5, 0.25), 3.0)
    assert np.allclose(stack([plane]).affine[:3, 1:3], [[0, 0.25], [0.5, 0], [0, 0]])


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"ImagePositionPatient": None}, "Image Position (Patient) is missing"),
        ({"ImageOrientationPatient": None}, "Image Orientation (Patient) is missing"),
        ({"PixelSpacing": None}, "Pixel Spacing is missing"),
        ({"PixelSpacing": ""}, "Pixel Spacing is missing"),
        ({"ImagePositionPatient": [1, 2]}, "2 values where 3 belong"),
        ({"PixelSpacing": [0, 0.5]}, "Pixel Spacing is 0 x 0.5 mm"),
        ({"PixelSpacing": [-1, 0.5]}, "Pixel Spacing is -1 x 0.5 mm"),
        ({"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, "unit vectors"),
        ({"ImageOrientationPatient": [0, 0, 0, 0, 0, 0]}, "unit vectors"),
        ({"ImageOrientationPatient": [2, 0, 0, 0, 1, 0]}, "unit vectors"),
    ],
)
def test_impossible_attributes_are_refused_by_name(changes, reason):
    ds = attributes(**changes)
    assert reason in refusal(read_plane, ds, ds, ds)


@pytest.mark.filterwarnings("ignore::UserWarning")  # pydicom says so too
@pytest.mark.parametrize("value", ["nan", "inf", "1e400"])
def test_DAT_14_numbers_that_are_not_finite_are_refused(value):
    ds = attributes()
    ds["ImagePositionPatient"]._value = [1.0, float(value), 3.0]
    assert "not a finite number" in refusal(read_plane, ds, ds, ds)
