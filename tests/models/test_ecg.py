"""The ECG reading against hearts of known rate, intervals and axis, a cart's own reading, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pydicom
import pytest

from pacs_ai.errors import PipelineFault, Reason, Refused
from pacs_ai.infer.waveform import load_waveform
from pacs_ai.models.readings import beats
from pacs_ai.models.readings import ecg as reading
from pacs_ai.models.registry import Registry
from pacs_ai.testing.samples.ecg import LEADS, Heart, ecg, write_ecg

#: What the cart that recorded pydicom's ECG says of it, and by how much the reading may differ.
CART = {"RR": (982, 3), "PR": (161, 12), "QRS": (75, 8), "QT": (368, 14), "axis": (52, 8)}


@pytest.fixture(scope="module")
def pipeline():
    made = Registry().create("ecg")
    made.prepare("cpu")
    return made


@pytest.mark.parametrize(
    "heart",
    [
        Heart(),
        Heart(rate=50, pr_ms=200, qt_ms=430),
        Heart(rate=108, pr_ms=132, qt_ms=315, axis_degrees=-30),
        Heart(qrs_ms=140, qt_ms=440, axis_degrees=105),
        Heart(rate=76, pr_ms=189, qrs_ms=128, qt_ms=392, axis_degrees=-41, noise_mv=0.028, irregular=0.04),
    ],
    ids=["usual", "slow", "fast", "wide", "noisy"],
)
def test_a_heart_of_known_intervals_is_measured(heart):
    found = beats.measure(ecg(heart))
    assert 60_000 / found.rr_ms.mean() == pytest.approx(heart.rate, rel=0.02)
    assert found.pr_ms == pytest.approx(heart.pr_ms, abs=13)
    assert found.qrs_ms == pytest.approx(heart.qrs_ms, abs=13)
    assert found.qt_ms == pytest.approx(heart.qt_ms, abs=14)
    assert found.axis_degrees == pytest.approx(heart.axis_degrees, abs=4)


def test_without_a_p_wave_no_pr_is_stated(pipeline):
    findings = pipeline.run({"image": ecg(Heart(atrial=False, irregular=0.2))})
    assert reading.PR not in {one.concept for one in findings.measurements}
    assert [one.value for one in findings.classifications] == [reading.IRREGULAR]


def test_a_regular_rhythm_is_called_so_and_the_values_agree(pipeline):
    findings = pipeline.run({"image": ecg(Heart())})
    values = {one.concept: one.value for one in findings.measurements}
    assert [one.value for one in findings.classifications] == [reading.REGULAR]
    rr, qt = values[reading.RR], values[reading.QT]
    assert values[reading.QTC_BAZETT] == pytest.approx(qt / np.sqrt(rr / 1000), abs=1.5)
    assert values[reading.QTC_FRIDERICIA] == pytest.approx(qt / np.cbrt(rr / 1000), abs=1.5)
    assert values[reading.HEART_RATE] == pytest.approx(60_000 / rr, abs=0.1)


def _noise(given):
    return replace(given, samples=np.random.default_rng(0).normal(0, 0.5, given.samples.shape).astype(np.float32))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_noise, Reason.NOISE),
        (lambda given: replace(given, samples=given.samples * np.float32(0.001)), Reason.NOISE),
        (lambda given: replace(given, samples=given.samples[:, :900]), Reason.NOISE),
        (lambda given: replace(given, frequency_hz=100.0), Reason.RESOLUTION),
        (lambda given: replace(given, unit="mmHg"), Reason.UNREADABLE),
    ],
    ids=["noise", "flat", "short", "slow", "no voltage"],
)
def test_what_cannot_be_measured_is_refused(change, reason):
    with pytest.raises(Refused) as raised:
        beats.measure(change(ecg(Heart())))
    assert raised.value.reason is reason, str(raised.value)


def _at(rate):
    return ecg(Heart(rate=rate, pr_ms=min(110, 18_000 / rate), qrs_ms=75, qt_ms=min(380, 37_000 / rate)))


@pytest.mark.parametrize("rate", [28, 40, 150, 195, 220, 250])
def test_a_rate_is_right_however_fast(rate):
    assert 60_000 / beats.measure(_at(rate)).rr_ms.mean() == pytest.approx(rate, rel=0.01)


@pytest.mark.parametrize(("rate", "reason"), [(20, Reason.TOO_FEW), (275, Reason.NOISE), (300, Reason.NOISE)])
def test_a_rate_that_cannot_be_measured_is_refused(rate, reason):
    with pytest.raises(Refused) as raised:
        beats.measure(_at(rate))
    assert raised.value.reason is reason


def test_beats_that_were_miscounted_are_refused(monkeypatch):
    """Half of the beats of a fast heart, whatever the detector is asked."""
    peaks = beats._peaks
    monkeypatch.setattr(beats, "_peaks", lambda leads, *apart: peaks(leads, *apart)[::2])
    with pytest.raises(Refused, match="beats were found and") as raised:
        beats.measure(_at(150))
    assert raised.value.reason is Reason.NOISE


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "neurokit2", None)
    with pytest.raises(PipelineFault, match="extra ecg"):
        beats.toolkit()


# -- read


def test_what_was_written_is_read(tmp_path):
    given = ecg(Heart())
    write_ecg(tmp_path / "a.dcm", given)
    loaded = load_waveform([tmp_path / "a.dcm"])
    assert loaded.waveform.channels == LEADS
    assert (loaded.waveform.unit, loaded.waveform.frequency_hz) == ("mV", 500.0)
    assert np.abs(loaded.waveform.samples - given.samples).max() < 0.0013
    assert "WaveformSequence" not in loaded.evidence.datasets[0]


def _channel(ds, keyword, value):
    for channel in ds.WaveformSequence[0].ChannelDefinitionSequence:
        setattr(channel, keyword, value)


def test_sensitivity_correction_and_baseline_are_applied(tmp_path):
    given = ecg(Heart())
    write_ecg(tmp_path / "a.dcm", given)
    ds = pydicom.dcmread(tmp_path / "a.dcm")
    _channel(ds, "ChannelSensitivityCorrectionFactor", "2")
    _channel(ds, "ChannelBaseline", "100")
    ds.save_as(tmp_path / "b.dcm")
    found = load_waveform([tmp_path / "b.dcm"]).waveform.samples
    assert np.abs(found - (2 * given.samples + 0.1)).max() < 0.003


@pytest.mark.parametrize(
    ("bend", "words"),
    [
        (lambda group: setattr(group, "WaveformData", group.WaveformData[:5000]), "cut off"),
        (lambda group: setattr(group, "WaveformSampleInterpretation", "MB"), "cannot be read"),
        (lambda group: setattr(group, "NumberOfWaveformSamples", 2**31), "implausible"),
        (lambda group: setattr(group, "SamplingFrequency", "0"), "0 Hz"),
        (lambda group: setattr(group, "ChannelDefinitionSequence", group.ChannelDefinitionSequence[:3]), "described"),
    ],
)
def test_a_damaged_recording_is_refused(tmp_path, bend, words):
    write_ecg(tmp_path / "a.dcm", ecg(Heart()))
    ds = pydicom.dcmread(tmp_path / "a.dcm")
    bend(ds.WaveformSequence[0])
    ds.save_as(tmp_path / "b.dcm")
    with pytest.raises(Refused, match=words) as raised:
        load_waveform([tmp_path / "b.dcm"])
    assert raised.value.reason is Reason.UNREADABLE


def test_the_cart_and_the_reading_agree(shared_data):
    path = shared_data / "dicom_odd_pydicom" / "test_files" / "waveform_ecg.dcm"
    loaded = load_waveform([path])
    assert loaded.waveform.channels == LEADS
    assert loaded.waveform.group == 1  # the rhythm, not the median beat
    found = beats.measure(loaded.waveform)
    measured = {
        "RR": found.rr_ms.mean(), "PR": found.pr_ms, "QRS": found.qrs_ms, "QT": found.qt_ms,
        "axis": found.axis_degrees,
    }  # fmt: skip
    for name, (value, apart) in CART.items():
        assert measured[name] == pytest.approx(value, abs=apart), name
