"""Every coded concept of the node against pydicom's dictionaries: a code must mean what the words beside it say."""

from __future__ import annotations

import ast
import re
import tomllib
from collections import defaultdict
from pathlib import Path

import pytest
from pydicom.sr._concepts_dict import concepts

import pacs_ai
from pacs_ai.models.anatomy import ANATOMY
from pacs_ai.models.package import ZOO

ROOT = Path(pacs_ai.__file__).parent
#: Functions that make a concept of (value, meaning), by name, and their scheme.
SHORT = {"sct": "SCT", "_sct": "SCT", "dcm": "DCM", "_dcm": "DCM"}
FULL = {"Code", "CodedConcept"}
#: Schemes that the dictionaries hold whole context groups of: a code that is in none of them is a slip of the pen.
KNOWN = {"DCM", "MDC", "LN"}
#: Words that mean the same as those of the dictionaries.
SAME = {
    "108369006": "tumor",
    "59820001": "vascular",
    "43468-8": "ray",
}


def _dictionary() -> dict[tuple[str, str], list[str]]:
    found = defaultdict(list)
    for scheme, named in concepts.items():
        for values in named.values():
            for value, (meaning, _) in values.items():
                found[value, scheme].append(meaning)
    return found


def _of_source(path: Path):
    text = path.read_text()
    if not re.search(r"\b(Code|CodedConcept|_?sct|_?dcm)\(", text):
        return
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
        given = [one.value for one in node.args if isinstance(one, ast.Constant) and isinstance(one.value, str)]
        if name in FULL and len(given) == 3:
            yield tuple(given)
        elif name in SHORT and len(given) == 2:
            yield given[0], SHORT[name], given[1]


def _of_table(table):
    if isinstance(table, dict):
        for value in table.values():
            yield from _of_table(value)
    elif isinstance(table, list) and len(table) == 3 and all(isinstance(one, str) for one in table):
        if table[1] in concepts:
            yield tuple(table)
    elif isinstance(table, list):
        for value in table:
            yield from _of_table(value)


def _every():
    for path in sorted(ROOT.rglob("*.py")):
        for code in _of_source(path):
            yield *code, path.name
    for path in sorted(ZOO.rglob("model.toml")):
        for code in _of_table(tomllib.loads(path.read_text())):
            yield *code, path.parent.name
    for value, meaning in ANATOMY.values():
        yield value, "SCT", meaning, "anatomy.py"


def _stems(words: str) -> set[str]:
    return {word[:5] for word in re.findall(r"[a-z0-9]+", words.lower()) if len(word) > 2 or word.isdigit()}


@pytest.fixture(scope="module")
def every():
    return list(_every())


def test_codes_mean_what_their_words_say(every):
    wrong, dictionary = [], _dictionary()
    assert len(every) > 400
    for value, scheme, meaning, where in every:
        told = dictionary.get((value, scheme), [])
        if scheme in KNOWN and not told:
            wrong.append(f"{where}: {value}, {scheme} ({meaning}) is in no dictionary")
        words = _stems(f"{meaning} {SAME.get(value, '')}")
        if told and scheme != "UCUM" and not any(words & _stems(one) for one in told):
            wrong.append(f"{where}: {value}, {scheme} is {told}, not {meaning}")
    assert not wrong, "\n".join(sorted(set(wrong)))


def test_a_meaning_has_one_code(every):
    """Two codes for one word within a scheme would be two things for whoever searches by code."""
    codes = defaultdict(set)
    for value, scheme, meaning, _ in every:
        codes[meaning.lower(), scheme].add(value)
    several = {meaning: values for (meaning, _), values in codes.items() if len(values) > 1}
    assert not several
