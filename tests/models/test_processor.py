"""A network compiled for the processor gives what PyTorch gives; where that cannot be known, PyTorch computes."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest
import torch

from pacs_ai.models.engine import processor
from pacs_ai.models.engine.processor import Graph, NotCompiled, compiled, noise, release
from pacs_ai.models.networks.meshnet import Layout, MeshNet


class Small(torch.nn.Module):
    """Convolution, normalisation and enlarging, in two or three dimensions."""

    def __init__(self, dimensions=3):
        super().__init__()
        torch.manual_seed(3)
        convolution, normalisation = {
            2: (torch.nn.Conv2d, torch.nn.InstanceNorm2d),
            3: (torch.nn.Conv3d, torch.nn.InstanceNorm3d),
        }[dimensions]
        self.layers = torch.nn.Sequential(
            convolution(2, 6, 3, padding=1, stride=2),
            normalisation(6, affine=True),
            torch.nn.LeakyReLU(inplace=True),
            torch.nn.Upsample(scale_factor=2),
            convolution(6, 4, 1),
        )

    def forward(self, x):
        return self.layers(x)


class Branches(torch.nn.Module):
    def forward(self, x):
        return x if x.mean() > 0 else -x


class Counts(torch.nn.Module):
    def forward(self, x):
        return x * len(torch.nonzero(x > 0))


class Several(torch.nn.Module):
    def forward(self, x):
        return [x, x]


class Sorts(torch.nn.Module):
    """An operation that no graph has."""

    def forward(self, x):
        return torch.linalg.svdvals(x)


@pytest.mark.parametrize("dimensions", [2, 3])
def test_windows_compiled_are_those_of_pytorch(dimensions):
    network = Small(dimensions).eval()
    ready = compiled(network)
    with torch.inference_mode():
        for edge in (16, 24):
            windows = torch.rand(3, 2, *(edge,) * dimensions) * 5 - 2
            found = ready(windows)
            assert torch.allclose(found, network(windows), atol=1e-5)
            assert torch.equal(found, ready(windows)), "the same windows, other numbers"
            assert torch.equal(found[1:2], ready(windows[1:2])), "a window hangs on its neighbours in the batch"
    assert [type(one).__name__ for one in ready._programs.values()] == ["Program"] * 2


@pytest.mark.parametrize(
    "norm",
    [torch.nn.InstanceNorm3d(8), torch.nn.InstanceNorm3d(8, affine=True), torch.nn.GroupNorm(2, 8)],
    ids=["instance", "instance, affine", "group"],
)
def test_normalisation_is_exact(norm):
    torch.manual_seed(1)
    network = torch.nn.Sequential(torch.nn.Conv3d(1, 8, 3, padding=1), norm).eval()
    windows = torch.randn(1, 1, 24, 64, 64)
    with torch.inference_mode():
        found = compiled(network)(windows)
        exact = network.double()(windows.double())
    assert (found - exact).abs().max() < 2e-5, "OpenVINO's own operation is off by 1e-4"


def test_an_output_is_not_written_again_by_the_next_call():
    ready = compiled(Small().eval())
    first = ready(torch.ones(1, 2, 16, 16, 16))
    kept = first.clone()
    ready(torch.zeros(1, 2, 16, 16, 16))
    assert torch.equal(first, kept)


def test_memory_is_given_back_and_taken_again():
    ready = compiled(Small().eval())
    windows = torch.rand(1, 2, 32, 32, 32)
    before = ready(windows)
    release([ready, Small()])
    assert torch.equal(ready(windows), before)


@pytest.mark.parametrize(
    ("network", "why"),
    [
        (Branches(), "depends on the values"),
        (Counts(), "depends on the values"),
        (Several(), "no single tensor"),
        (Sorts(), "svd"),
    ],
    ids=lambda one: type(one).__name__ if isinstance(one, torch.nn.Module) else "",
)
def test_what_cannot_be_compiled_stays_with_pytorch(network, why, caplog):
    caplog.set_level(logging.INFO)
    torch.manual_seed(5)
    windows = torch.rand(2, 1, 8, 8) - 0.6
    found = compiled(network)(windows)
    assert why in caplog.text
    assert "stays with PyTorch" in caplog.text
    expected = network(windows)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    with pytest.raises(NotCompiled, match=why):
        Graph(network, noise((1, 1, 8, 8)))


def test_a_graph_that_computes_something_else_is_not_used(monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    network, windows = Small().eval(), torch.rand(2, 2, 16, 16, 16)
    whole = processor.Program.__call__
    monkeypatch.setattr(processor.Program, "__call__", lambda self, values: whole(self, values) + 0.01)
    with torch.inference_mode():
        assert torch.equal(compiled(network)(windows), network(windows))
    assert "it differs by 1.0e-02" in caplog.text


def test_a_program_that_fails_at_once_is_not_used(monkeypatch, caplog):
    caplog.set_level(logging.INFO)

    def fail(self, values):
        raise RuntimeError("std::bad_alloc")

    monkeypatch.setattr(processor.Program, "__call__", fail)
    network, windows = Small().eval(), torch.rand(2, 2, 16, 16, 16)
    with torch.inference_mode():
        assert torch.equal(compiled(network)(windows), network(windows))
    assert "bad_alloc" in caplog.text


def test_without_openvino_the_network_is_left_as_it_is(monkeypatch):
    monkeypatch.setattr(processor.importlib.util, "find_spec", lambda name: None)
    network = Small().eval()
    assert compiled(network) is network
    assert not processor.is_installed()


def test_nothing_is_reported_to_the_makers():
    script = (
        "import sys, torch; from pacs_ai.infer.isolation import cut_off; cut_off()\n"
        "from pacs_ai.models.engine.processor import Compiled, compiled\n"
        "ready = compiled(torch.nn.Conv2d(1, 2, 3)); ready(torch.zeros(1, 1, 8, 8))\n"
        "assert isinstance(ready, Compiled) and all(ready._programs.values())\n"
        "print(sorted(name for name in sys.modules if name.startswith('openvino_telemetry') and sys.modules[name]))\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


@pytest.mark.parametrize(
    "layout",
    [Layout(5, 3, (1, 2, 4, 2, 1), "elu"), Layout(9, 2, (8, 4, 2, 1, 1), "gelu", normalised=True)],
    ids=["bias", "normalised"],
)
def test_meshnet_compiled_is_meshnet_by_subgrids(layout, monkeypatch):
    torch.manual_seed(7)
    network = MeshNet(layout).eval()
    image = torch.rand(16, 24, 32)
    graph = Graph(network, noise((1, 1, 16, 16, 16)))
    logits = graph.compiled((1, 1, *image.shape))(image[None, None])[0]
    assert torch.allclose(logits, network.logits(image), atol=1e-4)
    by_subgrids = network.label_by_subgrids(image)
    monkeypatch.setattr(network, "label_by_subgrids", lambda _: pytest.fail("not compiled"))
    labels = network.label(image)
    assert (labels.dtype, labels.shape) == (torch.uint8, image.shape)
    assert float((labels == by_subgrids).float().mean()) > 0.999


def test_meshnet_goes_by_subgrids_where_memory_is_short(monkeypatch):
    network = MeshNet(Layout(5, 3, (1, 2, 1), "relu")).eval()
    image = torch.rand(16, 16, 16)
    monkeypatch.setattr("pacs_ai.models.engine.memory.free_bytes", lambda device: 1000.0)
    monkeypatch.setattr(processor, "Graph", lambda *_: pytest.fail("compiled"))
    assert torch.equal(network.label(image), network.label_by_subgrids(image))
