"""A series' files become a volume whose every voxel lies where the Standard says, or a refusal in words."""

from __future__ import annotations

import base64
import copy
import hashlib
import struct
from itertools import permutations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openjpeg.utils import encode_array
from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import (
    CTImageStorage,
    EnhancedMRImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from pacs_ai.errors import NotUnderstood, Permanent, Refused
from pacs_ai.infer.volume import load_volume
from pacs_ai.testing import Fault, Phantom, write_phantom

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
UNIT = [tuple(float(s) if i == axis else 0.0 for i in range(3)) for axis in range(3) for s in (1, -1)]
AXIS_ALIGNED = [(*row, *column) for row, column in permutations(UNIT, 2) if abs(np.dot(row, column)) < 0.5]
OBLIQUE = [
    (0.8, 0.6, 0.0, 0.0, 0.0, -1.0),
    (0.05378466379901, 0.96501313248301, 0.256625922454, 0.01811332435568, 0.25601276514781, -0.9665036841948),
]
ROWS, COLUMNS, SPACING = 5, 7, 2.5

#: 12 x 16 pixels of 300 x row + 7 x column, HTJ2K reversible, by OpenJPH.
HTJ2K_CODESTREAM = base64.b64decode(
    "/0//UQApQAAAAAAQAAAADAAAAAAAAAAAAAAAEAAAAAwAAAAAAAAAAAABDwEB/1AACAACAAAACv9SAAwAAgABAAUEBEAB/1wAEyCIkJCQkJCQkJCQkJCQ"
    "iIiI/2QAFwABT3BlbkpQSCBWZXIgMC4yNi4zLv+QAAoAAAAAAHsAAf+TwAAmCfYFB3QAAMAAEsAAEwD+AId0ABD0A4d0AMAAEsAAEwDeAAJ0AKenAEI0"
    "AMAAE8AAFYDu/qMjwnUARCUqUYn6wFKBvrYAwAAqoAAWoCRJ/ueAp6dCdwBWWrFixYoVK1b++hCAe/ZCAey6AP/Z"
)


def slice_(k, orientation=AXIAL, **changes) -> Dataset:
    """Return the k-th slice of a small CT series; its pixels are 1000 k + their index."""
    normal = np.cross(orientation[:3], orientation[3:])
    ds = Dataset()
    ds.SOPClassUID = CTImageStorage
    ds.SOPInstanceUID = f"1.2.826.0.1.{1000 - k}"
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = "1.2.1", "1.2.2", "1.2.3"
    ds.PatientID, ds.PatientName, ds.PatientBirthDate, ds.PatientSex = "P1", "Phantom", "20000101", "O"
    ds.Modality = "CT"
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.InstanceNumber = (k * 7) % 11
    ds.ImageOrientationPatient = list(orientation)
    ds.ImagePositionPatient = [round(float(v), 9) for v in np.array([10, -20, 30]) + k * SPACING * normal]
    ds.PixelSpacing = [0.8, 0.7]
    ds.SliceThickness = 3
    ds.RescaleSlope, ds.RescaleIntercept = 1, -1024
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.Rows, ds.Columns = ROWS, COLUMNS
    ds.BitsAllocated = ds.BitsStored = 16
    ds.HighBit, ds.PixelRepresentation = 15, 1
    put_pixels(ds, 1000 * k + np.arange(ROWS * COLUMNS))
    for keyword, value in changes.items():
        if value is None:
            delattr(ds, keyword)
        else:
            setattr(ds, keyword, value)
    return ds


def put_pixels(ds: Dataset, values) -> None:
    kind = f"<{'i' if ds.PixelRepresentation else 'u'}{ds.BitsAllocated // 8}"
    ds.PixelData = np.asarray(values).astype(kind).tobytes()
    ds["PixelData"].VR = "OW"


def compress(ds: Dataset, syntax) -> None:
    if syntax == JPEG2000Lossless:
        kind = "<i2" if ds.PixelRepresentation else "<u2"
        pixels = np.frombuffer(ds.PixelData, kind).reshape(ds.Rows, ds.Columns)
        ds.PixelData = encapsulate([bytes(encode_array(pixels, bits_stored=ds.BitsStored))])
        return
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.compress(syntax, generate_instance_uid=False)


def write(folder, datasets, syntax=ExplicitVRLittleEndian) -> list:
    paths = []
    for number, ds in enumerate(datasets):
        ds.file_meta = FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = syntax
        ds.file_meta.MediaStorageSOPClassUID = ds.get("SOPClassUID", CTImageStorage)
        ds.file_meta.MediaStorageSOPInstanceUID = ds.get("SOPInstanceUID", "1.2.9")
        paths.append(folder / f"{number:04}")
        ds.save_as(paths[-1], enforce_file_format=True)
    return paths


def refusal(paths, kind=Refused, **options) -> str:
    with pytest.raises(kind) as raised:
        load_volume(paths, **options)
    return str(raised.value)


def formula(ds: Dataset, row: int, column: int) -> np.ndarray:
    """PS3.3 equation C.7.6.2.1-1: i is the column index, j the row index."""
    cosines = np.array(ds.ImageOrientationPatient, float)
    x, y = cosines[:3] * float(ds.PixelSpacing[1]), cosines[3:] * float(ds.PixelSpacing[0])
    return x * column + y * row + np.array(ds.ImagePositionPatient, float)


def check_placed(loaded, datasets) -> None:
    """Each slice of the volume is the instance it refers to, in values and in place."""
    by_uid = {ds.SOPInstanceUID: ds for ds in datasets}
    assert len(loaded.evidence.slices) == len(loaded.volume.voxels)
    for k, reference in enumerate(loaded.evidence.slices):
        ds = by_uid[reference.sop_instance_uid]
        stored = np.frombuffer(ds.PixelData, "<i2").reshape(ds.Rows, ds.Columns)
        assert np.array_equal(loaded.volume.voxels[k], stored - 1024)
        for row, column in ((0, 0), (ds.Rows - 1, 0), (0, ds.Columns - 1), (2, 3)):
            assert np.allclose((loaded.volume.affine @ (k, row, column, 1))[:3], formula(ds, row, column), atol=1e-6)


# --- geometry


@pytest.mark.parametrize("orientation", [*AXIS_ALIGNED, *OBLIQUE])
@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [3, 0, 4, 1, 2]])
def test_INF_02_every_voxel_lies_where_its_instance_says(tmp_path, orientation, order):
    datasets = [slice_(k, orientation) for k in order]
    loaded = load_volume(write(tmp_path, datasets))
    check_placed(loaded, datasets)
    assert loaded.volume.spacing == pytest.approx((SPACING, 0.8, 0.7))
    assert loaded.notes == ()
    uids = [each.SOPInstanceUID for each in loaded.evidence.datasets]
    assert uids == [each.sop_instance_uid for each in loaded.evidence.slices]


