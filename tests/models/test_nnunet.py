"""nnU-Net folders: read by lists of what may be in them, and predicted as by the book."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import scipy.ndimage
import torch
from click.testing import CliRunner
from nnunet_folder import LABELS, REGIONS, architecture, plans, seeded, with_model_toml, write

from pacs_ai.cli import main
from pacs_ai.errors import PipelineFault, Refused, UserError
from pacs_ai.models import convert
from pacs_ai.models.package import read
from pacs_ai.models.registry import Registry
from pacs_ai.models.runtimes import nnunet_network, nnunet_plans
from pacs_ai.models.runtimes.nnunet import NnUnet
from pacs_ai.pipeline import Volume
from pacs_ai.testing import Phantom


def phantom() -> Volume:
    return Phantom(18, 32, 44, spacing=(5.0, 6.0, 5.5)).volume()


def prepared(package: Any) -> NnUnet:
    pipeline = package.build()
    assert isinstance(pipeline, NnUnet)
    pipeline.prepare("cpu")
    return pipeline


def by_the_book(volume: Volume, content: dict[str, Any], heads: int, seeds: tuple[int, ...] = (0,), flips: Any = ((),)):
    """Predict plainly: splines of the whole image, every window on its own, all logits on the source's grid."""
    stated = content["configurations"]["3d_fullres"]
    known = content["foreground_intensity_properties_per_channel"]["0"]
    image = np.clip(volume.voxels.astype(np.float32), known["percentile_00_5"], known["percentile_99_5"])
    image = (image - known["mean"]) / known["std"]
    size = [round(mm / to * n) for mm, to, n in zip(volume.spacing, stated["spacing"], image.shape, strict=True)]
    low, high = image.min(), image.max()
    image = scipy.ndimage.zoom(
        image.astype(float), np.divide(size, image.shape), order=3, mode="nearest", grid_mode=True
    ).clip(low, high)
    networks = [seeded(stated["architecture"], heads, seed).eval() for seed in seeds]
    window = stated["patch_size"]
    point = np.zeros(window)
    point[tuple(n // 2 for n in window)] = 1
    weight = scipy.ndimage.gaussian_filter(point, [n / 8 for n in window], mode="constant")
    weight = np.maximum(weight / weight.max(), 1e-8)
    total, weights = np.zeros((heads, *size)), np.zeros(size)
    for place in np.ndindex(*(int(np.ceil((n - w) / (w / 2))) + 1 for n, w in zip(size, window, strict=True))):
        at = []
        for index, n, w in zip(place, size, window, strict=True):
            count = int(np.ceil((n - w) / (w / 2))) + 1
            start = round((n - w) / (count - 1) * index) if count > 1 else 0
            at.append(slice(start, start + w))
        part = torch.from_numpy(image[tuple(at)][None, None].astype(np.float32))
        with torch.no_grad():
            outputs = [torch.flip(network(torch.flip(part, flip))[0], flip) for network in networks for flip in flips]
        total[(slice(None), *at)] += torch.stack(outputs).mean(0)[0].numpy() * weight
        weights[tuple(at)] += weight
    logits = total / weights
    factor = np.divide(volume.shape, size)
    return np.stack([scipy.ndimage.zoom(one, factor, order=1, mode="nearest", grid_mode=True) for one in logits])


def agreement(one: np.ndarray, other: np.ndarray) -> float:
    return float((one == other).mean())


def test_labels_are_those_of_plain_arithmetic(tmp_path):
    volume, content = phantom(), plans()
    package = write(tmp_path, content=content)
    labels = prepared(package).predict({"image": volume}).labels
    expected = by_the_book(volume, content, 3).argmax(0)
    assert len(np.unique(expected)) > 1
    assert labels.dtype == np.uint8
    assert agreement(labels, expected) >= 0.999


@pytest.mark.nightly
def test_regions_and_mirroring(tmp_path):
    volume, content = phantom(), plans()
    package = write(tmp_path, content=content, labels=REGIONS, settings="mirroring = true")
    labels = prepared(package).predict({"image": volume}).labels
    flips = [(), (3,), (4,), (3, 4)]
    logits = by_the_book(volume, content, 2, (0,), flips)
    expected = np.where(logits[1] > 0, 2, np.where(logits[0] > 0, 1, 0))
    assert len(np.unique(expected)) > 1
    assert agreement(labels, expected) >= 0.999


def test_thick_slices_are_resampled_plane_by_plane(tmp_path):
    volume = Phantom(9, 40, 44, spacing=(15.0, 4.0, 3.5)).volume()
    content = plans(spacing=[12.0, 3.0, 3.0], patch_size=[8, 24, 32], architecture={
        **architecture(), "arch_kwargs": {**architecture()["arch_kwargs"], "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2]]}
    })  # fmt: skip
    labels = prepared(write(tmp_path, content=content)).predict({"image": volume}).labels
    assert labels.shape == volume.shape


@pytest.mark.nightly
def test_a_2d_configuration_goes_through_the_planes(tmp_path):
    volume = phantom()
    package = write(tmp_path, configuration="2d")
    labels = prepared(package).predict({"image": volume}).labels
    one = Volume(volume.voxels[4:5], volume.affine, "CT")
    assert labels.shape == volume.shape
    assert agreement(prepared(package).predict({"image": one}).labels[0], labels[4]) >= 0.99  # clipped to other bounds


def test_transposed_and_reoriented_images_come_back(tmp_path):
    volume = phantom()
    content = plans(spacing=[5.0, 5.0, 5.0], patch_size=[16, 16, 16])
    found = []
    for number, changes in enumerate((
        {},
        {"transpose_forward": [2, 0, 1], "transpose_backward": [1, 2, 0]},
        {"image_reader_writer": "NibabelIOWithReorient"},
    )):  # fmt: skip
        pipeline = prepared(write(tmp_path / str(number), content={**content, **changes}))
        pipeline._runner.networks = [BrightIsLiver()]
        found.append(pipeline.predict({"image": volume}).labels)
    assert agreement(found[0] == 1, volume.voxels > 0) >= 0.9
    assert agreement(found[1], found[0]) >= 0.999
    assert agreement(found[2], found[0]) >= 0.999


class BrightIsLiver(torch.nn.Module):
    """Says liver above 0 HU, voxel by voxel: (0 + 300) / 400 after normalisation."""

    def forward(self, x):
        return torch.cat([0.75 - x, x - 0.75, torch.full_like(x, -9.0)], 1)


@pytest.mark.nightly
def test_converted_weights_give_the_same_bytes(tmp_path):
    volume = phantom()
    package = write(tmp_path / "a", folds=(0, 1))
    direct = prepared(package).predict({"image": volume}).labels
    first = convert.convert("nnunet", tmp_path / "a")
    assert first == convert.convert("nnunet", tmp_path / "a")
    folder = tmp_path / "b"
    folder.mkdir()
    for name in ("plans.json", "dataset.json"):
        (folder / name).write_bytes((tmp_path / "a" / name).read_bytes())
    (folder / "weights.safetensors").write_bytes(first)
    assert len(first) < (tmp_path / "a" / "fold_0" / "checkpoint_final.pth").stat().st_size * 2
    converted = prepared(with_model_toml(folder, LABELS))
    assert np.array_equal(converted.predict({"image": volume}).labels, direct)


def test_findings_are_coded_and_the_same_again(tmp_path):
    volume = phantom()
    pipeline = prepared(write(tmp_path / "a"))
    findings = pipeline.run({"image": volume})
    assert {segment.label for segment in findings.segments} <= {"liver", "spleen"}
    assert findings.segments[0].voxels.shape == volume.shape
    again = pipeline.run({"image": volume})
    assert again.segments[0].voxels.tobytes() == findings.segments[0].voxels.tobytes()
    pipeline.release()
    with pytest.raises(PipelineFault, match="before it was prepared"):
        pipeline.run({"image": volume})


def test_a_folder_as_nnunet_leaves_it_becomes_a_model_that_runs(tmp_path):
    """`models new`, what is left to be chosen, `models install`, and the labels are those of the folder."""
    volume, folder = phantom(), tmp_path / "Dataset007_Seeded" / "nnUNetTrainer__nnUNetPlans__3d_fullres"
    direct = prepared(write(folder, folds=(0, 1))).predict({"image": volume}).labels
    card = folder / "model.toml"
    card.unlink()
    place = tmp_path / "node.toml"
    place.write_text(f'[store]\nfolder = "{tmp_path}"\n')

    def run(*words):
        result = CliRunner().invoke(main, ["--config", str(place), "models", *map(str, words)])
        assert result.exit_code == 0, result.output
        return result.output

    assert "not stated in the folder, and to be filled in: version" in run("new", folder.parent)
    with pytest.raises(PipelineFault, match="version: Field required"):
        read(folder)
    card.write_text(card.read_text().replace("#? ", ""))  # every example of a value is one that a card may have
    assert "is installed" in run("install", "organs", "--from", folder)
    assert '"organs"' in run("list", "--json")
    made = Registry(models=tmp_path / "models").create("organs")
    made.prepare("cpu")
    findings = made.run({"image": volume})
    present = [(name, number) for name, number in LABELS.items() if number and (direct == number).any()]
    assert [(one.label, one.number) for one in findings.segments] == present != []
    assert np.array_equal(findings.segments[0].voxels, direct)
    assert [label.type.value for label in made.card.labels] == ["10200004", "78961009"]


def test_only_what_lies_near_the_foreground_is_computed(tmp_path):
    """Inside of the box the labels are those of the whole image, outside there are none."""
    voxels = np.full((18, 32, 44), -500, np.int16)
    voxels[2:16, 4:28, 6:40] = 100
    voxels[7:9, 12:20, 15:30] = 300
    volume = Volume(voxels, np.diag([5.0, 6.0, 5.5, 1.0]), "CT")
    found = {}
    for settings in ("", "foreground_above = 200.0\nforeground_margin_mm = 12.0"):
        pipeline = prepared(write(tmp_path, content=plans(spacing=list(volume.spacing)), settings=settings))
        pipeline._runner.networks = [BrightIsLiver()]
        found[settings] = pipeline.predict({"image": volume}).labels
    whole, cropped = found.values()
    assert np.array_equal(whole == 1, voxels > 0)
    box = (slice(5, 11), slice(10, 22), slice(13, 32))  # two voxels, of 5, 6 and 5.5 mm, around what lies above 200
    inside = np.zeros_like(whole)
    inside[box] = whole[box]
    assert np.array_equal(cropped, inside)
    assert (whole != inside).any()
    flat = Volume(np.minimum(voxels, 150), volume.affine, "CT")
    assert np.array_equal(pipeline.predict({"image": flat}).labels == 1, voxels > 0), "without any, all is computed"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"previous_stage": "3d_lowres"}, "cascade"),
        ({"normalization_schemes": ["MyNormalization"]}, "MyNormalization"),
        ({"resampling_fn_data": "evil"}, "resampling evil"),
        ({"architecture": {**architecture(), "network_class_name": "os.system"}}, "os.system"),
        ({"architecture": {**architecture(), "arch_kwargs": {"conv_op": "os.system"}}}, "os.system"),
        ({"architecture": {**architecture(), "arch_kwargs": {"path": "x"}}}, "'path'"),
        ({"architecture": {**architecture(), "arch_kwargs": {"n_stages": 10**9}}}, "no network has"),
        ({"architecture": {**architecture(), "arch_kwargs": {"nonlin_kwargs": {"inplace": "x"}}}}, "no number"),
        ({"inherits_from": "3d_fullres"}, "circle"),
        ({"patch_size": None}, "not as nnU-Net"),
    ],
)
def test_plans_with_anything_else_are_refused_by_name(tmp_path, changes, words):
    package = write(tmp_path)
    (tmp_path / "plans.json").write_text(json.dumps(plans(**changes)))
    package = with_model_toml(tmp_path, LABELS)
    with pytest.raises(PipelineFault, match=words):
        package.build().prepare("cpu")


