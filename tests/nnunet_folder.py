"""Results folders as nnU-Net v2 writes them, small and with seeded weights, for tests that have no nnU-Net."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet

from pacs_ai.models import package

if TYPE_CHECKING:
    from pathlib import Path

LABELS = {"background": 0, "liver": 1, "spleen": 2}
REGIONS = {"background": 0, "liver": [1, 2], "spleen": [2]}


def architecture(dimensions: int = 3, name: str = "PlainConvUNet") -> dict[str, Any]:
    blocks = "n_conv_per_stage" if name == "PlainConvUNet" else "n_blocks_per_stage"
    return {
        "network_class_name": f"dynamic_network_architectures.architectures.unet.{name}",
        "arch_kwargs": {
            "n_stages": 3,
            "features_per_stage": [4, 8, 8],
            "conv_op": f"torch.nn.modules.conv.Conv{dimensions}d",
            "kernel_sizes": [[3] * dimensions] * 3,
            "strides": [[1] * dimensions, [2] * dimensions, [2] * dimensions],
            blocks: [1, 1, 1],
            "n_conv_per_stage_decoder": [1, 1],
            "conv_bias": True,
            "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dimensions}d",
            "norm_op_kwargs": {"eps": 1e-05, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


def plans(**changes: Any) -> dict[str, Any]:
    """Return plans.json with a 3d_fullres and a 2d configuration; changes go into 3d_fullres."""
    resampling = "resample_data_or_seg_to_shape"
    full = {
        "spacing": [4.0, 5.0, 5.0],
        "patch_size": [16, 24, 32],
        "normalization_schemes": ["CTNormalization"],
        "use_mask_for_norm": [False],
        "resampling_fn_data": resampling,
        "resampling_fn_data_kwargs": {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None},
        "resampling_fn_probabilities": resampling,
        "resampling_fn_probabilities_kwargs": {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None},
        "architecture": architecture(),
        **changes,
    }
    plane = {
        "spacing": [3.0, 3.0],
        "patch_size": [24, 32],
        "architecture": architecture(2),
        "inherits_from": "3d_fullres",
    }
    return {
        "dataset_name": "Dataset007_Seeded",
        "plans_name": "nnUNetPlans",
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "foreground_intensity_properties_per_channel": {
            "0": {"mean": -300.0, "std": 400.0, "percentile_00_5": -1000.0, "percentile_99_5": 300.0}
        },
        "configurations": {"3d_fullres": full, "2d": plane},
    }


def write(
    folder: Path,
    *,
    content: dict[str, Any] | None = None,
    labels: dict[str, Any] = LABELS,
    configuration: str = "3d_fullres",
    folds: tuple[int, ...] = (0,),
    settings: str = "",
) -> package.Package:
    """Write a results folder and its model.toml; return the package."""
    content = content or plans()
    dataset: dict[str, Any] = {"channel_names": {"0": "CT"}, "labels": labels, "file_ending": ".nii.gz"}
    if any(isinstance(value, list) for value in labels.values()):
        dataset["regions_class_order"] = [1, 2]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "plans.json").write_text(json.dumps(content))
    (folder / "dataset.json").write_text(json.dumps(dataset))
    heads = len([name for name in labels if name != "background"]) + ("regions_class_order" not in dataset)
    for fold in folds:
        network = seeded(content["configurations"][configuration]["architecture"], heads, fold)
        (folder / f"fold_{fold}").mkdir(exist_ok=True)
        torch.save(checkpoint(network, configuration), folder / f"fold_{fold}" / "checkpoint_final.pth")
    return with_model_toml(folder, labels, settings)


def with_model_toml(folder: Path, labels: dict[str, Any], settings: str = "") -> package.Package:
    files = {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != package.MODEL
    }
    lines = [
        'name = "seeded"', 'version = "1"', 'manufacturer = "nobody"', 'title = "Seeded"', 'runtime = "nnunet"',
        'intended_use = "None: random weights."', 'procedure = ["25045-6", "LN", "CT unspecified body region"]',
        'licence = "CC0-1.0"', 'source = "seeded"', "[inputs.image]", 'modality = ["CT"]',
    ]  # fmt: skip
    for number, name in enumerate((name for name in labels if name != "background"), start=1):
        lines += [f"[labels.{number}]", f'name = "{name}"', 'type = ["10200004", "SCT", "Liver"]']
    lines += ["[settings]", settings, "[files]", *(f'"{name}" = "{digest}"' for name, digest in files.items())]
    (folder / package.MODEL).write_text("\n".join(lines))
    return package.read(folder)


def seeded(stated: dict[str, Any], heads: int, seed: int) -> torch.nn.Module:
    """Return a network with seeded weights; its kernels are positive, so its output is smooth and no toss-up."""
    name = stated["network_class_name"].rpartition(".")[2]
    arguments = dict(stated["arch_kwargs"])
    for key in ("conv_op", "norm_op", "nonlin"):
        arguments[key] = getattr(torch.nn, arguments[key].rpartition(".")[2])
    kind = {"PlainConvUNet": PlainConvUNet, "ResidualEncoderUNet": ResidualEncoderUNet}[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = kind(input_channels=1, num_classes=heads, deep_supervision=True, **arguments)
        for name, parameter in network.named_parameters():
            torch.nn.init.normal_(parameter)
            if parameter.ndim > 1 and "seg_layers" not in name:
                parameter.data.abs_()
    return network


def checkpoint(network: torch.nn.Module, configuration: str) -> dict[str, Any]:
    """Return what `nnUNetTrainer.save_checkpoint` stores, numpy's numbers included."""
    return {
        "network_weights": network.state_dict(),
        "optimizer_state": {"state": {}, "param_groups": [{"lr": 0.01, "params": [0, 1]}]},
        "grad_scaler_state": None,
        "logging": {
            "mean_fg_dice": [np.float64(0.5)],
            "ema_fg_dice": [np.float32(0.4)],
            "epoch_start_timestamps": [1.5],
        },
        "_best_ema": np.float64(0.5),
        "current_epoch": 1,
        "init_args": {"configuration": configuration, "fold": 0, "device": torch.device("cpu")},
        "trainer_name": "nnUNetTrainer",
        "inference_allowed_mirroring_axes": (1, 2) if configuration.startswith("3d") else (0, 1),
    }
