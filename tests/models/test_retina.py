"""The retina's gate on photographs and on what is none; labels lie where the photograph shows the vessels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from pacs_ai.errors import PipelineFault, Reason, Refused
from pacs_ai.models.networks.wnet import Layout, WNet
from pacs_ai.models.package import ZOO, read
from pacs_ai.models.readings import retina
from pacs_ai.models.readings.fundus import find_field
from pacs_ai.models.readings.retina import Retina
from pacs_ai.pipeline import Frame, Frames
from pacs_ai.testing.samples import retina as sample


@pytest.fixture(scope="module")
def phantom():
    return sample.photograph()


class Dark(torch.nn.Module):
    """In place of a W-Net: red that is darker than its surroundings is a vessel, the darker ones are veins."""

    def __init__(self, classes):
        super().__init__()
        self.classes = classes

    def forward(self, image):
        green = image[:, 1:2]
        coarse = torch.nn.functional.avg_pool2d(green, 16)
        darker = torch.nn.functional.interpolate(coarse, green.shape[2:], mode="bilinear") - green
        if self.classes == 1:
            return 200 * (darker - 0.04)
        veins = 200 * (darker - 0.1)
        return torch.cat([torch.zeros_like(green), green - 99, 200 * (darker - 0.04), 3 * veins], 1)


def reading(name, network=None):
    pipeline = Retina(read(ZOO / name))
    pipeline._network = network
    return pipeline


def dice(first, second):
    return 2 * np.count_nonzero(first & second) / (np.count_nonzero(first) + np.count_nonzero(second))


def test_vessels_lie_where_the_photograph_shows_them(phantom):
    picture, vessels = phantom
    found = reading("retina-vessels", Dark(1)).run({"image": Frames((Frame(picture, None),), "OP")})
    (segment,) = found.segments
    assert segment.voxels.shape == (1, *picture.shape[:2])
    disc = np.hypot(*np.ogrid[-490:510, -360:840]) < 75
    mask = segment.mask[0]
    assert dice(mask[~disc], (vessels > 0)[~disc]) > 0.6
    for step in [(0, 6), (0, -6), (6, 0), (-6, 0)]:
        shifted = np.roll(vessels > 0, step, (0, 1))
        assert dice(mask[~disc], shifted[~disc]) < dice(mask[~disc], (vessels > 0)[~disc]) - 0.1
    density, share = found.measurements
    inside = find_field(Frame(picture, None)).mask(mask.shape)
    assert density.value == pytest.approx(100 * np.count_nonzero(mask) / np.count_nonzero(inside))
    assert share.label == "Retinal vessels"


def test_two_photographs_are_two_planes(phantom):
    picture, _ = phantom
    both = (Frame(picture, None), Frame(np.ascontiguousarray(picture[:, ::-1]), None))
    found = reading("retina-artery-vein", Dark(4)).run({"image": Frames(both, "OP")})
    labels = found.segments[0].voxels
    assert labels.shape == (2, *picture.shape[:2])
    assert dice(labels[0] > 0, labels[1][:, ::-1] > 0) > 0.9
    ratio = found.measurements[-1]
    assert ratio.concept == retina.ARTERY_VEIN_RATIO
    assert ratio.value == pytest.approx((labels == 2).sum() / (labels == 3).sum())


def test_both_eyes_are_not_measured_together(phantom):
    picture, _ = phantom
    eyes = tuple(Frame(picture, None, {"ImageLaterality": side}) for side in "LR")
    with pytest.raises(Refused, match="both eyes") as raised:
        reading("retina-vessels", Dark(1)).run({"image": Frames(eyes, "OP")})
    assert raised.value.reason is Reason.LATERALITY


def test_slabs_of_rows_change_nothing(phantom, monkeypatch):
    picture, _ = phantom
    frame, pipeline = Frame(picture, None), reading("retina-vessels", Dark(1))
    whole = pipeline.label(frame, find_field(frame))
    monkeypatch.setattr(retina, "_SLAB_ROWS", 37)
    assert np.array_equal(pipeline.label(frame, find_field(frame)), whole)


def test_a_disc_that_leaves_the_picture_is_found(phantom):
    picture, _ = phantom
    cut = picture[120:880]
    field = find_field(Frame(cut, None))
    assert field.row == pytest.approx(500 - 120, abs=4)
    assert field.column == pytest.approx(600, abs=4)
    assert field.radius == pytest.approx(480, abs=6)


def test_a_real_photograph_passes(shared_data):
    with Image.open(shared_data / "op_fundus_hrf" / "HRF_04_g.jpg") as opened:
        picture = np.asarray(opened.convert("RGB").resize((876, 584)))
    field = find_field(Frame(picture, None))
    assert 390 < field.radius < 430


def painted(kind, picture):
    rows, columns = np.mgrid[:600, :700]
    round_ = np.hypot(rows - 300, columns - 350) < 280
    if kind == "skin":
        return (np.array([200, 150, 130]) + 20 * np.sin(rows / 40 + columns / 70)[..., None]).astype(np.uint8)
    if kind == "radiograph":
        return np.repeat((round_ * (90 + rows // 8))[..., None], 3, 2).astype(np.uint8)
    if kind == "grey":
        return picture[..., 1]
    if kind == "dark":
        return np.full((600, 700, 3), 4, np.uint8)
    if kind == "square":
        return ((abs(rows - 300) < 200) & (abs(columns - 350) < 200))[..., None] * np.uint8([190, 90, 40])
    if kind == "green":
        return round_[..., None] * np.uint8([60, 160, 70])
    if kind == "small":
        return picture[::6, ::6]
    return np.repeat(np.where(round_, 255, 0)[..., None], 3, 2).astype(np.uint8)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("skin", "edge to edge|no dark corners"),
        ("radiograph", "colours of a retina"),
        ("grey", "not in colour"),
        ("dark", "is dark"),
        ("square", "no disc"),
        ("green", "colours of a retina"),
        ("small", "pixels wide"),
        ("white", "colours of a retina"),
    ],
)
def test_what_is_no_photograph_of_a_retina_is_refused(kind, words, phantom):
    with pytest.raises(Refused, match=words):
        find_field(Frame(painted(kind, phantom[0]), None))


def test_the_second_of_two_is_named(phantom):
    picture, _ = phantom
    series = Frames((Frame(picture, None), Frame(np.full_like(picture, 5), None)), "OP")
    with pytest.raises(Refused, match="photograph 2 is dark"):
        reading("retina-vessels", Dark(1)).run({"image": series})


def test_sizes_that_differ_and_a_retina_without_vessels_are_refused(phantom):
    picture, _ = phantom
    with pytest.raises(Refused, match="different sizes"):
        reading("retina-vessels").run({"image": Frames((Frame(picture, None), Frame(picture[:-2], None)), "OP")})
    rows, columns = np.mgrid[:600, :700]
    plain = (np.hypot(rows - 300, columns - 350) < 280)[..., None] * np.uint8([190, 90, 40])
    network = WNet(Layout((8, 16, 32), 1)).eval()
    torch.nn.init.constant_(network.unet2.final.bias, -50.0)
    with pytest.raises(Refused, match="no retina was recognised"):
        reading("retina-vessels", network).run({"image": Frames((Frame(plain, None),), "OP")})


def test_names_and_shapes_are_those_of_the_published_checkpoints():
    network = WNet(Layout((8, 16, 32), 1))
    assert "unet2.up_path.1.conv_bridge_layer.block.2.running_var" in network.state_dict()
    assert WNet.loaded(network.layout, network.state_dict()).training is False
    with pytest.raises(PipelineFault, match="are not those"):
        WNet.loaded(Layout((8, 16), 1), network.state_dict())


@pytest.mark.parametrize("settings", [{}, {"channels": [8], "classes": 1}, {"channels": [8, 0], "classes": 1}])
def test_settings_that_are_no_wnet_are_refused(settings):
    with pytest.raises(PipelineFault):
        Layout.of(settings)
