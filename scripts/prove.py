"""Kill the node, cut its power, break its disk, make it wrong on purpose; and print what was tried and what was found.

    scripts/prove.py                 what a build does: all of it, three harnesses at a time
    scripts/prove.py --night         ten thousand kills and cuts instead of two and one
    scripts/prove.py kill power      some of it: kill, points, recovery, power, power-points, power-recovery, errors,
                                     errors-ahead, full, postgres, frozen, late, bugs, fuzz

Every harness prints its seed (`--seed` repeats a run) and stops at its time limit, saying how much it did. The exit
status is 1 where any promise was broken, where a known-wrong variant of the node was not found out, and, unless some
harnesses are named, where one did less than a quarter of what it was to do.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))  # where the harnesses lie
    sys.exit(importlib.import_module("prove.program").main(__doc__))
