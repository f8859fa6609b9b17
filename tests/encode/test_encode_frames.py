"""Packed bits, counts and functional groups equal what highdicom and pydicom write."""

from __future__ import annotations

import time

import highdicom
import numpy as np
import pytest
from encode_material import (
    CARD,
    SMALL,
    make_evidence,
    make_findings,
    make_multiframe,
    make_volume,
    make_work,
    segmentation,
)
from highdicom.seg import SegmentAlgorithmTypeValues, Segmentation, SegmentationTypeValues
from hypothesis import given, settings
from hypothesis import strategies as st
from objects import SEG_AND_SR
from pydicom import Dataset, uid
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset

from pacs_ai.encode import explicit
from pacs_ai.encode.case import Case
from pacs_ai.encode.check import check_results
from pacs_ai.encode.grid import Grid
from pacs_ai.encode.results import encode
from pacs_ai.encode.voxels.frames import overlap, pack
from pacs_ai.encode.voxels.survey import count_voxels
from pacs_ai.encode.voxels.template import describe
from pacs_ai.errors import NotUnderstood, Permanent, Refused
from pacs_ai.pipeline import Findings, Segment, Volume
from pacs_ai.testing import CORONAL, SAGITTAL, Phantom

OBLIQUE = (0.8, 0.6, 0.0, -0.36, 0.48, 0.8)


def written(ds):
    target = DicomBytesIO()
    target.is_little_endian, target.is_implicit_VR = True, False
    write_dataset(target, ds)
    return target.getvalue()


def by_highdicom(segments, evidence, phantom, work):
    """The SEG as highdicom alone makes it from all sources."""
    sources = []
    for ds in evidence.datasets:
        ds.AccessionNumber = ds.AccessionNumber or ""
        sources.append(ds)
    stacked = np.stack([segment.mask for segment in segments], axis=-1).astype(np.uint8)
    return Segmentation(
        source_images=sources,
        pixel_array=stacked,
        segmentation_type=SegmentationTypeValues.BINARY,
        segment_descriptions=[describe(segment.label, number, work) for number, segment in enumerate(segments, 1)],
        series_instance_uid="1.2.3",
        series_number=9001,
        sop_instance_uid="1.2.3.4",
        instance_number=1,
        manufacturer="m",
        manufacturer_model_name="m",
        software_versions="1",
        device_serial_number="1",
    )


