"""What the declared loader of bundles understands, and that it executes nothing of what it does not."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from pacs_ai.errors import PipelineFault
from pacs_ai.models.runtimes.bundle_settings import BundleSettings
from pacs_ai.models.runtimes.declared_phrases import NotDeclared, Phrases
from pacs_ai.models.runtimes.declared_targets import TARGETS, found, make
from pacs_ai.models.runtimes.declared_tree import Tree, parsed

if TYPE_CHECKING:
    from pathlib import Path

ITEMS: dict[str, Any] = {"a": 3, "b": 5, "list": [1, 2, 3], "high": True, "table": {"x": 7}, "root": "/models"}


def value(text: str) -> Any:
    tree = Tree(ITEMS)
    return Phrases(tree.get_parsed_content).value(text)


@pytest.mark.parametrize(
    ("phrase", "expected"),
    [
        ("@a + @b * 2", 13),
        ("(@b - @a) // 2", 1),
        ("-@a ** 2", -9),
        ("@list + [4]", [1, 2, 3, 4]),
        ("[1.5] * 3 if @high else [3.0, 3.0, 3.0]", [1.5, 1.5, 1.5]),
        ("(@a, @b)", (3, 5)),
        ("{'x': @a}", {"x": 3}),
        ("@table['x']", 7),
        ("@table#x + 1", 8),
        ("@list[1:]", [2, 3]),
        ("@root + '/model.pt'", "/models/model.pt"),
        ("os.path.join(@root, 'models', 'model.pt')", "/models/models/model.pt"),
        ("not @high", False),
        ("1 < @a < 4 and @b == 5", True),
        ("@a in @list or False", True),
        ("list(range(@a))", [0, 1, 2]),
        ("len(@list)", 3),
        ("int(3) if @high else int(2)", 3),
        ("monai.utils.CommonKeys.IMAGE", "image"),
        ("torch.float32", torch.float32),
        ("numpy.float32", np.float32),
        ("torch.device('cpu')", torch.device("cpu")),
        ("None", None),
    ],
)
def test_phrases(phrase, expected):
    assert value(phrase) == expected


def test_a_lambda_computes_on_tensors():
    image = torch.tensor([[[0.0, 1.0]], [[1.0, 0.0]], [[0.0, 1.0]]])
    found = value("lambda x: torch.where(x[[2]] > 0, 4, torch.where(x[[0]] > 0, 1, 2))")(image)
    assert found.tolist() == [[[2, 4]]]
    assert value("lambda x: x[1:]")([1, 2]) == [2]


def called(item: Any) -> Any:
    """Call what is a lambda."""
    return item(1) if callable(item) else item


MALICIOUS = [
    "__import__('os').system('touch {mark}')",
    "import os",
    "open('{mark}', 'w')",
    "eval('1')",
    "exec('1')",
    "[c for c in ().__class__.__base__.__subclasses__()]",
    "().__class__",
    "@list.__class__",
    "torch.load('{mark}')",
    "torch.hub.load('a', 'b')",
    "torch.utils.cpp_extension.load('a', 'b')",
    "torch.jit.load('{mark}')",
    "os.system('touch {mark}')",
    "os.path.os.system('touch {mark}')",
    "subprocess.run(['touch', '{mark}'])",
    "numpy.save('{mark}', 1)",
    "monai.bundle.run('{mark}')",
    "monai.apps.utils.download_url('http://192.0.2.1/x', '{mark}')",
    "monai.transforms.SaveImage(output_dir='{mark}')",
    "monai.transforms.LoadImaged(keys='{mark}')",
    "setattr(torch, 'x', 1)",
    "getattr(torch, 'load')('{mark}')",
    "globals()",
    "(lambda: open('{mark}', 'w'))()",
    "lambda x: open('{mark}', 'w')",
    "'{mark}'.format(1)",
    "f'{mark}'",
    "[*@list]",
    "{**@table}",
    "max(*@list)",
    "9 ** 9 ** 9",
    "10 ** 10 ** 10",
    "[0] * 10 ** 9",
    "'%1000000000d' % 5",
    "list(range(10 ** 9))",
    "max(range(10 ** 9))",
    "0.5 in range(10 ** 9)",
    "round(1, -10 ** 9)",
    "'x' * 10000 + 'x'",
    "str([0])",
    "(x := 5)",
    "yield 1",
    "await x",
    "@nothing",
    "scripts.own()",
]


@pytest.mark.parametrize("phrase", MALICIOUS)
def test_nothing_else_is_executed(phrase, tmp_path):
    mark = tmp_path / "executed"
    text = phrase.replace("{mark}", str(mark))
    with pytest.raises((NotDeclared, PipelineFault)):
        called(value(text))
    assert not mark.exists()


@pytest.mark.parametrize(
    "item",
    [
        {"_target_": "os.system", "command": "x"},
        {"_target_": "builtins.eval", "source": "1"},
        {"_target_": "subprocess.Popen", "args": "x"},
        {"_target_": "torch.load", "f": "x"},
        {"_target_": "monai.data.Dataset", "data": []},
        {"_target_": "scripts.net.UNet"},
        {"_target_": "evil.UNet"},
        {"_target_": "monai.apps.utils.download_url", "url": "x"},
        {"_target_": "monai.transforms.SaveImaged", "keys": "x"},
        {"_target_": 5},
        {"_target_": "UNet", "_mode_": "callable"},
        {"_target_": "CheckpointLoader", "load_path": "x"},
    ],
)
def test_no_other_target_is_built(item):
    with pytest.raises(PipelineFault, match="was not understood"):
        Tree({"item": item}).get_parsed_content("item")


def test_a_refusal_names_the_phrase_its_place_and_what_to_do():
    tree = Tree({"network": {"_target_": "UNet", "channels": "$own(3)"}}, trust="Run it as code.")
    with pytest.raises(PipelineFault) as fault:
        tree.get_parsed_content("network")
    assert "`$own(3)` at network::channels" in str(fault.value)
    assert str(fault.value).endswith("Run it as code.")


def test_references_share_objects_and_disabled_ones_are_left_out():
    steps = [{"_target_": "Identity"}, {"_target_": "Identity", "_disabled_": "$@off"}]
    tree = Tree({"off": True, "steps": steps, "again": "@steps", "first": "@steps#0"})
    assert len(tree.get_parsed_content("steps")) == 1
    assert tree.get_parsed_content("again") is tree.get_parsed_content("steps")
    assert tree.get_parsed_content("first") is tree.get_parsed_content("steps::0")
    tree["steps::0"] = 4
    assert tree.get_parsed_content("again") == [4]


def test_copies_and_circles():
    tree = Tree({"size": [1, 2], "window": "%size", "circle": "@ring", "ring": "@circle"})
    assert tree.get("window") == [1, 2]
    with pytest.raises(PipelineFault, match="refers to itself"):
        tree.get_parsed_content("circle")
    for copied in ({"a": "%a"}, {"a": "%other.json#a"}):
        with pytest.raises(PipelineFault, match="no circle"):
            Tree(copied)


#: First item, and what makes a twice as large one of the one before: forty lines would fill any memory.
DOUBLING = {
    "sums of lists": ("$[0] * 1000", "$@{} + @{}"),
    "sums of texts": ("$'x' * 1000", "$@{} + @{}"),
    "products": ("$9 ** 64", "$@{} * @{}"),
    "lists of lists": ([0], ["@{}", "@{}"]),
    "tables of tables": ({"a": 0, "b": 0}, {"a": "@{}", "b": "@{}"}),
    "phrases of lists": ([0], "$[@{}, @{}]"),
    "copies": ([0] * 10, ["%{}", "%{}"]),
}


def doubled(item: Any, name: str) -> Any:
    if isinstance(item, list):
        return [doubled(one, name) for one in item]
    if isinstance(item, dict):
        return {key: doubled(one, name) for key, one in item.items()}
    return item.format(name, name)


@pytest.mark.parametrize("kind", DOUBLING)
def test_nothing_doubles_with_each_line(kind):
    first, next_one = DOUBLING[kind]
    lines = {"item0": first, **{f"item{n + 1}": doubled(next_one, f"item{n}") for n in range(40)}}
    with pytest.raises(PipelineFault, match=r"was not understood: .* most|add more than"):
        Tree(lines).get_parsed_content("item40")


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (b"[1]", "inference.json"),
        (b"{", "inference.json"),
        (b"\xff", "inference.json"),
        (b"[" * 100_000, "inference.json"),
        (b'{"a": ' + b"[" * 60 + b"]" * 60 + b"}", "inference.json"),
        (b" " * 1_000_001, "inference.json"),
        (b"a: &x [1]\nb: *x\n", "inference.yaml"),
        (b"a: !!python/object/apply:os.system ['x']\n", "inference.yaml"),
        (b"a: [\n", "inference.yaml"),
    ],
)
def test_CFG_04_what_is_no_configuration(content, name):
    with pytest.raises(PipelineFault):
        parsed(content, name)


def test_names_as_monai_knows_them():
    assert found("monai.transforms.ResizeD") == ("Resized", "monai.transforms")
    assert found("monai.transforms.spatial.dictionary.ResizeDict")[0] == "Resized"
    assert found("torch.nn.Conv3d")[1] == "torch.nn"
    for name in ("monai.networks.nets.Conv3d.UNet2", "torch.nn.UNet", "monai.Linear", "Linear2"):
        with pytest.raises(NotDeclared):
            found(name)
    assert "LoadImaged" not in TARGETS


def test_nothing_is_fetched_for_a_network(monkeypatch):
    def refused(*_: Any, **__: Any) -> None:
        raise AssertionError("fetched")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refused)
    monkeypatch.setattr(torch.hub, "download_url_to_file", refused)
    named = {"model_name": "efficientnet-b0", "spatial_dims": 2, "pretrained": True}
    assert make("EfficientNetBN", named).eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 1000)


def test_largest_parts():
    image = torch.tensor([[[1, 1, 0, 2, 0, 1], [0, 0, 0, 2, 0, 0], [2, 0, 0, 0, 0, 1]]])
    cut = make("KeepLargestConnectedComponentd", {"keys": "pred"})({"pred": image, "other": 1})
    assert cut["pred"].tolist() == [[[1, 1, 0, 2, 0, 0], [0, 0, 0, 2, 0, 0], [0, 0, 0, 0, 0, 0]]]
    only = make("KeepLargestConnectedComponentd", {"keys": ["pred"], "applied_labels": [1], "num_components": 2})
    assert int((only({"pred": image})["pred"] == 2).sum()) == 3
    together = make("KeepLargestConnectedComponentd", {"keys": "pred", "independent": False, "connectivity": 1})
    assert int((together({"pred": image})["pred"] > 0).sum()) == 2
    onehot = torch.stack([image[0] == 0, image[0] == 1, image[0] == 2]).float()
    kept = make("KeepLargestConnectedComponentd", {"keys": "pred", "applied_labels": [1, 2]})({"pred": onehot})["pred"]
    assert [int(channel.sum()) for channel in kept] == [int(onehot[0].sum()), 2, 2]
    assert int(image.sum()) == 10, "the input is not changed"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"wrong": 1}, "wrong: unknown key"),
        ({"activation": "relu"}, "activation: Input should be"),
        ({"overrides": 3}, "overrides: Input should be a valid dictionary"),
        ({"seed_weights": "x"}, "seed_weights: Input should be a valid integer"),
        ({"orientation": "XYZ"}, "orientation: String should match"),
        ({"memory_limit_gb": 0}, "memory_limit_gb: Input should be greater than 0"),
    ],
)
def test_settings_are_checked(settings, words):
    assert BundleSettings.of({"seed_weights": 1}, "x").seed_weights == 1
    with pytest.raises(PipelineFault, match=words):
        BundleSettings.of(settings, "x")


def test_weights_of_another_type_are_not_opened(shared_bundles, tmp_path: Path):
    from pacs_ai.models.runtimes.monai_bundle import MonaiBundlePackage
    from pacs_ai.testing.zoo import packaged

    bundle = shared_bundles / "segmentation_template"
    package = packaged(bundle, tmp_path / "x", {}, files={"models/model.pt": b"\x80\x04anything"})
    with pytest.raises(PipelineFault, match="never opened while serving"):
        MonaiBundlePackage(package).prepare("cpu")
    broken = packaged(bundle, tmp_path / "y", {}, files={"weights.safetensors": json.dumps({}).encode()})
    with pytest.raises(PipelineFault, match="no safetensors file"):
        MonaiBundlePackage(broken).prepare("cpu")


def test_the_metadata_say_how_many_channels_there_are(shared_bundles, tmp_path: Path):
    """By which the memory is estimated that a declared bundle will need."""
    from pacs_ai.models.runtimes.declared import configuration_of, spec_of
    from pacs_ai.testing.zoo import packaged

    made = packaged(shared_bundles / "wholeBody_ct_segmentation", tmp_path / "x", {})
    assert configuration_of(made, spec_of(made, BundleSettings()), "cpu").channels == 105


def test_a_container_s_limit_counts(monkeypatch, tmp_path: Path):
    """What the machine has free is not the worker's where its control group allows less."""
    from pacs_ai.errors import OutOfResources
    from pacs_ai.models.bundle_chain import Chain, Parts
    from pacs_ai.models.bundle_spec import BundleSpec
    from pacs_ai.models.engine import memory

    parts = Parts(None, None, None, None, ("image",), channel_first=False, mixed_precision=False, channels=5)
    chain = Chain(BundleSpec(tmp_path, {}), parts, torch.device("cpu"))
    chain._check_memory((10, 10, 10), (10, 10, 10))
    monkeypatch.setattr(memory, "_left_to_container", lambda: 30_000.0)
    with pytest.raises(OutOfResources, match="5 channels of this series"):
        chain._check_memory((10, 10, 10), (10, 10, 10))


