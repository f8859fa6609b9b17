"""Measure inference: our windows beside MONAI's, and our nnU-Net beside nnU-Net's own, in one run on one machine.

    scripts/bench.py infer windows
    scripts/bench.py infer nnunet --python /path/to/venv/bin/python [--classes 104] [--slices 40]
    scripts/bench.py infer nnunet --features 32 64 128 256 --slices 40
    scripts/bench.py infer nnunet --classes 104 --slices 400
    scripts/bench.py infer meshnet --size 176 224 192

`windows` runs one 3-D U-Net of real size over one image with the same window, overlap, weights and batch, by MONAI's
``sliding_window_inference`` and by this node, in turns; no crop. Where OpenVINO is installed, the network compiled for
the processor is measured as well; where the processor multiplies bfloat16 in hardware, or there is an NVIDIA GPU,
mixed precision is. `meshnet` labels one volume as the layers are written down, by sub-grids, and compiled.

`nnunet` writes a series of 512 x 512 slices of 0.7 mm as DICOM and a results folder with seeded weights on voxels of
1.5 mm, and a small network unless `--features` names another, since what is compared is everything around it. Its
classes are bands of intensity, which break up in the noise: a hard case for bringing labels back, where organs would be
an easy one. (Neighbouring bands
differ by less than half precision resolves, in which nnU-Net sums: this is no place to compare labels;
scripts/nnunet_agreement.py is.) Time runs from the DICOM files to the label map on the series' grid: reading,
preparing, the model, bringing the labels back; the model is loaded before. nnU-Net's own predictor is handed the array
that SimpleITK reads, so neither writes NIfTI. It is left out where no interpreter with ``nnunetv2`` is given. Each side
is a process of its own; memory is the peak of its resident set, libraries included. Beside the wall clock stands the
processor time, which other work on the machine hardly changes.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

OWN = Path(__file__).with_name("nnunet_own.py")
STEPS = ("load", "preprocess", "model", "export")
ROUNDS = 3
SMALL = [4, 4]


# -- windows, beside MONAI's


def network(classes: int, features: list[int], convolutions: int = 2) -> Any:
    """Return an nnU-Net of the given width with seeded weights; its classes are bands of a smoothed image."""
    import torch
    from dynamic_network_architectures.architectures.unet import PlainConvUNet  # type: ignore[import-untyped]

    torch.manual_seed(0)
    stages = len(features)
    found = PlainConvUNet(
        1, stages, features, torch.nn.Conv3d, 3, [1, *[2] * (stages - 1)], convolutions, classes, convolutions,
        conv_bias=True,
        norm_op=torch.nn.InstanceNorm3d, norm_op_kwargs={"eps": 1e-5, "affine": True}, nonlin=torch.nn.LeakyReLU,
        nonlin_kwargs={"inplace": True}, deep_supervision=False,
    )  # fmt: skip
    for name, parameter in found.requires_grad_(False).named_parameters():
        if parameter.ndim > 1 and "seg_layers" not in name:
            torch.nn.init.normal_(parameter).abs_()
    place = torch.linspace(-2, 2, classes)  # tangents of a parabola: every class is the largest somewhere
    for layer in found.decoder.seg_layers:
        layer.weight.data.zero_()[:, 0, 0, 0, 0] = 2 * place
        layer.bias.data = -(place**2)
    return found.eval()


def timed(call: Callable[[], Any]) -> tuple[Any, float, float]:
    """Return the result, wall seconds and processor seconds of a call."""
    wall, used = time.perf_counter(), time.process_time()
    found = call()
    return found, time.perf_counter() - wall, time.process_time() - used


def windows(size: int, roi: int, rounds: int) -> None:
    """Run one network over one image in turns, by MONAI's windows and by ours."""
    import torch
    from monai.inferers import sliding_window_inference

    from pacs_ai.models.engine import precision, processor
    from pacs_ai.models.engine.windows import predict

    where = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    plain = precision.arranged(network(3, [16, 32, 64, 128]), where)
    image = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 1, size, size, size)).astype(np.float32))
    image = image.to(where)

    def monai(batch: int) -> Any:
        with torch.inference_mode():
            return sliding_window_inference(image, (roi,) * 3, batch, plain, overlap=0.5, mode="gaussian")

    ways: dict[str, Callable[[], Any]] = {
        "MONAI, 4 windows at a time": lambda: monai(4),
        "MONAI, 1 window at a time": lambda: monai(1),
        "pacs_ai, float32": lambda: predict(image, plain, roi, 0.5, "gaussian"),
    }
    if where.type == "cpu" and processor.is_installed():
        ready = processor.compiled(copy.deepcopy(plain))
        ways["pacs_ai, compiled for the processor"] = lambda: predict(image, ready, roi, 0.5, "gaussian")
        ready(torch.zeros((1, 1, roi, roi, roi)))
    if where.type == "cuda" or precision.cpu_has_bf16():
        faster = precision.compiled(plain, where)
        ways["pacs_ai, mixed"] = lambda: predict(image, plain, roi, 0.5, "gaussian", precision="bf16")
        ways["pacs_ai, mixed and compiled"] = lambda: predict(image, faster, roi, 0.5, "gaussian", precision="bf16")
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    outputs: dict[str, Any] = {}
    for _ in range(rounds):
        for name, way in ways.items():
            outputs[name], wall, used = timed(way)
            spent[name].append((wall, used))
    table = Table(title=f"{size}^3 voxels, windows of {roi}^3, overlap 0.5, Gaussian, {where.type}, median of {rounds}")
    for heading in ("way", "wall s", "processor s", "greatest difference", "same label"):
        table.add_column(heading)
    expected = outputs["MONAI, 4 windows at a time"]
    for name, one in spent.items():
        wall, used = (statistics.median(column) for column in zip(*one, strict=True))
        apart = float((outputs[name] - expected).abs().max())
        same = float((outputs[name].argmax(1) == expected.argmax(1)).float().mean())
        table.add_row(name, f"{wall:.2f}", f"{used:.2f}", f"{apart:.1e}", f"{100 * same:.4f} %")
    Console(width=120).print(table)
    if "pacs_ai, mixed" not in ways:
        print("no mixed precision: this processor has no bfloat16 in hardware, and there is no NVIDIA GPU")


