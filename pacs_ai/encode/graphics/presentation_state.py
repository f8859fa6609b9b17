"""Grayscale Softcopy Presentation State (GSPS): the outlines of what was found, drawn over the source images."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from highdicom.color import CIELabColor
from pydicom import Dataset

from pacs_ai.encode.body_part import copy_body_part
from pacs_ai.encode.encoded import encoded, plain
from pacs_ai.encode.explicit import element, item, sequence
from pacs_ai.encode.graphics.contours import rings
from pacs_ai.encode.identity import own_copy, request_items
from pacs_ai.encode.pictures.picture import NOT_VERIFIED, warning
from pacs_ai.encode.provenance import LONG_STRING, clean, stamp
from pacs_ai.encode.voxels.survey import plane
from pacs_ai.pipeline import Shape

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from pacs_ai.dicom.evidence import FrameReference
    from pacs_ai.encode.case import Case
    from pacs_ai.encode.encoded import Encoded
    from pacs_ai.pipeline import Array, Detection, Label
    from pacs_ai.profiles import Encoding

GRAPHIC_ANNOTATIONS, GRAPHIC_LAYER, TEXT_OBJECTS, GRAPHIC_OBJECTS = 0x00700001, 0x00700002, 0x00700008, 0x00700009
#: Graphic Data (0070,0022) has VR FL: at most 65534 bytes in Explicit VR, so 8191 points of two floats (PS3.5 7.1.2).
MAX_POINTS = 8190
TEXT_LAYER = "AI_TEXT"
#: Where the text stands: left and top, right and bottom, as parts of what is displayed (PS3.3 C.10.5.1.2, DISPLAY).
TEXT_BOX = ((0.02, 0.90), (0.60, 0.98))
WHITE = (255, 255, 255)
MODALITY_LUT = ("RescaleIntercept", "RescaleSlope", "RescaleType")
VOI = ("WindowCenter", "WindowWidth", "WindowCenterWidthExplanation", "VOILUTFunction")
#: Functional groups that hold the same of a frame of an enhanced image (PS3.3 C.7.6.16.2.9 and 10).
GROUPS = ("PixelValueTransformationSequence", "FrameVOILUTSequence", "PixelMeasuresSequence")


@dataclass(frozen=True)
class Graphic:
    """One line, point or ellipse on one image: Graphic Type, (points, 2) of (column, row), and the text beside it."""

    label: str
    type: str
    points: npt.NDArray[np.float32]
    text: str = ""


@dataclass(frozen=True)
class Picture:
    """One source image or frame with what is drawn on it; `shown` are its attributes for display, frame's own first."""

    reference: FrameReference
    shown: Dataset
    graphics: tuple[Graphic, ...]


def encode_presentation_state(case: Case, encoding: Encoding, _cited: Encoded | None) -> tuple[Encoded, ...]:
    """Return the presentation states (PS3.3 A.33.1): one for each way in which stored values become shades of grey.

    A CT series has one; images that differ in rescale or in MONOCHROME1 and 2 cannot share one (PS3.3 C.11.1, C.11.6).
    None where nothing has an outline. Colour images are left out: the IOD is for greyscale.
    """
    alike: dict[tuple[str, ...], list[Picture]] = {}
    for picture in _pictures(case):
        if str(picture.shown.get("PhotometricInterpretation", "MONOCHROME2")).startswith("MONOCHROME"):
            alike.setdefault(_grey(picture.shown), []).append(picture)
    results = []
    said = warning(case.card)
    for number, pictures in enumerate(alike.values()):
        labels = [label for label in case.card.labels if any(_drawn(picture, label) for picture in pictures)]
        layers = {label.name: f"AI_{place}" for place, label in enumerate(labels, 1)}
        result = _state(case, pictures)
        result.GraphicLayerSequence = [*map(_layer, layers.values(), labels), _text_layer(len(labels) + 1)]
        result.SOPInstanceUID = case.work.uid(encoding.key, "instance", number + 1)
        result.SeriesInstanceUID = case.work.uid(encoding.series)
        result.InstanceNumber = encoding.instance_number + number
        stamp(result, case.source, case.work, encoding)
        result.PresentationCreationDate, result.PresentationCreationTime = result.ContentDate, result.ContentTime
        ending = Dataset()
        for found in list(result)[::-1]:
            if found.tag > GRAPHIC_ANNOTATIONS:
                ending.add(found)
                del result[found.tag]
        drawn = element(GRAPHIC_ANNOTATIONS, b"SQ", b"".join(item(one) for one in _annotations(pictures, layers, said)))
        results.append(encoded(encoding, result, drawn, plain(ending)))
    return tuple(results)


