"""The source images with what was found drawn into them, in colour: all slices in one object, or those that matter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydicom import Dataset
from pydicom.tag import Tag

from pacs_ai.encode.grid import Grid, frame_of_reference
from pacs_ai.encode.pictures import picture
from pacs_ai.encode.pictures.legend import Line, detection_names, legend
from pacs_ai.encode.pictures.montage import mark_directions
from pacs_ai.encode.pictures.secondary_capture import SEGMENTATION, colour_image, finished, reference
from pacs_ai.encode.provenance import concept
from pacs_ai.encode.voxels.survey import plane
from pacs_ai.pipeline import Frames

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pacs_ai.dicom.evidence import FrameReference
    from pacs_ai.encode.case import Case
    from pacs_ai.encode.encoded import Encoded
    from pacs_ai.profiles import Encoding

#: Smaller images are enlarged by a whole number, so that the words on them can be read.
LEAST_WIDTH = 256
ENLARGED_WIDTH = 384
#: Lines of the legend on one image.
LEGEND_LINES = 8
PAGE_NUMBER_VECTOR = Tag(0x00182001)

Colour = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Drawing:
    """What is drawn on each image.

    Parameters
    ----------
    case
        The analysis.
    lines
        Of the legend, by what they are of.
    names
        Of the detections.
    grid
        Where the slices lie; None of projection and ultrasound images.
    """

    case: Case
    lines: tuple[Line, ...]
    names: tuple[str, ...]
    grid: Grid | None

    @classmethod
    def of(cls, case: Case) -> Drawing:
        """Prepare what all images share."""
        lines = legend(case.findings, case.card, case.ground, case.counts)
        grid = Grid.of(case.own) if case.has_volume else None
        return cls(case, lines, detection_names(case.findings, case.card), grid)

    @property
    def order(self) -> list[int]:
        """The slices along the normal, or the images as they were given."""
        if self.grid is None:
            return list(range(len(self.case.own.slices)))
        return [int(index) for index in self.grid.along_normal]

    def image(self, index: int) -> Colour:
        """Return one slice or image, (rows, columns, 3) uint8, `factor` times enlarged, with everything on it."""
        case, (rows, columns) = self.case, size_of(self.case, index)
        source = case.own.slices[index]
        stated = picture.stated_window(_dataset(case, source), source.frame_number)
        window = picture.window_of(case.ground, case.card, index, stated)
        shown = Image.fromarray(picture.grey(picture.plane_of(case.ground, index), window))
        if shown.size != (columns, rows):
            shown = shown.resize((columns, rows), Image.Resampling.BICUBIC)
        drawn = shown.convert("RGB")
        rim = max(1, columns // 600)
        present = self._draw_segments(drawn, index, rim) + self._draw_detections(drawn, index, rim + 1)
        self._write(drawn, index, present)
        return np.asarray(drawn)

    def _draw_segments(self, drawn: Image.Image, index: int, rim: int) -> list[str]:
        case, present = self.case, []
        for segment, row in case.filled:
            if row[index]:
                label = case.card.label(segment.label)
                picture.tint(drawn, plane(segment, index), label.colour, rim)
                present.append(picture.label_name(case.card, label.name))
        return present

    def _draw_detections(self, drawn: Image.Image, index: int, width: int) -> list[str]:
        case = self.case
        factor = drawn.width / picture.plane_of(case.ground, index).shape[1]
        here = [
            (
                [line * factor for line in picture.lines_of(detection, index)],
                case.card.label(detection.label).colour,
                name,
            )
            for detection, name in zip(case.findings.detections, self.names, strict=True)
        ]
        picture.draw_detections(drawn, here, width, _letters(drawn))
        return [name for lines, _, name in here if lines]

    def _write(self, drawn: Image.Image, index: int, present: Sequence[str]) -> None:
        """Write the disclaimer, the legend of what is on this image, and the patient's directions."""
        size = _letters(drawn)
        warning = picture.warning(self.case.card)
        rows = [warning] if picture.text_width(warning, size) < drawn.width - size else warning.split(", ", 1)
        for number, row in enumerate(rows):
            picture.write(drawn, (size // 2, size // 2 + number * size * 1.3), row, size, picture.AMBER)
        lines = [line for line in self.lines if line.name in present or line.colour is None]
        words = [_words(line, drawn.width - 2 * size, size) for line in lines[:LEGEND_LINES]]
        if len(lines) > LEGEND_LINES:
            words.append((None, f"and {len(lines) - LEGEND_LINES} more"))
        for number, (colour, text) in enumerate(reversed(words)):
            at = (size // 2, drawn.height - size // 2 - number * size * 1.3)
            picture.write(drawn, at, text, size, colour or picture.INK, anchor="ls")
        right, down = directions(self.case, index)
        mark_directions(drawn, right, down, size)


def _words(line: Line, room: int, size: int) -> tuple[picture.Colour | None, str]:
    """Return a line of the legend: its name with as many values as fit, and dots where there are more."""
    text = line.name
    for number, (what, value) in enumerate(line.values, start=1):
        longer = f"{text}, {what} {value}".rstrip() if text != line.name else f"{text}: {what} {value}".rstrip()
        dots = " ..." if number < len(line.values) else ""
        if picture.text_width(longer + dots, size) > room:
            text += " ..."
            break
        text = longer
    return line.colour, text


def _letters(drawn: Image.Image) -> int:
    return max(11, min(drawn.width, drawn.height) // 36)


def _dataset(case: Case, source: FrameReference) -> Dataset:
    return next(ds for ds in case.own.datasets if str(ds.SOPInstanceUID) == source.sop_instance_uid)


def factor_of(case: Case, index: int) -> int:
    """Return by how much an image is enlarged."""
    columns = int(picture.plane_of(case.ground, index).shape[1])
    return 1 if columns >= LEAST_WIDTH else -(-ENLARGED_WIDTH // columns)


def size_of(case: Case, index: int) -> tuple[int, int]:
    """Return rows and columns of a drawn image."""
    factor = factor_of(case, index)
    rows, columns = picture.plane_of(case.ground, index).shape[:2]
    return int(rows) * factor, int(columns) * factor


def directions(case: Case, index: int) -> tuple[str, str]:
    """Return where rows and columns run to in the patient, two blanks where nothing says it."""
    if isinstance(case.ground, Frames):
        return picture.patient_orientation(case.ground.images[index].header.get("PatientOrientation"))
    affine = case.ground.affine
    right, down = (picture.direction_letters(affine[:3, axis]) for axis in (2, 1))
    return right, down


def encode_overlay(case: Case, encoding: Encoding, _cited: Encoded | None) -> tuple[Encoded, ...]:
    """Return the source images with the findings drawn into them, as colour Secondary Captures.

    `multi-frame`: every slice, in the order along the normal, with its geometry; one object for each size of image.
    None where nothing was found that could be drawn. `single-frame`: an object for each slice that has a finding, or
    for the middle one where none has, with its geometry (Image Plane is a module of the current Secondary Capture
    Image IOD, PS3.3 A.8.1.3; older receivers see a Standard Extended one).

    Raises
    ------
    Permanent
        Where an object would exceed 2 GiB.
    """
    drawing = Drawing.of(case)
    found = _found(drawing)
    if encoding.form == "single-frame":
        chosen = found or [drawing.order[len(case.own.slices) // 2]]
        return tuple(_single(drawing, encoding, index, number) for number, index in enumerate(chosen, 1))
    if not found:
        return ()
    groups = _alike(case, drawing.order) if isinstance(case.ground, Frames) else [drawing.order]
    return tuple(_multi(drawing, encoding, group, number) for number, group in enumerate(groups, 1))


def _alike(case: Case, order: Sequence[int]) -> list[list[int]]:
    """Return the images that may share one object, which states size, directions and pixel spacing once for all."""
    groups: dict[object, list[int]] = {}
    for index in order:
        alike = (size_of(case, index), directions(case, index), picture.spacing_of(case.ground, index))
        groups.setdefault(alike, []).append(index)
    return list(groups.values())


def _found(drawing: Drawing) -> list[int]:
    """Return the slices or images that something is drawn on, along the normal."""
    case = drawing.case
    used = {int(index) for row in case.counts for index in np.flatnonzero(row)}
    used |= {index for detection in case.findings.detections for index in picture.indices_of(detection)}
    return [index for index in drawing.order if index in used]


def _single(drawing: Drawing, encoding: Encoding, index: int, number: int) -> Encoded:
    case, image = drawing.case, drawing.image(index)
    result = colour_image(case, encoding, image.shape, number)
    right, down = directions(case, index)
    result.PatientOrientation = [right, down] if right else None
    result.SourceImageSequence = [reference(case.own.slices[index])]
    for name, value in _plane(drawing, index).items():
        setattr(result, name, value)
    if case.has_volume:
        _set_frame_of_reference(case, result)
    return finished(case, encoding, result, [image])


def _plane(drawing: Drawing, index: int) -> dict[str, object]:
    """Return Image Position and Orientation (Patient) and Pixel Spacing of a drawn image, as far as they are known."""
    case, grid = drawing.case, drawing.grid
    factor = factor_of(case, index)
    if grid is None:
        spacing = picture.spacing_of(case.ground, index)
        return {} if spacing is None else {"PixelSpacing": _texts([one / factor for one in spacing])}
    measures = grid.measures
    pixel = [float(value) for value in measures["PixelSpacing"]]
    position = grid.positions[index]
    if factor > 1:  # the first pixel's centre lies nearer to the corner
        along, down = np.array(grid.orientation[:3]), np.array(grid.orientation[3:])
        position = position + (1 / factor - 1) / 2 * (along * pixel[1] + down * pixel[0])
    return {
        "ImagePositionPatient": grid.places[index].split("\\") if factor == 1 else _texts(position.tolist()),
        "ImageOrientationPatient": measures["ImageOrientationPatient"],
        "PixelSpacing": measures["PixelSpacing"] if factor == 1 else _texts([one / factor for one in pixel]),
        "SliceThickness": measures.get("SliceThickness"),
    }


def _texts(values: Sequence[float]) -> list[str]:
    return [f"{value:.8g}" for value in values]


def _set_frame_of_reference(case: Case, result: Dataset) -> None:
    result.FrameOfReferenceUID = frame_of_reference(case.source)
    result.PositionReferenceIndicator = case.source.get("PositionReferenceIndicator") or None


def _multi(drawing: Drawing, encoding: Encoding, indices: Sequence[int], number: int) -> Encoded:
    case = drawing.case
    result = colour_image(case, encoding, size_of(case, indices[0]), number)
    result.NumberOfFrames = len(indices)
    if len(indices) > 1:
        result.FrameIncrementPointer = PAGE_NUMBER_VECTOR
        result.PageNumberVector = list(range(1, len(indices) + 1))
    right, down = directions(case, indices[0])
    result.PatientOrientation = [right, down] if right else None
    result.SourceImageSequence = [reference(case.own.slices[index]) for index in indices]
    if case.has_volume:
        _set_frame_of_reference(case, result)
        _set_functional_groups(drawing, encoding, result, indices)
    else:
        for name, value in _plane(drawing, indices[0]).items():
            setattr(result, name, value)
    return finished(case, encoding, result, _images(drawing, indices))


def _images(drawing: Drawing, indices: Sequence[int]) -> Iterator[Colour]:
    for index in indices:
        yield drawing.image(index)


def _set_functional_groups(drawing: Drawing, encoding: Encoding, result: Dataset, indices: Sequence[int]) -> None:
    """Say where each frame lies and what it was drawn on (PS3.3 A.8.5.5), in place."""
    case = drawing.case
    planes = [_plane(drawing, index) for index in indices]
    shared = Dataset()
    shared.PixelMeasuresSequence = [_item(planes[0], "PixelSpacing", "SliceThickness")]
    shared.PlaneOrientationSequence = [_item(planes[0], "ImageOrientationPatient")]
    result.SharedFunctionalGroupsSequence = [shared]
    result.PerFrameFunctionalGroupsSequence = [
        _frame(case, where, index, place) for place, (where, index) in enumerate(zip(planes, indices, strict=True), 1)
    ]
    organization = case.work.uid(encoding.key, "dimension organization")
    owner = Dataset()
    owner.DimensionOrganizationUID = organization
    result.DimensionOrganizationSequence = [owner]
    along = Dataset()
    along.DimensionOrganizationUID = organization
    along.DimensionIndexPointer = Tag("ImagePositionPatient")
    along.FunctionalGroupPointer = Tag("PlanePositionSequence")
    result.DimensionIndexSequence = [along]


def _item(values: dict[str, object], *keywords: str) -> Dataset:
    item = Dataset()
    for keyword in keywords:
        if values.get(keyword):
            setattr(item, keyword, values[keyword])
    return item


def _frame(case: Case, where: dict[str, object], index: int, place: int) -> Dataset:
    frame, content, derivation = Dataset(), Dataset(), Dataset()
    content.DimensionIndexValues = [place]
    derivation.SourceImageSequence = [reference(case.own.slices[index])]
    derivation.DerivationCodeSequence = [concept(SEGMENTATION)]
    frame.FrameContentSequence = [content]
    frame.DerivationImageSequence = [derivation]
    frame.PlanePositionSequence = [_item(where, "ImagePositionPatient")]
    return frame
