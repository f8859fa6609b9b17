"""The beats of an ECG and their waves: found by neurokit2, averaged over the recording, measured over all leads.

Peaks: `neurokit2.ecg_findpeaks` (Makowski et al., Behav Res Methods 53:1689-1696, 2021). Its outlines of single leads
proved too wide (QRS of 90 to 210 ms where a cart's reading and the eye say 75), so intervals are measured on the median
beat: QRS by the spatial velocity, the root sum of squares over the leads of their slopes; P by the amplitude before it;
the end of T where its steepest descent meets the baseline (Lepeschkin and Surawicz, Circulation 6:378-388, 1952).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from scipy import signal

from pacs_ai.errors import PipelineFault, Reason, Refused

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pacs_ai.pipeline import Waveform

Array = npt.NDArray[np.float64]

#: What the samples are brought to, in Hz; slower recordings than the second blur QRS (AHA 2007 asks for 500).
FREQUENCY, SLOWEST = 500.0, 200.0
#: A lead that moves less is not attached, in mV; a lead whose noise is more than this part of its QRS is not used.
FLAT_MV, NOISY = 0.1, 0.2
#: Part of the leads that must agree on the number of beats, and the fewest beats.
AGREEING, FEWEST_BEATS = 0.5, 4
#: Heart rates that are taken for one, per minute.
RATES = (25.0, 260.0)
#: Least time in s from beat to beat: what is tried first, which takes no T wave for a beat, and at fast rates then.
USUAL, FASTEST = 0.3, 0.2
#: Part of the velocity of the beats from which on a wave may be one.
STEEP = 0.6
#: What has less of it is no beat, but a wave of T: an ectopic beat, which is wider, has half of it or more.
FLATTEST = 0.35
#: A beat whose shape is less like the median beat's is left out of it (correlation).
ALIKE = 0.85
#: Part of the beats that must be alike; every second one is in a bigeminus.
LEAST_ALIKE = 0.4
#: P must be so much higher than what lies before it, and in mV.
LEAST_P, LEAST_P_MV = 2.0, 0.015
#: Part of its height at which P begins, and of the highest velocity at which QRS begins and ends.
P_ONSET, QRS_EDGE = 0.05, 0.03


@dataclass(frozen=True)
class Beats:
    """What was found.

    Parameters
    ----------
    rr_ms
        (beats - 1,) intervals between the beats.
    used, found
        Beats in the median beat, and all.
    leads
        Names of the leads that were used.
    pr_ms
        None where no P wave stands out.
    qrs_ms, qt_ms
        None where it is not seen.
    axis_degrees
        Frontal axis of QRS, -180 to 180; None without leads I and aVF.
    """

    rr_ms: Array
    used: int
    found: int
    leads: tuple[str, ...]
    pr_ms: float | None
    qrs_ms: float | None
    qt_ms: float | None
    axis_degrees: float | None


def toolkit() -> Any:
    """Return neurokit2; `PipelineFault` in words where it is not installed."""
    try:
        import neurokit2  # type: ignore[import-untyped]
    except ImportError as error:
        raise PipelineFault("the reading of ECGs needs neurokit2: install pacs_ai with its extra ecg") from error
    return neurokit2


def measure(given: Waveform) -> Beats:
    """Return the beats of a recording.

    Raises
    ------
    Refused
        Where the leads are flat or noisy, or do not agree on the beats.
    """
    if given.frequency_hz < SLOWEST:
        words = f"the recording has {given.frequency_hz:g} samples a second; at least {SLOWEST:g} are needed"
        raise Refused(words, Reason.RESOLUTION)
    if given.unit != "mV":
        raise Refused(f"the recording is in {given.unit or 'no unit'}, not in volts", Reason.UNREADABLE)
    leads = _brought_to_rate(given)
    names, leads = _usable(given.channels, leads)
    peaks = _beats(leads, USUAL)
    if _steep(leads, peaks) > len(peaks):
        peaks = _beats(leads, FASTEST)
        _check_none_missed(leads, peaks)
    rr = np.diff(peaks) * 1000.0 / FREQUENCY
    rate = 60_000.0 / float(np.mean(rr))
    if not RATES[0] <= rate <= RATES[1]:
        words = f"the leads show {rate:.0f} beats a minute; {RATES[0]:g} to {RATES[1]:g} can be measured"
        raise Refused(words, Reason.NOISE)
    beat, before, used = _median_beat(leads, peaks)
    waves = _Waves.of(beat, before)
    axis = _axis(names, beat, waves)
    return Beats(rr, used, len(peaks), names, waves.pr_ms, waves.qrs_ms, waves.qt_ms, axis)


def _brought_to_rate(given: Waveform) -> Array:
    """Return (leads, samples) at `FREQUENCY`, without drift of the baseline and above 100 Hz."""
    samples = given.samples.astype(np.float64)
    count = round(samples.shape[1] * FREQUENCY / given.frequency_hz)
    if count != samples.shape[1]:
        ratio = FREQUENCY / given.frequency_hz
        samples = signal.resample_poly(samples, round(ratio * 1000), 1000, axis=1, padtype="line")
    drift = signal.butter(2, 0.5, "highpass", fs=FREQUENCY, output="sos")
    hum = signal.butter(4, 100.0, "lowpass", fs=FREQUENCY, output="sos")
    return np.asarray(signal.sosfiltfilt(hum, signal.sosfiltfilt(drift, samples, axis=1), axis=1))


def _usable(names: Sequence[str], leads: Array) -> tuple[tuple[str, ...], Array]:
    """Return the leads that show beats and little noise; refuse a recording most of whose leads do not."""
    heights = np.percentile(leads, 99.5, axis=1) - np.percentile(leads, 0.5, axis=1)
    rough = signal.sosfiltfilt(signal.butter(4, 45.0, "highpass", fs=FREQUENCY, output="sos"), leads, axis=1)
    noise = 1.4826 * np.median(np.abs(rough), axis=1)
    flat, noisy = heights < FLAT_MV, noise > NOISY * heights / 2
    good = ~flat & ~noisy
    if good.sum() < max(1, round(len(names) * AGREEING)):
        words = f"{int(flat.sum())} of {len(names)} leads are flat and {int((noisy & ~flat).sum())} too noisy"
        raise Refused(f"{words}: the recording cannot be measured", Reason.NOISE)
    return tuple(name for name, one in zip(names, good, strict=True) if one), leads[good]


def _beats(leads: Array, apart: float) -> npt.NDArray[np.int64]:
    """Return the samples at which the beats are; waves of T, which a detector finds in long pauses, are left out."""
    peaks = _refined(leads, _peaks(leads, apart))
    heights = _heights(_velocity(leads), peaks)
    beats = peaks[heights >= FLATTEST * np.median(heights)]
    if len(beats) < FEWEST_BEATS:
        raise Refused(f"the recording holds {len(beats)} whole beats; {FEWEST_BEATS} are needed", Reason.TOO_FEW)
    return beats


def _heights(velocity: Array, peaks: npt.NDArray[np.int64]) -> Array:
    """Return (beats,) the highest velocity within 50 ms of each."""
    return np.array([velocity[max(0, at - 25) : at + 25].max() for at in peaks])


def _peaks(leads: Array, apart: float) -> npt.NDArray[np.int64]:
    """Return the samples at which the beats are, as the lead with the evenest of the usual number of them sees them.

    No two of them are nearer to each other than `apart` seconds.
    """
    neurokit = toolkit()
    found = []
    for lead in leads:
        clean = neurokit.ecg_clean(lead, sampling_rate=int(FREQUENCY), method="neurokit")
        try:
            seen = neurokit.ecg_findpeaks(clean, sampling_rate=int(FREQUENCY), method="neurokit", mindelay=apart)
            peaks = seen["ECG_R_Peaks"]
        except (ValueError, IndexError):  # it sees none
            peaks = []
        found.append(np.asarray(peaks, np.int64))
    counts = np.array([len(peaks) for peaks in found])
    usual = int(np.median(counts))
    agree = np.abs(counts - usual) <= 1
    if usual < FEWEST_BEATS or agree.sum() < max(1, round(len(leads) * AGREEING)):
        words = f"the leads show {counts.min()} to {counts.max()} beats"
        raise Refused(f"{words}: the recording is too short or too noisy to be measured", Reason.NOISE)
    among = [peaks for peaks in found if len(peaks) == usual] or [found[at] for at in np.flatnonzero(agree)]
    return min(among, key=lambda peaks: float(np.std(np.diff(peaks))))


def _velocity(leads: Array) -> Array:
    """Return (samples,) spatial velocity, mV/s, over windows of 10 ms."""
    slopes = signal.savgol_filter(leads, 5, 2, deriv=1, delta=1 / FREQUENCY, axis=-1)
    return np.asarray(np.sqrt(np.sum(slopes**2, axis=0)))


def _refined(leads: Array, peaks: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the peaks, moved by up to 50 ms so that the beats lie upon one another."""
    velocity, reach, half = _velocity(leads), round(0.05 * FREQUENCY), round(0.08 * FREQUENCY)
    inside = peaks[(peaks > reach + half) & (peaks < velocity.size - reach - half)]
    if len(inside) < FEWEST_BEATS:
        raise Refused(f"the recording holds {len(inside)} whole beats; {FEWEST_BEATS} are needed", Reason.TOO_FEW)
    for _ in range(2):
        template = np.median([velocity[at - half : at + half] for at in inside], axis=0)
        moved = []
        for at in inside:
            here = velocity[max(0, at - half - reach) : at + half + reach]
            first = max(0, at - half - reach)
            moved.append(first + half + int(np.argmax(np.correlate(here, template, "valid"))))
        inside = np.array([at for at in moved if half + reach < at < velocity.size - half - reach], np.int64)
    return inside


