"""From the bytes of Pixel Data to stored values, one frame at a time, in every transfer syntax that the node takes."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gdcm  # type: ignore[import-untyped]
import jpeg_ls  # type: ignore[import-untyped]
import numpy as np
import numpy.typing as npt
from openjpeg.utils import decode as decode_wavelet
from openjpeg.utils import get_parameters
from pydicom.datadict import dictionary_description
from pydicom.encaps import generate_frames
from pydicom.uid import (
    HTJ2K,
    UID,
    ExplicitVRBigEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    JPEG2000TransferSyntaxes,
    JPEGLSTransferSyntaxes,
    RLELossless,
)
from rle.utils import decode_frame  # type: ignore[attr-defined]

from pacs_ai.dicom.reading import read_text, read_whole
from pacs_ai.errors import Reason, Refused

if TYPE_CHECKING:
    from pydicom import Dataset

GREYSCALES = ("MONOCHROME1", "MONOCHROME2")

Stored = npt.NDArray[np.integer[Any]]

#: Decoded pixels of one instance at most, in bytes.
MAX_DECODED_BYTES = 8 * 2**30
#: One compressed frame decoded, which is in memory as a whole, in bytes; a mammogram takes 60 million.
MAX_FRAME_BYTES = 2**30
#: Decoded to encoded size at most, above `ALWAYS_PLAUSIBLE_BYTES`: a bomb claims a million, real images at most 200;
#: an empty slice compresses 1:2600, but is small.
MAX_EXPANSION = 1000
ALWAYS_PLAUSIBLE_BYTES = 64 * 2**20
#: What decoders raise over damaged frames.
DECODING_FAULTS = (ArithmeticError, EOFError, LookupError, OSError, RuntimeError, ValueError, struct.error)

#: Of the Image Pixel Module, what is stated as US (PS3.6 chapter 6).
_UNSIGNED_SHORTS = (
    "SamplesPerPixel",
    "PlanarConfiguration",
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
)
_WAVELETS = frozenset((*JPEG2000TransferSyntaxes, HTJ2KLossless, HTJ2KLosslessRPCL, HTJ2K))


@dataclass(frozen=True)
class Layout:
    """How one instance stores its pixels: Image Pixel Module (PS3.3 C.7.6.3); `samples` is 3 in colour."""

    rows: int
    columns: int
    frames: int
    bits_allocated: int
    bits_stored: int
    high_bit: int
    signed: bool
    photometric_interpretation: str
    transfer_syntax_uid: UID
    samples: int = 1
    planar_configuration: int = 0

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the stored values in this machine's memory."""
        return np.dtype(f"{'i' if self.signed else 'u'}{self.bits_allocated // 8}")

    @property
    def frame_bytes(self) -> int:
        """Size of one decoded frame; colour at half the resolution as it is stored (C.7.6.3.1.2, YBR_FULL_422)."""
        halved = self.photometric_interpretation == "YBR_FULL_422" and not self.transfer_syntax_uid.is_encapsulated
        samples = 2 if halved else self.samples
        return self.rows * self.columns * samples * self.bits_allocated // 8

    @property
    def bounds(self) -> tuple[int, int]:
        """Smallest and largest value that can be stored."""
        if self.signed:
            return -(1 << (self.bits_stored - 1)), (1 << (self.bits_stored - 1)) - 1
        return 0, (1 << self.bits_stored) - 1


def read_grey_layout(ds: Dataset, transfer_syntax_uid: UID) -> Layout:
    """Read how the pixels of a greyscale image are stored.

    Raises
    ------
    Refused
        Colour, or values that no image has.
    """
    if read_whole(ds, "SamplesPerPixel", 1) > 1:
        raise Refused("the images are in colour; only greyscale images form a volume", Reason.UNREADABLE)
    photometric_interpretation = read_text(ds, "PhotometricInterpretation")
    if photometric_interpretation not in GREYSCALES:
        raise Refused(
            f"Photometric Interpretation is {photometric_interpretation or 'missing'!r}, not a greyscale",
            Reason.UNREADABLE,
        )
    return read_layout(ds, transfer_syntax_uid)


