"""The lungs that ct-lung finds are the phantom's, on any grid, and plausible on real chests; the rest is refused."""

from __future__ import annotations

import itertools
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from pydicom import dcmread

from pacs_ai.errors import Refused
from pacs_ai.infer.volume import load_volume
from pacs_ai.models.lung import LOW_ATTENUATION_AREA, MEAN_DENSITY, PERCENTILE_15, CtLung
from pacs_ai.pipeline import VOLUME, Volume
from pacs_ai.testing import CORONAL, SAGITTAL, Fault, Phantom, check_pipeline, phantom_truth

SMALL = {"slices": 60, "rows": 128, "columns": 128}
SIDES = ("Right lung", "Left lung")
UNITS = [tuple(float(v) for v in sign * np.eye(3)[axis]) for axis in range(3) for sign in (1, -1)]
AXIS_ALIGNED = [(*row, *column) for row, column in itertools.product(UNITS, UNITS) if np.dot(row, column) == 0]


def turned(degrees, axis):
    """Axial cosines, turned about an axis of the patient."""
    a, (i, j) = np.radians(degrees), [k for k in range(3) if k != axis]
    matrix = np.eye(3)
    matrix[i, i] = matrix[j, j] = np.cos(a)
    matrix[i, j], matrix[j, i] = -np.sin(a), np.sin(a)
    return tuple(float(v) for v in (*matrix[:, 0], *matrix[:, 1]))


@pytest.fixture(scope="module")
def lung():
    pipeline = CtLung()
    pipeline.prepare("cpu")
    return pipeline


def value(findings, concept, label):
    return next(m.value for m in findings.measurements if (m.concept, m.label) == (concept, label))


def dice(a, b):
    return 2 * np.sum(a & b) / (a.sum() + b.sum())


def assert_true(findings, truth, tolerance):
    for name, segment in zip(SIDES, findings.segments, strict=True):
        assert segment.label == name
        assert value(findings, VOLUME, name) == pytest.approx(truth.volumes_ml[name], rel=tolerance)
        assert value(findings, MEAN_DENSITY, name) == pytest.approx(truth.mean_hu[name], abs=2)
        assert value(findings, LOW_ATTENUATION_AREA, name) == pytest.approx(truth.laa950_percent[name], abs=0.1)
        assert value(findings, PERCENTILE_15, name) == pytest.approx(truth.perc15_hu[name], abs=1)
        assert dice(segment.mask, truth.mask(name)) > 1 - 2 * tolerance


def test_the_default_phantom_is_found_within_a_thousandth(lung):
    phantom = Phantom()
    assert_true(lung.run({"image": phantom.volume()}), phantom_truth(phantom), 0.001)


@pytest.mark.parametrize("orientation", AXIS_ALIGNED)
def test_any_orientation_gives_the_same_lungs(lung, orientation):
    phantom = Phantom(slices=80, rows=80, columns=80, orientation=orientation)
    assert_true(lung.run({"image": phantom.volume()}), phantom_truth(phantom), 0.01)


@pytest.mark.parametrize("orientation", [turned(12, 0), turned(-20, 2), turned(10, 1)])
def test_oblique_slices_give_the_same_lungs(lung, orientation):
    phantom = Phantom(slices=80, rows=80, columns=80, orientation=orientation)
    assert_true(lung.run({"image": phantom.volume()}), phantom_truth(phantom), 0.01)


@pytest.mark.parametrize(
    "more",
    [
        {"padded": True},
        {"faults": (Fault.GANTRY_TILT,)},
        {"spacing": (5.0, 2.6, 2.6), "slices": 66},
        {"spacing": (5.5, 2.5, 2.5)},  # the body reaches the image's edge
        {"orientation": CORONAL, "slices": 60, "rows": 128},
        {"orientation": SAGITTAL, "slices": 90, "rows": 128},
    ],
)
def test_coarse_grids_padding_and_tilt(lung, more):
    phantom = Phantom(**{**SMALL, **more})
    assert_true(lung.run({"image": phantom.volume()}), phantom_truth(phantom), 0.01)


def test_thick_and_thin_slices(lung):
    for phantom in (Phantom(slices=66, rows=200, columns=200), Phantom(slices=275, rows=160, columns=160)):
        assert_true(lung.run({"image": phantom.volume()}), phantom_truth(phantom), 0.005)


def test_fractional_densities_are_rounded(lung):
    volume = Phantom(**SMALL).volume()
    exact = lung.run({"image": volume})
    rounded = lung.run({"image": replace(volume, voxels=volume.voxels.astype(np.float32) + np.float32(0.25))})
    assert np.array_equal(exact.segments[0].voxels, rounded.segments[0].voxels)