def _pictures(case: Case) -> Iterator[Picture]:
    """Yield the images that bear findings, in their order."""
    own = {str(ds.SOPInstanceUID): ds for ds in case.own.datasets}
    drawn: dict[int, list[Graphic]] = {}
    for segment, row in case.filled:
        for index in np.flatnonzero(row).tolist():
            outlines = [ring for part in rings(plane(segment, index)) for ring in part]
            drawn.setdefault(index, []).extend(_outline(segment.label, ring) for ring in outlines)
    for detection in case.findings.detections:
        for index, graphic in _detected(detection):
            drawn.setdefault(index, []).append(graphic)
    for index in sorted(drawn):
        reference = case.own.slices[index]
        shown = _displayed(own[reference.sop_instance_uid], reference.frame_number)
        yield Picture(reference, shown, tuple(drawn[index]))


def _outline(label: str, ring: npt.NDArray[np.float64]) -> Graphic:
    closed = np.concatenate([ring, ring[:1]])
    if len(closed) > MAX_POINTS:
        closed = closed[np.linspace(0, len(closed) - 1, MAX_POINTS).round().astype(int)]
    return Graphic(label, Shape.POLYLINE.value, np.asarray(closed, np.float32))


def _detected(detection: Detection) -> Iterator[tuple[int, Graphic]]:
    """Yield the region and the two diameters of a detection, each with its image; the first one bears the text."""
    probability = "" if detection.probability is None else f" {100 * detection.probability:.0f} %"
    text = detection.label + probability
    if detection.region is not None:
        region = detection.region
        yield region.index, Graphic(detection.label, region.shape.value, _points(region.points), text)
        text = ""
    if detection.diameters is not None:
        axes = detection.diameters
        yield axes.index, Graphic(detection.label, Shape.POLYLINE.value, _points(axes.long_axis), text)
        yield axes.index, Graphic(detection.label, Shape.POLYLINE.value, _points(axes.short_axis))


def _points(points: Array) -> npt.NDArray[np.float32]:
    return np.asarray(points, np.float32).reshape(-1, 2)


def _displayed(ds: Dataset, frame_number: int | None) -> Dataset:
    """Return an image's attributes for display at the root, with a frame's own from the functional groups."""
    shown = Dataset()
    wanted = (*MODALITY_LUT, *VOI, "PhotometricInterpretation", "Rows", "Columns", "PixelSpacing")
    holders = [ds]
    if frame_number is not None and ds.get("PerFrameFunctionalGroupsSequence"):
        shared = ds.get("SharedFunctionalGroupsSequence") or []
        groups = [*shared[:1], ds.PerFrameFunctionalGroupsSequence[frame_number - 1]]
        holders += [group[keyword].value[0] for group in groups for keyword in GROUPS if group.get(keyword)]
    for holder in holders:
        for keyword in (*wanted, "ModalityLUTSequence", "VOILUTSequence", "PixelAspectRatio"):
            if holder.get(keyword) not in (None, "", []):
                shown.add(own_copy(holder[keyword]))
    return shown


def _grey(shown: Dataset) -> tuple[str, ...]:
    """Return what all images of one presentation state must share."""
    numbers = tuple(str(shown.get(keyword, "")) for keyword in MODALITY_LUT)
    return (*numbers, str(shown.get("ModalityLUTSequence", "")), str(shown.get("PhotometricInterpretation", "")))


