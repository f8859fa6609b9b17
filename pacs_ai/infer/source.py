"""One instance as the volume needs it: data set, encoded frames, where each frame lies, how its values rescale."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from pydicom import Dataset, dcmread
from pydicom.errors import InvalidDicomError
from pydicom.uid import UID, ExplicitVRBigEndian

from pacs_ai.dicom.geometry import Plane, read_numbers, read_plane
from pacs_ai.dicom.reading import READING_FAULTS, read_items, read_text, read_value
from pacs_ai.errors import NotUnderstood, Permanent, Reason, Refused, Unavailable
from pacs_ai.infer.header import nested
from pacs_ai.infer.pixels import Layout, read_grey_layout, split_frames

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

#: Where pixels may lie; every one of them is taken out of the evidence.
PIXEL_KEYWORDS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Received:
    """One instance as received: its data set without the pixels, and the pixels as they are encoded."""

    ds: Dataset
    transfer_syntax_uid: UID
    pixel_data: bytes | None

    @property
    def sop_instance_uid(self) -> str:
        """SOP Instance UID (0008,0018)."""
        return read_text(self.ds, "SOPInstanceUID")


@dataclass(frozen=True)
class Frame:
    """One slice to be.

    Parameters
    ----------
    plane
        Where it lies.
    slope, intercept
        Stored value -> modality value (PS3.3 C.11.1).
    number
        Frame number from 1 in an enhanced multi-frame image, None in a single-frame one.
    attributes
        The data sets that describe this frame: the instance's own, or its functional group items.
    """

    plane: Plane
    slope: float
    intercept: float
    number: int | None
    attributes: tuple[Dataset, ...]


@dataclass(frozen=True)
class Source:
    """One image instance: `encoded` and `frames` run in parallel."""

    ds: Dataset
    layout: Layout
    encoded: tuple[bytes | memoryview, ...]
    frames: tuple[Frame, ...]


def receive(path: Path, sha256: str | None) -> Received:
    """Read one stored instance.

    Raises
    ------
    Permanent
        Where the file is gone, or its SHA-256 is not `sha256`.
    NotUnderstood
        Where it is no DICOM file.
    """
    try:
        raw = path.read_bytes()
    except (FileNotFoundError, IsADirectoryError) as fault:
        raise Permanent(f"{path.name} is not there any more; send the series again") from fault
    except OSError as fault:
        raise Unavailable(f"{path.name} cannot be read now: {fault.strerror}") from fault
    if sha256 is not None and hashlib.sha256(raw).hexdigest() != sha256.lower():
        raise Permanent(
            f"{path.name} is not what was received: its SHA-256 has changed on the disk; check the disk and "
            "send the series again"
        )
    try:
        ds = dcmread(BytesIO(raw))
        syntax = UID(str(ds.file_meta.TransferSyntaxUID))
        pixel_data, vr = (ds.PixelData, ds["PixelData"].VR) if "PixelData" in ds else (None, "")
    except (InvalidDicomError, *READING_FAULTS) as fault:
        raise NotUnderstood(f"{path.name} is no DICOM file that can be read") from fault
    if pixel_data is not None and not isinstance(pixel_data, bytes):
        raise NotUnderstood(f"{path.name} holds Pixel Data that is no string of bytes")
    return Received(_without_pixels(ds), syntax, _in_byte_order(ds, syntax, pixel_data, vr))


def _in_byte_order(ds: Dataset, syntax: UID, pixel_data: bytes | None, vr: str) -> bytes | None:
    """Return bytes in the order of the pixels: big endian words of 8-bit pixels are swapped (PS3.5 Annex D.3.2)."""
    if pixel_data is None or syntax != ExplicitVRBigEndian or vr != "OW" or read_value(ds, "BitsAllocated") != 8:
        return pixel_data
    whole = len(pixel_data) // 2 * 2
    return np.frombuffer(pixel_data[:whole], "<u2").byteswap().tobytes() + pixel_data[whole:]


def _without_pixels(ds: Dataset) -> Dataset:
    """Take the pixels out; nothing else changes, the SOP Instance UID least of all."""
    for keyword in PIXEL_KEYWORDS:
        if keyword in ds:
            del ds[keyword]
    return ds


def open_sources(received: Sequence[Received]) -> tuple[Source, ...]:
    """Find in each instance how its pixels are stored, where its frames lie and how they are rescaled.

    Raises
    ------
    Refused
        With the first reason and how many of the images it holds for.
    """
    return tuple(for_each(_open_source, received))


def for_each(act: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """Return what `act` makes of every image, or raise `Refused` with the first reason and how often it holds."""
    results: list[R] = []
    refusals: list[Refused] = []
    for item in items:
        try:
            results.append(act(item))
        except Refused as refusal:
            refusals.append(refusal)
    if not refusals:
        return results
    total, first = len(results) + len(refusals), refusals[0]
    alike = sum(str(refusal) == str(first) for refusal in refusals)
    where = "" if total == 1 else "in all images" if alike == total else f"in {alike} of {total} images"
    raise Refused(f"{where} {first}".strip(), first.reason)


def _open_source(received: Received) -> Source:
    if received.pixel_data is None:
        raise Refused("there is no pixel data", Reason.UNREADABLE)
    layout = read_grey_layout(received.ds, received.transfer_syntax_uid)
    encoded = split_frames(layout, received.pixel_data)
    per_frame = read_items(received.ds, "PerFrameFunctionalGroupsSequence")
    if not per_frame and layout.frames > 1:
        raise Refused(
            "several frames lie in one image without a position for each; they form no volume", Reason.GEOMETRY
        )
    if not per_frame:
        return Source(received.ds, layout, encoded, (_classic_frame(received.ds),))
    if len(per_frame) != layout.frames:
        raise Refused(f"the image has {layout.frames} frames, {len(per_frame)} of them described", Reason.UNREADABLE)
    shared = (*read_items(received.ds, "SharedFunctionalGroupsSequence"), Dataset())[0]
    frames = [_enhanced_frame(received.ds, shared, item, n) for n, item in enumerate(per_frame, start=1)]
    return Source(received.ds, layout, encoded, tuple(frames))


def _classic_frame(ds: Dataset) -> Frame:
    if read_items(ds, "ModalityLUTSequence"):
        raise Refused(
            "the values are coded by a Modality LUT Sequence; only Rescale Slope and Intercept can be used",
            Reason.UNREADABLE,
        )
    slope, intercept = _rescale(ds, ds)
    return Frame(read_plane(ds, ds, ds), slope, intercept, None, (ds,))


def _enhanced_frame(ds: Dataset, shared: Dataset, per_frame: Dataset, number: int) -> Frame:
    """Read one frame's functional groups, its own before the shared (PS3.3 C.7.6.16)."""

    def group(keyword: str) -> Dataset:
        return (*read_items(per_frame, keyword), *read_items(shared, keyword), Dataset())[0]

    plane = read_plane(
        group("PlanePositionSequence"), group("PlaneOrientationSequence"), group("PixelMeasuresSequence")
    )
    slope, intercept = _rescale(ds, group("PixelValueTransformationSequence"))
    return Frame(plane, slope, intercept, number, tuple(nested(per_frame)))


def _rescale(ds: Dataset, item: Dataset) -> tuple[float, float]:
    """Return Rescale Slope and Intercept; a CT without them has no Hounsfield units (type 1 in PS3.3 C.8.2.1)."""
    keywords = ("RescaleSlope", "RescaleIntercept")
    absent = [keyword for keyword in keywords if read_value(item, keyword) in (None, "")]
    if len(absent) == len(keywords) and read_text(ds, "Modality") != "CT":
        return 1.0, 0.0
    slope, intercept = (read_numbers(item, keyword, 1)[0] for keyword in keywords)
    if slope == 0:
        raise Refused("Rescale Slope is 0", Reason.UNREADABLE)
    return slope, intercept


def count_stacks(source: Source) -> int:
    """Return how many stacks (Stack ID (0020,9056)) the frames of an enhanced image name, at least 1."""
    names = {read_text(item, "StackID") for frame in source.frames for item in frame.attributes}
    return max(1, len(names - {""}))


def receive_all(paths: Sequence[Path], digests: Mapping[Path, str] | None) -> tuple[Received, ...]:
    """Read all instances, in the order given; `digests` holds the SHA-256 (hex) of every path, or is None."""
    return tuple(receive(path, None if digests is None else digests[path]) for path in paths)
