"""From the file of an ECG to its traces in mV, each lead under its usual name, or refused in words."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from pydicom.uid import ExplicitVRBigEndian

from pacs_ai.dicom.evidence import Evidence, FrameReference
from pacs_ai.dicom.geometry import read_numbers
from pacs_ai.dicom.reading import read_items, read_text, read_value, read_whole
from pacs_ai.errors import Reason, Refused
from pacs_ai.infer.header import HEADER_KEYWORDS, read_header
from pacs_ai.infer.series import check_images
from pacs_ai.infer.source import Received, receive_all
from pacs_ai.pipeline import Waveform

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from pydicom import Dataset

    from pacs_ai.pipeline import Array

#: (Waveform Bits Allocated, Waveform Sample Interpretation) -> numpy's type (PS3.3 C.10.9.1.5); MB and AB, the
#: logarithmic codes of telephones, are no ECG.
TYPES: Mapping[tuple[int, str], str] = {
    (8, "SB"): "i1", (8, "UB"): "u1", (16, "SS"): "i2", (16, "US"): "u2", (32, "SL"): "i4", (32, "UL"): "u4",
}  # fmt: skip
#: Most channels, and most samples of all of them.
MOST_CHANNELS, MOST_SAMPLES = 256, 64_000_000
#: The last number of a lead's code (PS3.16 CID 3001, ``MDC`` 2:1 and ``SCPECG`` 5.6.3-9-1) -> its usual name.
LEADS: Mapping[int, str] = {
    1: "I", 2: "II", 61: "III", 62: "aVR", 63: "aVL", 64: "aVF", 3: "V1", 4: "V2", 5: "V3", 6: "V4", 7: "V5", 8: "V6",
}  # fmt: skip
LEAD_CODE = re.compile(r"(?:2:|5\.6\.3-9-)(\d+)")
LEAD_NAME = re.compile(r"(?:MDC_ECG_LEAD_|ECG |Lead )?(I{1,3}|aV[RLF]|V[1-6])\b", re.IGNORECASE)
#: UCUM unit -> mV.
MILLIVOLTS: Mapping[str, float] = {"V": 1000.0, "mV": 1.0, "uV": 0.001, "nV": 1e-6}
#: What pipelines may judge a recording by, beside the attributes of images.
GROUP_KEYWORDS = ("WaveformOriginality", "MultiplexGroupLabel")
CHANNEL_KEYWORDS = ("FilterLowFrequency", "FilterHighFrequency", "NotchFilterFrequency")


@dataclass(frozen=True)
class LoadedWaveform:
    """What `load_waveform` returns.

    Parameters
    ----------
    waveform
        The traces.
    evidence
        The instance that they come from, without its samples.
    notes
        Faults that were handled, in words.
    """

    waveform: Waveform
    evidence: Evidence
    notes: tuple[str, ...]


def load_waveform(paths: Sequence[Path], *, digests: Mapping[Path, str] | None = None) -> LoadedWaveform:
    """Read the recording of one series: 12-lead ECG, General ECG, Ambulatory ECG, Hemodynamic and other waveforms.

    Of several multiplex groups the longest original one is read; a derived one (the median beat) where there is none
    else. Samples become ``sample * Channel Sensitivity * Correction Factor + Channel Baseline`` (PS3.3 C.10.9.1.4.2),
    and voltages mV.

    Parameters
    ----------
    paths
        The files of one series.
    digests
        SHA-256 (hex) of every file; None checks nothing.

    Raises
    ------
    Refused
        Where the series holds several recordings, or one that cannot be read.
    NotUnderstood, Permanent, Unavailable
        As `pacs_ai.infer.source.receive`.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom warns about every bent value; what matters is checked here
        return _load(receive_all(paths, digests))


def _load(received: Sequence[Received]) -> LoadedWaveform:
    completed = check_images(received)
    if len(received) > 1:
        raise Refused(f"the series holds {len(received)} recordings; one can be read", Reason.DIMENSIONS)
    (one,) = received
    groups = read_items(one.ds, "WaveformSequence")
    if not groups:
        raise Refused("there is no waveform in it", Reason.UNREADABLE)
    number = max(range(len(groups)), key=lambda at: (*_rank(groups[at]), -at))
    waveform = _waveform(one, groups[number], number + 1)
    notes = () if len(groups) == 1 else (f"group {number + 1} of {len(groups)} of the recording was read",)
    del one.ds.WaveformSequence
    reference = FrameReference(read_text(one.ds, "SOPClassUID"), one.sop_instance_uid)
    return LoadedWaveform(waveform, Evidence((one.ds,), (reference,)), (*completed, *notes))


def _rank(group: Dataset) -> tuple[bool, float]:
    seconds = read_whole(group, "NumberOfWaveformSamples", 0) / max(_frequency(group), 1e-9)
    return read_text(group, "WaveformOriginality") != "DERIVED", seconds


def _frequency(group: Dataset) -> float:
    return read_numbers(group, "SamplingFrequency", 1)[0]


