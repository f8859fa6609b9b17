"""Pictures wrapped as DICOM: what was put in comes out of the node's reader, and the validator finds no error."""

from __future__ import annotations

import shutil
import subprocess

import numpy as np
import pydicom
import pytest
from PIL import Image

from pacs_ai.errors import UserError
from pacs_ai.infer.frames import load_frames
from pacs_ai.testing import samples
from pacs_ai.testing.photographs import (
    Case,
    film,
    fundus,
    mammogram,
    photograph,
    pixels_of,
    ultrasound,
    ultrasound_clip,
    write_images,
)

CASE = Case("wrapped", study_description="Pictures")
GREY = np.random.default_rng(0).integers(0, 255, (32, 40), dtype=np.uint8)
DEEP = GREY.astype(np.uint16) * 16
COLOUR = np.asarray(Image.fromarray(np.random.default_rng(1).integers(0, 255, (4, 5, 3), np.uint8)).resize((40, 32)))
CLIP = np.stack([GREY, GREY[::-1]])
IMAGES = {
    "ultrasound": (ultrasound(GREY, CASE, 0.2), GREY, (0.2, 0.2)),
    "colour ultrasound": (ultrasound(COLOUR, CASE), COLOUR, None),
    "clip": (ultrasound_clip(CLIP, CASE, 0.3), GREY, (0.3, 0.3)),
    "DX": (film(GREY, CASE), GREY, None),
    "inverted DX": (film(DEEP, CASE, view="AP", inverted=True), DEEP, None),
    "CR": (film(GREY, CASE, "CR", "LL"), GREY, None),
    "inverted CR": (film(GREY, CASE, "CR", inverted=True, detector_mm=(0.2, 0.2)), GREY, None),
    "mammogram": (mammogram(DEEP, CASE, "L", "MLO"), DEEP, None),
    "fundus": (fundus(COLOUR, CASE), COLOUR, None),
    "photograph": (photograph(COLOUR, CASE), COLOUR, None),
}


@pytest.mark.parametrize("name", IMAGES)
def test_pixels_and_scale_are_read_back(name, tmp_path):
    ds, pixels, spacing = IMAGES[name]
    found = load_frames(write_images(tmp_path, [ds])).frames.images[0]
    assert (found.pixels == pixels).all()
    assert found.spacing == spacing


@pytest.mark.parametrize("make", [fundus, photograph])
def test_a_jpeg_keeps_its_bytes_and_its_look(make, tmp_path):
    file = tmp_path / "one.jpg"
    Image.fromarray(COLOUR).save(file, quality=95)
    ds = make(file, CASE, as_jpeg=True)
    assert file.read_bytes() in ds.PixelData
    loaded = load_frames(write_images(tmp_path / "wrapped", [ds]))
    assert np.abs(loaded.frames.images[0].pixels.astype(int) - pixels_of(file)).max() <= 3
    assert loaded.notes == ("the images were compressed with loss",)


def test_the_validator_finds_no_error(tmp_path):
    if shutil.which("dciodvfy") is None:
        pytest.skip("DICOM3TOOLS MISSING: nothing was validated here")
    for name, (ds, *_) in {**IMAGES, "jpeg": (fundus(COLOUR, CASE, as_jpeg=True),)}.items():
        (path,) = write_images(tmp_path / name, [ds])
        told = subprocess.run(["dciodvfy", "-new", str(path)], capture_output=True, text=True, check=False).stderr
        assert [line for line in told.splitlines() if line.startswith("Error")] == [], name


def test_the_same_picture_is_the_same_instance_again():
    uids = [ultrasound(GREY, Case("a", number=n)).SOPInstanceUID for n in (1, 1, 2)]
    assert uids[0] == uids[1] != uids[2]
    assert ultrasound(GREY, Case("b")).StudyInstanceUID != ultrasound(GREY, Case("a")).StudyInstanceUID


def test_every_sample_is_a_study(tmp_path):
    for name in samples.SAMPLES:
        samples.write(name, tmp_path / name)
        found = [pydicom.dcmread(path, stop_before_pixels=True) for path in (tmp_path / name).rglob("*.dcm")]
        assert len({ds.StudyInstanceUID for ds in found}) == 1, name
    with pytest.raises(UserError, match="--study"):
        samples.write("no-such-reading", tmp_path)
