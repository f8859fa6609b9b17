"""What a folder that a researcher brings is, and what can be read from it about the model: nothing of it is executed.

Recognised are a MONAI bundle (``configs/metadata.json``), the results folder of an nnU-Net v2 (``plans.json`` beside
``dataset.json``), an ONNX file, and a safetensors file. What is not stated there stays unknown: it is never guessed,
but for the codes of structures whose names the tables of `pacs_ai.models.anatomy` know.
"""

from __future__ import annotations

import json
import re
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pacs_ai.errors import UserError
from pacs_ai.models import anatomy
from pacs_ai.models.bundle_metadata import METADATA, PROCEDURES, described, input_names, one_line, table
from pacs_ai.models.convert.formats import onnx_graph
from pacs_ai.models.digest import digests
from pacs_ai.models.package import MODEL

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from pacs_ai.pipeline import Code, Label

#: Longest JSON file that is read, bytes.
LONGEST = 64 << 20
#: Longest remark, characters.
_REMARK = 500


@dataclass
class Draft:
    """What is known of a model; "" and None where its folder does not say.

    Parameters
    ----------
    folder
        Where ``model.toml`` belongs.
    inputs
        Name -> Modality values, () where they are not stated; in the order of the image channels.
    labels
        Value or channel -> name as the model says it, and its coded label where that is known.
    remarks
        What whoever fills it in must know.
    """

    folder: Path
    runtime: str = ""
    name: str = ""
    version: str = ""
    manufacturer: str = ""
    title: str = ""
    intended_use: str = ""
    licence: str = ""
    source: str = ""
    training: str = ""
    description: str = ""
    inputs: dict[str, tuple[str, ...]] = field(default_factory=dict)
    labels: dict[int, tuple[str, Label | None]] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)

    @property
    def procedure(self) -> Code | None:
        """The procedure, where the first input's modality tells it."""
        first = next(iter(self.inputs.values()), ())
        return PROCEDURES.get(first[0]) if first else None


def recognise(folder: Path) -> Draft:
    """Return what the folder says of its model.

    Raises
    ------
    UserError
        It is none of those that are recognised, or its JSON is none.
    PipelineFault
        It holds links or devices.
    """
    draft = _recognised(folder.resolve())
    draft.name = draft.name[:64].rstrip("-") or name_of(draft.folder).lower()
    draft.remarks = [one_line(remark)[:_REMARK] for remark in draft.remarks]
    draft.files = {name: value for name, value in digests(draft.folder).items() if name != MODEL}
    return draft