@pytest.fixture(scope="module")
def oblique_series(tmp_path_factory):
    datasets = [slice_(k, OBLIQUE[1]) for k in range(9)]
    return write(tmp_path_factory.mktemp("oblique"), datasets), datasets


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(order=st.permutations(range(9)))
def test_INF_02_the_order_of_the_files_never_matters(oblique_series, order):
    paths, datasets = oblique_series
    loaded = load_volume([paths[k] for k in order])
    check_placed(loaded, datasets)
    assert [each.sop_instance_uid for each in loaded.evidence.slices] == [ds.SOPInstanceUID for ds in datasets]


@pytest.mark.parametrize("orientation", [*AXIS_ALIGNED, *OBLIQUE])
def test_the_phantom_is_read_as_it_was_made(tmp_path, orientation):
    phantom = Phantom(slices=5, rows=11, columns=9, orientation=orientation, order="shuffled")
    shuffled = write_phantom(tmp_path, phantom)
    ascending = sorted(shuffled, key=lambda path: tuple(dcmread(path).ImagePositionPatient))
    truth = phantom.volume()
    for paths in (shuffled, ascending, ascending[::-1]):
        loaded = load_volume(paths)
        assert np.array_equal(loaded.volume.voxels, truth.voxels)
        assert np.allclose(loaded.volume.affine, truth.affine, atol=1e-4)


