"""The phantom is one patient on any grid, the same every time, and a valid CT."""

from __future__ import annotations

import itertools
import shutil
import subprocess

import numpy as np
import pytest
from pydicom import dcmread

from pacs_ai.errors import PipelineFault, Refused, UserError
from pacs_ai.pipeline import Card, Code, Findings, Input, Measurement, Segment
from pacs_ai.testing import (
    CORONAL,
    LABELS,
    SAGITTAL,
    Fault,
    Phantom,
    check_pipeline,
    iterate_phantom,
    phantom_datasets,
    phantom_truth,
    write_phantom,
)

SMALL = {"slices": 44, "rows": 48, "columns": 48}
UNITS = [tuple(float(v) for v in sign * np.eye(3)[axis]) for axis in range(3) for sign in (1, -1)]
AXIS_ALIGNED = [(*row, *column) for row, column in itertools.product(UNITS, UNITS) if np.dot(row, column) == 0]
OBLIQUE = (0.98, 0.15, np.sqrt(1 - 0.98**2 - 0.15**2), -0.15 / np.hypot(0.98, 0.15), 0.98 / np.hypot(0.98, 0.15), 0.0)


def centre_mm(truth, label):
    """Centre of a label in LPS mm."""
    index = np.argwhere(truth.mask(label)).mean(axis=0)
    return truth.affine[:3] @ [*index, 1]


def planes(datasets):
    """Distance of each image along the normal of the first."""
    row, column = np.reshape([float(v) for v in datasets[0].ImageOrientationPatient], (2, 3))
    return [float(np.cross(row, column) @ [float(v) for v in ds.ImagePositionPatient]) for ds in datasets]


def test_there_are_24_axis_aligned_orientations():
    assert len(set(AXIS_ALIGNED)) == 24


@pytest.mark.parametrize("orientation", [*AXIS_ALIGNED, OBLIQUE])
def test_the_patient_stays_where_the_grid_turns(orientation):
    truth = phantom_truth(Phantom(**SMALL, orientation=orientation))
    assert truth.volumes_ml["Right lung"] == pytest.approx(2855, rel=0.02)
    assert truth.volumes_ml["Left lung"] == pytest.approx(2080, rel=0.02)
    assert centre_mm(truth, "Marker right")[0] < -130
    assert centre_mm(truth, "Marker top")[2] > 130
    assert centre_mm(truth, "Marker front")[1] < -95
    assert centre_mm(truth, "Right lung")[0] < -50 < 50 < centre_mm(truth, "Left lung")[0]


def test_no_axis_is_a_mirror():
    truth = phantom_truth(Phantom(**SMALL))
    for axis in range(3):
        assert not np.array_equal(truth.labels, np.flip(truth.labels, axis))
        assert np.mean(truth.labels != np.flip(truth.labels, axis)) > 0.01


def test_the_datasets_hold_the_truth():
    phantom = Phantom(**SMALL, order="descending")
    truth, datasets = phantom_truth(phantom), phantom_datasets(phantom)
    datasets = [datasets[k] for k in np.argsort(planes(datasets))]
    hu = np.stack([ds.pixel_array.astype(float) * ds.RescaleSlope + ds.RescaleIntercept for ds in datasets])
    assert np.array_equal(hu, phantom.volume().voxels)
    for name in ("Right lung", "Left lung"):
        inside = hu[truth.mask(name)]
        assert truth.mean_hu[name] == pytest.approx(inside.mean())
        assert truth.laa950_percent[name] == pytest.approx(100 * np.mean(inside < -950))
        assert truth.perc15_hu[name] == pytest.approx(np.percentile(inside, 15, method="inverted_cdf"))
        assert truth.volumes_ml[name] == pytest.approx(inside.size * np.prod(phantom.spacing_mm) / 1000)
    assert truth.laa950_percent["Right lung"] > 2 * truth.laa950_percent["Left lung"] > 0.5


def test_the_same_phantom_gives_the_same_bytes():
    one, other = (list(iterate_phantom(Phantom(**SMALL, order="shuffled"))) for _ in range(2))
    assert one == other


def test_another_phantom_gives_other_uids():
    made = [
        phantom_datasets(Phantom(slices=20, rows=16, columns=16, **more))
        for more in ({}, {"order": "shuffled"}, {"seed": 2}, {"padded": True}, {"orientation": CORONAL})
    ]
    uids = [ds.SOPInstanceUID for datasets in made for ds in datasets]
    assert len(set(uids)) == len(uids)
    assert made[0][0].StudyInstanceUID == made[1][0].StudyInstanceUID != made[2][0].StudyInstanceUID
    assert made[0][0].PatientID == made[1][0].PatientID != made[2][0].PatientID


@pytest.mark.parametrize("order", ["ascending", "descending", "shuffled"])
def test_the_order_is_that_of_the_instances(order):
    datasets = phantom_datasets(Phantom(slices=30, rows=16, columns=16, order=order))
    steps, numbers = np.diff(planes(datasets)), [int(ds.InstanceNumber) for ds in datasets]
    assert sorted(numbers) == list(range(1, 31))
    if order == "shuffled":
        assert (steps > 0).any()
        assert (steps < 0).any()
        assert numbers != sorted(numbers)
        assert list(np.argsort(numbers)) not in (list(np.argsort(planes(datasets))), list(np.argsort(steps)))
    else:
        assert ((steps > 0) if order == "ascending" else (steps < 0)).all()
        assert numbers == sorted(numbers)


