"""The brain readings through the running node: a real head, a phantom with its truth, and what is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

import highdicom
import numpy as np
import pydicom
import pytest
from reading_bed import texts

from pacs_ai.states import JobState
from pacs_ai.testing.photographs import Case
from pacs_ai.testing.samples import brain as sample
from pacs_ai.testing.slices import write_slices

if TYPE_CHECKING:
    from pathlib import Path

READINGS = ("brain-tissue", "brain-structures", "brain-mask")
#: Volumes in mL that were measured in the real head when the models were added, and how far off they may be.
REAL_ML = {
    "brain-tissue": {"White matter": 457, "Grey matter": 835},
    "brain-structures": {"Cerebral white matter": 350, "Cerebral cortex": 570, "Thalamus": 16.7, "Hippocampus": 7.9},
    "brain-mask": {"Brain": 1480},
}
NEAR = 0.06


def ordered(found):
    """The sent instances from feet to head, or along the normal of the slices, with their volume of a voxel in mL."""
    headers = [pydicom.dcmread(path, stop_before_pixels=True) for path in found.sent]
    cosines = np.array(headers[0].ImageOrientationPatient, float)
    normal = np.cross(cosines[:3], cosines[3:])
    along = [float(normal @ np.array(ds.ImagePositionPatient, float)) for ds in headers]
    order = np.argsort(along)
    step = (max(along) - min(along)) / (len(along) - 1)
    ml = step * float(np.prod(np.array(headers[0].PixelSpacing, float))) / 1000
    return [str(headers[k].SOPInstanceUID) for k in order], ml


def masks(found):
    """Segment Label -> (slices, rows, columns), as the SEG has them, and the volume of a voxel in mL."""
    uids, ml = ordered(found)
    read = highdicom.seg.Segmentation.from_dataset(found.one("SEG"))
    pixels = read.get_pixels_by_source_instance(
        uids, assert_missing_frames_are_empty=True, ignore_spatial_locations=True
    )
    return {str(item.SegmentLabel): pixels[..., k] > 0 for k, item in enumerate(read.SegmentSequence)}, ml


def dice(one, other):
    return 2 * (one & other).sum() / (one.sum() + other.sum())


def written(folder: Path, **attributes: object) -> Path:
    """Write part of the phantom: 64 slices with every fourth pixel."""
    voxels, _ = sample.head()
    case = Case(f"brain {sorted(attributes)}", study_description="MR of the head")
    write_slices(folder, voxels[:64, ::4, ::4], (1.6, 6.4, 6.4), case, "MR", **attributes)
    return folder


def test_what_is_no_fine_t1_is_refused(journey, tmp_path):
    found = journey("brain-tissue", written(tmp_path, EchoTime=98), JobState.REFUSED)
    assert "echo time is 98 ms" in found.job.reason
    assert found.job.reason in " ".join(texts(found.one("not-analysed")))


@pytest.mark.nightly
def test_the_phantoms_tissue_comes_back(journey, tmp_path):
    sample.write(tmp_path)
    found, _ = masks(journey("brain-tissue", tmp_path))
    _, tissue = sample.head()
    assert dice(found["White matter"], tissue == sample.WHITE) > 0.92
    assert dice(found["Grey matter"], tissue == sample.GREY) > 0.84


@pytest.mark.nightly
@pytest.mark.parametrize("reading", READINGS)
def test_a_real_head_has_the_volumes_measured(reading, journey, shared_data):
    found = journey(reading, shared_data / "mr_brain_t1_mprage", seconds=900)
    segments, ml = masks(found)
    for name, expected in REAL_ML[reading].items():
        assert segments[name].sum() * ml == pytest.approx(expected, rel=NEAR)
        assert name in found.text


@pytest.mark.nightly
def test_the_models_agree_about_the_real_head(journey, shared_data):
    head = shared_data / "mr_brain_t1_mprage"
    tissue, structures, mask = (masks(journey(reading, head, seconds=900))[0] for reading in READINGS)
    brain = mask["Brain"]
    both = tissue["White matter"] | tissue["Grey matter"]
    assert dice(both, brain) > 0.85
    assert (both & ~brain).sum() < 0.05 * both.sum()
    cerebral = structures["Cerebral white matter"]
    assert (cerebral & tissue["White matter"]).sum() > 0.85 * cerebral.sum()