#: What memory.stat of a control group holds beside the caches, some of it under a name that is nearly theirs.
STAT = "anon 600\nfile 350\nfile_mapped 9\ninactive_anon 600\nworkingset_refault_file 70\nslab_unreclaimable 8\n"


@pytest.mark.parametrize(
    ("most", "used", "caches", "left"),
    [
        ("1000", 950, "", 50),
        ("1000", 950, "inactive_file 200\nactive_file 100\nslab_reclaimable 30\n", 380),
        ("1000", 1000, "inactive_file 0\nactive_file 0\nslab_reclaimable 0\n", 0),
        ("1000", 1010, "", 0),
        ("1000", 300, "inactive_file 600\nactive_file 300\nslab_reclaimable 30\n", 1000),
        ("max", 950, "inactive_file 200\n", None),
    ],
    ids=["no cache", "files written", "full", "over", "counted late", "no limit"],
)
def test_what_the_kernel_gives_back_on_demand_is_left_to_a_container(monkeypatch, tmp_path, most, used, caches, left):
    from pacs_ai.models.engine import memory

    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    assert memory._left_to_container() is None
    (tmp_path / "memory.max").write_text(f"{most}\n")
    (tmp_path / "memory.current").write_text(f"{used}\n")
    (tmp_path / "memory.stat").write_text(STAT + caches)
    assert memory._left_to_container() == left