# -- nnU-Net, beside its own


def write_results_folder(folder: Path, classes: int, features: list[int]) -> Path:
    """Write a results folder with one fold of seeded weights."""
    import torch

    stages = len(features)
    convolutions = 1 if features == SMALL else 2

    resampling = {"is_seg": False, "order_z": 0, "force_separate_z": None}
    name = "resample_data_or_seg_to_shape"
    arguments = {
        "n_stages": stages, "features_per_stage": features, "conv_op": "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": [[3] * 3] * stages, "strides": [[1] * 3, *[[2] * 3] * (stages - 1)],
        "n_conv_per_stage": [convolutions] * stages,
        "n_conv_per_stage_decoder": [convolutions] * (stages - 1), "conv_bias": True,
        "norm_op_kwargs": {"eps": 1e-5, "affine": True}, "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True}, "dropout_op": None, "dropout_op_kwargs": None,
    }  # fmt: skip
    configuration = {
        "data_identifier": "x", "preprocessor_name": "DefaultPreprocessor", "batch_size": 2,
        "patch_size": [32, 128, 128], "spacing": [1.5, 1.5, 1.5], "normalization_schemes": ["CTNormalization"],
        "use_mask_for_norm": [False],
        **{f"resampling_fn_{what}": name for what in ("data", "seg", "probabilities")},
        "resampling_fn_data_kwargs": {**resampling, "order": 3},
        "resampling_fn_seg_kwargs": {**resampling, "is_seg": True, "order": 1},
        "resampling_fn_probabilities_kwargs": {**resampling, "order": 1},
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": arguments, "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
    }  # fmt: skip
    plans = {
        "dataset_name": "Dataset999_Bench", "plans_name": "nnUNetPlans", "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2], "transpose_backward": [0, 1, 2], "label_manager": "LabelManager",
        "experiment_planner_used": "ExperimentPlanner", "configurations": {"3d_fullres": configuration},
        "foreground_intensity_properties_per_channel": {
            "0": {"mean": -300.0, "std": 400.0, "percentile_00_5": -1000.0, "percentile_99_5": 300.0}
        },
    }  # fmt: skip
    labels = {"background": 0, **{f"structure {number}": number for number in range(1, classes)}}
    (folder / "fold_0").mkdir(parents=True, exist_ok=True)
    (folder / "plans.json").write_text(json.dumps(plans))
    dataset = {"channel_names": {"0": "CT"}, "labels": labels, "file_ending": ".nii.gz", "numTraining": 1}
    (folder / "dataset.json").write_text(json.dumps(dataset))
    content = {
        "network_weights": network(classes, features, convolutions).state_dict(), "trainer_name": "nnUNetTrainer",
        "init_args": {"configuration": "3d_fullres"}, "inference_allowed_mirroring_axes": (0, 1, 2),
    }  # fmt: skip
    torch.save(content, folder / "fold_0" / "checkpoint_final.pth")
    return folder


