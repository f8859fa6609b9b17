"""What was looked for and not found, said once: a second lesion that is not there is no absence of lesions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pacs_ai.encode.provenance import LONG_STRING, clean
from pacs_ai.pipeline import MORPHOLOGIC_ABNORMALITY

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pacs_ai.pipeline import Label


def absent_kinds(absent: Sequence[Label], labels: Sequence[Label]) -> tuple[Label, ...]:
    """Return the absent structures, and of lesions one of each kind of which none was found.

    Of one kind are lesions of one type and modifier, "Liver lesion 1" and "Liver lesion 2" for instance: beside one
    that was found the code "Lesion: Absent" would say that there is none.

    Parameters
    ----------
    absent
        What was looked for and not found.
    labels
        Of the card.
    """
    told = {_kind(label) for label in labels if label not in absent}
    kept = []
    for label in absent:
        if not _is_lesion(label) or _kind(label) not in told:
            told.add(_kind(label))
            kept.append(label)
    return tuple(kept)


def absent_names(absent: Sequence[Label], labels: Sequence[Label]) -> list[str]:
    """Return the names of what was not found; of lesions that differ by a running number their common one, once.

    Of these none is returned where one was found. Parameters as of `absent_kinds`.
    """
    stems = [_stem(label) for label in labels]
    found = {_stem(label) for label in labels if label not in absent}
    names: dict[str, None] = {}
    for label in absent:
        stem = _stem(label)
        if stems.count(stem) == 1:
            names[label.name] = None
        elif stem not in found:
            names[stem] = None
    return [clean(name, LONG_STRING) for name in names]


def _kind(label: Label) -> tuple[str, ...]:
    modifier = () if label.modifier is None else (label.modifier.value, label.modifier.scheme)
    return (label.type.value, label.type.scheme, *modifier)


def _is_lesion(label: Label) -> bool:
    return label.category.value == MORPHOLOGIC_ABNORMALITY.value


def _stem(label: Label) -> str:
    """Return a lesion's name without its running number; a structure's as it is: the fifth rib is not the fourth."""
    if not _is_lesion(label):
        return label.name
    stem, _, last = label.name.rpartition(" ")
    return stem if stem and last.isdigit() else label.name
