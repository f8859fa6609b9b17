"""Published MONAI bundles made into packages with random weights, to see what the declared loader takes."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from pacs_ai.models.package import MODEL, Package, read
from pacs_ai.pipeline import Frame, Frames, Volume

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

OTHER = '["85756007", "SCT", "Tissue"]'
STRUCTURE = '["123037004", "SCT", "Anatomical Structure"]'


def toml(value: Any) -> str:
    """Write a number, text, list or table as inline TOML."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(key)} = {toml(item)}" for key, item in value.items()) + " }"
    if isinstance(value, list | tuple):
        return f"[{', '.join(toml(item) for item in value)}]"
    return json.dumps(value)


def packaged(
    bundle: Path,
    folder: Path,
    settings: Mapping[str, Any],
    *,
    tables: str = "",
    inputs: Mapping[str, Mapping[str, Any]] | None = None,
    files: Mapping[str, bytes] | None = None,
) -> Package:
    """Copy a bundle's configurations into `folder` and write a model.toml beside them.

    Parameters
    ----------
    bundle
        Folder with ``configs``.
    folder
        To be made.
    settings
        Of the runtime ``monai-bundle``.
    tables
        TOML of labels or questions; "": one label, of value 1.
    inputs
        Name -> what it accepts; None: one CT, ``image``.
    files
        More files of the package, by name.
    """
    shutil.copytree(bundle / "configs", folder / "configs", copy_function=shutil.copyfile)
    for path in (folder, folder / "configs"):
        path.chmod(0o755)
    for name, content in (files or {}).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    table = {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    label = f'[labels.1]\nname = "Structure"\ncategory = {STRUCTURE}\ntype = {OTHER}\n'
    lines = [
        f"name = {json.dumps(bundle.name)}",
        'version = "1"\nmanufacturer = "a test"\ntitle = "Test"\nruntime = "monai-bundle"\nintended_use = "A test."',
        'procedure = ["363679005", "SCT", "Imaging procedure"]\nlicence = "Apache-2.0"\nsource = "MONAI model zoo"',
        f"settings = {toml(dict(settings))}",
        f"inputs = {toml({'image': {'modality': ['CT']}} if inputs is None else dict(inputs))}",
        "[files]",
        *(f"{json.dumps(name)} = {json.dumps(digest)}" for name, digest in table.items()),
        tables or label,
    ]
    (folder / MODEL).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return read(folder)


@dataclass(frozen=True)
class Case:
    """How one configuration of the zoo is tried on a small phantom.

    Parameters
    ----------
    given
        "volume" or "frames".
    inputs
        Names of its inputs.
    overrides
        Smaller windows, and what the zoo leaves to its user.
    classes
        Of a classifier; 0 for a segmentation.
    labels
        Values or channels of a segmentation that are labels.
    shape
        Of the phantom: slices, rows, columns, or images, rows, columns.
    colour
        Whether the images have three channels.
    """

    given: str = "volume"
    inputs: tuple[str, ...] = ("image",)
    overrides: Mapping[str, Any] = field(default_factory=dict)
    classes: int = 0
    labels: tuple[int, ...] = (1, 2)
    shape: tuple[int, int, int] = (16, 32, 32)
    colour: bool = False


SMALL: Mapping[str, Any] = {"inferer#roi_size": [32, 32, 32], "inferer#sw_batch_size": 1, "inferer#overlap": 0.1}
#: Of swin transformers, whose windows are of this size at least.
SWIN: Mapping[str, Any] = {"inferer#roi_size": [64, 64, 64], "inferer#sw_batch_size": 1, "inferer#overlap": 0.1}
BRATS = ("t1c", "t1", "t2", "flair")
#: Bundle or bundle/configuration -> how it is tried: every one that needs no code of its own.
CASES: Mapping[str, Case] = {
    "brats_mri_segmentation": Case(inputs=BRATS, overrides=SMALL, labels=(1, 2, 4)),
    "breast_density_classification": Case("frames", classes=4, shape=(1, 80, 60), colour=True),
    "classification_template": Case(
        "frames", classes=4, shape=(1, 64, 64), overrides={"postprocessing#transforms#2#keys": ["pred"]}
    ),
    "endoscopic_inbody_classification": Case("frames", classes=2, shape=(1, 80, 60), colour=True),
    "endoscopic_tool_segmentation": Case(
        "frames",
        overrides={"preprocessing#transforms#2#spatial_size": [96, 64]},
        labels=(1,),
        shape=(2, 50, 70),
        colour=True,
    ),
    "multi_organ_segmentation": Case(overrides=SMALL, shape=(8, 16, 16)),
    "pancreas_ct_dints_segmentation": Case(overrides=SMALL, shape=(8, 16, 16)),
    "pediatric_abdominal_ct_segmentation": Case(overrides={**SMALL, "inferer#roi_size": [64, 64, 32]}),
    "pediatric_abdominal_ct_segmentation/inference_segresnet.yaml": Case(overrides=SMALL),
    "pediatric_abdominal_ct_segmentation/inference_swinunetr.yaml": Case(overrides=SWIN, shape=(8, 24, 24)),
    "prostate_mri_anatomy": Case(
        overrides={**SMALL, "postprocessing#transforms#2#nearest_interp": True}, shape=(8, 16, 16)
    ),
    "segmentation_template": Case(labels=(1, 2, 3)),
    "spleen_ct_segmentation": Case(overrides=SMALL, labels=(1,)),
    "swin_unetr_btcv_segmentation": Case(overrides=SWIN, shape=(8, 24, 24)),
    "ventricular_short_axis_3label": Case(
        shape=(2, 64, 64), overrides={"inferer#roi_size": [64, 64]}, labels=(1, 2, 3)
    ),
    "wholeBody_ct_segmentation": Case(overrides=SMALL, labels=tuple(range(1, 105))),
}
#: Architecture table of the DiNTS bundles, which their authors publish with the weights: here a straight path.
SEARCHED = {"multi_organ_segmentation": "search_code_18590", "pancreas_ct_dints_segmentation": "search_code_18590"}


def configurations(bundle: Path) -> list[str]:
    """Return the names of a bundle's inference configurations, but for overlays for TensorRT, which are none alone."""
    return sorted(path.name for path in bundle.glob("configs/*inference*") if "trt" not in path.name)


def case_of(bundle: str, configuration: str) -> Case | None:
    """Return how a configuration is tried, None where it needs code of its own."""
    first = configuration in {"inference.json", "inference.yaml"}
    return CASES.get(f"{bundle}/{configuration}", CASES.get(bundle) if first else None)


def trial(bundle: Path, configuration: str, folder: Path, case: Case | None = None, **settings: Any) -> Package:
    """Make the package with random weights in which a configuration is tried."""
    case = case or Case()
    given = {"modality": ["CT"] if case.given == "volume" else ["XC"], "given": case.given}
    tables = [
        f'[[questions]]\nname = "class {n}"\nconcept = ["{n}", "99PACSAI", "Class {n}"]\n'
        f'positive = ["52101004", "SCT", "Present"]\nnegative = ["272519000", "SCT", "Absent"]\n'
        for n in range(case.classes)
    ]
    if not case.classes:
        tables = [f'[labels.{n}]\nname = "{n}"\ncategory = {STRUCTURE}\ntype = {OTHER}\n' for n in case.labels]
    return packaged(
        bundle,
        folder,
        {"seed_weights": 3, "config": f"configs/{configuration}", "overrides": dict(case.overrides), **settings},
        tables="\n".join(tables),
        inputs=dict.fromkeys(case.inputs, given),
        files=_searched(bundle.name),
    )


def _searched(bundle: str) -> dict[str, bytes]:
    """Return the architecture file of a DiNTS bundle: one path at each depth, every cell a plain convolution."""
    if bundle not in SEARCHED:
        return {}
    from safetensors.numpy import save

    active = np.zeros((12, 10), np.float32)
    active[:, [0, 3, 6, 9]] = 1  # straight on at each of four depths
    arrays: dict[str, np.ndarray[Any, Any]] = {
        "arch_code_a": active,
        "arch_code_c": np.ones((12, 10), np.int64),
        "node_a": np.ones((13, 4), np.float32),
    }
    return {f"models/{SEARCHED[bundle]}.safetensors": save(arrays)}


def phantom_for(case: Case, seed: int = 0) -> dict[str, Volume | Frames]:
    """Return noise with a bright block, -200 to 300, of the case's shape: as CT, MR or photographs."""
    noise = np.random.default_rng(seed)
    given: dict[str, Volume | Frames] = {}
    for name in case.inputs:
        voxels = noise.integers(-200, 100, case.shape).astype(np.int16)
        voxels[:, case.shape[1] // 4 : case.shape[1] // 2, case.shape[2] // 4 : case.shape[2] // 2] += 200
        affine = np.array([[0, 0, 1.5, -20], [0, 1.5, 0, -20], [3.0, 0, 0, 0], [0, 0, 0, 1.0]])
        if case.given == "volume":
            given[name] = Volume(voxels, affine, "CT")
        else:
            bright = np.clip((voxels + 200) // 2, 0, 255).astype(np.uint8)
            pixels = np.repeat(bright[..., None], 3, axis=-1) if case.colour else bright
            given[name] = Frames(tuple(Frame(image, None) for image in pixels), "XC")
    return given
