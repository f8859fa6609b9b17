"""From the files of one series to a volume over time: each phase complete, in the order of its times, or refused."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

import numpy as np
from pydicom.valuerep import DA, DT, TM

from pacs_ai.dicom.geometry import check_alike, coincident, read_numbers, stack
from pacs_ai.dicom.reading import READING_FAULTS, read_items, read_text, read_value
from pacs_ai.errors import Reason, Refused
from pacs_ai.infer.header import lossy, nested
from pacs_ai.infer.series import check_series, differing
from pacs_ai.infer.source import open_sources, receive_all
from pacs_ai.infer.volume import (
    Slice,
    check_one_image_matrix,
    evidence_of,
    header_of,
    join_frames_of_reference,
    slices_of,
    values_of,
)
from pacs_ai.pipeline import TimeSeries

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from pydicom import Dataset

    from pacs_ai.dicom.evidence import Evidence
    from pacs_ai.infer.source import Received
    from pacs_ai.pipeline import Array

#: Numbers that count the phases from 1 (PS3.3 C.8.3.1, C.7.6.16.2.2): every position must have the same ones.
COUNTERS = ("TemporalPositionIndex", "TemporalPositionIdentifier")
#: Times of a frame, with their length in seconds.
OFFSETS: Mapping[str, float] = {
    "TemporalPositionTimeOffset": 1.0,
    "TriggerTime": 1e-3,
    "NominalCardiacTriggerDelayTime": 1e-3,
    "FrameReferenceTime": 1e-3,
}
#: Points in time, of the phase or of its frames.
MOMENTS = ("FrameAcquisitionDateTime", "AcquisitionDateTime", "AcquisitionTime", "ContentTime")
#: The day that a time of the day belongs to: a series may go on over midnight.
DAYS = {"AcquisitionTime": "AcquisitionDate", "ContentTime": "ContentDate"}
_EPOCH = datetime(2000, 1, 1)  # noqa: DTZ001 - only differences are taken
#: Lengths of one phase in ms, where nothing tells its time.
STEPS = {"TemporalResolution": "the temporal resolution", "RepetitionTime": "the repetition time"}


@dataclass(frozen=True)
class LoadedTimeSeries:
    """What `load_time_series` returns.

    Parameters
    ----------
    series
        The volumes over time.
    evidence
        All instances, time by time; `slices` are those of the first time.
    notes
        Faults of the series that were handled, in words.
    """

    series: TimeSeries
    evidence: Evidence
    notes: tuple[str, ...]


def load_time_series(paths: Sequence[Path], *, digests: Mapping[Path, str] | None = None) -> LoadedTimeSeries:
    """Build the volumes of one series that was acquired again and again: perfusion, dynamic MR, gated cine.

    Frames at one position are put in order by their Temporal Position, else by their time; every position must have
    every phase. Times count from the first phase, from Temporal Position Time Offset, Trigger Time, Frame Reference
    Time or the time of acquisition (the median over the slices of a phase).

    Parameters
    ----------
    paths
        The files of one series: single-frame images, or one enhanced multi-frame image.
    digests
        SHA-256 (hex) of every file; None checks nothing.

    Raises
    ------
    Refused
        Where the images form no volumes over time; the message says why, with figures.
    NotUnderstood, Permanent, Unavailable
        As `pacs_ai.infer.volume.load_volume`.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom warns about every bent value; what matters is checked here
        return _load(receive_all(paths, digests))


def _load(received: Sequence[Received]) -> LoadedTimeSeries:
    images, told = check_series(received)
    sources = open_sources(images)
    check_one_image_matrix(sources)
    slices = slices_of(sources)
    planes = [one.frame.plane for one in slices]
    check_alike(planes)
    positions = [[slices[at] for at in group] for group in coincident(planes)]
    phases, counted = _phases(positions)
    grid = stack([one.frame.plane for one in phases[0]])
    phases = [[phase[at] for at in grid.order] for phase in phases]
    every = [one for phase in phases for one in phase]
    joined = join_frames_of_reference(every)
    times, timed = _times(phases)
    first, ds = phases[0][0], phases[0][0].source.ds
    values = values_of(every)
    series = TimeSeries(
        values.reshape(len(phases), len(phases[0]), *values.shape[1:]),
        grid.affine,
        times,
        read_text(ds, "Modality"),
        header_of(first),
        read_text(ds, "FrameOfReferenceUID"),
    )
    notes = (*told, *joined, *counted, *timed, *grid.notes, *lossy(ds))
    return LoadedTimeSeries(series, evidence_of(every, phases[0]), notes)


