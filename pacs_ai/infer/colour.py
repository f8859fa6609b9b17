"""From the bytes of a colour image to red, green and blue, in every transfer syntax that the node takes."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from openjpeg.utils import get_parameters
from pydicom.encaps import encapsulate
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_color_lut
from pydicom.uid import JPEG2000TransferSyntaxes, JPEGLSTransferSyntaxes, JPEGTransferSyntaxes, RLELossless

from pacs_ai.dicom.reading import READING_FAULTS
from pacs_ai.errors import Reason, Refused
from pacs_ai.infer.pixels import DECODING_FAULTS, Layout, check_segments, decode

if TYPE_CHECKING:
    from pydicom import Dataset

Rgb = npt.NDArray[np.uint8]

PALETTE = "PALETTE COLOR"
#: Photometric Interpretations (PS3.3 C.7.6.3.1.2) of three samples that become red, green and blue.
COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_RCT", "YBR_ICT")
#: Start-of-frame markers of JPEG and JPEG-LS (ISO/IEC 10918-1 table B.1, 14495-1 C.1); 0xC4, 0xC8 and 0xCC are none.
_STARTS_OF_FRAME = frozenset({*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC})


def check_colour(layout: Layout) -> None:
    """Raise `Refused` where the colours are none that can be read."""
    if layout.photometric_interpretation == PALETTE:
        if layout.samples != 1 or layout.signed:
            raise Refused("a palette image has to have one unsigned sample per pixel", Reason.UNREADABLE)
        return
    if layout.samples != 3 or layout.photometric_interpretation not in COLOURS:
        raise Refused(
            f"Photometric Interpretation is {layout.photometric_interpretation or 'missing'!r} with {layout.samples} "
            "samples per pixel; MONOCHROME1, MONOCHROME2, RGB, YBR and PALETTE COLOR can be read",
            Reason.UNREADABLE,
        )
    if layout.bits_allocated != 8 or layout.signed:
        raise Refused(
            f"the images are in colour of {layout.bits_allocated} bits per sample; 8 unsigned can be read",
            Reason.UNREADABLE,
        )


def decode_colour(layout: Layout, ds: Dataset, frame: bytes | memoryview) -> Rgb:
    """Return (rows, columns, 3) red, green and blue of one frame, 0 to 255.

    YBR is turned into RGB as PS3.3 C.7.6.3.1.2 says, indices through the palette (C.7.9; 16 bit entries keep their
    upper eight).

    Raises
    ------
    Refused
        Where the frame cannot be decoded, or is of another size than the data set says.
    """
    if layout.photometric_interpretation == PALETTE:
        return _through_palette(decode(layout, frame), ds)
    try:
        values = _decode(layout, bytes(frame))
    except (*DECODING_FAULTS, *READING_FAULTS) as fault:
        raise Refused(
            f"the pixel data cannot be decoded ({layout.transfer_syntax_uid.name})", Reason.UNREADABLE
        ) from fault
    if values.shape != (layout.rows, layout.columns, 3) or values.dtype != np.uint8:
        raise Refused(
            f"the compressed image holds {values.size} samples, the data set says {layout.rows} x {layout.columns} x 3",
            Reason.UNREADABLE,
        )
    return values


def _decode(layout: Layout, frame: bytes) -> npt.NDArray[Any]:
    """Let pydicom choose the decoder, which knows their ways with colour transforms; the size is checked before."""
    syntax = layout.transfer_syntax_uid
    if syntax.is_encapsulated:
        claimed = _claimed_size(layout, frame)
        if claimed is not None and claimed != (layout.rows, layout.columns):
            raise ValueError("the codestream is of another size")
    if syntax == RLELossless:
        check_segments(layout, frame[:4])
    options: dict[str, Any] = {
        "rows": layout.rows,
        "columns": layout.columns,
        "number_of_frames": 1,
        "samples_per_pixel": 3,
        "photometric_interpretation": layout.photometric_interpretation,
        "pixel_representation": 0,
        "bits_allocated": 8,
        "bits_stored": layout.bits_stored,
        "planar_configuration": layout.planar_configuration,
        "pixel_keyword": "PixelData",
        "pixel_vr": "OB",
    }
    values, _ = get_decoder(syntax).as_array(
        encapsulate([frame]) if syntax.is_encapsulated else frame, index=0, **options
    )
    return values


def _claimed_size(layout: Layout, frame: bytes) -> tuple[int, int] | None:
    """Return rows and columns that a codestream claims, since decoders allocate them; None of one without a header."""
    syntax = layout.transfer_syntax_uid
    if syntax in JPEG2000TransferSyntaxes or "Throughput" in syntax.name:
        header = get_parameters(frame)
        return int(header["rows"]), int(header["columns"])
    if syntax in JPEGTransferSyntaxes or syntax in JPEGLSTransferSyntaxes:
        return _start_of_frame(frame)
    return None


def _start_of_frame(frame: bytes) -> tuple[int, int]:
    """Walk along the marker segments to the frame header (ISO/IEC 10918-1 B.2.2); struct.error where there is none."""
    at = 2
    while True:
        marker, code, length = struct.unpack_from(">BBH", frame, at)
        if marker != 0xFF:
            raise ValueError("no marker where one belongs")
        if code == 0xFF:  # a fill byte
            at += 1
        elif code in _STARTS_OF_FRAME:
            rows, columns = struct.unpack_from(">HH", frame, at + 5)
            return rows, columns
        else:
            at += 2 + length


def _through_palette(indices: npt.NDArray[Any], ds: Dataset) -> Rgb:
    try:
        colours = apply_color_lut(indices, ds)
    except (*DECODING_FAULTS, *READING_FAULTS) as fault:
        raise Refused("the palette of the image cannot be read", Reason.UNREADABLE) from fault
    return np.asarray(colours if colours.dtype == np.uint8 else colours >> 8, np.uint8)