def nnunet(python: str, classes: int, slices: int, features: list[int], foreground: float | None) -> None:
    """Predict one series by nnU-Net and by this node, each in a process of its own."""
    from nnunet_agreement import as_package

    from pacs_ai.testing import Phantom, write_phantom

    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        dicom, folder = root / "dicom", write_results_folder(root / "results", classes, features)
        write_phantom(dicom, Phantom(slices, spacing=(1.0, 0.7, 0.7)))
        as_package(folder, {}, root / "package")
        sides = {"nnU-Net": [python, str(OWN), "predict", str(folder)]} if python else {}
        sides["pacs_ai"] = [sys.executable, __file__, "child", str(root / "package")]
        if foreground is not None:
            as_package(folder, {"foreground_above": foreground}, root / "cropped")
            sides["pacs_ai, cropped"] = [sys.executable, __file__, "child", str(root / "cropped")]
        told, found = {}, {}
        for name, command in sides.items():
            out = root / f"{name}.npy"
            environment = {**os.environ, "nnUNet_def_n_proc": str(len(os.sched_getaffinity(0)))}
            done = subprocess.run([*command, str(dicom), str(out)], capture_output=True, text=True, env=environment)  # noqa: PLW1510
            if done.returncode:
                print(f"{name} ended with {done.returncode}: {done.stderr[-500:]}")
                continue
            told[name], found[name] = json.loads(done.stdout.splitlines()[-1]), np.load(out)
        show(told, f"{classes} classes, {features} features, 512 x 512 x {slices}")
        for name, labels in found.items():
            print(f"{name}: {len(np.unique(labels[:: max(1, slices // 8)]))} different labels in every eighth part")
        first = next(iter(found.values()), None)
        for name, labels in list(found.items())[1:]:
            print(f"{name}: same label as the first in {100 * float((labels == first).mean()):.4f} % of voxels")


def show(told: dict[str, Any], title: str) -> None:
    table = Table(title=f"{title}: wall s (processor s)")
    for heading in ("", *STEPS, "all", "peak GB"):
        table.add_column(heading)
    for name, one in told.items():
        seconds, used = one["seconds"], one["cpu_seconds"]
        cells = [f"{seconds[step]:.1f} ({used[step]:.1f})" for step in STEPS]
        total = f"{sum(seconds.values()):.1f} ({sum(used.values()):.1f})"
        table.add_row(name, *cells, total, f"{one['peak_bytes'] / 1e9:.2f}")
    Console(width=120).print(table)


