"""Readings whose weights their user brings, with random ones: from C-STORE to the objects in the PACS."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pydicom
import pytest
from reading_bed import running

from pacs_ai.models.package import ZOO
from pacs_ai.states import JobState
from pacs_ai.testing import samples

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from reading_bed import ReadingBed

LESIONS = """
seed_weights = 3
spacing_mm = [5.0, 5.0, 5.0]
candidate_threshold = 0.001
most = 4
threshold = 0.001
smallest_mm = 0.1
largest_mm = 1000.0
"""
SEEDED = {"ct-lung-nodules": LESIONS, "mammography": "seed_weights = 3\n", "bone-radiograph": "seed_weights = 3\n"}


def seeded(name: str, settings: str, models: Path) -> None:
    """Put the zoo's recipe into the models folder, with random weights in place of the user's."""
    text = (ZOO / name / "model.toml").read_text(encoding="utf-8")
    front, _, _ = text.partition("[files]")
    front, _, _ = front.partition("[settings]")
    (models / name).mkdir(parents=True)
    (models / name / "model.toml").write_text(f"{front}[settings]\n{settings}", encoding="utf-8")


@pytest.fixture(scope="module")
def bed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ReadingBed]:
    """Start a node with all of them."""
    folder = tmp_path_factory.mktemp("brought")
    models = folder / "models"
    for name, settings in SEEDED.items():
        seeded(name, settings, models)
    with running(folder, SEEDED, models) as started:
        yield started


def sample(reading: str, folder: Path) -> Path:
    samples.write(reading, folder)
    return folder


def test_boxes_come_back_as_tracked_lesions(bed, tmp_path):
    found = bed.journey("ct-lung-nodules", sample("ct-lung-nodules", tmp_path))
    assert found.job.state is JobState.DONE
    report = found.one("SR")
    assert report.StudyInstanceUID == pydicom.dcmread(found.sent[0]).StudyInstanceUID
    assert "Possible lung nodule" in found.text


def test_four_views_are_one_study(bed, tmp_path):
    found = bed.journey("mammography", sample("mammography", tmp_path))
    assert "Breast composition" in found.text
    assert "Suspicious abnormality of left breast" in found.text


def test_a_view_that_does_not_come_is_refused(bed, tmp_path):
    files = [path for path in sorted(sample("mammography", tmp_path).rglob("*.dcm")) if path.parent.name != "LMLO"]
    copies = []
    for number, path in enumerate(files):
        ds = pydicom.dcmread(path)
        for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
            setattr(ds, keyword, f"{ds[keyword].value[:50]}.9.{number if keyword != 'StudyInstanceUID' else 0}")
        ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
        ds.save_as(tmp_path / f"{number}.dcm")
        copies.append(tmp_path / f"{number}.dcm")
    found = bed.journey("mammography", copies, JobState.REFUSED)
    assert "mlo_left" in found.job.reason


def test_bone_is_answered_for_both_views(bed, tmp_path):
    found = bed.journey("bone-radiograph", sample("bone-radiograph", tmp_path))
    assert "Normality" in found.text
