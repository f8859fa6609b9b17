"""Which images of a series are frontal chest films: by what the header says, and by what they look like.

The look is held against the mean of the films that the student was trained on and against their principal components
(films of 32 x 32 pixels, after `radiograph.shrunk`), so that a lateral, a knee, a film upside down or with wrong
polarity, or a photograph is refused before any network sees it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pacs_ai.errors import Reason
from pacs_ai.models.readings.radiograph import is_raw, shrunk

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from pacs_ai.pipeline import Array, Frame

#: Rows and columns of the films that are compared.
SIDE = 32
#: View Position, or meaning of the View Code, of a frontal film (PS3.3 C.8.11.5.1, C.8.1.2), and body parts that a
#: chest film may state (PS3.16 L).
FRONTAL = ("PA", "AP", "FRONTAL")
CHEST = ("CHEST", "THORAX", "LUNG", "PORT CHEST")
_SMALLEST = 256
_ASPECT = (0.6, 1.7)


@dataclass(frozen=True)
class Look:
    """What frontal chest films look like.

    Parameters
    ----------
    mean
        (1024,) float32, the mean film.
    axes
        (components, 1024) float32, orthonormal.
    likeness
        Least correlation with the mean film.
    residue
        Largest part of the variance that the components leave unexplained.
    """

    mean: Array
    axes: Array
    likeness: float
    residue: float

    @classmethod
    def of(cls, tensors: Mapping[str, torch.Tensor], likeness: float, residue: float) -> Look:
        """Read the package's ``gate.safetensors``."""
        return cls(tensors["mean"].float().numpy(), tensors["axes"].float().numpy(), likeness, residue)

    def measure(self, pixels: Array) -> tuple[float, float]:
        """Return correlation with the mean film, and unexplained part of the variance."""
        film = standardised(pixels)
        correlation = float(film @ self.mean) / float(np.linalg.norm(film) * np.linalg.norm(self.mean) + 1e-6)
        left = film - self.mean
        left = left - self.axes.T @ (self.axes @ left)
        return correlation, float(left @ left) / left.size


def standardised(pixels: Array) -> Array:
    """Return a film (rows, columns) as (1024,) float32 of mean 0 and variance 1."""
    film = shrunk(pixels, SIDE).numpy().ravel()
    return np.asarray((film - film.mean()) / (film.std() + 1e-6), np.float32)


@dataclass(frozen=True)
class Objection:
    """Why an image is taken for no frontal chest film: in words for people, and the code of it."""

    words: str
    reason: Reason


def objection(frame: Frame, look: Look | None) -> Objection | None:
    """Return why an image is taken for no frontal chest film, None where nothing speaks against it."""
    return _by_header(frame) or _by_size(frame) or (None if look is None else _by_look(frame, look))


def _by_header(frame: Frame) -> Objection | None:
    view = (frame.header.get("ViewPosition") or frame.header.get("ViewCodeSequence", "")).strip().upper()
    part = frame.header.get("BodyPartExamined", "").strip().upper()
    if frame.pixels.ndim != 2:
        return Objection("it is a colour photograph, no radiograph", Reason.OUT_OF_DISTRIBUTION)
    if is_raw(frame.header):
        return Objection("it is the detector's raw image, for processing and not for presentation", Reason.INTENSITY)
    if part and part not in CHEST:
        return Objection(f"Body Part Examined is {part}, not CHEST", Reason.BODY_PART)
    if view and view not in FRONTAL:
        return Objection(f"the view is {view}: only frontal films (PA, AP) can be read", Reason.VIEW)
    return None


def _by_size(frame: Frame) -> Objection | None:
    rows, columns = frame.pixels.shape[:2]
    if min(rows, columns) < _SMALLEST:
        words = f"it has {columns} x {rows} pixels, fewer than {_SMALLEST} x {_SMALLEST}"
        return Objection(words, Reason.TOO_SMALL)
    if not _ASPECT[0] <= columns / rows <= _ASPECT[1]:
        words = f"it is {columns / rows:.2f} times as wide as high, which no chest film is"
        return Objection(words, Reason.OUT_OF_DISTRIBUTION)
    return None


def _by_look(frame: Frame, look: Look) -> Objection | None:
    correlation, residue = look.measure(frame.pixels)
    if correlation < look.likeness:
        figure = f"likeness {correlation:.2f}, at least {look.likeness:g}"
    elif residue > look.residue:
        figure = f"residue {residue:.2f}, at most {look.residue:g}"
    else:
        return None
    return Objection(f"it does not look like a frontal chest film ({figure})", Reason.OUT_OF_DISTRIBUTION)
