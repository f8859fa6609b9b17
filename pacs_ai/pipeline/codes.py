"""Coded concepts (PS3.3 Table 8.8-1), and those that nearly every pipeline needs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Code:
    """A coded concept: Code Value, Coding Scheme Designator and Code Meaning (PS3.3 Table 8.8-1)."""

    value: str
    scheme: str
    meaning: str


def _sct(value: str, meaning: str) -> Code:
    return Code(value, "SCT", meaning)


#: Segmented property category (CID 7150).
ANATOMICAL_STRUCTURE = _sct("123037004", "Anatomical Structure")
MORPHOLOGIC_ABNORMALITY = _sct("49755003", "Morphologically Altered Structure")
LEFT = _sct("7771000", "Left")
RIGHT = _sct("24028007", "Right")
VOLUME = _sct("118565006", "Volume")
MILLILITRE = Code("ml", "UCUM", "ml")
MILLIMETRE = Code("mm", "UCUM", "mm")
PERCENT = Code("%", "UCUM", "%")
HOUNSFIELD_UNIT = Code("[hnsf'U]", "UCUM", "Hounsfield unit")
