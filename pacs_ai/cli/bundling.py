"""The configuration's table for a MONAI bundle, made from its folder without running anything of it."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from pacs_ai.cli import toml
from pacs_ai.errors import PipelineFault, UserError
from pacs_ai.models.anatomy import guess_labels
from pacs_ai.models.bundle import METADATA, BundleSpec, card_of
from pacs_ai.models.digest import digests
from pacs_ai.pipeline import ANATOMICAL_STRUCTURE, Code, Input, Label

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_WEIGHTS = ("models/model.pt", "models/model.ts")


def table(folder: Path) -> str:
    """Return the [[pipeline]] table as TOML; `UserError` where the folder is no bundle."""
    folder = folder.resolve()
    files = digests(folder)
    metadata = _metadata(folder)
    labels, missing = guess_labels(metadata)
    inputs = _inputs(folder, files, metadata)
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", folder.name).strip("-_.")[:64] or "bundle"
    lines = [
        f"# {metadata.get('name') or name} {metadata.get('version', '')}: {_line(metadata.get('description'))}",
        f"# {_line(metadata.get('copyright') or 'no copyright stated')}",
        "# Its code runs on this machine: read it, then keep these digests.",
        "[[pipeline]]",
        f"name = {toml.literal(name)}",
        f"bundle = {toml.literal(str(folder))}",
        *_weights_remark(files),
        *_label_lines(labels, missing, metadata),
        *_input_lines(inputs),
        "",
        "[pipeline.files]",
        *(f"{toml.literal(path)} = {toml.literal(sha256)}" for path, sha256 in files.items()),
    ]
    return "\n".join(lines)


def _metadata(folder: Path) -> dict[str, Any]:
    try:
        metadata = json.loads((folder / METADATA).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{folder} is no MONAI bundle: it has no {METADATA}") from None
    except ValueError as error:
        raise UserError(f"{METADATA} in {folder} is no JSON: {error}") from error
    if not isinstance(metadata, dict):
        raise UserError(f"{METADATA} in {folder} is no JSON object")
    return metadata


def _inputs(folder: Path, files: Mapping[str, str], metadata: Mapping[str, Any]) -> Mapping[str, Input]:
    """Return the inputs as the node guesses them, none where the metadata leave them open.

    Raises
    ------
    PipelineFault
        The bundle is none for segmentation.
    """
    some = Label("any", ANATOMICAL_STRUCTURE, Code("0", "99PACSAI", "any"))
    card_of(BundleSpec(folder, files, labels={1: some}, inputs={"image": Input(("CT",))}), metadata)
    try:
        return card_of(BundleSpec(folder, files, labels={1: some}), metadata).inputs
    except PipelineFault:
        return {}


def _weights_remark(files: Mapping[str, str]) -> list[str]:
    if any(name in files for name in _WEIGHTS):
        return []
    return [f"# There are no weights ({' or '.join(_WEIGHTS)}): put them into the folder, then make this table anew."]


def _label_lines(labels: Mapping[int, Label], missing: tuple[str, ...], metadata: Mapping[str, Any]) -> list[str]:
    lines = ["", "# Value in the label map, or channel -> coded label. Guessed from the bundle's channel names: check"]
    lines += ["# them, and correct the numbers where its postprocessing writes others (BraTS: 1, 2, 4)."]
    channels = metadata.get("network_data_format", {}).get("outputs", {}).get("pred", {}).get("channel_def") or {}
    for number, label in labels.items():
        lines += ["", f"[pipeline.labels.{number}]", f"name = {toml.literal(label.name[:64])}"]
        lines += [f"category = {_code(label.category)}", f"type = {_code(label.type)}"]
        lines += [f"modifier = {_code(label.modifier)}"] if label.modifier else []
        lines += [f"colour = {toml.literal(list(label.colour))}"]
    for number, name in sorted((int(number), str(name)) for number, name in channels.items() if str(name) in missing):
        lines += ["", f"# Not in the tables: give SNOMED CT's code for {name!r} and take the # away."]
        lines += [f"# [pipeline.labels.{number}]", f"# name = {toml.literal(name[:64])}", '# type = ["", "SCT", ""]']
    if not labels and not missing:
        lines += ["# The bundle names no channels of its output.", "# [pipeline.labels.1]", '# name = ""']
        lines += ['# type = ["", "SCT", ""]']
    return lines


def _input_lines(inputs: Mapping[str, Input]) -> list[str]:
    if not inputs:
        return ["", "# Its modality is not stated: name the inputs in channel order.", "# [pipeline.inputs.image]",
                '# modality = ["CT"]']  # fmt: skip
    lines = ["", "# Named inputs in channel order; routes bind conditions to these names."]
    for name, wanted in inputs.items():
        lines += ["", f"[pipeline.inputs.{toml.key(name)}]", f"modality = {toml.literal(wanted.modality)}"]
    return lines


def _code(code: Code) -> str:
    return toml.literal([code.value, code.scheme, code.meaning])


def _line(text: object) -> str:
    return " ".join(str(text or "no description").split())