def test_it_keeps_its_contract():
    findings = check_pipeline(CtLung())
    assert [s.label for s in findings.segments] == list(SIDES)
    assert len(findings.measurements) == 8


def test_refusals_say_why(lung):
    volume = Phantom(**SMALL).volume()

    def refused(changed):
        with pytest.raises(Refused) as refusal:
            lung.run({"image": changed})
        return str(refusal.value)

    abdomen = Phantom(**SMALL, anatomy="abdomen").volume()
    assert "chest" in refused(abdomen)
    lower = replace(volume, voxels=volume.voxels[:35])
    assert "cut off at the head end" in refused(lower) or "no trachea" in refused(lower)
    assert "cut off at the feet end" in refused(replace(volume, voxels=volume.voxels[22:]))
    assert "beyond the image's edge" in refused(replace(volume, voxels=volume.voxels[:, :, :108]))
    assert "whole chest" in refused(replace(volume, voxels=volume.voxels[:, :, :80]))
    assert "only 10 planes" in refused(replace(volume, voxels=volume.voxels[20:30]))
    assert "only 110 mm from feet to head" in refused(replace(volume, voxels=volume.voxels[20:40]))
    assert "Hounsfield" in refused(replace(volume, voxels=np.abs(volume.voxels)))
    one = volume.voxels.copy()
    one[phantom_truth(Phantom(**SMALL)).mask("Left lung")] = 20
    assert "lung" in refused(replace(volume, voxels=one))


def test_importing_the_module_does_not_import_torch():
    code = "import sys, pacs_ai.models.lung as m; m.CtLung().card; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def real(folder):
    return load_volume(sorted(p for p in folder.rglob("*") if p.is_file() and p.suffix in ("", ".dcm"))).volume


@pytest.mark.parametrize(
    ("series", "right_ml", "left_ml"),
    # both have a consolidated right upper or lower lobe: the right lung is the smaller one here
    [("ct_chest_lidc_thin", (870, 940), (1820, 1930)), ("ct_chest_tcga_thick", (930, 1010), (2580, 2730))],
)
def test_real_chests_have_plausible_lungs(lung, shared_data, series, right_ml, left_ml):
    findings = lung.run({"image": real(shared_data / series)})
    assert right_ml[0] < value(findings, VOLUME, "Right lung") < right_ml[1]
    assert left_ml[0] < value(findings, VOLUME, "Left lung") < left_ml[1]
    for name in SIDES:
        assert -910 < value(findings, MEAN_DENSITY, name) < -780


def bare(folder):
    """A volume of series that the volume builder refuses already (tilted gantry, no UIDs)."""
    images = [dcmread(p) for p in folder.iterdir() if p.is_file()]
    images.sort(key=lambda ds: float(ds.ImagePositionPatient[2]))
    voxels = np.stack(
        [ds.pixel_array.astype(np.int32) * int(ds.RescaleSlope) + int(ds.RescaleIntercept) for ds in images]
    )
    first, last = (np.array([float(v) for v in ds.ImagePositionPatient]) for ds in (images[0], images[-1]))
    row, column = np.reshape([float(v) for v in images[0].ImageOrientationPatient], (2, 3))
    affine = np.eye(4)
    affine[:3, 0] = (last - first) / (len(images) - 1)
    affine[:3, 1], affine[:3, 2] = column * images[0].PixelSpacing[0], row * images[0].PixelSpacing[1]
    affine[:3, 3] = first
    return Volume(voxels.astype(np.int16), affine, "CT")


@pytest.mark.parametrize(
    ("series", "why"),
    [("ct_head_ge_tilt", "no CT of the chest"), ("ct_abdomen_j2k_totalseg/dicom", "40 mm from feet to head")],
)
def test_real_series_that_are_no_chest_are_refused(lung, shared_data, series, why):
    with pytest.raises(Refused, match=why):
        lung.run({"image": bare(shared_data / series)})


@pytest.mark.gpu
def test_cuda_gives_the_same_voxels(lung):
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("NO GPU: whether CUDA gives the same lungs was not tested here")
    there = CtLung()
    there.prepare("cuda:0")
    for phantom in (Phantom(), Phantom(**SMALL, padded=True)):
        here, far = (p.run({"image": phantom.volume()}) for p in (lung, there))
        assert np.array_equal(here.segments[0].voxels, far.segments[0].voxels)
        assert here.measurements == far.measurements


def test_the_volume_is_left_as_it_was(lung):
    volume = Phantom(**SMALL).volume()
    before = volume.voxels.copy()
    lung.run({"image": Volume(volume.voxels, volume.affine, "CT")})
    assert np.array_equal(before, volume.voxels)
