"""`make viewer`: one command, and a real CT that went through Orthanc and the node is open with the AI's overlay."""

from __future__ import annotations

import signal
import subprocess
import sys
from contextlib import contextmanager

import pytest
from orthanc_bed import REPOSITORY
from sources import Analysed, Source

from pacs_ai.models.lung import CtLung

pytestmark = [pytest.mark.viewer, pytest.mark.orthanc]


@contextmanager
def command(*arguments):
    process = subprocess.Popen(
        [sys.executable, str(REPOSITORY / "scripts" / "viewer.py"), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.nightly
def test_one_command_opens_a_real_ct_with_its_overlay(viewer, pacs, shared_data):
    paths = sorted((shared_data / "ct_chest_tcga_thick").glob("*.dcm"))
    expected = Analysed.by(CtLung(), pacs, Source.of(paths))
    with command("--study", paths[0].parent) as process:
        lines = []
        for line in process.stdout:
            lines.append(line)
            if "/viewer?" in line:
                break
        assert "/viewer?" in lines[-1], "".join(lines)
        viewer.browser("open", url=lines[-1].strip())
        found = viewer.until(lambda memory: memory["segmentations"] and memory["segmentations"][0], "the overlay")
        assert [one["label"] for one in found["segments"]] == [one.label for one in expected.findings.segments]
        assert found["voxels"] == expected.voxels()
        most = max(found["voxels"], key=lambda image: sum(count for count, _ in found["voxels"][image].values()))
        viewer.until(lambda memory: memory["viewports"][0]["image"] == most, "the fullest slice")
        viewer.until_drawn("make viewer")
        process.send_signal(signal.SIGTERM)
        words, _ = process.communicate(timeout=60)
        assert process.returncode == 0, words
        assert "nothing is kept" in words


def test_a_folder_without_images_is_refused_in_words(viewer, tmp_path):
    with command("--study", tmp_path) as process:
        words, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "holds no DICOM files" in words
    assert "Traceback" not in words