@pytest.mark.parametrize(
    ("phantom", "labels"),
    [
        (SMALL, ("Right lung", "Left lung")),
        (SMALL, ("Left lung",)),
        (Phantom(slices=10, rows=32, columns=24), ("Right lung", "Left lung", "Marker front")),
        (Phantom(slices=14, rows=20, columns=22, orientation=SAGITTAL), ("Right lung", "Left lung")),
        (Phantom(slices=14, rows=20, columns=22, orientation=CORONAL, order="descending"), ("Right lung",)),
        (
            Phantom(slices=20, rows=24, columns=25, orientation=OBLIQUE, spacing=(14, 15, 16)),
            ("Right lung", "Left lung"),
        ),
    ],
)
def test_everything_that_describes_frames_is_as_highdicom_makes_it(phantom, labels):
    evidence, work = make_evidence(phantom), make_work()
    segments = make_findings(phantom, labels).segments
    ours = segmentation(segments, evidence, make_volume(phantom), work).dataset
    theirs = by_highdicom(segments, evidence, phantom, work)
    for index in theirs.DimensionIndexSequence:
        index.DimensionOrganizationUID = ours.DimensionOrganizationSequence[0].DimensionOrganizationUID
    theirs.DimensionOrganizationSequence = ours.DimensionOrganizationSequence
    for keyword in (
        "SourceImageSequence", "ReferencedSeriesSequence", "SegmentSequence", "SegmentationType", "ImageType",
        "DimensionOrganizationSequence", "DimensionIndexSequence", "DimensionOrganizationType",
        "SegmentsOverlap", "NumberOfFrames", "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit",
        "PixelRepresentation", "PhotometricInterpretation", "SamplesPerPixel", "FrameOfReferenceUID",
        "PositionReferenceIndicator", "LossyImageCompression", "Modality", "SOPClassUID", "StudyInstanceUID",
    ):  # fmt: skip
        assert (keyword in ours) == (keyword in theirs), keyword
        if keyword in theirs:
            assert ours[keyword].value == theirs[keyword].value, keyword
    bits = -(-theirs.NumberOfFrames * theirs.Rows * theirs.Columns // 8)  # highdicom pads with the character "0"
    assert ours.PixelData[:bits] == theirs.PixelData[:bits]
    groups = Dataset()
    groups.PerFrameFunctionalGroupsSequence = theirs.PerFrameFunctionalGroupsSequence
    assert segmentation(segments, evidence, make_volume(phantom), work).parts[1] == written(groups)
    # Shared groups: the same but for the number of digits of the measured slice spacing
    for side in (ours, theirs):
        measures = side.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
        measures.SpacingBetweenSlices = round(float(measures.SpacingBetweenSlices), 3)
    assert written(ours.SharedFunctionalGroupsSequence[0]) == written(theirs.SharedFunctionalGroupsSequence[0])


@pytest.mark.parametrize("orientation_shared", [True, False])
def test_a_multiframe_source_is_cited_frame_by_frame(orientation_shared):
    evidence, segments = make_multiframe(orientation_shared=orientation_shared), make_findings().segments
    seg = segmentation(segments, evidence, make_volume(), make_work())
    single = segmentation(segments, make_evidence(), make_volume(), make_work())
    assert seg.dataset.PixelData == single.dataset.PixelData
    for group, other in zip(
        seg.dataset.PerFrameFunctionalGroupsSequence, single.dataset.PerFrameFunctionalGroupsSequence, strict=True
    ):
        image = group.DerivationImageSequence[0].SourceImageSequence[0]
        assert image.ReferencedSOPInstanceUID == evidence.datasets[0].SOPInstanceUID
        frame = evidence.datasets[0].PerFrameFunctionalGroupsSequence[image.ReferencedFrameNumber - 1]
        assert frame.PlanePositionSequence == group.PlanePositionSequence == other.PlanePositionSequence
    assert len(seg.dataset.SourceImageSequence) == 1


def test_highdicom_reads_back_exactly_the_masks(tmp_path):
    findings, evidence = make_findings(), make_evidence()
    segmentation(findings.segments, evidence, make_volume(), make_work()).write(tmp_path / "seg.dcm")
    seg = highdicom.seg.segread(tmp_path / "seg.dcm")
    masks = seg.get_pixels_by_source_instance([ref.sop_instance_uid for ref in evidence.slices])
    for row, segment in enumerate(findings.segments):
        assert np.array_equal(masks[..., row].astype(bool), segment.mask)
    described = {(item.TrackingID, item.TrackingUID) for item in seg.SegmentSequence}
    assert set(seg.get_tracking_ids()) == described


def test_overlapping_masks_keep_every_voxel():
    shape = make_volume().voxels.shape
    one, two = np.zeros(shape, bool), np.zeros(shape, bool)
    one[2:7, 5:20, 5:20] = True
    two[4:9, 10:25, 10:25] = True
    segments = (Segment("Right lung", one), Segment("Left lung", two))
    counts = count_voxels(segments)
    assert overlap(segments, counts)
    seg = segmentation(segments, make_evidence(), make_volume(), make_work())
    assert seg.dataset.SegmentsOverlap == "YES"
    assert seg.dataset.pixel_array.sum() == one.sum() + two.sum()
    apart = (Segment("Right lung", one), Segment("Left lung", two & ~one))
    assert not overlap(apart, count_voxels(apart))


def nested_and_disjoint():
    outer, inner, far = (np.zeros(make_volume().voxels.shape, bool) for _ in range(3))
    outer[2:7, 5:20, 5:20] = True
    inner[3:5, 8:12, 8:12] = True
    far[9:11, 22:28, 30:40] = True
    return tuple(
        Segment(*one) for one in zip(("Right lung", "Left lung", "Marker front"), (outer, inner, far), strict=True)
    )


def test_where_segments_overlap_each_has_a_frame_on_every_used_slice(tmp_path):
    """OHIF drops the slices that only some of the overlapping segments have."""
    segments, evidence = nested_and_disjoint(), make_evidence()
    seg = segmentation(segments, evidence, make_volume(), make_work())
    check_results([seg], Case(Findings(segments), {"image": evidence}, {"image": make_volume()}, make_work()))
    seg.write(tmp_path / "seg.dcm")
    read = highdicom.seg.segread(tmp_path / "seg.dcm")
    assert read.NumberOfFrames == 3 * 7
    places = [tuple(one.FrameContentSequence[0].DimensionIndexValues) for one in read.PerFrameFunctionalGroupsSequence]
    assert places == [(number, place) for number in (1, 2, 3) for place in range(1, 8)]
    masks = read.get_pixels_by_source_instance(
        [ref.sop_instance_uid for ref in evidence.slices], assert_missing_frames_are_empty=True
    )
    for row, segment in enumerate(segments):
        assert np.array_equal(masks[..., row].astype(bool), segment.mask)


def test_segments_that_do_not_overlap_have_no_empty_frames():
    segments = nested_and_disjoint()[::2]
    seg = segmentation(segments, make_evidence(), make_volume(), make_work())
    assert seg.dataset.NumberOfFrames == 5 + 2


def test_more_labels_than_are_compared_one_by_one_are_counted_alike():
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 105, (6, 20, 21)).astype(np.uint8)
    segments = [Segment(str(number), labels, number) for number in range(1, 105)]
    masks = [Segment(str(number), labels == number) for number in range(1, 105)]
    assert np.array_equal(count_voxels(segments), count_voxels(masks))
    assert not overlap(segments, count_voxels(segments))


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 9), columns=st.integers(1, 9), slices=st.integers(1, 12), seed=st.integers(0, 2**32 - 1))
def test_packed_bits_are_the_bits_of_all_frames_in_order(rows, columns, slices, seed):
    mask = np.random.default_rng(seed).random((slices, rows, columns)) < 0.5
    segments = [Segment("a", mask), Segment("b", ~mask)]
    frames = [(row, index) for row in range(2) for index in range(slices)]
    packed = pack(segments, frames)
    bits = np.concatenate([mask.ravel(), (~mask).ravel()])
    assert len(packed) % 2 == 0
    assert np.array_equal(np.unpackbits(np.frombuffer(packed, np.uint8), bitorder="little")[: bits.size], bits)


