"""One Orthanc, one OHIF in front of it and one browser for all viewer tests, and what was found in real images."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from orthanc_bed import REPOSITORY, Orthanc, missing
from pydicom import dcmread
from sources import Analysed, Source, write_radiograph
from viewing import Browser, Site, Viewer, fetched, program

from pacs_ai.testing.pipelines import Everything, RadiographRegions

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def pictures() -> Path:
    """Folder in which pictures of the screen are kept; the environment's PACS_AI_PICTURES, else build/viewer."""
    folder = Path(os.environ.get("PACS_AI_PICTURES") or REPOSITORY / "build" / "viewer")
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.png"):
        old.unlink()
    return folder


@pytest.fixture(scope="session")
def chromium() -> str:
    """Path of the browser."""
    program("nginx", "nginx-light")
    program("node", "nodejs")
    return program("chromium", "chromium")


@pytest.fixture(scope="session")
def pacs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    """Start an Orthanc of its own, which routes CT and MR that come by C-STORE or REST to its `node_port`."""
    if missing():
        pytest.skip(missing())
    orthanc = Orthanc(tmp_path_factory.mktemp("orthanc"))
    orthanc.start()
    yield orthanc
    orthanc.stop()


@pytest.fixture(scope="session")
def viewer(chromium: str, pacs: Orthanc, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Viewer]:
    """OHIF in the browser, in front of `pacs`."""
    playwright = fetched("playwright-core")
    fetched("@ohif/app")
    site = Site(pacs.http_port)
    browser = Browser(playwright, chromium, tmp_path_factory.mktemp("browser") / "browser.log")
    yield Viewer(site, browser, pictures)
    browser.close()
    site.close()


@pytest.fixture(scope="session")
def chest(pacs: Orthanc, shared_data: Path) -> Analysed:
    """Everything that can be found in the middle 16 slices of a real chest CT (JPEG-LS, 1 mm)."""
    paths = sorted((shared_data / "ct_chest_lidc_thin").glob("*.dcm"), key=_instance_number)[120:136]
    return Analysed.by(Everything(), pacs, Source.of(paths))


@pytest.fixture(scope="session")
def radiograph(pacs: Orthanc, shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Analysed:
    """What can be found in a real chest radiograph."""
    picture = shared_data / "cxr_nih_png" / "00000284_000.png"
    path = write_radiograph(tmp_path_factory.mktemp("radiograph"), picture)
    return Analysed.by(RadiographRegions(), pacs, Source.of([path]))


def _instance_number(path: Path) -> int:
    return int(dcmread(path, stop_before_pixels=True, specific_tags=["InstanceNumber"]).InstanceNumber)
