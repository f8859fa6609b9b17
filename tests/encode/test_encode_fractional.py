"""A fractional segmentation holds the probabilities of each label in 255 steps, read back by highdicom and dcmqi."""

from __future__ import annotations

from io import BytesIO

import highdicom
import numpy as np
import pytest
import segmentation_readers as readers
from encode_material import make_evidence, make_multiframe, make_volume, make_work
from highdicom.seg import Segmentation
from objects import only
from pydicom import dcmread
from readback import dciodvfy_errors

from pacs_ai.encode.case import Case
from pacs_ai.encode.results import encode as encode_all
from pacs_ai.encode.voxels.segmentation import encode_segmentation
from pacs_ai.encode.voxels.template import describe
from pacs_ai.pipeline import Code, Findings, Map
from pacs_ai.profiles import Kind

SYNTAXES = ("ExplicitVRLittleEndian", "RLELossless")
PROBABILITY = Code("111047", "DCM", "Probability of cancer")
NO_UNITS = Code("1", "UCUM", "no units")


def probabilities(seed=1):
    """(slices, rows, columns) float32, 0 to 1, a third of it 0, the first slices too."""
    found = np.random.default_rng(seed).random(make_volume().shape).astype(np.float32)
    found[found < 1 / 3] = 0
    found[:seed] = 0
    return found


def probability_map(label, voxels):
    return Map(f"Probability of {label}", PROBABILITY, NO_UNITS, voxels, label)


def encode(maps, syntax=SYNTAXES[0], evidence=None, **options):
    sources = {"image": evidence or make_evidence()}
    case = Case(Findings(maps=tuple(maps)), sources, {"image": make_volume()}, make_work())
    return encode_segmentation(case, only(Kind.SEGMENTATION, "fractional", syntax, **options), None)


def two_maps():
    return probability_map("Right lung", probabilities(1)), probability_map("Left lung", probabilities(2))


def steps(voxels):
    return np.rint(voxels * 255)


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("maps", [two_maps(), two_maps()[1:]], ids=["two", "one"])
def test_every_probability_is_read_again(tmp_path, maps, syntax):
    evidence = make_evidence()
    (result,) = encode(maps, syntax)
    path = tmp_path / "seg.dcm"
    result.write(path)
    read = highdicom.seg.segread(path).get_pixels_by_source_instance(
        [one.sop_instance_uid for one in evidence.slices], assert_missing_frames_are_empty=True
    )
    by_dcmqi = readers.by_dcmqi_values(path, make_volume(), tmp_path / "dcmqi")
    for place, one in enumerate(maps):
        assert np.array_equal(np.rint(read[..., place] * 255), steps(one.voxels))
        assert np.abs(read[..., place] - one.voxels).max() < 1 / 509
        assert np.array_equal(by_dcmqi[place + 1], steps(one.voxels))
    assert dciodvfy_errors(path) == []
    assert encode(maps, syntax)[0].to_bytes() == result.to_bytes()


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_every_attribute_of_the_frames_is_as_highdicom_makes_it(syntax):
    evidence, work, maps = make_evidence(), make_work(), two_maps()
    ours = encode(maps, syntax)[0].dataset
    for ds in evidence.datasets:
        ds.AccessionNumber = ds.AccessionNumber or ""
    written = BytesIO()
    Segmentation(
        source_images=list(evidence.datasets),
        pixel_array=np.stack([one.voxels for one in maps], axis=-1),
        segmentation_type="FRACTIONAL",
        fractional_type="PROBABILITY",
        max_fractional_value=255,
        segment_descriptions=[describe(one.label, number, work) for number, one in enumerate(maps, 1)],
        series_instance_uid="1.2.3",
        series_number=9001,
        sop_instance_uid="1.2.3.4",
        instance_number=1,
        manufacturer="m",
        manufacturer_model_name="m",
        software_versions="1",
        device_serial_number="1",
        transfer_syntax_uid=ours.file_meta.TransferSyntaxUID,
    ).save_as(written)
    written.seek(0)
    theirs = dcmread(written)
    assert (ours.SegmentsOverlap, theirs.SegmentsOverlap) == ("YES", "UNDEFINED")  # highdicom does not look
    for keyword in (
        "SourceImageSequence", "ReferencedSeriesSequence", "SegmentSequence", "SegmentationType", "ImageType",
        "SegmentationFractionalType", "MaximumFractionalValue", "PerFrameFunctionalGroupsSequence",
        "NumberOfFrames", "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation",
        "PhotometricInterpretation", "SamplesPerPixel", "FrameOfReferenceUID", "LossyImageCompression", "SOPClassUID",
    ):  # fmt: skip
        assert ours.get(keyword) == theirs.get(keyword), keyword
    assert np.abs(ours.pixel_array.astype(int) - theirs.pixel_array).max() <= 1  # halves are rounded either way


def test_multi_frame_sources_are_cited_by_frame():
    maps = two_maps()
    (result,) = encode(maps, evidence=make_multiframe())
    group = result.dataset.PerFrameFunctionalGroupsSequence[0]
    assert group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedFrameNumber == 12
    assert result.dataset.PixelData == encode(maps)[0].dataset.PixelData


def test_maps_that_are_no_probabilities_of_a_label_are_no_segmentation():
    saliency = Map("Saliency", PROBABILITY, NO_UNITS, probabilities())
    assert encode([saliency]) == ()
    assert encode([]) == ()
    assert encode([probability_map("Right lung", np.full(make_volume().shape, 1e-3, np.float32))]) == ()
    (result,) = encode([saliency, *two_maps()[:1]])
    assert [one.SegmentLabel for one in result.dataset.SegmentSequence] == ["Right lung"]


def test_frames_may_be_sparse_or_full():
    maps = two_maps()
    assert encode(maps)[0].dataset.NumberOfFrames == 11 + 10
    assert encode(maps, frames="full")[0].dataset.NumberOfFrames == 2 * 12


def test_labels_apart_do_not_overlap():
    left, right = probabilities(1), probabilities(1)
    left[:, :, :20], right[:, :, 20:] = 0, 0
    (result,) = encode([probability_map("Left lung", left), probability_map("Right lung", right)])
    assert result.dataset.SegmentsOverlap == "NO"


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_the_gate_lets_it_pass(syntax):
    findings, sources = Findings(maps=two_maps()), {"image": make_evidence()}
    wanted = (only(Kind.SEGMENTATION, "fractional", syntax),)
    assert encode_all(findings, sources, {"image": make_volume()}, make_work(), wanted)