def _steep(leads: Array, peaks: npt.NDArray[np.int64]) -> int:
    """Return how many waves from the first beat to the last are as steep as the beats are."""
    velocity = signal.savgol_filter(_velocity(leads), 21, 1)
    usual = float(np.median(_heights(velocity, peaks)))
    among = velocity[max(0, peaks[0] - 40) : peaks[-1] + 40]
    steep, _ = signal.find_peaks(among, height=STEEP * usual, distance=round(FASTEST * FREQUENCY))
    return len(steep)


def _check_none_missed(leads: Array, peaks: npt.NDArray[np.int64]) -> None:
    """Refuse where there are more waves as steep as the beats, or fewer: they were miscounted."""
    steep = _steep(leads, peaks)
    if steep != len(peaks):
        words = f"{len(peaks)} beats were found and {steep} waves that are as steep"
        raise Refused(f"{words}: the rate is too fast or the recording too noisy to be measured", Reason.NOISE)


def _median_beat(leads: Array, peaks: npt.NDArray[np.int64]) -> tuple[Array, int, int]:
    """Return (leads, samples) of the median beat, the sample of its peak, and how many beats are in it."""
    rr = float(np.median(np.diff(peaks)))
    before, after = (round(min(part * rr, most * FREQUENCY)) for part, most in ((0.42, 0.36), (0.72, 0.62)))
    whole = peaks[(peaks >= before) & (peaks + after < leads.shape[1])]
    beats = np.array([leads[:, at - before : at + after] for at in whole])
    if len(beats) < FEWEST_BEATS - 1:
        raise Refused(f"the recording holds {len(beats)} whole beats; {FEWEST_BEATS - 1} are needed", Reason.TOO_FEW)
    median = np.median(beats, axis=0)
    near = slice(before - round(0.06 * FREQUENCY), before + round(0.06 * FREQUENCY))
    alike = [np.corrcoef(beat[:, near].ravel(), median[:, near].ravel())[0, 1] >= ALIKE for beat in beats]
    if sum(alike) < max(FEWEST_BEATS - 1, LEAST_ALIKE * len(beats)):
        raise Refused(
            f"only {sum(alike)} of {len(beats)} beats are of one shape: nothing can be measured", Reason.NOISE
        )
    return np.asarray(np.median(beats[np.array(alike)], axis=0)), before, sum(alike)


