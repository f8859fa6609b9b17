"""Two series on one grid: resampled within one frame of reference, registered rigidly between two, or refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from pacs_ai.errors import Reason, Refused
from pacs_ai.infer import alignment
from pacs_ai.infer.volume import load_volume
from pacs_ai.pipeline import Card, Code, Findings, Input, Volume

CARD = Card(
    "two", "1", "tests", "Two", {"image": Input(("MR",)), "other": Input(("MR",), align=True)}, (),
    Code("1", "99T", "p"), "test",
)  # fmt: skip
TURN, SHIFT = (5.0, -8.0, 10.0), (12.0, -7.0, 15.0)


def head(size=40, step=4.5):
    """An egg with an off-centre ball and a wedge in it: no two directions alike."""
    z, y, x = (np.mgrid[:size, :size, :size] - size / 2 + 0.5) * step
    values = 100.0 * ((x / 60) ** 2 + (y / 75) ** 2 + (z / 65) ** 2 < 1)
    values[(x - 25) ** 2 + (y + 10) ** 2 + (z - 15) ** 2 < 18**2] = 220
    values[(np.abs(x + 25) < 12) & (np.abs(y - 20) < 25) & (np.abs(z + 20) < 10)] = 30
    affine = np.array([[0, 0, step, -90], [0, step, 0, -90], [step, 0, 0, -90], [0, 0, 0, 1.0]])
    return Volume(values.astype(np.float32), affine, "MR", {}, "1.1")


def motion(volume):
    """A turn about the middle of the volume, and a shift."""
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", TURN, degrees=True).as_matrix()
    middle = (volume.affine @ [*((size - 1) / 2 for size in volume.shape), 1.0])[:3]
    matrix[:3, 3] = np.array(SHIFT) + middle - matrix[:3, :3] @ middle
    return matrix, middle


def moved(volume):
    matrix, _ = motion(volume)
    return replace(volume, affine=matrix @ volume.affine, frame_of_reference_uid="2.2")


def errors(volume, found):
    """Degrees and mm at the middle by which a registration is wrong."""
    matrix, middle = motion(volume)
    wrong = np.linalg.inv(matrix) @ found
    turned = np.degrees(np.linalg.norm(Rotation.from_matrix(wrong[:3, :3]).as_rotvec()))
    return turned, float(np.linalg.norm((wrong @ [*middle, 1.0])[:3] - middle))


def test_one_frame_of_reference_is_resampled_by_places():
    fixed = head()
    other = replace(fixed, voxels=fixed.voxels[4:, ::2], affine=fixed.affine @ _crop(4))
    found, notes = alignment.align(CARD, {"image": fixed, "other": other})
    inside = found["other"].voxels[6:-2, 2:-2]
    assert found["other"].shape == fixed.shape
    assert np.array_equal(found["other"].affine, fixed.affine)
    assert np.abs(inside - fixed.voxels[6:-2, 2:-2]).mean() < 3
    assert notes[0].startswith("other was resampled onto the grid of image: one frame of reference")


def _crop(slices):
    matrix = np.eye(4)
    matrix[1, 1], matrix[0, 3] = 2, slices
    return matrix


def test_another_frame_of_reference_is_registered(monkeypatch):
    register, registrations = alignment.register, []
    monkeypatch.setattr(alignment, "register", lambda *pair: registrations.append(register(*pair)) or registrations[-1])
    fixed = head()
    found, (note,) = alignment.align(CARD, {"image": fixed, "other": moved(fixed)})
    assert "registered rigidly to image: agreement within" in note
    assert found["other"].frame_of_reference_uid == "1.1"
    assert np.abs(found["other"].voxels - fixed.voxels).mean() < 6
    degrees, mm = errors(fixed, registrations[0].matrix)
    assert degrees < 1
    assert mm < 1
    again, _ = alignment.align(CARD, {"image": fixed, "other": moved(fixed)})
    assert np.array_equal(again["other"].voxels, found["other"].voxels)


def test_what_shows_something_else_is_refused():
    fixed = head()
    noise = np.random.default_rng(0).normal(size=fixed.shape).astype(np.float32)
    with pytest.raises(Refused, match="cannot be registered") as raised:
        alignment.align(CARD, {"image": fixed, "other": replace(moved(fixed), voxels=noise)})
    assert raised.value.reason is Reason.ALIGNMENT


def test_another_place_is_refused():
    fixed = head()
    away = fixed.affine.copy()
    away[2, 3] += 900
    with pytest.raises(Refused, match="covers 0 % of image") as raised:
        alignment.align(CARD, {"image": fixed, "other": replace(fixed, affine=away)})
    assert raised.value.reason is Reason.ALIGNMENT


def test_findings_on_an_input_that_was_moved_lie_on_the_first():
    assert alignment.on_own_grid(CARD, Findings(grid="other")).grid == "image"


@pytest.mark.nightly
def test_a_real_head_that_was_moved_is_found_within_a_millimetre_and_a_degree(shared_data):
    volume = load_volume(sorted((shared_data / "pet_t1_brainweb" / "t1").rglob("*.dcm"))).volume
    found = alignment.register(volume, moved(volume))
    degrees, mm = errors(volume, found.matrix)
    assert degrees < 1
    assert mm < 1
    assert found.inconsistency_mm < alignment.MOST_INCONSISTENT_MM
