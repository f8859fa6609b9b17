"""The chest-film reading: what its gate refuses, how it answers, and what it leaves unsaid."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from pacs_ai.errors import PipelineFault, Refused
from pacs_ai.models.networks.chest_student import ChestStudent
from pacs_ai.models.networks.densenet import DenseNet121
from pacs_ai.models.package import ZOO, read
from pacs_ai.models.readings.chest_film import PRIORITY, ROUTINE, URGENT, ChestFilm
from pacs_ai.models.readings.radiograph import chexnet_views, student_views, xrv_views
from pacs_ai.pipeline import Frame, Frames
from pacs_ai.testing.samples.chest_film import phantom, pixels


def package(name="chest-film", **settings):
    given = read(ZOO / name)
    return replace(given, model=given.model.model_copy(update={"settings": {**given.model.settings, **settings}}))


def reading(**settings):
    made = ChestFilm(package(**settings))
    made.prepare("cpu")
    return made


@pytest.fixture(scope="module")
def student():
    return reading()


def given(*images, **header):
    return {"image": Frames(tuple(Frame(image, None, header) for image in images), "DX")}


def answered(findings):
    return {one.concept.meaning: one for one in findings.classifications}


def test_every_reported_question_is_answered_and_no_other(student):
    found = student.run(given(pixels(), ViewPosition="PA", BodyPartExamined="CHEST"))
    told = answered(found)
    reported = {one.concept.meaning for one in student.card.questions if one.reported}
    assert set(told) == reported | {PRIORITY.meaning}
    assert "Pneumonia" not in told, "its interval includes 0.5"
    assert told["Cardiomegaly"].value.meaning == "Present"
    assert told["Pneumothorax"].value.meaning == "Absent"
    assert found.maps == ()


def test_deep_pixels_and_a_larger_film_give_the_same_answers(student):
    plain = student.look(Frame(pixels(), None)).chances
    deep = student.look(Frame(pixels().astype(np.uint16) * 16 + 300, None)).chances
    np.testing.assert_allclose(deep, plain, atol=2e-3)


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ({"ViewPosition": "LL"}, "view: .*the view is LL: only frontal films"),
        ({"ViewCodeSequence": "lateral"}, "view: .*the view is LATERAL: only frontal films"),
        ({"BodyPartExamined": "KNEE"}, "body-part: .*Body Part Examined is KNEE, not CHEST"),
        ({"PresentationIntentType": "FOR PROCESSING"}, "intensity: .*raw image, for processing"),
    ],
)
def test_what_the_header_says_is_no_frontal_chest_film(student, header, words):
    with pytest.raises(Refused) as raised:
        student.run(given(pixels(), **header))
    assert re.search(words, f"{raised.value.reason}: {raised.value}")


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("upside down", "does not look like a frontal chest film"),
        ("wrong polarity", "does not look like a frontal chest film"),
        ("lying", "does not look like a frontal chest film"),
        ("half of it", r"unlike those|does not look like"),
        ("phantom", "unlike those that the model was trained on"),
        ("noise", "does not look like a frontal chest film"),
        ("colour", "it is a colour photograph"),
        ("small", "fewer than 256 x 256"),
        ("long", "times as wide as high"),
    ],
)
def test_what_does_not_look_like_one(student, what, words):
    film = pixels()
    images = {
        "upside down": film[::-1],
        "wrong polarity": 255 - film,
        "lying": film.T,
        "half of it": film[128:400, 0:256].repeat(2, axis=0).repeat(2, axis=1),
        "phantom": phantom(),
        "noise": np.random.default_rng(1).integers(0, 255, (400, 400), np.uint8),
        "colour": film[..., None].repeat(3, axis=2),
        "small": film[::4, ::4],
        "long": film[:260],
    }
    with pytest.raises(Refused, match=words):
        student.run(given(images[what]))


def test_the_frontal_film_of_a_series_is_read_and_the_others_are_not(student):
    alone = student.run(given(pixels()))
    frames = Frames(
        (Frame(phantom(), None, {"ViewPosition": "LL"}), Frame(pixels(), None, {"ViewPosition": "PA"})), "DX"
    )
    assert student.run({"image": frames}).classifications == alone.classifications


@pytest.mark.parametrize(
    ("urgent", "priority"),
    [({"Edema": 0.2}, URGENT), ({"Edema": 0.4}, ROUTINE), ({"Pneumonia": 0.0}, ROUTINE), ({}, None)],
    ids=["above", "below", "not reported", "none wanted"],
)
def test_priority_follows_the_urgent_findings_that_are_reported(urgent, priority):
    told = ChestFilm(package(urgent=urgent))._answers(np.full(14, 0.3))
    assert [one.value for one in told if one.concept == PRIORITY] == [priority] * (priority is not None)


def test_the_map_lies_on_the_film_and_sums_to_the_answer():
    found = reading(saliency=True).run(given(pixels()))
    (one,) = found.maps
    assert one.voxels.shape == (1, 512, 512)
    assert (one.voxels.min(), one.voxels.max()) == (0, 1)
    network = ChestStudent(3).eval()
    torch.manual_seed(2)
    network.weight.copy_(torch.randn(network.weight.shape))
    with torch.inference_mode():
        maps = network.maps(student_views(pixels()))
        np.testing.assert_allclose(network.activation(maps).sum(dim=(2, 3)), network.logits(maps), rtol=1e-3, atol=1e-3)


def test_weights_of_another_network_are_refused():
    with pytest.raises(PipelineFault, match="are not its network's"):
        reading(outputs=("Atelectasis",), slopes=(), offsets=())


def test_an_unknown_network_is_refused():
    with pytest.raises(PipelineFault, match="known are student, chexnet, torchxrayvision"):
        reading(network="resnet")


def test_torchxrayvision_scales_its_answers_to_its_working_points():
    outputs = ("one", "two")
    made = ChestFilm(package("chest-film-xrv", outputs=outputs, working_points=(0.1, 0.4)))
    logits = np.log(np.asarray([[0.1 / 0.9, 0.2 / 0.8]]))
    np.testing.assert_allclose(made._chances(logits), [0.5, 0.25])


def test_what_each_network_is_shown():
    film = pixels()
    assert student_views(film).shape == (1, 3, 320, 320)
    assert float(student_views(film).min()) == -1
    ten = chexnet_views(film.astype(np.uint16))
    assert ten.shape == (10, 3, 224, 224)
    np.testing.assert_array_equal(ten[9], ten[4].flip(-1))
    shown = xrv_views(film.astype(np.uint16))
    assert shown.shape == (1, 1, 224, 224)
    assert -1024 <= float(shown.min()) < -500
    assert 500 < float(shown.max()) <= 1024


@pytest.mark.parametrize(
    ("name", "channels", "answers"),
    [pytest.param("chest-film-chexnet", 3, 14, marks=pytest.mark.nightly), ("chest-film-xrv", 1, 18)],
)
def test_a_checkpoint_that_was_brought_answers_all_questions(tmp_path, name, channels, answers):
    """Random weights under the recipe's card: every answer comes, and the gate is that of the student's package."""
    from safetensors.torch import save_file

    torch.manual_seed(4)
    save_file({k: v.clone() for k, v in DenseNet121(channels, answers).state_dict().items() if v.dim()}, tmp_path / "w")
    card = package(name)
    tensors = type(card).tensors
    made = ChestFilm(card)
    with pytest.MonkeyPatch.context() as patch:
        from safetensors.torch import load_file

        patch.setattr(
            type(card),
            "tensors",
            lambda self, file="weights.safetensors": (
                load_file(tmp_path / "w") if file == "weights.safetensors" else tensors(self, file)
            ),
        )
        found = made.run(given(pixels(), ViewPosition="AP"))
        with pytest.raises(Refused, match="does not look like a frontal chest film"):
            made.run(given(255 - pixels()))
    assert len(found.classifications) == answers + 1
    assert found.maps == ()
