"""A picture for people: slices of a series with the segments drawn over them, their names and measured values."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import permutations
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont

from pacs_ai.encode.frames import FEW_LABELS
from pacs_ai.encode.provenance import DISCLAIMER
from pacs_ai.pipeline import Array, Card, Clearance, Findings, Label, Measurement, Segment, Volume

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

COLUMNS = 4
CELL = 384  # pixels across one slice
MAX_CELL_HEIGHT = 512
GAP = 6
MARGIN = 24
FILL = 0.32  # opacity of a segment
MARGIN_MM = 15.0  # shown around the segments
LEAST_FIELD_MM = 160.0  # a small finding is shown with what lies around it
LEGEND_LINES = 20
LUNG_WINDOW = (-600.0, 1500.0)  # centre and width in HU
SOFT_TISSUE_WINDOW = (40.0, 400.0)
INK, PALE, AMBER, PAPER, BLACK = (235, 238, 242), (150, 158, 168), (255, 190, 60), (18, 20, 24), (0, 0, 0)

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class View:
    """The voxel axes in the order and direction of a radiological axial display.

    Parameters
    ----------
    axes
        Which axis of the volume is shown as slices (feet to head), rows (front to back), columns (the patient's right
        to left).
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


@dataclass(frozen=True)
class Field:
    """The part of the view that is shown: its slices, and the range of its rows and of its columns."""

    slices: tuple[int, ...]
    rows: slice
    columns: slice


def montage(volume: Volume, findings: Findings, card: Card, path: Path, slices: int = 16) -> None:
    """Write a PNG of axial slices, patient's right on the left and front up, through the extent of the segments.

    Parameters
    ----------
    volume
        The input that the segments lie on.
    findings
        Segments and measurements.
    card
        Names and colours of the labels, title, clearance.
    path
        Where the PNG is written; OSError where that fails.
    slices
        At most so many are shown, head first.
    """
    view = axial_view(volume)
    extent = _extent(findings.segments, view, volume.voxels.shape)
    field = _field(extent, view, slices)
    low, high = _window(volume, card)
    shown = view.of(volume.voxels)
    cells = [_cell(shown[index], index, field, view, findings, card, (low, high)) for index in field.slices]
    for cell, index in zip(cells, field.slices, strict=True):
        _mark(cell, f"z = {_height(volume, view, index):.0f} mm")
    _page(cells, findings, card).save(path, "PNG", optimize=False)


def axial_view(volume: Volume) -> View:
    """Return how the volume is turned so that its axes lie nearest to the patient's (oblique stacks stay oblique)."""
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


def _extent(segments: Sequence[Segment], view: View, shape: tuple[int, ...]) -> list[tuple[int, int]]:
    """Return first and last index of the segments along each axis of the view; the whole view where there are none."""
    union = np.zeros(shape, bool)
    for array in {id(segment.voxels): segment.voxels for segment in segments}.values():
        numbers = [segment.number for segment in segments if segment.voxels is array]
        if array.dtype == np.bool_:
            union |= array
        elif len(numbers) <= FEW_LABELS:
            for number in numbers:
                union |= array == number
        else:
            union |= np.isin(array, numbers)
    seen = view.of(union)
    planes: Array = np.asarray(seen.any(axis=2))
    used = [np.asarray(axis) for axis in (planes.any(axis=1), planes.any(axis=0), seen.any(axis=(0, 1)))]
    if not used[0].any():
        return [(0, size - 1) for size in seen.shape]
    return [(int(np.flatnonzero(axis)[0]), int(np.flatnonzero(axis)[-1])) for axis in used]


def _field(extent: list[tuple[int, int]], view: View, slices: int) -> Field:
    first, last = extent[0]
    inset = 0.03 * (last - first)
    chosen = np.linspace(last - inset, first + inset, min(slices, last - first + 1)).round().astype(int)
    ranges = []
    for (low, high), spacing in zip(extent[1:], view.spacing[1:], strict=True):
        around = max(MARGIN_MM, (LEAST_FIELD_MM - (high - low) * spacing) / 2) / spacing
        ranges.append(slice(max(0, int(low - around)), int(high + around) + 1))
    return Field(tuple(chosen.tolist()), ranges[0], ranges[1])


