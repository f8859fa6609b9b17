"""The page that holds a result's pictures: title, warning, pictures side by side, legend with the values."""

from __future__ import annotations

from typing import TYPE_CHECKING

from PIL import Image, ImageDraw

from pacs_ai.encode.pictures import picture
from pacs_ai.encode.pictures.legend import Line
from pacs_ai.encode.pictures.picture import AMBER, INK, PALE, PAPER

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pacs_ai.pipeline import Card

COLUMNS = 4
CELL = 384  # pixels across one slice
GAP = 6
MARGIN = 24
#: Of the page, and of what lies between its margins.
WIDTH = COLUMNS * (CELL + GAP) - GAP + 2 * MARGIN
INNER_WIDTH = WIDTH - 2 * MARGIN
LEGEND_LINES = 20
#: Of the legend: size of its letters, from row to row, between two values, and most rows of values of one line.
LETTERS, ROW, BETWEEN, MOST_ROWS = 20, 30, "     ", 8


def tiled(cells: Sequence[Image.Image]) -> Image.Image:
    """Return the cells side by side, as wide as the page without its margins."""
    columns = min(COLUMNS, len(cells))
    rows = -(-len(cells) // columns)
    small = len(cells) > COLUMNS or max(cell.width for cell in cells) <= CELL
    column = CELL if small else (INNER_WIDTH - (columns - 1) * GAP) // columns
    height = max(cell.height for cell in cells)
    tiles = Image.new("RGB", (INNER_WIDTH, rows * (height + GAP) - GAP), PAPER)
    for place, cell in enumerate(cells):
        left = place % columns * (column + GAP) + (column - cell.width) // 2
        tiles.paste(cell, (left, place // columns * (height + GAP)))
    return tiles


def sheet(tiles: Image.Image, lines: Sequence[Line], card: Card, remarks: Sequence[str] = ()) -> Image.Image:
    """Return the page, RGB, `WIDTH` pixels wide.

    Parameters
    ----------
    tiles
        As `tiled` returned them.
    lines
        Of the legend; at most `LEGEND_LINES` are written.
    card
        Title, maker, clearance.
    remarks
        Sentences that stand below the legend, in the colour of the warning.
    """
    more = len(lines) - LEGEND_LINES
    lines = lines if more <= 0 else [*lines[:LEGEND_LINES], Line(None, f"and {more} more")]
    indent = MARGIN + 50 + max((picture.text_width(line.name, LETTERS) for line in lines), default=0)
    values = [_rows(line, WIDTH - MARGIN - indent) for line in lines]
    top = MARGIN + 74
    bottom = top + tiles.height + MARGIN + GAP
    below = bottom + ROW * sum(map(len, values))
    warnings = [row for remark in remarks for row in _wrapped(remark, INNER_WIDTH)]
    warnings = warnings if len(warnings) <= MOST_ROWS else [*warnings[:MOST_ROWS], "..."]
    page = Image.new("RGB", (WIDTH, below + ROW * len(warnings) + MARGIN), PAPER)
    _banner(page, card)
    page.paste(tiles, (MARGIN, top))
    _write_legend(page, list(zip(lines, values, strict=True)), indent, bottom)
    draw = ImageDraw.Draw(page)
    for number, row in enumerate(warnings):
        draw.text((MARGIN, below + ROW * number + 8), row, AMBER, picture.font(LETTERS), anchor="lm")
    return page


def _banner(page: Image.Image, card: Card) -> None:
    draw = ImageDraw.Draw(page)
    warning = picture.warning(card)
    at = (WIDTH - MARGIN - 16, MARGIN + 24)
    box = draw.textbbox(at, warning, picture.font(26), anchor="rm")
    draw.rounded_rectangle((box[0] - 16, box[1] - 12, box[2] + 16, box[3] + 12), 8, outline=AMBER, width=2)
    draw.text(at, warning, AMBER, picture.font(26), anchor="rm")
    room = int(box[0]) - 32 - MARGIN
    draw.text((MARGIN, MARGIN), _fit(f"AI: {card.title}", 34, room), INK, picture.font(34), anchor="lt")
    made = f"{card.name} {card.version}, {card.manufacturer}"
    draw.text((MARGIN, MARGIN + 46), _fit(made, 18, room), PALE, picture.font(18), anchor="lt")


def _fit(text: str, size: int, room: int) -> str:
    """Return the text, cut so that it fits."""
    text = picture.readable(text)
    if picture.text_width(text, size) <= room:
        return text
    while text and picture.text_width(text + "...", size) > room:
        text = text[:-1]
    return text.rstrip() + "..."


def _write_legend(page: Image.Image, lines: Sequence[tuple[Line, list[str]]], indent: int, top: int) -> None:
    draw = ImageDraw.Draw(page)
    middle = top + 8
    for line, rows in lines:
        if line.colour is not None:
            draw.rounded_rectangle((MARGIN, middle - 9, MARGIN + 18, middle + 9), 4, fill=line.colour)
        draw.text((MARGIN + 30, middle), line.name, INK, picture.font(LETTERS), anchor="lm")
        for row in rows:
            draw.text((indent, middle), row, PALE, picture.font(LETTERS), anchor="lm")
            middle += ROW


def _wrapped(text: str, room: int) -> list[str]:
    """Return a sentence in rows that fit."""
    rows = [""]
    for word in picture.readable(text).split():
        longer = f"{rows[-1]} {word}".strip()
        if rows[-1] and picture.text_width(longer, LETTERS) > room:
            rows.append(word)
        else:
            rows[-1] = longer
    return rows


def _rows(line: Line, room: int) -> list[str]:
    """Return the values in rows that fit, one at least; none is cut in two, for half a number is another one."""
    rows = [""]
    for what, value in line.values:
        one = f"{what} {value}".rstrip()
        longer = f"{rows[-1]}{BETWEEN}{one}" if rows[-1] else one
        if not rows[-1] or picture.text_width(longer, LETTERS) <= room:
            rows[-1] = longer
        else:
            rows.append(one)
    return rows if len(rows) <= MOST_ROWS else [*rows[:MOST_ROWS], "..."]
