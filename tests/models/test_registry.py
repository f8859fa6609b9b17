from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from importlib.metadata import EntryPoint

import pytest

from pacs_ai import config
from pacs_ai.errors import PipelineFault, UserError
from pacs_ai.models.bundle import MonaiBundle
from pacs_ai.models.digest import digests
from pacs_ai.models.registry import GROUP, Registry
from pacs_ai.pipeline import Card, Clearance, Code, Pipeline

GOOD = """
from pacs_ai.pipeline import Card, Code, Findings, Input

class Good:
    def __init__(self, threshold=0.5):
        self.threshold = threshold
        self.card = Card("good", "1", "us", "Good", {"image": Input(("CT",))}, (), Code("1", "99X", "x"), "test")

    def prepare(self, device):
        pass

    def run(self, inputs):
        return Findings()

class Pinned(Good):
    def __init__(self):
        super().__init__()
        import dataclasses
        self.card = dataclasses.replace(self.card, model_digest="ab" * 32)

class NoRun:
    card = None

class NoCard(Good):
    def __init__(self):
        super().__init__()
        self.card = {"name": "a dict"}

class RaisingCard:
    def prepare(self, device): ...
    def run(self, inputs): ...
    @property
    def card(self):
        raise KeyError("weights")
"""


@pytest.fixture(autouse=True)
def _no_zoo(tmp_path, monkeypatch):
    """Take away the packages that come with the node: here all pipelines are the test's own."""
    monkeypatch.setattr("pacs_ai.models.package.ZOO", tmp_path / "no-zoo")


@pytest.fixture
def plugins(tmp_path, monkeypatch):
    """Make entry points of a small plugin package, by "name=module:attribute"."""
    (tmp_path / "reg_good.py").write_text(GOOD)
    (tmp_path / "reg_raises.py").write_text("raise ZeroDivisionError('at import')")
    (tmp_path / "reg_exits.py").write_text("import sys; sys.exit('goodbye')")
    (tmp_path / "reg_syntax.py").write_text("def broken(:")
    (tmp_path / "reg_needs.py").write_text("import a_package_that_is_not_there")
    monkeypatch.syspath_prepend(str(tmp_path))

    def make(*offers: str) -> list[EntryPoint]:
        return [EntryPoint(*offer.split("=", 1), GROUP) for offer in offers]

    yield make
    for name in [name for name in sys.modules if name.startswith("reg_")]:
        del sys.modules[name]


def section(**keys) -> config.Pipeline:
    return config.Pipeline.model_validate(keys)


def test_a_plugin_is_found_and_built(plugins):
    registry = Registry(plugins=plugins("good=reg_good:Good"))
    assert registry.names() == ("good",)
    assert registry.broken == {}
    assert isinstance(registry.card("good"), Card)
    assert isinstance(registry.create("good"), Pipeline)


def test_broken_plugins_say_why_and_stop_no_other(plugins):
    registry = Registry(
        plugins=plugins(
            "good=reg_good:Good",
            "raises=reg_raises:X",
            "exits=reg_exits:X",
            "syntax=reg_syntax:X",
            "needs=reg_needs:X",
            "absent=reg_good:Absent",
            "norun=reg_good:NoRun",
            "nocard=reg_good:NoCard",
            "raisingcard=reg_good:RaisingCard",
        )
    )
    assert registry.names() == ("good",)
    reasons = {
        "raises": "ZeroDivisionError: at import",
        "exits": "SystemExit: goodbye",
        "syntax": "SyntaxError",
        "needs": "a_package_that_is_not_there",
        "absent": "Absent",
        "norun": "is no pipeline: it needs a card",
        "nocard": "is no pipeline: it needs a card",
        "raisingcard": "KeyError: 'weights'",
    }
    assert set(registry.broken) == set(reasons)
    for name, reason in reasons.items():
        assert reason in registry.broken[name]
        with pytest.raises(PipelineFault):
            registry.card(name)
        with pytest.raises(PipelineFault):
            registry.create(name)


def test_an_unknown_name_is_the_users_error(plugins):
    registry = Registry(plugins=plugins("good=reg_good:Good"))
    for call in (registry.card, registry.create, registry.model_digest, registry.settings_digest):
        with pytest.raises(UserError, match="no pipeline liver: installed or configured are good"):
            call("liver")


def test_two_packages_under_one_name_are_ambiguous(plugins):
    registry = Registry(plugins=plugins("good=reg_good:Good", "good=reg_good:Pinned", "fine=reg_good:Good"))
    assert registry.names() == ("fine",)
    assert "uninstall one" in registry.broken["good"]


