"""List the threats of docs/reliability.md that no test names, and tests that name none of them.

    python scripts/rows.py

A test names a threat by its ID in its function's name, as `test_NET_07_...`. The exit code is 1 where a threat has
neither a test nor an explanation in the page, or a test names a threat that the page does not have.
"""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "reliability.md"
#: What stands in the page's last column where a threat has an explanation and no test.
EXPLAINED = "explained"

_ROW = re.compile(r"^\| ([A-Z]{3}-\d\d) \| (.+) \| (.+) \|$", re.MULTILINE)
_TEST = re.compile(r"^ *def (test_\w+)", re.MULTILINE)
_ID = re.compile(r"(?<=_)([A-Z]{3})_(\d\d)(?=_)")


@dataclass(frozen=True)
class Row:
    """One threat of the page: its ID, the promise, and the modules whose tests prove it, () where it is explained."""

    id: str
    promise: str
    modules: tuple[str, ...]


def rows_of(page: str) -> dict[str, Row]:
    """Return the threats of the page by ID; ValueError where one stands twice."""
    found: dict[str, Row] = {}
    for name, promise, last in _ROW.findall(page):
        if name in found:
            raise ValueError(f"{name} stands twice in {PAGE.name}")
        modules = () if last == EXPLAINED else tuple(re.findall(r"`(\w+)`", last))
        found[name] = Row(name, promise, modules)
    return found


def tests_of(folder: Path) -> Mapping[str, set[str]]:
    """Return, by ID, the test modules below a folder that name it in a test."""
    found: dict[str, set[str]] = defaultdict(set)
    for path in sorted(folder.rglob("test_*.py")):
        for name in _TEST.findall(path.read_text(encoding="utf-8")):
            for group, number in _ID.findall(name):
                found[f"{group}-{number}"].add(path.stem)
    return found


def main() -> int:
    rows, tests = rows_of(PAGE.read_text(encoding="utf-8")), tests_of(ROOT / "tests")
    faults = 0
    for row in rows.values():
        if row.id not in tests:
            explained = not row.modules
            faults += not explained
            print(f"{row.id}  {'explained' if explained else 'WITHOUT A TEST'}: {row.promise}")
    for name in sorted(tests.keys() - rows.keys()):
        faults += 1
        print(f"{name}  NOT IN {PAGE.name}: {', '.join(sorted(tests[name]))}")
    print(f"{len(rows)} threats, {len(rows.keys() & tests.keys())} with tests")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
