"""Derived images are a series of the source's own kind, in the same place, and say what they come from."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from encode_material import make_evidence, make_work
from objects import only
from picture_material import PHANTOM, SMOOTHING, derived_of, make_case, radiographs, validator_errors
from pydicom import Dataset

from pacs_ai.encode.voxels.derived import encode_derived_images
from pacs_ai.infer.volume import load_volume
from pacs_ai.pipeline import Clearance, Derived
from pacs_ai.profiles import Kind
from pacs_ai.testing import phantom_datasets

IMAGES = only(Kind.DERIVED_IMAGES)


def with_images(case, *images):
    return replace(case, findings=replace(case.findings, images=images or (derived_of(case),)))


def read_again(made, tmp_path):
    paths = [tmp_path / f"{number}.dcm" for number in range(len(made))]
    for one, path in zip(made, paths, strict=True):
        one.write(path)
    return load_volume(paths)


@pytest.mark.parametrize("multiframe", [False, True])
def test_values_and_places_are_read_back(multiframe, tmp_path):
    case = with_images(make_case(multiframe=multiframe))
    made = encode_derived_images(case, IMAGES, None)
    assert len(made) == len(case.own.datasets)
    loaded = read_again(made, tmp_path)
    expected = case.findings.images[0].voxels
    assert np.abs(loaded.volume.voxels - expected).max() <= 0.5
    assert np.allclose(loaded.volume.affine, case.volume.affine, atol=1e-3)


def test_a_new_rescale_is_used_where_the_old_one_would_lose(tmp_path):
    case = make_case()
    values = (case.volume.voxels.astype(np.float32) + 1024) / 5000
    case = with_images(case, derived_of(case, values))
    loaded = read_again(encode_derived_images(case, IMAGES, None), tmp_path)
    assert np.abs(loaded.volume.voxels - values).max() < np.ptp(values) / 60000


def test_values_beyond_the_bits_stored_widen_them():
    case = make_case()
    values = case.volume.voxels.astype(np.float32)
    values[0, 0, 0] = 30000
    case = with_images(case, derived_of(case, values))
    made = encode_derived_images(case, IMAGES, None)
    uid = case.own.slices[0].sop_instance_uid
    (first,) = [one.dataset for one in made if one.dataset.SourceImageSequence[0].ReferencedSOPInstanceUID == uid]
    pixels = first.pixel_array * float(first.RescaleSlope) + float(first.RescaleIntercept)
    assert pixels[0, 0] == 30000
    assert first.BitsStored == 16


def test_pet_keeps_an_intercept_of_zero():
    case = make_case()
    volume = replace(case.volume, modality="PT")
    values = np.linspace(-1e-3, 9e4, volume.voxels.size, dtype=np.float32).reshape(volume.shape)
    case = with_images(replace(case, inputs={"image": volume}), derived_of(case, values * 1e-4))
    ds = encode_derived_images(case, IMAGES, None)[0].dataset
    assert float(ds.RescaleIntercept) == 0


def test_the_header_says_what_it_is(tmp_path):
    case = with_images(make_case())
    made = encode_derived_images(case, IMAGES, None)
    assert [one.sha256 for one in made] == [one.sha256 for one in encode_derived_images(case, IMAGES, None)]
    for source, one in zip(case.own.datasets, made, strict=True):
        ds = one.dataset
        assert ds.SOPClassUID == source.SOPClassUID
        assert ds.ImageType[:2] == ["DERIVED", "SECONDARY"]
        assert ds.DerivationCodeSequence[0].CodeValue == SMOOTHING.value
        (cited,) = ds.SourceImageSequence
        assert cited.ReferencedSOPInstanceUID == source.SOPInstanceUID
        assert cited.PurposeOfReferenceCodeSequence[0].CodeValue == "121322"
        assert ds.FrameOfReferenceUID == source.FrameOfReferenceUID
        assert ds.InstanceNumber == source.InstanceNumber
        assert ds.SeriesDescription == "AI: Denoised (not for clinical use)"
        assert ds.ContentQualification == "RESEARCH"
        assert ds.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.1"
    assert not validator_errors(made[0], tmp_path)


def test_each_set_of_images_has_a_series_of_its_own():
    case = make_case()
    case = with_images(case, derived_of(case), derived_of(case, title="Sharpened"))
    made = encode_derived_images(case, IMAGES, None)
    assert len({one.series_instance_uid for one in made}) == 2
    assert len({one.sop_instance_uid for one in made}) == 2 * len(case.own.datasets)


def test_what_is_no_longer_true_is_left_out():
    source = Dataset()
    source.add_new(0x00090010, "LO", "PRIVATE")
    source.add_new(0x00091001, "LO", "secret")
    source.add_new(0x60003000, "OW", b"\0\0")
    evidence = make_evidence(
        PHANTOM,
        CTDIvol=1.5,
        SmallestImagePixelValue=0,
        OperatorsName="Somebody",
        StationName="CT1",
        LossyImageCompression="01",
        LossyImageCompressionRatio="5",
    )
    for ds in evidence.datasets:
        ds.update({element.tag: element for element in source})
        reference = Dataset()
        reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = "1.2", "1.3"
        ds.ReferencedImageSequence = [reference]
    case = with_images(replace(make_case(), evidence={"image": evidence}))
    ds = encode_derived_images(case, IMAGES, None)[0].dataset
    for keyword in ("CTDIvol", "SmallestImagePixelValue", "OperatorsName", "StationName", "ReferencedImageSequence"):
        assert keyword not in ds
    assert not [element for element in ds if element.tag.is_private or element.tag.group == 0x6000]
    assert (ds.LossyImageCompression, ds.LossyImageCompressionRatio) == ("01", 5)


def test_padding_stays_where_it_was():
    case = make_case()
    values = case.volume.voxels.copy()
    values[:, :3] = -2000
    for ds in case.own.datasets:
        ds.PixelRepresentation, ds.PixelPaddingValue = (
            1,
            int((-2000 - float(ds.RescaleIntercept)) / float(ds.RescaleSlope)),
        )
    case = replace(case, inputs={"image": replace(case.volume, voxels=values)})
    case = with_images(case, derived_of(case, np.where(values == -2000, -1500, values).astype(np.float32)))
    ds = encode_derived_images(case, IMAGES, None)[0].dataset
    assert (ds.pixel_array[:3] == ds.PixelPaddingValue).all()
    assert (ds.pixel_array[3:] != ds.PixelPaddingValue).all()


def test_frames_of_an_enhanced_image_cite_their_source_frames(tmp_path):
    case = with_images(make_case(multiframe=True))
    (made,) = encode_derived_images(case, IMAGES, None)
    ds = made.dataset
    assert ds.ImageType[:2] == ["DERIVED", "PRIMARY"]
    for number, frame in enumerate(ds.PerFrameFunctionalGroupsSequence, 1):
        (cited,) = frame.DerivationImageSequence[0].SourceImageSequence
        assert cited.ReferencedFrameNumber == number


@pytest.mark.parametrize("photometric_interpretation", ["MONOCHROME1", "MONOCHROME2"])
def test_radiographs_are_turned_back(photometric_interpretation):
    case = radiographs(photometric_interpretation=photometric_interpretation)
    values = np.stack([image.pixels for image in case.given.images])
    case = replace(case, findings=replace(case.findings, images=(Derived("Same", SMOOTHING, values),)))
    made = encode_derived_images(case, IMAGES, None)
    for one, shown in zip(made, values, strict=True):
        expected = 4095 - shown if photometric_interpretation == "MONOCHROME1" else shown
        assert np.array_equal(one.dataset.pixel_array, expected)
        assert one.dataset.PhotometricInterpretation == photometric_interpretation


def test_colour_sources_give_none_and_a_product_no_disclaimer():
    case = with_images(make_case())
    work = make_work(card=replace(case.card, clearance=Clearance.PRODUCT))
    assert encode_derived_images(replace(case, work=work), IMAGES, None)[0].dataset.SeriesDescription == "AI: Denoised"
    case.source.PhotometricInterpretation = "RGB"
    assert encode_derived_images(case, IMAGES, None) == ()


def test_the_phantom_has_pixels_of_its_own():
    """Guards the test material: sources without pixels must not be what is compared."""
    assert all("PixelData" in ds for ds in phantom_datasets(PHANTOM))
