"""Radiographs, mammograms and ultrasound: order, greyscale, colour, scale, and everything that is refused."""

from __future__ import annotations

import hashlib
from itertools import permutations

import numpy as np
import pydicom
import pytest
from plain_images import (
    chest_pixels,
    code,
    head_pixels,
    radiograph,
    region,
    ultrasound,
    write,
    write_chest,
    write_heads,
)
from pydicom import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    MPEG4HP41,
    DigitalMammographyXRayImageStorageForPresentation,
    ExplicitVRBigEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
    UltrasoundImageStorage,
)

from pacs_ai.errors import NotUnderstood, Permanent, Refused
from pacs_ai.infer.frames import load_frames
from pacs_ai.testing.pipelines import RadiographRegions, UltrasoundHead

ROWS, COLUMNS = 6, 9
RAMP = np.arange(ROWS * COLUMNS, dtype=np.uint8).reshape(ROWS, COLUMNS)
GRADIENT = np.stack([RAMP * 4, 255 - RAMP * 4, np.full_like(RAMP, 77)], axis=-1)


def load(tmp_path, *datasets):
    return load_frames(write(tmp_path, datasets))


def only(tmp_path, ds):
    (image,) = load(tmp_path, ds).frames.images
    return image


# --- order and evidence


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_images_come_in_the_order_of_instance_number(tmp_path, order):
    paths = write(tmp_path, [radiograph(RAMP + k, number=10 * (k + 1)) for k in range(3)])
    loaded = load_frames([paths[k] for k in order])
    assert [int(image.pixels[0, 0]) for image in loaded.frames.images] == [0, 1, 2]
    assert [reference.sop_instance_uid for reference in loaded.evidence.slices] == [
        str(ds.SOPInstanceUID) for ds in loaded.evidence.datasets
    ]
    assert [reference.frame_number for reference in loaded.evidence.slices] == [None] * 3
    assert all("PixelData" not in ds for ds in loaded.evidence.datasets)


def test_images_without_instance_number_come_last_by_their_uid(tmp_path):
    images = [radiograph(RAMP + k, number=k + 1) for k in range(3)]
    for ds in images[:2]:
        ds.InstanceNumber = None
    loaded = load(tmp_path, *images)
    uids = [reference.sop_instance_uid for reference in loaded.evidence.slices]
    assert uids == [str(images[2].SOPInstanceUID), *sorted(str(ds.SOPInstanceUID) for ds in images[:2])]


def test_frames_of_a_clip_are_numbered_and_stand_beside_single_images(tmp_path):
    clip = ultrasound(np.stack([RAMP, RAMP + 1, RAMP + 2]), number=2, frames=3)
    loaded = load(tmp_path, clip, ultrasound(RAMP + 9, number=1))
    assert [int(image.pixels[0, 0]) for image in loaded.frames.images] == [9, 0, 1, 2]
    assert [reference.frame_number for reference in loaded.evidence.slices] == [None, 1, 2, 3]
    assert loaded.frames.shape == (4, ROWS, COLUMNS)
    assert len(loaded.evidence.datasets) == 2
    assert loaded.frames.modality == "US"


def test_images_need_not_be_of_one_size(tmp_path):
    loaded = load(tmp_path, radiograph(RAMP, 1), radiograph(RAMP[:4], 2))
    assert loaded.frames.shape is None
    assert [image.pixels.shape for image in loaded.frames.images] == [(6, 9), (4, 9)]


def test_the_header_tells_of_the_view(tmp_path):
    image = only(tmp_path, radiograph(RAMP, ViewPosition="LL", ImageLaterality="L"))
    wanted = {"ViewPosition": "LL", "ImageLaterality": "L", "PatientOrientation": "L\\F", "BodyPartExamined": "CHEST"}
    assert wanted.items() <= image.header.items()
    assert "PatientName" not in image.header
    assert "PatientID" not in image.header