def _phases(positions: Sequence[Sequence[Slice]]) -> tuple[list[list[Slice]], tuple[str, ...]]:
    """Return the slices of each phase, in the order of time, and what was tolerated."""
    sizes = {len(group) for group in positions}
    if sizes == {1}:
        raise Refused("every position was acquired once; this is no series over time", Reason.DIMENSIONS)
    if len(sizes) > 1:
        _refuse_incomplete(positions)
    for keyword in COUNTERS:
        found = _ordered(positions, lambda one, keyword=keyword: _number(one, keyword))  # type: ignore[misc]
        if found is not None:
            _check_same_phases(found, keyword)
            return _turned(found), ()
    for key in (_offset, _moment):
        found = _ordered(positions, key)
        if found is not None:
            return _turned(found), ()
    told = differing([one.frame.attributes for one in positions[0]])
    words = f"they are {told[0]}, not times" if told else "nothing tells their order in time"
    raise Refused(f"{sizes.pop()} images lie at every position, and {words}", Reason.DIMENSIONS)


def _refuse_incomplete(positions: Sequence[Sequence[Slice]]) -> None:
    sizes = [len(group) for group in positions]
    most = max(sizes)
    lacking = [group for group in positions if len(group) < most]
    missing = sum(most - len(group) for group in lacking)
    where = lacking[0][0].frame.plane.place
    raise Refused(
        f"{missing} of {most * len(positions)} images of the {most} phases are missing: at {where} there are "
        f"{len(lacking[0])}",
        Reason.MISSING_SLICE,
    )


def _ordered(
    positions: Sequence[Sequence[Slice]], key: Callable[[Slice], float | None]
) -> list[list[tuple[float, Slice]]] | None:
    """Return the slices of each position by their key, ascending; None where the key does not tell them apart."""
    found = []
    for group in positions:
        keys = [(key(one), one) for one in group]
        told = [(value, one) for value, one in keys if value is not None]
        if len({value for value, _ in told}) < len(group):
            return None
        found.append(sorted(told, key=lambda pair: pair[0]))
    return found


def _check_same_phases(found: Sequence[Sequence[tuple[float, Slice]]], keyword: str) -> None:
    wanted = [value for value, _ in found[0]]
    for group in found[1:]:
        if [value for value, _ in group] != wanted:
            place = group[0][1].frame.plane.place
            raise Refused(
                f"the images at {place} are of other phases than those at {found[0][0][1].frame.plane.place} "
                f"({keyword}): phases are missing",
                Reason.MISSING_SLICE,
            )


def _turned(found: Sequence[Sequence[tuple[float, Slice]]]) -> list[list[Slice]]:
    return [[group[phase][1] for group in found] for phase in range(len(found[0]))]


def _places(one: Slice) -> list[Dataset]:
    """Return the data sets that describe a frame, its own first."""
    ds = one.source.ds
    shared = [item for group in read_items(ds, "SharedFunctionalGroupsSequence") for item in nested(group)]
    return [*one.frame.attributes, *shared, ds]


def _number(one: Slice, keyword: str) -> float | None:
    for place in _places(one):
        if read_value(place, keyword) not in (None, ""):
            return read_numbers(place, keyword, 1)[0]
    return None


def _offset(one: Slice) -> float | None:
    """Return when a frame was acquired, in seconds after the beginning."""
    for keyword, seconds in OFFSETS.items():
        value = _number(one, keyword)
        if value is not None:
            return value * seconds
    return None


def _moment(one: Slice) -> float | None:
    """Return when a frame was acquired, in seconds after some moment."""
    for keyword in MOMENTS:
        text = _text(one, keyword)
        if text:
            return _seconds(text, keyword, _text(one, DAYS[keyword]) if keyword in DAYS else "")
    return None


def _text(one: Slice, keyword: str) -> str:
    return next(filter(None, (read_text(place, keyword) for place in _places(one))), "")


def _seconds(text: str, keyword: str, day: str) -> float:
    """Return seconds since 2000; those of a time without its day are counted from midnight."""
    try:
        if keyword.endswith("DateTime"):
            moment: datetime = DT(text)
            return float((moment.replace(tzinfo=None) - _EPOCH).total_seconds())
        time = TM(text)
        days = DA(day).toordinal() - _EPOCH.toordinal() if day else 0
        return days * 86_400 + time.hour * 3600 + time.minute * 60 + time.second + time.microsecond / 1e6
    except (*READING_FAULTS, AttributeError) as fault:
        raise Refused(f"{keyword} cannot be read", Reason.UNREADABLE) from fault


def _times(phases: Sequence[Sequence[Slice]]) -> tuple[Array, tuple[str, ...]]:
    """Return (times,) seconds after the first phase, and how they were found where nothing states them."""
    for key in (_offset, _moment):
        found = [[key(one) for one in phase] for phase in phases]
        if any(value is None for phase in found for value in phase):
            continue
        times = np.array([np.median(phase) for phase in found], np.float64)  # type: ignore[arg-type]
        if np.all(np.diff(times) > 0):
            return times - times[0], ()
    for keyword, words in STEPS.items():
        step = _number(phases[0][0], keyword)
        if step is not None and step > 0:
            note = f"no attribute tells the time of a phase; {words} of {step:g} ms was counted"
            return np.arange(len(phases)) * step / 1000.0, (note,)
    raise Refused("no attribute tells the times of the phases", Reason.UNREADABLE)
