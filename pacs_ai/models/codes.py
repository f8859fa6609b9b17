"""A search over the coded concepts that DICOM's context groups know, for whoever has to code a model's labels."""

from __future__ import annotations

import re
from dataclasses import dataclass

from pydicom.sr.codedict import codes

from pacs_ai.models.anatomy import ANATOMY, LESIONS, SIDES, SPELLINGS

#: Context groups of segments, by which hits are put first (PS3.16): what dcmqi's dictionaries are made of as well.
GROUPS = {"cid7151": "CID 7151 Segmentation Property Type", "cid7159": "CID 7159 Lesion Segmentation Type"}
#: Schemes that are searched.
SCHEMES = ("SCT", "NCIt")


@dataclass(frozen=True)
class Found:
    """One concept: its code, scheme and meaning, and the context group of segments that lists it ("" where none)."""

    value: str
    scheme: str
    meaning: str
    group: str

    @property
    def cells(self) -> tuple[str, str]:
        """The columns of a table; the first can be pasted into model.toml."""
        return (f'["{self.value}", "{self.scheme}", "{self.meaning}"]', self.group)


def search(words: str, most: int = 20) -> list[Found]:
    """Return the concepts whose meaning has all of the words, the shortest first, those of segments before others.

    Parameters
    ----------
    words
        In any order and case; the beginning of a word is enough.
    most
        At most so many.

    Notes
    -----
    Where no concept has a side of its own ("left kidney"), the search is for the structure: its side is a modifier.
    """
    wanted = [SPELLINGS.get(word, word) for word in _words(words)]
    bare = [word for word in wanted if word not in SIDES]
    return _hits(wanted, most) or (_hits(bare, most) if bare != wanted else [])


def _hits(wanted: list[str], most: int) -> list[Found]:
    if not wanted:
        return []
    grouped = _grouped()
    hits: dict[tuple[str, str], Found] = {}
    for value, scheme, meaning in _concepts():
        there = _words(meaning)
        if all(any(word.startswith(one) for word in there) for one in wanted):
            group = grouped.get((value, scheme), "")
            hits.setdefault((value, scheme), Found(value, scheme, meaning, group))
    return sorted(hits.values(), key=lambda hit: _rank(hit, wanted))[:most]


def _rank(hit: Found, wanted: list[str]) -> tuple[int, bool, str]:
    there = _words(hit.meaning)
    return len(there) - sum(word in there for word in wanted), not hit.group, hit.meaning


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())


def _grouped() -> dict[tuple[str, str], str]:
    return {
        (code.value, code.scheme_designator): title
        for name, title in reversed(GROUPS.items())
        for code in getattr(codes, name).concepts.values()
    }


def _concepts() -> list[tuple[str, str, str]]:
    """Return every concept of the schemes: those of pydicom's dictionary, and the node's own tables."""
    found = [(value, "SCT", meaning) for value, meaning in ANATOMY.values()]
    found += [(code.value, code.scheme, code.meaning) for code in LESIONS.values()]
    for scheme in SCHEMES:
        found += [(one.value, scheme, one.meaning) for one in getattr(codes, scheme).concepts.values()]
    return found