@pytest.mark.parametrize(("value", "view"), [("399348003", "AP"), ("R-10214", "PA"), ("399198007", "RL"), ("1", None)])
def test_where_only_its_code_tells_the_view_that_counts(tmp_path, value, view):
    coded = code(value, "SCT", "a view")
    coded.ViewModifierCodeSequence = [code("399163009", "SCT", "Magnification"), code("1", "99T", "turned")]
    header = only(tmp_path, radiograph(RAMP, ViewPosition="", ViewCodeSequence=[coded])).header
    assert header.get("ViewPosition") == view
    assert header["ViewModifierCodeSequence"] == "Magnification\\turned"
    assert (
        only(tmp_path / "LL", radiograph(RAMP, ViewPosition="LL", ViewCodeSequence=[coded])).header["ViewPosition"]
        == "LL"
    )


# --- greyscale


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, RAMP.astype(int)),
        ({"PhotometricInterpretation": "MONOCHROME1"}, 255 - RAMP.astype(int)),
        ({"RescaleSlope": 2, "RescaleIntercept": -10}, RAMP.astype(int) * 2 - 10),
        (
            {"PhotometricInterpretation": "MONOCHROME1", "RescaleSlope": 2, "RescaleIntercept": -10},
            2 * -10 + 2 * 255 - (RAMP.astype(int) * 2 - 10),
        ),
        ({"BitsStored": 6, "HighBit": 5, "PhotometricInterpretation": "MONOCHROME1"}, 63 - RAMP.astype(int)),
    ],
)
def test_high_is_bright_after_the_modality_lut(tmp_path, changes, expected):
    image = only(tmp_path, radiograph(RAMP, **changes))
    assert image.pixels.dtype == np.int16
    assert np.array_equal(image.pixels, expected)


def test_the_smallest_exact_type_is_kept(tmp_path):
    wide = RAMP.astype(np.uint16) * 1200
    assert only(tmp_path / "whole", radiograph(wide)).pixels.dtype == np.uint16
    assert only(tmp_path / "signed", radiograph(wide.astype(np.int16))).pixels.dtype == np.int16
    parts = only(tmp_path / "parts", radiograph(wide, RescaleSlope=0.5))
    assert parts.pixels.dtype == np.float32
    assert np.array_equal(parts.pixels, wide * 0.5)
    narrow = only(tmp_path / "narrow", radiograph(wide, RescaleSlope=2, RescaleIntercept=-5))
    assert narrow.pixels.dtype == np.float32, "no whole type of 16 bits holds them"


def test_a_modality_lut_sequence_is_applied(tmp_path):
    item = Dataset()
    item.LUTDescriptor, item.ModalityLUTType = [64, 0, 16], "US"
    item.add_new(0x00283006, "US", [1000 + 3 * k for k in range(64)])
    image = only(tmp_path, radiograph(RAMP, ModalityLUTSequence=Sequence([item])))
    assert np.array_equal(image.pixels, 1000 + 3 * RAMP.astype(int))


def test_a_contradicting_presentation_lut_shape_is_told(tmp_path):
    loaded = load(tmp_path, radiograph(RAMP, 1), radiograph(RAMP, 2, PresentationLUTShape="INVERSE"))
    assert loaded.notes[-1] == (
        "Presentation LUT Shape is INVERSE in a MONOCHROME2 image; the latter was followed (1 of 2 images)"
    )


# --- colour


@pytest.mark.parametrize("planar", [0, 1])
def test_colour_is_red_green_and_blue(tmp_path, planar):
    ds = ultrasound(GRADIENT, PlanarConfiguration=planar)
    ds.PixelData = (GRADIENT if planar == 0 else np.moveaxis(GRADIENT, -1, 0)).tobytes()
    image = only(tmp_path, ds)
    assert image.pixels.dtype == np.uint8
    assert np.array_equal(image.pixels, GRADIENT)


@pytest.mark.parametrize("kind", ["YBR_FULL", "YBR_FULL_422"])
def test_luminance_and_chrominance_become_colours(tmp_path, kind):
    grey = np.repeat(np.arange(10, 60, dtype=np.uint8).reshape(5, 10)[..., None], 3, axis=-1)
    y, c = grey[..., 0], np.full((5, 10), 128, np.uint8)
    ds = ultrasound(grey, PhotometricInterpretation=kind)
    full = np.stack([y, c, c], axis=-1).tobytes()
    halved = b"".join(bytes([a, b, 128, 128]) for a, b in y.reshape(-1, 2).tolist())
    ds.PixelData = full if kind == "YBR_FULL" else halved
    assert np.array_equal(only(tmp_path, ds).pixels, grey)


