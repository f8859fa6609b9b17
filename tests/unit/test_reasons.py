"""INF-01: no input is turned away without a code of the reason, which programs count and route by."""

from __future__ import annotations

import ast
from pathlib import Path

import pacs_ai

ROOT = Path(pacs_ai.__file__).parent
#: Where inputs are judged.
ROOMS = ("dicom", "infer", "models")


def _without_reason(path: Path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Refused":
            coded = len(node.args) > 1 or any(keyword.arg == "reason" for keyword in node.keywords)
            if not coded:
                yield f"{path.relative_to(ROOT)}:{node.lineno}"


def test_every_refusal_of_an_input_bears_a_code():
    paths = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]
    texts = [path for path in paths if "Refused(" in path.read_text()]
    assert len(texts) > 20
    assert [found for path in texts for found in _without_reason(path)] == []
