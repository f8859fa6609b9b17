"""A waveform drawn as on ECG paper: 25 mm/s and 10 mm/mV, twelve leads in three rows over a rhythm strip."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw

from pacs_ai.encode.pictures import picture
from pacs_ai.encode.pictures.picture import BLACK, INK, PALE
from pacs_ai.encode.pictures.sheet import INNER_WIDTH

if TYPE_CHECKING:
    from pacs_ai.encode.pictures.picture import Colour
    from pacs_ai.pipeline import Waveform

#: The usual arrangement of twelve leads, in four columns of 2.5 s each.
ARRANGED = (("I", "aVR", "V1", "V4"), ("II", "aVL", "V2", "V5"), ("III", "aVF", "V3", "V6"))
RHYTHM = "II"
SECONDS = 10.0  # of one row
MM_PER_SECOND, MM_PER_UNIT = 25.0, 10.0
MM = INNER_WIDTH / (SECONDS * MM_PER_SECOND)  # pixels
ROW_MM = 30.0
MOST_ROWS = 12
THIN, THICK = (44, 30, 34), (78, 50, 56)

#: (name, first second on the paper, last, row) of one piece of a lead.
_Piece = tuple[str, float, float, int]


def traces(given: Waveform) -> Image.Image:
    """Return the traces, RGB, as wide as a page, the first ten seconds."""
    pieces = _pieces(given)
    rows = 1 + max(row for *_, row in pieces)
    paper = Image.new("RGB", (INNER_WIDTH, round(rows * ROW_MM * MM)), BLACK)
    draw = ImageDraw.Draw(paper)
    _grid(draw, paper.size)
    for piece in pieces:
        _trace(draw, given, piece, INK)
    for name, first, _, row in pieces:
        at = (first * MM_PER_SECOND * MM + 6, row * ROW_MM * MM + 4)
        picture.write(paper, at, picture.readable(name), 17, PALE)
    scale = f"{MM_PER_SECOND:g} mm/s, {MM_PER_UNIT:g} mm/{given.unit}"
    picture.write(paper, (paper.width - 8, paper.height - 8), picture.readable(scale), 15, PALE, anchor="rs")
    return paper


def _pieces(given: Waveform) -> list[_Piece]:
    if not set(sum(ARRANGED, ())) <= set(given.channels):
        return [(name, 0.0, SECONDS, row) for row, name in enumerate(given.channels[:MOST_ROWS])]
    width = SECONDS / len(ARRANGED[0])
    found = [
        (name, column * width, (column + 1) * width, row)
        for row, names in enumerate(ARRANGED)
        for column, name in enumerate(names)
    ]
    return [*found, (RHYTHM, 0.0, SECONDS, len(ARRANGED))]


def _grid(draw: ImageDraw.ImageDraw, size: tuple[int, int]) -> None:
    for step, colour in ((1, THIN), (5, THICK)):
        for axis, length in enumerate(size):
            for line in range(0, int(length / MM) + 1, step):
                at = round(line * MM)
                ends = ((at, 0), (at, size[1])) if axis == 0 else ((0, at), (size[0], at))
                draw.line(ends, fill=colour)


def _trace(draw: ImageDraw.ImageDraw, given: Waveform, piece: _Piece, colour: Colour) -> None:
    name, first, last, row = piece
    samples = given.samples[given.channels.index(name)]
    begin, end = (round(second * given.frequency_hz) for second in (first, last))
    shown = samples[begin:end]
    if not shown.size:
        return
    middle = (row + 0.5) * ROW_MM * MM
    x = (first + np.arange(shown.size) / given.frequency_hz) * MM_PER_SECOND * MM
    y = middle - np.nan_to_num((shown - np.median(samples)) * MM_PER_UNIT * MM)
    y = np.clip(y, row * ROW_MM * MM, (row + 1) * ROW_MM * MM)
    for one, other in pairwise(zip(x.tolist(), y.tolist(), strict=True)):
        draw.line((one, other), fill=colour, width=2)
