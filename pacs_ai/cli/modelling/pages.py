"""A model as people read it: one line of the list, and its card as a page."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from pacs_ai.cli import words
from pacs_ai.errors import PacsAiError
from pacs_ai.models.catalogue import Entry, State, entries
from pacs_ai.models.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rich.console import Console

    from pacs_ai.config import Config
    from pacs_ai.pipeline import Card, Code

#: What a plugin is called where packages have their runtime.
PYTHON = "python"
#: Of the list, and the longest licence in it: `show` has the whole of it.
COLUMNS = ("name", "title", "state", "licence")
_LICENCE = 28
_FROM = "--from FOLDER"
#: How a package stands whose weights everybody brings of his own.
_YOURS = "weights are yours"


@dataclass(frozen=True)
class Row:
    """One line of the list; `install` is the command that installs it."""

    name: str
    title: str
    version: str
    runtime: str
    state: str
    licence: str
    clearance: str
    install: str = ""
    fault: str = ""

    @property
    def cells(self) -> tuple[str, ...]:
        """The columns."""
        state = _YOURS if self.install.endswith(_FROM) else self.state
        short = self.licence if len(self.licence) <= _LICENCE else f"{self.licence[: _LICENCE - 1].rstrip()}…"
        return (self.name, self.title, state, short)


def listing(config: Config) -> list[Row]:
    """Return every package and every other pipeline, sorted by name."""
    found = [_row(entry) for entry in entries(config.models_folder)]
    registry, known = Registry.of(config), {row.name for row in found}
    found += [_other(registry, name) for name in {*registry.names(), *registry.broken} - known]
    return sorted(found, key=lambda row: row.name)


def advice(rows: Sequence[Row]) -> list[str]:
    """Return how those that are not installed come here."""
    commands = [row.install for row in rows if row.install]
    lines = []
    if any(not one.endswith(_FROM) for one in commands):
        lines.append("not installed: pacs-ai models install NAME")
    if any(one.endswith(_FROM) for one in commands):
        lines.append(f"weights are yours: pacs-ai models install NAME {_FROM}")
    if any(row.state == State.OUTDATED for row in rows):
        lines.append("outdated, the card that comes with the node is another: pacs-ai models install NAME --force")
    return ["", *lines] if lines else []


def _row(entry: Entry) -> Row:
    if entry.package is None:
        return Row(entry.name, "-", "-", "-", entry.state, "-", "-", fault=entry.fault)
    model = entry.package.model
    return Row(
        entry.name, model.title, model.version, model.runtime, entry.state, model.licence, model.clearance, entry.advice
    )


def _other(registry: Registry, name: str) -> Row:
    try:
        card = registry.card(name)
    except PacsAiError as error:
        return Row(name, "-", "-", "-", State.BROKEN, "-", "-", fault=str(error))
    state = _state(registry, name)
    return Row(name, card.title, card.version, PYTHON, state, card.licence or "-", card.clearance.value)


def _state(registry: Registry, name: str) -> State:
    """Return how a pipeline stands that is no package: of the node, or somebody's plugin."""
    return State.BUILT_IN if registry.is_own(name) else State.INSTALLED


@dataclass(frozen=True)
class Page:
    """All that is known of one model."""

    name: str
    state: str
    runtime: str
    folder: str
    install: str
    digest: str
    card: dict[str, Any]
    settings: dict[str, Any]
    update: str = ""


def of(config: Config, name: str) -> Page:
    """Return the page of one model.

    Raises
    ------
    UserError
        There is none of that name.
    PipelineFault
        It is broken; the message says why.
    """
    found = {entry.name: entry for entry in entries(config.models_folder)}.get(name)
    registry = Registry.of(config)
    if found is not None and found.package is not None:
        package = found.package
        card = _card(package.card)
        return Page(
            name, found.state, package.model.runtime, str(found.folder), found.advice, package.digest, card,
            package.model.settings, found.update,
        )  # fmt: skip
    card = _card(registry.card(name))
    return Page(name, _state(registry, name), PYTHON, "", "", registry.model_digest(name), card, {})


