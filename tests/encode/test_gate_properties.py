"""Whatever the orientation, order, tilt or gap: a frame never lands elsewhere, and two patients never mix.

Each case is a small random study on disk, read by `load_volume`, marked slice by slice, encoded, and read back by an
independent reader (highdicom) by source instance and by place in the patient. `make test` takes some thousand cases,
`make nightly` ten times as many. Rows RES-01, RES-02, INF-02, INF-03 of the reliability list, geometry of INF-01.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from io import BytesIO

import highdicom
import numpy as np
import pytest
from encode_material import CARD, make_evidence, make_findings, make_volume, make_work
from objects import only
from pydicom import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from pacs_ai.dicom.geometry import Plane, stack
from pacs_ai.dicom.identifiers import derive_uid
from pacs_ai.encode.results import encode
from pacs_ai.errors import Refused
from pacs_ai.infer.volume import load_volume
from pacs_ai.pipeline import Findings, Segment
from pacs_ai.profiles import Kind

#: The 48 signed permutations of the patient's axes: 24 rotations and their mirror images.
ORIENTATIONS = [
    (axes, signs) for axes in itertools.permutations(range(3)) for signs in itertools.product((1, -1), repeat=3)
]
BINARY, LABEL_MAP = only(Kind.SEGMENTATION), only(Kind.SEGMENTATION, "labelmap", "ExplicitVRLittleEndian")
ROWS, COLUMNS = 6, 9


@dataclass
class Study:
    """A random series: its files, and where each instance's first voxel truly lies."""

    datasets: list[Dataset]
    row: np.ndarray
    column: np.ndarray
    spacing: tuple[float, float]

    def place(self, ds, row, column):
        """Where a voxel of an instance lies, mm (PS3.3 equation C.7.6.2.1-1)."""
        origin = np.array(ds.ImagePositionPatient, float)
        return origin + self.row * column * self.spacing[1] + self.column * row * self.spacing[0]

    def write(self, folder):
        """The files, under names that say nothing of the order."""
        folder.mkdir()
        paths = []
        for ds in self.datasets:
            paths.append(folder / f"{len(paths)}.dcm")
            ds.save_as(paths[-1], enforce_file_format=True)
        return paths


def study(rng, orientation, positions, *, tilt=0.0, patient="P1"):
    """A series of that orientation with slices at these distances (mm), shuffled; every voxel has its own number."""
    axes, signs = orientation
    basis = np.zeros((3, 3))
    basis[range(3), axes] = signs
    row, column, along = basis  # `along` is the normal or, of a mirror image, its opposite
    angle = rng.uniform(-0.6, 0.6)  # and oblique by some angle about the first axis
    if rng.random() < 0.5:
        column, along = np.cos(angle) * column + np.sin(angle) * along, np.cos(angle) * along - np.sin(angle) * column
    spacing = tuple(np.round(rng.uniform(0.5, 2.0, 2), 2))
    origin = np.round(rng.uniform(-200, 200, 3), 1)
    datasets = []
    for number, distance in enumerate(positions):
        ds = template(patient)
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = derive_uid("instance", patient, number)
        ds.ImageOrientationPatient = [float(f"{value:.9f}") for value in (*row, *column)]
        at = origin + (along + np.tan(tilt) * column) * distance
        ds.ImagePositionPatient = [float(f"{value:.6f}") for value in at]
        ds.PixelSpacing = list(map(float, spacing))
        ds.SliceThickness = 1.0
        ds.InstanceNumber = int(rng.integers(1, 1000))
        ds.PixelData = (np.arange(ROWS * COLUMNS, dtype=np.uint16) + number * ROWS * COLUMNS).tobytes()
        datasets.append(ds)
    rng.shuffle(datasets)
    return Study(datasets, row, column, spacing)


