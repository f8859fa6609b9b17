"""The images of a result as the bytes of Pixel Data: uncompressed, RLE, JPEG-LS or JPEG 2000, always lossless."""

from __future__ import annotations

import struct
from functools import partial
from typing import TYPE_CHECKING

import jpeg_ls  # type: ignore[import-untyped]
import numpy as np
from openjpeg.utils import encode_buffer as encode_jpeg_2000

from pacs_ai.encode.explicit import SEQUENCE_DELIMITER, UNDEFINED, element_head, item, item_head
from pacs_ai.encode.voxels.rle import encode_frame
from pacs_ai.errors import Permanent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from pacs_ai.pipeline import Array

Part = bytes | bytearray

PIXEL_DATA = 0x7FE00010
NATIVE = "ExplicitVRLittleEndian"
#: One Pixel Data element stays below 2 GiB: many receivers count with signed 32 bit numbers.
MAX_BYTES = 2**31 - 2


def pixel_data(frames: Iterable[Array], transfer_syntax: str, bits_stored: int | None = None) -> list[Part]:
    """Return the element Pixel Data (7FE0,0010), head included, in parts that follow one another in the file.

    Native pixel data is of defined length. Compressed frames are encapsulated (PS3.5 A.4): a Basic Offset Table, one
    fragment for each frame, undefined length with its delimiter. Same frames, same bytes.

    Colour is RGB in the frames. For the data set, `photometric_interpretation` says what it is once encoded; Planar
    Configuration is `planar_configuration` and Lossy Image Compression is "00".

    Parameters
    ----------
    frames
        (rows, columns) uint8 or uint16, native also int16, or (rows, columns, 3) uint8 RGB; all of one shape and type.
        Taken one by one, so that a generator keeps only one in memory.
    transfer_syntax
        pydicom's keyword: ExplicitVRLittleEndian, RLELossless, JPEGLSLossless or JPEG2000Lossless.
    bits_stored
        Bits Stored (0028,0101), for the precision of the JPEG code streams; all bits where None.

    Raises
    ------
    Permanent
        Where the element would exceed 2 GiB.
    """
    if transfer_syntax == NATIVE:
        return _native(frames)
    encode = partial(_ENCODERS[transfer_syntax], bits_stored=bits_stored)
    return encapsulated(encode(np.ascontiguousarray(frame)) for frame in frames)


def photometric_interpretation(transfer_syntax: str, samples: int) -> str:
    """Return Photometric Interpretation (0028,0004) of frames that `pixel_data` encoded (PS3.5 8.2.4)."""
    if samples == 1:
        return "MONOCHROME2"
    return "YBR_RCT" if transfer_syntax == "JPEG2000Lossless" else "RGB"


def planar_configuration(transfer_syntax: str) -> int:
    """Return Planar Configuration (0028,0006) of RGB frames: by plane in RLE, else by pixel (PS3.5 8.2.3, G.2).

    Orthanc before 1.11.3 draws RLE colours by plane wrongly itself (it stores and hands them out well).
    """
    return 1 if transfer_syntax == "RLELossless" else 0


def encapsulated(fragments: Iterable[Part]) -> list[Part]:
    """Return the element Pixel Data of frames that are encoded already, one fragment each (PS3.5 A.4).

    Raises
    ------
    Permanent
        Where the element would exceed 2 GiB.
    """
    parts: list[Part] = []
    offsets = [0]
    for fragment in fragments:
        padding = len(fragment) % 2
        parts += [item_head(len(fragment) + padding), fragment, b"\x00" * padding]
        offsets.append(offsets[-1] + 8 + len(fragment) + padding)
    _check_size(offsets[-1])
    table = item(struct.pack(f"<{len(offsets) - 1}I", *offsets[:-1]))
    return [element_head(PIXEL_DATA, b"OB", UNDEFINED) + table, *parts, SEQUENCE_DELIMITER]


def _native(frames: Iterable[Array]) -> list[Part]:
    parts: list[Part] = []
    word = b"OB"
    for frame in frames:
        word = b"OB" if frame.itemsize == 1 else b"OW"
        parts.append(frame.tobytes())
    length = sum(len(part) for part in parts)
    _check_size(length)
    padding = length % 2
    return [element_head(PIXEL_DATA, word, length + padding), *parts, b"\x00" * padding]


def _check_size(length: int) -> None:
    if length > MAX_BYTES:
        raise Permanent(
            f"the pixel data would take {length / 2**30:.1f} GiB; one DICOM instance can hold 2 GiB: "
            "let the pipeline return a smaller or coarser series, or let the profile name a compressed form"
        )


def _rle(frame: Array, bits_stored: int | None) -> bytes:  # noqa: ARG001 - RLE knows whole bytes only
    return encode_frame(frame)


def _jpeg_ls(frame: Array, bits_stored: int | None) -> bytearray:
    rows, columns = frame.shape[:2]
    samples = frame.shape[2] if frame.ndim == 3 else 1
    coded: bytearray = jpeg_ls.encode_buffer(
        frame.tobytes(),
        rows,
        columns,
        samples,
        bits_stored or 8 * frame.itemsize,
        interleave_mode=2 if samples > 1 else 0,  # by pixel
    )
    return coded


def _jpeg_2000(frame: Array, bits_stored: int | None) -> bytes:
    rows, columns = frame.shape[:2]
    samples = frame.shape[2] if frame.ndim == 3 else 1
    return encode_jpeg_2000(
        frame.tobytes(),
        columns,
        rows,
        samples,
        bits_stored or 8 * frame.itemsize,
        is_signed=False,
        photometric_interpretation=1 if samples > 1 else 2,  # sRGB, whose components are transformed; grey
    )


_ENCODERS: Mapping[str, Callable[..., Part]] = {
    "RLELossless": _rle,
    "JPEGLSLossless": _jpeg_ls,
    "JPEG2000Lossless": _jpeg_2000,
}
