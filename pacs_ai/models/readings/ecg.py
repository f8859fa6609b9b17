"""The ECG at rest, measured: heart rate, PR, QRS, QT and QTc, frontal axis, and whether the rhythm is irregular.

QTc: Bazett, Heart 7:353-370, 1920; Fridericia, Acta Med Scand 53:469-486, 1920. Irregular is a rhythm whose successive
RR intervals differ, root mean square, by a tenth of the mean interval or more (Dash et al., Ann Biomed Eng
37:1701-1709, 2009, use that figure within a detector of atrial fibrillation). It is no diagnosis: extrasystoles, sinus
arrhythmia and pauses do so too, and a flutter may be regular.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pacs_ai.errors import PipelineFault
from pacs_ai.pipeline import Classification, Code, Findings, Measurement, Waveform

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pacs_ai.models.package import Package
    from pacs_ai.models.readings.beats import Beats
    from pacs_ai.pipeline import Card

#: PS3.16 CID 3227, 3228 and 3229 (ISO/IEEE 11073), the heart rate and the rhythm as in LOINC.
HEART_RATE = Code("8867-4", "LN", "Heart rate")
RR = Code("2:16168", "MDC", "RR interval global")
PR = Code("2:15872", "MDC", "PR interval global")
QRS = Code("2:16156", "MDC", "QRS duration global")
QT = Code("2:16160", "MDC", "QT interval global")
QTC_BAZETT = Code("2:15880", "MDC", "QTc global using Bazett formula")
QTC_FRIDERICIA = Code("2:15892", "MDC", "QTc global using Fredericia formula")
QRS_AXIS = Code("2:16132", "MDC", "QRS axis")
RHYTHM = Code("8884-9", "LN", "Cardiac Rhythm")
IRREGULAR = Code("10:10352", "MDC", "Irregular rhythm")
REGULAR = Code("regular-rr", "99PACSAI", "RR intervals regular")
VARIATION = Code("rmssd-over-rr", "99PACSAI", "RMSSD of RR over mean RR")
PER_MINUTE = Code("/min", "UCUM", "/min")
MILLISECOND = Code("ms", "UCUM", "ms")
DEGREE = Code("deg", "UCUM", "deg")
RATIO = Code("{ratio}", "UCUM", "ratio")
#: Part of the mean RR interval from which on the rhythm is called irregular, and the fewest beats to say so.
THRESHOLD, FEWEST = 0.10, 7


class Ecg:
    """The runtime ``ecg``: no weights. Setting: `irregular`, the threshold."""

    def __init__(self, package: Package) -> None:
        settings = dict(package.model.settings)
        self._threshold = float(settings.pop("irregular", THRESHOLD))
        if settings:
            raise PipelineFault(f"{package.model.name} knows no setting {', '.join(sorted(settings))}")
        self._card = package.card

    @property
    def card(self) -> Card:
        """The package's card."""
        return self._card

    def prepare(self, device: str) -> None:
        """Import neurokit2, which takes seconds; the device is not used.

        Raises
        ------
        PipelineFault
            It is not installed.
        """
        from pacs_ai.models.readings import beats  # SciPy's filters: a second, which the card alone does not need

        del device
        beats.toolkit()

    def run(self, inputs: Mapping[str, Any]) -> Findings:
        """Measure ``image``, an ECG; `Refused` where its leads are flat, noisy or too short."""
        from pacs_ai.models.readings import beats

        given = inputs["image"]
        if not isinstance(given, Waveform):
            raise PipelineFault("the reading of ECGs was given no waveform")
        found = beats.measure(given)
        return Findings(measurements=tuple(_measured(found)), classifications=tuple(_answered(found, self._threshold)))


def variation(found: Beats) -> float:
    """Return the root mean square of the differences of successive RR intervals over the mean interval."""
    return float(np.sqrt(np.mean(np.diff(found.rr_ms) ** 2)) / np.mean(found.rr_ms))


def _measured(found: Beats) -> Iterator[Measurement]:
    rr = float(np.mean(found.rr_ms))
    yield Measurement(HEART_RATE, round(60_000.0 / rr, 1), PER_MINUTE)
    yield Measurement(RR, round(rr, 1), MILLISECOND)
    for concept, value in ((PR, found.pr_ms), (QRS, found.qrs_ms), (QT, found.qt_ms)):
        if value is not None:
            yield Measurement(concept, float(round(value)), MILLISECOND)
    if found.qt_ms is not None:
        yield Measurement(QTC_BAZETT, float(round(bazett(found.qt_ms, rr))), MILLISECOND)
        yield Measurement(QTC_FRIDERICIA, float(round(fridericia(found.qt_ms, rr))), MILLISECOND)
    if found.axis_degrees is not None:
        yield Measurement(QRS_AXIS, float(round(found.axis_degrees)), DEGREE)
    if found.found >= FEWEST:
        yield Measurement(VARIATION, round(variation(found), 4), RATIO)


def _answered(found: Beats, threshold: float) -> Iterator[Classification]:
    if found.found >= FEWEST:
        yield Classification(RHYTHM, IRREGULAR if variation(found) >= threshold else REGULAR)


def bazett(qt_ms: float, rr_ms: float) -> float:
    """Return QT / sqrt(RR in seconds), ms."""
    return float(qt_ms / np.sqrt(rr_ms / 1000.0))


def fridericia(qt_ms: float, rr_ms: float) -> float:
    """Return QT / cubic root of RR in seconds, ms."""
    return float(qt_ms / np.cbrt(rr_ms / 1000.0))
