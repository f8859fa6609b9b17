"""Write the reference pages of docs/, and the readings of docs/models.md, from the code and the cards.

python scripts/make_docs.py            write the pages
python scripts/make_docs.py --check    say whether they are what the code says
"""

from __future__ import annotations

import argparse
import ast
import inspect
import itertools
import sys
import textwrap
import types
import typing
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click
import conformance
import reading_cards
from pydantic import BaseModel

from pacs_ai import built_in_profiles, config, model_sections, network_sections, profiles
from pacs_ai.cli import main as commands
from pacs_ai.cli import toml
from pacs_ai.conditions import When
from pacs_ai.dicom import contexts
from pacs_ai.dicom.attributes import INDEXED

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydantic.fields import FieldInfo

DOCS = Path(__file__).resolve().parents[1] / "docs"
_MADE = "<!-- Made by scripts/make_docs.py from the code: change it there. -->"
_KINDS = {str: "text", int: "whole number", float: "number", bool: "`true` or `false`", Path: "path", Any: "any value"}
_WIDTH = 44

_CONFIGURATION = """\
# Configuration

{made}

One TOML file; read from top to bottom it is the way of a study. `pacs-ai --config FILE` names it; without that
`./pacs-ai.toml` is taken, else `/etc/pacs-ai/pacs-ai.toml`, else the defaults below. `config/pacs-ai.toml` is a
commented file to start from.

- `pacs-ai config check` names every fault at once, and says whether routes, pipelines and peers fit together. The node
  does not start on any fault.
- `pacs-ai config show` prints every value that is in force and where it comes from.
- `pacs-ai doctor` compares the file with this machine and with the peers.

Units are in the keys (`_seconds`, `_gb`). A key that is not listed here is a fault.
"""

_COMMANDS = """\
# Commands

{made}

Every command takes `--help`. `--json` prints what a program would read. Errors are one sentence on standard error.
Exit codes: 0 done and well; 1 it did not work, or something needs a person; 2 the command or the configuration is
wrong; 130 interrupted.
"""

#: Title, model, whether it may come several times, what stands above its table.
_SECTIONS: tuple[tuple[str, type[BaseModel], str], ...] = (
    ("[node]", config.Node, ""),
    ("[store]", config.Store, ""),
    ("[receive]", network_sections.Receive, ""),
    ("[tls]", network_sections.Tls, "All three, or none."),
    ("[[peer]]", network_sections.Peer, "Once for each."),
    ("[[profile]]", config.Profile, "Once for each that the built-in ones do not serve."),
    ("[[profile.objects]]", config.ObjectTable, "In the order of delivery."),
    ("[[pipeline]]", model_sections.Pipeline, "Once for each that needs settings, and for each MONAI bundle."),
    ("[pipeline.labels.VALUE]", model_sections.LabelTable, ""),
    ("[pipeline.inputs.NAME]", model_sections.InputTable, ""),
    ("[[route]]", config.Route, "Once for each. A series may go through several routes."),
    ("when = { ... }", When, ""),
    ("[models]", config.Models, ""),
    ("[infer]", config.Infer, ""),
    ("[deliver]", config.Deliver, ""),
    ("[retention]", config.Retention, ""),
    ("[audit]", network_sections.Audit, ""),
    ("[log]", config.Log, ""),
)


def configuration_page() -> str:
    """Return docs/configuration.md."""
    parts = [_CONFIGURATION.format(made=_MADE)]
    for title, model, remark in _SECTIONS:
        parts.append(f"## `{title}`\n")
        parts.append(f"{inspect.cleandoc(model.__doc__ or '')} {remark}".strip() + "\n")
        parts.append(_table(model))
    parts += ["## Profiles that come with the node\n", _profiles(), "## Forms of each object\n", _forms()]
    parts.append("## Attributes that conditions may name\n")
    kept = ", ".join(f"`{keyword}`" for keyword in sorted(INDEXED))
    parts.append(
        f"`attributes = {{ ... }}` may name those that the index keeps of each series:\n{conformance.filled(kept)}\n"
    )
    return "\n".join(parts)


def _profiles() -> str:
    lines = ["| profile | for | objects, in the order of delivery | rejection notes |", "|---|---|---|---|"]
    for profile in built_in_profiles.BUILT_IN.values():
        objects = "<br>".join(_wanted(one) for one in profile.objects)
        honoured = "honoured" if profile.honours_rejection_notes else "not honoured"
        lines.append(f"| `{profile.name}` | {profile.purpose} | {objects} | {honoured} |")
    return "\n".join(lines) + "\n"


def _wanted(wanted: profiles.Wanted) -> str:
    form = wanted.form or profiles.FORMS[wanted.kind][0].name
    otherwise = f", else {_wanted(wanted.otherwise)}" if wanted.otherwise else ""
    return f"{wanted.kind} ({form}){otherwise}"


