"""Data sets that are nearly right are refused, or have the identity that DCMTK reads in them."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from effort import effort
from fuzz import data_sets
from fuzz.amount import seed, tell
from fuzz.data_sets import IDENTITY, Case
from fuzz.watch import Cases

from pacs_ai.dicom.attributes import read_header
from pacs_ai.errors import NotUnderstood

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pacs_ai.dicom.attributes import Header

CASES = json.loads((Path(__file__).parents[1] / "fuzz" / "cases" / "data_sets.json").read_text())
BATCH = 250
#: Lines of Python for any data set, and for each of its bytes: several times the costliest (3,500 in 1,006)
LINES, LINES_PER_BYTE = 1_000, 20


@pytest.fixture(autouse=True)
def _needs_dcmdump():
    if shutil.which("dcmdump") is None:
        pytest.skip("DCMTK MISSING: no dcmdump, so no identity was compared here")


def understood(case: Case) -> Header | None:
    """Read a header, at a cost in proportion to its length; None where it is refused."""
    header = None
    with effort() as spent, contextlib.suppress(NotUnderstood):
        header = read_header(case.data_set, case.transfer_syntax_uid)
    assert spent.lines <= LINES + LINES_PER_BYTE * len(case.data_set), json.dumps({"found": "", **kept_as(case)})
    return header


def kept_as(case: Case) -> dict[str, str]:
    """Return a case as it is kept."""
    return {"transfer_syntax_uid": case.transfer_syntax_uid, "data_set": case.data_set.hex()}


def differences(read: Sequence[tuple[Case, Header]], folder: Path) -> list[str]:
    """Return what DCMTK refuses or reads otherwise, ready to be kept among the cases."""
    found = []
    for (case, header), reading in zip(read, data_sets.dcmtk_reads([case for case, _ in read], folder), strict=True):
        wrong = [word for word in IDENTITY.values() if header.get(word) != reading.identity[word]]
        if wrong or reading.objects:
            what = {"found": f"DCMTK refuses: {reading.objects}; differs: {wrong}"}
            found.append(json.dumps(what | kept_as(case)))
    return found


@pytest.mark.timeout(3600)
def test_DAT_18_mutated_data_sets_are_refused_or_have_the_identity_that_dcmtk_reads(tmp_path: Path):
    generator = random.Random(seed())
    cases, compared = Cases(3_000, 50_000), 0
    while cases.are_left:
        read: list[tuple[Case, Header]] = []
        while cases.are_left and len(read) < BATCH:
            case = data_sets.grow(generator)
            with cases.one(kept_as(case)):
                header = understood(case)
            if header is not None:
                read.append((case, header))
        found = differences(read, tmp_path)
        assert not found, "\n".join(found)
        compared += len(read)
    tell(f"{cases.done} data sets, {compared} of them understood, each as DCMTK does")
    assert compared > cases.done / 4


@pytest.mark.parametrize("kept", CASES, ids=[f"{n}" for n in range(len(CASES))])
def test_DAT_18_what_was_once_found_stays_right(kept: dict[str, str], tmp_path: Path):
    case = Case(kept["transfer_syntax_uid"], bytes.fromhex(kept["data_set"]))
    header = understood(case)
    if header is not None:
        assert differences([(case, header)], tmp_path) == []
