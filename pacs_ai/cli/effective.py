"""Every value that the node works with and where it comes from: the file, or its default."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel

from pacs_ai.cli import toml

if TYPE_CHECKING:
    from pacs_ai.config import Config

MASK = "********"
_PASSWORD = re.compile(r"(?<=://)([^:/@]*):[^@]*@")
_SECRET = re.compile(r"password|passwd|secret|token|api_?key", re.IGNORECASE)


@dataclass(frozen=True)
class Value:
    """One key of the file.

    Parameters
    ----------
    table
        ``[store]``, ``[[peer]]``; several tables of one name are told apart by `number`, from 1.
    value
        As TOML's kinds; None where nothing is set and the key's documentation says what follows.
    origin
        Where it comes from.
    """

    table: str
    number: int
    key: str
    value: Any
    origin: Literal["file", "default"]


def values(config: Config, path: Path | None) -> list[Value]:
    """Return every value, secrets masked, in the order of the journey."""
    given: Mapping[str, Any] = tomllib.loads(path.read_text(encoding="utf-8")) if path is not None else {}
    found: list[Value] = []
    for name in type(config).model_fields:
        section, written = getattr(config, name), given.get(name, {})
        if isinstance(section, tuple):
            for number, (entry, table) in enumerate(zip(section, written, strict=True), start=1):
                found += _of(f"[[{name}]]", number, entry, table)
        else:
            found += _of(f"[{name}]", 1, section, written)
    return found


def _of(table: str, number: int, section: BaseModel, written: Mapping[str, Any]) -> Iterator[Value]:
    for key in type(section).model_fields:
        value = _masked(key, _plain(getattr(section, key)))
        yield Value(table, number, key, value, "file" if key in written else "default")


def _plain(value: Any) -> Any:
    """Return models as tables of what was set in them, tuples as lists."""
    if isinstance(value, BaseModel):
        return {key: _plain(getattr(value, key)) for key in type(value).model_fields if key in value.model_fields_set}
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return str(value) if isinstance(value, Path) else value


def _masked(key: str, value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _masked(name, each) for name, each in value.items()}
    if isinstance(value, str) and value:
        return MASK if _SECRET.search(key) else _PASSWORD.sub(rf"\1:{MASK}@", value)
    return value


def as_toml(found: list[Value]) -> str:
    """Return the values as a file that means the same: what comes from a default is a comment."""
    lines: list[str] = []
    at: tuple[str, int] | None = None
    for value in found:
        if at != (value.table, value.number):
            at = value.table, value.number
            lines += ["", value.table]
        if value.value is None:
            lines.append(f"# {value.key} is not set")
        else:
            mark = "# " if value.origin == "default" else ""
            lines.append(f"{mark}{value.key} = {toml.literal(value.value)}")
    return "\n".join(lines[1:])
