"""Whether a segmentation holds exactly the voxels that the pipeline returned, each where its source frame lies."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from pydicom.pixels.utils import iter_pixels

from pacs_ai.encode.explicit import text, values
from pacs_ai.encode.gate.opened import REFERENCED_FRAME_NUMBER, REFERENCED_SOP_INSTANCE_UID, Opened, frame_numbers
from pacs_ai.encode.gate.places import check_shared
from pacs_ai.encode.provenance import LONG_STRING, clean, tracking
from pacs_ai.encode.voxels.survey import plane
from pacs_ai.errors import Permanent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import numpy.typing as npt
    from pydicom import Dataset

    from pacs_ai.encode.case import Case
    from pacs_ai.encode.gate.context import Context

IMAGE_POSITION_PATIENT = 0x00200032
REFERENCED_SEGMENT_NUMBER = 0x0062000B
OF_A_FRAME = frozenset(
    {REFERENCED_SOP_INSTANCE_UID, REFERENCED_FRAME_NUMBER, IMAGE_POSITION_PATIENT, REFERENCED_SEGMENT_NUMBER}
)
#: Frames that are compared voxel by voxel, spread evenly; of all others the voxels are counted.
COMPARED = 96
LABEL_MAP, FRACTIONAL = "LABELMAP", "FRACTIONAL"

#: Segment number (None in a label map), slice index.
Place = tuple[int | None, int]


@dataclass(frozen=True)
class Expected:
    """One segment as it has to be.

    Parameters
    ----------
    label
        Name of its label.
    counts
        (slices,) voxels that are not 0.
    plane
        Slice -> (rows, columns): bool, or 0 to the largest value of a fractional segmentation.
    """

    label: str
    counts: npt.NDArray[np.int64]
    plane: Callable[[int], npt.NDArray[Any]]


def check_segmentation(opened: Opened, context: Context) -> None:
    """Compare each frame's source, place and voxels with the findings, and each segment's description.

    Raises
    ------
    Permanent
        Where the SEG lies elsewhere, or shows other voxels or other labels than were found.
    """
    ds, case = opened.ds, context.case
    shape = (len(case.own.slices), int(ds.Rows), int(ds.Columns))
    if shape != case.ground.shape:
        raise Permanent(f"the SEG lies on {shape}, its source on {case.ground.shape}")
    expected = _fractions(case, int(ds.MaximumFractionalValue)) if ds.SegmentationType == FRACTIONAL else _masks(case)
    segments = _check_segments(ds, case, expected)
    frames = list(_frames(opened, context))
    if len(frames) != opened.number_of_frames:
        raise Permanent("the SEG has another number of frames than it describes")
    if ds.SegmentationType == LABEL_MAP:
        found = _label_map(opened, frames, segments)
    else:
        found = _planes(opened, frames, segments)
    if any(not np.array_equal(found[number], one.counts) for number, one in segments.items()):
        raise _refuse_voxels()


def _masks(case: Case) -> list[Expected]:
    return [Expected(segment.label, row, partial(plane, segment)) for segment, row in case.filled]


def _fractions(case: Case, largest: int) -> list[Expected]:
    """Return the probabilities of labels, in steps of the largest value."""
    found = []
    for one in case.findings.maps:
        if one.label is not None:
            steps = partial(_steps, one.voxels, largest)
            counts = np.array([np.count_nonzero(steps(index)) for index in range(len(one.voxels))], np.int64)
            if counts.any():
                found.append(Expected(one.label, counts, steps))
    return found


def _steps(voxels: npt.NDArray[np.float32], largest: int, index: int) -> npt.NDArray[np.uint8]:
    return np.asarray(np.rint(voxels[index] * np.float32(largest)), np.uint8)


def _check_segments(ds: Dataset, case: Case, expected: Sequence[Expected]) -> dict[int, Expected]:
    """Return Segment Number -> segment; refuse descriptions that are not those of the segments that have voxels."""
    by_uid = {tracking(case.work, one.label)[1]: one for one in expected}
    found: dict[int, Expected] = {}
    for item in ds.SegmentSequence:
        number = int(item.SegmentNumber)
        if number == 0 and ds.SegmentationType == LABEL_MAP:
            continue  # the background, PS3.3 C.8.20.2.3
        one = by_uid.get(str(item.get("TrackingUID")))
        if one is None or item.SegmentLabel != clean(case.card.label(one.label).name, LONG_STRING):
            raise Permanent("the SEG describes a segment that the pipeline did not return")
        found[number] = one
    if len(found) != len(expected) or len({one.label for one in found.values()}) != len(expected):
        raise Permanent("the SEG does not describe each segment once")
    return found


def _frames(opened: Opened, context: Context) -> Iterator[Place]:
    """Yield which segment and slice each frame shows, after holding its place against its source frame's.

    A series of images without geometry has no places; its frames cite their images only.
    """
    shared = opened.ds.SharedFunctionalGroupsSequence[0]
    alone = shared.get("SegmentIdentificationSequence")
    only = int(alone[0].ReferencedSegmentNumber) if alone else None
    grid = context.grid if context.case.has_volume else None
    if grid is not None:
        check_shared(shared, grid, opened.kind)
    for first, last in opened.groups:
        found = dict(values(opened.head, first, last, OF_A_FRAME))
        if REFERENCED_SOP_INSTANCE_UID not in found:
            raise Permanent("a frame of the SEG cites no source")
        (number,) = frame_numbers(found.get(REFERENCED_FRAME_NUMBER, b"")) or (None,)
        index = context.slices.get((text(found[REFERENCED_SOP_INSTANCE_UID]), number))
        if index is None:
            raise Permanent("a frame of the SEG cites an instance or a frame that was not read")
        if grid is not None and text(found.get(IMAGE_POSITION_PATIENT, b"")) != grid.places[index]:
            raise Permanent("a frame of the SEG does not lie where its source frame lies")
        segment = found.get(REFERENCED_SEGMENT_NUMBER)
        yield (only if segment is None else int.from_bytes(segment, "little")), index


def _refuse_voxels() -> Permanent:
    return Permanent("the SEG's voxels are not those that the pipeline returned")


def _compared(frames: int) -> set[int]:
    return set(np.linspace(0, frames - 1, COMPARED).round().astype(int).tolist())


def _planes(opened: Opened, frames: list[Place], segments: dict[int, Expected]) -> dict[int, npt.NDArray[np.int64]]:
    """Return the voxels of each segment in each slice; frames of one segment each, some compared voxel by voxel."""
    found = {number: np.zeros_like(one.counts) for number, one in segments.items()}
    compared = _compared(len(frames))
    is_binary = opened.ds.SegmentationType != FRACTIONAL
    decoded = None if is_binary else pixels_of(opened)
    bits = int(opened.ds.Rows) * int(opened.ds.Columns)
    for n, (number, index) in enumerate(frames):
        if number is None or number not in segments:
            raise Permanent("a frame of the SEG belongs to no segment")
        pixels = _packed(opened, n, bits) if decoded is None else next(decoded)
        found[number][index] += _count(pixels) if is_binary else np.count_nonzero(pixels)
        if n in compared:
            wanted = segments[number].plane(index)
            wanted = np.packbits(wanted.ravel(), bitorder="little") if is_binary else wanted
            if not np.array_equal(wanted, pixels):
                raise _refuse_voxels()
    return found


def _count(octets: npt.NDArray[np.uint8]) -> int:
    return int(np.bitwise_count(octets).sum(dtype=np.int64))


def _packed(opened: Opened, frame: int, bits: int) -> npt.NDArray[np.uint8]:
    """Return the bits of one frame of a binary SEG from its own first bit on (PS3.5 8.1.1)."""
    first = frame * bits
    octets = opened.octets(first // 8, (first + bits + 7) // 8)
    if bits % 8 == 0:
        return octets
    whole = np.unpackbits(octets, bitorder="little")[first % 8 : first % 8 + bits]
    return np.packbits(whole, bitorder="little")


def pixels_of(opened: Opened) -> Iterator[npt.NDArray[Any]]:
    """Yield each frame's decoded pixels, (rows, columns), one at a time."""
    if opened.is_compressed:
        ds = copy.copy(opened.ds)
        ds.PixelData = b"".join(opened.pixels)
        ds["PixelData"].is_undefined_length = True
        yield from iter_pixels(ds, raw=True)
        return
    rows, columns = int(opened.ds.Rows), int(opened.ds.Columns)
    kind = np.dtype(f"<u{int(opened.ds.BitsAllocated) // 8}")
    size = rows * columns * kind.itemsize
    for n in range(opened.number_of_frames):
        yield opened.octets(n * size, (n + 1) * size).view(kind).reshape(rows, columns)


def _label_map(opened: Opened, frames: list[Place], segments: dict[int, Expected]) -> dict[int, npt.NDArray[np.int64]]:
    """Return the voxels of each segment in each slice: every number where its segment lies, zero elsewhere."""
    found = {number: np.zeros_like(one.counts) for number, one in segments.items()}
    compared = _compared(len(frames))
    largest = max(segments, default=0)
    for n, ((_, index), pixels) in enumerate(zip(frames, pixels_of(opened), strict=True)):
        histogram = np.bincount(pixels.ravel(), minlength=largest + 1)
        if histogram[1:].sum() != sum(histogram[number] for number in segments):
            raise _refuse_voxels()
        for number, one in segments.items():
            found[number][index] += histogram[number]
            if n in compared and histogram[number] and not np.array_equal(pixels == number, one.plane(index)):
                raise _refuse_voxels()
    return found
