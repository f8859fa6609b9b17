"""The reference pages of docs/ say what the code says: every key of the configuration, every command and option."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import click
import pytest
from pydantic import BaseModel

from pacs_ai import config, model_sections, network_sections
from pacs_ai.cli import main
from pacs_ai.conditions import When

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def make_docs():
    spec = importlib.util.spec_from_file_location("make_docs", REPOSITORY / "scripts" / "make_docs.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_docs"] = module
    sys.path.insert(0, str(REPOSITORY / "scripts"))  # it imports its neighbour, as it does when it is run
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(str(REPOSITORY / "scripts"))
    del sys.modules["make_docs"]


@pytest.mark.parametrize("name", ["configuration.md", "commands.md", "conformance.md", "models.md"])
def test_page_is_what_the_code_says(make_docs, name):
    path = REPOSITORY / "docs" / name
    assert path.read_text(encoding="utf-8") == make_docs.pages()[path], "run: python scripts/make_docs.py"


def models(model: type[BaseModel] = config.Config) -> set[type[BaseModel]]:
    """Return the model and all below it."""
    found = {model}
    for field in model.model_fields.values():
        for name in re.findall(r"\b[A-Z]\w+", str(field.annotation)):
            below = next(
                (getattr(m, name) for m in (config, model_sections, network_sections) if hasattr(m, name)), None
            )
            if isinstance(below, type) and issubclass(below, BaseModel) and below not in found:
                found |= models(below)
    return found


def test_every_key_is_documented(make_docs):
    page = make_docs.configuration_page()
    assert {When, model_sections.LabelTable, model_sections.InputTable, config.Store} <= models()
    for model in models() - {config.Config}:
        assert (model.__doc__ or "").split("\n")[0] in page, model
        meanings = make_docs.key_docstrings(model)
        for name in model.model_fields:
            assert meanings.get(name), f"{model.__name__}.{name} has no docstring"
            assert f"| `{name}` |" in page, f"{model.__name__}.{name}"


def test_every_command_and_option_is_documented(make_docs):
    page = make_docs.commands_page()

    def check(name: str, command: click.Command) -> None:
        assert f"## `{name}`\n" in page
        for parameter in command.params:
            if isinstance(parameter, click.Option) and not parameter.hidden:
                assert f"`{parameter.opts[0]}`" in page, f"{name} {parameter.opts[0]}"
        for each in command.commands.values() if isinstance(command, click.Group) else ():
            check(f"{name} {each.name}", each)

    check("pacs-ai", main)
    assert "--supervisor" not in page


def test_sample_names_only_keys_that_are_documented(make_docs):
    page = make_docs.configuration_page()
    sample = (REPOSITORY / "config" / "pacs-ai.toml").read_text(encoding="utf-8")
    for key in re.findall(r"^(?:# )?([a-z_]+) = ", sample, flags=re.MULTILINE):
        assert f"`{key}`" in page or key in {"t1", "t2", "t1c", "flair"}, key
