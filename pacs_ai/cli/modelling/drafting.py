"""The model.toml of a folder that a researcher brings: what is known is filled in, the rest is left to be chosen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pacs_ai.cli import toml
from pacs_ai.errors import UserError
from pacs_ai.models.codes import Found, search
from pacs_ai.models.package import MODEL, RUNTIMES
from pacs_ai.models.recognise import Draft, recognise

if TYPE_CHECKING:
    from pathlib import Path

    from pacs_ai.pipeline import Code, Label

__all__ = ["draft", "search", "write"]

#: Codes that are proposed for a name that the tables do not know.
_PROPOSED = 3
#: Values of keys that must be chosen, as examples of their form.
_LEFT = {
    "version": '"1.0"',
    "manufacturer": '"who makes it"',
    "title": '"a few words for the radiologist"',
    "runtime": '"onnx"',
    "intended_use": '"what it is for, and what not"',
    "licence": '"Apache-2.0"',
    "source": '"where the weights come from, whom to cite"',
    "training": '"what it was trained on"',
}
#: Keys that a card may leave out.
_OPTIONAL = {"training"}


def draft(folder: Path) -> tuple[str, Path, list[str]]:
    """Return the text of the model.toml, where it belongs, and what whoever fills it in must know.

    Raises
    ------
    UserError
        The folder is nothing that is recognised.
    """
    known = recognise(folder)
    text = "\n".join(
        [
            "# Written by pacs-ai models new from what lies in this folder. Lines with #? are to be chosen: fill them",
            "# in and take the #? away. Codes: pacs-ai models new --search WORDS.",
            *(f"# {line}" for line in (known.description, *known.remarks) if line),
            "",
            *_card_lines(known),
            *_input_lines(known),
            *_label_lines(known),
            *_settings_lines(known.settings),
            "",
            "# SHA-256 of every other file of the folder: the model is these very bytes",
            "[files]",
            *(f"{toml.literal(name)} = {toml.literal(value)}" for name, value in known.files.items()),
            "",
        ]
    )
    return text, known.folder / MODEL, [*known.remarks, *_left(known)]


def write(text: str, place: Path, *, force: bool) -> None:
    """Write the file.

    Raises
    ------
    UserError
        It is there already.
    """
    if place.exists() and not force:
        raise UserError(f"{place} is there already: --force replaces it, --print shows what it would be")
    place.write_text(text, encoding="utf-8")


def _left(known: Draft) -> list[str]:
    """Return what is still to be chosen, in words."""
    keys = [key for key in _LEFT if key not in _OPTIONAL and not getattr(known, key)]
    keys += [] if known.procedure else ["procedure"]
    unknown = [name for name, label in known.labels.values() if label is None]
    silent = [name for name, modality in known.inputs.items() if not modality]
    said = [f"not stated in the folder, and to be filled in: {', '.join(keys)}"] if keys else []
    said += [f"the modality of {', '.join(silent)} is not stated"] if silent else []
    said += [f"{len(unknown)} label(s) without a code: {', '.join(unknown[:8])}"] if unknown else []
    return said


def _card_lines(known: Draft) -> list[str]:
    lines = [f"name = {toml.literal(known.name)}"]
    for key, form in _LEFT.items():
        value = getattr(known, key)
        lines.append(f"{key} = {toml.literal(value)}" if value else f"#? {key} = {form}")
    if not known.runtime:
        lines.append(f"# runtimes are {', '.join(sorted(RUNTIMES))}")
    procedure = known.procedure
    lines.append(
        f"procedure = {_code(procedure)}"
        if procedure
        else '#? procedure = ["25045-6", "LN", "CT unspecified body region"]'
    )
    return [*lines, 'clearance = "RESEARCH"']


def _input_lines(known: Draft) -> list[str]:
    lines = ["", "# Named inputs in the order of the image channels; routes bind conditions to these names"]
    for name, modality in known.inputs.items():
        lines += ["", f"[inputs.{toml.key(name)}]"]
        lines += [f"modality = {toml.literal(modality)}"] if modality else ['#? modality = ["CT"]']
    return lines


def _label_lines(known: Draft) -> list[str]:
    if not known.labels:
        return ["", "# Value in the label map -> coded label: none is stated in the folder", "#? [labels.1]",
                '#? name = ""', '#? type = ["", "SCT", ""]']  # fmt: skip
    lines = ["", "# Value in the label map, or channel -> coded label"]
    for number, (name, label) in known.labels.items():
        lines += ["", f"[labels.{number}]", f"name = {toml.literal(name[:64])}"]
        lines += coded_lines(label) if label is not None else _proposed(name)
    return lines


def coded_lines(label: Label) -> list[str]:
    """Return what a table of labels says of one beside its name."""
    lines = [f"category = {_code(label.category)}", f"type = {_code(label.type)}"]
    lines += [f"modifier = {_code(label.modifier)}"] if label.modifier else []
    return [*lines, f"colour = {toml.literal(list(label.colour))}"]


def _proposed(name: str) -> list[str]:
    words = name.replace("_", " ").replace("-", " ")
    found = search(words, _PROPOSED)
    lines = [f"#? type = {_triplet(one)}" for one in found] or ['#? type = ["", "SCT", ""]']
    return [*lines, *(["# one of these, if it is what the model means"] if found else [])]


def _triplet(one: Found) -> str:
    return toml.literal([one.value, one.scheme, one.meaning])


def _code(code: Code) -> str:
    return toml.literal([code.value, code.scheme, code.meaning])


def _settings_lines(settings: dict[str, Any]) -> list[str]:
    if not settings:
        return []
    return [
        "",
        "# Of the runtime",
        "[settings]",
        *(f"{key} = {toml.literal(value)}" for key, value in settings.items()),
    ]