def test_padding_keeps_its_value(tmp_path):
    phantom = Phantom(slices=4, rows=32, columns=32, padded=True)
    loaded = load_volume(write_phantom(tmp_path, phantom))
    assert loaded.volume.voxels[0, 0, 0] == -3024
    assert np.array_equal(loaded.volume.voxels, phantom.volume().voxels)


# --- faults of a series


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (Fault.DROPPED_SLICES, "3 of 20 slices are missing: between z ="),
        (Fault.MIXED_ORIENTATION, "the images are not parallel: 20 axial, 1"),
        (Fault.TWO_FRAMES_OF_REFERENCE, "the 20 images have 2 frames of reference"),
        (Fault.UNEVEN_SPACING, "the slices are unevenly spaced"),
        (Fault.GANTRY_TILT, "the gantry was tilted by 15.0 degrees"),
    ],
)
def test_the_phantoms_faults_are_refused_with_their_figures(tmp_path, fault, reason):
    phantom = Phantom(slices=20, rows=8, columns=8, order="shuffled", faults=(fault,))
    assert refusal(write_phantom(tmp_path, phantom)).startswith(reason)


def test_a_duplicate_slice_is_used_once_and_told(tmp_path):
    clean = Phantom(slices=10, rows=16, columns=16)
    faulty = Phantom(slices=10, rows=16, columns=16, faults=(Fault.DUPLICATE_SLICE,))
    loaded = load_volume(write_phantom(tmp_path, faulty))
    assert np.array_equal(loaded.volume.voxels, clean.volume().voxels)
    assert loaded.notes[0].startswith("1 slice came more than once with the same pixels (z = ")
    assert len(loaded.evidence.datasets) == len(loaded.evidence.slices) == 10


def test_of_two_copies_the_first_by_uid_is_kept(tmp_path):
    twin = slice_(1, SOPInstanceUID="1.2.826.0.1.0")
    for datasets in ([slice_(0), slice_(1), twin, slice_(2)], [twin, slice_(2), slice_(1), slice_(0)]):
        loaded = load_volume(write(tmp_path, datasets))
        assert loaded.evidence.slices[1].sop_instance_uid == "1.2.826.0.1.0"


def test_different_pixels_at_one_position_are_refused(tmp_path):
    other = slice_(1, SOPInstanceUID="1.2.9.9", RescaleIntercept=0)
    text = refusal(write(tmp_path, [slice_(0), slice_(1), other, slice_(2)]))
    assert text == "2 different images lie at the same position, z = 32.5 mm"


