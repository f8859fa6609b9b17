"""Whether a segmentation holds exactly the voxels that the pipeline returned, each where its source frame lies."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import numpy as np
from pydicom.pixels.utils import iter_pixels

from pacs_ai.encode.explicit import text, values
from pacs_ai.encode.frames import plane
from pacs_ai.encode.gate_opened import REFERENCED_FRAME_NUMBER, REFERENCED_SOP_INSTANCE_UID, Opened, frame_numbers
from pacs_ai.encode.gate_places import check_shared
from pacs_ai.encode.grid import Grid
from pacs_ai.encode.provenance import LONG_STRING, clean, tracking
from pacs_ai.errors import Permanent

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt
    from pydicom import Dataset

    from pacs_ai.encode.case import Case
    from pacs_ai.pipeline import Segment

IMAGE_POSITION_PATIENT = 0x00200032
REFERENCED_SEGMENT_NUMBER = 0x0062000B
OF_A_FRAME = frozenset(
    {REFERENCED_SOP_INSTANCE_UID, REFERENCED_FRAME_NUMBER, IMAGE_POSITION_PATIENT, REFERENCED_SEGMENT_NUMBER}
)
#: Frames that are compared voxel by voxel, spread evenly; of all others the voxels are counted.
COMPARED = 96

#: Segment number (None in a label map), slice index.
Place = tuple[int | None, int]


def check_segmentation(opened: Opened, case: Case) -> None:
    """Compare each frame's source, place and voxels with the findings, and each segment's description.

    Raises
    ------
    Permanent
        Where the SEG lies elsewhere, or shows other voxels or other labels than were found.
    """
    ds = opened.ds
    shape = (len(case.own.slices), int(ds.Rows), int(ds.Columns))
    if shape != case.given.shape:
        raise Permanent(f"the SEG lies on {shape}, its source on {case.given.shape}")
    numbers = _check_segments(ds, case)
    frames = list(_frames(opened, case))
    if len(frames) != opened.number_of_frames:
        raise Permanent("the SEG has another number of frames than it describes")
    if ds.SegmentationType == "LABELMAP":
        _check_label_map(opened, case, frames, numbers)
    else:
        _check_masks(opened, case, frames, numbers)


def _check_segments(ds: Dataset, case: Case) -> dict[int, Segment]:
    """Return Segment Number -> segment; refuse descriptions that are not those of the segments that have voxels."""
    expected = {tracking(case.work, segment.label)[1]: segment for segment, _ in case.filled}
    found: dict[int, Segment] = {}
    for item in ds.SegmentSequence:
        number = int(item.SegmentNumber)
        if number == 0 and ds.SegmentationType == "LABELMAP":
            continue  # the background, PS3.3 C.8.20.2.3
        segment = expected.get(str(item.get("TrackingUID")))
        if segment is None or item.SegmentLabel != clean(case.card.label(segment.label).name, LONG_STRING):
            raise Permanent("the SEG describes a segment that the pipeline did not return")
        found[number] = segment
    if len(found) != len(expected) or len(set(map(id, found.values()))) != len(expected):
        raise Permanent("the SEG does not describe each segment once")
    return found


def _frames(opened: Opened, case: Case) -> Iterator[Place]:
    """Yield which segment and slice each frame shows, after holding its place against its source frame's.

    A series of images without geometry has no places; its frames cite their images only.
    """
    shared = opened.ds.SharedFunctionalGroupsSequence[0]
    alone = shared.get("SegmentIdentificationSequence")
    only = int(alone[0].ReferencedSegmentNumber) if alone else None
    grid = Grid.of(case.own) if case.has_volume else None
    if grid is not None:
        check_shared(shared, grid, opened.kind)
    slices = {(ref.sop_instance_uid, ref.frame_number): n for n, ref in enumerate(case.own.slices)}
    for first, last in opened.groups:
        found = dict(values(opened.head, first, last, OF_A_FRAME))
        if REFERENCED_SOP_INSTANCE_UID not in found:
            raise Permanent("a frame of the SEG cites no source")
        (number,) = frame_numbers(found.get(REFERENCED_FRAME_NUMBER, b"")) or (None,)
        index = slices.get((text(found[REFERENCED_SOP_INSTANCE_UID]), number))
        if index is None:
            raise Permanent("a frame of the SEG cites an instance or a frame that was not read")
        if grid is not None and text(found.get(IMAGE_POSITION_PATIENT, b"")) != grid.places[index]:
            raise Permanent("a frame of the SEG does not lie where its source frame lies")
        segment = found.get(REFERENCED_SEGMENT_NUMBER)
        yield (only if segment is None else int.from_bytes(segment, "little")), index


def _refuse_voxels() -> Permanent:
    return Permanent("the SEG's voxels are not those that the pipeline returned")


def _check_masks(opened: Opened, case: Case, frames: list[Place], numbers: dict[int, Segment]) -> None:
    """Compare a binary or fractional segmentation: counts in every frame, voxels in some."""
    rows = {id(segment): row for row, segment in enumerate(case.findings.segments)}
    found = np.zeros_like(case.counts)
    compared = set(np.linspace(0, len(frames) - 1, COMPARED).round().astype(int).tolist())
    masks = _decoded(opened) if opened.ds.SegmentationType == "FRACTIONAL" else None
    bits = int(opened.ds.Rows) * int(opened.ds.Columns)
    for n, (number, index) in enumerate(frames):
        segment = None if number is None else numbers.get(number)
        if segment is None:
            raise Permanent("a frame of the SEG belongs to no segment")
        octets = _packed(opened, n, bits) if masks is None else next(masks)
        found[rows[id(segment)], index] += _count(octets)
        if n in compared and not np.array_equal(_packed_plane(segment, index), octets):
            raise _refuse_voxels()
    if not np.array_equal(found, case.counts):
        raise _refuse_voxels()


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


def _packed_plane(segment: Segment, index: int) -> npt.NDArray[np.uint8]:
    return np.packbits(plane(segment, index).ravel(), bitorder="little")


def _decoded(opened: Opened) -> Iterator[npt.NDArray[np.uint8]]:
    """Yield the frames of a fractional SEG as packed masks; a value between none and all belongs to no mask."""
    largest = int(opened.ds.MaximumFractionalValue)
    for frame in pixels_of(opened):
        if np.any((frame != 0) & (frame != largest)):
            raise _refuse_voxels()
        yield np.packbits((frame == largest).ravel(), bitorder="little")


def pixels_of(opened: Opened) -> Iterator[npt.NDArray[np.uint8]]:
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


def _check_label_map(opened: Opened, case: Case, frames: list[Place], numbers: dict[int, Segment]) -> None:
    """Compare each frame of a label map: every number where its segment lies, zero elsewhere."""
    rows = {id(segment): row for row, segment in enumerate(case.findings.segments)}
    found = np.zeros_like(case.counts)
    compared = set(np.linspace(0, len(frames) - 1, COMPARED).round().astype(int).tolist())
    largest = max(numbers, default=0)
    for n, ((_, index), pixels) in enumerate(zip(frames, pixels_of(opened), strict=True)):
        histogram = np.bincount(pixels.ravel(), minlength=largest + 1)
        if histogram[1:].sum() != sum(histogram[number] for number in numbers):
            raise _refuse_voxels()
        for number, segment in numbers.items():
            found[rows[id(segment)], index] += histogram[number]
            if n in compared and not np.array_equal(pixels == number, plane(segment, index)):
                raise _refuse_voxels()
    if not np.array_equal(found, case.counts):
        raise _refuse_voxels()
