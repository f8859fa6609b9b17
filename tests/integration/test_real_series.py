"""Real public series of many makers are read right, or refused for what they really are."""

from __future__ import annotations

import json
import warnings
from collections import defaultdict

import nibabel
import numpy as np
import pytest
from pydicom import dcmread

from pacs_ai.errors import NotUnderstood, Permanent, Refused
from pacs_ai.infer.volume import load_volume

#: Folder -> slices, rows, columns, type, smallest and largest value, spacing in mm.
VOLUMES = {
    "ct_chest_lidc_thin": ((275, 512, 512), np.int16, -1000, 1979, (1.0, 0.78125, 0.78125)),
    "ct_chest_tcga_thick": ((61, 512, 512), np.int16, -2048, 3071, (5.0, 0.78125, 0.78125)),
    "mr_brain_t1_mprage": ((192, 256, 256), np.int16, 0, 713, (0.9, 0.859375, 0.859375)),
    "pet_qin_headneck/pet": ((299, 128, 128), np.float32, 0, 66260.76, (3.375, 3.5378182, 3.5378182)),
    "pet_t1_brainweb/osem": ((258, 256, 256), np.float32, 0, 3.755581, (1.0, 1.0, 1.0)),
    "pet_t1_brainweb/t1": ((258, 256, 256), np.float32, 0, 4.0, (1.0, 1.0, 1.0)),
    "ct_bad_geometry/slicecount/001": ((2, 256, 256), np.int16, 0, 254, (1.0, 1.0, 1.0)),
    "seg_sr_dcmqi/segmentations/23x38x3/image": ((3, 38, 23), np.int16, 0, 1, (2.5, 0.7, 0.7)),
    "seg_sr_dcmqi/segmentations/23x38x3/multiframe": ((3, 38, 23), np.int16, 0, 1, (2.5, 0.7, 0.7)),
    "mr_enhanced_vendors/hyperfine/anatomical/001": ((8, 138, 112), np.int16, 0, 254, (5.0, 1.61, 1.59)),
    "mr_enhanced_vendors/philips_enhanced/anatomical/001": ((8, 256, 256), np.float32, 0, 1081.7484, (1.2, 1.0, 1.0)),
    "mr_enhanced_vendors/siemens_multiframe/anatomical/001": ((8, 256, 256), np.int16, 0, 254, (0.9, 0.9375, 0.9375)),
}

REFUSED = {
    "ct_head_ge_tilt": "the gantry was tilted by 18.5 degrees",
    "ct_bad_geometry/gantrytilting/001": "the gantry was tilted by 14.0 degrees",
    "ct_bad_geometry/notavolume/001": "all 4 images lie at one position, z = 61.5 mm: several acquisitions",
    "ct_bad_geometry/sliceincrement/001": "1 of 5 slices is missing: between z = 28.1 and 38.1 mm",
    "ct_bad_geometry/sliceincrement/002": "the gantry was tilted by 15.5 degrees",
    "ct_bad_geometry/sliceorientation/001": "the images are not parallel: 2 axial, 2 sagittal, up to 90.0",
    "ct_abdomen_j2k_totalseg/dicom": "an image has no SOP Instance UID",
    "mr_enhanced_vendors/philips_enhanced/dti/001": "several diffusion weightings (they differ in Diffusion b-value)",
    "mr_enhanced_vendors/philips_enhanced/fmri/001": "several time points",
    "mg_cbis_ddsm_malign": "Patient ID is not the same in all images: 2 different values in 2 images",
}

LOSSLESS = (
    "LittleEndianImplicit",
    "LittleEndianExplicit",
    "BigEndianExplicit",
    "DeflatedExplicitVR",
    "RLELossless",
    "JPEGLSLossless",
    "JPEG2000LosslessOnly",
    "JPEGProcess14Transfer",
    "JPEGProcess14SV1",
)