def test_faults_are_what_they_say():
    def made(*faults):
        return phantom_datasets(Phantom(slices=30, rows=16, columns=16, faults=faults))

    gaps = np.diff(planes(made(Fault.DROPPED_SLICES)))
    assert len(gaps) == 26
    assert gaps.max() == pytest.approx(4 * gaps.min())
    twice = made(Fault.DUPLICATE_SLICE)
    assert len({ds.SOPInstanceUID for ds in twice}) == 31
    assert len({tuple(ds.ImagePositionPatient) for ds in twice}) == 30
    assert len({tuple(ds.ImageOrientationPatient) for ds in made(Fault.MIXED_ORIENTATION)}) == 2
    assert len({ds.FrameOfReferenceUID for ds in made(Fault.TWO_FRAMES_OF_REFERENCE)}) == 2
    gaps = np.diff(planes(made(Fault.UNEVEN_SPACING)))
    assert gaps.max() == pytest.approx(1.5 * gaps.min())
    tilted = made(Fault.GANTRY_TILT)
    step = np.subtract(*[[float(v) for v in ds.ImagePositionPatient] for ds in tilted[1::-1]])
    row, column = np.reshape([float(v) for v in tilted[0].ImageOrientationPatient], (2, 3))
    lean = np.cross(row, column) @ step / np.linalg.norm(step)
    assert np.degrees(np.arccos(lean)) == pytest.approx(15)
    assert tilted[0].GantryDetectorTilt == 15


def test_an_abdomen_has_no_lungs():
    truth = phantom_truth(Phantom(**SMALL, anatomy="abdomen"))
    assert not {"Right lung", "Left lung", "Airways"} & set(truth.volumes_ml)
    assert set(phantom_truth(Phantom(**SMALL)).volumes_ml) == set(LABELS)


@pytest.mark.parametrize("more", [{}, {"padded": True}, {"orientation": SAGITTAL}, {"faults": (Fault.GANTRY_TILT,)}])
def test_files_are_valid_ct_images(tmp_path, more):
    if shutil.which("dciodvfy") is None:
        pytest.skip("DCIODVFY MISSING: install Debian's dicom3tools; the phantom's validity was not tested here")
    paths = write_phantom(tmp_path / "series", Phantom(slices=20, rows=16, columns=16, **more))
    assert len(paths) == 20
    assert dcmread(paths[0]).BodyPartExamined == "CHEST"
    found = subprocess.run(["dciodvfy", "-new", paths[3]], capture_output=True, text=True, check=False)
    assert not [line for line in found.stderr.splitlines() if line.startswith("Error")], found.stderr


class Threshold:
    """A pipeline of a few lines, with a place to break each promise."""

    card = Card(
        name="threshold",
        version="1",
        manufacturer="tests",
        title="Air",
        inputs={"image": Input(modality=("CT",))},
        labels=(),
        procedure=Code("24627-2", "LN", "CT Chest"),
        intended_use="tests",
    )

    def prepare(self, device):
        self.device = device

    def run(self, inputs):
        return Findings()


def faulty(**parts):
    return type("Faulty", (Threshold,), parts)()


def run_with(*, segments=(), measurements=()):
    return {"run": lambda self, inputs: Findings(segments=segments, measurements=measurements)}


HU = Code("[hnsf'U]", "UCUM", "Hounsfield unit")
MEAN = Code("112031", "DCM", "Attenuation Coefficient")


def changing(self, inputs):
    inputs["image"].voxels[0] = 0
    return Findings()


def counting(self, inputs):
    self.count = getattr(self, "count", 0) + 1
    return Findings(measurements=(Measurement(MEAN, float(self.count), HU),))


def fragile(self, inputs):
    if inputs["image"].voxels.max() < 0:
        raise ValueError("no maximum")
    return Findings()


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        (
            run_with(segments=(Segment("Air", np.zeros((60, 128, 128), bool)),)),
            "the label 'Air', which the card does not have",
        ),
        (run_with(measurements=(Measurement(MEAN, float("nan"), HU),)), "nan, not a number"),
        (run_with(measurements=(Measurement(MEAN, 1.0, Code("HU", "99X", "HU")),)), "UCUM"),
        (run_with(measurements=(Measurement(MEAN, 1.0, HU, "Air"),)), "of the label 'Air'"),
        ({"run": changing}, "changed the voxels"),
        ({"run": counting}, "second time"),
        ({"run": fragile}, "ValueError on nothing but air"),
    ],
)
def test_a_broken_promise_is_told_in_words(parts, words):
    with pytest.raises(PipelineFault, match=words):
        check_pipeline(faulty(**parts))


def test_a_good_pipeline_passes_and_a_refusal_passes_through():
    assert check_pipeline(Threshold()) == Findings()

    def refuse(self, inputs):
        raise Refused("not today")

    with pytest.raises(Refused, match="not today"):
        check_pipeline(faulty(run=refuse))
    with pytest.raises(UserError, match="one volume for each input"):
        check_pipeline(Threshold(), {})
    with pytest.raises(PipelineFault, match="is no pipeline"):
        check_pipeline(object())
