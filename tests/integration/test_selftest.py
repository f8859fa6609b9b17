"""`pacs-ai selftest`: letters that show which way a viewer holds the images, and a result that marks exactly them."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import highdicom
import numpy as np
import pytest
from click.testing import CliRunner
from pydicom import dcmread
from pynetdicom import build_context
from pynetdicom.sop_class import (
    ComprehensiveSRStorage,
    CTImageStorage,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
    Verification,
)

from pacs_ai.cli import main
from pacs_ai.infer.volume import load_volume
from pacs_ai.testing import compass

MOMENT = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)


@pytest.fixture(scope="module")
def volume(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compass")
    paths = []
    for number, ds in enumerate(compass.compass_series(MOMENT)):
        paths.append(folder / f"{number}.dcm")
        ds.save_as(paths[-1], enforce_file_format=True)
    return load_volume(paths).volume


def centre(volume, label):
    """Return the mean position of a letter's voxels in LPS mm."""
    segment = next(one for one in compass.compass_findings().segments if one.label == label)
    return (volume.affine @ [*np.argwhere(segment.mask).mean(axis=0), 1.0])[:3]


def test_letters_lie_where_they_say(volume):
    at = {mark.letter: centre(volume, mark.label.name) for mark in compass.MARKS}
    assert at["L"][0] > 80 > -80 > at["R"][0], "+x is the patient's left (PS3.3 C.7.6.2.1.1)"
    assert at["P"][1] > 0 > at["A"][1], "+y is the back"
    assert at["H"][2] > 80 > -80 > at["F"][2], "+z is the head"


def test_the_findings_cover_exactly_the_bright_letters(volume):
    marked = np.any([segment.mask for segment in compass.compass_findings().segments], axis=0)
    assert (volume.voxels[marked] == compass.LETTER_HU).all()
    assert compass.compass_findings().segments[0].voxels.max() == len(compass.MARKS)


def test_letters_are_no_mirror_images(volume):
    """In each axial slice, columns to the left and rows to the back, the foot of L points to the reader's right."""
    mask = compass.compass_findings().segments[0].mask
    plane = mask[mask.any(axis=(1, 2)).argmax()]
    rows = np.flatnonzero(plane.any(axis=1))
    top, bottom = plane[rows[0]], plane[rows[-1]]
    assert np.flatnonzero(top)[0] == np.flatnonzero(bottom)[0]
    assert np.flatnonzero(bottom)[-1] > np.flatnonzero(top)[-1]


@pytest.fixture
def run(tmp_path):
    def run(peer, *arguments, profile="ohif"):
        path = tmp_path / "pacs-ai.toml"
        path.write_text(f"""
            [[peer]]
            name = "pacs"
            ae_title = "{peer.ae_title}"
            host = "127.0.0.1"
            port = {peer.port}
            profile = "{profile}"
        """)
        return CliRunner().invoke(main, ["-c", str(path), "selftest", "pacs", *arguments])

    return run


def test_a_peer_gets_the_letters_and_their_result(run, keeping_peer, tmp_path):
    result = run(keeping_peer, "--out", str(tmp_path / "kept"))
    assert result.exit_code == 0, result.output
    assert "The letters are readable and not mirrored" in result.output
    assert (tmp_path / "kept" / "expected.png").stat().st_size > 10_000
    received = {path: dcmread(path) for path in keeping_peer.folder.rglob("*") if path.is_file()}
    images = [ds for ds in received.values() if ds.SOPClassUID == CTImageStorage]
    assert len(images) == compass.GRID.slices
    (path,) = [path for path, ds in received.items() if ds.SOPClassUID == SegmentationStorage]
    seg = highdicom.seg.segread(path)
    by_position = sorted(images, key=lambda ds: ds.ImagePositionPatient[2])
    masks = seg.get_pixels_by_source_instance(
        [ds.SOPInstanceUID for ds in by_position], assert_missing_frames_are_empty=True
    )
    for number, mark in enumerate(compass.MARKS):
        pixels = np.stack([ds.pixel_array.astype(int) + int(ds.RescaleIntercept) for ds in by_position])
        assert (pixels[masks[..., number] > 0] == compass.LETTER_HU).all(), mark
    assert {ds.PatientID for ds in received.values()} == {"PACS-AI-SELFTEST"}


def test_what_a_peer_does_not_take_is_replaced_as_the_profile_says(run, make_peer):
    taken = (Verification, CTImageStorage, SegmentationStorage, ComprehensiveSRStorage, SecondaryCaptureImageStorage)
    result = run(make_peer(supported=[build_context(each) for each in taken]), "--json", profile="generic-pacs")
    assert result.exit_code == 0, result.output
    assert {outcome["category"] for outcome in json.loads(result.stdout)["outcomes"]} == {"success"}


def test_a_peer_that_takes_no_ct_is_named_with_the_reason(run, make_peer):
    result = run(make_peer(supported=[build_context(Verification), build_context(SegmentationStorage)]))
    assert result.exit_code == 1
    assert "does not accept CT Image Storage" in result.output