def name_of(folder: Path) -> str:
    """Return the name of a folder as routes and commands can call it."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", folder.name).strip("-_.")[:64] or "model"


def _recognised(folder: Path) -> Draft:
    if folder.is_file():
        raise UserError(f"{folder} is a file: name the folder in which it lies, {folder.parent}")
    if (folder / METADATA).is_file():
        return bundle(folder)
    results = [path.parent for path in (folder / "plans.json", *sorted(folder.glob("*/plans.json"))) if path.is_file()]
    if results:
        return _nnunet(results[0], len(results))
    for suffix, read in ((".onnx", _onnx), (".safetensors", _safetensors)):
        found = sorted(path for path in folder.iterdir() if path.suffix == suffix and path.is_file())
        if len(found) > 1:
            raise UserError(f"{folder} has {len(found)} {suffix} files: keep one of them there")
        if found:
            return read(found[0])
    raise UserError(
        f"{folder} is nothing that is recognised: a MONAI bundle has {METADATA}, an nnU-Net's results plans.json "
        "beside dataset.json, else there is one .onnx or one .safetensors file. Checkpoints of other kinds: "
        "pacs-ai models convert, or a pipeline of your own (docs/pipelines.md)"
    )


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"{path.parent} has no {path.name}: copy it there as its authors published it")
    if path.stat().st_size > LONGEST:
        raise UserError(f"{path} is longer than {LONGEST} bytes")
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} is no JSON object")
    return found


def _text(found: Mapping[str, Any], *keys: str) -> str:
    """Return the first of the keys that holds a text or a list of texts, in one line."""
    for key in keys:
        value = found.get(key)
        if isinstance(value, list):
            value = "; ".join(str(one) for one in value)
        if isinstance(value, str | int | float) and (said := one_line(value)):
            return said
    return ""


def _labelled(names: Iterable[tuple[int, str]]) -> dict[int, tuple[str, Label | None]]:
    return {
        number: (name, anatomy.find(name, anatomy.palette(number)))
        for number, name in sorted((number, one_line(name)) for number, name in names)
        if name and name.lower() not in {"background", "ignore"}
    }


# -- a MONAI bundle


def read_metadata(folder: Path) -> dict[str, Any]:
    """Return the metadata of a MONAI bundle; errors as `bundle`."""
    if not (folder / METADATA).is_file():
        raise UserError(f"{folder} is no MONAI bundle: it has no {METADATA}")
    return _json(folder / METADATA)


def bundle(folder: Path) -> Draft:
    """Return what the metadata of a MONAI bundle say; `UserError` where it is none, or its metadata are no JSON."""
    metadata = read_metadata(folder)
    said = described(metadata)
    draft = Draft(
        folder,
        runtime="monai-bundle",
        version=_text(metadata, "version"),
        manufacturer=_text(metadata, "authors"),
        title=_text(metadata, "name", "task")[:40],
        intended_use=_text(metadata, "intended_use"),
        source=_text(metadata, "references", "copyright"),
        training=_text(metadata, "data_source"),
        description=_text(metadata, "description"),
        inputs=dict.fromkeys(said.inputs, (said.modality,) if said.modality else ()),
        labels=_labelled(said.channels) if said.segments else {},
    )
    if draft.labels:
        draft.remarks.append(
            "labels are numbered as the bundle numbers its channels: correct the numbers where its postprocessing "
            "writes others (BraTS: 1, 2, 4)"
        )
    if not any((folder / "models" / name).is_file() for name in ("model.pt", "model.safetensors")):
        draft.remarks.append("there are no weights in models/: put them there, then make this file anew")
    return draft


# -- the results of an nnU-Net


def _nnunet(folder: Path, several: int) -> Draft:
    plans, dataset = _json(folder / "plans.json"), _json(folder / "dataset.json")
    trained = _trained(folder)
    draft = Draft(
        folder,
        runtime="nnunet",
        name=re.sub(r"[^a-z0-9]+", "-", re.sub(r"^Dataset\d+_", "", _text(plans, "dataset_name")).lower()).strip("-"),
        version=_text(dataset, "release"),
        manufacturer=_text(dataset, "author", "authors"),
        title=_text(dataset, "name")[:40],
        licence=_text(dataset, "licence", "license"),
        source=_text(dataset, "reference"),
        training=_training(dataset),
    )
    draft.inputs = _nnunet_inputs(dataset)
    draft.labels = _labelled(_nnunet_labels(dataset))
    if any(isinstance(value, list) for value in table(dataset, "labels").values()):
        draft.remarks.append("it was trained on regions: labels are numbered as its label map is (regions_class_order)")
    if several > 1:
        draft.remarks.append(f"there are {several} trained configurations beside one another: this is of {folder.name}")
    if not trained:
        draft.remarks.append("there is no fold_*/checkpoint_final.pth: copy the trained folds there, then make it anew")
    if any(folder.glob("fold_*/validation")):
        draft.remarks.append("take fold_*/validation away before you make this file: every file is checked at start")
    return draft


def _trained(folder: Path) -> list[str]:
    return [path.parent.name for path in sorted(folder.glob("fold_*/checkpoint_final.pth"))]


def _training(dataset: Mapping[str, Any]) -> str:
    cases = dataset.get("numTraining")
    said = [_text(dataset, "description"), f"{cases} cases" if isinstance(cases, int) else ""]
    return "; ".join(one for one in said if one)


#: What nnU-Net's users call a channel -> Modality.
_CHANNELS = {"ct": "CT", "pet": "PT", "pt": "PT", "us": "US", "mr": "MR", "mri": "MR", "t1": "MR", "t2": "MR",
             "t1w": "MR", "t2w": "MR", "t1c": "MR", "t1ce": "MR", "t1gd": "MR", "flair": "MR", "dwi": "MR",
             "adc": "MR", "suv": "PT", "mrt": "MR", "t1n": "MR", "t2f": "MR"}  # fmt: skip


def _nnunet_inputs(dataset: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    channels = table(dataset, "channel_names") or table(dataset, "modality")
    named = [str(name) for _, name in sorted(channels.items(), key=lambda one: str(one[0]).zfill(4))]
    known = [(_CHANNELS[name.lower()],) if name.lower() in _CHANNELS else () for name in named]
    if len(named) < 2:
        return {"image": known[0] if known else ()}
    return dict(zip(input_names(named), known, strict=True))


def _nnunet_labels(dataset: Mapping[str, Any]) -> list[tuple[int, str]]:
    """Return the value of each label in the label map; of regions, the value that the n-th region writes."""
    order = dataset.get("regions_class_order")
    regions = [name for name in table(dataset, "labels") if name.lower() not in {"background", "ignore"}]
    if isinstance(order, list) and len(order) == len(regions):
        return [(int(value), name) for name, value in zip(regions, order, strict=True) if isinstance(value, int)]
    return [(value, str(name)) for name, value in table(dataset, "labels").items() if isinstance(value, int)]


# -- a single file


def _onnx(path: Path) -> Draft:
    graph = onnx_graph.read(path.parent, path.name)
    draft = Draft(path.parent, runtime="onnx", source=graph.producer, version=graph.version)
    draft.inputs = {"image": ()}
    for name, shape in {**graph.inputs, **graph.outputs}.items():
        kind = "input" if name in graph.inputs else "output"
        draft.remarks.append(f"{kind} {name} of {path.name} has the shape [{', '.join(shape)}]")
    draft.settings = {"file": path.name}
    return draft


def _safetensors(path: Path) -> Draft:
    header = _header(path)
    draft = Draft(path.parent, inputs={"image": ()})
    shapes = [f"{name} {one.get('shape')}" for name, one in header.items() if isinstance(one, dict)]
    draft.remarks.append(f"{path.name} holds {len(shapes)} tensors: {'; '.join(shapes[:3])} … {'; '.join(shapes[-2:])}")
    draft.remarks.append("tensors alone do not say which network they belong to: name the runtime that knows it")
    return draft


def _header(path: Path) -> dict[str, Any]:
    """Return the JSON header of a safetensors file (8 bytes of length, then the JSON), without the tensors."""
    with path.open("rb") as stream:
        start = stream.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(LONGEST, path.stat().st_size - 8):
            raise UserError(f"{path} is no safetensors file: its header would have {length} bytes")
        content = stream.read(length)
    try:
        header = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is no safetensors file: {error}") from error
    if not isinstance(header, dict):
        raise UserError(f"{path} is no safetensors file: its header is no table")
    return {name: one for name, one in header.items() if name != "__metadata__"}
