"""An ellipse fitted through points of an outline, with its circumference, axes and interior: how a head is measured.

The fit is the direct least-squares fit of Fitzgibbon, Pilu and Fisher (IEEE TPAMI 21(5), 1999) in the numerically
stable form of Halir and Flusser (WSCG 1998); the circumference is Ramanujan's second approximation (1914), which is
exact to 1e-6 for the shapes of heads.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from pacs_ai.pipeline import Array

Points = npt.NDArray[np.float64]
#: Fewest points that determine an ellipse.
FEWEST = 6


@dataclass(frozen=True)
class Ellipse:
    """An ellipse in the plane.

    Parameters
    ----------
    centre
        (x, y).
    long, short
        Half axes, `long` the larger one.
    angle
        Of the long axis against x, radians, from -pi/2 to pi/2.
    """

    centre: tuple[float, float]
    long: float
    short: float
    angle: float

    @property
    def circumference(self) -> float:
        """Length of the outline (Ramanujan)."""
        a, b = self.long, self.short
        h = ((a - b) / (a + b)) ** 2
        return math.pi * (a + b) * (1 + 3 * h / (10 + math.sqrt(4 - 3 * h)))

    @property
    def area(self) -> float:
        """Area inside."""
        return math.pi * self.long * self.short

    @property
    def axes(self) -> Points:
        """(2, 2): the half axes as vectors (x, y), the long one first."""
        cosine, sine = math.cos(self.angle), math.sin(self.angle)
        return np.asarray([[cosine * self.long, sine * self.long], [-sine * self.short, cosine * self.short]])

    @property
    def ends(self) -> Points:
        """(4, 2): both ends of the long axis, then of the short one (PS3.3 C.18.6.1.2)."""
        long, short = self.axes
        centre = np.asarray(self.centre)
        return np.stack([centre - long, centre + long, centre - short, centre + short])

    def outline(self, count: int = 128) -> Points:
        """(count, 2) points of the outline."""
        turn = np.linspace(0, 2 * math.pi, count, endpoint=False)
        return np.asarray(self.centre) + np.stack([np.cos(turn), np.sin(turn)], axis=1) @ self.axes

    def inside(self, points: Array) -> npt.NDArray[np.bool_]:
        """Return (n,) whether the points (n, 2) lie inside."""
        long, short = self.axes
        from_centre = np.asarray(points, np.float64) - np.asarray(self.centre)
        along, across = from_centre @ long / self.long**2, from_centre @ short / self.short**2
        return np.asarray(along**2 + across**2 <= 1)

    def mask(self, rows: int, columns: int) -> npt.NDArray[np.bool_]:
        """(rows, columns) of the pixels whose centres lie inside; (0, 0) is the corner of the first pixel."""
        x, y = np.meshgrid(np.arange(columns) + 0.5, np.arange(rows) + 0.5)
        return self.inside(np.stack([x.ravel(), y.ravel()], axis=1)).reshape(rows, columns)


def fit_ellipse(points: Array) -> Ellipse | None:
    """Fit an ellipse through (n, 2) points (x, y); None where none fits (a line, a hyperbola, under six points)."""
    given = np.asarray(points, np.float64)
    if len(given) < FEWEST:
        return None
    centre, scale = given.mean(axis=0), float(given.std())
    if scale <= 0:
        return None
    conic = _conic(*((given - centre) / scale).T)
    found = None if conic is None else _of_conic(conic)
    if found is None:
        return None
    x, y = centre + scale * np.asarray(found.centre)
    return Ellipse((float(x), float(y)), found.long * scale, found.short * scale, found.angle)


def _conic(x: npt.NDArray[Any], y: npt.NDArray[Any]) -> Points | None:
    """Return a to f of a x^2 + b xy + c y^2 + d x + e y + f = 0 under 4ac - b^2 = 1 (Halir and Flusser, figure 2)."""
    squares, lines = np.stack([x * x, x * y, y * y]), np.stack([x, y, np.ones_like(x)])
    mixed, linear = squares @ lines.T, lines @ lines.T
    if np.linalg.matrix_rank(linear) < 3:
        return None
    back = -np.linalg.solve(linear, mixed.T)
    reduced = squares @ squares.T + mixed @ back
    constrained = np.stack([reduced[2] / 2, -reduced[1], reduced[0] / 2])
    vectors = np.real(np.linalg.eig(constrained)[1])
    kept = np.flatnonzero(4 * vectors[0] * vectors[2] - vectors[1] ** 2 > 0)
    if not kept.size:
        return None
    quadratic = vectors[:, kept[0]]
    return np.concatenate([quadratic, back @ quadratic])


def _of_conic(conic: Points) -> Ellipse | None:
    """Return the ellipse of a conic's coefficients, None where it is empty."""
    a, b, c, d, e, f = conic
    matrix = np.asarray([[a, b / 2], [b / 2, c]])
    centre = np.linalg.solve(2 * matrix, [-d, -e])
    at_centre = f + (d * centre[0] + e * centre[1]) / 2
    values, vectors = np.linalg.eigh(matrix)
    with np.errstate(divide="ignore", invalid="ignore"):
        halves = np.sqrt(-at_centre / values)
    if not np.isfinite(halves).all() or halves.min() <= 0:
        return None
    first = int(halves.argmax())
    x, y = vectors[:, first]
    angle = math.atan2(y, x)
    angle -= math.pi * round(angle / math.pi)
    return Ellipse((float(centre[0]), float(centre[1])), float(halves[first]), float(halves[1 - first]), angle)


def overlap(one: Ellipse, other: Ellipse, size: tuple[int, int]) -> float:
    """Return the Dice coefficient of two ellipses on a grid of that many rows and columns."""
    first, second = one.mask(*size), other.mask(*size)
    total = int(first.sum()) + int(second.sum())
    return 2 * int((first & second).sum()) / total if total else 0.0
