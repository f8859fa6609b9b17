"""The fetal-head reading on its phantom, whose circumference is known, and on what is no head."""

from __future__ import annotations

import numpy as np
import pytest

from pacs_ai.errors import Refused
from pacs_ai.models.package import ZOO, read
from pacs_ai.models.readings import fetal_head
from pacs_ai.models.readings.ellipse import Ellipse
from pacs_ai.models.readings.fetal_head import (
    BIPARIETAL,
    GESTATIONAL_AGE,
    HADLOCK,
    HEAD_CIRCUMFERENCE,
    OCCIPITOFRONTAL,
    FetalHead,
    Gates,
    canvas_of,
    gestational_age,
    grey_of,
    judge,
)
from pacs_ai.pipeline import Frame, Frames, Shape
from pacs_ai.testing.samples.fetal_head import CIRCUMFERENCE_MM, LONG_MM, MM_PER_PIXEL, SHORT_MM, frame

SCALE = (MM_PER_PIXEL, MM_PER_PIXEL)


@pytest.fixture(scope="module")
def reading():
    made = FetalHead(read(ZOO / "fetal-head"))
    made.prepare("cpu")
    return made


def given(*images, scale=SCALE):
    return {"image": Frames(tuple(Frame(image, scale) for image in images), "US")}


def values(findings):
    return {(one.concept.value, one.concept.scheme): one for one in findings.measurements}


def value(findings, concept):
    return values(findings)[concept.value, concept.scheme].value


def test_the_phantoms_head_is_measured(reading):
    found = reading.run(given(frame()))
    assert value(found, HEAD_CIRCUMFERENCE) == pytest.approx(CIRCUMFERENCE_MM, rel=0.02)
    assert value(found, BIPARIETAL) == pytest.approx(2 * SHORT_MM, rel=0.03)
    assert value(found, OCCIPITOFRONTAL) == pytest.approx(2 * LONG_MM, rel=0.03)
    age = values(found)[GESTATIONAL_AGE.value, GESTATIONAL_AGE.scheme]
    assert age.method == HADLOCK
    assert age.unit.value == "wk"
    assert age.value == pytest.approx(gestational_age(CIRCUMFERENCE_MM), abs=0.6)
    (segment,) = found.segments
    assert segment.voxels.shape == (1, 540, 800)
    (detection,) = found.detections
    assert detection.region.shape is Shape.ELLIPSE
    ellipse_mm2 = np.pi * LONG_MM * SHORT_MM
    assert segment.mask.sum() * MM_PER_PIXEL**2 == pytest.approx(ellipse_mm2, rel=0.04)


def test_a_frame_twice_as_large_gives_the_same_millimetres(reading):
    once = reading.run(given(frame()))
    large = frame().repeat(2, axis=0).repeat(2, axis=1)
    twice = reading.run(given(large, scale=(MM_PER_PIXEL / 2, MM_PER_PIXEL / 2)))
    assert value(twice, HEAD_CIRCUMFERENCE) == pytest.approx(value(once, HEAD_CIRCUMFERENCE), rel=0.005)


def test_pixels_that_are_no_squares_are_measured_along_both_axes(reading):
    """Every second row left out: rows are twice as far apart, and the head is as large as before."""
    found = reading.run(given(frame()[::2], scale=(2 * MM_PER_PIXEL, MM_PER_PIXEL)))
    assert value(found, HEAD_CIRCUMFERENCE) == pytest.approx(CIRCUMFERENCE_MM, rel=0.02)


def test_without_calibration_no_length_and_no_age_is_said(reading):
    found = reading.run(given(frame(), scale=None))
    assert found.measurements == ()
    assert found.segments
    (answer,) = found.classifications
    assert answer.value == fetal_head.UNCALIBRATED


def test_of_a_clip_the_frame_with_the_head_is_measured(reading):
    empty = frame(0)
    found = reading.run(given(empty, empty, frame(), empty))
    assert found.segments[0].mask.any(axis=(1, 2)).tolist() == [False, False, True, False]
    assert found.detections[0].region.index == 2


def test_images_of_different_sizes_have_no_segment_but_are_measured(reading):
    found = reading.run(given(frame(0)[:400, :600], frame()))
    assert found.segments == ()
    assert found.detections[0].region.index == 1
    assert value(found, HEAD_CIRCUMFERENCE) == pytest.approx(CIRCUMFERENCE_MM, rel=0.02)


def test_colour_and_deep_pixels_are_read_like_grey_bytes():
    plain = grey_of(Frame(frame(), SCALE))
    colour, deep = frame()[..., None].repeat(3, axis=2), frame().astype(np.uint16) * 257
    np.testing.assert_allclose(grey_of(Frame(colour, SCALE)), plain, atol=1e-6)
    np.testing.assert_allclose(grey_of(Frame(deep, SCALE)), plain * 255 / frame().max(), atol=1e-4)


@pytest.mark.parametrize("what", ["black", "speckle", "bars", "small"])
def test_what_shows_no_head_is_refused(reading, what):
    images = {
        "black": np.zeros((540, 800), np.uint8),
        "speckle": frame(0),
        "bars": np.tile(np.repeat(np.arange(0, 250, 50, np.uint8), 100), (400, 1)),
        "small": np.zeros((40, 60), np.uint8),
    }
    with pytest.raises(Refused, match=r"no fetal head was found|smaller than|disagree"):
        reading.run(given(images[what]))


def test_a_clip_without_a_head_is_refused_with_its_length(reading):
    with pytest.raises(Refused, match="none of 3 images shows a fetal head"):
        reading.run(given(*[frame(0)] * 3))


def test_two_outlines_that_disagree_are_refused():
    canvas = canvas_of(np.zeros((128, 192), np.float32))
    one, other = (Ellipse((x, 64), 40, 30, 0).mask(128, 192).astype(np.float32) for x in (80, 96))
    told = judge(canvas, np.stack([one, other]), 0, Gates())
    assert isinstance(told, str)
    assert "disagree" in told


def test_a_long_shape_is_no_head():
    canvas = canvas_of(np.zeros((128, 192), np.float32))
    long = Ellipse((96, 64), 70, 25, 0.1).mask(128, 192).astype(np.float32)
    told = judge(canvas, np.stack([long, long]), 0, Gates())
    assert told == "no fetal head was found: what looks like one is too long for a head"


@pytest.mark.parametrize(("mm", "weeks"), [(100, 14.66), (175, 20.02), (300, 33.26)])
def test_age_by_the_formula_of_hadlock(mm, weeks):
    assert gestational_age(mm) == pytest.approx(weeks, abs=0.01)


@pytest.mark.parametrize("mm", [40, 380])
def test_no_age_beyond_what_the_formula_was_made_for(mm):
    assert gestational_age(mm) is None
