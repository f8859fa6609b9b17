"""A picture for people: slices or images of a series with what was found drawn over them, names and measured values."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import Image

from pacs_ai.encode.ground import shown_as
from pacs_ai.encode.pictures import picture
from pacs_ai.encode.pictures.legend import detection_names, legend
from pacs_ai.encode.pictures.picture import direction_letters, opposite
from pacs_ai.encode.pictures.sheet import CELL, COLUMNS, GAP, INNER_WIDTH, sheet, tiled
from pacs_ai.encode.pictures.traces import traces
from pacs_ai.encode.voxels.survey import count_voxels
from pacs_ai.pipeline import Array, Card, Findings, Frames, Given, Segment, Volume, Waveform

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pacs_ai.encode.pictures.legend import Counts

MAX_CELL_HEIGHT = 512
MAX_IMAGE_HEIGHT = 1100  # of a radiograph that stands alone
MARGIN_MM = 15.0  # shown around the findings
LEAST_FIELD_MM = 160.0  # a small finding is shown with what lies around it
THICK = 2.5  # slices so much thicker than pixels are not cut across,
SLAB = 0.25  # nor such a stack: so much less deep than wide


@dataclass(frozen=True)
class View:
    """The voxel axes in the order and direction in which they are shown.

    Parameters
    ----------
    axes
        Which axis of the volume is shown as slices, rows, columns.
    flips
        Whether each of them runs backwards in the volume.
    spacing
        Distance of neighbours along each, mm.
    """

    axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool]
    spacing: tuple[float, float, float]

    def of(self, voxels: Array) -> Array:
        """Return the array seen so; no voxel is copied."""
        steps = tuple(slice(None, None, -1 if flip else 1) for flip in self.flips)
        return voxels.transpose(self.axes)[steps]

    def directions(self, volume: Volume) -> Array:
        """Return where slices, rows and columns run to in the patient, (3, 3) unit vectors in LPS."""
        ways = [volume.affine[:3, axis] * (-1 if flip else 1) for axis, flip in zip(self.axes, self.flips, strict=True)]
        return np.array([way / np.linalg.norm(way) for way in ways])


@dataclass(frozen=True)
class Field:
    """The part of the view that is shown: its slices, and the range of its rows and of its columns."""

    slices: tuple[int, ...]
    rows: slice
    columns: slice


def montage(
    given: Given, findings: Findings, card: Card, path: Path, slices: int = 16, remarks: Sequence[str] = ()
) -> None:
    """Write a PNG of `page`.

    Parameters
    ----------
    given, findings, card, slices, remarks
        As of `page`.
    path
        Where the PNG is written; OSError where that fails.
    """
    page(given, findings, card, slices=slices, remarks=remarks).save(path, "PNG", optimize=False)


def page(
    given: Given,
    findings: Findings,
    card: Card,
    counts: Counts | None = None,
    slices: int = 16,
    remarks: Sequence[str] = (),
) -> Image.Image:
    """Return an RGB picture of what was found, 1602 pixels wide, with a legend and "AI, not verified".

    Of a volume: axial slices, patient's right on the left and front up, through the extent of the findings; slices of
    another orientation as they were acquired where they are thick or have detections. Of frames: the images
    side by side, those with findings first. Of a waveform: its traces.

    Parameters
    ----------
    given
        The input that the findings lie on.
    findings
        What is drawn and named.
    card
        Names and colours of the labels, title, clearance.
    counts
        Voxels of each segment in each slice, (segments, slices); None counts them.
    slices
        At most so many are shown.
    remarks
        What a reader must know of this result: a value out of its range, images that were brought onto another grid.
    """
    counts = count_voxels(findings.segments) if counts is None else counts
    cells = cells_of(given, findings, card, counts, slices)
    return sheet(tiled(cells), legend(findings, card, shown_as(given), counts), card, remarks)


def cells_of(given: Given, findings: Findings, card: Card, counts: Counts, slices: int) -> list[Image.Image]:
    """Return the slices, images or traces of `page` alone."""
    shown = shown_as(given)
    if isinstance(shown, Waveform):
        return [traces(shown)]
    if isinstance(shown, Frames):
        return _images(shown, findings, card, counts, slices)
    return _slices(shown, findings, card, slices)


def _slices(volume: Volume, findings: Findings, card: Card, slices: int) -> list[Image.Image]:
    view = axial_view(volume)
    if view.axes != (0, 1, 2) and (findings.detections or _is_slab(volume)):
        view = View((0, 1, 2), (False, False, False), volume.spacing)
    field = _field(
        _extent(findings, view, volume.voxels.shape), _detected(findings, view, len(volume.voxels)), view, slices
    )
    window = picture.window_of(volume, card, 0)
    return [_cell(volume, index, field, view, findings, card, window) for index in field.slices]


def _is_slab(volume: Volume) -> bool:
    """Return whether slices across the acquired ones would show little: these are thick, or few."""
    extent = [size * spacing for size, spacing in zip(volume.voxels.shape, volume.spacing, strict=True)]
    return volume.spacing[0] > THICK * max(volume.spacing[1:]) or extent[0] < SLAB * max(extent[1:])


def axial_view(volume: Volume) -> View:
    """Return how the volume is turned so that its axes lie nearest to the patient's (oblique stacks stay oblique).

    Slices run from feet to head, rows from front to back, columns from the patient's right to left.
    """
    directions = volume.affine[:3, :3] / np.linalg.norm(volume.affine[:3, :3], axis=0)
    wanted = (2, 1, 0)  # of LPS: z for slices, y for rows, x for columns
    axes = max(
        permutations(range(3)),
        key=lambda order: sum(abs(directions[patient, axis]) for patient, axis in zip(wanted, order, strict=True)),
    )
    s, r, c = axes
    return View(
        axes=(s, r, c),
        flips=(bool(directions[2, s] < 0), bool(directions[1, r] < 0), bool(directions[0, c] < 0)),
        spacing=(volume.spacing[s], volume.spacing[r], volume.spacing[c]),
    )


def _height(volume: Volume, view: View, index: int) -> float:
    """Return z in mm (to the head) of the centre of a displayed slice."""
    at = [(size - 1) / 2 for size in volume.voxels.shape]
    axis = view.axes[0]
    at[axis] = volume.voxels.shape[axis] - 1 - index if view.flips[0] else index
    return float((volume.affine @ [*at, 1.0])[2])


def _extent(findings: Findings, view: View, shape: tuple[int, ...]) -> list[tuple[int, int]]:
    """Return first and last index of the findings along each axis of the view; the whole view where there are none."""
    seen = view.of(_union(findings.segments, shape))
    planes: Array = np.asarray(seen.any(axis=2))
    used = [np.asarray(axis) for axis in (planes.any(axis=1), planes.any(axis=0), seen.any(axis=(0, 1)))]
    found = [np.flatnonzero(axis) for axis in used]
    for detection in findings.detections:
        for index in picture.indices_of(detection):
            points = _turned(picture.points_of(detection, index), view, seen.shape)
            slices = shape[0] - 1 - index if view.flips[0] else index
            spans = (np.array([slices]), points[:, 1], points[:, 0])
            found = [np.concatenate([axis, span]) for axis, span in zip(found, spans, strict=True)]
    if not found[0].size:
        return [(0, size - 1) for size in seen.shape]
    return [
        (max(0, int(axis.min())), min(size - 1, int(axis.max()))) for axis, size in zip(found, seen.shape, strict=True)
    ]


def _union(segments: Sequence[Segment], shape: tuple[int, ...]) -> npt.NDArray[np.bool_]:
    union = np.zeros(shape, bool)
    for array in {id(segment.voxels): segment.voxels for segment in segments}.values():
        numbers = [segment.number for segment in segments if segment.voxels is array]
        if array.dtype == np.bool_:
            union |= array
        elif len(numbers) <= picture.FEW_LABELS:
            for number in numbers:
                union |= array == number
        else:
            union |= np.isin(array, numbers)
    return union


def _turned(points: Array, view: View, shape: tuple[int, ...]) -> Array:
    """Return points of (column, row) of a slice as they lie in the view, whose slices are those of the volume."""
    turned = np.array(points, np.float64)
    if view.flips[2]:
        turned[:, 0] = shape[2] - turned[:, 0]
    if view.flips[1]:
        turned[:, 1] = shape[1] - turned[:, 1]
    return turned


def _detected(findings: Findings, view: View, slices: int) -> list[int]:
    """Return the slices of the view that detections are drawn on, head first."""
    indices = {index for detection in findings.detections for index in picture.indices_of(detection)}
    return sorted(((slices - 1 - index if view.flips[0] else index) for index in indices), reverse=True)


def _field(extent: list[tuple[int, int]], detected: list[int], view: View, slices: int) -> Field:
    first, last = extent[0]
    inset = 0.03 * (last - first)
    count = min(slices, last - first + 1)
    even = np.linspace(last - inset, first + inset, count).round().astype(int).tolist()
    fixed = detected[:slices]
    free = [index for index in even if all(abs(index - near) * 2 * count > last - first for near in fixed)]
    chosen = sorted({*fixed, *free[: slices - len(fixed)]}, reverse=True)
    ranges = []
    for (low, high), spacing in zip(extent[1:], view.spacing[1:], strict=True):
        around = max(MARGIN_MM, (LEAST_FIELD_MM - (high - low) * spacing) / 2) / spacing
        ranges.append(slice(max(0, int(low - around)), int(high + around) + 1))
    return Field(tuple(chosen), ranges[0], ranges[1])


def _cell(
    volume: Volume,
    index: int,
    field: Field,
    view: View,
    findings: Findings,
    card: Card,
    window: tuple[float, float],
) -> Image.Image:
    """Return one slice in its true proportions with the findings over it."""
    shown = picture.grey(view.of(volume.voxels)[index][field.rows, field.columns], window)
    height_mm, width_mm = shown.shape[0] * view.spacing[1], shown.shape[1] * view.spacing[2]
    scale = min(CELL / width_mm, MAX_CELL_HEIGHT / height_mm)
    size = (max(1, round(width_mm * scale)), max(1, round(height_mm * scale)))
    cell = Image.fromarray(shown).resize(size, Image.Resampling.BICUBIC).convert("RGB")
    for segment in findings.segments:
        seen = view.of(segment.voxels)[index][field.rows, field.columns]
        mask = seen if seen.dtype == np.bool_ else seen == segment.number
        picture.tint(cell, mask, card.label(segment.label).colour)
    shape = view.of(volume.voxels).shape
    received = shape[0] - 1 - index if view.flips[0] else index
    factors = np.array([cell.width / shown.shape[1], cell.height / shown.shape[0]])
    corner = np.array([field.columns.start, field.rows.start])
    drawn = [
        (
            [(_turned(line, view, shape) - corner) * factors for line in picture.lines_of(detection, received)],
            card.label(detection.label).colour,
            name,
        )
        for detection, name in zip(findings.detections, detection_names(findings, card), strict=True)
    ]
    picture.draw_detections(cell, drawn, 2, 15)
    _, down, right = (direction_letters(way)[:1] for way in view.directions(volume))
    mark_directions(cell, right, down, 17)
    place = f"z = {round(_height(volume, view, index))} mm" if down in "AP" else f"slice {index + 1}"
    picture.write(cell, (8, cell.height - 8), place, 17, anchor="ls")
    return cell


def mark_directions(cell: Image.Image, right: str, down: str, size: int, *, vertical: bool = False) -> None:
    """Write the letters of the patient's directions at the sides, in place.

    Parameters
    ----------
    cell
        RGB.
    right, down
        Where rows and columns run to ("L", "PF"); "" writes none.
    size
        Of the letters in pixels.
    vertical
        Whether the letters above and below are written too.
    """
    edge, middle, centre = size // 2, cell.height // 2, cell.width // 2
    picture.write(cell, (edge, middle), opposite(right), size, anchor="lm")
    picture.write(cell, (cell.width - edge, middle), right, size, anchor="rm")
    if vertical:
        picture.write(cell, (centre, edge), opposite(down), size, anchor="mt")
        picture.write(cell, (centre, cell.height - edge), down, size, anchor="mb")


def _images(frames: Frames, findings: Findings, card: Card, counts: Counts, slices: int) -> list[Image.Image]:
    """Return the images, those with findings first, as large as the page allows."""
    found = {int(index) for row in counts for index in np.flatnonzero(row)}
    found |= {index for detection in findings.detections for index in picture.indices_of(detection)}
    order = [*sorted(found), *(index for index in range(len(frames.images)) if index not in found)][:slices]
    across = min(COLUMNS, len(order))
    width = (INNER_WIDTH - (across - 1) * GAP) // across
    return [_image(frames, index, findings, card, width) for index in sorted(order)]


def _image(frames: Frames, index: int, findings: Findings, card: Card, width: int) -> Image.Image:
    image = frames.images[index]
    shown = picture.grey(image.pixels, picture.window_of(frames, card, index))
    row_mm, column_mm = image.spacing or (1.0, 1.0)
    height_mm, width_mm = shown.shape[0] * row_mm, shown.shape[1] * column_mm
    scale = min(width / width_mm, MAX_IMAGE_HEIGHT / height_mm)
    size = (max(1, round(width_mm * scale)), max(1, round(height_mm * scale)))
    cell = Image.fromarray(shown).resize(size, Image.Resampling.LANCZOS).convert("RGB")
    for segment in findings.segments:
        seen = segment.voxels[index]
        picture.tint(cell, seen if seen.dtype == np.bool_ else seen == segment.number, card.label(segment.label).colour)
    factors = np.array([cell.width / shown.shape[1], cell.height / shown.shape[0]])
    letters = max(15, width // 60)
    drawn = [
        ([line * factors for line in picture.lines_of(detection, index)], card.label(detection.label).colour, name)
        for detection, name in zip(findings.detections, detection_names(findings, card), strict=True)
    ]
    picture.draw_detections(cell, drawn, max(2, width // 400), letters)
    right, down = picture.patient_orientation(image.header.get("PatientOrientation"))
    mark_directions(cell, right, down, letters, vertical=True)
    view = " ".join(image.header.get(keyword, "") for keyword in ("ImageLaterality", "Laterality", "ViewPosition"))
    place = view.strip() or (f"image {index + 1}" if len(frames.images) > 1 else "")
    picture.write(cell, (8, cell.height - 8), " ".join(picture.readable(place).split()), letters, anchor="ls")
    return cell
