"""From the files of one series of radiographs, mammograms or ultrasound to its images, or refused in words."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

from pacs_ai.dicom.evidence import Evidence, FrameReference
from pacs_ai.dicom.geometry import read_numbers
from pacs_ai.dicom.reading import read_items, read_text, read_value
from pacs_ai.errors import Reason, Refused
from pacs_ai.infer.colour import check_colour, decode_colour
from pacs_ai.infer.grey import Scaling, brightness, read_scaling
from pacs_ai.infer.header import IMAGE_KEYWORDS, lossy, nested, read_header, read_view
from pacs_ai.infer.pixels import GREYSCALES, MAX_DECODED_BYTES, Layout, decode, read_layout, split_frames
from pacs_ai.infer.scale import Scale, read_scale
from pacs_ai.infer.series import check_images
from pacs_ai.infer.source import Received, for_each, receive_all
from pacs_ai.pipeline import Frame, Frames

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from pydicom import Dataset

    from pacs_ai.pipeline import Array

#: Bytes that a pixel takes in memory at most, greyscale as float32.
_BYTES_PER_PIXEL = 4
#: Presentation LUT Shape that belongs to each greyscale (PS3.3 C.8.11.1.1, C.11.6).
_SHAPES = {"MONOCHROME1": "INVERSE", "MONOCHROME2": "IDENTITY"}
#: Transfer syntaxes of films: no image can be cut out of them here.
_FILMS = ("MPEG", "HEVC")


@dataclass(frozen=True)
class LoadedFrames:
    """What `load_frames` returns.

    Parameters
    ----------
    frames
        The images, in the order of Instance Number.
    evidence
        The instances that they come from, image by image, without pixel data.
    notes
        Faults of the series that were handled, in words.
    """

    frames: Frames
    evidence: Evidence
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Instance:
    """One instance: `encoded` and `groups` run in parallel, `groups` holding what describes each frame beside `ds`."""

    ds: Dataset
    layout: Layout
    encoded: tuple[bytes | memoryview, ...]
    groups: tuple[tuple[Dataset, ...], ...]

    @property
    def is_grey(self) -> bool:
        return self.layout.photometric_interpretation in GREYSCALES


def load_frames(paths: Sequence[Path], *, digests: Mapping[Path, str] | None = None) -> LoadedFrames:
    """Read the images of one series, whatever the names and order of its files; they need not be of one size.

    Greyscale after the Modality LUT, turned where MONOCHROME1; colour as red, green and blue. VOI LUT, windows,
    overlays and shutters change nothing. Images ascend by Instance Number, then SOP Instance UID, the frames of a
    multi-frame image one after another.

    Parameters
    ----------
    paths
        The files of one series: CR, DX, MG, US, XA, RF, OP, GM, ..., single- or multi-frame.
    digests
        SHA-256 (hex) of every file; None checks nothing.

    Raises
    ------
    Refused
        Where the images cannot be read or are not of one series; the message says why, with figures.
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


def _load(received: Sequence[Received]) -> LoadedFrames:
    completed = check_images(received)
    instances = sorted(for_each(_open, received), key=lambda one: _place(one.ds))
    _check_memory(instances)
    told: list[str] = []
    images = tuple(image for one in for_each(lambda one: _images(one, told), instances) for image in one)
    frames = Frames(images, read_text(instances[0].ds, "Modality"), images[0].header)
    return LoadedFrames(frames, _evidence(instances), (*completed, *_counted(told, len(instances))))


def _open(received: Received) -> _Instance:
    if received.pixel_data is None:
        raise Refused("there is no pixel data", Reason.UNREADABLE)
    if received.transfer_syntax_uid.name.startswith(_FILMS):
        raise Refused(
            f"the images are a film ({received.transfer_syntax_uid.name}), which cannot be read", Reason.UNREADABLE
        )
    layout = read_layout(received.ds, received.transfer_syntax_uid)
    if layout.photometric_interpretation not in GREYSCALES:
        check_colour(layout)
    elif layout.samples != 1:
        raise Refused("a greyscale image has to have one sample per pixel", Reason.UNREADABLE)
    return _Instance(received.ds, layout, split_frames(layout, received.pixel_data), _groups(received.ds, layout))


