"""A bundle's configuration as a tree of items, read as JSON or YAML and built item by item, executing nothing of it.

MONAI's format (docs.monai.io, "bundle configuration"): an item is named by its path (``inferer::roi_size``, or with
``#``); ``@item`` refers to what another one describes, ``%item`` copies one as it is written, ``$phrase`` is an
expression (`declared_phrases`), and a table with ``_target_`` is an object (`declared_targets`).
"""

from __future__ import annotations

import json
import re
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import yaml

from pacs_ai.errors import PipelineFault
from pacs_ai.models.runtimes.declared_phrases import REFERENCE, NotDeclared, Phrases, bounded
from pacs_ai.models.runtimes.declared_targets import make

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

#: Longest configuration, bytes.
LONGEST = 1_000_000
#: Deepest nesting of items.
DEEPEST = 40
#: Most items that copies (``%item``) may add: copies of copies double with each line.
MOST_COPIED = 100_000
SEPARATOR = "::"
#: Keys of a table that say how its object is made, not what with.
SPECIAL = {"_target_", "_disabled_", "_requires_", "_mode_", "_desc_"}
WHOLE_REFERENCE = re.compile(rf"\s*{REFERENCE.pattern}\s*")


class _WithoutAliases(yaml.SafeLoader):
    """YAML without aliases: a few lines of them unfold to more items than any memory holds."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not read: write the item out")
        return super().compose_node(parent, index)


def parsed(content: bytes, name: str) -> dict[str, Any]:
    """Return the content of ``configs/inference.json`` or ``.yaml``.

    Raises
    ------
    PipelineFault
        It is too long, nested too deeply, neither JSON nor YAML, or no table.
    """
    if len(content) > LONGEST:
        raise PipelineFault(f"{name} is longer than {LONGEST} bytes, which no configuration is")
    try:
        text = content.decode("utf-8")
        read = json.loads(text) if name.endswith(".json") else yaml.load(text, _WithoutAliases)  # noqa: S506 - a SafeLoader
        if not isinstance(read, dict):
            raise PipelineFault(f"{name} is no table")
        _check_depth(read)
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        raise PipelineFault(f"{name} is neither JSON nor YAML that this node reads: {error}") from error
    return read


def _check_depth(item: Any, depth: int = 0) -> None:
    if depth > DEEPEST:
        raise ValueError(f"it is nested more than {DEEPEST} deep")
    if isinstance(item, dict):
        for value in item.values():
            _check_depth(value, depth + 1)
    elif isinstance(item, list):
        for value in item:
            _check_depth(value, depth + 1)


def path_of(item: str | int) -> tuple[str, ...]:
    """Split an id ("inferer#roi_size", "inferer::roi_size"); () is the whole."""
    text = str(item).replace("#", SEPARATOR)
    return tuple(text.split(SEPARATOR)) if text else ()


class Tree:
    """The items of one configuration; `pacs_ai.models.bundle_config.Parser`, but nothing in it is executed.

    Parameters
    ----------
    content
        As `parsed` returned it; copied.
    arrays
        Reads a file of the package that a phrase names (``torch.load(...)``): name -> arrays.
    trust
        What the reader is told to do where something was not understood.
    """

    def __init__(
        self, content: Mapping[str, Any], arrays: Callable[[str], Mapping[str, Any]] | None = None, trust: str = ""
    ) -> None:
        self._content: Any = deepcopy(dict(content))
        self._built: dict[tuple[str, ...], Any] = {}
        self._under_way: list[tuple[str, ...]] = []
        self._trust = trust
        self._phrases = Phrases(self.get_parsed_content, arrays)
        self._copied = 0
        self._content = self._with_copies(self._content)

    def _with_copies(self, item: Any, seen: tuple[str, ...] = ()) -> Any:
        """Put what ``%item`` names in its place, as written."""
        self._copied += bool(seen)
        if self._copied > MOST_COPIED:
            raise self._refusal(f"%{seen[-1]}", f"copies add more than {MOST_COPIED} items")
        if isinstance(item, dict):
            return {key: self._with_copies(value, seen) for key, value in item.items()}
        if isinstance(item, list):
            return [self._with_copies(value, seen) for value in item]
        if isinstance(item, str) and item.startswith("%"):
            name = item[1:]
            if name in seen or name not in self:
                raise self._refusal(item, "copies of items of the same file are understood, of no other and no circle")
            return self._with_copies(deepcopy(self.get(name)), (*seen, name))
        return item

    def get(self, id: str = "", default: Any | None = None) -> Any:  # noqa: A002 - as MONAI's parser
        """Return an item as written, `default` where there is none."""
        try:
            return self._raw(path_of(id))
        except (KeyError, IndexError, ValueError):
            return default

    def _raw(self, path: tuple[str, ...]) -> Any:
        item = self._content
        for step in path:
            if isinstance(item, list):
                item = item[int(step)]
            elif isinstance(item, dict):
                item = item[step]
            else:
                raise KeyError(step)
        return item

    def __contains__(self, id: str | int) -> bool:  # noqa: A002 - as MONAI's parser
        """Whether there is such an item."""
        try:
            self._raw(path_of(id))
        except (KeyError, IndexError, ValueError):
            return False
        return True

    def __setitem__(self, id: str | int, config: Any) -> None:  # noqa: A002 - as MONAI's parser
        """Put another item in its place; all is built anew."""
        *parents, last = path_of(id)
        parent = self._raw(tuple(parents))
        parent[int(last) if isinstance(parent, list) else last] = config
        self._built.clear()

    def get_parsed_content(self, id: str = "") -> Any:  # noqa: A002 - as MONAI's parser
        """Return what an item describes; the same object each time.

        Raises
        ------
        PipelineFault
            The item, or one to which it refers, is not understood by the declared loader: the phrase, and what to do.
        """
        path = path_of(id)
        if path not in self._built:
            if path in self._under_way:
                raise self._refusal(SEPARATOR.join(path), "it refers to itself")
            self._under_way.append(path)
            try:
                self._built[path] = bounded(self._build(path))
            except NotDeclared as error:
                raise self._refusal(SEPARATOR.join(path), str(error)) from error
            finally:
                self._under_way.pop()
        return self._built[path]

    def _build(self, path: tuple[str, ...]) -> Any:
        try:
            item = self._raw(path)
        except (KeyError, IndexError, ValueError) as error:
            raise self._refusal(f"@{SEPARATOR.join(path)}", "there is no such item") from error
        if isinstance(item, str):
            return self._text(item, path)
        if isinstance(item, list):
            return [self._child(path, number) for number in range(len(item)) if self._wanted(path, number)]
        if isinstance(item, dict):
            if "_target_" in item:
                return self._object(item, path)
            return {key: self._child(path, key) for key in item if self._wanted(path, key)}
        return item

    def _child(self, path: tuple[str, ...], step: str | int) -> Any:
        return self.get_parsed_content(SEPARATOR.join((*path, str(step))))

    def _wanted(self, path: tuple[str, ...], step: str | int) -> bool:
        """Whether an item is an object that is not disabled, or no object."""
        item = self._raw((*path, str(step)))
        return not (isinstance(item, dict) and "_target_" in item and self._disabled(item, (*path, str(step))))

    def _disabled(self, item: Mapping[str, Any], path: tuple[str, ...]) -> bool:
        value = self._child(path, "_disabled_") if "_disabled_" in item else False
        return value.strip().lower() == "true" if isinstance(value, str) else bool(value)

    def _text(self, text: str, path: tuple[str, ...]) -> Any:
        whole = WHOLE_REFERENCE.fullmatch(text)
        if whole:
            return self.get_parsed_content(whole[1])
        if not text.startswith("$"):
            return text
        try:
            return self._phrases.value(text[1:])
        except NotDeclared as error:
            raise self._refusal(text, str(error), path) from error

    def _object(self, item: Mapping[str, Any], path: tuple[str, ...]) -> Any:
        if item.get("_mode_", "default") != "default":
            raise self._refusal(
                f"_mode_: {item['_mode_']}", "only objects made in the default way are understood", path
            )
        name = item["_target_"]
        if "_requires_" in item:
            self._child(path, "_requires_")
        try:
            return make(name, {key: self._child(path, key) for key in item if key not in SPECIAL})
        except NotDeclared as error:
            raise self._refusal(f"_target_: {name}", str(error), path) from error

    def _refusal(self, phrase: str, reason: str, path: tuple[str, ...] = ()) -> PipelineFault:
        where = f" at {SEPARATOR.join(path)}" if path else ""
        return PipelineFault(f"`{phrase}`{where} was not understood: {reason}. {self._trust}".strip())
