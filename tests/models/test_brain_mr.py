"""The brain reading on a phantom head, with a MeshNet that only knows bright from dark; and what the gate refuses."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from safetensors.torch import save

from pacs_ai.errors import PipelineFault, Reason, Refused
from pacs_ai.models.package import MODEL, read
from pacs_ai.models.readings import brain_mr, conform, head_gate
from pacs_ai.models.readings.brain_mr import BrainMr
from pacs_ai.pipeline import Volume
from pacs_ai.testing.samples import brain

TOML = """
name = "bright-brain"
version = "1"
manufacturer = "a test"
title = "Bright"
runtime = "brain-mr"
intended_use = "A test."
procedure = ["24590-2", "LN", "MRI Head"]
licence = "none"
source = "none"
[inputs.image]
modality = ["MR"]
[labels.1]
name = "White matter"
type = ["389080008", "SCT", "White Matter"]
[labels.2]
name = "Grey matter"
type = ["389081007", "SCT", "Gray Matter"]
[settings]
channels = 1
classes = 3
dilations = [2]
activation = "relu"
crop_above = 0.2
white = "White matter"
grey = "Grey matter"
sums = [{ code = ["ALL", "Brain tissue volume"], of = ["White matter", "Grey matter"] },
        { code = ["SHARE", "Grey matter share"], of = ["Grey matter"], share_of = ["White matter", "Grey matter"] }]
"""


@pytest.fixture(scope="module")
def phantom():
    voxels, tissue = brain.head()
    affine = np.zeros((4, 4))
    affine[2, 0] = affine[1, 1] = affine[0, 2] = 1.6
    affine[:, 3] = (-90, -110, -94, 1)
    return Volume(voxels, affine, "MR", {"EchoTime": "3"}), tissue


def reading(folder, grey=0.32, white=0.55, **changed):
    """Grey from one brightness on, white from another: logits 0, b - grey, 3 b - (2 white + grey)."""
    kernel = torch.zeros(1, 1, 3, 3, 3)
    kernel[0, 0, 1, 1, 1] = 1
    tensors = {
        "hidden.0.weight": kernel,
        "hidden.0.bias": torch.zeros(1),
        "last.weight": torch.tensor([0.0, 3.0, 1.0]).view(3, 1, 1, 1, 1),
        "last.bias": torch.tensor([0.0, -2 * white - grey, -grey]),
    }
    content = save(tensors)
    text = TOML
    for old, new in changed.values():
        text = text.replace(old, new)
    (folder / MODEL).write_text(f'{text}\n[files]\n"weights.safetensors" = "{hashlib.sha256(content).hexdigest()}"\n')
    (folder / "weights.safetensors").write_bytes(content)
    pipeline = BrainMr(read(folder))
    pipeline.prepare("cpu")
    return pipeline


def dice(first, second):
    return 2 * np.count_nonzero(first & second) / (np.count_nonzero(first) + np.count_nonzero(second))


def test_tissue_comes_back_on_the_series_own_grid(phantom, tmp_path):
    volume, tissue = phantom
    found = reading(tmp_path).run({"image": volume})
    assert [segment.label for segment in found.segments] == ["White matter", "Grey matter"]
    labels = found.segments[0].voxels
    assert labels.shape == volume.shape
    assert labels.dtype == np.uint8
    assert dice(labels == 1, tissue == brain.WHITE) > 0.9
    assert dice(labels == 2, tissue == brain.GREY) > 0.7
    assert not labels[tissue == brain.SCALP].any(), "only the largest part is kept"
    white, grey, both, share = found.measurements
    assert white.value == pytest.approx(np.count_nonzero(labels == 1) * 1.6**3 / 1000)
    assert both.value == pytest.approx(white.value + grey.value)
    assert share.value == pytest.approx(100 * grey.value / both.value)
    assert (white.label, both.label) == ("White matter", None)


def test_where_grey_is_brighter_than_white_it_is_no_t1(tmp_path):
    pipeline = reading(tmp_path)
    head = np.repeat(np.uint8([0, 90, 180, 0]), 200_000)
    with pytest.raises(Refused, match="white matter is not brighter"):
        pipeline._check_found(head, np.where(head == 180, 2, np.where(head == 90, 1, 0)))
    with pytest.raises(Refused, match="0 mL of brain"):
        pipeline._check_found(head, np.zeros_like(head))


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ({"EchoTime": "98"}, "echo time is 98 ms"),
        ({"AcquisitionContrast": "FLUID_ATTENUATED"}, "FLUID_ATTENUATED"),
        ({"SeriesDescription": "Doe John ax FLAIR"}, "the description of the series says FLAIR: it is no T1"),
        ({"SeriesDescription": "3D TOF", "EchoTime": "4"}, "TOF"),
    ],
)
def test_other_contrasts_are_refused(header, words):
    with pytest.raises(Refused, match=words) as raised:
        head_gate.check_header(header)
    assert raised.value.reason is Reason.MODALITY


@pytest.mark.parametrize("header", [{}, {"EchoTime": "2.5"}, {"SeriesDescription": "T1 FLAIR"}, {"EchoTime": "n/a"}])
def test_what_may_be_t1_passes(header):
    head_gate.check_header(header)


def test_a_part_of_a_head_is_refused(phantom):
    volume, _ = phantom
    with pytest.raises(Refused, match="from feet to head"):
        head_gate.check_coverage(Volume(volume.voxels[:60], volume.affine, "MR"))
    coarse = volume.affine.copy()
    coarse[:3, 0] *= 3
    with pytest.raises(Refused, match=r"4\.8 mm apart"):
        head_gate.check_coverage(Volume(volume.voxels[::3], coarse, "MR"))


def test_a_head_without_its_top_is_refused(phantom):
    volume, _ = phantom
    series = Volume(volume.voxels[:80], volume.affine, "MR")
    with pytest.raises(Refused, match="top of the head"):
        head_gate.check_head(conform.conform(series), series)


@pytest.mark.parametrize(("radius_mm", "words"), [(75, "top of the head"), (45, "90 mm|88 mm"), (0, "next to nothing")])
def test_what_is_no_whole_head_is_refused(phantom, radius_mm, words):
    """A limb runs through all planes from the uppermost on."""
    volume, _ = phantom
    affine = conform.conformed_affine(volume.shape, volume.affine)
    left, below, front = np.meshgrid(*[np.arange(256) - 128] * 3, indexing="ij", sparse=True)
    limb = 200 * ((np.hypot(left, front) < radius_mm) & (below > -94) & (below < 94))
    with pytest.raises(Refused, match=words):
        head_gate.check_head(conform.Conformed(limb.astype(np.uint8), affine), volume)


@pytest.mark.parametrize(
    "changed", [("crop_above = 0.2", 'crop_above = "much"'), ('["ALL", "Brain tissue volume"]', '["ALL"]')]
)
def test_settings_that_are_not_understood_are_a_fault(changed, tmp_path):
    with pytest.raises(PipelineFault, match="not understood"):
        reading(tmp_path, one=changed)


def test_boxes_are_multiples_within_the_grid():
    for low, high in [(0, 1), (3, 250), (100, 117), (250, 256), (240, 256)]:
        box = brain_mr._even(np.arange(low, high), 256)
        assert (box.stop - box.start) % 16 == 0
        assert 0 <= box.start <= low
        assert high <= box.stop <= 256
