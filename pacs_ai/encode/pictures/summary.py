"""One result as a page of PDF: what was found, in words that can be searched, with the picture, without a name."""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING

from pydicom import Dataset
from pydicom.uid import UID
from reportlab.lib.pagesizes import A4  # type: ignore[import-untyped]
from reportlab.lib.utils import ImageReader, simpleSplit  # type: ignore[import-untyped]
from reportlab.pdfbase import pdfmetrics  # type: ignore[import-untyped]
from reportlab.pdfbase.ttfonts import TTFont  # type: ignore[import-untyped]
from reportlab.pdfgen.canvas import Canvas  # type: ignore[import-untyped]

from pacs_ai.encode.encoded import encoded
from pacs_ai.encode.identity import request_items
from pacs_ai.encode.pictures.legend import Line, legend
from pacs_ai.encode.pictures.montage import cells_of
from pacs_ai.encode.pictures.picture import FONT_FILE, readable, warning
from pacs_ai.encode.pictures.secondary_capture import instances, reference
from pacs_ai.encode.pictures.sheet import tiled
from pacs_ai.encode.provenance import LONG_STRING, MANUFACTURER, MODEL_NAME, clean, concept, stamp
from pacs_ai.pipeline import Code

if TYPE_CHECKING:
    from collections.abc import Sequence

    from PIL import Image

    from pacs_ai.encode.case import Case
    from pacs_ai.encode.encoded import Encoded
    from pacs_ai.profiles import Encoding

FONT = "Vera"
WIDTH, HEIGHT = (float(length) for length in A4)
EDGE = 42.0  # points
SLICES = 8
ROW = 15.0
#: Where the columns begin: name, what was measured, value.
COLUMNS = (EDGE + 16, EDGE + 190, EDGE + 400)
GREY, AMBER, RULE = (0.35, 0.38, 0.42), (0.72, 0.42, 0.0), (0.8, 0.82, 0.85)
#: Document title (CID 7020 and those that it includes).
TITLE = Code("126000", "DCM", "Imaging Measurement Report")


def encode_summary(case: Case, encoding: Encoding, _cited: Encoded | None) -> tuple[Encoded, ...]:
    """Return the findings as an Encapsulated PDF (PS3.3 A.45.1); of empty ones too."""
    result = Dataset()
    result.SOPClassUID = UID(encoding.details.sop_class_uid)
    result.SOPInstanceUID = case.work.uid(encoding.key, "instance", 1)
    result.SeriesInstanceUID = case.work.uid(encoding.series)
    result.Modality = encoding.details.modality
    result.InstanceNumber = encoding.instance_number
    result.ConversionType = "WSD"
    result.SecondaryCaptureDeviceManufacturer = MANUFACTURER
    result.SecondaryCaptureDeviceManufacturerModelName = MODEL_NAME
    result.BurnedInAnnotation = "NO"  # no name, no number of the patient's
    result.AcquisitionDateTime = None  # type 2
    result.DocumentTitle = clean(f"AI: {case.card.title}", 1024)
    result.ConceptNameCodeSequence = [concept(TITLE)]
    result.VerificationFlag = "UNVERIFIED"
    result.SourceInstanceSequence = [reference(one) for one in instances(case)]
    result.MIMETypeOfEncapsulatedDocument = "application/pdf"
    order = request_items(case.source)
    if order:
        result.RequestAttributesSequence = order
    document = make_pdf(case)
    result.EncapsulatedDocumentLength = len(document)
    result.EncapsulatedDocument = document + b"\x00" * (len(document) % 2)
    stamp(result, case.source, case.work, encoding)
    return (encoded(encoding, result),)


def make_pdf(case: Case) -> bytes:
    """Return the page as PDF, A4, its font embedded; same case, same bytes. Long tables run on to further pages."""
    if FONT not in pdfmetrics.getRegisteredFontNames():
        pdfmetrics.registerFont(TTFont(FONT, str(FONT_FILE)))
    target = BytesIO()
    canvas = Canvas(target, pagesize=A4, invariant=1, pageCompression=1, initialFontName=FONT)  # no clock in it
    canvas.setTitle(readable(f"AI: {case.card.title}"))
    canvas.setAuthor(readable(f"{case.card.name} {case.card.version}"))
    canvas.setSubject(warning(case.card))
    canvas.setCreator(clean(case.work.software_versions[0], LONG_STRING))
    below = _table(canvas, case, _head(canvas, case), legend(case.findings, case.card, case.given, case.counts))
    _picture(canvas, case, below, tiled(cells_of(case.given, case.findings, case.card, case.counts, SLICES)))
    canvas.showPage()
    canvas.save()
    return target.getvalue()


