"""`pacs-ai demo --reading`: other readings through the whole node, what they show, and what is said where not."""

from __future__ import annotations

import re

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from pydicom import dcmread

from pacs_ai import config
from pacs_ai.cli import main
from pacs_ai.conditions import When
from pacs_ai.demo import derived, proof, run
from pacs_ai.demo.node import PEER, DemoNode
from pacs_ai.demo.reading import DEFAULT, Reading, find, listing
from pacs_ai.errors import UserError
from pacs_ai.models.registry import Registry
from pacs_ai.pipeline import Card, Code, Input
from pacs_ai.testing import Phantom, samples, write_phantom

#: A reading whose weights come with the node.
BUILT_IN = "fetal-head"


def card(**inputs):
    return Card(
        name="several",
        version="1",
        manufacturer="pacs_ai",
        title="Several",
        inputs=inputs,
        labels=(),
        procedure=Code("25045-6", "LN", "CT unspecified body region"),
        intended_use="tests",
    )


def configured(tmp_path, reading):
    return DemoNode(tmp_path / "node", 11112, profile="demo", reading=reading).config


def test_a_reading_with_one_input_is_routed_by_its_modality(tmp_path):
    found = configured(tmp_path, Reading("one", card(image=Input(("US", "XC"), given="frames")), tmp_path))
    assert found.models_folder == tmp_path
    (route,) = found.route
    assert (route.run, route.when, route.deliver_to) == ("one", When(modality=("US", "XC")), (PEER,))
    kinds = [one.kind for one in found.profile_named("demo").objects]
    assert kinds == ["segmentation", "report", "text-report", "secondary-capture", "derived-images"]


def test_a_reading_with_several_inputs_is_routed_by_them(tmp_path, monkeypatch):
    monkeypatch.setattr(samples, "CONDITIONS", {"two": {"flair": {"description": "*flair*"}}})
    found = configured(tmp_path, Reading("two", card(t1=Input(("MR",)), flair=Input(("MR",))), tmp_path))
    assert found.route[0].inputs == {
        "t1": When(modality=("MR",)),
        "flair": When(modality=("MR",), description="*flair*"),
    }


def test_the_lungs_are_routed_as_ever(tmp_path):
    found = DemoNode(tmp_path / "node", 11112).config
    assert found.route[0] == config.Route(when=When(modality=("CT",)), run=DEFAULT, deliver_to=(PEER,))


def test_missing_weights_are_said_with_the_command(tmp_path):
    with pytest.raises(UserError, match="pacs-ai models install skin-lesion --from FOLDER"):
        find("skin-lesion", tmp_path)
    done = CliRunner().invoke(main, ["demo", "--reading", "skin-lesion", "--models", str(tmp_path)])
    assert done.exit_code == 2
    assert "pacs-ai models install skin-lesion" in done.output
    with pytest.raises(UserError, match="mammography --from FOLDER, or name another folder"):
        find("mammography", tmp_path)


@pytest.mark.parametrize("arguments", [["--reading"], ["--reading", "no-such-reading"]])
def test_readings_are_listed(tmp_path, arguments):
    done = CliRunner().invoke(main, ["demo", "--models", str(tmp_path), *arguments])
    assert done.exit_code == (0 if len(arguments) == 1 else 2)
    for name, state in ((DEFAULT, "comes with the node"), ("skin-lesion", "not installed")):
        assert re.search(rf"{name} +{state}", done.output), done.output
    assert all(name in "\n".join(listing(tmp_path)) for name in samples.SAMPLES)


def test_no_sample_is_said_before_anything_starts(tmp_path, monkeypatch):
    monkeypatch.setattr(samples, "SAMPLES", {})
    reading = Reading(BUILT_IN, Registry().card(BUILT_IN), tmp_path)
    with pytest.raises(UserError, match="--study"):
        run(None, tmp_path / "out", reading=reading)
    assert not (tmp_path / "out").exists()


def test_an_answer_that_the_report_does_not_state_is_found():
    found = [{"concept": "Kind", "value": "Nevus", "probability": 0.9, "label": None}]
    assert [one.holds for one in proof.check_answers(found, ("Kind: Nevus (90 %)",))] == [True]
    assert [one.holds for one in proof.check_answers(found, ("Kind: other",))] == [False]
    other = {**found[0], "concept": "Second lesion"}
    checks = proof.check_answers([*found, other], ("Kind: Nevus (90 %)", "Second lesion: Melanoma (80 %)"))
    assert [(one.holds, "Second lesion: Nevus" in one.words) for one in checks] == [(False, True)]


def test_new_images_are_drawn_side_by_side(tmp_path):
    paths = []
    for seed, size in enumerate((32, 48)):
        paths += write_phantom(tmp_path / str(seed), Phantom(6, size, size, seed=seed))
    derived.draw(paths, tmp_path / "drawn.png")
    with Image.open(tmp_path / "drawn.png") as picture:
        assert picture.size == (960, 520)
        left, right = (np.asarray(picture)[40:, side : side + 480] for side in (0, 480))
    assert left.std() > 10
    assert right.std() > 10
    received = write_phantom(tmp_path / "received", Phantom(6, 32, 32, seed=2))
    derived.draw(paths, tmp_path / "drawn.png", received)
    with Image.open(tmp_path / "drawn.png") as picture:
        assert picture.size == (1440, 520)
        assert np.asarray(picture)[40:, :480].std() > 10


@pytest.mark.nightly  # the tutorial's test shows one more reading in the demo each time
def test_a_reading_goes_through_the_node(tmp_path, capsys):
    assert run(None, tmp_path / "out", reading=find(BUILT_IN, tmp_path / "models")) == 0, capsys.readouterr().out
    shown = capsys.readouterr().out
    assert "arrived in the demo PACS" in shown
    assert "Read from the SR in the demo PACS" in shown
    assert (tmp_path / "out" / "montage.png").stat().st_size > 10_000
    kept = [dcmread(path, stop_before_pixels=True) for path in (tmp_path / "out" / "pacs").iterdir()]
    assert {"SR", "OT"} <= {ds.Modality for ds in kept}