def test_a_palette_is_looked_up(tmp_path):
    ds = ultrasound(RAMP, PhotometricInterpretation="PALETTE COLOR")
    for colour, values in (("Red", range(256)), ("Green", range(255, -1, -1)), ("Blue", [9] * 256)):
        ds.add_new(f"{colour}PaletteColorLookupTableDescriptor", "US", [256, 0, 16])
        ds.add_new(f"{colour}PaletteColorLookupTableData", "OW", np.asarray([v * 257 for v in values], "<u2").tobytes())
    image = only(tmp_path, ds)
    assert np.array_equal(image.pixels, np.stack([RAMP, 255 - RAMP, np.full_like(RAMP, 9)], axis=-1))


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless])
@pytest.mark.parametrize("pixels", [RAMP, GRADIENT], ids=["grey", "colour"])
def test_lossless_compression_changes_nothing(tmp_path, syntax, pixels):
    ds = ultrasound(np.kron(pixels, np.ones((8, 8, *[1] * (pixels.ndim - 2)), np.uint8)))
    expected = only(tmp_path / "plain", ds).pixels
    ds.compress(syntax, generate_instance_uid=False)
    assert np.array_equal(only(tmp_path / "compressed", ds).pixels, expected)


def test_big_endian_words_are_put_in_order(tmp_path):
    ds = ultrasound(GRADIENT)
    ds.PixelData = np.frombuffer(GRADIENT.tobytes(), "<u2").byteswap().tobytes()
    ds["PixelData"].VR = "OW"
    ds.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    (path,) = (tmp_path / "image.dcm",)
    pydicom.dcmwrite(path, ds, enforce_file_format=True)
    (image,) = load_frames([path]).frames.images
    assert np.array_equal(image.pixels, GRADIENT)


# --- scale

AT_DETECTOR = "no length is known: the pixel spacing is that of the detector, without calibration"


@pytest.mark.parametrize(
    ("changes", "spacing", "note"),
    [
        ({}, None, AT_DETECTOR),
        ({"PixelSpacing": [0.2, 0.2]}, None, AT_DETECTOR),
        ({"PixelSpacing": [0.18, 0.17]}, (0.18, 0.17), ""),
        ({"PixelSpacing": [0.2, 0.2], "PixelSpacingCalibrationType": "FIDUCIAL"}, (0.2, 0.2), ""),
        ({"EstimatedRadiographicMagnificationFactor": 1.25}, (0.16, 0.16), ""),
        ({"EstimatedRadiographicMagnificationFactor": 0}, None, AT_DETECTOR),
        (
            {"PixelSpacing": [0.2, 0.2], "ImagerPixelSpacing": None},
            None,
            "no length is known: the pixel spacing does not say how it was calibrated",
        ),
        ({"ImagerPixelSpacing": None}, None, ""),
        ({"ImagerPixelSpacing": [0, 0.2]}, None, "no length is known: the pixel spacing 0 x 0.2 mm is implausible"),
    ],
)
def test_a_projection_has_a_scale_only_where_it_holds_in_the_patient(tmp_path, changes, spacing, note):
    loaded = load(tmp_path, radiograph(RAMP, **changes))
    (image,) = loaded.frames.images
    assert image.spacing == (None if spacing is None else pytest.approx(spacing))
    assert loaded.notes == ((note,) if note else ())


@pytest.mark.parametrize(
    ("regions", "spacing", "note"),
    [
        ([{}], (0.5, 0.5), ""),
        ([{"PhysicalDeltaX": 0.04, "PhysicalDeltaY": -0.05}], (0.5, 0.4), ""),
        ([{}, {}], (0.5, 0.5), ""),
        ([{}, {"PhysicalDeltaX": 0.1}], None, "no length is known: the image has 2 regions of different scale"),
        (
            [{}, {"PhysicalUnitsXDirection": 4}],
            None,
            "no length is known: the image has regions that are no picture in centimetres",
        ),
        ([{"PhysicalDeltaX": 0}], None, "no length is known: a region of the image has no size in centimetres"),
    ],
)
def test_ultrasound_has_the_scale_of_its_regions(tmp_path, regions, spacing, note):
    items = Sequence([region(0.05, COLUMNS, ROWS, **changes) for changes in regions])
    loaded = load(tmp_path, ultrasound(RAMP, SequenceOfUltrasoundRegions=items))
    (image,) = loaded.frames.images
    assert image.spacing == (None if spacing is None else pytest.approx(spacing))
    assert loaded.notes == ((note,) if note else ())


