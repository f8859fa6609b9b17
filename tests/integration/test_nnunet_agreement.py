"""Folders that nnU-Net itself planned and trained: its own predictor and this node give the same labels."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "nnunet_agreement.py"


def interpreter() -> str:
    """Return an interpreter that has nnunetv2: the one that NNUNET_PYTHON names, or this one."""
    named = os.environ.get("NNUNET_PYTHON", "")
    if named or importlib.util.find_spec("nnunetv2"):
        return named or sys.executable
    pytest.skip(
        "NNUNETV2 MISSING: make a virtual environment with nnunetv2 and name its interpreter in NNUNET_PYTHON, so "
        "nothing was compared with nnU-Net itself here"
    )


@pytest.mark.nightly
@pytest.mark.timeout(3600)
def test_labels_are_those_of_nnu_net(tmp_path):
    done = subprocess.run(
        [sys.executable, SCRIPT, "--python", interpreter(), "--out", tmp_path, "--iterations", "20"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert done.stdout.count("folds") == 3