@dataclass(frozen=True)
class _Waves:
    """Where the waves of a beat begin and end, in samples; None where one is not seen."""

    p_onset: float | None
    qrs_onset: float
    qrs_end: float
    t_end: float | None

    @property
    def pr_ms(self) -> float | None:
        return None if self.p_onset is None else (self.qrs_onset - self.p_onset) * 1000.0 / FREQUENCY

    @property
    def qrs_ms(self) -> float:
        return (self.qrs_end - self.qrs_onset) * 1000.0 / FREQUENCY

    @property
    def qt_ms(self) -> float | None:
        return None if self.t_end is None else (self.t_end - self.qrs_onset) * 1000.0 / FREQUENCY

    @classmethod
    def of(cls, beat: Array, peak: int) -> _Waves:
        """Measure a beat, (leads, samples), with its QRS about `peak`."""
        onset, end = _qrs(_velocity(beat), peak)
        level = beat[:, max(0, round(onset) - 10) : max(1, round(onset) - 2)].mean(axis=1, keepdims=True)
        height = np.sqrt(np.mean((beat - level) ** 2, axis=0))
        return cls(_p_onset(height, onset), onset, end, _t_end(height, end))


def _qrs(velocity: Array, peak: int) -> tuple[float, float]:
    """Return where the spatial velocity rises above and falls below what it is at rest and a part of its peak."""
    near = velocity[max(0, peak - 30) : peak + 30]
    top = float(near.max())
    least, rest = (float(np.percentile(velocity, part)) for part in (5, 25))
    threshold = rest + max(QRS_EDGE * (top - rest), 4 * (rest - least))  # above noise, whose width these two tell
    middle = max(0, peak - 30) + int(np.argmax(near))
    return _leave(velocity, middle, -1, threshold), _leave(velocity, middle, 1, threshold)


