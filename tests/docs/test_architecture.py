"""docs/architecture.md says what the code does: the three state tables and the floors."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from pacs_ai import states

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text()


def rows_under(heading: str) -> set[tuple[str, ...]]:
    section = PAGE.split(f"### {heading}\n")[1].split("\n### ")[0].split("\n## ")[0]
    rows = [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in section.splitlines() if "|" in line]
    return set(rows[2:])


@pytest.mark.parametrize(
    ("heading", "table"), [("Series", states.SERIES), ("Job", states.JOB), ("Delivery", states.DELIVERY)]
)
def test_state_table_is_the_code(heading, table):
    assert rows_under(heading) == {(str(s), str(e), str(n)) for (s, e), n in table.items()}


def test_floors_are_those_that_import_linter_enforces():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    enforced = [re.sub(r"[()]|pacs_ai\\.", "", layer).replace("pacs_ai.", "") for layer in contracts[0]["layers"]]
    block = PAGE.split("## Floors")[1].split("    cli\n")[1].split("\n\n")[0]
    assert ["cli", *[line.strip() for line in block.splitlines()]] == enforced
