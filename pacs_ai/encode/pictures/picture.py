"""What all pictures of a result share: the grey window, tinted segments, outlined detections, legible text."""

from __future__ import annotations

import unicodedata
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import reportlab  # type: ignore[import-untyped]
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont

from pacs_ai.encode.provenance import DISCLAIMER
from pacs_ai.pipeline import Array, Card, Clearance, Detection, Frames, Region, Shape, Volume

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pydicom import Dataset

    from pacs_ai.encode.ground import Ground

Colour = tuple[int, int, int]
Mask = npt.NDArray[np.bool_]

FILL = 0.32  # opacity of a segment
LUNG_WINDOW = (-600.0, 1500.0)  # centre and width in HU
SOFT_TISSUE_WINDOW = (40.0, 400.0)
FEW_LABELS = 12  # a lung pipeline, and not one of the whole body that has lungs too
INK, PALE, AMBER, PAPER, BLACK = (235, 238, 242), (150, 158, 168), (255, 190, 60), (18, 20, 24), (0, 0, 0)
NOT_VERIFIED = "AI, not verified"
#: Bitstream Vera, which comes with reportlab: the same on every machine, and fit to be embedded in a PDF.
FONT_FILE = Path(reportlab.__file__).parent / "fonts" / "Vera.ttf"
NO_CHARACTER = "\uffff"


def warning(card: Card) -> str:
    """Return what is burned into every picture."""
    return f"{NOT_VERIFIED}, {DISCLAIMER}" if card.clearance == Clearance.RESEARCH else NOT_VERIFIED


@lru_cache(maxsize=64)
def font(size: int) -> ImageFont.FreeTypeFont:
    """Return the font of all pictures in a size in pixels."""
    return ImageFont.truetype(str(FONT_FILE), size, layout_engine=ImageFont.Layout.BASIC)


@lru_cache(maxsize=4096)
def _drawable(character: str) -> bool:
    face = font(20)
    return character == " " or bytes(face.getmask(character)) != bytes(face.getmask(NO_CHARACTER))


def readable(text: str) -> str:
    """Return the text in one line in characters that the font has: accents dropped where need be, else "?"."""
    return "".join(_nearest(character) for character in " ".join(text.split()))


def _nearest(character: str) -> str:
    if _drawable(character):
        return character
    plain = unicodedata.normalize("NFKD", character)
    plain = "".join(part for part in plain if not unicodedata.combining(part) and _drawable(part))
    return plain or "?"


def label_name(card: Card, name: str) -> str:
    """Return a label's name; with the meaning of its code where the font lacks the name's script."""
    shown = readable(name)
    if "?" not in shown or "?" in name:
        return shown
    return readable(f"{shown} ({card.label(name).type.meaning})")


def plane_of(given: Ground, index: int) -> Array:
    """Return one slice or image, (rows, columns) or (rows, columns, 3)."""
    return given.images[index].pixels if isinstance(given, Frames) else given.voxels[index]


def spacing_of(given: Ground, index: int) -> tuple[float, float] | None:
    """Return the distance of rows and of columns of one slice or image in mm, None where it is not known."""
    return given.images[index].spacing if isinstance(given, Frames) else given.spacing[1:]


def images_of(given: Ground) -> int:
    """Return how many slices or images there are."""
    return len(given.images) if isinstance(given, Frames) else len(given.voxels)


