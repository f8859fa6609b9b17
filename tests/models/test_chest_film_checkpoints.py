"""Seeded checkpoints with the names and shapes of the public ones, written out here independently of the network."""

from __future__ import annotations

import pytest
import torch

from pacs_ai.errors import PipelineFault, UserError
from pacs_ai.models.convert import convert
from pacs_ai.models.convert.chest_film import chexnet, name_of, torchxrayvision
from pacs_ai.models.networks.densenet import DenseNet121


def norm(name, width):
    yield f"{name}.weight", (width,)
    yield f"{name}.bias", (width,)
    yield f"{name}.running_mean", (width,)
    yield f"{name}.running_var", (width,)


def public(channels, dot=""):
    """Yield name and shape of every tensor of torchvision's densenet121 before its classifier; 364 of them have values.

    `dot` is what stood between "norm" and its number before version 0.4 of PyTorch.
    """
    yield "features.conv0.weight", (64, channels, 7, 7)
    yield from norm("features.norm0", 64)
    width = 64
    for block, layers in enumerate((6, 12, 24, 16), start=1):
        for layer in range(1, layers + 1):
            front = f"features.denseblock{block}.denselayer{layer}"
            yield from norm(f"{front}.norm{dot}1", width)
            yield f"{front}.conv{dot}1.weight", (128, width, 1, 1)
            yield from norm(f"{front}.norm{dot}2", 128)
            yield f"{front}.conv{dot}2.weight", (32, 128, 3, 3)
            width += 32
        if block < 4:
            yield from norm(f"features.transition{block}.norm", width)
            yield f"features.transition{block}.conv.weight", (width // 2, width, 1, 1)
            width //= 2
    yield from norm("features.norm5", width)


def seeded(names):
    dice = torch.Generator().manual_seed(3)
    return {name: _tensor(name, shape, dice) for name, shape in names}


def _tensor(name, shape, dice):
    drawn = torch.rand(shape, generator=dice)
    return drawn + 0.5 if name.endswith("running_var") else 0.1 * drawn - 0.05


def chexnet_names(dot=".", front="module.densenet121."):
    yield from ((front + name, shape) for name, shape in public(3, dot))
    yield f"{front}classifier.0.weight", (14, 1024)
    yield f"{front}classifier.0.bias", (14,)


def xrv_names():
    yield from public(1)
    yield "classifier.weight", (18, 1024)
    yield "classifier.bias", (18,)


@pytest.mark.parametrize(
    ("dot", "front"), [(".", "module.densenet121."), ("", "densenet121."), ("", "module.densenet121.")]
)
def test_chexnet_by_its_public_names(tmp_path, dot, front):
    tensors = seeded(chexnet_names(dot, front))
    torch.save({"epoch": 3, "state_dict": tensors, "best_loss": 0.1}, tmp_path / "checkpoint.pt")
    found = chexnet(tmp_path, {})
    network = DenseNet121(3, 14)
    lost = network.load_state_dict(found, strict=False)
    assert not lost.unexpected_keys
    assert all(name.endswith("num_batches_tracked") for name in lost.missing_keys)
    assert torch.equal(network.classifier.bias, tensors[f"{front}classifier.0.bias"])
    assert torch.equal(
        network.features.denseblock3.denselayer17.conv2.weight,
        tensors[f"{front}features.denseblock3.denselayer17.conv{dot}2.weight"],
    )


def test_torchxrayvision_by_its_public_names(tmp_path):
    tensors = seeded(xrv_names())
    torch.save({**tensors, "op_threshs": torch.rand(18)}, tmp_path / "checkpoint.pt")
    found = torchxrayvision(tmp_path, {})
    assert set(found) == set(tensors)
    network = DenseNet121(1, 18).eval()
    network.load_state_dict(found, strict=False)
    with torch.inference_mode():
        film = torch.randn((1, 1, 64, 64), generator=torch.Generator().manual_seed(1))
        by_maps = network.classifier(network.maps(film).mean(dim=(2, 3)))
        assert torch.equal(network(film), by_maps)


def test_the_reader_gives_the_same_bytes_again(tmp_path):
    torch.save(seeded(xrv_names()), tmp_path / "xrv.pt")
    assert convert("torchxrayvision", tmp_path, {"file": "xrv.pt"}) == convert(
        "torchxrayvision", tmp_path, {"file": "xrv.pt"}
    )


def test_another_network_is_refused_by_name_and_shape(tmp_path):
    torch.save(seeded(xrv_names()), tmp_path / "checkpoint.pt")
    with pytest.raises(PipelineFault, match=r"no checkpoint of CheXNet .*3 tensors have another shape"):
        chexnet(tmp_path, {})


def test_a_pickled_module_is_never_opened(tmp_path):
    """torchxrayvision publishes pickled modules: these stay closed, and the error says so."""
    torch.save(DenseNet121(1, 18), tmp_path / "checkpoint.pt")
    with pytest.raises(PipelineFault):
        torchxrayvision(tmp_path, {})


def test_an_unknown_option_is_refused(tmp_path):
    with pytest.raises(UserError, match="takes no option key"):
        convert("chexnet", tmp_path, {"key": "x"})


def test_names_that_need_no_change_stay():
    assert name_of("features.norm5.weight") == "features.norm5.weight"
    assert name_of("module.densenet121.features.denseblock1.denselayer2.norm.1.bias") == (
        "features.denseblock1.denselayer2.norm1.bias"
    )