def _card(card: Card) -> dict[str, Any]:
    """Return the card as a table of plain values, with codes as triplets."""
    plain = asdict(card)
    plain["clearance"] = card.clearance.value
    plain["procedure"] = _code(card.procedure)
    plain["labels"] = [
        {"name": one.name, "category": _code(one.category), "type": _code(one.type),
         "modifier": _code(one.modifier) if one.modifier else None, "colour": list(one.colour)}
        for one in card.labels
    ]  # fmt: skip
    plain["questions"] = [
        {**asdict(one), "concept": _code(one.concept), "positive": _code(one.positive),
         "negative": _code(one.negative) if one.negative else None}
        for one in card.questions
    ]  # fmt: skip
    plain["expected"] = [
        {**asdict(one), "concept": _code(one.concept), "unit": _code(one.unit)} for one in card.expected
    ]
    return plain


def _code(code: Code) -> list[str]:
    return [code.value, code.scheme, code.meaning]


# -- on the terminal


def show(page: Page, out: Console) -> None:
    """Print the page: sentences first, then the tables that it has."""
    from rich.table import Table

    card = page.card
    out.print(f"{card['title']}: {page.name} {card['version']}", style="bold", markup=False)
    facts = [
        ("made by", card["manufacturer"]), ("state", page.install or _outdated(page) or page.state),
        ("runtime", page.runtime), ("folder", page.folder), ("for", card["intended_use"]),
        ("clearance", card["clearance"]), ("licence", card["licence"]), ("source", card["source"]),
        ("training", card["training"]), ("procedure", _said(card["procedure"])),
    ]  # fmt: skip
    drawn = Table.grid(padding=(0, 2), pad_edge=False)
    out.print(words.rows(drawn, ((name, value) for name, value in facts if value)))
    _tables(card, out)
    out.print(f"\ndigest {page.digest}", markup=False)
    if page.runtime != PYTHON and not page.install:  # what is brought changes the digest
        out.print("To pin this very model, and no other of its name:", markup=False)
        out.print(f'\n  [[pipeline]]\n  name = "{page.name}"\n  digest = "{page.digest}"', markup=False)


def _outdated(page: Page) -> str:
    return f"{page.state}, another card comes with the node: {page.update}" if page.update else ""


def _tables(card: dict[str, Any], out: Console) -> None:
    _table(out, ("input", "takes", "of"), ((name, one["given"], _takes(one)) for name, one in card["inputs"].items()))
    _table(
        out,
        ("label", "type", "modifier"),
        ((one["name"], _said(one["type"]), _said(one["modifier"])) for one in card["labels"]),
    )
    _table(
        out,
        ("question", "asked for", "threshold", "told"),
        (
            (
                one["name"],
                _said(one["concept"]),
                f"{one['threshold']:g}",
                "yes" if one["reported"] else "no: no better than chance",
            )
            for one in card["questions"]
        ),
    )
    _table(
        out,
        ("expected", "of", "from", "to", "outside"),
        (
            (_said(one["concept"]), one["label"] or "the image", f"{one['low']:g} {one['unit'][0]}",
             f"{one['high']:g} {one['unit'][0]}", "refused" if one["refuse"] else "marked")
            for one in card["expected"]
        ),
    )  # fmt: skip
    _table(
        out,
        ("performance", "value", "95 % interval", "cases", "on", "note"),
        (
            (one["metric"], f"{one['value']:g}", _interval(one), one["cases"], one["on"], one["note"])
            for one in card["performance"]
        ),
    )


def _table(out: Console, columns: tuple[str, ...], rows: Iterable[tuple[object, ...]]) -> None:
    cells = list(rows)
    if cells:
        out.print()
        out.print(words.rows(words.table(*columns), cells))


def _takes(one: dict[str, Any]) -> str:
    parts = ["/".join(one["modality"])]
    parts += [" or ".join(one["body_part"])] if one["body_part"] else []
    parts += [f"view {' or '.join(one['view'])}"] if one["view"] else []
    parts += [f"{one['min_slices']} slices or more"] if one["min_slices"] > 1 else []
    parts += [f"at most {one['max_slice_spacing_mm']:g} mm apart"] if one["max_slice_spacing_mm"] else []
    return ", ".join(parts) + (", brought onto the first input's grid" if one["align"] else "")


def _interval(one: dict[str, Any]) -> str:
    return "-" if one["low"] is None or one["high"] is None else f"{one['low']:g} to {one['high']:g}"


def _said(code: list[str] | None) -> str:
    return f"{code[2]} ({code[1]} {code[0]})" if code else ""