# --- refusals


def refuse(tmp_path, *datasets):
    with pytest.raises(Refused) as refusal:
        load(tmp_path, *datasets)
    return str(refusal.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"PhotometricInterpretation": "ARGB"}, "'ARGB' with 1 samples per pixel"),
        ({"SamplesPerPixel": 3}, "a greyscale image has to have one sample"),
        ({"SamplesPerPixel": 2}, "2 samples per pixel; 1 and 3 can be read"),
        ({"Rows": 60000, "Columns": 60000}, "cut off"),
        ({"BitsAllocated": 12}, "12 bits per pixel"),
        ({"RescaleSlope": 0}, "Rescale Slope is 0"),
        ({"RescaleSlope": None}, "Rescale Slope is missing"),
        ({"NumberOfFrames": 5}, "cut off"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "palette of the image cannot be read"),
        ({"SOPInstanceUID": ""}, "no SOP Instance UID"),
        ({"Modality": ""}, "Modality is missing"),
    ],
)
def test_what_cannot_be_read_is_refused_in_words(tmp_path, changes, words):
    ds = radiograph(RAMP)
    ds.preamble = bytes(128)  # written as it is, faults and all
    for keyword, value in changes.items():
        setattr(ds, keyword, value)
    paths = [tmp_path / "image.dcm"]
    pydicom.dcmwrite(paths[0], ds)
    with pytest.raises(Refused, match=words):
        load_frames(paths)


def test_deep_colours_are_refused(tmp_path):
    assert "16 bits per sample" in refuse(tmp_path, ultrasound(GRADIENT.astype(np.uint16)))


def test_the_series_of_two_patients_is_refused(tmp_path):
    words = refuse(tmp_path, radiograph(RAMP, 1), radiograph(RAMP, 2, PatientID="OTHER"))
    assert words == "Patient ID is not the same in all images: 2 different values in 2 images"


def test_one_image_without_pixels_among_many_is_refused(tmp_path):
    empty = radiograph(RAMP, 2)
    del empty.PixelData
    assert refuse(tmp_path, radiograph(RAMP, 1), empty) == "in 1 of 2 images there is no pixel data"


def test_one_uid_twice_is_refused(tmp_path):
    assert refuse(tmp_path, radiograph(RAMP, 1), radiograph(RAMP + 1, 1)) == "two images have the same SOP Instance UID"


def test_a_film_is_refused(tmp_path):
    ds = ultrasound(GRADIENT)
    ds.PixelData = pydicom.encaps.encapsulate([b"\0\0\0\1" * 8])
    ds.file_meta.TransferSyntaxUID = MPEG4HP41
    assert "film" in refuse(tmp_path, ds)


def test_no_image_is_refused():
    with pytest.raises(Refused, match="holds no image"):
        load_frames([])


def test_a_bomb_is_refused_before_it_is_decoded(tmp_path):
    ds = ultrasound(np.kron(GRADIENT, np.ones((8, 8, 1), np.uint8)))
    ds.compress(JPEG2000Lossless, generate_instance_uid=False)
    ds.Rows = ds.Columns = 40000
    assert "claim to hold" in refuse(tmp_path / "claim", ds)
    ds.Rows, ds.Columns = 8 * ROWS, 8 * COLUMNS + 1
    assert "cannot be decoded" in refuse(tmp_path / "size", ds)


def test_a_damaged_frame_is_refused(tmp_path):
    ds = ultrasound(np.kron(GRADIENT, np.ones((8, 8, 1), np.uint8)))
    ds.compress(JPEGLSLossless, generate_instance_uid=False)
    ds.PixelData = ds.PixelData[:30] + bytes(len(ds.PixelData) - 30)
    assert refuse(tmp_path, ds)


def test_files_that_changed_or_are_gone_are_told_apart(tmp_path):
    (path,) = write(tmp_path, [radiograph(RAMP)])
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert load_frames([path], digests={path: digest}).frames.shape == (1, ROWS, COLUMNS)
    with pytest.raises(Permanent, match="changed on the disk"):
        load_frames([path], digests={path: "0" * 64})
    with pytest.raises(Permanent, match="not there any more"):
        load_frames([tmp_path / "gone.dcm"])
    path.write_bytes(b"no DICOM")
    with pytest.raises(NotUnderstood):
        load_frames([path])


