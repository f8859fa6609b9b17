"""A frontal chest film for the demo, and a phantom of one that the reading's gate tells from a patient.

The film is one of ChestX-ray14 (NIH Clinical Center; no restriction of use, attribution), not among those that the
student was trained on, and comes with its package: no phantom is enough like a film for its gate.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage

from pacs_ai.models.package import ZOO
from pacs_ai.testing.photographs import Case, film, write_images

if TYPE_CHECKING:
    from pathlib import Path

FILM = ZOO / "chest-film" / "example.png"
_SIDE, _SEED = 512, 3


def pixels() -> npt.NDArray[np.uint8]:
    """Return (512, 512) uint8: a film with a large heart and a pleural effusion, as the NIH's labels say."""
    with Image.open(FILM) as opened:
        return np.asarray(opened.convert("L"))


def phantom() -> npt.NDArray[np.uint8]:
    """Return (512, 512) uint8: two dark lungs, heart, spine and diaphragm in a bright body, no more."""
    y, x = (one / _SIDE for one in np.mgrid[0:_SIDE, 0:_SIDE])
    x = x - 0.5
    thick = 0.7 * ((np.abs(x) < 0.46) & (y > 0.06))
    for centre, base in ((-0.2, 0.74), (0.2, 0.77)):
        lung = ((x - centre) / 0.15) ** 2 + ((y - 0.48) / 0.37) ** 2 < 1
        thick = np.where(lung & (y < base), 0.22, thick)
    thick = np.where(((x - 0.06) / 0.13) ** 2 + ((y - 0.62) / 0.15) ** 2 < 1, 0.75, thick)
    thick = np.where(np.abs(x) < 0.04, 0.85, thick)
    noise = 0.01 * np.random.default_rng(_SEED).standard_normal(thick.shape)
    return np.asarray(np.round(255 * np.clip(ndimage.gaussian_filter(thick, 2) + noise, 0, 1)), np.uint8)


def write(folder: Path, **attributes: Any) -> None:
    """Write the film as a Digital X-Ray image."""
    case = Case("chest-film-sample", study_description="Chest PA", series_description="PA")
    write_images(folder, [film(pixels(), case, **attributes)])
