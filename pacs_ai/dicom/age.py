"""Ages as DICOM writes them: days, weeks, months or years (Age String, PS3.5 6.2)."""

from __future__ import annotations

import re

_AGE = re.compile(r"(\d{3})([DWMY])")
_YEARS = {"D": 1 / 365.25, "W": 7 / 365.25, "M": 1 / 12, "Y": 1.0}


def years_of(age: str) -> float | None:
    """Return an Age String in years, None where it is none: "050Y" is 50.0, "018M" 1.5."""
    found = _AGE.fullmatch(age)
    return None if found is None else int(found[1]) * _YEARS[found[2]]
