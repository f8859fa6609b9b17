"""The liver and its lesions: a real abdomen against TotalSegmentator's label map, planted lesions, and refusals."""

from __future__ import annotations

import highdicom
import nibabel
import numpy as np
import pydicom
import pytest
from reading_bed import texts

from pacs_ai.infer.volume import load_volume
from pacs_ai.states import JobState
from pacs_ai.testing.photographs import Case
from pacs_ai.testing.samples import liver as sample
from pacs_ai.testing.slices import write_slices

READINGS = ("ct-liver-lesions",)
#: TotalSegmentator's label, and the slices of its example CT that have labels.
LIVER = 5
LABELLED = slice(82, 112)
#: Seconds that both networks may take on a whole abdomen, on one core of a busy machine.
LONG = 1200.0
#: Density of the planted lesion, 60 HU below the liver's.
PLANTED_HU = -20


@pytest.fixture(scope="session")
def real_abdomen(shared_data):
    """Voxels (x, y, z; RAS; 3 mm) of TotalSegmentator's example CT, and its liver on the slices that it has."""
    folder = shared_data / "ct_abdomen_nifti_totalseg"
    image, labels = (
        nibabel.as_closest_canonical(nibabel.load(folder / f"{name}.nii.gz")) for name in ("example_ct", "example_seg")
    )
    known = np.zeros(image.shape, bool)
    known[..., LABELLED] = True
    liver = np.zeros(image.shape, bool)
    liver[..., LABELLED] = np.asarray(labels.dataobj) == LIVER
    spacing = tuple(float(mm) for mm in image.header.get_zooms()[:3])
    return np.asarray(image.dataobj, np.float32), spacing, liver, known


def as_dicom(voxels):
    """(x, y, z) of RAS as (slice, row, column) of LPS."""
    return voxels[::-1, ::-1].transpose(2, 1, 0)


def written(folder, voxels, spacing, name):
    case = Case(name, 2, study_description="Abdomen", series_description="Abdomen")
    stored = np.clip(np.rint(as_dicom(voxels)), -1024, 3071)
    return write_slices(folder, stored, spacing[::-1], case, "CT", BodyPartExamined="ABDOMEN")


def segments(found):
    """Segment Label -> mask (slices, rows, columns), from feet to head."""
    read = highdicom.seg.Segmentation.from_dataset(found.one("SEG"))
    uids = [str(pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID) for path in found.sent]
    pixels = read.get_pixels_by_source_instance(
        uids, assert_missing_frames_are_empty=True, ignore_spatial_locations=True
    )
    return {str(item.SegmentLabel): pixels[..., k] > 0 for k, item in enumerate(read.SegmentSequence)}


def dice(one, other):
    return 2 * (one & other).sum() / (one.sum() + other.sum())


def test_a_few_slices_are_refused(journey, shared_data):
    found = journey(
        "ct-liver-lesions", sorted((shared_data / "seg_sr_dcmqi/segmentations/ct-3slice").glob("*")), JobState.REFUSED
    )
    assert "3 slices" in found.job.reason
    assert found.job.reason in " ".join(texts(found.one("not-analysed")))


def test_air_is_refused(journey, tmp_path):
    voxels = np.random.default_rng(0).normal(-980, 10, (40, 40, 20))
    found = journey("ct-liver-lesions", written(tmp_path, voxels, (3.0, 3.0, 3.0), "air"), JobState.REFUSED)
    assert "soft tissue" in found.job.reason


@pytest.mark.nightly
def test_a_real_abdomen_agrees_with_totalsegmentator(journey, real_abdomen, tmp_path):
    voxels, spacing, liver, known = real_abdomen
    found = journey("ct-liver-lesions", written(tmp_path, voxels, spacing, "abdomen"), seconds=LONG)
    masks = segments(found)
    assert dice(masks["Liver"] & as_dicom(known), as_dicom(liver)) > 0.88
    assert 700 < masks["Liver"].sum() * np.prod(spacing) / 1000 < 3000
    assert "Liver" in found.text


@pytest.mark.nightly
def test_planted_lesions_come_back_one_by_one(journey, real_abdomen, tmp_path):
    """A dark ball in the real liver has a segment, and a tracked group in the report, of its own."""
    voxels, spacing, liver, _ = real_abdomen
    planted = voxels.copy()
    grid = np.stack(np.mgrid[tuple(slice(n) for n in voxels.shape)], -1)
    inner = np.argwhere(liver)
    centre = inner.mean(axis=0)
    near = inner[np.argmin(((inner - centre) ** 2).sum(1))]
    ball = ((grid - near) ** 2).sum(-1) * spacing[0] ** 2 < 15.0**2
    planted[ball] = PLANTED_HU + np.random.default_rng(1).normal(0, 10, int(ball.sum()))
    found = journey("ct-liver-lesions", written(tmp_path, planted, spacing, "planted"), seconds=LONG)
    masks = segments(found)
    overlap = {name: dice(mask, as_dicom(ball)) for name, mask in masks.items() if name.startswith("Liver lesion")}
    name = max(overlap, key=overlap.get)
    assert overlap[name] > 0.6, overlap
    report = found.one("SR").to_json()
    assert name in report
    tracked = {str(item.SegmentLabel): str(item.TrackingUID) for item in found.one("SEG").SegmentSequence}
    assert len(set(tracked.values())) == len(tracked)
    assert all(uid in report for uid in tracked.values()), "each segment has its tracked group in the SR"


@pytest.mark.nightly
def test_a_part_of_the_liver_is_said_to_be_a_part(journey, shared_data, tmp_path):
    """Twenty slices of 2 mm of a scanner, JPEG 2000, given the UIDs that they lack."""
    folder = shared_data / "ct_abdomen_j2k_totalseg"
    paths = []
    for number, path in enumerate(sorted((folder / "dicom").iterdir()), 1):
        ds = pydicom.dcmread(path)
        ds.SOPClassUID, ds.SOPInstanceUID = (
            ds.file_meta.MediaStorageSOPClassUID,
            f"1.2.3.8.{number}",
        )
        ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
        ds.StudyInstanceUID, ds.SeriesInstanceUID = "1.2.3.8", "1.2.3.9"
        ds.PatientID, ds.PatientName = "TEST-ABDOMEN", "Test^Abdomen"
        paths.append(tmp_path / f"{number:02d}.dcm")
        ds.save_as(paths[-1])
    found = journey("ct-liver-lesions", paths, seconds=LONG)
    volume = load_volume(paths).volume
    order = np.argsort([float(pydicom.dcmread(path).ImagePositionPatient[2]) for path in found.sent])
    mask = segments(found)["Liver"][order]
    image = nibabel.load(folder / "example_seg_dicom.nii.gz")
    to_label = np.linalg.inv(image.affine) @ np.diag([-1.0, -1.0, 1.0, 1.0]) @ volume.affine
    grid = np.stack(np.meshgrid(*map(np.arange, volume.shape), indexing="ij")).reshape(3, -1)
    i, j, k = np.rint(to_label[:3, :3] @ grid + to_label[:3, 3:]).astype(int)
    truth = (np.asarray(image.dataobj)[i, j, k] == LIVER).reshape(volume.shape)
    assert dice(mask, truth) > 0.93
    assert "Partial" in found.text


@pytest.mark.nightly
def test_the_sample_of_the_demo_shows_a_liver(journey, tmp_path):
    sample.write(tmp_path)
    masks = segments(journey("ct-liver-lesions", tmp_path, seconds=LONG))
    assert masks["Liver"].sum() * 0.025 > 500
