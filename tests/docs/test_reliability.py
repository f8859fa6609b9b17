"""docs/reliability.md says of each threat how it is tested, and its tests are there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))
import rows  # noqa: E402

PAGE = rows.PAGE.read_text()
ROWS = rows.rows_of(PAGE)
TESTS = rows.tests_of(ROOT / "tests")
#: How many threats each group of the page has.
GROUPS = {"NET": 20, "ASC": 14, "DAT": 18, "STO": 13, "QUE": 10, "INF": 10, "RES": 9, "DEL": 11, "MOD": 9}
GROUPS |= {"CFG": 6, "PRI": 7}


def test_every_threat_of_each_group_is_there():
    assert set(ROWS) == {f"{group}-{n:02d}" for group, count in GROUPS.items() for n in range(1, count + 1)}


@pytest.mark.parametrize("row", ROWS.values(), ids=list(ROWS))
def test_each_threat_has_its_tests_or_an_explanation(row):
    assert set(row.modules) <= TESTS.get(row.id, set()), "no such test; correct the last column"
    assert row.modules or len(row.promise) > 40, "an explanation says why there is no test"


def test_no_test_names_a_threat_that_the_page_does_not_have():
    assert set(TESTS) <= set(ROWS)


def test_the_front_door_is_proved_row_by_row():
    explained = {row.id[:3] for row in ROWS.values() if not row.modules}
    assert not explained & {"NET", "ASC", "DAT", "STO", "QUE"}


def test_the_script_lists_what_has_no_test():
    done = subprocess.run([sys.executable, ROOT / "scripts" / "rows.py"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    listed = re.findall(r"^([A-Z]{3}-\d\d)  explained", done.stdout, re.MULTILINE)
    assert listed == [row.id for row in ROWS.values() if row.id not in TESTS]
