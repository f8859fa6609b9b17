"""What a person types to convert weights, as the reader takes it: the folder, the file in it, and options by name."""

from __future__ import annotations

import tomllib
from typing import TYPE_CHECKING, Any

from pacs_ai.errors import UserError
from pacs_ai.models.convert import reader_named

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


def of(reader: str, source: Path, options: Iterable[str]) -> tuple[dict[str, Any], Path]:
    """Return the options and the folder of the published files.

    Parameters
    ----------
    reader
        Name of the reader.
    source
        The file that is read, or its folder.
    options
        As typed: KEY=VALUE; numbers and lists as in TOML.

    Raises
    ------
    UserError
        There is no such reader, an option has no value, or the reader wants a folder.
    """
    known, given = reader_named(reader), {}
    for option in options:
        key, sign, text = option.partition("=")
        if not sign or not key:
            raise UserError(f"--option {option} is no KEY=VALUE")
        given[key] = _value(option, text) if key in known.values else text
    if not source.is_file():
        return given, source
    if "file" not in known.texts:
        raise UserError(f"the reader {reader} reads a folder: name {source.absolute().parent}")
    return {"file": source.name, **given}, source.parent


def _value(option: str, text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"--option {option} is no number, list, true or false: {error}") from error
