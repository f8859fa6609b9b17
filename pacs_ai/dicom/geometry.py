"""Where the images of a series lie in the patient: their planes, their order, the regular grid, or why there is none.

Everything here is arithmetic on Image Plane attributes (PS3.3 C.7.6.2, C.7.6.16.2.3 to 4); no pixel is touched.
Lengths are mm, positions are in the patient's LPS system (+x to the left, +y to the back, +z to the head).
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from pydicom.datadict import dictionary_description

from pacs_ai.dicom.reading import read_value
from pacs_ai.errors import Reason, Refused

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydicom import Dataset

Floats = npt.NDArray[np.float64]

#: Direction cosines of length 1 and at right angles to within this: scanners that write three decimals are inside.
UNIT_TOLERANCE = 5e-3
#: Direction cosines of two images of one stack: 0.06 degrees, 0.4 mm over a field of 400 mm, half a pixel of a CT.
ORIENTATION_TOLERANCE = 1e-3
#: Pixel Spacing of two images of one stack, relative: half a pixel over 512 columns.
PIXEL_SPACING_TOLERANCE = 1e-3
#: Nearer than this, in mm, two images lie at one position: positions are written to a thousandth at best.
SAME_POSITION_MM = 0.01
#: A slice lies off its place on the even grid by at most this part of the slice spacing. Real series deviate by
#: a thousandth; positions written to 0.1 mm deviate by 8 % of a spacing of 0.625 mm. A missing slice is 100 %.
UNEVEN_TOLERANCE = 0.1
#: Above this part of the slice spacing a deviation is told in a note.
NOTED_DEVIATION = 0.01
#: Sideways drift over the whole stack in pixels: under half a pixel no voxel changes its place.
DRIFT_PIXELS = 0.5
#: How many gaps a message names one by one.
NAMED_GAPS = 3


@dataclass(frozen=True)
class Plane:
    """One image plane.

    Parameters
    ----------
    position
        Image Position (Patient): centre of the first voxel, (x, y, z) in mm.
    orientation
        Image Orientation (Patient): unit vectors of a row (column index rising) and of a column (row index rising).
    spacing
        Pixel Spacing in mm: between the centres of neighbouring rows, then columns.
    thickness
        Slice Thickness in mm, None where absent.
    """

    position: tuple[float, ...]
    orientation: tuple[float, ...]
    spacing: tuple[float, ...]
    thickness: float | None = None

    @property
    def normal(self) -> Floats:
        """(3,) unit vector: row direction x column direction, right-handed."""
        vector = np.cross(self.orientation[:3], self.orientation[3:])
        return np.asarray(vector / np.linalg.norm(vector))

    @property
    def axis(self) -> int:
        """The patient axis nearest to the normal: 0, 1, 2 for x, y, z."""
        return int(np.argmax(np.abs(self.normal)))

    @property
    def place(self) -> str:
        """Position on the axis nearest to the normal, in words: ``z = 40.0 mm`` for an axial image."""
        return f"{'xyz'[self.axis]} = {self.position[self.axis]:.1f} mm"

    @property
    def view(self) -> str:
        """The nearest of ``sagittal``, ``coronal`` and ``axial``."""
        return ("sagittal", "coronal", "axial")[self.axis]


@dataclass(frozen=True)
class Stack:
    """A regular grid made of planes.

    Parameters
    ----------
    order
        Indices of the planes, ascending along the normal.
    affine
        (4, 4): (slice, row, column, 1) -> (x, y, z, 1) in mm; the three axes at right angles.
    notes
        What was tolerated, in words.
    """

    order: tuple[int, ...]
    affine: Floats
    notes: tuple[str, ...] = ()


def read_numbers(ds: Dataset, keyword: str, count: int) -> tuple[float, ...]:
    """Return `count` finite numbers of an attribute.

    Raises
    ------
    Refused
        Where the attribute is absent, empty, of another number of values, or holds no finite number.
    """
    name = dictionary_description(keyword)
    value = read_value(ds, keyword)
    if value is None or value == "" or (not isinstance(value, str) and np.size(value) == 0):
        raise Refused(f"{name} is missing", Reason.GEOMETRY)
    try:
        numbers = tuple(float(each) for each in np.atleast_1d(value))
    except (TypeError, ValueError, OverflowError) as fault:
        raise Refused(f"{name} is not a number", Reason.GEOMETRY) from fault
    if len(numbers) != count:
        raise Refused(f"{name} has {len(numbers)} values where {count} belong", Reason.GEOMETRY)
    if not all(map(math.isfinite, numbers)):
        raise Refused(f"{name} is not a finite number", Reason.GEOMETRY)
    return numbers


def read_plane(position: Dataset, orientation: Dataset, measures: Dataset) -> Plane:
    """Read one plane; the three data sets are one in a single-frame image, three functional group items otherwise.

    Raises
    ------
    Refused
        Where an attribute is missing or impossible.
    """
    row_column = read_numbers(orientation, "ImageOrientationPatient", 6)
    spacing = read_numbers(measures, "PixelSpacing", 2)
    if min(spacing) <= 0:
        raise Refused(f"Pixel Spacing is {spacing[0]:g} x {spacing[1]:g} mm", Reason.GEOMETRY)
    has_thickness = read_value(measures, "SliceThickness") not in (None, "")
    thickness = read_numbers(measures, "SliceThickness", 1)[0] if has_thickness else None
    place = read_numbers(position, "ImagePositionPatient", 3)
    return Plane(place, _unit_vectors(row_column), spacing, thickness)


def _unit_vectors(cosines: tuple[float, ...]) -> tuple[float, ...]:
    row, column = np.array(cosines[:3]), np.array(cosines[3:])
    lengths = float(np.linalg.norm(row)), float(np.linalg.norm(column))
    if max(abs(length - 1) for length in lengths) > UNIT_TOLERANCE or abs(float(row @ column)) > UNIT_TOLERANCE:
        raise Refused("Image Orientation (Patient) does not hold two unit vectors at right angles", Reason.GEOMETRY)
    row = row / lengths[0]
    column = column - (column @ row) * row
    return (*row.tolist(), *(column / np.linalg.norm(column)).tolist())


def distances(planes: Sequence[Plane]) -> Floats:
    """Return (n,) the distance of each plane along the normal of the first, in mm."""
    return np.array([plane.position for plane in planes]) @ planes[0].normal


def check_alike(planes: Sequence[Plane]) -> None:
    """Check that all planes have one orientation and one pixel spacing.

    Raises
    ------
    Refused
        With the counts of each orientation or spacing.
    """
    orientations = np.array([plane.orientation for plane in planes])
    if np.ptp(orientations, axis=0).max() > ORIENTATION_TOLERANCE:
        views = Counter(plane.view for plane in planes)
        apart = _degrees_apart(planes)
        kinds = ", ".join(f"{count} {view}" for view, count in sorted(views.items()))
        raise Refused(f"the images are not parallel: {kinds}, up to {apart:.1f} degrees apart", Reason.GEOMETRY)
    spacings = np.array([plane.spacing for plane in planes])
    if np.any(np.ptp(spacings, axis=0) > PIXEL_SPACING_TOLERANCE * spacings.min(axis=0)):
        raise Refused(
            f"Pixel Spacing varies within the series: {spacings.min():g} to {spacings.max():g} mm", Reason.GEOMETRY
        )


def _degrees_apart(planes: Sequence[Plane]) -> float:
    """Return the largest angle to the first plane; within one plane, by which its rows or columns are turned."""
    normals = np.array([plane.normal for plane in planes]) @ planes[0].normal
    between = math.degrees(math.acos(min(1.0, float(np.abs(normals).min()))))
    if between > math.degrees(ORIENTATION_TOLERANCE):
        return between
    frames = np.array([plane.orientation for plane in planes]).reshape(-1, 2, 3)
    return math.degrees(math.acos(float(np.clip(np.sum(frames * frames[0], axis=2).min(), -1, 1))))


def coincident(planes: Sequence[Plane]) -> tuple[tuple[int, ...], ...]:
    """Return the planes' indices in groups of one distance along the normal, ascending; most hold one plane."""
    along = distances(planes)
    order = np.argsort(along, kind="stable")
    breaks = np.flatnonzero(np.diff(along[order]) > SAME_POSITION_MM) + 1
    return tuple(tuple(int(i) for i in group) for group in np.split(order, breaks))


