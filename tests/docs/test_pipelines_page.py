"""docs/pipelines.md keeps its promises: its example is a pipeline, its tables load, and its bundles are the zoo's."""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess
import sys
import tomllib
from dataclasses import replace
from importlib.metadata import entry_points

import numpy as np
import pydicom
import pytest
from click.testing import CliRunner
from page_blocks import DOCS, blocks, file_block

from pacs_ai.cli import bundling, main
from pacs_ai.config import Config
from pacs_ai.dicom.attributes import Header
from pacs_ai.doctor.configuration import contradictions
from pacs_ai.infer.volume import load_volume
from pacs_ai.models.digest import digests
from pacs_ai.models.registry import GROUP, Registry
from pacs_ai.route.rules import SeriesFacts, bind
from pacs_ai.testing import Phantom, check_pipeline, write_phantom

PAGE = DOCS / "pipelines.md"
PHANTOM = Phantom(slices=70, rows=96, columns=96)


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The example package of the page, installed as pip would: module, metadata, entry point."""
    site = tmp_path_factory.mktemp("site")
    project = tomllib.loads(file_block(PAGE, "pyproject.toml"))
    name, version = project["project"]["name"], project["project"]["version"]
    for module in project["tool"]["setuptools"]["py-modules"]:
        (site / f"{module}.py").write_text(file_block(PAGE, f"{module}.py"))
    metadata = site / f"{name.replace('-', '_')}-{version}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    offers = project["project"]["entry-points"]
    lines = [f"[{group}]\n" + "\n".join(f"{k} = {v}" for k, v in offer.items()) for group, offer in offers.items()]
    (metadata / "entry_points.txt").write_text("\n".join(lines) + "\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(site)
        yield site
    sys.modules.pop("ct_bone", None)
    importlib.invalidate_caches()


@pytest.fixture(scope="module")
def series(tmp_path_factory):
    folder = tmp_path_factory.mktemp("series")
    return folder, write_phantom(folder, PHANTOM)


def configured(**changes):
    """The configuration that the page shows after its example."""
    (block,) = (b for b in blocks(PAGE) if b.language == "toml" and "bone-300" in b.text)
    return Config.model_validate({**tomllib.loads(block.text), **changes})


def test_the_example_is_about_forty_lines():
    code = [line for line in file_block(PAGE, "ct_bone.py").splitlines() if line.strip()]
    assert 35 <= len(code) <= 50


def test_the_node_finds_the_example(installed):
    assert "ct-bone" in {offer.name for offer in entry_points(group=GROUP)}
    registry = Registry(configured().pipeline)
    assert {"ct-bone", "bone-300"} <= set(registry.names())
    assert registry.create("ct-bone").threshold_hu == 200
    assert registry.create("bone-300").threshold_hu == 300
    assert registry.settings_digest("ct-bone") != registry.settings_digest("bone-300")
    assert contradictions(configured()) == []


def test_the_example_keeps_the_contract(installed, capsys):
    exec(compile(file_block(PAGE, "try_it.py"), "try_it.py", "exec"), {})
    volume, density = json.loads(capsys.readouterr().out)
    assert volume > 0
    assert density > 200


def test_the_example_refuses_what_is_no_ct(installed):
    from pacs_ai.errors import Refused

    pipeline = Registry().create("ct-bone")
    water = replace(PHANTOM.volume(), voxels=np.zeros((20, 32, 32), np.int16))
    with pytest.raises(Refused, match="no Hounsfield units"):
        check_pipeline(pipeline, {"image": water})


@pytest.fixture(scope="module")
def offline(installed, series, tmp_path_factory):
    folder, paths = series
    out = tmp_path_factory.mktemp("out")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(out)  # no pacs-ai.toml lies there
        answer = CliRunner().invoke(main, ["infer", "ct-bone", str(folder), "-o", str(out), "--device", "cpu"])
    assert answer.exit_code == 0, answer.output
    return out, load_volume(paths).volume


def test_the_example_writes_what_the_page_says(offline):
    out, volume = offline
    assert {path.name for path in out.iterdir()} == {
        "SEG.dcm", "SR.dcm", "text-report.dcm", "montage.png", "findings.json",
    }  # fmt: skip
    bone = volume.voxels > 200
    (segment,) = json.loads((out / "findings.json").read_text())["segments"]
    assert (segment["label"], segment["voxels"]) == ("Bone", int(bone.sum()))
    seg = pydicom.dcmread(out / "SEG.dcm")
    assert seg.SeriesDescription == "AI: Bone (not for clinical use)"
    assert int(np.count_nonzero(seg.pixel_array)) == int(bone.sum())


@pytest.mark.parametrize("kind", ["SEG", "SR"])
def test_the_example_makes_valid_objects(offline, kind):
    tool = shutil.which("dciodvfy")
    if tool is None:
        pytest.skip(
            "VALIDATOR MISSING: dciodvfy (dicom3tools) is not installed, so the example was not held against it"
        )
    path = offline[0] / f"{kind}.dcm"
    verdict = subprocess.run([tool, "-new", str(path)], capture_output=True, text=True, timeout=60, check=False)
    assert [line for line in (verdict.stdout + verdict.stderr).splitlines() if line.startswith("Error")] == []


def bundle_tables():
    return [(b.name, tomllib.loads(b.text)) for b in blocks(PAGE) if b.kind == "bundle"]


@pytest.mark.parametrize(("name", "table"), bundle_tables(), ids=lambda value: value if isinstance(value, str) else "")
def test_bundle_tables_are_what_the_command_prints(name, table, shared_bundles):
    printed = tomllib.loads(bundling.table(shared_bundles / name))["pipeline"][0]
    (shown,) = table["pipeline"]
    assert shown["name"] == printed["name"]
    assert list(shown["inputs"]) == list(printed["inputs"]), "the order is that of the channels"
    assert shown["inputs"] == printed["inputs"]
    for path, digest in shown["files"].items():
        assert path.startswith("models/") or printed["files"][path] == digest
    if name == "spleen_ct_segmentation":
        assert shown["labels"] == printed["labels"]


@pytest.mark.parametrize(("name", "table"), bundle_tables(), ids=lambda value: value if isinstance(value, str) else "")
def test_routes_fit_their_bundles(name, table, shared_bundles):
    folder = shared_bundles / name
    shown = {key: value for key, value in table["pipeline"][0].items() if key not in {"bundle", "files"}}
    section = {**shown, "bundle": str(folder), "files": digests(folder)}
    config = Config.model_validate({"pipeline": [section], "route": table["route"]})
    assert contradictions(config) == []


def test_the_route_tells_the_four_series_apart():
    (table,) = (table for name, table in bundle_tables() if name == "brats_mri_segmentation")
    config = Config.model_validate({"route": table["route"]})
    described = {"1.1": "AX T1", "1.2": "AX T1 post", "1.3": "AX T2", "1.4": "AX T2_FLAIR"}
    study = [
        SeriesFacts(
            Header(
                {
                    "SOPClassUID": "1.2.840.10008.5.1.4.1.1.4",
                    "SeriesInstanceUID": uid,
                    "Modality": "MR",
                    "SeriesDescription": text,
                    **({"ContrastBolusAgent": "yes"} if "post" in text else {}),
                }
            ),
            instances=30,
        )
        for uid, text in described.items()
    ]
    binding = bind(config.route[0].inputs, study)
    chosen = {name: described[facts.series_instance_uid] for name, facts in binding.chosen.items()}
    assert chosen == {"t1": "AX T1", "t1c": "AX T1 post", "t2": "AX T2", "flair": "AX T2_FLAIR"}
    missing = bind(config.route[0].inputs, study[:3]).missing
    assert missing["flair"].startswith("flair missing: ")