def _leave(values: Array, start: int, step: int, threshold: float) -> float:
    """Return where the values stay below the threshold for 14 ms, between samples, walking from `start`."""
    at, quiet = start, round(0.014 * FREQUENCY)
    while 0 < at < values.size - 1:
        ahead = values[at + step : at + step * (quiet + 1) : step] if at + step * (quiet + 1) >= 0 else values[:0]
        if ahead.size and np.all(ahead < threshold):
            over, under = values[at], values[at + step]
            return at + step * float((over - threshold) / (over - under)) if over > threshold > under else float(at)
        at += step
    return float(at)


def _p_onset(height: Array, onset: float) -> float | None:
    """Return where P begins: at a part of its height above what lies before it; None where none stands out."""
    last = round(onset) - round(0.03 * FREQUENCY)
    first = max(0, round(onset) - round(0.30 * FREQUENCY))
    smooth = signal.savgol_filter(height, 15, 2)
    if last - first < round(0.08 * FREQUENCY):
        return None
    top = first + int(np.argmax(smooth[first:last]))
    earlier = smooth[first : max(first + 1, top - round(0.03 * FREQUENCY))]
    rest = float(np.percentile(earlier, 20))
    rise = float(smooth[top]) - rest
    if top in (first, last - 1) or smooth[top] < LEAST_P * rest or rise < LEAST_P_MV:
        return None
    at = top
    while at > 0 and smooth[at] > rest + P_ONSET * rise:
        at -= 1
    return float(at) if at > 0 else None


def _t_end(height: Array, end: float) -> float | None:
    """Return where the steepest descent of T, drawn on as a line, meets the baseline; None where T is not seen."""
    first = round(end) + round(0.06 * FREQUENCY)
    smooth = signal.savgol_filter(height, 21, 2)
    if height.size - first < round(0.1 * FREQUENCY):
        return None
    top = first + int(np.argmax(smooth[first:]))
    tail = smooth[top:]
    if tail.size < round(0.05 * FREQUENCY) or top == first:
        return None
    lowest = top + int(np.argmin(tail))
    slopes = np.gradient(smooth)
    if lowest - top < 3:
        return None
    steepest = top + int(np.argmin(slopes[top:lowest]))
    rest = float(smooth[lowest])
    if smooth[top] - rest < LEAST_P_MV or slopes[steepest] >= 0:
        return None
    return float(steepest + (smooth[steepest] - rest) / -slopes[steepest])


def _axis(names: Sequence[str], beat: Array, waves: _Waves) -> float | None:
    """Return the frontal axis from the net areas of QRS in I and aVF, whose augmented lead is 2/sqrt(3) of a limb's."""
    if "I" not in names or "aVF" not in names:
        return None
    first, last = round(waves.qrs_onset), round(waves.qrs_end) + 1
    level = beat[:, max(0, first - 10) : max(1, first - 2)].mean(axis=1, keepdims=True)
    areas = (beat - level)[:, first:last].sum(axis=1)
    one, foot = areas[names.index("I")], areas[names.index("aVF")] * 2 / np.sqrt(3)
    return float(np.degrees(np.arctan2(foot, one)))
