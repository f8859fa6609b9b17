"""What all tests share: where the real public data lie, and one loud skip where they do not."""

from __future__ import annotations

from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED = REPOSITORY.parent / "shared"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real public series (MANIFEST.json says what and whose)."""
    folder = SHARED / "data"
    if not (folder / "MANIFEST.json").exists():
        pytest.skip("REAL DATA MISSING: ../shared/data is not beside this checkout, so nothing real was tested here")
    return folder


@pytest.fixture(scope="session")
def shared_bundles() -> Path:
    """Folder of MONAI model-zoo configurations that nobody here wrote."""
    folder = SHARED / "bundles"
    if not folder.exists():
        pytest.skip("BUNDLES MISSING: ../shared/bundles is not beside this checkout, so no zoo bundle was tested here")
    return folder
