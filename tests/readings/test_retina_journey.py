"""The retina reading through the running node: a phantom, a real photograph against its truth, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
from PIL import Image
from reading_bed import texts

from pacs_ai.states import JobState
from pacs_ai.testing.photographs import Case, fundus, write_images
from pacs_ai.testing.samples import retina as sample

READINGS = ("retina-vessels", "retina-artery-vein")
#: Dice measured when the model was added, less a little.
REAL_DICE = {"retina-vessels": (0.68,), "retina-artery-vein": (0.77, 0.71, 0.78)}


def planes(found):
    """Segment Label -> (rows, columns) of the photograph, as the SEG has them."""
    read = highdicom.seg.Segmentation.from_dataset(found.one("SEG"))
    source = str(pydicom.dcmread(found.sent[0], stop_before_pixels=True).SOPInstanceUID)
    pixels = read.get_pixels_by_source_instance(
        [source], assert_missing_frames_are_empty=True, ignore_spatial_locations=True
    )
    return {str(item.SegmentLabel): pixels[0, ..., k] > 0 for k, item in enumerate(read.SegmentSequence)}


def dice(one, other):
    return 2 * (one & other).sum() / (one.sum() + other.sum())


def test_the_phantoms_vessels_come_back(journey, tmp_path):
    sample.write(tmp_path)
    found = journey("retina-vessels", tmp_path)
    (vessels,) = planes(found).values()
    _, truth = sample.photograph()
    assert vessels.shape == truth.shape
    assert dice(vessels, truth > 0) > 0.7
    assert "Retinal vessel density" in found.text


def test_a_skin_photograph_is_refused(journey, tmp_path):
    rows, columns = np.mgrid[:480, :640]
    skin = (np.array([205, 155, 130]) + 15 * np.sin(rows / 30 + columns / 50)[..., None]).astype(np.uint8)
    write_images(tmp_path, [fundus(skin, Case("skin as fundus"))])
    found = journey("retina-vessels", tmp_path, JobState.REFUSED)
    assert "disc on black" in found.job.reason
    assert found.job.reason in " ".join(texts(found.one("not-analysed")))


@pytest.mark.nightly
@pytest.mark.parametrize("reading", READINGS)
def test_a_real_photograph_against_its_truth(reading, journey, shared_data, tmp_path):
    folder = shared_data / "op_fundus_hrf"
    case = Case("HRF 04 g", study_description="Photography of the fundus")
    write_images(tmp_path, [fundus(Path(folder / "HRF_04_g.jpg"), case, "L", as_jpeg=True)])
    found = journey(reading, tmp_path)
    with Image.open(folder / "04_g_AVmanual.png") as opened:
        red, green, blue = np.moveaxis(np.asarray(opened.convert("RGB")) > 128, -1, 0)
    masks = planes(found)
    pairs = [(np.any(list(masks.values()), axis=0), red | green | blue)]
    if reading == "retina-artery-vein":
        pairs += [(masks["Retinal arteries"], red), (masks["Retinal veins"], blue)]
    for (mask, truth), least in zip(pairs, REAL_DICE[reading], strict=True):
        assert dice(mask, truth) > least