def _waveform(received: Received, group: Dataset, number: int) -> Waveform:
    channels = read_items(group, "ChannelDefinitionSequence")
    stored = _stored(received, group)
    frequency = _frequency(group)
    if not 0 < frequency < np.inf:
        raise Refused(f"Sampling Frequency is {frequency:g} Hz", Reason.UNREADABLE)
    if len(channels) != len(stored):
        words = f"the recording has {len(stored)} channels, {len(channels)} of them described"
        raise Refused(words, Reason.UNREADABLE)
    scaled = [_scaled(channel, samples) for channel, samples in zip(channels, stored, strict=True)]
    units = {unit for _, unit in scaled}
    if len(units) > 1:
        raise Refused(f"the channels are in different units: {', '.join(sorted(units))}", Reason.UNREADABLE)
    header = read_header((received.ds,), HEADER_KEYWORDS)
    header |= read_header((group,), GROUP_KEYWORDS) | read_header(channels[:1], CHANNEL_KEYWORDS)
    return Waveform(
        samples=np.stack([samples for samples, _ in scaled]),
        frequency_hz=frequency,
        channels=_named(channels),
        unit=units.pop(),
        modality=read_text(received.ds, "Modality"),
        header=header,
        group=number,
    )


def _stored(received: Received, group: Dataset) -> Array:
    """Return (channels, samples) as stored: one sample of every channel after another (PS3.3 C.10.9.1.7)."""
    channels, samples = (read_whole(group, f"NumberOfWaveform{what}") for what in ("Channels", "Samples"))
    kind = (read_whole(group, "WaveformBitsAllocated"), read_text(group, "WaveformSampleInterpretation"))
    if kind not in TYPES:
        raise Refused(f"samples of {kind[0]} bits, {kind[1] or 'of no kind'}, cannot be read", Reason.UNREADABLE)
    if not (0 < channels <= MOST_CHANNELS and samples > 0 and channels * samples <= MOST_SAMPLES):
        raise Refused(f"the recording is implausible: {channels} channels of {samples} samples", Reason.UNREADABLE)
    big = received.transfer_syntax_uid == ExplicitVRBigEndian
    dtype = np.dtype(TYPES[kind]).newbyteorder(">" if big else "<")
    content, wanted = read_value(group, "WaveformData"), channels * samples * dtype.itemsize
    if not isinstance(content, bytes) or len(content) < wanted:
        there = len(content) if isinstance(content, bytes) else 0
        raise Refused(f"the recording is cut off: {wanted} bytes belong there, {there} are there", Reason.UNREADABLE)
    values = np.frombuffer(content[:wanted], dtype).reshape(samples, channels).T
    padding = read_value(group, "WaveformPaddingValue")
    if not isinstance(padding, bytes) or len(padding) < dtype.itemsize:
        return values.astype(np.float64)
    blank = np.frombuffer(padding[: dtype.itemsize], dtype)[0]
    return np.where(values == blank, np.nan, values.astype(np.float64))


def _scaled(channel: Dataset, stored: Array) -> tuple[Array, str]:
    """Return the samples of one channel and their unit."""
    if read_value(channel, "ChannelSensitivity") in (None, ""):
        return stored.astype(np.float32), ""
    sensitivity = read_numbers(channel, "ChannelSensitivity", 1)[0]
    correction, baseline = (
        read_numbers(channel, keyword, 1)[0] if read_value(channel, keyword) not in (None, "") else usual
        for keyword, usual in (("ChannelSensitivityCorrectionFactor", 1.0), ("ChannelBaseline", 0.0))
    )
    units = read_items(channel, "ChannelSensitivityUnitsSequence")
    unit = read_text(units[0], "CodeValue") if units else ""
    values = stored * sensitivity * correction + baseline
    if unit in MILLIVOLTS:
        return (values * MILLIVOLTS[unit]).astype(np.float32), "mV"
    return values.astype(np.float32), unit


def _named(channels: Sequence[Dataset]) -> tuple[str, ...]:
    names = [_name(channel, number) for number, channel in enumerate(channels, 1)]
    return tuple(f"{name} ({at})" if names.count(name) > 1 else name for at, name in enumerate(names, 1))


def _name(channel: Dataset, number: int) -> str:
    """Return the usual name of a lead, by its code or its meaning; else its label or its meaning as it stands."""
    source = (*read_items(channel, "ChannelSourceSequence"), None)[0]
    value, meaning = ("", "") if source is None else (read_text(source, "CodeValue"), read_text(source, "CodeMeaning"))
    coded = LEAD_CODE.fullmatch(value)
    if coded is not None and int(coded[1]) in LEADS:
        return LEADS[int(coded[1])]
    label = read_text(channel, "ChannelLabel")
    for told in (meaning, label):
        named = LEAD_NAME.match(told)
        if named is not None:
            return next(lead for lead in LEADS.values() if lead.upper() == named[1].upper())
    return label or meaning or f"channel {number}"