def test_overlapping_segments_beyond_2_gib_are_refused_before_they_are_packed(monkeypatch):
    monkeypatch.setattr("pacs_ai.encode.voxels.segmentation.MAX_BYTES", 1000)
    with pytest.raises(Permanent, match="one DICOM instance can hold 2 GiB: let the pipeline return fewer labels"):
        segmentation(nested_and_disjoint(), make_evidence(), make_volume(), make_work())


def test_segments_beyond_2_gib_that_do_not_overlap_are_written_as_a_label_map(monkeypatch):
    segments, evidence = make_findings().segments, make_evidence()
    binary = segmentation(segments, evidence, make_volume(), make_work())
    monkeypatch.setattr("pacs_ai.encode.voxels.segmentation.MAX_BYTES", 1000)
    smaller = segmentation(segments, evidence, make_volume(), make_work())
    assert smaller.dataset.SegmentationType == "LABELMAP"
    assert smaller.transfer_syntax_uid == uid.RLELossless
    assert (smaller.sop_instance_uid, smaller.encoding) == (binary.sop_instance_uid, binary.encoding)
    for number, segment in enumerate(segments, 1):
        counted = np.count_nonzero(smaller.dataset.pixel_array == number)
        assert counted == np.count_nonzero(segment.mask)


@pytest.mark.parametrize(
    ("keyword", "words"),
    [
        ("ImagePositionPatient", "12 of 12 images have no Image Position"),
        ("ImageOrientationPatient", "no Image Orientation"),
        ("PixelSpacing", "no Pixel Spacing"),
    ],
)
def test_sources_without_geometry_are_refused_in_words(keyword, words):
    evidence = make_evidence()
    for ds in evidence.datasets:
        delattr(ds, keyword)
    with pytest.raises(Refused, match=words):
        Grid.of(evidence)


