"""The montage shows the patient's right on the left and the front on top, from any acquisition plane."""

from __future__ import annotations

import numpy as np
import pytest
from encode_material import CARD, make_findings
from PIL import Image

from pacs_ai.encode.pictures.legend import Line
from pacs_ai.encode.pictures.montage import axial_view, montage
from pacs_ai.encode.pictures.sheet import sheet
from pacs_ai.pipeline import Findings, Segment, Volume
from pacs_ai.testing import CORONAL, SAGITTAL, Phantom, phantom_truth

PLANES = {
    "axial": Phantom(30, 64, 64),
    "sagittal": Phantom(64, 64, 64, orientation=SAGITTAL),
    "coronal": Phantom(64, 64, 64, orientation=CORONAL),
    "feet first": Phantom(30, 64, 64, orientation=(1.0, 0.0, 0.0, 0.0, -1.0, 0.0)),
    "oblique": Phantom(60, 64, 64, orientation=(0.96, 0.28, 0.0, -0.28, 0.96, 0.0)),
}


def picture(path):
    with Image.open(path) as opened:
        return opened.copy()


@pytest.mark.parametrize("name", PLANES)
def test_right_is_left_and_front_is_up(name):
    phantom = PLANES[name]
    truth = phantom_truth(phantom)
    view = axial_view(Volume(truth.labels, phantom.affine, "CT"))
    centre = {
        label: np.argwhere(view.of(truth.mask(label))).mean(axis=0)
        for label in ("Right lung", "Left lung", "Marker right", "Marker front", "Marker top")
    }
    size = np.array(view.of(truth.labels).shape)
    assert centre["Right lung"][2] < centre["Left lung"][2]
    assert centre["Marker right"][2] < size[2] / 2
    assert centre["Marker front"][1] < size[1] / 2
    assert centre["Marker top"][0] > size[0] / 2


def test_the_picture_has_the_colours_and_true_proportions(tmp_path):
    phantom = Phantom(30, 64, 32)
    findings = make_findings(phantom)
    montage(phantom.volume(), findings, CARD, tmp_path / "m.png")
    page = np.asarray(picture(tmp_path / "m.png")).astype(int)
    red, green, blue = page[..., 0], page[..., 1], page[..., 2]
    orange, azure = (red - blue > 60) & (green < 220), blue - red > 60
    cells = slice(100, page.shape[0] - 150)
    assert orange[cells].sum() > 1000
    assert azure[cells].sum() > 1000
    first_cell = slice(24, 24 + 384)
    assert np.nonzero(azure[cells, first_cell])[1].mean() < np.nonzero(orange[cells, first_cell])[1].mean()


def test_nothing_found_is_a_picture_too(tmp_path):
    montage(PLANES["axial"].volume(), Findings(), CARD, tmp_path / "m.png", slices=3)
    assert picture(tmp_path / "m.png").width > 1500


def test_what_a_reader_must_know_stands_below_the_legend():
    tiles, lines = Image.new("RGB", (1000, 10)), [Line(None, "Whole image", (("Volume", "472 mL"),))]
    plain = np.asarray(sheet(tiles, lines, CARD))
    warned = np.asarray(sheet(tiles, lines, CARD, ["Volume is 472 mL, outside the expected range of 800 to 1700 mL"]))
    below = warned[plain.shape[0] - 24 :].astype(int)
    assert ((below[..., 0] > 200) & (below[..., 2] < 120)).any(), "in the colour of the warning"
    assert (warned[: plain.shape[0] - 24] == plain[:-24]).all()


def test_one_slice_and_a_hundred_labels_are_drawn(tmp_path):
    labels = tuple(
        type(CARD.labels[0])(f"Part {n}", CARD.labels[0].category, CARD.labels[0].type) for n in range(1, 105)
    )
    voxels = np.zeros((3, 40, 40), np.uint8)
    voxels[1].reshape(-1)[:105] = np.arange(105)
    volume = Volume(np.random.default_rng(0).normal(100, 20, voxels.shape).astype(np.float32), np.eye(4), "MR")
    findings = Findings(tuple(Segment(label.name, voxels, n) for n, label in enumerate(labels, 1)))
    montage(volume, findings, type(CARD)(**{**vars(CARD), "labels": labels}), tmp_path / "m.png")
    assert picture(tmp_path / "m.png").height < 3000


def test_every_answer_stands_on_the_page_however_many_there_are():
    answers = [(f"Finding of the chest {number}", "Absent (12 %)") for number in range(1, 15)]
    tiles = Image.new("RGB", (1000, 10))

    def drawn(values):
        return np.asarray(sheet(tiles, [Line(None, "Whole image", tuple(values))], CARD))

    page = drawn(answers)
    assert page.shape[0] > drawn(answers[:1]).shape[0]
    for number, (what, _) in enumerate(answers):
        other = drawn([*answers[:number], (what, "Present (12 %)"), *answers[number + 1 :]])
        assert other.shape != page.shape or (other != page).any(), f"{what} is not on the page"