@pytest.mark.parametrize(
    ("keyword", "values", "words"),
    [
        ("EchoTime", [10, 20], "several echoes (they differ in Echo Time)"),
        ("TemporalPositionIdentifier", [1, 2], "several time points (they differ in Temporal Position Identifier)"),
        ("AcquisitionNumber", [1, 2], "several acquisitions (they differ in Acquisition Number)"),
        ("KVP", [80, 140], "several tube voltages (they differ in KVP)"),
    ],
)
def test_a_series_of_more_than_three_dimensions_is_named(tmp_path, keyword, values, words):
    datasets = [slice_(k) for k in range(3)]
    for k, ds in enumerate([*datasets, *map(copy.deepcopy, datasets)]):
        setattr(ds, keyword, values[k // 3])
        if k >= 3:
            ds.SOPInstanceUID += ".1"
            put_pixels(ds, np.zeros(ROWS * COLUMNS) + k)
            datasets.append(ds)
    text = refusal(write(tmp_path, datasets))
    assert text == f"different images lie at the same positions, 3 of 3, the first at z = 30.0 mm: {words}"


def test_all_images_at_one_position_are_no_volume(tmp_path):
    datasets = [slice_(k, ImagePositionPatient=[1, 2, 61.5]) for k in range(4)]
    assert refusal(write(tmp_path, datasets)) == "all 4 images lie at one position, z = 61.5 mm; this is no volume"


@pytest.mark.parametrize(
    ("keyword", "value", "name"),
    [
        ("PatientID", "P2", "Patient ID"),
        ("IssuerOfPatientID", "ELSEWHERE", "Issuer of Patient ID"),
        ("PatientBirthDate", "20010101", "Patient's Birth Date"),
        ("PatientSex", "F", "Patient's Sex"),
        ("StudyInstanceUID", "1.2.7", "Study Instance UID"),
        ("SeriesInstanceUID", "1.2.7", "Series Instance UID"),
        ("Modality", "MR", "Modality"),
    ],
)
def test_RES_01_mixed_identity_is_refused_without_telling_values(tmp_path, keyword, value, name):
    datasets = [slice_(k) for k in range(4)]
    setattr(datasets[2], keyword, value)
    assert refusal(write(tmp_path, datasets)) == f"{name} is not the same in all images: 2 different values in 4 images"


def test_mixed_image_size_is_refused(tmp_path):
    odd = slice_(1, Rows=7, Columns=5)
    assert (
        refusal(write(tmp_path, [slice_(0), odd, slice_(2)]))
        == "the images are not of one size: 5 x 7 and 7 x 5 pixels"
    )


def test_localizers_are_left_out_and_told(tmp_path):
    scout = slice_(9, OBLIQUE[0], ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"], Rows=7, Columns=5)
    loaded = load_volume(write(tmp_path, [scout, slice_(0), slice_(1)]))
    assert len(loaded.volume.voxels) == len(loaded.evidence.datasets) == 2
    assert loaded.notes == ("1 of 3 images are localizers and were left out",)
    assert "localizers (scout images) only" in refusal(write(tmp_path, [scout]))


def test_a_frame_of_reference_of_its_own_in_every_slice_is_joined_and_told(tmp_path):
    datasets = [slice_(k, FrameOfReferenceUID=f"1.2.3.{k + 1}") for k in range(5)]
    loaded = load_volume(write(tmp_path, datasets))
    assert {ds.FrameOfReferenceUID for ds in loaded.evidence.datasets} == {"1.2.3.1"}
    assert "that of the first slice was used for all" in loaded.notes[0]


def test_a_missing_frame_of_reference_is_derived_and_told(tmp_path):
    datasets = [slice_(k, FrameOfReferenceUID=None) for k in range(3)]
    first, again = (load_volume(write(tmp_path, order)) for order in (datasets, datasets[::-1]))
    uids = {ds.FrameOfReferenceUID for loaded in (first, again) for ds in loaded.evidence.datasets}
    assert len(uids) == 1
    assert first.notes == ("the images have no Frame of Reference UID; one was derived from their series",)


def test_a_single_slice_takes_its_thickness(tmp_path):
    loaded = load_volume(write(tmp_path, [slice_(0)]))
    assert loaded.volume.spacing[0] == 3
    assert "one slice only" in loaded.notes[0]
    assert "no Slice Thickness" in refusal(write(tmp_path, [slice_(0, SliceThickness=None)]))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"PixelData": None}, "in 1 of 3 images there is no pixel data"),
        ({"ImagePositionPatient": None}, "in 1 of 3 images Image Position (Patient) is missing"),
        ({"PixelSpacing": [0, 0.7]}, "Pixel Spacing is 0 x 0.7 mm"),
        ({"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}, "in colour"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "'PALETTE COLOR', not a greyscale"),
        ({"SamplesPerPixel": 0}, "the pixel data has 0 samples per pixel"),
        ({"Rows": 0}, "the pixel data is implausible: 0 rows x 7 columns x 1 frames"),
        ({"Rows": 6}, "the pixel data is cut off: 84 bytes belong there, 70 are there"),
        ({"Rows": 65535, "Columns": 65535}, "the pixel data is cut off: 8589672450 bytes belong there"),
        ({"Rows": 65535, "Columns": 65535, "NumberOfFrames": 2}, "would take 17179344900 bytes"),
        ({"BitsAllocated": 12, "BitsStored": 12, "HighBit": 11}, "12 bits per pixel"),
        ({"BitsAllocated": 17, "BitsStored": 17, "HighBit": 16}, "17 bits per pixel"),
        ({"BitsStored": 17, "HighBit": 16}, "implausible"),
        ({"NumberOfFrames": -1}, "the pixel data is implausible: 5 rows x 7 columns x -1 frames"),
        ({"NumberOfFrames": 0}, "the pixel data is implausible: 5 rows x 7 columns x 0 frames"),
        ({"NumberOfFrames": 2, "Rows": 1}, "without a position for each"),
        ({"RescaleSlope": None, "RescaleIntercept": None}, "Rescale Slope is missing"),
        ({"RescaleSlope": 0}, "Rescale Slope is 0"),
        ({"StudyInstanceUID": None}, "Study Instance UID is not the same"),
        ({"SOPInstanceUID": None}, "no SOP Instance UID"),
    ],
)
def test_DAT_08_DAT_09_what_no_slice_may_be(tmp_path, changes, reason):
    assert reason in refusal(write(tmp_path, [slice_(0), slice_(1, **changes), slice_(2)]))


def element(number, vr, value) -> bytes:
    return struct.pack("<HH2sH", 0x28, number, vr, len(value)) + value


ROWS_AS_WRITTEN = element(0x10, b"US", struct.pack("<H", ROWS))


@pytest.mark.parametrize(
    ("new", "reason"),
    [
        (element(0x10, b"UL", struct.pack("<L", ROWS)), "Rows is stated to be of another value representation"),
        (element(0x10, b"SS", struct.pack("<H", ROWS)), "Rows is stated to be of another value representation"),
        (element(0x10, b"IS", b"5 "), "Rows is stated to be of another value representation"),
        (element(0x10, b"US", b"\5"), "Rows cannot be read"),
        (element(0x10, b"US", b"\5\0\0"), "Rows cannot be read"),
        (element(0x10, b"US", b"\5\0\5\0"), "Rows is not a whole number"),
        (element(8, b"IS", b"abc ") + ROWS_AS_WRITTEN, "Number of Frames is not a whole number"),
        (element(8, b"IS", b"1.5 ") + ROWS_AS_WRITTEN, "Number of Frames"),
        (element(8, b"IS", b"-1") + ROWS_AS_WRITTEN, "-1 frames"),
    ],
    ids=["UL", "SS", "IS", "one byte", "three bytes", "two numbers", "abc frames", "1.5 frames", "-1 frames"],
)
def test_DAT_09_numbers_that_are_encoded_as_none_may_be_are_refused(tmp_path, new, reason):
    paths = write(tmp_path, [slice_(k) for k in range(3)])
    raw = paths[1].read_bytes()
    assert raw.count(ROWS_AS_WRITTEN) == 1
    paths[1].write_bytes(raw.replace(ROWS_AS_WRITTEN, new))
    assert reason in refusal(paths)


def test_DAT_09_pixel_data_of_odd_length_are_cut_off(tmp_path):
    paths = write(tmp_path, [slice_(k) for k in range(3)])
    raw = paths[1].read_bytes()
    whole = struct.pack("<HH2sHL", 0x7FE0, 0x10, b"OW", 0, 2 * ROWS * COLUMNS)
    assert raw.count(whole) == 1
    paths[1].write_bytes(raw.replace(whole, struct.pack("<HH2sHL", 0x7FE0, 0x10, b"OW", 0, 69))[:-1])
    assert "the pixel data is cut off: 70 bytes belong there, 69 are there" in refusal(paths)


@pytest.mark.parametrize(("old", "new"), [(b"32.5", b"nan "), (b"32.5", b"1e99"), (b"32.5", b"ab.c")])
def test_DAT_14_positions_that_are_no_numbers_are_refused(tmp_path, old, new):
    paths = write(tmp_path, [slice_(k) for k in range(3)])
    raw = paths[1].read_bytes()
    assert raw.count(old) == 1
    paths[1].write_bytes(raw.replace(old, new))
    assert refusal(paths)


def test_one_uid_at_two_positions_is_refused(tmp_path):
    datasets = [slice_(k, SOPInstanceUID="1.2.5") for k in range(2)]
    assert "have the same SOP Instance UID" in refusal(write(tmp_path, datasets))


def test_a_missing_sop_class_comes_from_the_file_header(tmp_path):
    datasets = [slice_(0, SOPClassUID=None), slice_(1, SOPClassUID=None)]
    loaded = load_volume(write(tmp_path, datasets))
    assert loaded.evidence.slices[0].sop_class_uid == CTImageStorage
    assert "no SOP Class UID" in loaded.notes[0]


# --- files


def test_STO_07_a_changed_file_is_not_analysed(tmp_path):
    paths = write(tmp_path, [slice_(k) for k in range(3)])
    digests = {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
    assert len(load_volume(paths, digests=digests).volume.voxels) == 3
    raw = bytearray(paths[1].read_bytes())
    raw[-1] ^= 1
    paths[1].write_bytes(raw)
    assert "is not what was received" in refusal(paths, Permanent, digests=digests)


def test_a_missing_file_and_a_strange_file_are_told_apart(tmp_path):
    (tmp_path / "strange").write_bytes(b"no image" * 100)
    assert "no DICOM file" in refusal([tmp_path / "strange"], NotUnderstood)
    assert "not there any more" in refusal([tmp_path / "gone"], Permanent)
    assert "holds no image" in refusal([])


def test_evidence_is_as_received_but_without_pixels(tmp_path):
    paths = write(tmp_path, [slice_(k) for k in (1, 0)])
    loaded = load_volume(paths)
    for path, evidence in zip(reversed(paths), loaded.evidence.datasets, strict=True):
        received = dcmread(path)
        del received.PixelData
        assert received == evidence
        assert evidence.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian


def test_header_holds_text(tmp_path):
    changes = {"BodyPartExamined": "CHEST", "ConvolutionKernel": ["Br38f", "3"], "KVP": "120", "SliceThickness": "3.0"}
    header = load_volume(write(tmp_path, [slice_(k, **changes) for k in range(2)])).volume.header
    assert header["BodyPartExamined"] == "CHEST"
    assert header["ConvolutionKernel"] == "Br38f\\3"
    assert header["ImageType"] == "ORIGINAL\\PRIMARY\\AXIAL"
    assert (header["KVP"], header["SliceThickness"]) == ("120", "3.0")
    assert "ContrastBolusAgent" not in header
    assert "PatientID" not in header


# --- values


def test_slopes_of_each_slice_are_applied(tmp_path):
    datasets = [slice_(k, Modality="PT", RescaleSlope=0.25 * (k + 1), RescaleIntercept=k) for k in range(3)]
    voxels = load_volume(write(tmp_path, datasets)).volume.voxels
    assert voxels.dtype == np.float32
    for k in range(3):
        stored = (1000 * k + np.arange(ROWS * COLUMNS)).reshape(ROWS, COLUMNS)
        assert np.allclose(voxels[k], stored * 0.25 * (k + 1) + k)


def test_whole_slopes_stay_int16_and_intercepts_may_vary(tmp_path):
    datasets = [slice_(k, RescaleSlope=2, RescaleIntercept=-k) for k in range(3)]
    voxels = load_volume(write(tmp_path, datasets)).volume.voxels
    assert voxels.dtype == np.int16
    assert voxels[2, 0, 1] == 2001 * 2 - 2


def test_values_beyond_int16_turn_the_whole_volume_to_float32_exactly(tmp_path):
    datasets = [slice_(k) for k in range(3)]
    put_pixels(datasets[2], np.full(ROWS * COLUMNS, -32768))
    voxels = load_volume(write(tmp_path, datasets)).volume.voxels
    assert voxels.dtype == np.float32
    assert (voxels[0, 0, 3], voxels[2, 0, 0]) == (3 - 1024, -32768 - 1024)


def test_an_intercept_beyond_int16_is_added_exactly(tmp_path):
    datasets = [slice_(k, PixelRepresentation=0, RescaleIntercept=-40000) for k in range(3)]
    for k, ds in enumerate(datasets):
        put_pixels(ds, np.full(ROWS * COLUMNS, 40000 + k))
    voxels = load_volume(write(tmp_path, datasets)).volume.voxels
    assert voxels.dtype == np.int16
    assert voxels[:, 0, 0].tolist() == [0, 1, 2]


def test_signed_and_unsigned_slices_mix(tmp_path):
    signed, unsigned = slice_(0), slice_(1, PixelRepresentation=0)
    put_pixels(signed, np.full(ROWS * COLUMNS, -5))
    put_pixels(unsigned, np.full(ROWS * COLUMNS, 33000))
    voxels = load_volume(write(tmp_path, [signed, unsigned])).volume.voxels
    assert voxels.dtype == np.int16
    assert (voxels[0, 0, 0], voxels[1, 0, 0]) == (-1029, 31976)


@pytest.mark.parametrize(("representation", "expected"), [(0, 0xFFB), (1, -5)])
def test_bits_above_the_high_bit_are_cut_off(tmp_path, representation, expected):
    ds = slice_(0, BitsStored=12, HighBit=11, PixelRepresentation=representation)
    ds.PixelData = np.full(ROWS * COLUMNS, 0x5FFB, "<u2").tobytes()  # an overlay lies in bits 12 and 14
    assert load_volume(write(tmp_path, [ds])).volume.voxels[0, 0, 0] == expected - 1024


def test_eight_bit_values(tmp_path):
    ds = slice_(0, BitsAllocated=8, BitsStored=8, HighBit=7, PixelRepresentation=0, Modality="MR", RescaleSlope=None)
    del ds.RescaleIntercept
    ds.PixelData = bytes(range(200, 200 + ROWS * COLUMNS)) + b"\0"
    voxels = load_volume(write(tmp_path, [ds])).volume.voxels
    assert voxels.dtype == np.int16
    assert voxels[0].ravel().tolist() == list(range(200, 235))


@pytest.mark.parametrize("signed", [0, 1])
@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, RLELossless, JPEGLSLossless, JPEG2000Lossless])
def test_lossless_transfer_syntaxes_give_the_same_values(tmp_path, syntax, signed):
    datasets = [slice_(k, PixelRepresentation=signed) for k in range(3)]
    values = np.random.default_rng(1).integers(-2000 if signed else 0, 3000, (3, 32 * 32))
    for ds, stored in zip(datasets, values, strict=True):
        ds.Rows = ds.Columns = 32
        ds.BitsStored, ds.HighBit = 13, 12
        put_pixels(ds, stored)
        if syntax.is_encapsulated:
            compress(ds, syntax)
    voxels = load_volume(write(tmp_path, datasets, syntax)).volume.voxels
    assert np.array_equal(voxels.reshape(3, -1), values - 1024)


