"""Bundles of MONAI's model zoo, with seeded weights, give what MONAI's own run of them gives, voxel for voxel."""

from __future__ import annotations

import json
import multiprocessing
import shutil
from concurrent.futures import ProcessPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import pytest

from pacs_ai.errors import PipelineFault
from pacs_ai.models.anatomy import find
from pacs_ai.models.bundle import BundleSpec, MonaiBundle
from pacs_ai.models.digest import digests
from pacs_ai.models.grid import ras_affine
from pacs_ai.models.runtimes.monai_bundle import MonaiBundlePackage
from pacs_ai.pipeline import Card, Clearance, Findings, Volume
from pacs_ai.testing.zoo import packaged

if TYPE_CHECKING:
    from pathlib import Path

WITH_A_CARD = {
    "brats_mri_segmentation",
    "pancreas_ct_dints_segmentation",
    "spleen_ct_segmentation",
    "spleen_deepedit_annotation",
    "wholeBody_ct_segmentation",
}
BRATS_LABELS = {1: find("tumor core"), 2: find("edema"), 4: find("enhancing tumor")}


def installed(bundle: Path, tmp_path: Path, seed: int) -> Path:
    """Copy a bundle and give it seeded weights for its own network, as a plain state dict."""
    import torch
    from monai.bundle import ConfigParser

    folder = tmp_path / bundle.name
    shutil.copytree(bundle, folder)
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    network_def = json.loads((folder / "configs/inference.json").read_text())["network_def"]
    torch.manual_seed(seed)
    network = ConfigParser(network_def).get_parsed_content("")
    (folder / "models").mkdir()
    torch.save(network.state_dict(), folder / "models/model.pt")
    return folder


def written(volume: Volume, path: Path) -> Path:
    """Write a volume as NIfTI, axes column, row, slice, affine to RAS."""
    import nibabel

    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(volume.voxels.transpose(2, 1, 0).astype(np.float32), ras_affine(volume.affine))
    nibabel.save(image, path)
    return path


def monai_run(folder: Path, tmp_path: Path, volume: Volume, overrides: dict) -> np.ndarray:
    """Run a bundle by `monai.bundle.run` on the NIfTI, evaluator, loaders, handlers and all; read what it saved."""
    import monai.bundle
    import nibabel

    out = tmp_path / "monai-out"
    override = tmp_path / "override.json"
    paths = {"bundle_root": str(folder), "output_dir": str(out)}
    override.write_text(json.dumps({**paths, "dataloader#num_workers": 0, **overrides}))
    monai.bundle.run("run", "initialize", config_file=[str(folder / "configs/inference.json"), str(override)])
    (path,) = out.rglob("*.nii.gz")
    image = nibabel.load(path)
    voxels = np.squeeze(np.asarray(image.dataobj))
    turn = nibabel.orientations.ornt_transform(
        nibabel.io_orientation(image.affine), nibabel.io_orientation(ras_affine(volume.affine))
    )
    voxels = nibabel.orientations.apply_orientation(voxels, turn)
    assert voxels.shape == volume.voxels.shape[::-1]
    return np.rint(voxels).astype(np.uint8).transpose(2, 1, 0)


def declared(folder: Path, tmp_path: Path, **package) -> MonaiBundlePackage:
    """Make a package of a bundle with weights, which are brought into safetensors, and prepare it."""
    import torch
    from safetensors.torch import save

    (weights,) = (folder / "models").glob("*.pt")
    state = torch.load(weights, weights_only=True)
    files = {f"models/{weights.stem}.safetensors": save(state)}
    settings = {"overrides": package.pop("overrides", {})}
    made = MonaiBundlePackage(packaged(folder, tmp_path / "declared", settings, files=files, **package))
    made.prepare("cpu")
    return made


def labels_toml(*values: int) -> str:
    """Write labels whose names do not matter."""
    return "\n".join(
        f'[labels.{n}]\nname = "{n}"\ncategory = ["1", "99X", "x"]\ntype = ["1", "99X", "x"]' for n in values
    )


def label_map(findings: Findings, shape: tuple[int, ...]) -> np.ndarray:
    combined = np.zeros(shape, np.uint8)
    for segment in findings.segments:
        assert segment.voxels.shape == shape
        combined[segment.mask] = segment.number
    return combined


def agreement(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.mean(ours == theirs))


