"""MeshNet by sub-grids is MeshNet as it is written down; its published weights are read in their order."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pacs_ai.errors import PipelineFault
from pacs_ai.models.convert.meshnet import from_tfjs
from pacs_ai.models.networks import meshnet
from pacs_ai.models.networks.meshnet import Layout, MeshNet

LAYOUTS = [
    Layout(5, 3, (1, 2, 4, 8, 4, 2, 1), "elu"),
    Layout(9, 2, (8, 4, 2, 1, 8, 4, 2, 1), "gelu", normalised=True),
    Layout(3, 4, (1, 2, 2, 4, 4, 16), "relu"),
    Layout(8, 3, (1, 1, 1), "relu", normalised=True),
]
SETTINGS = {"channels": 5, "classes": 3, "dilations": [1, 2, 1], "activation": "relu"}


def seeded(layout):
    torch.manual_seed(7)
    return MeshNet(layout).eval()


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda one: one.activation + str(max(one.dilations)))
@pytest.mark.parametrize("block", [300, 10**6])
def test_subgrids_are_the_plain_convolutions(layout, block, monkeypatch):
    monkeypatch.setattr(meshnet, "BLOCK_VOXELS", block)
    network = seeded(layout)
    image = torch.rand(16, 16, 32)
    with torch.inference_mode():
        plain = network(image[None, None])[0]
    assert torch.allclose(network.logits(image), plain, atol=1e-4)
    best = plain.topk(2, dim=0).values
    clear = best[0] - best[1] > 2e-4
    assert clear.float().mean() > 0.9
    assert torch.equal(network.label_by_subgrids(image)[clear], plain.argmax(0)[clear].to(torch.uint8))
    assert network.label_by_subgrids(image).dtype == torch.uint8


def test_a_size_between_multiples_of_the_dilation_is_no_input():
    with pytest.raises(ValueError, match="no multiple of 8"):
        seeded(LAYOUTS[0]).label_by_subgrids(torch.zeros(16, 20, 16))


def test_weights_of_another_net_are_refused():
    with pytest.raises(PipelineFault, match="hidden"):
        MeshNet.loaded(LAYOUTS[0], seeded(LAYOUTS[2]).state_dict())


@pytest.mark.parametrize("layout", LAYOUTS[:2], ids=["bias", "normalised"])
def test_published_weights_come_out_as_they_went_in(layout, tmp_path):
    network = seeded(layout)
    state = network.state_dict()
    content = b"".join(
        (state[name].permute(2, 3, 4, 1, 0) if state[name].ndim == 5 else state[name]).numpy().astype("<f4").tobytes()
        for name, _ in layout.shapes()
    )
    (tmp_path / "model.bin").write_bytes(content)
    options = {
        "channels": layout.channels,
        "classes": layout.classes,
        "dilations": list(layout.dilations),
        "activation": layout.activation,
        "normalised": layout.normalised,
    }
    read = MeshNet.loaded(layout, from_tfjs(tmp_path, options))
    image = torch.rand(16, 16, 16)
    assert torch.equal(read.logits(image), network.logits(image))
    (tmp_path / "model.bin").write_bytes(content[:-4])
    with pytest.raises(PipelineFault, match="cut off"):
        from_tfjs(tmp_path, options)


@pytest.mark.parametrize(
    "changed",
    [
        {"channels": 0},
        {"activation": "swish"},
        {"dilations": []},
        {"dilations": [99]},
        {"classes": 300},
        {"channels": "x"},
    ],
)
def test_settings_that_are_no_meshnet_are_refused(changed):
    with pytest.raises(PipelineFault):
        Layout.of({**SETTINGS, **changed})


def test_missing_settings_are_named():
    with pytest.raises(PipelineFault, match="classes"):
        Layout.of({key: value for key, value in SETTINGS.items() if key != "classes"})


def test_a_running_net_holds_one_array_of_activations():
    network = seeded(Layout(8, 2, (1, 2, 4, 2, 1), "relu"))
    image = torch.rand(32, 32, 32)
    made = []

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, arguments=(), named=None):
            found = function(*arguments, **(named or {}))
            if isinstance(found, torch.Tensor) and found.numel() >= 8 * image.numel():
                made.append(found.untyped_storage().data_ptr())
            return found

    with pytest.MonkeyPatch.context() as patch, Watch():
        patch.setattr(meshnet, "BLOCK_VOXELS", 2000)
        network.label_by_subgrids(image)
    assert len(set(made)) == 1


def test_labels_do_not_hang_on_threads():
    network, image = seeded(LAYOUTS[0]), torch.from_numpy(np.random.default_rng(0).random((16, 16, 16), np.float32))
    assert torch.equal(network.label_by_subgrids(image), network.label_by_subgrids(image.clone()))
