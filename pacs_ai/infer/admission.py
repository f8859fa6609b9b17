"""The input gate: whether a series is what a model was made for, judged by what its card says; refused with a code."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np

from pacs_ai.dicom.age import years_of
from pacs_ai.errors import Reason, Refused
from pacs_ai.pipeline import Frames, TimeSeries, Volume, Waveform

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pacs_ai.pipeline import Array, Card, Given, Input

#: Hounsfield units of 12 bits. A scanner's padding lies below, implants on an extended scale above: that is told, but
#: a CT with no voxel inside is none.
USUAL_HU = (-1024, 3071)
#: Part of the voxels that must lie within `Input.intensity`.
WITHIN = 0.9
#: What stands in Contrast/Bolus Agent where none was given.
NO_AGENT = {"", "-", "N", "NO", "NONE", "WITHOUT", "NATIVE", "NATIV", "NO CONTRAST", "WITHOUT CONTRAST"}
#: Words of Series Description and Protocol Name -> the contrast phase that they tell.
PHASES: Mapping[str, str] = {
    "native": "native", "nativ": "native", "without contrast": "native", "non contrast": "native",
    "arterial": "arterial", "arteriell": "arterial", "arterielle": "arterial",
    "portal": "portal", "portovenous": "portal", "venous": "venous", "delayed": "delayed", "late": "delayed",
    "equilibrium": "delayed", "nephrographic": "nephrographic", "excretory": "excretory", "urographic": "excretory",
}  # fmt: skip


def admit_modality(name: str, modality: str, wanted: Input, card: Card) -> None:
    """Refuse another modality than those that the card accepts."""
    if modality not in wanted.modality:
        raise Refused(
            f"{name} is {modality or 'without Modality'}; {card.title} takes {' or '.join(wanted.modality)}",
            Reason.MODALITY,
        )


def admit(name: str, given: Given, wanted: Input, card: Card) -> tuple[str, ...]:
    """Return what is unusual about one input, in words.

    Raises
    ------
    Refused
        Where it is not what the card accepts, or holds nothing that can be analysed.
    """
    admit_modality(name, given.modality, wanted, card)
    headers = [one.header for one in given.images] if isinstance(given, Frames) else [given.header]
    notes = list(_age(name, headers[0], wanted, card))
    for header in headers:
        _check_header(name, header, wanted, card)
    if isinstance(given, Waveform):
        _admit_waveform(name, given, wanted, card)
    elif isinstance(given, Frames):
        _admit_images(name, given, wanted, card)
    else:
        _admit_grid(name, given, wanted, card)
        notes += _unusual(name, given)
    return tuple(notes)


def _check_header(name: str, header: Mapping[str, str], wanted: Input, card: Card) -> None:
    """Refuse what the attributes say, the same for every kind of input."""
    part = header.get("BodyPartExamined", "").upper()
    if wanted.body_part and part and part not in {one.upper() for one in wanted.body_part}:
        raise Refused(f"{name} shows {part}; {card.title} takes {' or '.join(wanted.body_part)}", Reason.BODY_PART)
    views = {header.get(keyword, "").upper() for keyword in ("ViewPosition", "ViewCodeSequence")} - {""}
    if wanted.view and not views & {one.upper() for one in wanted.view}:
        seen = " ".join(sorted(views)) or "unknown"
        raise Refused(f"the view of {name} is {seen}; {card.title} takes {' or '.join(wanted.view)}", Reason.VIEW)
    side = header.get("ImageLaterality") or header.get("Laterality") or ""
    if wanted.laterality and side not in wanted.laterality:
        sides = " or ".join(wanted.laterality)
        raise Refused(f"the side of {name} is {side or 'unknown'}; {card.title} takes {sides}", Reason.LATERALITY)
    if not wanted.lossy and header.get("LossyImageCompression") == "01":
        raise Refused(f"{name} was compressed with loss, which {card.title} does not take", Reason.LOSSY)
    if not wanted.burned_in and header.get("BurnedInAnnotation") == "YES":
        raise Refused(f"{name} has text in its pixels, which {card.title} does not take", Reason.BURNED_IN)
    _check_contrast(name, header, wanted, card)


def _check_contrast(name: str, header: Mapping[str, str], wanted: Input, card: Card) -> None:
    given = header.get("ContrastBolusAgent", "").strip().upper() not in NO_AGENT
    if wanted.contrast == "without" and given:
        raise Refused(f"{name} was taken with contrast medium; {card.title} takes images without", Reason.CONTRAST)
    if wanted.contrast == "with" and not given:
        raise Refused(f"{name} does not say that contrast medium was given; {card.title} needs it", Reason.CONTRAST)
    told = f"{header.get('SeriesDescription', '')} {header.get('ProtocolName', '')}".lower()
    phases = {phase for word, phase in PHASES.items() if re.search(rf"\b{word}\b", told)}
    if wanted.phase and phases and not phases & set(wanted.phase):
        shown = " and ".join(sorted(phases))
        raise Refused(
            f"the contrast phase of {name} is {shown}; {card.title} takes {' or '.join(wanted.phase)}", Reason.CONTRAST
        )


def _age(name: str, header: Mapping[str, str], wanted: Input, card: Card) -> Iterator[str]:
    low, high = wanted.min_age_years, wanted.max_age_years
    if low is None and high is None:
        return
    years = years_of(header.get("PatientAge", ""))
    if years is None:
        yield f"{name} does not tell the patient's age, for which {card.title} has limits"
        return
    if low is not None and years < low:
        raise Refused(f"the patient is younger than {low:g} years, for whom {card.title} was not made", Reason.AGE)
    if high is not None and years > high:
        raise Refused(f"the patient is older than {high:g} years, for whom {card.title} was not made", Reason.AGE)


def _admit_grid(name: str, given: Volume | TimeSeries, wanted: Input, card: Card) -> None:
    slices, rows, columns = given.shape
    spacing = given.spacing
    if slices < wanted.min_slices:
        raise Refused(f"{name} has {slices} slices; {card.title} needs at least {wanted.min_slices}", Reason.TOO_FEW)
    if wanted.max_slice_spacing_mm is not None and spacing[0] > wanted.max_slice_spacing_mm + 1e-3:
        most = f"{wanted.max_slice_spacing_mm:g} mm"
        raise Refused(
            f"{name} has slices {spacing[0]:.2f} mm apart; {card.title} takes at most {most}", Reason.RESOLUTION
        )
    _check_matrix(name, (rows, columns), spacing[1:], wanted, card)
    if isinstance(given, TimeSeries):
        _check_times(name, given, wanted, card)
    low, high = _range(given.voxels, name)
    if low == high:
        raise Refused(f"{name} is empty: every voxel has the same value", Reason.INTENSITY)
    if given.modality == "CT" and (high < USUAL_HU[0] or low > USUAL_HU[1]):
        raise Refused(f"{name} has values from {low:g} to {high:g}, which are no Hounsfield units", Reason.INTENSITY)
    _check_intensity(name, given.voxels, wanted, card)


def _check_matrix(
    name: str, size: tuple[int, int], spacing: tuple[float, float] | None, wanted: Input, card: Card
) -> None:
    if size[0] < wanted.min_rows or size[1] < wanted.min_columns:
        least = f"{wanted.min_rows} x {wanted.min_columns}"
        words = f"{name} has {size[0]} x {size[1]} pixels; {card.title} needs at least {least}"
        raise Refused(words, Reason.TOO_SMALL)
    most = wanted.max_pixel_spacing_mm
    if most is not None and (spacing is None or max(spacing) > most + 1e-3):
        told = "of unknown size" if spacing is None else f"of {spacing[0]:.2f} x {spacing[1]:.2f} mm"
        raise Refused(f"{name} has pixels {told}; {card.title} takes at most {most:g} mm", Reason.RESOLUTION)


def _check_times(name: str, given: TimeSeries, wanted: Input, card: Card) -> None:
    times, seconds = len(given.times_s), float(given.times_s[-1])
    if times < wanted.min_times:
        raise Refused(f"{name} has {times} times; {card.title} needs at least {wanted.min_times}", Reason.TOO_FEW)
    if seconds < wanted.min_seconds:
        words = f"{name} lasts {seconds:.1f} s; {card.title} needs at least {wanted.min_seconds:g} s"
        raise Refused(words, Reason.TOO_FEW)


def _check_intensity(name: str, values: Array, wanted: Input, card: Card) -> None:
    if wanted.intensity is None:
        return
    low, high = wanted.intensity
    part = float(np.mean((values >= low) & (values <= high)))
    if part < WITHIN:
        raise Refused(
            f"only {100 * part:.0f} % of {name} lies between {low:g} and {high:g}, as {card.title} expects of "
            f"{100 * WITHIN:.0f} %",
            Reason.INTENSITY,
        )


def _admit_images(name: str, frames: Frames, wanted: Input, card: Card) -> None:
    count = len(frames.images)
    if count < wanted.min_slices:
        raise Refused(f"{name} has {count} images; {card.title} needs at least {wanted.min_slices}", Reason.TOO_FEW)
    ranges = [_range(frame.pixels, name) for frame in frames.images]
    if all(low == high for low, high in ranges):
        raise Refused(f"{name} is empty: every pixel of an image has the same value", Reason.INTENSITY)
    for frame in frames.images:
        rows, columns = frame.pixels.shape[:2]
        _check_matrix(name, (rows, columns), frame.spacing, wanted, card)
        _check_intensity(name, frame.pixels, wanted, card)


def _admit_waveform(name: str, given: Waveform, wanted: Input, card: Card) -> None:
    missing = [channel for channel in wanted.channels if channel not in given.channels]
    if missing:
        words = f"{name} lacks the channel{'' if len(missing) == 1 else 's'} {', '.join(missing)}"
        raise Refused(f"{words}, which {card.title} needs", Reason.TOO_FEW)
    seconds = given.samples.shape[1] / given.frequency_hz
    if seconds < wanted.min_seconds:
        words = f"{name} lasts {seconds:.1f} s; {card.title} needs at least {wanted.min_seconds:g} s"
        raise Refused(words, Reason.TOO_FEW)
    low, high = _range(given.samples, name, "samples")
    if low == high:
        raise Refused(f"{name} is empty: every sample has the same value", Reason.INTENSITY)


def _range(values: Array, name: str, what: str = "voxels") -> tuple[float, float]:
    """Return the smallest and the largest value; NaN and infinity show in one of them."""
    low, high = float(values.min()), float(values.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise Refused(f"{name} has {what} that are no numbers", Reason.INTENSITY)
    return low, high


def _unusual(name: str, given: Volume | TimeSeries) -> tuple[str, ...]:
    """Return a note on values of a CT that no 12-bit scanner yields."""
    if given.modality != "CT":
        return ()
    low, high = _range(given.voxels, name)
    if USUAL_HU[0] <= low and high <= USUAL_HU[1]:
        return ()
    return (f"{name}: values from {low:g} to {high:g} HU lie outside {USUAL_HU[0]} to {USUAL_HU[1]}",)
