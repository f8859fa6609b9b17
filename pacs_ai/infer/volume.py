"""From the files of one series to a volume: sorted by geometry, rescaled, on a regular grid, or refused in words."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from pydicom.datadict import dictionary_description

from pacs_ai.dicom.evidence import Evidence, FrameReference
from pacs_ai.dicom.geometry import SAME_POSITION_MM, check_alike, coincident, stack
from pacs_ai.dicom.identifiers import derive_uid
from pacs_ai.dicom.reading import read_items, read_text
from pacs_ai.errors import Reason, Refused
from pacs_ai.infer.header import HEADER_KEYWORDS, lossy, nested, read_header
from pacs_ai.infer.pixels import MAX_DECODED_BYTES, decode
from pacs_ai.infer.series import check_series, differing
from pacs_ai.infer.source import Frame, Received, Source, count_stacks, open_sources, receive_all
from pacs_ai.pipeline import Array, Volume

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

#: Fewest images in which a Frame of Reference UID of its own in each is taken for an error of the sender.
MIN_SCATTERED_FRAMES_OF_REFERENCE = 3


@dataclass(frozen=True)
class LoadedVolume:
    """What `load_volume` returns.

    Parameters
    ----------
    volume
        The series as a regular grid.
    evidence
        The instances that it was built from, slice by slice, without pixel data.
    notes
        Faults of the series that were handled, in words.
    """

    volume: Volume
    evidence: Evidence
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Slice:
    """One frame of one source."""

    source: Source
    index: int

    @property
    def frame(self) -> Frame:
        """Where it lies and how it rescales."""
        return self.source.frames[self.index]

    @property
    def sop_instance_uid(self) -> str:
        """Of its instance."""
        return read_text(self.source.ds, "SOPInstanceUID")

    def stored(self) -> Array:
        """Return (rows, columns) stored values."""
        return decode(self.source.layout, self.source.encoded[self.index])


def load_volume(paths: Sequence[Path], *, digests: Mapping[Path, str] | None = None) -> LoadedVolume:
    """Build the volume of one series from its files, whatever their names and order.

    Slices ascend along the normal (row direction x column direction). Pixel padding keeps its value. Images marked as
    localizers are left out where others remain, and a slice that came twice with the same pixels is used once.

    Parameters
    ----------
    paths
        The files of one series: single-frame images, or one enhanced multi-frame image (CT, MR, PET).
    digests
        SHA-256 (hex) of every file; None checks nothing.

    Raises
    ------
    Refused
        Where the images form no regular volume; the message says why, with figures.
    NotUnderstood
        Where a file is no DICOM file.
    Permanent
        Where a file is gone or has changed on the disk.
    Unavailable
        Where a file cannot be read now.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom warns about every bent value; what matters is checked here
        return _load(receive_all(paths, digests))


def _load(received: Sequence[Received]) -> LoadedVolume:
    images, told = check_series(received)
    sources = open_sources(images)
    check_one_image_matrix(sources)
    slices, merged = _one_per_position(slices_of(sources))
    grid = stack([each.frame.plane for each in slices])
    slices = tuple(slices[i] for i in grid.order)
    joined = join_frames_of_reference(slices)
    ds = slices[0].source.ds
    frame_of_reference_uid = read_text(ds, "FrameOfReferenceUID")
    modality = read_text(ds, "Modality")
    volume = Volume(values_of(slices), grid.affine, modality, header_of(slices[0]), frame_of_reference_uid)
    notes = (*told, *joined, *merged, *grid.notes, *lossy(ds))
    return LoadedVolume(volume, evidence_of(slices), notes)


def check_one_image_matrix(sources: Sequence[Source]) -> None:
    """Refuse images of several sizes, several multi-frame images, several stacks, and more than memory holds."""
    sizes = sorted({(each.layout.rows, each.layout.columns) for each in sources})
    if len(sizes) > 1:
        named = " and ".join(f"{rows} x {columns}" for rows, columns in sizes)
        raise Refused(f"the images are not of one size: {named} pixels", Reason.GEOMETRY)
    enhanced = [each for each in sources if each.frames[0].number is not None]
    if enhanced and len(sources) > 1:
        raise Refused(
            f"the series holds {len(sources)} images, {len(enhanced)} of them multi-frame; "
            "only one alone is one volume",
            Reason.GEOMETRY,
        )
    if enhanced and (stacks := count_stacks(enhanced[0])) > 1:
        raise Refused(f"the multi-frame image holds {stacks} stacks; only one can be one volume", Reason.GEOMETRY)
    if sum(each.layout.frame_bytes * each.layout.frames for each in sources) > MAX_DECODED_BYTES:
        raise Refused(f"the series is larger than {MAX_DECODED_BYTES // 2**30} GiB of pixels", Reason.UNREADABLE)


def slices_of(sources: Sequence[Source]) -> list[Slice]:
    """Return every frame of every source."""
    return [Slice(source, index) for source in sources for index in range(len(source.frames))]


def _one_per_position(slices: Sequence[Slice]) -> tuple[tuple[Slice, ...], tuple[str, ...]]:
    """Keep one slice per position: the first by SOP Instance UID where the others have the same pixels."""
    planes = [each.frame.plane for each in slices]
    check_alike(planes)
    groups = [[slices[i] for i in group] for group in coincident(planes)]
    crowded = [sorted(group, key=lambda each: each.sop_instance_uid) for group in groups if len(group) > 1]
    for group in crowded:
        if not all(_is_copy(group[0], other) for other in group[1:]):
            raise _why_crowded(groups, group)
    kept = tuple(min(group, key=lambda each: each.sop_instance_uid) for group in groups)
    names = {each.sop_instance_uid for each in kept}
    if kept[0].frame.number is None and len(names) < len(kept):
        raise Refused("images at different positions have the same SOP Instance UID", Reason.IDENTITY)
    if not crowded:
        return kept, ()
    places = ", ".join(group[0].frame.plane.place for group in crowded[:3])
    more = ", ..." if len(crowded) > 3 else ""
    verb = "slice" if len(crowded) == 1 else "slices"
    return kept, (f"{len(crowded)} {verb} came more than once with the same pixels ({places}{more}); one was used",)