def child(package: Path, dicom: Path, out: Path) -> None:
    """Predict by this node and print seconds and the peak of the resident set."""
    from pacs_ai.infer.volume import load_volume
    from pacs_ai.models.package import read
    from pacs_ai.models.runtimes.nnunet import NnUnet

    pipeline = NnUnet(read(package))
    pipeline.prepare("cpu")
    loaded, wall, used = timed(lambda: load_volume(sorted(dicom.iterdir())))
    before = time.process_time()
    done = pipeline.predict({"image": loaded.volume})
    computed = time.process_time() - before
    np.save(out, done.labels)
    share = computed / max(sum(done.seconds.values()), 1e-9)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    seconds = {"load": wall, **done.seconds}
    cpu = {"load": used, **{step: share * value for step, value in done.seconds.items()}}
    print(json.dumps({"seconds": seconds, "cpu_seconds": cpu, "peak_bytes": peak}))


# -- MeshNet, as it is written down, by sub-grids, and compiled

MESHNET_WAYS = ("plain", "sub-grids", "compiled")


def meshnet(size: Sequence[int], ways: Sequence[str]) -> None:
    """Label one volume by a network like brain-tissue's, seeded weights, in each way; compiling is in the time."""
    import torch

    from pacs_ai.models.networks.meshnet import Layout, MeshNet

    layout = Layout(20, 3, (1, 2, 4, 8, 16, 8, 4, 2, 1), "elu")
    torch.manual_seed(0)
    network = MeshNet(layout).eval()
    image = torch.rand(*size)

    @torch.inference_mode()
    def plain() -> Any:
        return network(image[None, None])[0].argmax(0).to(torch.uint8)

    calls = {
        "plain": plain,
        "sub-grids": lambda: network.label_by_subgrids(image),
        "compiled": lambda: network.label(image),
    }
    table = Table(title=f"MeshNet, 9 layers of 20 channels, {' x '.join(map(str, size))} voxels")
    for heading in ("way", "wall s", "processor s", "same labels"):
        table.add_column(heading)
    first = None
    for way in ways:
        labels, wall, used = timed(calls[way])
        first = labels if first is None else first
        table.add_row(way, f"{wall:.1f}", f"{used:.1f}", f"{100 * float((labels == first).float().mean()):.4f} %")
    Console(width=120).print(table)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="what", required=True)
    one = commands.add_parser("windows")
    one.add_argument("--size", type=int, default=96)
    one.add_argument("--roi", type=int, default=64)
    one.add_argument("--rounds", type=int, default=ROUNDS)
    other = commands.add_parser("nnunet")
    other.add_argument("--python", default="", help="interpreter with nnunetv2; empty: this node alone")
    other.add_argument("--classes", type=int, default=2)
    other.add_argument("--slices", type=int, default=100)
    other.add_argument("--features", type=int, nargs="+", default=SMALL, help="of each stage of the network")
    other.add_argument("--foreground", type=float, help="once more, of what lies near voxels above this value only")
    head = commands.add_parser("meshnet")
    head.add_argument("--size", type=int, nargs=3, default=(128, 128, 128))
    head.add_argument("--ways", nargs="+", default=MESHNET_WAYS, choices=MESHNET_WAYS)
    last = commands.add_parser("child")
    for name in ("package", "dicom", "out"):
        last.add_argument(name, type=Path)
    chosen = parser.parse_args(arguments)
    if chosen.what == "windows":
        windows(chosen.size, chosen.roi, chosen.rounds)
    elif chosen.what == "nnunet":
        nnunet(chosen.python, chosen.classes, chosen.slices, chosen.features, chosen.foreground)
    elif chosen.what == "meshnet":
        meshnet(chosen.size, chosen.ways)
    else:
        child(chosen.package, chosen.dicom, chosen.out)


if __name__ == "__main__":
    main(sys.argv[1:])
