"""A label map holds what highdicom's own would hold, is read back exactly, and describes its background last."""

from __future__ import annotations

from dataclasses import replace
from io import BytesIO

import highdicom
import numpy as np
import pytest
import segmentation_readers as readers
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
from highdicom.seg import Segmentation, SegmentationTypeValues
from objects import only
from pydicom import dcmread, uid

from pacs_ai.encode.results import encode
from pacs_ai.encode.voxels.labelmap import label_planes
from pacs_ai.encode.voxels.template import describe
from pacs_ai.pipeline import Findings, Label, Segment, Volume
from pacs_ai.profiles import Kind
from pacs_ai.testing import CORONAL, Phantom

OBLIQUE = Phantom(20, 24, 25, (14, 15, 16), (0.8, 0.6, 0.0, -0.36, 0.48, 0.8))
PHANTOMS = (SMALL, Phantom(10, 32, 24), Phantom(14, 20, 22, orientation=CORONAL, order="descending"), OBLIQUE)
SYNTAXES = ("JPEGLSLossless", "RLELossless", "ExplicitVRLittleEndian")
LABELMAP = only(Kind.SEGMENTATION, "labelmap")
#: What differs by intent: UIDs, times, and what the node says of itself, of the order and of the part of the body.
OURS = {
    "SOPInstanceUID", "SeriesInstanceUID", "InstanceCreationDate", "InstanceCreationTime", "ContentDate", "ContentTime",
    "SeriesDate", "SeriesTime", "DimensionOrganizationSequence", "DimensionIndexSequence", "SoftwareVersions",
    "ContributingEquipmentSequence", "SeriesDescription", "ContentQualification", "ContentCreatorName",
    "BodyPartExamined", "SegmentSequence", "PixelData",
}  # fmt: skip


def form(syntax, **options):
    return only(Kind.SEGMENTATION, "labelmap", syntax, **options)


def expected(segments):
    labels = np.zeros(segments[0].voxels.shape, int)
    for number, segment in enumerate(segments, 1):
        labels[segment.mask] = number
    return labels


def many_labels(count):
    """A card of that many labels, and a work of it."""
    card = replace(CARD, labels=tuple(Label(f"L{n}", *vars_of(CARD.labels[0])) for n in range(1, count + 1)))
    return make_work(card=card)


def vars_of(label):
    return label.category, label.type


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("phantom", PHANTOMS, ids=["small", "even", "coronal", "oblique"])
def test_every_attribute_is_as_highdicom_makes_it(phantom, syntax):
    evidence, work = make_evidence(phantom), make_work()
    segments = make_findings(phantom).segments
    ours = segmentation(segments, evidence, make_volume(phantom), work, form(syntax)).dataset
    for ds in evidence.datasets:
        ds.AccessionNumber = ds.AccessionNumber or ""
    written = BytesIO()
    Segmentation(
        source_images=list(evidence.datasets),
        pixel_array=expected(segments).astype(np.uint8),
        segmentation_type=SegmentationTypeValues.LABELMAP,
        segment_descriptions=[describe(segment.label, number, work) for number, segment in enumerate(segments, 1)],
        series_instance_uid="1.2.3",
        series_number=ours.SeriesNumber,
        sop_instance_uid="1.2.3.4",
        instance_number=ours.InstanceNumber,
        manufacturer=ours.Manufacturer,
        manufacturer_model_name=ours.ManufacturerModelName,
        software_versions="1",
        device_serial_number=ours.DeviceSerialNumber,
        content_label=ours.ContentLabel,
        content_description=ours.ContentDescription,
        transfer_syntax_uid=ours.file_meta.TransferSyntaxUID,
    ).save_as(written)
    written.seek(0)
    theirs = dcmread(written)
    for ds in (ours, theirs):  # the same but for the number of digits of the measured slice spacing
        measures = ds.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
        measures.SpacingBetweenSlices = round(float(measures.SpacingBetweenSlices), 3)
    for keyword in sorted({*ours.dir(), *theirs.dir()} - OURS):
        assert ours.get(keyword) == theirs.get(keyword), keyword
    assert ours.SegmentSequence[-1] == theirs.SegmentSequence[0]
    assert list(ours.SegmentSequence[:-1]) == list(theirs.SegmentSequence[1:])
    pointers = [[one.DimensionIndexPointer for one in ds.DimensionIndexSequence] for ds in (ours, theirs)]
    assert pointers[0] == pointers[1]
    assert np.array_equal(ours.pixel_array, theirs.pixel_array)
    assert ours.SOPClassUID == "1.2.840.10008.5.1.4.1.1.66.7"


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("phantom", PHANTOMS, ids=["small", "even", "coronal", "oblique"])
def test_every_voxel_is_read_again(tmp_path, phantom, syntax):
    evidence, volume, segments = make_evidence(phantom), make_volume(phantom), make_findings(phantom).segments
    path = tmp_path / "seg.dcm"
    segmentation(segments, evidence, volume, make_work(), form(syntax)).write(path)
    found = [readers.by_highdicom(path, evidence)]
    if syntax != "JPEGLSLossless":  # dcmqi 1.5.7 takes every JPEG-LS for lossy and refuses it
        found.append(readers.by_dcmqi(path, volume, tmp_path / "dcmqi"))
    for masks in found:
        for number, segment in enumerate(segments, 1):
            assert np.array_equal(masks[number].astype(bool), segment.mask)