def template(patient):
    """An instance without place and pixels."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = CTImageStorage
    ds.PatientID = patient
    ds.PatientName = "Nobody^Nowhere"
    ds.StudyInstanceUID, ds.SeriesInstanceUID = derive_uid("study"), derive_uid("series")
    ds.FrameOfReferenceUID = derive_uid("frame of reference")
    ds.Modality = "CT"
    ds.Rows, ds.Columns = ROWS, COLUMNS
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 0
    ds.RescaleSlope, ds.RescaleIntercept = 1, 0
    return ds


def marks(rng, loaded, study):
    """A mask of some voxels, and the truth: (SOP Instance UID, row, column) of each, by the numbers in the pixels."""
    shape = loaded.volume.shape
    chosen = rng.choice(np.prod(shape), size=int(rng.integers(1, 12)), replace=False)
    mask = np.zeros(shape, bool)
    mask.reshape(-1)[chosen] = True
    by_number = {np.frombuffer(ds.PixelData, np.uint16)[0] // (ROWS * COLUMNS): ds for ds in study.datasets}
    truth = set()
    for value in loaded.volume.voxels[mask]:
        number, voxel = divmod(int(value), ROWS * COLUMNS)
        truth.add((str(by_number[number].SOPInstanceUID), *divmod(voxel, COLUMNS)))
    return mask, truth


def read_back(result, study):
    """What highdicom finds: the marked (SOP Instance UID, row, column), and the places of the marked voxels."""
    seg = highdicom.seg.segread(BytesIO(result.to_bytes()))
    uids = [str(ds.SOPInstanceUID) for ds in study.datasets]
    pixels = seg.get_pixels_by_source_instance(uids, assert_missing_frames_are_empty=True, segment_numbers=[1])
    found = {(uids[n], int(row), int(column)) for n, row, column in np.argwhere(pixels[..., 0] > 0)}
    places = []
    for frame, group in zip(
        seg.pixel_array.reshape(-1, ROWS, COLUMNS), seg.PerFrameFunctionalGroupsSequence, strict=True
    ):
        origin = np.array(group.PlanePositionSequence[0].ImagePositionPatient, float)
        for row, column in np.argwhere(frame > 0):
            places.append(origin + study.row * column * study.spacing[1] + study.column * row * study.spacing[0])
    return found, places


def regular(rng):
    """Distances of an even stack."""
    return np.arange(int(rng.integers(2, 7))) * round(float(rng.uniform(0.5, 6.0)), 3)


def check_marks(rng, study, folder, encoding):
    loaded = load_volume(study.write(folder))
    mask, truth = marks(rng, loaded, study)
    given = {"image": loaded.evidence}, {"image": loaded.volume}
    (result,) = encode(Findings((Segment("Left lung", mask),)), *given, make_work(), (encoding,))
    found, places = read_back(result, study)
    assert found == truth
    by_uid = {str(ds.SOPInstanceUID): ds for ds in study.datasets}
    expected = sorted(tuple(study.place(by_uid[uid], row, column)) for uid, row, column in truth)
    assert np.allclose(np.array(sorted(map(tuple, places))).sum(0), np.array(expected).sum(0), atol=1e-4)
    at = np.argwhere(mask)
    by_affine = np.c_[at, np.ones(len(at))] @ loaded.volume.affine.T
    distances = np.linalg.norm(by_affine[:, None, :3] - np.array(expected)[None], axis=2).min(axis=1)
    assert distances.max() < 1e-3


def seeds(quick, long):
    """Seeds for `make test`, ten times as many for `make nightly`."""
    return pytest.mark.parametrize(
        "seed",
        [
            pytest.param(range(quick), id="quick"),
            pytest.param(range(quick, long), marks=pytest.mark.nightly, id="long"),
        ],
    )


@seeds(2, 40)
def test_INF_03_a_marked_voxel_comes_back_at_its_instance_and_place_in_all_48_orientations(seed, tmp_path):
    for number, orientation in itertools.product(seed, range(48)):
        rng = np.random.default_rng([1, number, orientation])
        one = study(rng, ORIENTATIONS[orientation], regular(rng))
        check_marks(rng, one, tmp_path / f"{number}-{orientation}", BINARY if number % 2 else LABEL_MAP)


@seeds(240, 5000)
def test_INF_01_gaps_tilts_and_irregular_stacks_are_refused_and_never_misplaced(seed, tmp_path):
    """What is refused says why; what is accepted has every voxel where its instance says."""
    refused = 0
    for number in seed:
        rng = np.random.default_rng([2, number])
        positions = np.arange(int(rng.integers(3, 8))) * round(float(rng.uniform(0.5, 6.0)), 3)
        fault = number % 4
        if fault == 0 and len(positions) > 3:
            positions = np.delete(positions, int(rng.integers(1, len(positions) - 1)))
        elif fault == 1:
            positions = positions + rng.normal(0, 0.2 * positions[1], len(positions))
        elif fault == 2:
            positions = positions + rng.normal(0, 0.005 * positions[1], len(positions))
        tilt = float(rng.uniform(0.1, 0.4)) * (fault == 3)
        one = study(rng, ORIENTATIONS[int(rng.integers(48))], positions, tilt=tilt)
        try:
            loaded = load_volume(one.write(tmp_path / str(number)))
        except Refused:
            refused += 1
            continue
        by_number = {np.frombuffer(ds.PixelData, np.uint16)[0] // (ROWS * COLUMNS): ds for ds in one.datasets}
        drift = 0.5 * min(one.spacing) + 0.2 * loaded.volume.spacing[0]
        for index in range(loaded.volume.shape[0]):
            ds = by_number[int(loaded.volume.voxels[index, 0, 0]) // (ROWS * COLUMNS)]
            assert loaded.evidence.slices[index].sop_instance_uid == ds.SOPInstanceUID
            truth = np.array(ds.ImagePositionPatient, float)
            assert np.linalg.norm((loaded.volume.affine @ [index, 0, 0, 1])[:3] - truth) <= drift
    assert len(seed) // 4 < refused < len(seed)


@seeds(3000, 30000)
def test_planes_are_stacked_where_they_lie_or_refused(seed):
    """The same without files, so that it is tried often: any order, flip, tilt, gap and jitter."""
    accepted = 0
    for number in seed:
        rng = np.random.default_rng([5, number])
        axes, signs = ORIENTATIONS[int(rng.integers(48))]
        basis = np.zeros((3, 3))
        basis[range(3), axes] = signs
        step = float(rng.uniform(0.5, 5))
        along = np.arange(int(rng.integers(2, 12))) * step
        fault = number % 5
        if fault == 0:
            along = np.delete(along, int(rng.integers(len(along)))) if len(along) > 2 else along
        along = along + rng.normal(0, (0, 0.3, 0.02, 0, 0)[fault] * step, len(along))
        sideways = np.outer(along, rng.uniform(-0.5, 0.5, 2) * (fault == 3)) @ basis[:2]
        places = np.outer(along, basis[2]) + sideways + rng.uniform(-100, 100, 3)
        spacing = tuple(rng.uniform(0.5, 2, 2))
        planes = [Plane(tuple(at), tuple(basis[:2].reshape(-1)), spacing) for at in rng.permutation(places)]
        try:
            made = stack(planes)
        except Refused:
            continue
        accepted += 1
        found = np.array([planes[n].position for n in made.order])
        wanted = (np.c_[np.arange(len(planes)), np.zeros((len(planes), 2)), np.ones(len(planes))] @ made.affine.T)[
            :, :3
        ]
        spacing_mm = np.linalg.norm(made.affine[:3, 0])
        assert np.linalg.norm(found - wanted, axis=1).max() <= 0.5 * min(spacing) + 0.2 * spacing_mm
        assert np.linalg.det(made.affine[:3, :3]) != 0
        assert np.all(np.diff(found @ np.cross(basis[0], basis[1])) > 0)
    assert len(seed) // 4 < accepted < len(seed)


@seeds(180, 3000)
def test_RES_01_two_patients_never_mix(seed, tmp_path):
    """One instance of another patient, study, series, issuer, birth date or sex, in any place of any stack."""
    wrong = {
        "PatientID": "P2",
        "IssuerOfPatientID": "ELSEWHERE",
        "PatientBirthDate": "19010101",
        "PatientSex": "F",
        "StudyInstanceUID": str(derive_uid("another study")),
        "SeriesInstanceUID": str(derive_uid("another series")),
    }
    for number in seed:
        rng = np.random.default_rng([3, number])
        one = study(rng, ORIENTATIONS[int(rng.integers(48))], regular(rng))
        keyword = list(wrong)[number % len(wrong)]
        for ds in rng.permutation(np.arange(len(one.datasets)))[: int(rng.integers(1, len(one.datasets)))]:
            setattr(one.datasets[ds], keyword, wrong[keyword])
        with pytest.raises(Refused) as refusal:
            load_volume(one.write(tmp_path / str(number)))
        assert wrong[keyword] not in str(refusal.value)


@seeds(60, 1500)
def test_the_gate_sees_mixed_patients_that_no_reader_saw(seed):
    """The second lock: evidence that was mixed after reading is refused before anything is encoded."""
    honest = make_evidence()
    keywords = (
        "PatientID",
        "IssuerOfPatientID",
        "PatientBirthDate",
        "PatientSex",
        "StudyInstanceUID",
        "SeriesInstanceUID",
    )
    for number in seed:
        rng = np.random.default_rng([4, number])
        evidence = make_evidence() if number < 2 else honest
        keyword, ds = keywords[number % len(keywords)], evidence.datasets[int(rng.integers(len(evidence.datasets)))]
        was = ds.get(keyword)
        setattr(ds, keyword, "19010101" if keyword.endswith("Date") else "2.25.7" if keyword.endswith("UID") else "X")
        with pytest.raises(Refused):
            encode(make_findings(), {"image": evidence}, {"image": make_volume()}, make_work(), (BINARY,))
        setattr(ds, keyword, was)


def test_the_card_has_the_label_that_is_marked():
    assert CARD.label("Left lung")
