"""Prove that an nnU-Net results folder gives the same labels here as in nnU-Net itself.

    scripts/nnunet_agreement.py --python /path/to/venv/bin/python [--out FOLDER] [--iterations 60]

The interpreter is one in which ``nnunetv2`` from PyPI is installed (it need not hold this node, nor torchvision).
Synthetic chest CTs of `pacs_ai.testing` become two nnU-Net data sets: labels on nearly even voxels, and regions on
thick slices. nnU-Net plans and trains each for some iterations; then nnU-Net and this node predict a DICOM series of
another grid. Printed is the share of voxels with the same label, over all and where either says something else than
background.
"""

# mypy: disable-error-code="no-untyped-call"
from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import SimpleITK

from pacs_ai.infer.volume import load_volume
from pacs_ai.models.digest import sha256
from pacs_ai.models.package import MODEL, Package, read
from pacs_ai.models.runtimes.nnunet import NnUnet
from pacs_ai.testing import Phantom, phantom_truth, write_phantom

if TYPE_CHECKING:
    from collections.abc import Mapping

OWN = Path(__file__).with_name("nnunet_own.py")
#: Fewest voxels with the same label, as a share.
AGREE = 0.999
CASES = 5


@dataclass(frozen=True)
class Case:
    """One data set, how it is trained, and the series on which both predict."""

    number: int
    configuration: str
    folds: str
    labels: dict[str, Any]
    grid: tuple[int, int, int]
    tested: tuple[int, int, int]
    mirroring: bool = False
    regions_class_order: tuple[int, ...] = ()

    @property
    def dataset(self) -> str:
        """What nnU-Net calls the data set's folder."""
        return f"Dataset{self.number:03d}_Phantom"


LABELS = {"background": 0, "lung_right": 1, "lung_left": 2, "trachea": 3}
REGIONS = {"background": 0, "lung": [1, 2, 3], "lung_left": [2], "trachea": [3]}
CASES_TO_SHOW = (
    Case(901, "3d_fullres", "0,1", LABELS, (52, 76, 76), (40, 104, 104), mirroring=True),
    Case(901, "2d", "0", LABELS, (52, 76, 76), (40, 104, 104)),
    Case(902, "3d_fullres", "0", REGIONS, (16, 88, 88), (13, 104, 104), regions_class_order=(1, 2, 3)),
)


def environment(root: Path) -> dict[str, str]:
    """Return the environment of nnU-Net with its three folders below `root`."""
    folders = {"nnUNet_raw": "raw", "nnUNet_preprocessed": "preprocessed", "nnUNet_results": "results"}
    for folder in folders.values():
        (root / folder).mkdir(parents=True, exist_ok=True)
    return {**os.environ, **{key: str(root / folder) for key, folder in folders.items()}, "nnUNet_def_n_proc": "1"}


def write_dataset(case: Case, root: Path) -> None:
    """Write phantoms and their truth as an nnU-Net raw data set, each on a slightly other grid."""
    folder = root / "raw" / case.dataset
    if (folder / "dataset.json").exists():
        return
    for sub in ("imagesTr", "labelsTr"):
        (folder / sub).mkdir(parents=True, exist_ok=True)
    for number in range(CASES):
        slices, rows, columns = (size + number % 3 for size in case.grid)
        phantom = Phantom(slices, rows, columns, seed=number)
        noise = np.random.default_rng(number).normal(0, 8, (slices, rows, columns))
        truth = phantom_truth(phantom).labels
        write_nifti(phantom.volume().voxels + noise, phantom, folder / "imagesTr" / f"case_{number}_0000.nii.gz")
        write_nifti(np.where(truth <= 3, truth, 0), phantom, folder / "labelsTr" / f"case_{number}.nii.gz")
    content = {"channel_names": {"0": "CT"}, "labels": case.labels, "numTraining": CASES, "file_ending": ".nii.gz"}
    if case.regions_class_order:
        content["regions_class_order"] = list(case.regions_class_order)
    (folder / "dataset.json").write_text(json.dumps(content))


def write_nifti(voxels: Any, phantom: Phantom, path: Path) -> None:
    image = SimpleITK.GetImageFromArray(voxels.astype(np.int16))
    image.SetSpacing(phantom.spacing_mm[::-1])
    image.SetOrigin(phantom.affine[:3, 3].tolist())
    SimpleITK.WriteImage(image, str(path))


def results_folder(case: Case, python: str, root: Path, iterations: int) -> Path:
    """Return the folder that nnU-Net trained; trains it where it is not there yet."""
    folder = root / "results" / case.dataset / f"nnUNetTrainer__nnUNetPlans__{case.configuration}"
    if not all((folder / f"fold_{fold}" / "checkpoint_final.pth").exists() for fold in case.folds.split(",")):
        write_dataset(case, root)
        command = [python, str(OWN), "train", str(case.number), case.configuration, case.folds, str(iterations)]
        with (root / f"train_{case.number}_{case.configuration}.log").open("wb") as log:
            subprocess.run(command, env=environment(root), check=True, stdout=log, stderr=log)
    return folder