def test_multi_frame_sources_are_cited_by_frame(tmp_path):
    evidence, segments = make_multiframe(), make_findings().segments
    result = segmentation(segments, evidence, make_volume(), make_work(), LABELMAP)
    result.write(tmp_path / "seg.dcm")
    masks = readers.by_highdicom(tmp_path / "seg.dcm", evidence)
    for number, segment in enumerate(segments, 1):
        assert np.array_equal(masks[number].astype(bool), segment.mask)
    single = segmentation(segments, make_evidence(), make_volume(), make_work(), LABELMAP)
    assert result.dataset.PixelData == single.dataset.PixelData


def test_irregular_slices_stay_where_they_are(tmp_path):
    evidence, segments = make_evidence(), make_findings().segments
    for number, ds in enumerate(evidence.datasets):
        ds.ImagePositionPatient[2] += number**2
    result = segmentation(segments, evidence, make_volume(), make_work(), LABELMAP)
    ds = result.dataset
    assert "DimensionOrganizationType" not in ds
    assert "SpacingBetweenSlices" not in ds.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    positions = {one.SOPInstanceUID: one.ImagePositionPatient for one in evidence.datasets}
    for group in ds.PerFrameFunctionalGroupsSequence:
        source = group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        assert group.PlanePositionSequence[0].ImagePositionPatient == positions[source]
    result.write(tmp_path / "seg.dcm")
    masks = readers.by_highdicom(tmp_path / "seg.dcm", evidence)
    assert all(np.array_equal(masks[n].astype(bool), one.mask) for n, one in enumerate(segments, 1))


def test_the_background_is_described_last():
    """Viewers that count segments by their place paint each in its neighbour's colour where it is the first."""
    ds = segmentation(make_findings().segments, make_evidence(), make_volume(), make_work(), LABELMAP).dataset
    assert [one.SegmentNumber for one in ds.SegmentSequence] == [1, 2, 0]
    assert [one.SegmentLabel for one in ds.SegmentSequence] == ["Right lung", "Left lung", "Background"]
    assert ds.PixelPaddingValue == 0
    assert set(np.unique(ds.pixel_array)) == {0, 1, 2}


def test_300_segments_take_16_bits(tmp_path):
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 302, (12, 30, 41)).astype(np.uint16)  # 301 is no segment
    segments = tuple(Segment(f"L{n}", labels, n) for n in range(1, 301))
    result = segmentation(segments, make_evidence(), make_volume(), many_labels(300), LABELMAP)
    assert result.dataset.BitsAllocated == 16
    assert np.array_equal(result.dataset.pixel_array, np.where(labels == 301, 0, labels)[::-1])
    result.write(tmp_path / "seg.dcm")
    read = highdicom.seg.segread(tmp_path / "seg.dcm").get_pixels_by_source_instance(
        [one.sop_instance_uid for one in make_evidence().slices],
        combine_segments=True,  # apart, highdicom 0.28.2 takes 257 for 1
    )
    assert np.array_equal(read, np.where(labels == 301, 0, labels))


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.uint16, np.uint32, np.uint64])
def test_arrays_of_every_kind_become_one_label_map(dtype):
    rng = np.random.default_rng(6)
    base = rng.integers(0, 4, (5, 7, 9)).astype(np.uint8)
    other = np.where(base == 3, 7 if dtype is not bool else 1, 0).astype(dtype)
    segments = (Segment("c", other, 7 if dtype is not bool else 1), Segment("a", base, 2), Segment("b", base, 1))
    planes = np.stack(list(label_planes(segments, range(5))))
    assert planes.dtype == np.uint8
    assert np.array_equal(planes, np.array([0, 3, 2, 1], np.uint8)[base])