def stack(planes: Sequence[Plane]) -> Stack:
    """Return the regular grid of parallel planes, no two of them at one position.

    Raises
    ------
    Refused
        Missing slices, uneven spacing, gantry tilt, a single slice without thickness: each with its figures.
    """
    check_alike(planes)
    along = distances(planes)
    order = np.argsort(along, kind="stable")
    ordered = [planes[i] for i in order]
    indices = tuple(int(i) for i in order)
    if len(planes) == 1:
        thickness = _thickness(planes[0])
        note = f"there is one slice only; its thickness of {thickness:g} mm stands for the slice spacing"
        return Stack(indices, _affine(ordered[0], thickness), (note,))
    _check_straight(ordered)
    spacing, notes = _slice_spacing(ordered, along[order])
    return Stack(indices, _affine(ordered[0], spacing), notes)


def _thickness(plane: Plane) -> float:
    if plane.thickness is None or not plane.thickness > 0:
        raise Refused("there is a single slice, and no Slice Thickness says how thick it is", Reason.GEOMETRY)
    return plane.thickness


def _affine(first: Plane, slice_spacing: float) -> Floats:
    """PS3.3 equation C.7.6.2.1-1 with a third axis along the normal; columns in the order slice, row, column."""
    affine = np.eye(4)
    affine[:3, 0] = first.normal * slice_spacing
    affine[:3, 1] = np.array(first.orientation[3:]) * first.spacing[0]
    affine[:3, 2] = np.array(first.orientation[:3]) * first.spacing[1]
    affine[:3, 3] = first.position
    return affine


