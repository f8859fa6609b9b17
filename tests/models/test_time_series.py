"""Series over time: every phase complete and in its order, times in seconds, and what is refused."""

from __future__ import annotations

import numpy as np
import pydicom
import pytest

from pacs_ai.encode.ground import shown_as
from pacs_ai.errors import Reason, Refused
from pacs_ai.infer.time_series import load_time_series
from pacs_ai.testing.samples.perfusion import Bolus, peaks_s, write_perfusion

BOLUS = Bolus()


def load(paths, change=lambda datasets: None):
    datasets = [pydicom.dcmread(path) for path in paths]
    change(datasets)
    for path, ds in zip(paths, datasets, strict=True):
        ds.save_as(path)
    return load_time_series(paths[::-1])


@pytest.mark.parametrize("how", ["TemporalPositionIdentifier", "AcquisitionTime", "TriggerTime"])
def test_phases_are_found_by_number_or_by_time(tmp_path, how):
    paths = write_perfusion(tmp_path, BOLUS)

    def leave(datasets):
        for ds in datasets:
            seconds = ds.TemporalPositionIdentifier * BOLUS.step_s
            for keyword in {"TemporalPositionIdentifier", "AcquisitionTime"} - {how}:
                delattr(ds, keyword)
            if how == "TriggerTime":
                ds.TriggerTime = f"{1000 * seconds:g}"
            if how == "TemporalPositionIdentifier":
                ds.TemporalResolution = f"{1000 * BOLUS.step_s:g}"

    found = load(paths, leave)
    assert found.series.voxels.shape == (BOLUS.times, BOLUS.slices, BOLUS.rows, BOLUS.columns)
    assert found.series.times_s == pytest.approx(np.arange(BOLUS.times) * BOLUS.step_s, abs=0.01)
    curve = found.series.voxels[:, 1, BOLUS.rows // 2, BOLUS.columns // 4]
    assert found.series.times_s[int(curve.argmax())] == pytest.approx(
        peaks_s(BOLUS)[1, BOLUS.rows // 2, BOLUS.columns // 4], abs=BOLUS.step_s
    )


def test_a_series_that_goes_on_over_midnight_keeps_its_order(tmp_path):
    def over_midnight(datasets):
        for ds in datasets:
            seconds = 86_400 - 7 + (ds.TemporalPositionIdentifier - 1) * BOLUS.step_s
            del ds.TemporalPositionIdentifier
            day, rest = divmod(seconds, 86_400)
            ds.AcquisitionDate = f"2020022{8 + int(day)}"
            ds.AcquisitionTime = f"{int(rest // 3600):02d}{int(rest % 3600 // 60):02d}{rest % 60:09.6f}"

    found = load(write_perfusion(tmp_path, BOLUS), over_midnight)
    assert found.series.times_s == pytest.approx(np.arange(BOLUS.times) * BOLUS.step_s, abs=0.01)
    curve = found.series.voxels[:, 1, BOLUS.rows // 2, BOLUS.columns // 4]
    assert found.series.times_s[int(curve.argmax())] == pytest.approx(BOLUS.early_s, abs=BOLUS.step_s)


def test_the_first_time_is_drawn_on_and_all_are_cited(tmp_path):
    found = load(write_perfusion(tmp_path, BOLUS))
    assert len(found.evidence.slices) == BOLUS.slices
    assert len(found.evidence.datasets) == BOLUS.slices * BOLUS.times
    by_uid = {str(ds.SOPInstanceUID): ds for ds in found.evidence.datasets}
    assert {by_uid[one.sop_instance_uid].TemporalPositionIdentifier for one in found.evidence.slices} == {1}
    assert np.array_equal(shown_as(found.series).voxels, found.series.voxels[0])
    assert shown_as(found.series).frame_of_reference_uid == found.series.frame_of_reference_uid != ""


def test_a_phase_that_is_not_complete_is_refused(tmp_path):
    paths = write_perfusion(tmp_path, BOLUS)
    with pytest.raises(Refused, match=r"1 of .* images of the .* phases are missing") as raised:
        load_time_series(paths[:5] + paths[6:])
    assert raised.value.reason is Reason.MISSING_SLICE


def test_other_phases_at_another_position_are_refused(tmp_path):
    paths = write_perfusion(tmp_path, BOLUS)
    last = next(path for path in paths if pydicom.dcmread(path).TemporalPositionIdentifier == BOLUS.times)

    def renumber(datasets):
        datasets[paths.index(last)].TemporalPositionIdentifier = BOLUS.times + 1

    with pytest.raises(Refused, match="other phases") as raised:
        load(paths, renumber)
    assert raised.value.reason is Reason.MISSING_SLICE


def test_one_time_is_no_series_over_time(tmp_path):
    paths = write_perfusion(tmp_path, Bolus(times=1))
    with pytest.raises(Refused, match="acquired once") as raised:
        load_time_series(paths)
    assert raised.value.reason is Reason.DIMENSIONS


def test_functional_images_of_a_scanner_are_read(shared_data):
    paths = sorted((shared_data / "mr_enhanced_vendors" / "philips_enhanced" / "fmri").rglob("*.dcm"))
    found = load_time_series(paths)
    assert found.series.voxels.shape == (4, 8, 64, 64)
    assert found.series.times_s.tolist() == [0.0, 3.0, 6.0, 9.0]
    assert [one.frame_number for one in found.evidence.slices] == list(range(1, 33, 4))
    stored = pydicom.dcmread(paths[0])
    step = float(stored.PerFrameFunctionalGroupsSequence[0].PixelValueTransformationSequence[0].RescaleSlope)
    assert np.allclose(found.series.voxels[2, 1], stored.pixel_array[6] * step, rtol=1e-5)


def test_diffusion_weightings_are_no_times(shared_data):
    paths = sorted((shared_data / "mr_enhanced_vendors" / "philips_enhanced" / "dti").rglob("*.dcm"))
    with pytest.raises(Refused, match="several diffusion weightings, not times") as raised:
        load_time_series(paths)
    assert raised.value.reason is Reason.DIMENSIONS