def _state(case: Case, pictures: Sequence[Picture]) -> Dataset:
    """Return the presentation state without identity, UIDs and numbers."""
    result = Dataset()
    result.SOPClassUID = "1.2.840.10008.5.1.4.1.1.11.1"
    result.Modality = "PR"
    result.ContentLabel = "AI_CONTOURS"
    result.ContentDescription = clean(f"{warning(case.card)}: {case.card.title}", LONG_STRING)
    result.ContentCreatorName = None
    copy_body_part(result, case.source)
    order = request_items(case.source)
    if order:
        result.RequestAttributesSequence = order
    series = Dataset()
    series.SeriesInstanceUID = case.source.SeriesInstanceUID
    series.ReferencedImageSequence = _references(pictures)
    result.ReferencedSeriesSequence = [series]
    result.DisplayedAreaSelectionSequence = _selected(pictures, _area)
    voi = [picture for picture in pictures if _window(picture.shown)]
    if voi:
        result.SoftcopyVOILUTSequence = _selected(voi, _window)
    _set_greyscale(result, pictures[0].shown)
    return result


def _set_greyscale(result: Dataset, shown: Dataset) -> None:
    """State Modality LUT and Presentation LUT as the images have them: what is absent here would be ignored there."""
    for keyword in (*MODALITY_LUT, "ModalityLUTSequence"):
        if keyword in shown:
            result.add(own_copy(shown[keyword]))
    if "RescaleSlope" in result and "RescaleType" not in result:
        result.RescaleType = "US"  # unspecified
    inverse = shown.get("PhotometricInterpretation") == "MONOCHROME1"
    result.PresentationLUTShape = "INVERSE" if inverse else "IDENTITY"


def _drawn(picture: Picture, label: Label) -> bool:
    return any(graphic.label == label.name for graphic in picture.graphics)


def _references(pictures: Iterable[Picture]) -> list[Dataset]:
    """Return the images, each once, with the frames where not the whole image is meant (PS3.3 Table 10-3)."""
    frames: dict[tuple[str, str], list[int]] = {}
    for picture in pictures:
        reference = picture.reference
        numbers = frames.setdefault((reference.sop_class_uid, reference.sop_instance_uid), [])
        if reference.frame_number is not None:
            numbers.append(reference.frame_number)
    items = []
    for (sop_class_uid, sop_instance_uid), numbers in frames.items():
        item = Dataset()
        item.ReferencedSOPClassUID = sop_class_uid
        item.ReferencedSOPInstanceUID = sop_instance_uid
        if numbers:
            item.ReferencedFrameNumber = numbers
        items.append(item)
    return items


def _selected(pictures: Sequence[Picture], describe: Any) -> list[Dataset]:
    """Return one item for all images that are described alike, each with its images."""
    alike: dict[str, tuple[Dataset, list[Picture]]] = {}
    for picture in pictures:
        item = describe(picture.shown)
        alike.setdefault(str(item), (item, []))[1].append(picture)
    for item, described in alike.values():
        item.ReferencedImageSequence = _references(described)
    return [item for item, _ in alike.values()]


def _area(shown: Dataset) -> Dataset:
    """Return the whole image, scaled to fit (Displayed Area, PS3.3 C.10.4)."""
    area = Dataset()
    area.DisplayedAreaTopLeftHandCorner = [1, 1]
    area.DisplayedAreaBottomRightHandCorner = [int(shown.Columns), int(shown.Rows)]
    area.PresentationSizeMode = "SCALE TO FIT"
    if shown.get("PixelSpacing"):
        area.PresentationPixelSpacing = list(shown.PixelSpacing)
    else:
        area.PresentationPixelAspectRatio = list(shown.get("PixelAspectRatio") or (1, 1))
    return area


def _window(shown: Dataset) -> Dataset:
    """Return the image's first window or else its VOI LUT (Softcopy VOI LUT, PS3.3 C.11.8); empty where it has none."""
    window = Dataset()
    if shown.get("WindowCenter") not in (None, "") and shown.get("WindowWidth") not in (None, ""):
        for keyword in ("WindowCenter", "WindowWidth", "WindowCenterWidthExplanation"):
            if shown.get(keyword) not in (None, ""):
                value = shown[keyword].value
                setattr(window, keyword, value[0] if shown[keyword].VM > 1 else value)
        if shown.get("VOILUTFunction"):
            window.VOILUTFunction = shown.VOILUTFunction
    elif shown.get("VOILUTSequence"):
        window.add(own_copy(shown["VOILUTSequence"]))
    return window