def files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def decoded(path):
    """The single image of a file as modality values, by pydicom alone."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ds = dcmread(path)
        return ds.pixel_array * float(ds.get("RescaleSlope", 1)) + float(ds.get("RescaleIntercept", 0)), ds


@pytest.mark.parametrize("folder", VOLUMES)
def test_real_volumes(shared_data, folder):
    paths = files(shared_data / folder)
    shape, dtype, low, high, spacing = VOLUMES[folder]
    loaded = load_volume(paths)
    voxels = loaded.volume.voxels
    assert (voxels.shape, voxels.dtype) == (shape, dtype)
    assert (voxels.min(), voxels.max()) == (pytest.approx(low), pytest.approx(high))
    assert loaded.volume.spacing == pytest.approx(spacing, abs=1e-4)
    assert len(loaded.evidence.slices) == shape[0]
    if len(paths) > 1:
        by_uid = {ds.SOPInstanceUID: (values, ds) for values, ds in map(decoded, paths[:: max(1, len(paths) // 12)])}
        for k, reference in enumerate(loaded.evidence.slices):
            if reference.sop_instance_uid in by_uid:
                check_slice(loaded, k, *by_uid[reference.sop_instance_uid])


def check_slice(loaded, k, values, ds):
    """A slice is the instance that it refers to: its pixels, and PS3.3 C.7.6.2.1-1 for its corners."""
    assert np.allclose(loaded.volume.voxels[k], values, rtol=1e-6, atol=1e-6)
    cosines, position = np.array(ds.ImageOrientationPatient, float), np.array(ds.ImagePositionPatient, float)
    for row, column in ((0, 0), (ds.Rows - 1, 0), (0, ds.Columns - 1)):
        expected = position + cosines[:3] * ds.PixelSpacing[1] * column + cosines[3:] * ds.PixelSpacing[0] * row
        assert np.allclose((loaded.volume.affine @ (k, row, column, 1))[:3], expected, atol=0.02)


@pytest.mark.parametrize("folder", REFUSED)
def test_real_series_that_are_no_volume_say_why(shared_data, folder):
    with pytest.raises(Refused) as raised:
        load_volume(files(shared_data / folder))
    assert REFUSED[folder] in str(raised.value)


def test_frames_of_reference_scattered_by_deidentification_are_told(shared_data):
    loaded = load_volume(files(shared_data / "ct_chest_lidc_thin"))
    assert "that of the first slice was used for all" in loaded.notes[0]
    assert len({ds.FrameOfReferenceUID for ds in loaded.evidence.datasets}) == 1


def test_enhanced_frames_lie_where_their_functional_groups_say(shared_data):
    for folder in (name for name in VOLUMES if name.startswith("mr_enhanced")):
        loaded = load_volume(files(shared_data / folder))
        (ds,) = loaded.evidence.datasets
        for k, reference in enumerate(loaded.evidence.slices):
            groups = ds.PerFrameFunctionalGroupsSequence[reference.frame_number - 1]
            position = groups.PlanePositionSequence[0].ImagePositionPatient
            assert np.allclose((loaded.volume.affine @ (k, 0, 0, 1))[:3], np.array(position, float), atol=0.03)


def test_an_enhanced_ct_whose_frames_descend_is_turned_round(shared_data):
    loaded = load_volume([shared_data / "seg_codecs_pydicom_data/eCT_Supplemental.dcm"])
    assert [each.frame_number for each in loaded.evidence.slices] == [1, 2][::-1]
    assert loaded.volume.spacing[0] == pytest.approx(10)


def test_one_slice_is_the_same_in_every_lossless_transfer_syntax(shared_data):
    folder = shared_data / "ct_transfer_syntaxes"
    expected = load_volume([folder / "CTImage.dcm"]).volume
    assert expected.voxels.std() > 100
    for name in LOSSLESS:
        (path,) = (path for path in files(folder) if path.name.startswith(f"CTImage.dcm_{name}"))
        volume = load_volume([path]).volume
        assert np.array_equal(volume.voxels, expected.voxels), name
        assert np.array_equal(volume.affine, expected.affine), name


@pytest.mark.parametrize(
    ("name", "off"),
    [("JPEG2000Transfer", 8), ("JPEGLSLossy", 4), ("JPEGProcess2_4", None), ("JPEGProcess1T", None)],
)
def test_lossy_transfer_syntaxes_are_near_and_told(shared_data, name, off):
    folder = shared_data / "ct_transfer_syntaxes"
    expected = load_volume([folder / "CTImage.dcm"]).volume.voxels.astype(float).ravel()
    (path,) = (path for path in files(folder) if path.name.startswith(f"CTImage.dcm_{name}"))
    loaded = load_volume([path])
    voxels = loaded.volume.voxels.astype(float).ravel()
    assert np.corrcoef(voxels, expected)[0, 1] > 0.95
    if off is not None:
        assert np.abs(voxels - expected).max() <= off
    assert any("compressed with loss" in note for note in loaded.notes)


def test_what_lacks_pixels_or_greyscale_is_refused(shared_data):
    folder = shared_data / "ct_transfer_syntaxes"
    for name, reason in (("no-pixel-data.dcm", "no pixel data"), ("no-pixel-spacing.dcm", "PALETTE COLOR")):
        with pytest.raises(Refused, match=reason):
            load_volume([folder / name])


def test_odd_files_are_refused_never_a_crash(shared_data):
    answers = defaultdict(list)
    for root in ("dicom_odd_pydicom", "seg_codecs_pydicom_data", "seg_sr_highdicom", "rt_sets", "seg_sr_dcmqi"):
        for path in files(shared_data / root):
            try:
                answers["volume"].append(load_volume([path]))
            except (Refused, NotUnderstood, Permanent) as refusal:
                answers[type(refusal)].append(str(refusal))
    assert all(text.strip() for kind in (Refused, NotUnderstood, Permanent) for text in answers[kind])
    assert len(answers["volume"]) > 5
    assert len(answers[Refused]) > 50
    assert len(answers[NotUnderstood]) > 5


def test_affine_agrees_with_monais_reader(shared_data):
    data = pytest.importorskip("monai.data")
    turn = np.diag([-1.0, -1.0, 1.0, 1.0])  # LPS <-> RAS
    for name in ("ct_chest_tcga_thick", "mr_brain_t1_mprage", "pet_qin_headneck/pet"):
        folder = shared_data / name
        volume = load_volume(files(folder)).volume
        reader = data.PydicomReader()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            array, meta = reader.get_data(reader.read(str(folder)))
        ours = turn @ volume.affine
        theirs = np.asarray(meta["affine"])  # (column, row, slice)
        assert array.shape == volume.voxels.shape[::-1], name
        slices = volume.voxels.shape[0]
        descending = np.dot(theirs[:3, 2], ours[:3, 0]) < 0
        values = np.moveaxis(array, [0, 1, 2], [2, 1, 0])
        for k in (0, slices // 3, slices - 1):
            at = slices - 1 - k if descending else k
            assert np.allclose(values[at], volume.voxels[k], rtol=1e-5, atol=1e-3), (name, k)
            for row, column in ((0, 0), (9, 5)):
                place = ours @ (k, row, column, 1)
                assert np.allclose(place, theirs @ (column, row, at, 1), atol=0.02), (name, k)


def test_the_tumour_segmented_by_others_lies_on_hot_voxels(shared_data):
    """A DICOM SEG of the PET, made elsewhere, refers to slices by SOP Instance UID: there the uptake is."""
    loaded = load_volume(files(shared_data / "pet_qin_headneck/pet"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        seg = dcmread(next(iter(files(shared_data / "pet_qin_headneck/seg"))))
        masks = seg.pixel_array.astype(bool).reshape(-1, seg.Rows, seg.Columns)
    index = {each.sop_instance_uid: k for k, each in enumerate(loaded.evidence.slices)}
    inverse = np.linalg.inv(loaded.volume.affine)
    inside = []
    for mask, groups in zip(masks, seg.PerFrameFunctionalGroupsSequence, strict=True):
        source = groups.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        position = np.array(groups.PlanePositionSequence[0].ImagePositionPatient, float)
        k, row, column = (inverse @ (*position, 1))[:3]
        assert (k, row, column) == (
            pytest.approx(index[source], abs=0.05),
            pytest.approx(0, abs=0.05),
            pytest.approx(0, abs=0.05),
        )
        inside.append(loaded.volume.voxels[index[source]][mask])
    inside = np.concatenate(inside)
    assert inside.size > 20
    assert np.median(inside) > 10 * np.median(loaded.volume.voxels[loaded.volume.voxels > 0])


def test_the_nodule_drawn_by_radiologists_lies_on_tissue(shared_data):
    """LIDC contours (rows and columns by slice position): soft tissue inside, but not where a flipped volume had it."""
    volume = load_volume(files(shared_data / "ct_chest_lidc_thin")).volume
    truth = json.loads((shared_data / "ct_chest_lidc_truth/lidc-idri-0314-nodules.json").read_text())
    inside, flipped = [], []
    for contour in truth["annotations"][0]["contours"]:
        points = np.array([line.split(",") for line in contour["ij"].split("\n")], float)
        row, column = points.mean(axis=0).round().astype(int)
        k = (contour["z"] - volume.affine[2, 3]) / volume.spacing[0]
        assert k == pytest.approx(round(k), abs=1e-3)
        inside.append(volume.voxels[round(k), row - 1 : row + 2, column - 1 : column + 2].mean())
        flipped.append(volume.voxels[-1 - round(k), row - 1 : row + 2, column - 1 : column + 2].mean())
    assert len(inside) > 10
    assert -100 < np.median(inside) < 150
    assert not -100 < np.median(flipped) < 150  # a rib


def test_the_reference_label_map_fits_the_scanners_grid(shared_data, tmp_path):
    """The abdomen CT came without UIDs and is refused as it is; given some, it matches the NIfTI label map of it."""
    folder = shared_data / "ct_abdomen_j2k_totalseg"
    paths = []
    for number, path in enumerate(files(folder / "dicom"), start=1):
        ds = dcmread(path)
        ds.SOPClassUID, ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPClassUID, f"1.2.3.{number}"
        ds.StudyInstanceUID, ds.SeriesInstanceUID = "1.2.1", "1.2.2"
        paths.append(tmp_path / f"{number}")
        ds.save_as(paths[-1])
    volume = load_volume(paths).volume
    image = nibabel.load(folder / "example_seg_dicom.nii.gz")
    place = np.diag([-1.0, -1.0, 1.0, 1.0]) @ volume.affine  # to RAS
    to_label = np.linalg.inv(image.affine) @ place
    assert np.allclose(np.abs(to_label[:3, :3]), [[0, 0, 1], [0, 1, 0], [1, 0, 0]], atol=1e-4)
    grid = np.stack(np.meshgrid(*map(np.arange, volume.voxels.shape), indexing="ij")).reshape(3, -1)
    i, j, k = np.rint(to_label[:3, :3] @ grid + to_label[:3, 3:]).astype(int)
    labels = np.asarray(image.dataobj)[i, j, k].reshape(volume.voxels.shape)
    liver, vertebrae = volume.voxels[labels == 5], volume.voxels[(labels >= 26) & (labels <= 50)]
    assert liver.size + vertebrae.size > 10_000
    assert liver.size == 0 or 40 < np.median(liver) < 160
    assert vertebrae.size == 0 or np.median(vertebrae) > 130