def window_of(given: Ground, card: Card, index: int, stated: tuple[float, float] | None = None) -> tuple[float, float]:
    """Return the values shown black and white.

    Lungs are shown in a lung window, for a reader cannot change the window of a picture; else as the source states
    (PS3.3 C.11.2), else by modality, else by the values themselves.

    Parameters
    ----------
    given, card
        The input and the labels.
    index
        The slice or image.
    stated
        Centre and width.
    """
    if isinstance(given, Volume) and given.modality == "CT":
        lungs = any("lung" in f"{label.name} {label.type.meaning}".lower() for label in card.labels)
        narrow = LUNG_WINDOW if lungs and len(card.labels) < FEW_LABELS else stated or SOFT_TISSUE_WINDOW
        return _ends(narrow)
    if stated is not None:
        return _ends(stated)
    if isinstance(given, Frames):
        return _by_values(given.images[index].pixels[::2, ::2])
    return _by_values(given.voxels[:: max(1, len(given.voxels) // 32), ::2, ::2])


def _ends(window: tuple[float, float]) -> tuple[float, float]:
    centre, width = window
    return centre - width / 2, centre + width / 2


def _by_values(sample: Array) -> tuple[float, float]:
    tissue = sample[sample > np.percentile(sample, 40)]
    low, high = np.percentile(tissue if tissue.size else sample, (1, 99.5))
    return float(min(low, np.percentile(sample, 5))), float(max(high, low + 1e-6))


def stated_window(ds: Dataset, frame_number: int | None) -> tuple[float, float] | None:
    """Return the first Window Center and Window Width of a received frame; None where there is none, or it is turned.

    Values of MONOCHROME1 images reach a pipeline turned round (`Frame.pixels`), so their window does not fit.
    """
    if ds.get("PhotometricInterpretation") == "MONOCHROME1":
        return None
    for holder in _window_holders(ds, frame_number):
        centre, width = (_first(holder.get(keyword)) for keyword in ("WindowCenter", "WindowWidth"))
        if centre is not None and width is not None and width > 0:
            return centre, width
    return None


def _window_holders(ds: Dataset, frame_number: int | None) -> Iterator[Dataset]:
    if frame_number is not None:
        per_frame = (ds.get("PerFrameFunctionalGroupsSequence") or [])[frame_number - 1 : frame_number]
        for group in (*per_frame, *(ds.get("SharedFunctionalGroupsSequence") or [])):
            yield from group.get("FrameVOILUTSequence") or []
    yield ds


def _first(value: object) -> float | None:
    """Return the first of one or several decimal strings, None where there is none that is a number."""
    text = str(value if value is not None else "").strip("[]").replace(",", "\\").split("\\")[0].strip(" '")
    try:
        number = float(text)
    except ValueError:
        return None
    return number if np.isfinite(number) else None


def grey(plane: Array, window: tuple[float, float]) -> npt.NDArray[np.uint8]:
    """Return a slice or image in its window, uint8; colour stays as it is."""
    if plane.ndim == 3:
        return plane.astype(np.uint8, copy=False)
    low, high = window
    shown = np.clip((plane.astype(np.float32) - low) / (high - low), 0, 1) * 255
    return np.asarray(shown, np.uint8)


def tint(picture: Image.Image, mask: Mask, colour: Colour, rim: int = 1) -> None:
    """Tint a segment and draw its rim, in place; a mask of another size is brought to the picture's.

    Parameters
    ----------
    picture
        RGB.
    mask
        (rows, columns).
    colour
        Of the label.
    rim
        Width of the outline in pixels of the picture.
    """
    box = _bounds(mask)
    if box is None:
        return
    scale_x, scale_y = picture.width / mask.shape[1], picture.height / mask.shape[0]
    top, bottom, left, right = box
    pad = 2
    top, left = max(0, top - pad), max(0, left - pad)
    bottom, right = min(mask.shape[0], bottom + pad), min(mask.shape[1], right + pad)
    corner = (round(left * scale_x), round(top * scale_y))
    size = (max(1, round(right * scale_x) - corner[0]), max(1, round(bottom * scale_y) - corner[1]))
    solid = Image.fromarray(mask[top:bottom, left:right].astype(np.uint8) * 255)
    if size != solid.size:
        solid = solid.resize(size, Image.Resampling.BILINEAR).point(
            [255 if value >= 128 else 0 for value in range(256)]
        )
    edge = ImageChops.subtract(solid, solid.filter(ImageFilter.MinFilter(2 * rim + 1)))
    paint = Image.new("RGB", size, colour)
    picture.paste(paint, corner, solid.point([round(value * FILL) for value in range(256)]))
    picture.paste(paint, corner, edge)


def _bounds(mask: Mask) -> tuple[int, int, int, int] | None:
    """Return first row, end of rows, first column, end of columns of a mask; None of an empty one."""
    rows = np.flatnonzero(mask.any(axis=1))
    if not rows.size:
        return None
    columns = np.flatnonzero(mask.any(axis=0))
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1


def indices_of(detection: Detection) -> tuple[int, ...]:
    """Return the slice or image that a detection is drawn on, once each."""
    places = (detection.region, detection.diameters)
    return tuple(dict.fromkeys(place.index for place in places if place is not None))


def points_of(detection: Detection, index: int) -> Array:
    """Return every point of a detection on one slice or image, (points, 2) of (column, row)."""
    return np.concatenate([np.empty((0, 2)), *lines_of(detection, index)])


def lines_of(detection: Detection, index: int) -> list[Array]:
    """Return the lines that show a detection on one slice or image, each (points, 2) of (column, row)."""
    lines: list[Array] = []
    if detection.region is not None and detection.region.index == index:
        lines.append(_line_of(detection.region))
    if detection.diameters is not None and detection.diameters.index == index:
        lines += [
            np.asarray(axis, np.float64) for axis in (detection.diameters.long_axis, detection.diameters.short_axis)
        ]
    return lines


def _line_of(region: Region) -> Array:
    points = np.asarray(region.points, np.float64).reshape(-1, 2)
    if region.shape is not Shape.ELLIPSE:
        return points
    centre = points[:2].mean(axis=0)
    major, minor = points[1] - centre, points[3] - centre
    turn = np.linspace(0, 2 * np.pi, 73)[:, None]
    ellipse: Array = centre + np.cos(turn) * major + np.sin(turn) * minor
    return ellipse


def draw_detections(
    picture: Image.Image, drawn: Sequence[tuple[Sequence[Array], Colour, str]], width: int, size: int
) -> None:
    """Draw the detections of one slice or image and write their names, in place; no name covers another.

    Parameters
    ----------
    picture
        RGB.
    drawn
        Per detection: its lines, each (points, 2) of (x, y) on the picture, one point being drawn as a ring; its
        colour; its name. One without lines lies on another slice.
    width
        Of the lines in pixels.
    size
        Of the letters in pixels.
    """
    here = [one for one in drawn if one[0]]
    draw = ImageDraw.Draw(picture)
    for lines, colour, _ in here:
        for under, ink in ((2, BLACK), (0, colour)):
            for line in lines:
                _draw_line(draw, line, ink, width + under, size)
    taken: list[tuple[float, float, float, float]] = []
    for lines, colour, name in here:
        box = _place(picture, np.concatenate(lines), name, size, taken)
        taken.append(box)
        write(picture, box[:2], name, size, colour)


def _place(
    picture: Image.Image, points: Array, name: str, size: int, taken: Sequence[tuple[float, float, float, float]]
) -> tuple[float, float, float, float]:
    """Return the box of a name (left, top, right, bottom): right of its detection, else left, below other names."""
    width, height = float(text_width(name, size)), size * 1.25
    left = float(points[:, 0].max()) + size / 2
    if left + width > picture.width - 2:
        left = max(2.0, float(points[:, 0].min()) - size / 2 - width)
    top = min(max(2.0, float(points[:, 1].min()) - height / 2), picture.height - height - 2)
    while any(left < other[2] and other[0] < left + width and abs(top - other[1]) < height for other in taken):
        top += height
    return left, top, left + width, top + height


def _draw_line(draw: ImageDraw.ImageDraw, line: Array, ink: Colour, width: int, size: int) -> None:
    if len(line) == 1:
        x, y = (float(value) for value in line[0])
        draw.ellipse((x - size, y - size, x + size, y + size), outline=ink, width=width)
    else:
        draw.line([(float(x), float(y)) for x, y in line], fill=ink, width=width, joint="curve")


def write(
    picture: Image.Image, at: tuple[float, float], text: str, size: int, colour: Colour = INK, anchor: str = "la"
) -> None:
    """Write a text that is legible on every ground, in place; `anchor` as in Pillow."""
    ImageDraw.Draw(picture).text(
        at, text, colour, font(size), anchor=anchor, stroke_width=max(1, size // 9), stroke_fill=BLACK
    )


def text_width(text: str, size: int) -> int:
    """Return the width of a text in pixels."""
    return round(font(size).getlength(text))


def direction_letters(direction: Array) -> str:
    """Return where a direction in the patient points to, as Patient Orientation says it (PS3.3 C.7.6.1.1.1).

    Parameters
    ----------
    direction
        (3,) in LPS; the greatest component comes first, others only from a fifth of it on.
    """
    size = np.abs(direction)
    order = [axis for axis in np.argsort(-size, kind="stable").tolist() if size[axis] >= 0.2 * size.max()]
    return "".join("LPH"[axis] if direction[axis] > 0 else "RAF"[axis] for axis in order)


def opposite(letters: str) -> str:
    """Return the letters of the opposite direction."""
    return letters.translate(str.maketrans("LRPAHF", "RLAPFH"))


def patient_orientation(stated: object) -> tuple[str, str]:
    """Return where the rows and the columns of an image run to, as Patient Orientation (0020,0020) says it.

    Parameters
    ----------
    stated
        Two values, or one text with a backslash or slash between them. Two blanks come of anything else.
    """
    text = stated if isinstance(stated, str) else "\\".join(str(value) for value in (stated or ()))  # type: ignore[attr-defined]
    letters = [value.strip() for value in text.replace("/", "\\").split("\\")]
    if len(letters) != 2 or not all(letters) or any(set(value) - set("LRAPHF") for value in letters):
        return "", ""
    return letters[0], letters[1]