def test_one_offer_seen_twice_is_one(plugins):
    assert Registry(plugins=plugins("good=reg_good:Good", "good=reg_good:Good")).names() == ("good",)


def test_a_section_gives_settings_and_another_name(plugins):
    sections = [
        section(name="good", settings={"threshold": 0.25}),
        section(name="strict", use="good", settings={"threshold": 0.75}),
        section(name="wrong", use="good", settings={"treshold": 0.75}),
        section(name="missing", use="not-installed"),
    ]
    registry = Registry(sections, plugins("good=reg_good:Good"))
    assert registry.names() == ("good", "strict")
    assert registry.create("good").threshold == 0.25
    assert registry.create("strict").threshold == 0.75
    assert registry.create("strict", {"threshold": 0.1}).threshold == 0.1
    assert "setting that it does not take" in registry.broken["wrong"]
    assert "there is no model package not-installed" in registry.broken["missing"]


def test_model_digest_is_the_cards_or_the_sources(plugins, tmp_path):
    registry = Registry(plugins=plugins("good=reg_good:Good", "pinned=reg_good:Pinned"))
    assert registry.model_digest("pinned") == "ab" * 32
    assert registry.model_digest("good") == hashlib.sha256((tmp_path / "reg_good.py").read_bytes()).hexdigest()


def test_settings_digest_changes_with_what_changes_results(plugins):
    def digest(**keys):
        return Registry([section(name="good", **keys)], plugins("good=reg_good:Good")).settings_digest("good")

    bare = Registry(plugins=plugins("good=reg_good:Good")).settings_digest("good")
    assert len(bare) == 64
    assert digest() == bare
    assert digest(timeout_seconds=5) == bare
    assert digest(settings={"a": 1, "b": 2}) == digest(settings={"b": 2, "a": 1}) != bare
    assert digest(settings={"a": 1}) != digest(settings={"a": 2})


def test_settings_digest_sees_the_order_of_inputs(tmp_path):
    def digest(names):
        keys = {"name": "b", "bundle": tmp_path, "inputs": {name: {"modality": ["MR"]} for name in names}}
        return Registry([section(**keys)], ()).settings_digest("b")

    assert digest(["t1", "t2"]) != digest(["t2", "t1"])


def test_a_configured_bundle_is_a_pipeline(tmp_path, plugins):
    (tmp_path / "b/configs").mkdir(parents=True)
    output = {"type": "image", "format": "segmentation", "channel_def": {"0": "background", "1": "spleen"}}
    image = {"modality": "CT", "channel_def": {"0": "image"}}
    metadata = {
        "name": "Spleen",
        "version": "2",
        "network_data_format": {"inputs": {"image": image}, "outputs": {"pred": output}},
    }
    (tmp_path / "b/configs/metadata.json").write_text(json.dumps(metadata))
    files = digests(tmp_path / "b")
    label = {"name": "milt", "type": ["78961009", "SCT", "Spleen"], "modifier": ["7771000", "SCT", "Left"]}
    sections = [
        section(name="plain", bundle=tmp_path / "b", files=files),
        section(name="said", bundle=tmp_path / "b", files=files, labels={1: label}, clearance="PRODUCT", title="T"),
        section(name="changed", bundle=tmp_path / "b", files={**files, "configs/metadata.json": "0" * 64}),
        section(name="good", bundle=tmp_path / "b", files=files),
    ]
    registry = Registry(sections, plugins("good=reg_good:Good"))
    assert registry.names() == ("plain", "said")
    assert isinstance(registry.create("plain"), MonaiBundle)
    assert registry.card("plain").labels[0].type.value == "78961009"
    said = registry.card("said")
    assert (said.labels[0].name, said.title, said.clearance) == ("milt", "T", Clearance.PRODUCT)
    assert said.labels[0].modifier == Code("7771000", "SCT", "Left")
    assert registry.model_digest("plain") == registry.model_digest("said") == registry.card("said").model_digest
    assert registry.settings_digest("plain") != registry.settings_digest("said")
    assert "differs from its configured digest" in registry.broken["changed"]
    assert "another name" in registry.broken["good"]


def test_settings_that_are_no_values_are_refused(plugins):
    registry = Registry([section(name="good", settings={"x": float("nan")})], plugins("good=reg_good:Good"))
    with pytest.raises(UserError, match="must be numbers"):
        registry.settings_digest("good")


def test_cards_of_the_installed_pipelines_need_no_torch():
    code = (
        "import sys; from pacs_ai.models.registry import Registry; r = Registry(); "
        "assert 'ct-lung' in r.names(), r.broken; r.card('ct-lung'); r.model_digest('ct-lung'); "
        "assert not {'torch', 'monai'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