def test_big_endian(tmp_path):
    ds = slice_(0)
    ds.PixelData = (np.arange(ROWS * COLUMNS) - 7).astype(">i2").tobytes()
    path = tmp_path / "big"
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
    ds.save_as(path, enforce_file_format=True)
    assert load_volume([path]).volume.voxels[0, 0, :3].tolist() == [-1031, -1030, -1029]


def test_high_throughput_jpeg_2000(tmp_path):
    ds = slice_(0, Rows=12, Columns=16, PixelRepresentation=0)
    ds.PixelData = encapsulate([HTJ2K_CODESTREAM])
    expected = np.add.outer(np.arange(12) * 300, np.arange(16) * 7) - 1024
    assert np.array_equal(load_volume(write(tmp_path, [ds], HTJ2KLossless)).volume.voxels[0], expected)


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless])
def test_DAT_08_a_damaged_or_lying_compressed_slice_is_refused(tmp_path, syntax):
    ds = slice_(0, Rows=40, Columns=40)
    put_pixels(ds, np.arange(1600))
    compress(ds, syntax)
    whole = ds.PixelData
    ds.Rows = 44
    assert "cannot be decoded" in refusal(write(tmp_path, [ds], syntax))
    ds.Rows, ds.PixelData = 40, whole[: len(whole) // 2] + bytes(len(whole) - len(whole) // 2)
    assert "cannot be decoded" in refusal(write(tmp_path, [ds], syntax)) or "damaged" in refusal([tmp_path / "0000"])
    ds.Rows = ds.Columns = 60000
    ds.PixelData = whole
    assert "claim to hold" in refusal(write(tmp_path, [ds], syntax))


# --- enhanced multi-frame


def enhanced(ks=range(5), orientation=OBLIQUE[1], **changes) -> Dataset:
    """Return one Enhanced MR image whose frames are the slices `ks`, in this order."""
    ds = slice_(0, orientation, Modality="MR", SOPClassUID=EnhancedMRImageStorage)
    pixels = []
    ds.PerFrameFunctionalGroupsSequence = Sequence()
    for k in ks:
        one = slice_(k, orientation)
        pixels.append(one.PixelData)
        groups = Dataset()
        for name, keywords in (
            ("PlanePositionSequence", {"ImagePositionPatient": one.ImagePositionPatient}),
            ("PixelValueTransformationSequence", {"RescaleSlope": k + 1, "RescaleIntercept": -k, "RescaleType": "US"}),
            ("FrameContentSequence", {"StackID": "1", "InStackPositionNumber": k + 1, "TemporalPositionIndex": 1}),
        ):
            item = Dataset()
            item.update(keywords)
            for keyword, value in keywords.items():
                setattr(item, keyword, value)
            setattr(groups, name, [item])
        ds.PerFrameFunctionalGroupsSequence.append(groups)
    shared, plane, measures = Dataset(), Dataset(), Dataset()
    plane.ImageOrientationPatient = ds.ImageOrientationPatient
    measures.PixelSpacing, measures.SliceThickness = ds.PixelSpacing, ds.SliceThickness
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [plane], [measures]
    ds.SharedFunctionalGroupsSequence = [shared]
    for keyword in (
        "ImageOrientationPatient",
        "ImagePositionPatient",
        "PixelSpacing",
        "SliceThickness",
        "RescaleSlope",
    ):
        delattr(ds, keyword)
    ds.NumberOfFrames = len(pixels)
    ds.PixelData = b"".join(pixels)
    for keyword, value in changes.items():
        setattr(ds, keyword, value)
    return ds


@pytest.mark.parametrize("orientation", [AXIAL, *OBLIQUE])
@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [3, 0, 4, 1, 2]])
def test_frames_of_an_enhanced_image_are_sorted_and_rescaled_one_by_one(tmp_path, orientation, order):
    loaded = load_volume(write(tmp_path, [enhanced(order, orientation)]))
    assert len(loaded.evidence.datasets) == 1
    for k, reference in enumerate(loaded.evidence.slices):
        assert order[reference.frame_number - 1] == k
        assert (reference.sop_class_uid, reference.sop_instance_uid) == (EnhancedMRImageStorage, "1.2.826.0.1.1000")
        stored = (1000 * k + np.arange(ROWS * COLUMNS)).reshape(ROWS, COLUMNS)
        assert np.array_equal(loaded.volume.voxels[k], stored * (k + 1) - k)
        expected = formula(slice_(k, orientation), 4, 2)
        assert np.allclose((loaded.volume.affine @ (k, 4, 2, 1))[:3], expected, atol=1e-6)
    assert float(loaded.volume.header["SliceThickness"]) == 3


def test_enhanced_images_that_are_no_single_stack_are_refused_by_what_they_are(tmp_path):
    diffusion = enhanced([0, 0, 1, 1])
    for frame, groups in enumerate(diffusion.PerFrameFunctionalGroupsSequence):
        item = Dataset()
        item.DiffusionBValue = 1000.0 * (frame % 2)
        groups.MRDiffusionSequence = [item]
        groups.PixelValueTransformationSequence[0].RescaleIntercept = frame
    assert "several diffusion weightings (they differ in Diffusion b-value)" in refusal(write(tmp_path, [diffusion]))
    stacks = enhanced([0, 1, 2, 3])
    stacks.PerFrameFunctionalGroupsSequence[3].FrameContentSequence[0].StackID = "2"
    assert refusal(write(tmp_path, [stacks])) == "the multi-frame image holds 2 stacks; only one can be one volume"
    two = [enhanced(), enhanced(SOPInstanceUID="1.2.8")]
    assert (
        refusal(write(tmp_path, two))
        == "the series holds 2 images, 2 of them multi-frame; only one alone is one volume"
    )
    lying = enhanced(NumberOfFrames=4)
    assert refusal(write(tmp_path, [lying])) == "the image has 4 frames, 5 of them described"