def test_overlapping_segments_are_written_binary_in_its_place():
    shape = make_volume().shape
    one, two = np.zeros(shape, bool), np.zeros(shape, bool)
    one[2:7, 5:20, 5:20], two[4:9, 10:25, 10:25] = True, True
    segments = (Segment("Right lung", one), Segment("Left lung", two))
    result = segmentation(segments, make_evidence(), make_volume(), make_work(), LABELMAP)
    ds = result.dataset
    assert (ds.SegmentationType, ds.SegmentsOverlap) == ("BINARY", "YES")
    assert result.sop_class_uid == uid.SegmentationStorage
    assert result.transfer_syntax_uid == uid.ExplicitVRLittleEndian
    assert result.sop_instance_uid == make_work().uid(LABELMAP.key, "instance", 1)
    assert ds.pixel_array.sum() == one.sum() + two.sum()


def test_full_frames_are_those_of_all_slices():
    segments = make_findings().segments
    sparse = segmentation(segments, make_evidence(), make_volume(), make_work(), LABELMAP).dataset
    full = segmentation(
        segments, make_evidence(), make_volume(), make_work(), form("JPEGLSLossless", frames="full")
    ).dataset
    assert (sparse.NumberOfFrames, full.NumberOfFrames) == (10, 12)
    assert np.array_equal(full.pixel_array, expected(segments)[::-1])  # highdicom's volumes run downwards


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_same_findings_same_bytes(syntax):
    made = [
        segmentation(make_findings().segments, make_evidence(), make_volume(), make_work(), form(syntax)).to_bytes()
        for _ in range(2)
    ]
    assert made[0] == made[1]


def test_RES_09_a_label_map_of_a_large_series_is_small_and_fast_to_make():
    """A sixteenth of a binary one; figures of real sizes are taken by scripts/bench_encode.py."""
    phantom = Phantom(60, 8, 8)
    z, y, x = np.ogrid[:60, :512, :512]
    labels = np.zeros((60, 512, 512), np.uint8)
    for number in range(1, 21):
        away = (
            ((z - 30) / 28) ** 2
            + ((y - 100 * (number % 5) - 56) / 48) ** 2
            + ((x - 100 * (number // 5) - 56) / 48) ** 2
        )
        labels[(away < 1) & (labels == 0)] = number
    segments = tuple(Segment(f"L{n}", labels, n) for n in range(1, 21))
    volume = Volume(np.broadcast_to(np.int16(0), labels.shape), phantom.affine, "CT")
    arguments = segments, make_evidence(phantom, Rows=512, Columns=512), volume, many_labels(20)
    binary = segmentation(*arguments)
    for syntax, part in (("JPEGLSLossless", 1 / 32), ("RLELossless", 1 / 16)):
        assert segmentation(*arguments, form(syntax)).size < binary.size * part


@pytest.mark.parametrize("wanted", [LABELMAP, form("RLELossless"), form("ExplicitVRLittleEndian", frames="full")])
@pytest.mark.parametrize("overlapping", [False, True])
def test_the_gate_lets_it_pass(wanted, overlapping):
    findings = make_findings()
    if overlapping:
        first, second = findings.segments
        findings = Findings((first, Segment(second.label, first.mask | second.mask)))
    (result,) = encode(findings, {"image": make_evidence()}, {"image": make_volume()}, make_work(), (wanted,))
    assert result.dataset.SegmentationType == ("BINARY" if overlapping else "LABELMAP")
