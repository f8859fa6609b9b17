"""The ECG reading through the running node: a heart of known intervals, a real recording, and noise that is refused."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
from reading_bed import texts

from pacs_ai.states import JobState
from pacs_ai.testing.samples import ecg as sample

READINGS = ("ecg",)


def numbers(report):
    """Code Value -> value of every NUM of a report."""
    found = {}
    for item in report.get("ContentSequence", ()):
        if item.ValueType == "NUM":
            found[item.ConceptNameCodeSequence[0].CodeValue] = float(item.MeasuredValueSequence[0].NumericValue)
        found |= numbers(item)
    return found


def test_a_heart_of_known_intervals_is_measured(journey, tmp_path):
    heart = sample.Heart()
    sample.write(tmp_path)
    found = journey("ecg", tmp_path)
    values = numbers(found.one("SR"))
    assert values["8867-4"] == pytest.approx(heart.rate, rel=0.02)
    assert values["2:15872"] == pytest.approx(heart.pr_ms, abs=12)
    assert values["2:16156"] == pytest.approx(heart.qrs_ms, abs=10)
    assert values["2:16160"] == pytest.approx(heart.qt_ms, abs=12)
    assert not found.of("SEG")
    assert "RR intervals regular" in " ".join(texts(found.one("text-report")))


def test_noise_is_refused_and_said_so(journey, tmp_path):
    heart = sample.ecg(sample.Heart())
    noise = np.random.default_rng(0).normal(0, 0.5, heart.samples.shape).astype(np.float32)
    sample.write_ecg(tmp_path / "noise.dcm", replace(heart, samples=noise), "ECG-NOISE")
    found = journey("ecg", tmp_path, JobState.REFUSED)
    assert found.job.refused_for == "noise"
    assert found.job.reason in " ".join(texts(found.one("not-analysed")))


def test_a_real_recording_against_its_cart(journey, shared_data, tmp_path):
    shutil.copy(shared_data / "dicom_odd_pydicom" / "test_files" / "waveform_ecg.dcm", tmp_path)
    values = numbers(journey("ecg", tmp_path).one("SR"))
    for concept, cart, apart in (("2:16168", 982, 3), ("2:15872", 161, 12), ("2:16156", 75, 8), ("2:16160", 368, 14)):
        assert values[concept] == pytest.approx(cart, abs=apart)
