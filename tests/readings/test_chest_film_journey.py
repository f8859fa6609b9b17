"""Chest films of the NIH that were not trained on, from C-STORE to the SR, and what is no frontal chest film."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from PIL import Image

from pacs_ai.models.package import ZOO, read
from pacs_ai.models.readings.chest_film import ChestFilm
from pacs_ai.pipeline import Frame
from pacs_ai.states import JobState
from pacs_ai.testing.photographs import Case, film, write_images
from pacs_ai.testing.samples.chest_film import phantom, pixels

READINGS = ("chest-film",)


def answers(ds) -> dict[str, str]:
    """Return every CODE of a report by the meaning of its concept."""
    found = {}
    if ds.get("ValueType") == "CODE" and ds.get("ConceptNameCodeSequence"):
        found[ds.ConceptNameCodeSequence[0].CodeMeaning] = ds.ConceptCodeSequence[0].CodeMeaning
    for item in ds.get("ContentSequence", ()):
        found |= answers(item)
    return found


@pytest.mark.parametrize("modality", ["DX", "CR"])
def test_a_real_film_comes_back_answered(journey, shared_data, tmp_path, modality):
    """00028886 has an effusion; of a CR it is stored with the polarity of film, MONOCHROME1."""
    picture = shared_data / "cxr_nih_png" / "00028886_000.png"
    case = Case(f"nih-28886-{modality}", study_description="Chest")
    image = film(picture, case, modality, inverted=modality == "CR")
    found = journey("chest-film", write_images(tmp_path, [image]))
    told = answers(found.one("SR"))
    assert told["Atelectasis"] == "Present"
    assert told["Pneumothorax"] == "Absent"
    assert told["Priority"] in {"Urgent: read first", "Routine"}
    assert "Pneumonia" not in told
    assert "Atelectasis" in found.text


@pytest.mark.nightly
def test_all_films_that_were_kept_out_pass_the_gate_and_agree_with_the_replica(shared_data):
    reading = ChestFilm(read(ZOO / "chest-film"))
    reading.prepare("cpu")
    names = reading._package.model.settings["outputs"]
    with (shared_data / "cxr_nih_png" / "labels.csv").open(encoding="utf-8") as table:
        rows = list(csv.DictReader(table))
    seen = []
    for row in rows:
        frame = Frame(np.asarray(Image.open(shared_data / "cxr_nih_png" / row["name"]).convert("L")), None)
        seen.append(reading.look(frame))
    assert max(one.distance for one in seen) < reading._package.model.settings["distance"]
    columns = [f"chexnet_replica_{name.replace(' ', '_').replace('thickening', 'Thickening')}" for name in names]
    replica = np.log([[float(row[column]) for column in columns] for row in rows])
    own = np.log([one.chances for one in seen])
    kept = [k for k, question in enumerate(reading.card.questions) if question.reported]
    agreement = [np.corrcoef(own[:, k], replica[:, k])[0, 1] for k in kept]
    assert np.mean(agreement) > 0.4


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("lateral", "the view is LL"),
        ("inverted", "does not look like a frontal chest film"),
        ("phantom", "unlike those that the model was trained on"),
    ],
)
def test_what_is_no_frontal_chest_film_is_refused_in_words(journey, tmp_path, what, words):
    images = {
        "lateral": film(pixels(), Case("chest-lateral"), view="LL"),
        "inverted": film(255 - pixels(), Case("chest-inverted")),
        "phantom": film(phantom(), Case("chest-phantom")),
    }
    found = journey("chest-film", write_images(tmp_path, [images[what]]), JobState.REFUSED)
    assert words in found.job.reason