def read_layout(ds: Dataset, transfer_syntax_uid: UID) -> Layout:
    """Read how the pixels are stored, greyscale or colour.

    Raises
    ------
    Refused
        Values that no image has.
    """
    allocated = read_whole(ds, "BitsAllocated")
    stored = read_whole(ds, "BitsStored", allocated)
    layout = Layout(
        rows=read_whole(ds, "Rows"),
        columns=read_whole(ds, "Columns"),
        frames=read_whole(ds, "NumberOfFrames", 1),
        bits_allocated=allocated,
        bits_stored=stored,
        high_bit=read_whole(ds, "HighBit", stored - 1),
        signed=read_whole(ds, "PixelRepresentation", 0) == 1,
        photometric_interpretation=read_text(ds, "PhotometricInterpretation"),
        transfer_syntax_uid=transfer_syntax_uid,
        samples=read_whole(ds, "SamplesPerPixel", 1),
        planar_configuration=read_whole(ds, "PlanarConfiguration", 0),
    )
    _check_stated(ds)
    _check_possible(layout)
    return layout


def _check_stated(ds: Dataset) -> None:
    """Refuse a number under a value representation by which other readers may take another one."""
    for keyword in _UNSIGNED_SHORTS:
        if keyword in ds and ds[keyword].VR != "US":
            name = dictionary_description(keyword)
            raise Refused(f"{name} is stated to be of another value representation than it is", Reason.UNREADABLE)


def _check_possible(layout: Layout) -> None:
    size = f"{layout.rows} rows x {layout.columns} columns x {layout.frames} frames"
    if not (0 < layout.rows <= 65535 and 0 < layout.columns <= 65535 and layout.frames > 0):
        raise Refused(f"the pixel data is implausible: {size}", Reason.UNREADABLE)
    if layout.samples not in (1, 3) or layout.planar_configuration not in (0, 1):
        raise Refused(f"the pixel data has {layout.samples} samples per pixel; 1 and 3 can be read", Reason.UNREADABLE)
    if layout.bits_allocated not in (8, 16, 32):
        raise Refused(
            f"the pixel data has {layout.bits_allocated} bits per pixel; 8, 16 and 32 can be read", Reason.UNREADABLE
        )
    if not layout.bits_stored - 1 <= layout.high_bit < layout.bits_allocated or layout.bits_stored < 1:
        raise Refused(
            f"the pixel data is implausible: {layout.bits_stored} bits stored up to bit {layout.high_bit} "
            f"of {layout.bits_allocated}",
            Reason.UNREADABLE,
        )
    if layout.frame_bytes * layout.frames > MAX_DECODED_BYTES:
        raise Refused(
            f"the pixel data is implausible: {size} would take {layout.frame_bytes * layout.frames} bytes",
            Reason.UNREADABLE,
        )


def split_frames(layout: Layout, element: bytes) -> tuple[bytes | memoryview, ...]:
    """Return the encoded frames of a Pixel Data element, sizes checked before anything is decoded.

    Raises
    ------
    Refused
        Where the element cannot hold what the data set declares.
    """
    wanted = layout.frame_bytes * layout.frames
    if not layout.transfer_syntax_uid.is_encapsulated:
        if len(element) < wanted:
            raise Refused(
                f"the pixel data is cut off: {wanted} bytes belong there, {len(element)} are there", Reason.UNREADABLE
            )
        view = memoryview(element)
        return tuple(view[i * layout.frame_bytes : (i + 1) * layout.frame_bytes] for i in range(layout.frames))
    if wanted > max(ALWAYS_PLAUSIBLE_BYTES, MAX_EXPANSION * len(element)) or layout.frame_bytes > MAX_FRAME_BYTES:
        raise Refused(
            f"the pixel data is implausible: {len(element)} bytes claim to hold {wanted} bytes of pixels",
            Reason.UNREADABLE,
        )
    try:
        frames = tuple(generate_frames(element, number_of_frames=layout.frames))
    except DECODING_FAULTS as fault:
        raise Refused(f"the compressed pixel data is damaged: {fault}", Reason.UNREADABLE) from fault
    if len(frames) != layout.frames:
        raise Refused(
            f"the pixel data holds {len(frames)} frames, the data set says {layout.frames}", Reason.UNREADABLE
        )
    return frames


def decode(layout: Layout, frame: bytes | memoryview) -> Stored:
    """Return (rows, columns) stored values of one frame of one sample, signed or unsigned as the data set says.

    Raises
    ------
    Refused
        Where the frame cannot be decoded, or is of another size than the data set says.
    """
    syntax = layout.transfer_syntax_uid
    try:
        values = _decode(layout, frame)
    except DECODING_FAULTS as fault:
        raise Refused(f"the pixel data cannot be decoded ({syntax.name})", Reason.UNREADABLE) from fault
    if values.size != layout.rows * layout.columns:
        raise Refused(
            f"the compressed image holds {values.size} pixels, the data set says {layout.rows} x {layout.columns}",
            Reason.UNREADABLE,
        )
    return values.reshape(layout.rows, layout.columns)