def test_a_residual_encoder_and_plans_of_old_are_built():
    stated = architecture(name="ResidualEncoderUNet")
    found = nnunet_plans.understand(
        plans(architecture=stated), {"channel_names": {"0": "CT"}, "labels": LABELS}, "3d_fullres"
    )
    network = nnunet_network.build(found)
    nnunet_network.load(network, seeded(stated, 3, 0).state_dict())
    old = plans()
    full = old["configurations"]["3d_fullres"]
    full |= {
        "UNet_class_name": "PlainConvUNet", "UNet_base_num_features": 4, "unet_max_num_features": 8,
        "n_conv_per_stage_encoder": [1, 1, 1], "n_conv_per_stage_decoder": [1, 1],
        "conv_kernel_sizes": [[3, 3, 3]] * 3, "pool_op_kernel_sizes": [[1, 1, 1], [2, 2, 2], [2, 2, 2]],
    }  # fmt: skip
    del full["architecture"]
    found = nnunet_plans.understand(old, {"modality": {"0": "CT"}, "labels": LABELS}, "3d_fullres")
    nnunet_network.load(nnunet_network.build(found), seeded(architecture(), 3, 0).state_dict())
    with pytest.raises(PipelineFault, match="missing"):
        nnunet_network.load(nnunet_network.build(found), {})


