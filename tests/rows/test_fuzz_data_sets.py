"""Data sets that are nearly right are refused, or have the identity that DCMTK reads in them."""

from __future__ import annotations

import json
import random
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from fuzz import data_sets
from fuzz.amount import amount, seed, tell
from fuzz.data_sets import IDENTITY, Case

from pacs_ai.dicom.attributes import read_header
from pacs_ai.errors import NotUnderstood

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pacs_ai.dicom.attributes import Header

CASES = json.loads((Path(__file__).parents[1] / "fuzz" / "cases" / "data_sets.json").read_text())
BATCH = 250


@pytest.fixture(autouse=True)
def _needs_dcmdump():
    if shutil.which("dcmdump") is None:
        pytest.skip("DCMTK MISSING: no dcmdump, so no identity was compared here")


def understood(case: Case) -> Header | None:
    """Read a header, within the time that nothing may exceed; None where it is refused."""
    begun = time.process_time()
    try:
        header = read_header(case.data_set, case.transfer_syntax_uid)
    except NotUnderstood:
        header = None
    assert time.process_time() - begun < 5.0, (case.transfer_syntax_uid, case.data_set.hex())
    return header


def differences(read: Sequence[tuple[Case, Header]], folder: Path) -> list[str]:
    """Return what DCMTK refuses or reads otherwise, ready to be kept among the cases."""
    found = []
    for (case, header), reading in zip(read, data_sets.dcmtk_reads([case for case, _ in read], folder), strict=True):
        wrong = [word for word in IDENTITY.values() if header.get(word) != reading.identity[word]]
        if wrong or reading.objects:
            what = {"found": f"DCMTK refuses: {reading.objects}; differs: {wrong}"}
            case_as_kept = {"transfer_syntax_uid": case.transfer_syntax_uid, "data_set": case.data_set.hex()}
            found.append(json.dumps(what | case_as_kept))
    return found


@pytest.mark.timeout(3600)
def test_DAT_18_mutated_data_sets_are_refused_or_have_the_identity_that_dcmtk_reads(tmp_path: Path):
    generator = random.Random(seed())
    count, read, compared = amount(3_000, 50_000), [], 0
    for number in range(count):
        case = data_sets.grow(generator)
        if (header := understood(case)) is not None:
            read.append((case, header))
        if len(read) == BATCH or number == count - 1:
            found = differences(read, tmp_path)
            assert not found, "\n".join(found)
            compared += len(read)
            read = []
    tell(f"{count} data sets, {compared} of them understood, each as DCMTK does")
    assert compared > count / 4


@pytest.mark.parametrize("kept", CASES, ids=[f"{n}" for n in range(len(CASES))])
def test_DAT_18_what_was_once_found_stays_right(kept: dict[str, str], tmp_path: Path):
    case = Case(kept["transfer_syntax_uid"], bytes.fromhex(kept["data_set"]))
    header = understood(case)
    if header is not None:
        assert differences([(case, header)], tmp_path) == []