def _check_straight(planes: Sequence[Plane]) -> None:
    """Refuse stacks whose slices move sideways: gantry tilt (a shear) or table movement."""
    offsets = np.array([plane.position for plane in planes]) - planes[0].position
    normal = planes[0].normal
    along = offsets @ normal
    sideways = offsets - np.outer(along, normal)
    drift = float(np.linalg.norm(sideways, axis=1).max())
    allowed = DRIFT_PIXELS * min(planes[0].spacing)
    if drift <= allowed:
        return
    shear = (along @ sideways) / (along @ along)
    rest = float(np.linalg.norm(sideways - np.outer(along, shear), axis=1).max())
    if rest <= allowed:
        angle = math.degrees(math.atan(float(np.linalg.norm(shear))))
        raise Refused(
            f"the gantry was tilted by {angle:.1f} degrees: the slices are shifted against each other "
            f"by up to {drift:.1f} mm and form no rectangular grid",
            Reason.TILT,
        )
    raise Refused(f"the slices are shifted sideways against each other by up to {drift:.1f} mm", Reason.TILT)


def _slice_spacing(planes: Sequence[Plane], along: Floats) -> tuple[float, tuple[str, ...]]:
    """Return the even spacing of ascending planes (least squares) and what was tolerated."""
    steps = np.arange(len(planes)) - (len(planes) - 1) / 2
    spacing = float(steps @ along / (steps @ steps))
    deviation = float(np.ptp(along - spacing * steps)) / 2
    if deviation > UNEVEN_TOLERANCE * spacing:
        _refuse_uneven(planes, np.diff(along))
    if deviation > max(NOTED_DEVIATION * spacing, SAME_POSITION_MM):
        note = f"slice positions deviate by up to {deviation:.2f} mm from an even spacing of {spacing:.3f} mm"
        return spacing, (f"{note}; taken as even",)
    return spacing, ()


def _refuse_uneven(planes: Sequence[Plane], steps: Floats) -> None:
    usual = float(np.median(steps))
    multiples = np.rint(steps / usual)
    whole = np.abs(steps / usual - multiples) <= 2 * UNEVEN_TOLERANCE  # both ends of a step may be off
    regular = bool(np.all(whole & (multiples >= 1)))
    gaps = np.flatnonzero(multiples > 1)
    if not regular or len(gaps) > max(1, len(steps) // 3):
        raise Refused(
            f"the slices are unevenly spaced: {steps.min():.2f} to {steps.max():.2f} mm apart, usually {usual:.2f} mm",
            Reason.GEOMETRY,
        )
    missing = int(np.sum(multiples[gaps] - 1))
    total = len(planes) + missing
    axis = planes[0].axis
    ends = [(planes[g].position[axis], planes[g + 1].position[axis]) for g in gaps[:NAMED_GAPS]]
    named = ", ".join(f"between {'xyz'[axis]} = {low:.1f} and {high:.1f} mm" for low, high in map(sorted, ends))
    more = f" and in {len(gaps) - NAMED_GAPS} more gaps" if len(gaps) > NAMED_GAPS else ""
    raise Refused(
        f"{missing} of {total} slices {'is' if missing == 1 else 'are'} missing: {named}{more}", Reason.MISSING_SLICE
    )
