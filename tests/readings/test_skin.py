"""Skin lesions: the published library's own probabilities, what is refused, and the way through the node."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom.uid import Comprehensive3DSRStorage
from reading_bed import install_one, texts

from pacs_ai.errors import Refused
from pacs_ai.models.convert.formats import keras_h5
from pacs_ai.models.readings.skin import CLASSES, known_of
from pacs_ai.models.registry import Registry
from pacs_ai.pipeline import Frame, Frames
from pacs_ai.states import JobState
from pacs_ai.testing.photographs import Case, photograph, write_images
from pacs_ai.testing.samples.skin import spot
from pacs_ai.testing.samples.skin import write as write_sample

READINGS = ("skin-lesion",)
YOUNG = {"PatientSex": "F", "PatientAge": "025Y", "BodyPartExamined": "LEG"}
OLD = {"PatientSex": "M", "PatientAge": "080Y", "BodyPartExamined": "FACE"}
#: What sklesion 0.2.2 itself (TensorFlow 2.17.0) gives for `gradient`, in the order of `CLASSES`.
PUBLISHED = [
    ({}, [0.020915, 0.012964, 0.137536, 0.051928, 0.017191, 0.439953, 0.319513]),
    (YOUNG, [0.007967, 0.00542, 0.038618, 0.244198, 0.006293, 0.236818, 0.460686]),
    (OLD, [0.055059, 0.028006, 0.461248, 0.02902, 0.041808, 0.006963, 0.377896]),
]


def gradient():
    """Return a picture that needs no decoder and hardly any resampling to be the same everywhere."""
    total = np.indices((96, 120)).sum(0)
    ramp = total * 255 // total.max()
    return np.stack([ramp, (total * 7) % 256, 255 - ramp], -1).astype(np.uint8)


@pytest.fixture(scope="module")
def classifier(request):
    """The reading, with its weights."""
    models = Path(request.config.cache.mkdir("models"))
    reason = install_one("skin-lesion", Path("/nowhere"), models)
    if reason:
        pytest.skip(f"SKIN-LESION MISSING: {reason}, so it was not tested here")
    made = Registry(models=models).create("skin-lesion")
    made.prepare("cpu")
    return made


def run(classifier, pixels, header=None):
    return classifier.run({"image": Frames((Frame(pixels, None, header or {}),), "XC")})


@pytest.mark.parametrize(("header", "published"), PUBLISHED)
def test_the_probabilities_are_those_of_the_published_library(classifier, header, published, monkeypatch):
    monkeypatch.setattr(classifier, "_reddest", 100.0)
    chances, _ = classifier.chances(Frame(gradient(), None, header))
    assert chances == pytest.approx(published, abs=1e-4)


def test_what_is_no_lesion_is_refused(classifier):
    plain = np.full((200, 200, 3), (200, 150, 150), np.uint8)
    green = np.full((200, 200, 3), (40, 160, 60), np.uint8)
    noise = np.random.default_rng(0).integers(0, 255, (200, 200, 3), np.uint8)
    for pixels in (plain, noise):
        with pytest.raises(Refused, match="does not look like") as refusal:
            run(classifier, pixels)
        assert refusal.value.reason == "out-of-distribution"
    with pytest.raises(Refused, match="mean colour"):
        run(classifier, green)
    with pytest.raises(Refused, match="not in colour"):
        run(classifier, plain[..., 0])
    with pytest.raises(Refused, match="not in colour"):
        run(classifier, np.repeat(noise[..., :1], 3, axis=2))


def test_fundus_photographs_and_chest_films_are_refused(classifier, shared_data):
    pictures = [*sorted((shared_data / "op_fundus_hrf").glob("*.jpg"))[:1]]
    pictures += sorted((shared_data / "cxr_nih_png").glob("*.png"))[:2]
    assert len(pictures) == 3
    for path in pictures:
        with pytest.raises(Refused):
            run(classifier, np.asarray(Image.open(path).convert("RGB").resize((800, 534))))


def test_several_photographs_are_refused(classifier):
    images = (Frame(spot(0), None), Frame(spot(1), None))
    with pytest.raises(Refused, match="2 photographs"):
        classifier.run({"image": Frames(images, "XC")})


def test_what_is_known_of_the_patient():
    assert known_of({}).tolist() == pytest.approx([0, 0, 1, 0, 0, 0, 0, 1, 51.9018 / 90, 1], abs=1e-5)
    assert known_of(YOUNG).tolist() == pytest.approx([1, 0, 0, 0, 0, 1, 0, 0, 25 / 90, 0])
    assert known_of({"PatientAge": "018M", "BodyPartExamined": "Upper arm"}).tolist()[3:] == pytest.approx(
        [1, 0, 0, 0, 0, 1.5 / 90, 0]
    )


def test_a_photograph_comes_back_with_its_probabilities(journey, tmp_path):
    write_sample(tmp_path)
    found = journey("skin-lesion", tmp_path)
    report = found.one("SR")
    assert report.SOPClassUID == Comprehensive3DSRStorage
    assert found.job.findings["classifications"][0]["value"] == "Melanocytic nevus"
    text = " ".join(texts(found.one("text-report")))
    assert "Melanocytic nevus" in text
    assert "Probability of malignant melanoma" in text
    assert found.of("SEG") == []


def test_a_picture_of_something_else_comes_back_as_not_analysed(journey, tmp_path):
    noise = np.random.default_rng(1).integers(0, 255, (200, 200, 3), np.uint8)
    write_images(tmp_path, [photograph(noise, Case("no-lesion"))])
    found = journey("skin-lesion", tmp_path, JobState.REFUSED)
    assert "does not look like" in " ".join(texts(found.one("not-analysed")))


def test_a_file_of_another_model_is_named(tmp_path, monkeypatch):
    from pacs_ai.errors import PipelineFault
    from pacs_ai.models.convert import xception

    monkeypatch.setattr(keras_h5, "read", lambda *_: {"layers/dense/vars/0": np.zeros((3, 3))})
    with pytest.raises(PipelineFault, match="another model"):
        xception.read(tmp_path, {})
    assert len(CLASSES) == 7


def test_the_likeliest_kind_stands_first(classifier):
    found = run(classifier, spot())
    first, second, *others = found.measurements
    assert first.concept.value == "P-MALIGNANT"
    assert (second.concept.value, len(others)) == ("P-NV", 6)
    assert [one.value for one in (second, *others)] == sorted(
        (one.value for one in found.measurements[1:]), reverse=True
    )
    assert sum(one.value for one in found.measurements[1:]) == pytest.approx(100, abs=1e-3)
