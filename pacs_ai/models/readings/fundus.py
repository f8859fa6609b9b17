"""Whether a picture is a photograph of the retina, and where in it the retina is seen: a bright disc on black."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import scipy.ndimage

from pacs_ai.errors import Reason, Refused

if TYPE_CHECKING:
    from pacs_ai.pipeline import Array, Frame

#: Rows and columns are thinned out to about this many for finding the disc.
_COARSE = 400
#: Brightest channel (of 255) from which a pixel is lit.
LIT = 18
#: Smallest diameter of the disc in pixels.
LEAST_DIAMETER = 250
#: Least overlap (intersection over union) of what is lit with a disc.
LEAST_ROUND = 0.9
#: Least part of the picture that the disc leaves dark: its corners.
LEAST_DARK = 0.05
#: Mean red over mean green, and mean green over mean blue, within the disc.
RED_TO_GREEN = (1.15, 8.0)
LEAST_GREEN_TO_BLUE = 0.95
#: Part of the disc that is overexposed or nearly black at most.
MOST_USELESS = 0.5


@dataclass(frozen=True)
class Field:
    """The disc in which the retina is seen; parts of it may lie outside of the picture.

    Parameters
    ----------
    row, column, radius
        Centre and radius in pixels; (0, 0) is the centre of the first pixel.
    """

    row: float
    column: float
    radius: float

    def mask(self, shape: tuple[int, int]) -> Array:
        """(rows, columns) bool: pixels whose centre lies in the disc."""
        rows = (np.arange(shape[0]) - self.row)[:, None]
        columns = (np.arange(shape[1]) - self.column)[None]
        inside: Array = rows**2 + columns**2 <= self.radius**2
        return inside


def find_field(frame: Frame, name: str = "the picture") -> Field:
    """Return where the retina is seen.

    Parameters
    ----------
    frame
        (rows, columns, 3) RGB.
    name
        What to call it in a refusal.

    Raises
    ------
    Refused
        The picture is not in colour, nothing round is lit in it, or it has not the colours of a retina.
    """
    pixels = frame.pixels
    if pixels.ndim != 3 or pixels.shape[2] != 3:
        words = f"{name} is not in colour: a colour photograph of the retina is needed"
        raise Refused(words, Reason.OUT_OF_DISTRIBUTION)
    step = max(1, max(pixels.shape[:2]) // _COARSE)
    coarse = pixels[::step, ::step]
    lit = _lit(coarse, name)
    disc = _disc(lit, name)
    _check_colours(coarse[disc.mask(lit.shape) & lit], name)
    field = Field(disc.row * step, disc.column * step, (disc.radius + 0.5) * step)
    if 2 * field.radius < LEAST_DIAMETER:
        words = f"the retina in {name} is only {2 * field.radius:.0f} pixels wide: at least {LEAST_DIAMETER}"
        raise Refused(words, Reason.TOO_SMALL)
    return field


def _lit(coarse: Array, name: str) -> Array:
    """Return the largest lit area without holes, (rows, columns) bool."""
    parts, count = scipy.ndimage.label(scipy.ndimage.binary_opening(coarse.max(axis=2) > LIT, iterations=2))
    if not count:
        raise Refused(f"{name} is dark: no retina is to be seen", Reason.INTENSITY)
    largest = parts == 1 + int(np.bincount(parts.ravel())[1:].argmax())
    filled: Array = scipy.ndimage.binary_fill_holes(largest)
    return filled


def _disc(lit: Array, name: str) -> Field:
    """Fit a circle to the edge of what is lit, where that is not the edge of the picture (least squares, Kåsa 1976)."""
    edge = lit & ~scipy.ndimage.binary_erosion(lit, border_value=1)
    rows, columns = np.nonzero(edge)
    if len(rows) < 30:
        words = f"{name} is lit from edge to edge: a photograph of the retina shows a disc on black"
        raise Refused(words, Reason.OUT_OF_DISTRIBUTION)
    terms = np.stack([2.0 * rows, 2.0 * columns, np.ones(len(rows))], axis=1)
    (row, column, rest), *_ = np.linalg.lstsq(terms, (rows**2 + columns**2).astype(np.float64), rcond=None)
    disc = Field(float(row), float(column), float(np.sqrt(max(rest + row**2 + column**2, 1.0))))
    inside = disc.mask(lit.shape)
    overlap = int(np.count_nonzero(inside & lit)) / (int(np.count_nonzero(inside | lit)) or 1)
    if overlap < LEAST_ROUND:
        raise Refused(
            f"what {name} shows is no disc ({100 * overlap:.0f} % overlap with one): no photograph of a retina",
            Reason.OUT_OF_DISTRIBUTION,
        )
    if 1.0 - np.count_nonzero(inside) / inside.size < LEAST_DARK:
        words = f"{name} has no dark corners: a photograph of the retina shows a disc on black"
        raise Refused(words, Reason.OUT_OF_DISTRIBUTION)
    return disc


def _check_colours(seen: Array, name: str) -> None:
    """Refuse colours that no retina has; `seen` is (pixels, 3)."""
    red, green, blue = (float(one) + 1.0 for one in seen.mean(axis=0))
    if not RED_TO_GREEN[0] <= red / green <= RED_TO_GREEN[1] or green / blue < LEAST_GREEN_TO_BLUE:
        raise Refused(
            f"{name} has not the colours of a retina (mean red {red:.0f}, green {green:.0f}, blue {blue:.0f})",
            Reason.OUT_OF_DISTRIBUTION,
        )
    brightest = seen.max(axis=1)
    useless = float(np.mean((brightest < 2 * LIT) | (seen.min(axis=1) > 250)))
    if useless > MOST_USELESS:
        words = f"{100 * useless:.0f} % of the retina in {name} is under- or overexposed"
        raise Refused(words, Reason.INTENSITY)
