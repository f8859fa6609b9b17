"""A synthetic twelve-lead ECG of known rate, intervals and axis, in pieces of waves that begin and end somewhere.

The heart is a dipole (as in McSharry, Clifford, Tarassenko and Smith, IEEE Trans Biomed Eng 50(3):289-294, 2003, whose
waves are Gaussians in time); here each wave is a raised cosine, which has an onset and an end: the intervals are known
exactly. Leads are the dipole's projections by the inverse of Dower's matrix.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, TwelveLeadECGWaveformStorage

from pacs_ai.dicom.identifiers import derive_uid
from pacs_ai.pipeline import Waveform

if TYPE_CHECKING:
    from pathlib import Path

Array = npt.NDArray[Any]

LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
#: Code Value of each lead (PS3.16 CID 3001).
CODES = ("2:1", "2:2", "2:61", "2:62", "2:63", "2:64", "2:3", "2:4", "2:5", "2:6", "2:7", "2:8")
#: Inverse Dower matrix: V1 to V6 from x (to the left), y (to the feet), z (to the back).
_CHEST = np.array([
    [-0.515, 0.157, -0.917], [0.044, 0.164, -1.387], [0.882, 0.098, -1.277],
    [1.213, 0.127, -0.601], [1.125, 0.127, -0.086], [0.831, 0.076, 0.230],
])  # fmt: skip
#: A raised cosine's steepest descent, drawn on as a line, ends by this part of its half width before the wave does.
_TANGENT = 0.5 - 1 / math.pi
_UNIT_MV = 0.00125
_FREQUENCY_HZ = 500.0


@dataclass(frozen=True)
class Heart:
    """What the ECG shows; these are the truth.

    Parameters
    ----------
    rate
        Beats per minute, on average.
    pr_ms, qrs_ms, qt_ms
        Onset of P to onset of QRS; its duration; onset of QRS to the end of T, where its steepest descent, drawn on as
        a line, meets the baseline (Lepeschkin and Surawicz, Circulation 6:378-388, 1952).
    axis_degrees
        Frontal axis of QRS and T.
    irregular
        Standard deviation of the RR intervals as a part of their mean.
    noise_mv
        Standard deviation of white noise.
    wander_mv
        Amplitude of a drift of the baseline at 0.25 Hz.
    atrial
        Whether there is a P wave.
    """

    rate: float = 72.0
    pr_ms: float = 160.0
    qrs_ms: float = 90.0
    qt_ms: float = 390.0
    axis_degrees: float = 50.0
    irregular: float = 0.02
    noise_mv: float = 0.01
    wander_mv: float = 0.1
    atrial: bool = True


def ecg(heart: Heart, seconds: float = 10.0, seed: int = 0) -> Waveform:
    """Return twelve leads in mV at 500 Hz; same arguments, same samples."""
    dice = np.random.default_rng(seed)
    times = np.arange(round(seconds * _FREQUENCY_HZ)) / _FREQUENCY_HZ
    dipole = np.zeros((3, times.size))
    for onset in _onsets(heart, seconds, dice):
        dipole += _beat(heart, times - onset)
    leads = _leads(dipole)
    drift = heart.wander_mv * np.sin(2 * math.pi * 0.25 * times + np.arange(len(LEADS))[:, None])
    noise = heart.noise_mv * dice.standard_normal(leads.shape)
    samples = (leads + drift + noise).astype(np.float32)
    return Waveform(samples, _FREQUENCY_HZ, LEADS, "mV", "ECG", {"WaveformOriginality": "ORIGINAL"})


def _onsets(heart: Heart, seconds: float, dice: np.random.Generator) -> Array:
    """Return the onsets of QRS in seconds, from before the recording until after it."""
    mean = 60.0 / heart.rate
    steps = mean * (1 + heart.irregular * np.clip(dice.standard_normal(round(seconds / mean) + 4), -2.5, 2.5))
    onsets: Array = np.cumsum(steps) - 1.6 * mean
    return onsets


def _beat(heart: Heart, after: Array) -> Array:
    """Return (3, samples) of one beat; `after` in seconds from the onset of QRS."""
    pr, qrs, qt = (length / 1000.0 for length in (heart.pr_ms, heart.qrs_ms, heart.qt_ms))
    frontal = math.radians(heart.axis_degrees)
    main = np.array([math.cos(frontal), math.sin(frontal), 0.25])
    septal = np.array([-0.35 * math.cos(frontal), -0.35 * math.sin(frontal), -0.5])
    basal = np.array([-0.25 * math.cos(frontal), -0.25 * math.sin(frontal), 0.6])
    waves = [
        (septal, 0.25, 0.0, 0.4 * qrs),
        (main, 1.3, 0.2 * qrs, 0.8 * qrs),
        (basal, 0.35, 0.55 * qrs, qrs),
        (0.9 * main - np.array([0, 0, 0.6]), 0.30, *_repolarisation(qrs, qt)),
    ]
    if heart.atrial:
        waves.append((np.array([0.6, 0.8, -0.1]), 0.14, -pr, -pr + min(0.11, 0.75 * pr)))
    return sum((_wave(after, *wave) for wave in waves), np.zeros((3, after.size)))


def _repolarisation(qrs: float, qt: float) -> tuple[float, float]:
    """Return when T begins and ends, so that its tangent ends at QT."""
    begin = qrs + 0.35 * (qt - qrs)
    half = (qt - begin) / (2 - _TANGENT)
    return begin, begin + 2 * half


def _wave(after: Array, way: Array, height: float, begin: float, end: float) -> Array:
    place = (after - begin) / (end - begin)
    inside = (place > 0) & (place < 1)
    shape = np.where(inside, 0.5 - 0.5 * np.cos(2 * math.pi * place), 0.0)
    return np.asarray(height * way[:, None] * shape)


def _leads(dipole: Array) -> Array:
    x, y, _ = dipole
    one, foot = x, y * math.sqrt(3) / 2
    two, three = one / 2 + foot, foot - one / 2
    limbs = [one, two, three, -(one + two) / 2, (one - three) / 2, (two + three) / 2]
    return np.concatenate([np.array(limbs), _CHEST @ dipole])


def write(folder: Path) -> None:
    """Write the study of `Heart`'s defaults as one 12-lead ECG file."""
    write_ecg(folder / "ecg.dcm", ecg(Heart()))