def _layer(name: str, label: Label) -> Dataset:
    """Return the layer of one label, in its colour (Graphic Layer, PS3.3 C.10.7)."""
    layer = Dataset()
    layer.GraphicLayer = name
    layer.GraphicLayerOrder = int(name.removeprefix("AI_"))
    layer.GraphicLayerRecommendedDisplayCIELabValue = list(CIELabColor.from_rgb(*label.colour).value)
    layer.GraphicLayerDescription = clean(f"AI: {label.name}", LONG_STRING)
    return layer


def _text_layer(order: int) -> Dataset:
    layer = Dataset()
    layer.GraphicLayer = TEXT_LAYER
    layer.GraphicLayerOrder = order
    layer.GraphicLayerRecommendedDisplayCIELabValue = list(CIELabColor.from_rgb(*WHITE).value)
    layer.GraphicLayerDescription = NOT_VERIFIED
    return layer


def _annotations(pictures: Sequence[Picture], layers: Mapping[str, str], said: str) -> Iterator[bytes]:
    """Yield what is drawn on each image: an item for each label, then the text (Graphic Annotation, PS3.3 C.10.5).

    As bytes: pydicom takes a minute for the points of ragged segments.
    """
    for picture in pictures:
        image = Dataset()
        image.ReferencedImageSequence = _references([picture])
        shown = plain(image)
        present = [name for name in layers if any(graphic.label == name for graphic in picture.graphics)]
        for name in present:
            graphics = [graphic for graphic in picture.graphics if graphic.label == name]
            texts = [plain(_anchored(graphic)) for graphic in graphics if graphic.text]
            yield (
                shown
                + element(GRAPHIC_LAYER, b"CS", layers[name].encode())
                + (sequence(TEXT_OBJECTS, *texts) if texts else b"")
                + sequence(GRAPHIC_OBJECTS, *(_graphic(graphic) for graphic in graphics))
            )
        text = plain(_boxed(clean(f"{said}: {', '.join(present)}", 1024)))
        yield shown + element(GRAPHIC_LAYER, b"CS", TEXT_LAYER.encode()) + sequence(TEXT_OBJECTS, text)


def _graphic(graphic: Graphic) -> bytes:
    """Return the content of one item of the Graphic Object Sequence."""
    points = graphic.points
    closed = graphic.type == Shape.ELLIPSE or (len(points) > 1 and bool(np.array_equal(points[0], points[-1])))
    return (
        element(0x00700005, b"CS", b"PIXEL")
        + element(0x00700020, b"US", struct.pack("<H", 2))  # dimensions
        + element(0x00700021, b"US", struct.pack("<H", len(points)))
        + element(0x00700022, b"FL", points.astype("<f4").tobytes())
        + element(0x00700023, b"CS", graphic.type.encode())
        + (element(0x00700024, b"CS", b"N") if closed else b"")  # filled
    )


def _anchored(graphic: Graphic) -> Dataset:
    """Return text beside a graphic, without a line to it."""
    item = Dataset()
    item.AnchorPointAnnotationUnits = "PIXEL"
    item.UnformattedTextValue = clean(graphic.text, 1024)
    rightmost = graphic.points[int(np.argmax(graphic.points[:, 0]))]
    item.AnchorPoint = rightmost.tolist()
    item.AnchorPointVisibility = "N"
    return item


def _boxed(text: str) -> Dataset:
    item = Dataset()
    item.BoundingBoxAnnotationUnits = "DISPLAY"
    item.UnformattedTextValue = text
    item.BoundingBoxTopLeftHandCorner, item.BoundingBoxBottomRightHandCorner = (list(corner) for corner in TEXT_BOX)
    item.BoundingBoxTextHorizontalJustification = "LEFT"
    return item