def _decode(layout: Layout, frame: bytes | memoryview) -> Stored:
    """Decode by the quickest right decoder of each transfer syntax.

    Measured on 512 x 512 CT slices: JPEG-LS by CharLS 7 ms (GDCM 13 ms), JPEG 2000 by OpenJPEG 25 ms (GDCM 25 ms,
    Pillow 34 ms), which decodes HTJ2K too. None of them lets go of the interpreter lock, so threads gain nothing.
    """
    syntax = layout.transfer_syntax_uid
    if syntax in JPEGLSTransferSyntaxes:
        _check_jpeg_ls_size(layout, bytes(frame))
        buffer, header = jpeg_ls.decode_pixel_data(bytes(frame))
        precision = int(header["bits_per_sample"])
        return _interpret(np.frombuffer(buffer, "<u1" if precision <= 8 else "<u2"), layout, precision)
    if syntax in _WAVELETS:
        header = get_parameters(bytes(frame))
        if (header["rows"], header["columns"]) != (layout.rows, layout.columns):
            raise ValueError("the codestream is of another size")
        return _interpret(decode_wavelet(bytes(frame)), layout, int(header["precision"]))
    if syntax == RLELossless:
        check_segments(layout, bytes(frame[:4]))
        buffer = decode_frame(bytes(frame), layout.rows * layout.columns, layout.bits_allocated, "<")
        return _interpret(np.frombuffer(buffer, layout.dtype.newbyteorder("<")), layout)
    if syntax.is_encapsulated:
        return _interpret(_decode_jpeg(layout, bytes(frame)), layout)
    if syntax != ExplicitVRBigEndian:
        return _interpret(np.frombuffer(frame, layout.dtype.newbyteorder("<")), layout)
    return _interpret(np.frombuffer(frame, layout.dtype.newbyteorder(">")), layout)


def check_segments(layout: Layout, head: bytes) -> None:
    """Compare the number of segments that an RLE frame begins with: one for each byte of a pixel (PS3.5 G.2, G.5)."""
    (segments,) = struct.unpack("<L", head)
    if segments != layout.samples * layout.bits_allocated // 8:
        raise ValueError(f"{segments} segments are none of this image")


def _check_jpeg_ls_size(layout: Layout, frame: bytes) -> None:
    """Compare the start-of-frame segment (ISO/IEC 14495-1 C.2.2), since the decoder allocates what it claims."""
    start = frame.find(b"\xff\xf7")
    if start < 0 or frame[start + 5 : start + 9] != struct.pack(">HH", layout.rows, layout.columns):
        raise ValueError("the codestream is of another size")


def _decode_jpeg(layout: Layout, frame: bytes) -> npt.NDArray[Any]:
    """JPEG baseline, extended (12 bits, which pydicom's way into GDCM refuses) and lossless, straight by GDCM."""
    fragment = gdcm.Fragment()
    fragment.SetByteStringValue(frame)
    fragments = gdcm.SequenceOfFragments.New()
    fragments.AddFragment(fragment)
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetValue(fragments.__ref__())
    image = gdcm.Image()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((layout.columns, layout.rows, 1))
    kind = gdcm.PhotometricInterpretation.GetPIType(layout.photometric_interpretation)
    image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(kind))
    image.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(str(layout.transfer_syntax_uid))))
    image.SetPixelFormat(
        gdcm.PixelFormat(1, layout.bits_allocated, layout.bits_stored, layout.high_bit, int(layout.signed))
    )
    image.SetDataElement(element)
    text = image.GetBuffer()
    if text is None:
        raise ValueError("GDCM cannot decode the frame")
    return np.frombuffer(text.encode("utf-8", "surrogateescape"), layout.dtype)


def _interpret(values: npt.NDArray[Any], layout: Layout, precision: int | None = None) -> Stored:
    """Cut the bits above High Bit off and extend the sign: codecs keep no sign, and overlays may lie in unused bits."""
    allocated = layout.bits_allocated
    stored = min(layout.bits_stored, precision or layout.bits_stored)
    high_bit = layout.high_bit if precision is None else stored - 1
    if stored == allocated:
        return values.astype(layout.dtype, copy=False)
    shifted: Stored = np.left_shift(values.astype(layout.dtype), allocated - 1 - high_bit)
    np.right_shift(shifted, allocated - stored, out=shifted)
    return shifted