@pytest.fixture(scope="module")
def elsewhere():
    """Run a function in a process of its own, which this test session's warnings and imports do not reach."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield lambda function, *args: pool.submit(function, *args).result(timeout=280)


@pytest.fixture(scope="module")
def real_ct(shared_data):
    """A corner of a real abdominal CT at 3 mm, (20, 60, 60), as DICOM orders it: slices up, rows to the back."""
    return _real(shared_data, "ct_abdomen_nifti_totalseg/example_ct_sm.nii.gz", "CT", np.int16)


@pytest.fixture(scope="module")
def real_mr(shared_data):
    """A corner of a real MR at 3 mm, (20, 60, 60)."""
    return _real(shared_data, "ct_abdomen_nifti_totalseg/example_mr_sm.nii.gz", "MR", np.float32)


def _real(shared_data: Path, name: str, modality: str, dtype: type) -> Volume:
    import nibabel

    image = nibabel.load(shared_data / name)
    turn = nibabel.orientations.ornt_transform(
        nibabel.io_orientation(image.affine), nibabel.orientations.axcodes2ornt("LPS")
    )
    voxels = nibabel.orientations.apply_orientation(np.asarray(image.dataobj), turn)
    affine = image.affine @ nibabel.orientations.inv_ornt_aff(turn, image.shape)
    start = (20, 15, 0)
    affine[:3, 3] = (affine @ [*start, 1])[:3]
    part = voxels[20:80, 15:75, :20].transpose(2, 1, 0)
    return Volume(np.ascontiguousarray(part).astype(dtype), ras_affine(affine), modality)


def test_spleen_on_a_real_ct(shared_bundles, tmp_path, elsewhere, real_ct):
    folder = installed(shared_bundles / "spleen_ct_segmentation", tmp_path, seed=3)
    pipeline = MonaiBundle(BundleSpec(folder, digests(folder)))
    pipeline.prepare("cpu")
    findings = pipeline.run({"image": real_ct})
    (segment,) = findings.segments
    assert segment.label == "spleen"
    assert pipeline.card.label("spleen").type.value == "78961009"
    written(real_ct, tmp_path / "in/imagesTs/ct.nii.gz")
    theirs = elsewhere(monai_run, folder, tmp_path, real_ct, {"dataset_dir": str(tmp_path / "in")})
    assert 0.01 < theirs.mean() < 0.99, "a trivial result would prove nothing"
    assert agreement(label_map(findings, real_ct.voxels.shape), theirs) >= 0.999
    found = declared(folder, tmp_path).run({"image": real_ct})
    assert agreement(label_map(found, real_ct.voxels.shape), theirs) == 1.0


@pytest.mark.parametrize("highres", [False, pytest.param(True, marks=pytest.mark.nightly)])
def test_whole_body_on_a_real_ct(shared_bundles, tmp_path, elsewhere, real_ct, highres):
    folder = installed(shared_bundles / "wholeBody_ct_segmentation", tmp_path, seed=3)
    if not highres:
        (folder / "models/model.pt").rename(folder / "models/model_lowres.pt")
    volume = Volume(np.ascontiguousarray(real_ct.voxels[:, :32, :30]), real_ct.affine, "CT")
    overrides = {"displayable_configs#highres": highres, "inferer#roi_size": [64, 64, 64]}
    pipeline = MonaiBundle(BundleSpec(folder, digests(folder), overrides=overrides))
    assert len(pipeline.card.labels) == 104
    pipeline.prepare("cpu")
    findings = pipeline.run({"image": volume})
    assert len(findings.segments) >= 5
    assert len({id(segment.voxels) for segment in findings.segments}) == 1, "all share one label map"
    written(volume, tmp_path / "in/imagesTs/ct.nii.gz")
    own = {"dataset_dir": str(tmp_path / "in"), **overrides}
    theirs = elsewhere(monai_run, folder, tmp_path, volume, own)
    assert agreement(label_map(findings, volume.voxels.shape), theirs) >= 0.999
    package = declared(folder, tmp_path, overrides=overrides, tables=labels_toml(*range(1, 105)))
    assert agreement(label_map(package.run({"image": volume}), volume.voxels.shape), theirs) == 1.0


def test_brats_on_four_series(shared_bundles, tmp_path, elsewhere, real_mr):
    folder = installed(shared_bundles / "brats_mri_segmentation", tmp_path, seed=3)
    volumes = {
        name: Volume(np.maximum(real_mr.voxels, 0) ** power, real_mr.affine, "MR")
        for name, power in {"t1c": 1.0, "t1": 0.5, "t2": 0.8, "flair": 0.3}.items()
    }
    overrides = {"inferer#roi_size": [64, 64, 32]}
    pipeline = MonaiBundle(BundleSpec(folder, digests(folder), labels=BRATS_LABELS, overrides=overrides))
    assert list(pipeline.card.inputs) == ["t1c", "t1", "t2", "flair"]
    pipeline.prepare("cpu")
    findings = pipeline.run(volumes)
    assert findings.grid == "t1c"
    assert {segment.number for segment in findings.segments} <= {1, 2, 4}
    paths = [str(written(volume, tmp_path / f"in/{name}.nii.gz")) for name, volume in volumes.items()]
    own = {"test_datalist": [{"image": paths}], **overrides}
    theirs = elsewhere(monai_run, folder, tmp_path, real_mr, own)
    assert len(np.unique(theirs)) >= 3
    assert agreement(label_map(findings, real_mr.voxels.shape), theirs) >= 0.999
    inputs = {name: {"modality": ["MR"]} for name in volumes}
    package = declared(folder, tmp_path, overrides=overrides, tables=labels_toml(1, 2, 4), inputs=inputs)
    assert agreement(label_map(package.run(volumes), real_mr.voxels.shape), theirs) == 1.0
    swapped = {**volumes, "t1c": volumes["flair"], "flair": volumes["t1c"]}
    other = label_map(pipeline.run(swapped), real_mr.voxels.shape)
    assert agreement(other, theirs) < 0.999, "channels are in their order"


@pytest.mark.nightly
def test_swin_unetr_on_a_real_ct(shared_bundles, tmp_path, elsewhere, real_ct):
    """Its configuration has an argument that MONAI took away since: MONAI itself runs it only without."""
    bundle = tmp_path / "bundle"
    shutil.copytree(shared_bundles / "swin_unetr_btcv_segmentation", bundle, copy_function=shutil.copyfile)
    for path in [bundle, *bundle.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    config = json.loads((bundle / "configs/inference.json").read_text())
    size = config["network_def"].pop("img_size")
    config["preprocessing"]["transforms"][0].pop("reader")  # ITK's, which is not installed; NIfTI needs none
    (bundle / "configs/inference.json").write_text(json.dumps(config))
    folder = installed(bundle, tmp_path / "without", seed=3)
    volume = Volume(np.ascontiguousarray(real_ct.voxels[:, :32, :30]), real_ct.affine, "CT")
    written(volume, tmp_path / "in/imagesTs/ct.nii.gz")
    overrides = {"inferer#roi_size": [64, 64, 64], "inferer#sw_batch_size": 1}
    theirs = elsewhere(monai_run, folder, tmp_path, volume, {"dataset_dir": str(tmp_path / "in"), **overrides})
    assert len(np.unique(theirs)) >= 3
    config["network_def"]["img_size"] = size
    (folder / "configs/inference.json").write_text(json.dumps(config))
    package = declared(folder, tmp_path, overrides=overrides, tables=labels_toml(*range(1, 14)))
    assert agreement(label_map(package.run({"image": volume}), volume.voxels.shape), theirs) == 1.0


def test_brats_labels_are_never_guessed_into_values(shared_bundles, tmp_path, real_mr):
    """Its channels 0, 1, 2 become the values 1, 2, 4: a guess from channel names would call the oedema a tumour."""
    folder = tmp_path / "brats_mri_segmentation"
    shutil.copytree(shared_bundles / folder.name, folder)
    overrides = {"inferer#roi_size": [32, 32, 16]}
    pipeline = MonaiBundle(BundleSpec(folder, digests(folder), overrides=overrides, seed_weights=3))
    pipeline.prepare("cpu")
    volume = Volume(np.ascontiguousarray(real_mr.voxels[:16, :32, :32]), real_mr.affine, "MR")
    with pytest.raises(PipelineFault, match="write the table of the label map's values"):
        pipeline.run(dict.fromkeys(pipeline.card.inputs, volume))


def test_every_bundle_of_the_zoo_has_a_card_or_a_clear_reason(shared_bundles):
    with_card = set()
    folders = sorted(path.parents[1] for path in shared_bundles.glob("*/configs/metadata.json"))
    assert len(folders) >= 30
    for folder in folders:
        spec = BundleSpec(folder, digests(folder))
        if folder.name not in WITH_A_CARD:
            with pytest.raises(PipelineFault, match=r"\[\[pipeline\]\]|Only segmentation bundles") as fault:
                MonaiBundle(spec)
            assert folder.name in str(fault.value)
        else:
            card = MonaiBundle(spec).card
            with_card.add(folder.name)
            assert isinstance(card, Card)
            assert card.clearance is Clearance.RESEARCH
            assert card.labels
            assert all(len(label.name) <= 64 for label in card.labels)
            assert len(card.model_digest) == 64
    assert with_card == WITH_A_CARD
