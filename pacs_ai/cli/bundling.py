"""The configuration's table for a MONAI bundle, made from its folder without running anything of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pacs_ai.cli import toml
from pacs_ai.cli.modelling.drafting import coded_lines
from pacs_ai.models.bundle_metadata import described
from pacs_ai.models.digest import digests
from pacs_ai.models.recognise import bundle, name_of, read_metadata

if TYPE_CHECKING:
    from pathlib import Path

    from pacs_ai.models.recognise import Draft

_WEIGHTS = ("models/model.pt", "models/model.ts")


def table(folder: Path) -> str:
    """Return the [[pipeline]] table as TOML.

    Raises
    ------
    UserError
        The folder is no bundle.
    PipelineFault
        The bundle is none for segmentation.
    """
    folder = folder.resolve()
    known = bundle(folder)
    described(read_metadata(folder)).check_segments(folder.name)
    files, name = digests(folder), name_of(folder)
    lines = [
        f"# {f'{known.title or name} {known.version}'.strip()}: {known.description or 'no description'}",
        f"# {known.source or 'no copyright stated'}",
        "# Its code runs on this machine: read it, then keep these digests.",
        "[[pipeline]]",
        f"name = {toml.literal(name)}",
        f"bundle = {toml.literal(str(folder))}",
        *_weights_remark(files),
        *_label_lines(known),
        *_input_lines(known),
        "",
        "[pipeline.files]",
        *(f"{toml.literal(path)} = {toml.literal(sha256)}" for path, sha256 in files.items()),
    ]
    return "\n".join(lines)


def _weights_remark(files: dict[str, str]) -> list[str]:
    if any(name in files for name in _WEIGHTS):
        return []
    return [f"# There are no weights ({' or '.join(_WEIGHTS)}): put them into the folder, then make this table anew."]


def _label_lines(known: Draft) -> list[str]:
    lines = ["", "# Value in the label map, or channel -> coded label. Guessed from the bundle's channel names: check"]
    lines += ["# them, and correct the numbers where its postprocessing writes others (BraTS: 1, 2, 4)."]
    for number, (name, label) in known.labels.items():
        if label is not None:
            lines += ["", f"[pipeline.labels.{number}]", f"name = {toml.literal(name[:64])}", *coded_lines(label)]
    for number, (name, label) in known.labels.items():
        if label is None:
            lines += ["", f"# Not in the tables: give SNOMED CT's code for {name!r} and take the # away."]
            lines += [
                f"# [pipeline.labels.{number}]",
                f"# name = {toml.literal(name[:64])}",
                '# type = ["", "SCT", ""]',
            ]
    if not known.labels:
        lines += ["# The bundle names no channels of its output.", "# [pipeline.labels.1]", '# name = ""']
        lines += ['# type = ["", "SCT", ""]']
    return lines


def _input_lines(known: Draft) -> list[str]:
    if not all(known.inputs.values()):
        return ["", "# Its modality is not stated: name the inputs in channel order.", "# [pipeline.inputs.image]",
                '# modality = ["CT"]']  # fmt: skip
    lines = ["", "# Named inputs in channel order; routes bind conditions to these names."]
    for name, modality in known.inputs.items():
        lines += ["", f"[pipeline.inputs.{toml.key(name)}]", f"modality = {toml.literal(modality)}"]
    return lines
