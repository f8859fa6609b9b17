"""How much is tried, and from which seed.

`PACS_AI_PROVE` is 0 for the ordinary tests, 1 for the proof of a release, 10 for a night. `PACS_AI_SEED` begins
elsewhere.
"""

from __future__ import annotations

import os
import sys


def amount(ordinary: int, proof: int) -> int:
    """Return how many cases to try: few in the ordinary tests, `proof` or a multiple of it where that is asked for."""
    factor = int(os.environ.get("PACS_AI_PROVE", "0"))
    return proof * factor if factor else ordinary


def seed() -> int:
    """Return where the generator starts; the same every time unless somebody says otherwise."""
    return int(os.environ.get("PACS_AI_SEED", "20"))


def tell(text: str) -> None:
    """Print a figure; pytest shows it where it is asked to (-rP)."""
    sys.stdout.write(f"{text}\n")
