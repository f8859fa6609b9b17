"""A segmentation of radiographs, mammograms and ultrasound lies on the images' own matrix and cites each image."""

from __future__ import annotations

import numpy as np
import pytest
import segmentation_readers as readers
from encode_material import make_evidence, make_work
from objects import only
from readback import dciodvfy_errors

from pacs_ai.dicom.evidence import Evidence, FrameReference
from pacs_ai.encode.case import Case
from pacs_ai.encode.results import encode
from pacs_ai.encode.voxels.segmentation import encode_segmentation
from pacs_ai.pipeline import Findings, Frame, Frames, Segment
from pacs_ai.profiles import Kind

BINARY = only(Kind.SEGMENTATION)
LABELMAP = only(Kind.SEGMENTATION, "labelmap")
RADIOGRAPH = "1.2.840.10008.5.1.4.1.1.1"
ULTRASOUND = "1.2.840.10008.5.1.4.1.1.3.1"
GEOMETRY = (
    "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "FrameOfReferenceUID",
    "PositionReferenceIndicator", "SpacingBetweenSlices",
)  # fmt: skip


def radiographs(count=3, **changes):
    """Images of one size without a place in the patient."""
    datasets = make_evidence().datasets[:count]
    for ds in datasets:
        ds.SOPClassUID, ds.Modality = RADIOGRAPH, "CR"
        for keyword in GEOMETRY:
            if keyword in ds:
                delattr(ds, keyword)
        for keyword, value in changes.items():
            setattr(ds, keyword, value)
    return Evidence(datasets, tuple(FrameReference(ds.SOPClassUID, ds.SOPInstanceUID) for ds in datasets))


def clip(count=3):
    """One ultrasound image of several frames."""
    ds = radiographs(1).datasets[0]
    ds.SOPClassUID, ds.Modality, ds.NumberOfFrames = ULTRASOUND, "US", count
    return Evidence((ds,), tuple(FrameReference(ULTRASOUND, ds.SOPInstanceUID, n) for n in range(1, count + 1)))


def labels(count=3, rows=30, columns=41):
    """A label map in which the second image has no 2."""
    drawn = np.random.default_rng(1).integers(0, 3, (count, rows, columns)).astype(np.uint8)
    drawn[1][drawn[1] == 2] = 0
    return drawn


def case(evidence, segments, sizes=((30, 41),) * 3):
    images = tuple(Frame(np.zeros(size, np.int16), (0.2, 0.2)) for size in sizes)
    given = Frames(images, str(evidence.datasets[0].Modality))
    return Case(Findings(segments), {"image": evidence}, {"image": given}, make_work())


def both(drawn):
    return (Segment("Right lung", drawn, 1), Segment("Left lung", drawn, 2))


@pytest.mark.parametrize("encoding", [BINARY, LABELMAP], ids=["binary", "labelmap"])
@pytest.mark.parametrize("alone", [False, True], ids=["two segments", "one segment"])
@pytest.mark.parametrize("evidence", [radiographs(), clip()], ids=["radiographs", "ultrasound"])
def test_every_pixel_is_read_again_on_its_image(tmp_path, evidence, alone, encoding):
    segments = both(labels())[: 1 if alone else 2]
    (result,) = encode_segmentation(case(evidence, segments), encoding, None)
    result.write(tmp_path / "seg.dcm")
    masks = readers.by_highdicom(tmp_path / "seg.dcm", evidence)
    for number, segment in enumerate(segments, 1):
        assert np.array_equal(masks[number].astype(bool), segment.mask)
    (again,) = encode_segmentation(case(evidence, segments), encoding, None)
    assert again.to_bytes() == result.to_bytes()
    if encoding is BINARY:  # dciodvfy does not know the label map
        assert dciodvfy_errors(tmp_path / "seg.dcm") == []


def test_frames_have_no_place_in_the_patient_but_an_image():
    evidence = radiographs(PatientOrientation=["L", "F"])
    (result,) = encode_segmentation(case(evidence, both(labels())), BINARY, None)
    ds = result.dataset
    assert ds.PatientOrientation == ["L", "F"]
    assert "FrameOfReferenceUID" not in ds
    assert not {"PlaneOrientationSequence", "PixelMeasuresSequence"} & set(ds.SharedFunctionalGroupsSequence[0].dir())
    frames = []
    for group in ds.PerFrameFunctionalGroupsSequence:
        assert "PlanePositionSequence" not in group
        (source,) = group.DerivationImageSequence[0].SourceImageSequence
        assert source.SpatialLocationsPreserved == "YES"
        content = group.FrameContentSequence[0]
        image = [one.sop_instance_uid for one in evidence.slices].index(source.ReferencedSOPInstanceUID)
        assert content.InStackPositionNumber == image + 1
        frames.append(tuple(content.DimensionIndexValues))
    assert frames == [(1, 1), (1, 2), (1, 3), (2, 1), (2, 3)]


def test_images_that_are_turned_otherwise_state_no_common_orientation():
    evidence = radiographs(PatientOrientation=["L", "F"])
    evidence.datasets[1].PatientOrientation = ["P", "F"]
    (result,) = encode_segmentation(case(evidence, both(labels())), BINARY, None)
    assert not result.dataset.PatientOrientation


def test_full_frames_show_images_without_a_segment_too():
    drawn = labels()
    drawn[1] = 0
    (sparse,) = encode_segmentation(case(radiographs(), both(drawn)), BINARY, None)
    (full,) = encode_segmentation(
        case(radiographs(), both(drawn)), only(Kind.SEGMENTATION, "binary", frames="full"), None
    )
    assert (sparse.dataset.NumberOfFrames, full.dataset.NumberOfFrames) == (4, 6)


def test_images_of_different_sizes_have_no_segmentation():
    different = case(radiographs(), both(labels()), ((30, 41), (30, 41), (20, 20)))
    assert encode_segmentation(different, BINARY, None) == ()


def test_nothing_found_is_no_segmentation():
    assert encode_segmentation(case(radiographs(), ()), BINARY, None) == ()


@pytest.mark.parametrize("encoding", [BINARY, LABELMAP], ids=["binary", "labelmap"])
@pytest.mark.parametrize("evidence", [radiographs(), clip()], ids=["radiographs", "ultrasound"])
def test_the_gate_lets_it_pass(evidence, encoding):
    made = case(evidence, both(labels()))
    assert encode(made.findings, made.evidence, made.inputs, made.work, (encoding,))