def _forms() -> str:
    lines = ["| kind | form | SOP class | transfer syntaxes, default first |", "|---|---|---|---|"]
    for kind in (one for one in profiles.Kind if one not in profiles.NOTICES):
        for form in profiles.FORMS[kind]:
            sop_class = contexts.name_of(form.sop_class_uid) if form.sop_class_uid else "the source's own"
            syntaxes = ", ".join(f"`{syntax}`" for syntax in form.syntaxes)
            lines.append(f"| `{kind}` | `{form.name}` | {sop_class} | {syntaxes} |")
    return "\n".join(lines) + "\n"


def _table(model: type[BaseModel]) -> str:
    lines = ["| key | kind | default | meaning |", "|---|---|---|---|"]
    meanings = key_docstrings(model)
    for name, field in model.model_fields.items():
        cells = (f"`{name}`", _kind(field), _default(field), " ".join(meanings.get(name, "").split()))
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def key_docstrings(model: type[BaseModel]) -> dict[str, str]:
    """Return what stands below each key in the source; pydantic would read it at every start of every process."""
    found: dict[str, str] = {}
    for one in reversed([each for each in model.__mro__ if each.__module__.startswith("pacs_ai.")]):
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(one))).body
        statements = typing.cast("ast.ClassDef", definition).body
        for key, text in itertools.pairwise(statements):
            match key, text:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(words))):
                    found[name] = inspect.cleandoc(words)
    return found


def _kind(field: FieldInfo) -> str:
    words = _words(field.annotation)
    bounds = [bound for item in field.metadata for bound in _bounds(item)]
    return f"{words}, {' and '.join(bounds)}" if bounds else words


def _bounds(item: Any) -> Iterator[str]:
    for name, words in (("ge", "at least"), ("gt", "more than"), ("le", "at most"), ("lt", "less than")):
        if (value := getattr(item, name, None)) is not None:
            yield f"{words} {value}"


def _words(kind: Any) -> str:
    origin, inside = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return _words(inside[0])
    if origin is Literal:
        return " or ".join(f"`{toml.literal(value)}`" for value in inside)
    if origin in {typing.Union, types.UnionType}:
        return " or ".join(_words(each) for each in inside if each is not type(None))
    if origin is tuple:
        several = f"list of {len(inside)}" if inside[-1] is not Ellipsis else "list"
        return f"{several}: {_words(inside[0])}"
    if origin is dict:
        return f"table: {_words(inside[0])} to {_words(inside[1])}"
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return " or ".join(f"`{value}`" for value in kind if value not in profiles.NOTICES)
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return "conditions" if kind is When else "table"
    return _KINDS[kind]


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    text = "-" if value is None or value in ((), {}, "") else toml.literal(value)
    if isinstance(value, tuple) and len(text) > _WIDTH:
        return "<br>".join(f"`{toml.literal(each)}`" for each in value)
    return f"`{text}`" if text != "-" else text


def commands_page() -> str:
    """Return docs/commands.md."""
    parts = [_COMMANDS.format(made=_MADE), *_command("pacs-ai", commands)]
    return "\n".join(parts)


def _command(name: str, command: click.Command) -> Iterator[str]:
    yield f"## `{name}`\n"
    yield f"    {_usage(name, command)}\n"
    yield inspect.cleandoc(command.help or "").replace("\b\n", "") + "\n"
    if options := [_option(each) for each in command.params if isinstance(each, click.Option) and not each.hidden]:
        yield "| option | meaning |\n|---|---|\n" + "\n".join(options) + "\n"
    if command.epilog:
        yield "Example:\n\n" + "\n".join(f"  {line}" for line in command.epilog.splitlines()[2:]) + "\n"
    if isinstance(command, click.Group):
        for each in command.list_commands(click.Context(command)):
            yield from _command(f"{name} {each}", command.commands[each])


def _usage(name: str, command: click.Command) -> str:
    context = click.Context(command, info_name=name)
    return " ".join((name, *command.collect_usage_pieces(context)))


def _option(option: click.Option) -> str:
    names = ", ".join(f"`{name}`" for name in sorted(option.opts, key=len))
    words = option.help or ""
    if isinstance(option.type, click.Choice):
        words += f" One of {', '.join(f'`{choice}`' for choice in option.type.choices)}."
    if option.show_default and option.default is not None:
        words += f" Default: `{option.default}`."
    if option.required:
        words += " Required."
    return f"| {names} | {words.strip()} |"


def pages() -> dict[Path, str]:
    """Return every page that is made here, by its path."""
    return {
        DOCS / "configuration.md": configuration_page(),
        DOCS / "commands.md": commands_page(),
        conformance.PAGE: conformance.page(),
        reading_cards.PAGE: reading_cards.page(),
    }


def main() -> None:
    """Write, or check."""
    parser = argparse.ArgumentParser(description="Write the reference pages of docs/ from the code.")
    parser.add_argument("--check", action="store_true", help="only say whether they are what the code says")
    stale = [path for path, text in pages().items() if not path.is_file() or path.read_text(encoding="utf-8") != text]
    if parser.parse_args().check:
        for path in stale:
            print(f"{path} is not what the code says: run scripts/make_docs.py", file=sys.stderr)
        sys.exit(1 if stale else 0)
    for path in stale:
        path.write_text(pages()[path], encoding="utf-8")
        print(f"wrote {path}")


if __name__ == "__main__":
    main()
