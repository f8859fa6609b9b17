"""A CT that shows which way it is held: letters for left, right, front, back, head and feet, and where they truly are.

The letters stand in the voxels of a phantom's chest, bright and readable in a correct axial display; the findings mark
exactly their voxels. A viewer that mirrors or shifts an overlay shows it beside the letters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pacs_ai.dicom.identifiers import derive_uid
from pacs_ai.pipeline import LEFT, MILLILITRE, RIGHT, VOLUME, Card, Code, Findings, Input, Label, Measurement, Segment
from pacs_ai.testing.phantom import RESCALE_INTERCEPT, Phantom
from pacs_ai.testing.series import phantom_datasets

if TYPE_CHECKING:
    from datetime import datetime

    from pydicom import Dataset

#: 44 axial slices of 256 x 256, 7.5 x 1.41 x 1.41 mm: small, and of the whole chest.
GRID = Phantom(slices=44, rows=256, columns=256)
LETTER_HU = 900
#: Width and height of one dot of a letter, and its thickness from feet to head, mm.
DOT_MM, THICKNESS_MM = 7.0, 45.0
#: Letters of 5 x 7 dots, rows from the front to the back as a reader sees them.
_GLYPHS = {
    "L": ("X....", "X....", "X....", "X....", "X....", "X....", "XXXXX"),
    "R": ("XXXX.", "X...X", "X...X", "XXXX.", "X.X..", "X..X.", "X...X"),
    "A": (".XXX.", "X...X", "X...X", "XXXXX", "X...X", "X...X", "X...X"),
    "P": ("XXXX.", "X...X", "X...X", "XXXX.", "X....", "X....", "X...."),
    "H": ("X...X", "X...X", "X...X", "XXXXX", "X...X", "X...X", "X...X"),
    "F": ("XXXXX", "X....", "X....", "XXXX.", "X....", "X....", "X...."),
}


@dataclass(frozen=True)
class Mark:
    """One letter.

    Parameters
    ----------
    letter
        Of `_GLYPHS`.
    place
        What it marks, for people.
    centre
        x, y, z in LPS mm.
    label
        How the findings call it.
    """

    letter: str
    place: str
    centre: tuple[float, float, float]
    label: Label


def _mark(
    letter: str,
    place: str,
    centre: tuple[float, float, float],
    colour: tuple[int, int, int],
    modifier: Code | None = None,
) -> Mark:
    category, kind = Code("260787004", "SCT", "Physical object"), Code("19227008", "SCT", "Foreign body")
    return Mark(letter, place, centre, Label(f"{letter} ({place})", category, kind, modifier, colour))


MARKS = (
    _mark("L", "left", (110.0, 0.0, 0.0), (230, 60, 60), LEFT),
    _mark("R", "right", (-110.0, 0.0, 0.0), (60, 200, 60), RIGHT),
    _mark("A", "front", (0.0, -48.0, 0.0), (70, 140, 255)),
    _mark("P", "back", (0.0, 30.0, 0.0), (255, 200, 40)),
    _mark("H", "head end", (0.0, 0.0, 120.0), (220, 90, 220)),
    _mark("F", "feet end", (0.0, 0.0, -120.0), (60, 220, 220)),
)
CARD = Card(
    name="selftest",
    version="1",
    manufacturer="pacs_ai",
    title="Orientation self-test",
    inputs={"image": Input(("CT",))},
    labels=tuple(mark.label for mark in MARKS),
    procedure=Code("25045-6", "LN", "CT unspecified body region"),
    intended_use="To see whether a viewer shows overlays where they belong. No patient.",
)


def compass_series(moment: datetime) -> list[Dataset]:
    """Return the CT, in the order of Instance Number; another moment is another study of the same test patient.

    CT Image Storage, Explicit VR Little Endian, with file meta information; axial slices from feet to head.
    """
    datasets = phantom_datasets(GRID)
    voxels = _letters()
    study = derive_uid("selftest study", moment.isoformat())
    series = derive_uid("selftest series", moment.isoformat())
    for number, (ds, plane) in enumerate(zip(datasets, voxels, strict=True), 1):
        stored = np.frombuffer(ds.PixelData, "<i2").reshape(plane.shape).copy()
        stored[plane > 0] = LETTER_HU - RESCALE_INTERCEPT
        ds.PixelData = stored.tobytes()
        _identify(ds, moment)
        ds.StudyInstanceUID, ds.SeriesInstanceUID = study, series
        ds.FrameOfReferenceUID = derive_uid("selftest frame of reference", moment.isoformat())
        ds.SOPInstanceUID = derive_uid("selftest instance", moment.isoformat(), number)
        ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    return datasets


def _identify(ds: Dataset, moment: datetime) -> None:
    ds.PatientName, ds.PatientID = "SELFTEST^ORIENTATION", "PACS-AI-SELFTEST"
    ds.StudyID, ds.AccessionNumber = "SELFTEST", ""
    ds.StudyDescription = "pacs_ai orientation self-test"
    ds.SeriesDescription = "Orientation letters (no patient)"
    ds.StudyDate = ds.SeriesDate = ds.ContentDate = f"{moment:%Y%m%d}"
    ds.StudyTime = ds.SeriesTime = ds.ContentTime = f"{moment:%H%M%S}"


def compass_findings() -> Findings:
    """Return what a correct result says: one segment for each letter, with its volume."""
    voxels = _letters()
    voxel_ml = GRID.volume().voxel_ml
    segments = tuple(Segment(mark.label.name, voxels, number) for number, mark in enumerate(MARKS, 1))
    values = tuple(
        Measurement(VOLUME, int((voxels == segment.number).sum()) * voxel_ml, MILLILITRE, segment.label)
        for segment in segments
    )
    return Findings(segments, values)


def _letters() -> npt.NDArray[np.uint8]:
    """Return the numbers of the letters, (slices, rows, columns), 0 elsewhere."""
    voxels = np.zeros((GRID.slices, GRID.rows, GRID.columns), np.uint8)
    for number, mark in enumerate(MARKS, 1):
        voxels[_inside(mark)] = number
    return voxels


def _inside(mark: Mark) -> npt.NDArray[np.bool_]:
    """Return the voxels of one letter, by their centres in the patient."""
    glyph = np.array([[dot == "X" for dot in row] for row in _GLYPHS[mark.letter]])
    rows, columns = glyph.shape
    x, y, z = (_axis(axis) - centre for axis, centre in enumerate(mark.centre))
    column = np.floor(x / DOT_MM + columns / 2).astype(int)  # to the patient's left, on the reader's right
    row = np.floor(y / DOT_MM + rows / 2).astype(int)  # to the back, downwards
    shown = np.zeros((GRID.rows, GRID.columns), bool)
    across, down = (column >= 0) & (column < columns), (row >= 0) & (row < rows)
    shown[np.ix_(down, across)] = glyph[np.ix_(row[down], column[across])]
    return (np.abs(z) <= THICKNESS_MM / 2)[:, None, None] & shown


def _axis(axis: int) -> npt.NDArray[Any]:
    """Return the coordinates of the voxel centres along x, y or z in LPS mm: the grid is axial, so they stand alone."""
    along = {0: 2, 1: 1, 2: 0}[axis]
    count = (GRID.slices, GRID.rows, GRID.columns)[along]
    return np.asarray(GRID.affine[axis, 3] + np.arange(count) * GRID.affine[axis, along])