def _is_copy(one: Slice, other: Slice) -> bool:
    a, b = one.frame, other.frame
    same_place = np.allclose(a.plane.position, b.plane.position, rtol=0, atol=SAME_POSITION_MM)
    if not same_place or (a.slope, a.intercept) != (b.slope, b.intercept):
        return False
    return np.array_equal(one.stored(), other.stored())


def _why_crowded(groups: Sequence[Sequence[Slice]], crowd: Sequence[Slice]) -> Refused:
    """Return what the series is when different images lie at one position."""
    crowded = sum(len(group) > 1 for group in groups)
    place = crowd[0].frame.plane.place
    found = differing([each.frame.attributes for each in crowd])
    cause = f": {found[0]} (they differ in {dictionary_description(found[1])})" if found else ""
    reason = Reason.DIMENSIONS if found else Reason.DUPLICATE
    if len(groups) == 1:
        return Refused(f"all {len(crowd)} images lie at one position, {place}{cause}; this is no volume", reason)
    if crowded == 1:
        return Refused(f"{len(crowd)} different images lie at the same position, {place}{cause}", reason)
    words = f"different images lie at the same positions, {crowded} of {len(groups)}, the first at {place}{cause}"
    return Refused(words, reason)


def join_frames_of_reference(slices: Sequence[Slice]) -> tuple[str, ...]:
    """Refuse several frames of reference; none, or one of its own in every image of an even stack, is handled.

    De-identification makes such series. A result needs one (type 1 in PS3.3 C.7.4.1), so the evidence then bears one:
    the first slice's, or one that is derived from the Series Instance UID.
    """
    datasets = [each.source.ds for each in slices]
    values = {read_text(ds, "FrameOfReferenceUID") for ds in datasets}
    if values == {""}:
        derived = derive_uid("frame of reference", read_text(datasets[0], "SeriesInstanceUID"))
        for ds in datasets:
            ds.FrameOfReferenceUID = derived
        return ("the images have no Frame of Reference UID; one was derived from their series",)
    if len(values) == 1:
        return ()
    if len(values) < max(len(datasets), MIN_SCATTERED_FRAMES_OF_REFERENCE):
        raise Refused(
            f"the {len(datasets)} images have {len(values)} frames of reference, so their positions cannot be compared",
            Reason.GEOMETRY,
        )
    for ds in datasets:
        ds.FrameOfReferenceUID = datasets[0].FrameOfReferenceUID
    return ("every image has a Frame of Reference UID of its own; that of the first slice was used for all",)


def values_of(slices: Sequence[Slice]) -> Array:
    """Return (slices, rows, columns) modality values: int16 if every value fits exactly, else float32."""
    layout = slices[0].source.layout
    voxels: Array = np.empty((len(slices), layout.rows, layout.columns), np.int16)
    if not all(each.frame.slope.is_integer() and each.frame.intercept.is_integer() for each in slices):
        voxels = voxels.astype(np.float32)
    for k, each in enumerate(slices):
        stored = each.stored()
        if voxels.dtype == np.int16 and not _fits(each, stored):
            voxels = voxels.astype(np.float32)
        rescale(stored, each.frame, voxels[k])
    return voxels


def _fits(each: Slice, stored: Array) -> bool:
    """Tell whether the slice's modality values are inside int16, by the bits stored or else by the values."""
    frame = each.frame
    for low, high in (each.source.layout.bounds, (int(stored.min()), int(stored.max()))):
        ends = (low * frame.slope + frame.intercept, high * frame.slope + frame.intercept)
        if min(ends) >= np.iinfo(np.int16).min and max(ends) <= np.iinfo(np.int16).max:
            return True
    return False


def rescale(stored: Array, frame: Frame, out: Array) -> None:
    """Write stored * slope + intercept; whole numbers stay whole (16-bit sums wrap back to the right value)."""
    if out.dtype != np.int16:
        out[...] = np.multiply(stored, frame.slope, dtype=np.float64) + frame.intercept
    elif frame.slope == 1:
        np.add(stored, np.array(int(frame.intercept)).astype(np.int16), out=out, dtype=np.int16, casting="unsafe")
    else:
        out[...] = stored.astype(np.int64) * int(frame.slope) + int(frame.intercept)


def header_of(first: Slice) -> dict[str, str]:
    """Return the attributes of the first slice; those of an enhanced image from its functional groups."""
    ds = first.source.ds
    shared = [item for group in read_items(ds, "SharedFunctionalGroupsSequence") for item in nested(group)]
    return read_header((ds, *first.frame.attributes, *shared), HEADER_KEYWORDS)


def evidence_of(slices: Sequence[Slice], drawn_on: Sequence[Slice] | None = None) -> Evidence:
    """Return the instances of the slices; of a series over time `drawn_on` are those of its first time."""
    references = tuple(
        FrameReference(read_text(each.source.ds, "SOPClassUID"), each.sop_instance_uid, each.frame.number)
        for each in (slices if drawn_on is None else drawn_on)
    )
    datasets = {id(each.source.ds): each.source.ds for each in slices}
    return Evidence(tuple(datasets.values()), references)