def _groups(ds: Dataset, layout: Layout) -> tuple[tuple[Dataset, ...], ...]:
    """Return the functional group items of each frame, its own before the shared (PS3.3 C.7.6.16)."""
    shared = tuple(item for group in read_items(ds, "SharedFunctionalGroupsSequence") for item in nested(group))
    per_frame = read_items(ds, "PerFrameFunctionalGroupsSequence")
    if per_frame and len(per_frame) != layout.frames:
        raise Refused(f"the image has {layout.frames} frames, {len(per_frame)} of them described", Reason.UNREADABLE)
    return tuple((*nested(item), *shared) for item in per_frame) or ((*shared,),) * layout.frames


def _place(ds: Dataset) -> tuple[bool, int, str]:
    """Return what images are sorted by; those without Instance Number come last."""
    number = read_value(ds, "InstanceNumber")
    known = isinstance(number, int)
    return not known, int(number) if isinstance(number, int) else 0, read_text(ds, "SOPInstanceUID")


def _check_memory(instances: Sequence[_Instance]) -> None:
    pixels = sum(one.layout.rows * one.layout.columns * one.layout.frames for one in instances)
    if pixels * _BYTES_PER_PIXEL > MAX_DECODED_BYTES:
        raise Refused(f"the series is larger than {MAX_DECODED_BYTES // 2**30} GiB of pixels", Reason.UNREADABLE)


def _images(one: _Instance, told: list[str]) -> list[Frame]:
    """Decode every frame of one instance; what is to be told of the instance is added to `told`."""
    images = []
    described: dict[int, tuple[Scale, Scaling, dict[str, str]]] = {}
    times = frame_times(one.ds, len(one.encoded))
    for number, (encoded, groups) in enumerate(zip(one.encoded, one.groups, strict=True)):
        if id(groups) not in described:
            described[id(groups)] = _described(one, groups)
        scale, scaling, header = described[id(groups)]
        timed = header | {"FrameReferenceTime": f"{times[number]:g}"} if times else header
        images.append(Frame(_pixels(one, encoded, scaling), scale.spacing, timed))
    notes = {scale.note for scale, *_ in described.values()} - {""}
    told += (*sorted(notes), *lossy(one.ds), *_contradiction(one))
    return images


def _described(one: _Instance, groups: tuple[Dataset, ...]) -> tuple[Scale, Scaling, dict[str, str]]:
    scaling = read_scaling((*groups, one.ds)) if one.is_grey else Scaling(1.0, 0.0)
    header = read_header((one.ds, *groups), IMAGE_KEYWORDS) | read_view((one.ds, *groups))
    return read_scale(one.ds, groups), scaling, header


def frame_times(ds: Dataset, frames: int) -> list[float]:
    """Return when each frame of a film was taken, in ms after the first; none where nothing tells it (C.7.6.5)."""
    if frames == 1:
        return []
    if read_value(ds, "FrameTimeVector") not in (None, ""):
        steps = read_numbers(ds, "FrameTimeVector", frames)
        return list(accumulate(steps[1:], initial=0.0))
    if read_value(ds, "FrameTime") in (None, ""):
        return []
    (step,) = read_numbers(ds, "FrameTime", 1)
    return [step * number for number in range(frames)] if step > 0 else []


def _pixels(one: _Instance, encoded: bytes | memoryview, scaling: Scaling) -> Array:
    if not one.is_grey:
        return decode_colour(one.layout, one.ds, encoded)
    return brightness(one.layout, decode(one.layout, encoded), scaling)


def _contradiction(one: _Instance) -> tuple[str, ...]:
    """Return a note where Presentation LUT Shape contradicts the greyscale, which is followed."""
    shape, greyscale = read_text(one.ds, "PresentationLUTShape"), one.layout.photometric_interpretation
    if not shape or shape == _SHAPES.get(greyscale, shape):
        return ()
    return (f"Presentation LUT Shape is {shape} in a {greyscale} image; the latter was followed",)


def _counted(told: Sequence[str], images: int) -> Iterable[str]:
    """Yield each note once, with the number of images that it holds for where that is not all."""
    for note in dict.fromkeys(told):
        times = told.count(note)
        yield note if times == images else f"{note} ({times} of {images} images)"


def _evidence(instances: Sequence[_Instance]) -> Evidence:
    references = tuple(
        FrameReference(
            read_text(one.ds, "SOPClassUID"),
            read_text(one.ds, "SOPInstanceUID"),
            number if one.layout.frames > 1 else None,
        )
        for one in instances
        for number in range(1, one.layout.frames + 1)
    )
    return Evidence(tuple(one.ds for one in instances), references)
