"""PET through the running node: denoised by a T1, made from sinograms, or refused in words."""

from __future__ import annotations

import warnings

import numpy as np
import pydicom
import pytest
from reading_bed import texts

from pacs_ai.infer.volume import load_volume
from pacs_ai.models.readings.tomography import scanner
from pacs_ai.states import JobState
from pacs_ai.testing.photographs import Case
from pacs_ai.testing.samples import pet_denoise, pet_reconstruction
from pacs_ai.testing.slices import write_sinograms

READINGS = ("pet-denoise", "pet-reconstruction")
TITLES = {"Network", "Filtered back-projection", "OSEM"}


def volume_of(instances, folder):
    """Title -> voxels of derived instances, as the node itself would read them."""
    series = {}
    for ds in instances:
        series.setdefault(str(ds.SeriesDescription), []).append(ds)
    found = {}
    for name, own in series.items():
        place = folder / f"read-{len(found)}"
        place.mkdir(parents=True)
        for number, ds in enumerate(own):
            ds.save_as(place / f"{number}.dcm", enforce_file_format=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            title = name.removeprefix("AI: ").partition(" (")[0]
            found[title] = load_volume(sorted(place.iterdir())).volume
    return found


@pytest.fixture(scope="module")
def patient(shared_data):
    """The files of a patient's PET, from feet to head; their names are in no order."""

    def place(path):
        header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["ImagePositionPatient"])
        return float(header.ImagePositionPatient[2])

    return sorted((shared_data / "pet_qin_headneck/pet").iterdir(), key=place)


def psnr(image, truth):
    return 10 * np.log10(truth.max() ** 2 / np.mean((image - truth) ** 2))


def test_sinograms_come_back_as_three_series_of_images(journey, tmp_path):
    counts, truth = pet_reconstruction.planes()
    pet_reconstruction.write(tmp_path / "sent")
    found = journey("pet-reconstruction", tmp_path / "sent")
    made = volume_of(found.of("derived-images"), tmp_path)
    assert set(made) == TITLES
    sent = load_volume(found.sent).volume
    for one in made.values():
        assert one.modality == "PT"
        assert one.voxels.shape == counts.shape
        assert np.allclose(one.affine, sent.affine), "the grid is what the sinograms state"
        assert one.voxels.sum() == pytest.approx(truth.sum(), rel=0.1)
    for ds in found.of("derived-images"):
        assert list(ds.ImageType) == ["DERIVED", "PRIMARY"]
        assert "Sinogram" not in ds.ImageComments
    scores = {title: psnr(one.voxels, truth) for title, one in made.items()}
    assert scores["Network"] > scores["Filtered back-projection"] > 18, scores
    assert "Misfit" in found.text


def test_a_real_patients_planes_are_reconstructed(journey, patient, tmp_path):
    """Three planes of a real PET, projected with the noise of 3e5 counts."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        volume = load_volume(patient[105:108]).volume
    planes = np.maximum(volume.voxels, 0) * scanner(128, 128).circle
    clean = scanner(128, 128).project(planes)
    factor = (3e5 / clean.sum((1, 2)))[:, None, None]
    counts = np.random.default_rng(8).poisson(clean * factor)
    case = Case("patients-sinograms", 2)
    paths = write_sinograms(tmp_path / "sent", counts, (3.375, 3.5378, 3.5378), case, BodyPartExamined="CHEST")
    made = volume_of(journey("pet-reconstruction", paths).of("derived-images"), tmp_path)
    scores = {title: psnr(one.voxels, planes * factor) for title, one in made.items()}
    assert scores["Network"] > 22, scores


def test_images_are_no_sinograms(journey, patient):
    found = journey("pet-reconstruction", patient[:6], JobState.REFUSED)
    assert "series of images" in found.job.reason


def test_a_pet_without_a_t1_is_refused(journey, patient, tmp_path):
    paths = []
    for number, path in enumerate(patient[200:225]):
        ds = pydicom.dcmread(path)
        ds.StudyInstanceUID, ds.SeriesInstanceUID = "1.2.3.7", "1.2.3.7.1"  # the other slices are another test's
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.7.1.{number + 1}"
        paths.append(tmp_path / f"{number:02d}.dcm")
        ds.save_as(paths[-1])
    found = journey("pet-denoise", paths, JobState.REFUSED)
    assert "t1 missing" in found.job.reason
    assert found.job.reason in " ".join(texts(found.one("not-analysed")))


@pytest.mark.nightly
def test_the_phantom_of_the_demo_is_denoised(journey, tmp_path):
    pet_denoise.write(tmp_path / "sent")
    found = journey("pet-denoise", tmp_path / "sent", seconds=1200)
    made = volume_of(found.of("derived-images"), tmp_path)["Denoised"]
    assert made.voxels.shape == pet_denoise.SHAPE
    assert made.voxels.min() >= 0
    assert "Coefficient of variation denoised" in found.text


@pytest.mark.nightly
def test_brainweb_is_denoised(journey, shared_data, tmp_path):
    """The pair is simulated, and comes as two studies in two frames of reference: copies share both."""
    paths = []
    for name, series in (("osem", "7"), ("t1", "8")):
        for number, path in enumerate(sorted((shared_data / "pet_t1_brainweb" / name).iterdir()), 1):
            ds = pydicom.dcmread(path)
            root = "1.2.3.6"
            ds.StudyInstanceUID, ds.FrameOfReferenceUID, ds.SeriesInstanceUID = root, f"{root}.1", f"{root}.{series}"
            ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = f"{root}.{series}.{number}"
            paths.append(tmp_path / f"{name}{number:04d}.dcm")
            ds.save_as(paths[-1])
    found = journey("pet-denoise", paths, seconds=1200)
    instances = found.of("derived-images")
    assert len(instances) == 258
    assert {ds.Modality for ds in instances} == {"PT"}
    assert "Coefficient of variation denoised" in found.text
