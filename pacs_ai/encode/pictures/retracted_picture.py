"""A picture that says RETRACTED in large letters, for viewers that show images and nothing else."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw
from pydicom import Dataset

from pacs_ai.encode.pictures.picture import font

if TYPE_CHECKING:
    from collections.abc import Sequence

WIDTH, HEIGHT = 1024, 768
BLACK, WHITE, RED = (0, 0, 0), (255, 255, 255), (255, 60, 60)
MARGIN = 48
LINE = 34
CHARACTERS = 60


def retracted_picture(lines: Sequence[str]) -> Dataset:
    """Return a Secondary Capture Image (PS3.3 A.8.1) without identity, UIDs and numbers: RETRACTED, then the lines."""
    page = Image.new("RGB", (WIDTH, HEIGHT), BLACK)
    draw = ImageDraw.Draw(page)
    draw.rectangle((12, 12, WIDTH - 13, HEIGHT - 13), outline=RED, width=8)
    draw.text((WIDTH // 2, 150), "RETRACTED", RED, font(140), anchor="mm")
    wrapped = [part for line in lines for part in textwrap.wrap(line, CHARACTERS)]
    room = (HEIGHT - 280 - MARGIN) // LINE
    if len(wrapped) > room:
        wrapped = [*wrapped[: room - 1], "..."]
    for place, line in enumerate(wrapped):
        draw.text((MARGIN, 280 + place * LINE), line, WHITE, font(24), anchor="lm")
    result = Dataset()
    result.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    result.Modality = "OT"
    result.ConversionType = "WSD"
    result.ImageType = ["DERIVED", "SECONDARY"]
    result.PatientOrientation = None
    result.BurnedInAnnotation = "NO"  # nothing that identifies a patient, PS3.3 C.7.6.1
    result.RecognizableVisualFeatures = "NO"
    result.SamplesPerPixel = 3
    result.PhotometricInterpretation = "RGB"
    result.PlanarConfiguration = 0
    result.Rows, result.Columns = HEIGHT, WIDTH
    result.BitsAllocated = result.BitsStored = 8
    result.HighBit = 7
    result.PixelRepresentation = 0
    result.ImageComments = "; ".join(("RETRACTED", *lines))
    result.LossyImageCompression = "00"
    result.PixelData = np.asarray(page).tobytes()
    result["PixelData"].VR = "OB"
    return result
