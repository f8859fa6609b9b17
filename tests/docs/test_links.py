"""What README and docs point to is there: links, headings, commands with their options, configurations, decisions."""

from __future__ import annotations

import re
import shlex
import tomllib

import click
import pytest
from page_blocks import DOCS, ROOT, blocks, commands, links, pages, spans, title

from pacs_ai.cli import main
from pacs_ai.config import Config
from pacs_ai.states import DeliveryState, JobState, SeriesState

PAGES = pages()
each_page = pytest.mark.parametrize("page", PAGES, ids=title)


def anchors(page):
    """The headings of a page as links name them: small letters, blanks as hyphens, other signs left out."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@each_page
def test_links_lead_somewhere(page):
    for target in links(page):
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), f"{title(page)} points to {target}"
        assert found.is_relative_to(ROOT), f"{title(page)} points out of the repository: {target}"
        if anchor:
            assert anchor in anchors(found), f"{title(page)} points to {target}"


def called(arguments):
    """Return the command that is meant and what it is given, options of the groups left out; raises click's errors."""
    command: click.Command = main
    context = click.Context(main, info_name="pacs-ai")
    while isinstance(command, click.Group):
        options, arguments, _ = command.make_parser(context).parse_args(list(arguments))
        check_values(command, options)
        if not arguments:
            return command, {}
        name, *arguments = arguments
        found = command.get_command(context, name)
        if found is None:
            raise click.UsageError(f"no such command: {name}")
        context = click.Context(found, info_name=name, parent=context)
        command = found
    options, rest, _ = command.make_parser(context).parse_args(list(arguments))
    if rest:
        raise click.UsageError(f"too many arguments: {rest}")
    check_values(command, options)
    return command, options


def check_values(command, options):
    """Hold what is given for a choice against the choices; ``first|latest`` is each of them."""
    for parameter in command.params:
        given = options.get(parameter.name)
        if isinstance(parameter.type, click.Choice) and isinstance(given, str):
            for one in given.split("|"):
                parameter.type.convert(one, parameter, None)


def shown(arguments):
    """Cut a usage line where its placeholders begin; None where it only says "some command"."""
    cut = next((n for n, word in enumerate(arguments) if word.startswith("[") or word in {"COMMAND", "..."}), None)
    return arguments if cut is None else arguments[:cut]


@each_page
def test_commands_exist(page):
    for arguments in commands(page):
        whole = shown(arguments)
        command, given = called(whole)
        if whole == arguments:
            missing = [p.name for p in command.params if p.required and given.get(p.name) in (None, ())]
            assert missing == [], f"{title(page)}: pacs-ai {shlex.join(arguments)} lacks {missing}"


@each_page
def test_commands_in_sentences_exist(page):
    for arguments in spans(page):
        called(shown(arguments))


@pytest.mark.parametrize(
    "wrong", ["jobs --status failed", "infr ct-lung", "config chek", "jobs --state lost", "run a b"]
)
def test_a_wrong_command_would_be_found(wrong):
    with pytest.raises(click.ClickException):
        called(wrong.split())


def toml_blocks():
    return [block for page in PAGES for block in blocks(page) if block.language == "toml" and block.kind != "file"]


@pytest.mark.parametrize("block", toml_blocks(), ids=lambda block: f"{block.page}:{block.text.strip()[:24]}")
def test_configurations_load(block):
    """Peers that a fragment takes for granted are added."""
    content = tomllib.loads(block.text)
    assert set(content) <= set(Config.model_fields), "no configuration: mark it with <!-- file: NAME -->"
    known = {peer["name"] for peer in content.get("peer", ())}
    wanted = {name for route in content.get("route", ()) for name in route.get("deliver_to", ())}
    others = [{"name": name, "ae_title": "X", "host": "pacs.example"} for name in sorted(wanted - known)]
    Config.model_validate({**content, "peer": [*content.get("peer", ()), *others]})


def test_decisions_are_numbered_and_whole():
    found = sorted((DOCS / "decisions").glob("*.md"))
    assert [page.name[:4] for page in found] == [f"{number:04}" for number in range(1, len(found) + 1)]
    for page in found:
        headings = re.findall(r"^## (.+)$", page.read_text(), re.MULTILINE)
        assert headings[:3] == ["Context", "Decision", "Consequences"], page.name
        assert page.read_text().startswith(f"# {page.name[:4]} "), page.name
        assert 15 <= len(page.read_text().splitlines()) <= 80, f"{page.name}: half a page to one page"


def test_every_state_is_explained():
    page = (DOCS / "glossary.md").read_text()
    for life, table in (("series", SeriesState), ("job", JobState), ("delivery", DeliveryState)):
        (paragraph,) = re.findall(rf"^States of a {life}: (.*?)\n(?:\n|\Z)", page, re.MULTILINE | re.DOTALL)
        assert set(re.findall(r"\*\*(\w+)\*\*", paragraph)) == {state.value for state in table}
