"""Waveforms and series over time through reading, pipeline, encoding and the gate: what the objects say and cite."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime

import numpy as np
import pydicom
import pytest

from pacs_ai import profiles
from pacs_ai.built_in_profiles import BUILT_IN
from pacs_ai.encode.provenance import Work
from pacs_ai.errors import Reason, Refused
from pacs_ai.infer.analysis import Steps, analyse, load
from pacs_ai.models.registry import Registry
from pacs_ai.profiles import Kind
from pacs_ai.testing.dynamic import TimeToPeak
from pacs_ai.testing.samples.ecg import Heart, ecg, write_ecg
from pacs_ai.testing.samples.perfusion import Bolus, peaks_s, write_perfusion

WANTED = profiles.encodings([profiles.plan(BUILT_IN["archive"], 9000)])
OF_VOLUMES = [one for one in WANTED if one.kind in (Kind.SEGMENTATION, Kind.REPORT, Kind.PARAMETRIC_MAP)]


def digested(paths):
    return [(path, hashlib.sha256(path.read_bytes()).hexdigest()) for path in paths]


def run(pipeline, paths, wanted=OF_VOLUMES):
    pipeline.prepare("cpu")
    files = {"image": digested(paths)}

    def work(card):
        at = datetime(2024, 1, 2, 3, 4, 5, tzinfo=UTC)
        return Work("key", 0, at, card, "a" * 64, "b" * 64, "", "node", "0")

    return analyse("p", pipeline.card, lambda: pipeline, files, work, wanted, Steps(lambda _: None, {}))


def test_a_series_of_another_modality_is_called_so_however_it_is_read(tmp_path):
    """A perfusion CT has no waveform; what the reader has to know is that it is CT."""
    registry, paths = Registry(), write_perfusion(tmp_path, Bolus())
    with pytest.raises(Refused, match="image is CT; ECG intervals takes ECG") as raised:
        load(registry.card("ecg"), {"image": digested(paths)})
    assert raised.value.reason is Reason.MODALITY


def opened(analysis, kind, folder):
    found = []
    for number, one in enumerate(analysis.encoded):
        if one.encoding.kind is kind:
            path = folder / f"{kind}-{number}.dcm"
            path.write_bytes(b"".join(bytes(part) for part in one.parts))
            found.append(pydicom.dcmread(path))
    return found


def texts(item):
    """Every text of a content tree."""
    yield from [item.TextValue] if "TextValue" in item else []
    for child in item.get("ContentSequence", ()):
        yield from texts(child)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    path = tmp_path_factory.mktemp("ecg") / "ecg.dcm"
    write_ecg(path, ecg(Heart(rate=105, pr_ms=120, qt_ms=222, qrs_ms=70)))
    return run(Registry().create("ecg"), [path], WANTED)


def test_a_waveform_becomes_reports_and_pages_only(measured):
    assert {one.encoding.kind for one in measured.encoded} == {
        Kind.REPORT, Kind.TEXT_REPORT, Kind.VALUES, Kind.SECONDARY_CAPTURE, Kind.SUMMARY,
    }  # fmt: skip


def test_each_value_of_an_ecg_cites_the_recording(measured, tmp_path):
    report, *_ = opened(measured, Kind.REPORT, tmp_path)
    imaging = next(item for item in report.ContentSequence if item.ConceptNameCodeSequence[0].CodeValue == "126010")
    (group,) = imaging.ContentSequence
    values = [item for item in group.ContentSequence if item.ValueType == "NUM"]
    assert len(values) == len(measured.findings.measurements)
    for value in values:
        (source,) = [child for child in value.ContentSequence if child.ValueType == "WAVEFORM"]
        cited = source.ReferencedSOPSequence[0].ReferencedSOPInstanceUID
        assert cited == measured.material.evidence["image"].datasets[0].SOPInstanceUID


def test_a_value_outside_its_range_is_marked_in_the_reports_and_the_notes(measured, tmp_path):
    remarks = [note for note in measured.material.notes if "outside the expected range" in note]
    assert remarks[0].startswith("QT interval global is 2")
    for kind in (Kind.REPORT, Kind.TEXT_REPORT, Kind.VALUES):
        for report in opened(measured, kind, tmp_path):
            assert set(remarks) <= set(texts(report))


def test_a_map_of_times_lies_on_the_first_time_and_the_report_cites_all(tmp_path):
    bolus = Bolus()
    analysis = run(TimeToPeak(), write_perfusion(tmp_path / "in", bolus))
    truth = peaks_s(bolus)
    (found,) = analysis.findings.maps
    inside = ~np.isnan(truth)
    assert np.abs(found.voxels[inside] - truth[inside]).max() <= bolus.step_s / 2
    assert np.array_equal(analysis.findings.segments[0].mask, inside & (truth == bolus.late_s))
    first = {one.sop_instance_uid for one in analysis.material.evidence["image"].slices}
    for seg in opened(analysis, Kind.SEGMENTATION, tmp_path):
        cited = {
            item.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
            for item in seg.PerFrameFunctionalGroupsSequence
        }
        assert cited <= first
    report, *_ = opened(analysis, Kind.REPORT, tmp_path)
    (study,) = report.CurrentRequestedProcedureEvidenceSequence
    received = {str(ds.SOPInstanceUID) for ds in analysis.material.evidence["image"].datasets}
    evidence = {
        str(one.ReferencedSOPInstanceUID)
        for series in study.ReferencedSeriesSequence
        for one in series.ReferencedSOPSequence
    }
    assert received <= evidence
    assert opened(analysis, Kind.PARAMETRIC_MAP, tmp_path)


def test_functional_images_of_a_scanner_become_objects(shared_data, tmp_path):
    paths = sorted((shared_data / "mr_enhanced_vendors" / "philips_enhanced" / "fmri").rglob("*.dcm"))
    analysis = run(TimeToPeak(), paths)
    assert {Kind.SEGMENTATION, Kind.PARAMETRIC_MAP} <= {one.encoding.kind for one in analysis.encoded}
    assert any("repetition time of 3000 ms" in note for note in analysis.material.notes)