def test_a_lost_frame_of_reference_is_derived_from_the_series():
    evidence, segments = make_evidence(), make_findings().segments
    for ds in evidence.datasets:
        del ds.FrameOfReferenceUID
    made = [segmentation(segments, evidence, make_volume(), make_work(job_key=key)).dataset for key in ("one", "two")]
    assert made[0].FrameOfReferenceUID == made[1].FrameOfReferenceUID
    assert made[0].FrameOfReferenceUID.is_valid


def test_the_walker_reads_what_pydicom_writes():
    ds = make_multiframe().datasets[0]
    file = written(ds)
    wanted = frozenset({0x00200032})
    found = [explicit.text(value) for _, value in explicit.values(file, 0, len(file), wanted)]
    assert found == list(Grid.of(make_multiframe()).places)


@pytest.mark.parametrize("cut", [1, 9])
def test_the_walker_refuses_what_has_no_end(cut):
    file = explicit.sequence(0x00081115, explicit.element(0x00081155, b"UI", b"1.2.3"))
    with pytest.raises(NotUnderstood, match="no end"):
        list(explicit.values(file[:-cut], 0, len(file) - cut, frozenset({0x00081155})))


def test_segment_descriptions_say_what_the_card_says():
    segment = make_findings().segments[0]
    item = describe(segment.label, 1, make_work())
    label = CARD.label(segment.label)
    assert item.SegmentAlgorithmType == SegmentAlgorithmTypeValues.AUTOMATIC.value
    kind = item.SegmentedPropertyTypeCodeSequence[0]
    assert (kind.CodeValue, kind.CodingSchemeDesignator) == (label.type.value, label.type.scheme)
    assert kind.SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning == "Right"
    colour = highdicom.color.CIELabColor.from_dicom_value(tuple(item.RecommendedDisplayCIELabValue)).to_rgb()
    assert np.abs(np.subtract(colour, label.colour)).max() <= 1
    algorithm = item.SegmentationAlgorithmIdentificationSequence[0]
    assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion, algorithm.AlgorithmSource) == (
        "ct-lung",
        "1.2",
        "Example",
    )
    assert algorithm.AlgorithmFamilyCodeSequence[0].CodeValue == "123110"
    assert "torch 2.13.0" in algorithm.AlgorithmParameters


def test_three_hundred_slices_are_encoded_in_a_second_of_one_core():
    """Of a quick core: a slower one packs the bits alone as much more slowly, in a fortieth of it or more."""
    phantom = Phantom(300, 8, 8)
    evidence = make_evidence(phantom, Rows=512, Columns=512)
    z, y, x = np.ogrid[:300, :512, :512]
    lungs = np.zeros((300, 512, 512), np.uint8)
    for number, centre in ((1, 150), (2, 362)):
        lungs[((z - 150) / 113) ** 2 + ((y - 256) / 150) ** 2 + ((x - centre) / 90) ** 2 < 1] = number
    findings = Findings((Segment("Right lung", lungs, 1), Segment("Left lung", lungs, 2)))
    volume = Volume(np.broadcast_to(np.int16(0), lungs.shape), phantom.affine, "CT")
    arguments = findings, {"image": evidence}, {"image": volume}, make_work(), SEG_AND_SR
    encode(*arguments)  # highdicom reads its tables once per process
    began = time.process_time()
    seg, _ = encode(*arguments)
    encoded = time.process_time()
    for segment in findings.segments:
        np.packbits(segment.mask, bitorder="little")
    packed = time.process_time()
    assert seg.dataset.NumberOfFrames == 450
    assert encoded - began < 40 * (packed - encoded)