# --- real images


def test_real_chest_films_are_the_same_in_both_greyscales(tmp_path, shared_data):
    (pixels,) = chest_pixels(shared_data, 1)
    plain = only(tmp_path / "2", radiograph(pixels))
    turned = only(tmp_path / "1", radiograph(255 - pixels, PhotometricInterpretation="MONOCHROME1"))
    assert np.array_equal(plain.pixels, pixels)
    assert np.array_equal(turned.pixels, pixels)


def test_real_mammograms_keep_their_sixteen_bits(shared_data):
    paths = sorted((shared_data / "mg_cbis_ddsm_malign").glob("*.dcm"))
    assert paths
    for path in paths:
        (image,) = load_frames([path]).frames.images
        assert np.array_equal(image.pixels, pydicom.dcmread(path).pixel_array)
        assert image.pixels.dtype == np.uint16


@pytest.mark.parametrize(
    "name",
    [
        "SC_rgb_dcmtk_+eb+cr.dcm",
        "SC_rgb_dcmtk_+eb+cy+n1.dcm",
        "SC_rgb_dcmtk_+eb+cy+np.dcm",
        "SC_rgb_dcmtk_+eb+cy+s2.dcm",
        "SC_rgb_dcmtk_+eb+cy+s4.dcm",
        "SC_rgb_gdcm_KY.dcm",
        "SC_rgb_jpeg_dcmtk.dcm",
        "SC_rgb_jpeg_gdcm.dcm",
        "SC_rgb_jpeg_lossy_gdcm.dcm",
        "SC_ybr_full_422_uncompressed.dcm",
    ],
)
def test_one_real_picture_in_many_encodings(shared_data, name):
    folder = shared_data / "dicom_odd_pydicom/test_files"
    (expected,) = load_frames([folder / "SC_rgb_rle.dcm"]).frames.images
    (image,) = load_frames([folder / name]).frames.images
    away = np.abs(image.pixels.astype(int) - expected.pixels)
    assert np.median(away) <= 2, "colours of flat areas"
    assert image.pixels.shape == (100, 100, 3)


def test_a_real_clip_has_its_frames_and_scale(shared_data):
    path = shared_data / "dicom_odd_pydicom/test_files/examples_ybr_color.dcm"
    loaded = load_frames([path])
    assert loaded.frames.shape == (30, 240, 320)
    assert loaded.evidence.slices[29].frame_number == 30
    assert loaded.frames.images[0].spacing == pytest.approx((0.5105, 0.5105), abs=1e-3)
    assert not np.array_equal(loaded.frames.images[0].pixels, loaded.frames.images[29].pixels)


def test_heads_are_measured_in_real_ultrasound(tmp_path, shared_data):
    loaded = load_frames(write_heads(tmp_path, shared_data))
    findings = UltrasoundHead().run({"image": loaded.frames})
    truth = [circumference for *_, circumference in head_pixels(shared_data)]
    assert len(findings.detections) == len(truth) == 3
    (first,) = findings.detections[0].measurements
    assert first.value == pytest.approx(truth[0], rel=0.6), "a rough fit, of the right order"


def test_regions_are_found_in_real_films(tmp_path, shared_data):
    loaded = load_frames(write_chest(tmp_path, shared_data, 2))
    findings = RadiographRegions().run({"image": loaded.frames})
    assert {detection.region.index for detection in findings.detections} == {0, 1}
    assert findings.segments[0].voxels.shape == (2, 1024, 1024)
    for detection in findings.detections:
        assert (detection.region.points >= 0).all()
        assert (detection.region.points <= 1024).all()


def test_mammograms_and_ultrasound_name_their_class(tmp_path):
    ds = radiograph(RAMP, SOPClassUID=DigitalMammographyXRayImageStorageForPresentation, Modality="MG")
    assert load(tmp_path, ds).evidence.slices[0].sop_class_uid == DigitalMammographyXRayImageStorageForPresentation
    one = load(tmp_path / "us", ultrasound(RAMP)).evidence.slices[0]
    assert (one.sop_class_uid, one.frame_number) == (UltrasoundImageStorage, None)
