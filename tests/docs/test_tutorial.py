"""docs/tutorial.md is followed step by step: its files are written, its commands run, in one folder of a newcomer."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from functools import partial
from pathlib import Path

import nnunet_folder
import pytest
import torch
from page_blocks import DOCS, blocks, file_block
from pydicom import dcmread

from pacs_ai.models.package import MODEL

PAGE = DOCS / "tutorial.md"
NNUNET = Path("Dataset007_Abdomen") / "nnUNetTrainer__nnUNetPlans__3d_fullres"
BUNDLE = Path("spleen_ct_segmentation")


class Newcomer:
    """A folder with what the page has been followed for so far, and a shell in it."""

    def __init__(self, folder):
        self.folder = folder
        self.site = folder / "site"
        self.environment = dict(os.environ, COLUMNS="200", PYTHONPATH=str(self.site))
        self.environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])

    def write(self, name):
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(file_block(PAGE, name))
        return path

    def run(self, name):
        """Run a block's commands, as a shell would, and return what they printed."""
        (text,) = (block.text for block in blocks(PAGE) if (block.kind, block.name) == ("run", name))
        done = subprocess.run(
            ["sh", "-e", "-c", text],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )
        assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def install(self):
        """Do what `pip install -e` does, without a network: metadata with the entry point, and a path to the module."""
        project = self.write("ct-fat/pyproject.toml").parent
        self.write("ct-fat/ct_fat.py")
        stated = tomllib.loads((project / "pyproject.toml").read_text())["project"]
        metadata = self.site / f"{stated['name'].replace('-', '_')}-{stated['version']}.dist-info"
        metadata.mkdir(parents=True)
        (metadata / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {stated['name']}\nVersion: {stated['version']}\n"
        )
        lines = [f"[{group}]\n" + "".join(f"{name} = {where}\n" for name, where in offer.items())
                 for group, offer in stated["entry-points"].items()]  # fmt: skip
        (metadata / "entry_points.txt").write_text("\n".join(lines))
        shutil.copy(project / "ct_fat.py", self.site)

    def fill_in(self, model_toml, name):
        """Put the page's lines in place of those that are marked; the name may be corrected too."""
        text = model_toml.read_text()
        for key, value in tomllib.loads(file_block(PAGE, name)).items():
            text, count = re.subn(rf"^#\? {key} = .*$", f'{key} = "{value}"', text, flags=re.MULTILINE)
            assert count == 1, f"{key} is not marked in {model_toml}"
        model_toml.write_text(text)


@pytest.fixture(scope="module")
def newcomer(tmp_path_factory):
    """After the first two sections: the chest is there, and the forty lines are installed."""
    one = Newcomer(tmp_path_factory.mktemp("tutorial"))
    one.write("make_chest.py")
    one.run("chest")
    one.install()
    return one


def test_every_command_of_the_page_is_run_here():
    tested = Path(__file__).read_text()
    named = [block.name for block in blocks(PAGE) if block.kind == "run"]
    assert [name for name in named if f'run("{name}")' not in tested and name != "install"] == []


def test_forty_lines_are_about_forty():
    code = [line for line in file_block(PAGE, "ct-fat/ct_fat.py").splitlines() if line.strip()]
    assert len(code) <= 45


def test_forty_lines_are_checked_and_run_on_a_folder(newcomer):
    newcomer.run("check")
    shown = newcomer.run("infer")
    assert "Fat" in shown
    kinds = {str(dcmread(path).Modality) for path in (newcomer.folder / "result").glob("*.dcm")}
    assert {"SEG", "SR"} <= kinds
    assert (newcomer.folder / "result" / "montage.png").stat().st_size > 10_000


def test_forty_lines_go_through_a_node(newcomer):
    shown = newcomer.run("demo")
    assert "the pipeline's, every one" in shown
    assert "Fat" in shown
    assert (newcomer.folder / "shown" / "montage.png").stat().st_size > 10_000
    assert any(path.name.startswith("SEG") for path in (newcomer.folder / "shown" / "pacs").iterdir())


def test_an_nnunet_folder(newcomer):
    folder = newcomer.folder / NNUNET
    coarse = nnunet_folder.plans(spacing=[8.0, 8.0, 8.0], patch_size=[32, 48, 48])
    nnunet_folder.write(folder, content={**coarse, "dataset_name": "Dataset007_Abdomen"})
    (folder / MODEL).unlink()
    assert "#?" not in newcomer.run("nnunet-new")
    newcomer.fill_in(folder / MODEL, "nnunet.toml")
    assert "#?" not in (folder / MODEL).read_text().split("\n", 3)[3], "nothing else is left to be filled in"
    shown = newcomer.run("nnunet-install")
    assert "Outlines liver and spleen in CT" in " ".join(shown.split())
    assert (newcomer.folder / "result-abdomen" / "montage.png").exists()
    newcomer.write("pacs-ai.toml")
    newcomer.run("config")


def bring_bundle(newcomer, shared_bundles):
    """Copy the published configuration beside seeded weights: the bundle's own network."""
    folder = newcomer.folder / BUNDLE
    if folder.is_dir():
        return folder
    shutil.copytree(shared_bundles / BUNDLE, folder, copy_function=shutil.copyfile)
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o755)
    from monai.networks.nets import UNet

    (folder / "models").mkdir()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        make = partial(UNet, spatial_dims=3, in_channels=1, out_channels=2, channels=(16, 32, 64, 128, 256))
        torch.save(make(strides=(2, 2, 2, 2), num_res_units=2, norm="batch").state_dict(), folder / "models/model.pt")
    return folder


def test_a_monai_bundle_becomes_a_package(newcomer, shared_bundles):
    folder = bring_bundle(newcomer, shared_bundles)
    newcomer.run("bundle-convert")
    newcomer.run("bundle-new")
    newcomer.fill_in(folder / MODEL, "bundle.toml")
    shown = newcomer.run("bundle-install")
    assert "Spleen" in shown


@pytest.mark.nightly
def test_a_monai_bundle_runs(newcomer, shared_bundles):
    if not (newcomer.folder / "pacs-ai-data" / "models" / "spleen").is_dir():
        test_a_monai_bundle_becomes_a_package(newcomer, shared_bundles)
    newcomer.run("bundle-infer")
    assert list((newcomer.folder / "result-spleen").glob("*.dcm"))