def write_ecg(path: Path, waveform: Waveform, patient_id: str = "ECG-PHANTOM") -> None:
    """Write a waveform of these leads as 12-lead ECG Waveform Storage (PS3.3 A.34.3)."""
    ds = Dataset()
    ds.SOPClassUID = TwelveLeadECGWaveformStorage
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.SOPInstanceUID = (
        derive_uid("ecg phantom", level, path.name, patient_id) for level in ("study", "series", "instance")
    )
    ds.PatientID, ds.PatientName, ds.PatientBirthDate, ds.PatientSex = patient_id, "Phantom^Heart", "19700101", "O"
    ds.PatientAge = "050Y"
    ds.StudyDate = ds.ContentDate = "20200101"
    ds.StudyTime = ds.ContentTime = "120000"
    ds.AcquisitionDateTime = "20200101120000"
    ds.StudyID, ds.SeriesNumber, ds.InstanceNumber = "1", 1, 1
    ds.AccessionNumber, ds.ReferringPhysicianName, ds.StudyDescription = "", "", "12-lead ECG"
    ds.Modality, ds.Manufacturer = "ECG", "pacs_ai"
    ds.AcquisitionContextSequence = []
    ds.WaveformSequence = [_group(waveform)]
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    path.parent.mkdir(parents=True, exist_ok=True)
    ds.save_as(path, enforce_file_format=True)


def _group(waveform: Waveform) -> Dataset:
    group = Dataset()
    group.MultiplexGroupTimeOffset = "0"
    group.WaveformOriginality = "ORIGINAL"
    group.NumberOfWaveformChannels, group.NumberOfWaveformSamples = waveform.samples.shape
    group.SamplingFrequency = f"{waveform.frequency_hz:g}"
    group.MultiplexGroupLabel = "RHYTHM"
    group.ChannelDefinitionSequence = [_channel(*lead) for lead in zip(waveform.channels, CODES, strict=True)]
    group.WaveformBitsAllocated = 16
    group.WaveformSampleInterpretation = "SS"
    stored = np.clip(np.rint(waveform.samples / _UNIT_MV), -32768, 32767).astype("<i2")
    group.WaveformData = stored.T.tobytes()
    group["WaveformData"].VR = "OW"
    return group


def _channel(name: str, value: str) -> Dataset:
    channel, source, unit = Dataset(), Dataset(), Dataset()
    source.CodeValue, source.CodingSchemeDesignator, source.CodeMeaning = value, "MDC", f"Lead {name}"
    unit.CodeValue, unit.CodingSchemeDesignator, unit.CodeMeaning = "uV", "UCUM", "microvolt"
    channel.ChannelSourceSequence = [source]
    channel.ChannelSensitivity = f"{_UNIT_MV * 1000:g}"
    channel.ChannelSensitivityUnitsSequence = [unit]
    channel.ChannelSensitivityCorrectionFactor = "1"
    channel.ChannelBaseline = "0"
    channel.ChannelSampleSkew = "0"
    channel.WaveformBitsStored = 16
    return channel