class Payload:
    def __reduce__(self):
        return (print, ("executed",))


def test_a_checkpoint_that_needs_code_is_not_opened(tmp_path, capsys):
    write(tmp_path)
    torch.save({"network_weights": {}, "x": Payload()}, tmp_path / "fold_0" / "checkpoint_final.pth")
    with pytest.raises(PipelineFault, match="without running code"):
        with_model_toml(tmp_path, LABELS).build().prepare("cpu")
    with pytest.raises(PipelineFault, match="without running code"):
        convert.convert("nnunet", tmp_path)
    assert "executed" not in capsys.readouterr().out
    with pytest.raises(UserError, match="no option"):
        convert.convert("nnunet", tmp_path, {"x": 1})


def test_what_does_not_fit_is_said(tmp_path):
    package = write(tmp_path)
    (tmp_path / "plans.json").write_text("{}")
    with pytest.raises(PipelineFault, match=r"plans\.json"):
        package.build().prepare("cpu")
    package = write(tmp_path, settings='folds = ["7"]')
    with pytest.raises(PipelineFault, match="fold 7"):
        package.build().prepare("cpu")
    with pytest.raises(PipelineFault, match="no label for 2"):
        write(tmp_path, labels={**LABELS}, settings="") and with_model_toml(
            tmp_path, {"background": 0, "liver": 1}
        ).build().prepare("cpu")
    pipeline = prepared(write(tmp_path))
    with pytest.raises(Refused, match="missing"):
        pipeline.run({})
    volume = phantom()
    with pytest.raises(Refused, match="one value throughout"):
        pipeline.run({"image": Volume(np.zeros_like(volume.voxels), volume.affine, "CT")})
    broken = volume.voxels.astype(np.float32)
    broken[0, 0, 0] = np.nan
    with pytest.raises(Refused, match="no numbers"):
        pipeline.run({"image": Volume(broken, volume.affine, "CT")})