def _head(canvas: Canvas, case: Case) -> float:
    """Write title, maker, purpose and warning; return where what follows begins."""
    card, work = case.card, case.work
    _text(canvas, EDGE, HEIGHT - EDGE - 14, f"AI: {card.title}", 20, room=WIDTH - 2 * EDGE)
    _warn(canvas, case, HEIGHT - EDGE - 42)
    top = HEIGHT - EDGE - 74
    made = f"{work.created_at:%Y-%m-%d %H:%M %z}".strip()
    stated = (
        f"Made by {card.name} {card.version}, {card.manufacturer}, {made}",
        f"Intended use: {card.intended_use}",
        f"Images: {case.given.modality}, {len(case.own.slices)} of series {case.source.get('SeriesNumber') or '-'}",
        *(f"Note: {remark}" for remark in case.remarks),
    )
    rows = [row for text in stated for row in simpleSplit(readable(text), FONT, 9, WIDTH - 2 * EDGE)]
    for number, row in enumerate(rows):
        _text(canvas, EDGE, top - 13 * number, row, 9, GREY, WIDTH - 2 * EDGE)
    return top - 13 * len(rows) - 10


def _warn(canvas: Canvas, case: Case, at: float) -> None:
    text = warning(case.card)
    canvas.setStrokeColorRGB(*AMBER)
    canvas.roundRect(EDGE, at - 7, pdfmetrics.stringWidth(text, FONT, 13) + 20, 22, 4)
    _text(canvas, EDGE + 10, at, text, 13, AMBER)


def _table(canvas: Canvas, case: Case, top: float, lines: Sequence[Line]) -> float:
    """Write a row for each value; return where what follows begins."""
    for line in lines:
        rows = line.values or (("", ""),)
        for number, (what, value) in enumerate(rows):
            if top < EDGE + ROW:
                top = _next_page(canvas, case)
            canvas.setStrokeColorRGB(*RULE)
            if number == 0:
                canvas.line(EDGE, top + ROW - 4, WIDTH - EDGE, top + ROW - 4)
                _name(canvas, line, top)
            _text(canvas, COLUMNS[1], top, what, 10, GREY, COLUMNS[2] - COLUMNS[1] - 8)
            _text(canvas, COLUMNS[2], top, value, 10, room=WIDTH - EDGE - COLUMNS[2])
            top -= ROW
    return top


def _name(canvas: Canvas, line: Line, at: float) -> None:
    if line.colour is not None:
        canvas.setFillColorRGB(*(value / 255 for value in line.colour))
        canvas.roundRect(EDGE, at - 1.5, 10, 10, 2, stroke=0, fill=1)
    _text(canvas, COLUMNS[0], at, line.name, 10, room=COLUMNS[1] - COLUMNS[0] - 8)


def _next_page(canvas: Canvas, case: Case) -> float:
    canvas.showPage()
    _warn(canvas, case, HEIGHT - EDGE - 14)
    return HEIGHT - EDGE - 50


def _picture(canvas: Canvas, case: Case, below: float, tiles: Image.Image) -> None:
    """Draw the slices below the table, on a page of their own where too little room is left."""
    width = WIDTH - 2 * EDGE
    height = width * tiles.height / tiles.width
    if below - height < EDGE:
        fits = below - EDGE
        if fits < height / 2:
            below, fits = _next_page(canvas, case) + ROW, HEIGHT - 2 * EDGE - 50
        width, height = width * min(1, fits / height), min(height, fits)
    canvas.drawImage(ImageReader(tiles), (WIDTH - width) / 2, below - height, width, height)


def _text(
    canvas: Canvas,
    x: float,
    y: float,
    text: str,
    size: float,
    colour: tuple[float, float, float] = (0, 0, 0),
    room: float | None = None,
) -> None:
    """Write one line, smaller where it would not fit into the room, in points."""
    text = readable(text)
    width = pdfmetrics.stringWidth(text, FONT, size)
    canvas.setFillColorRGB(*colour)
    canvas.setFont(FONT, size if room is None or width <= room else max(4.0, size * room / width))
    canvas.drawString(x, y, text)
