"""Images that a reading made anew beside those that it got: the middle slice of each series."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw
from pydicom import dcmread

from pacs_ai.encode.pictures.picture import font, grey
from pacs_ai.infer.volume import load_volume

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_SIDE, _LETTERS, _HEAD = 480, 18, 40
_BRIGHTEST = 99.7
_BLACK, _WHITE = (16, 18, 22), (235, 235, 235)


def draw(paths: Sequence[Path], picture: Path, received: Sequence[Path] = ()) -> None:
    """Write a picture of what was received and of the series that were made, each under its description.

    Parameters
    ----------
    paths
        Derived images of one or several series, of volumes; in the order of their numbers.
    picture
        Where it is written, as PNG.
    received
        Images of the study that was sent; the series of the same modality as the derived ones is drawn first.
    """
    series: dict[tuple[int, str, str], list[Path]] = {}
    modalities = set()
    for path in paths:
        ds = dcmread(path, stop_before_pixels=True)
        modalities.add(ds.Modality)
        key = (int(ds.SeriesNumber), str(ds.SeriesDescription), str(ds.SeriesInstanceUID))
        series.setdefault(key, []).append(path)
    for path in received:
        ds = dcmread(path, stop_before_pixels=True)
        if ds.get("Modality") in modalities:
            series.setdefault((-1, "As received", str(ds.SeriesInstanceUID)), []).append(path)
    page = Image.new("RGB", (_SIDE * len(series), _SIDE + _HEAD), _BLACK)
    pen = ImageDraw.Draw(page)
    for column, ((_, description, _), files) in enumerate(sorted(series.items())):
        page.paste(_middle(files), (column * _SIDE, _HEAD))
        pen.text((column * _SIDE + 8, 8), description, fill=_WHITE, font=font(_LETTERS))
    page.save(picture)


def _middle(files: Sequence[Path]) -> Image.Image:
    """Return the middle slice, bright up to nearly the brightest of the series, in true proportions."""
    volume = load_volume(files).volume
    plane = volume.voxels[len(volume.voxels) // 2]
    _, row_mm, column_mm = volume.spacing
    drawn = Image.fromarray(grey(plane, (0.0, max(float(np.percentile(volume.voxels, _BRIGHTEST)), 1e-6))))
    rows, columns = plane.shape[0] * row_mm, plane.shape[1] * column_mm
    factor = _SIDE / max(rows, columns)
    small = drawn.resize((max(1, round(columns * factor)), max(1, round(rows * factor))))
    cell = Image.new("RGB", (_SIDE, _SIDE), _BLACK)
    cell.paste(small.convert("RGB"), ((_SIDE - small.width) // 2, (_SIDE - small.height) // 2))
    return cell