def predicted_by_nnunet(case: Case, python: str, folder: Path, dicom: Path, root: Path) -> tuple[Any, dict[str, Any]]:
    """Return nnU-Net's own labels (slices, rows, columns) and what it told of seconds and memory."""
    out = root / f"own_{case.number}_{case.configuration}.npy"
    env = {**environment(root), "MIRRORING": str(int(case.mirroring))}
    done = subprocess.run(
        [python, str(OWN), "predict", str(folder), str(dicom), str(out)],
        env=env,
        check=True,
        capture_output=True,
        text=True,
    )
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return np.load(out), told


def as_package(folder: Path, settings: dict[str, Any], to: Path) -> Package:
    """Copy what nnU-Net wrote and put a model.toml beside it, its labels coded by a stand-in."""
    dataset = json.loads((folder / "dataset.json").read_text())
    checkpoints = sorted(folder.glob("fold_*/checkpoint_final.pth"))
    files = {}
    for path in (folder / "plans.json", folder / "dataset.json", *checkpoints):
        name = path.relative_to(folder).as_posix()
        (to / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, to / name)
        files[name] = sha256(to / name)
    numbers = dataset.get("regions_class_order") or [value for value in dataset["labels"].values() if value]
    card = {
        "name": "agreement", "version": "1", "manufacturer": "nnU-Net", "title": "Agreement", "runtime": "nnunet",
        "intended_use": "To compare.", "procedure": ["25045-6", "LN", "CT unspecified body region"], "licence": "none",
        "source": "trained on phantoms", "inputs": {"image": {"modality": ["CT"]}},
        "labels": {str(one): {"name": f"Label {one}", "type": ["91723000", "SCT", "Anatomical structure"]}
                   for one in numbers},
        "settings": settings, "files": files,
    }  # fmt: skip
    (to / MODEL).write_text(toml(card))
    return read(to)


def toml(table: Mapping[str, Any], name: str = "") -> str:
    """Return a table as TOML; texts, numbers, flags, lists and tables."""
    plain = [f"{json.dumps(key)} = {json.dumps(value)}" for key, value in table.items() if not isinstance(value, dict)]
    inner = [
        toml(value, f"{name}.{json.dumps(key)}" if name else json.dumps(key))
        for key, value in table.items()
        if isinstance(value, dict)
    ]
    return "\n".join([*([f"[{name}]"] if name else []), *plain, *inner, ""])


def predicted_here(package: Package, dicom: Path) -> tuple[Any, dict[str, float]]:
    """Return the node's labels and the seconds of each step, its model prepared before."""
    pipeline = NnUnet(package)
    pipeline.prepare("cpu")
    start = time.perf_counter()
    volume = load_volume(sorted(dicom.iterdir())).volume
    loading = time.perf_counter() - start
    done = pipeline.predict({"image": volume})
    return done.labels, {"load": loading, **done.seconds}


def agreements(case: Case, python: str, root: Path, iterations: int) -> dict[str, float]:
    """Return the shares of voxels with the same label."""
    folder = results_folder(case, python, root, iterations)
    dicom = root / f"dicom_{'x'.join(map(str, case.tested))}"
    if not dicom.exists():
        write_phantom(dicom, Phantom(*case.tested, seed=99))
    own, _ = predicted_by_nnunet(case, python, folder, dicom, root)
    settings = {"mirroring": case.mirroring}
    here, _ = predicted_here(as_package(folder, settings, root / f"package_{case.number}_{case.configuration}"), dicom)
    foreground = (own > 0) | (here > 0)
    return {
        "all": float((own == here).mean()),
        "foreground": float((own == here)[foreground].mean()) if foreground.any() else 1.0,
        "foreground share": float(foreground.mean()),
        "labels": float(len(np.unique(own))),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", required=True, help="interpreter with nnunetv2")
    parser.add_argument("--out", type=Path, help="folder to keep data sets and trained models in")
    parser.add_argument("--iterations", type=int, default=60, help="of training, for each fold")
    parser.add_argument("--only", type=int, help="number of the case, from 0")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        root = arguments.out or Path(scratch)
        failed = False
        for number, case in enumerate(CASES_TO_SHOW):
            if arguments.only not in (None, number):
                continue
            found = agreements(case, arguments.python, root, arguments.iterations)
            said = ", ".join(f"{name} {value:.6g}" for name, value in found.items())
            print(f"{case.dataset} {case.configuration}, folds {case.folds}: {said}", flush=True)
            failed |= found["all"] < AGREE
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