def _window(volume: Volume, card: Card) -> tuple[float, float]:
    """Return the values shown black and white."""
    if volume.modality == "CT":
        lungs = any("lung" in f"{label.name} {label.type.meaning}".lower() for label in card.labels)
        centre, width = LUNG_WINDOW if lungs and len(card.labels) < FEW_LABELS else SOFT_TISSUE_WINDOW
        return centre - width / 2, centre + width / 2
    sample = volume.voxels[:: max(1, len(volume.voxels) // 32), ::2, ::2]
    tissue = sample[sample > np.percentile(sample, 40)]
    low, high = np.percentile(tissue if tissue.size else sample, (1, 99.5))
    return float(min(low, np.percentile(sample, 5))), float(max(high, low + 1))


def _cell(
    plane: Array,
    index: int,
    field: Field,
    view: View,
    findings: Findings,
    card: Card,
    window: tuple[float, float],
) -> Image.Image:
    """Return one slice in its true proportions with the segments over it."""
    low, high = window
    grey = np.clip((plane[field.rows, field.columns].astype(np.float32) - low) / (high - low), 0, 1) * 255
    height_mm, width_mm = grey.shape[0] * view.spacing[1], grey.shape[1] * view.spacing[2]
    scale = min(CELL / width_mm, MAX_CELL_HEIGHT / height_mm)
    size = (max(1, round(width_mm * scale)), max(1, round(height_mm * scale)))
    cell = Image.fromarray(grey.astype(np.uint8)).resize(size, Image.Resampling.BICUBIC).convert("RGB")
    for segment in findings.segments:
        seen = view.of(segment.voxels)[index][field.rows, field.columns]
        mask = seen if seen.dtype == np.bool_ else seen == segment.number
        if mask.any():
            _overlay(cell, mask, card.label(segment.label).colour)
    return cell


def _overlay(cell: Image.Image, mask: npt.NDArray[np.bool_], colour: Colour) -> None:
    smooth = Image.fromarray(mask.astype(np.uint8) * 255).resize(cell.size, Image.Resampling.BILINEAR)
    solid = smooth.point([255 if value >= 128 else 0 for value in range(256)])
    rim = ImageChops.subtract(solid, solid.filter(ImageFilter.MinFilter(3)))
    cell.paste(Image.new("RGB", cell.size, colour), mask=solid.point([round(value * FILL) for value in range(256)]))
    cell.paste(Image.new("RGB", cell.size, colour), mask=rim)


def _mark(cell: Image.Image, place: str) -> None:
    draw = ImageDraw.Draw(cell)
    middle = cell.height // 2
    for text, at, anchor in (
        ("R", (8, middle), "lm"),
        ("L", (cell.width - 8, middle), "rm"),
        (place, (8, cell.height - 8), "ls"),
    ):
        draw.text(at, text, INK, _font(17), anchor=anchor, stroke_width=2, stroke_fill=BLACK)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _page(cells: Sequence[Image.Image], findings: Findings, card: Card) -> Image.Image:
    columns = min(COLUMNS, len(cells))
    rows = -(-len(cells) // columns)
    width = max(COLUMNS, columns) * (CELL + GAP) - GAP + 2 * MARGIN
    height = cells[0].height
    lines = _legend(findings, card)
    top = MARGIN + 74
    bottom = top + rows * (height + GAP) + MARGIN
    page = Image.new("RGB", (width, bottom + 30 * len(lines) + MARGIN), PAPER)
    _banner(page, card)
    for place, cell in enumerate(cells):
        left = MARGIN + place % columns * (CELL + GAP) + (CELL - cell.width) // 2
        page.paste(cell, (left, top + place // columns * (height + GAP)))
    _write_legend(page, lines, bottom)
    return page


def _banner(page: Image.Image, card: Card) -> None:
    draw = ImageDraw.Draw(page)
    draw.text((MARGIN, MARGIN), f"AI: {card.title}", INK, _font(34), anchor="lt")
    draw.text((MARGIN, MARGIN + 44), f"{card.name} {card.version}, {card.manufacturer}", PALE, _font(18), anchor="lt")
    research = card.clearance == Clearance.RESEARCH
    warning = f"AI, {DISCLAIMER}" if research else "AI result, not reviewed by a person"
    box = draw.textbbox((page.width - MARGIN - 16, MARGIN + 24), warning, _font(26), anchor="rm")
    draw.rounded_rectangle((box[0] - 16, box[1] - 12, box[2] + 16, box[3] + 12), 8, outline=AMBER, width=2)
    draw.text((page.width - MARGIN - 16, MARGIN + 24), warning, AMBER, _font(26), anchor="rm")


def _legend(findings: Findings, card: Card) -> list[tuple[Colour | None, str, str]]:
    """Return (colour, name, values) per label that has a segment or a value, then for the whole image."""
    drawn = {segment.label for segment in findings.segments if segment.voxels.any()}
    lines: list[tuple[Colour | None, str, str]] = []
    for label in card.labels:
        values = [one for one in findings.measurements if one.label == label.name]
        if values or label.name in drawn:
            lines.append(_line(label, values, label.name in drawn))
    whole = [one for one in findings.measurements if one.label is None]
    if whole:
        lines.append((None, "Whole image", _values(whole)))
    if not lines:
        return [(None, "Nothing found", "")]
    more = len(lines) - LEGEND_LINES
    return lines if more <= 0 else [*lines[:LEGEND_LINES], (None, f"and {more} more", "")]


def _line(label: Label, values: Sequence[Measurement], drawn: bool) -> tuple[Colour | None, str, str]:
    return label.colour, label.name, _values(values) or ("" if drawn else "not found")


def _values(measurements: Sequence[Measurement]) -> str:
    return "     ".join(f"{_name(one)} {_number(one.value)} {_unit(one)}".rstrip() for one in measurements)


def _name(measurement: Measurement) -> str:
    """Return a short name: the abbreviation that a long one ends with, else derivation and concept."""
    meaning = measurement.concept.meaning
    short = re.search(r"\(([^()]+)\)$", meaning)
    if short is not None:
        return short.group(1)
    return f"{measurement.derivation.meaning} {meaning.lower()}" if measurement.derivation else meaning


def _number(value: float) -> str:
    if value == 0 or abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def _unit(measurement: Measurement) -> str:
    unit = measurement.unit.value
    return {"[hnsf'U]": "HU", "1": "", "ml": "mL"}.get(unit, unit.strip("{}"))


def _write_legend(page: Image.Image, lines: Sequence[tuple[Colour | None, str, str]], top: int) -> None:
    draw = ImageDraw.Draw(page)
    indent = MARGIN + 40 + max((round(draw.textlength(name, _font(20))) for _, name, _ in lines), default=0)
    for place, (colour, name, values) in enumerate(lines):
        middle = top + 30 * place + 8
        if colour is not None:
            draw.rounded_rectangle((MARGIN, middle - 9, MARGIN + 18, middle + 9), 4, fill=colour)
        draw.text((MARGIN + 30, middle), name, INK, _font(20), anchor="lm")
        draw.text((indent + 20, middle), values, PALE, _font(20), anchor="lm")
