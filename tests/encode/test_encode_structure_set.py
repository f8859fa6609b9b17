"""Contours of an RT structure set: filled by an independent rule they are the voxels that were found."""

from __future__ import annotations

import shutil
import subprocess

import numpy as np
import pytest
from encode_material import CARD, SMALL, make_evidence, make_findings, make_multiframe, make_volume, make_work
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from objects import only

from pacs_ai.encode.case import Case
from pacs_ai.encode.check import check_results
from pacs_ai.encode.graphics.contours import polygons, rings
from pacs_ai.encode.graphics.structure_set import encode_structure_set
from pacs_ai.infer.volume import load_volume
from pacs_ai.pipeline import Findings, Frame, Frames, Segment
from pacs_ai.profiles import Kind
from pacs_ai.testing import SAGITTAL, Fault, Phantom

CONTOURS = only(Kind.STRUCTURE_SET)
ODD = {
    "axial": SMALL,
    "sagittal, shuffled": Phantom(9, 20, 31, orientation=SAGITTAL, order="shuffled"),
    "oblique": Phantom(8, 25, 21, orientation=(0.8, 0.6, 0.0, -0.36, 0.48, 0.8), spacing=(30.0, 12.0, 11.0)),
    "tilted gantry": Phantom(10, 24, 26, faults=(Fault.GANTRY_TILT,)),
}


def filled(lines, shape):
    """(even-odd of all lines together, union of each line filled alone, windings), at the pixel centres."""
    row, column = np.indices(shape) + 0.5
    together, united, windings = np.zeros(shape, bool), np.zeros(shape, bool), np.zeros(shape, int)
    for line in lines:
        alone = np.zeros(shape, bool)
        for (x0, y0), (x1, y1) in zip(line, np.roll(line, -1, axis=0), strict=True):
            if y0 != y1:
                crosses = (row >= min(y0, y1)) & (row < max(y0, y1))
                right = crosses & (x0 + (row - y0) * (x1 - x0) / (y1 - y0) > column)
                alone ^= right
                windings += right * (1 if y1 > y0 else -1)
        together ^= alone
        united |= alone
    return together, united, windings


MASKS = arrays.arrays(np.bool_, st.tuples(st.integers(1, 9), st.integers(1, 9)))


@given(MASKS, st.sampled_from([8, 12, 1000]))
def test_polygons_hold_exactly_the_mask_whatever_rule_fills_them(mask, most_points):
    found = polygons(mask, most_points)
    together, united, windings = filled(found, mask.shape)
    assert np.array_equal(together, mask)
    assert np.array_equal(united, mask)
    assert np.array_equal(windings != 0, mask)
    assert all(len(polygon) <= most_points for polygon in found)


@given(MASKS)
def test_rings_hold_exactly_the_mask(mask):
    parts = rings(mask)
    together, _, windings = filled([ring for part in parts for ring in part], mask.shape)
    assert np.array_equal(together, mask)
    assert np.array_equal(windings != 0, mask)
    assert all(np.array_equal(ring * 2, np.round(ring * 2)) for part in parts for ring in part)


def test_an_island_in_a_hole_in_an_island():
    mask = np.zeros((9, 9), bool)
    mask[0:9, 0:9] = True
    mask[2:7, 2:7] = False
    mask[4, 4] = True
    assert [len(part) for part in rings(mask)] in ([2, 1], [1, 2])
    assert len(polygons(mask, 1000)) == 2


def test_straight_lines_have_no_points_between_their_ends():
    (polygon,) = polygons(np.ones((40, 50), bool), 100)
    assert len(polygon) == 8  # the corners are cut


def make_case(evidence, volume, findings=None):
    findings = make_findings() if findings is None else findings
    return Case.of(findings, {"image": evidence}, {"image": volume}, make_work())


def the_one(case):
    (made,) = encode_structure_set(case, CONTOURS, None)
    return made


def masks_of(ds, evidence, shape):
    """ROI Name -> mask (slices, rows, columns): contours put back into the plane of the image that they cite."""
    place = {(one.sop_instance_uid, one.frame_number): n for n, one in enumerate(evidence.slices)}
    names = {int(region.ROINumber): region.ROIName for region in ds.StructureSetROISequence}
    masks = {name: np.zeros(shape, bool) for name in names.values()}
    for region in ds.ROIContourSequence:
        for contour in region.ContourSequence:
            (image,) = contour.ContourImageSequence
            frame = image.get("ReferencedFrameNumber")
            index = place[image.ReferencedSOPInstanceUID, None if frame is None else int(frame)]
            points = in_image(contour, evidence, index)
            masks[names[int(region.ReferencedROINumber)]][index] |= filled([points], shape[1:])[0]
    return masks


def in_image(contour, evidence, index):
    """(points, 2) of (column, row), by the source's own attributes."""
    reference = evidence.slices[index]
    source = next(ds for ds in evidence.datasets if ds.SOPInstanceUID == reference.sop_instance_uid)
    shared, own = source, source
    if reference.frame_number is not None:
        own = source.PerFrameFunctionalGroupsSequence[reference.frame_number - 1].PlanePositionSequence[0]
        groups = source.SharedFunctionalGroupsSequence[0]
        shared = groups.PlaneOrientationSequence[0]
        shared.PixelSpacing = groups.PixelMeasuresSequence[0].PixelSpacing
    points = np.array([float(value) for value in contour.ContourData]).reshape(-1, 3)
    assert len(points) == contour.NumberOfContourPoints
    cosines = np.array([float(value) for value in shared.ImageOrientationPatient]).reshape(2, 3)
    offset = points - [float(value) for value in own.ImagePositionPatient]
    assert np.abs(offset @ np.cross(*cosines)).max() < 1e-3  # in the plane
    down, across = (float(value) for value in shared.PixelSpacing)
    return np.stack([offset @ cosines[0] / across, offset @ cosines[1] / down], axis=1) + 0.5


@pytest.mark.parametrize("name", ODD)
def test_filled_contours_are_the_voxels(name):
    phantom = ODD[name]
    evidence, findings = make_evidence(phantom), make_findings(phantom)
    case = make_case(evidence, make_volume(phantom), findings)
    made = the_one(case)
    check_results((made,), case)
    masks = masks_of(made.dataset, evidence, case.volume.shape)
    expected = {segment.label: segment.mask for segment, _ in case.filled}
    assert set(masks) == set(expected)
    for label, mask in expected.items():
        assert np.array_equal(masks[label], mask)


def test_frames_of_a_multi_frame_source_are_cited_by_number():
    evidence = make_multiframe()
    case = make_case(evidence, make_volume())
    ds = the_one(case).dataset
    masks = masks_of(ds, evidence, case.volume.shape)
    for segment, _ in case.filled:
        assert np.array_equal(masks[segment.label], segment.mask)
    (series,) = ds.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence[0].RTReferencedSeriesSequence
    assert len(series.ContourImageSequence) == 1


def test_an_irregular_stack_keeps_each_slice_in_its_place():
    evidence = make_evidence()
    for n, ds in enumerate(evidence.datasets):
        x, y, z = ds.ImagePositionPatient
        ds.ImagePositionPatient = [x, y, z + 0.37 * n * n]
    case = make_case(evidence, make_volume())
    masks = masks_of(the_one(case).dataset, evidence, case.volume.shape)
    assert all(np.array_equal(masks[segment.label], segment.mask) for segment, _ in case.filled)


def test_holes_and_long_outlines_come_back():
    rng = np.random.default_rng(7)
    voxels = np.zeros((12, 30, 41), bool)
    voxels[3] = rng.random((30, 41)) < 0.6
    voxels[5, 5:20, 5:30] = True
    voxels[5, 8:12, 8:12] = voxels[5, 9:11, 20] = False
    case = make_case(make_evidence(), make_volume(), Findings((Segment("Left lung", voxels),)))
    (mask,) = masks_of(the_one(case).dataset, case.own, voxels.shape).values()
    assert np.array_equal(mask, voxels)


def test_what_a_region_says():
    case = make_case(make_evidence(), make_volume())
    ds = the_one(case).dataset
    assert ds.ApprovalStatus == "UNAPPROVED"
    assert ds.StructureSetLabel == "AI Lungs"
    assert "not for clinical use" in ds.StructureSetDescription
    first, second = ds.StructureSetROISequence
    assert (first.ROINumber, second.ROINumber) == (1, 2)
    assert first.ROIName == "Right lung"
    assert first.ROIGenerationAlgorithm == "AUTOMATIC"
    assert first.ROIDerivationAlgorithmIdentificationSequence[0].AlgorithmName == "ct-lung"
    assert float(first.ROIVolume) == pytest.approx(case.counts[0].sum() * case.volume.voxel_ml)
    assert first.ReferencedFrameOfReferenceUID == case.source.FrameOfReferenceUID
    assert list(ds.ROIContourSequence[0].ROIDisplayColor) == list(CARD.labels[0].colour)
    observation = ds.RTROIObservationsSequence[0]
    assert observation.RTROIInterpretedType == "ORGAN"
    (code,) = observation.RTROIIdentificationCodeSequence
    assert (code.CodeValue, code.CodingSchemeDesignator) == ("39607008", "SCT")
    assert code.SegmentedPropertyTypeModifierCodeSequence[0].CodeValue == "24028007"
    (series,) = ds.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence[0].RTReferencedSeriesSequence
    images = [image.ReferencedSOPInstanceUID for image in series.ContourImageSequence]
    assert images == [source.SOPInstanceUID for source in case.own.datasets]


def test_what_is_no_organ_has_no_interpreted_type():
    voxels = np.zeros((12, 30, 41), bool)
    voxels[4, 10:14, 10:14] = True
    case = make_case(make_evidence(), make_volume(), Findings((Segment("Marker front", voxels),)))
    assert the_one(case).dataset.RTROIObservationsSequence[0].RTROIInterpretedType == ""


def test_decimal_strings_fit_and_the_contour_data_has_a_length():
    voxels = np.zeros((1, 700, 40), bool)
    voxels[0, ::2] = True
    voxels[0, :, 0] = True  # a comb: one part with a very long outline
    phantom = Phantom(slices=1, rows=700, columns=40)
    case = make_case(make_evidence(phantom), make_volume(phantom), Findings((Segment("Left lung", voxels),)))
    region = the_one(case).dataset.ROIContourSequence[0]
    assert len(region.ContourSequence) > 1
    for contour in region.ContourSequence:
        text = [str(value) for value in contour.ContourData]
        assert max(map(len, text)) <= 16
        assert len("\\".join(text)) < 2**16
    (mask,) = masks_of(the_one(case).dataset, case.own, voxels.shape).values()
    assert np.array_equal(mask, voxels)


def test_same_findings_same_bytes():
    first, second = (the_one(make_case(make_evidence(), make_volume())) for _ in range(2))
    assert first.to_bytes() == second.to_bytes()


def test_nothing_where_there_is_no_voxel_or_no_volume():
    empty = Findings((Segment("Left lung", np.zeros((12, 30, 41), bool)),))
    assert encode_structure_set(make_case(make_evidence(), make_volume(), empty), CONTOURS, None) == ()
    frames = Frames((Frame(np.zeros((30, 41), np.uint16), None),), "DX")
    mask = np.ones((1, 30, 41), bool)
    case = make_case(make_evidence(Phantom(1, 30, 41)), frames, Findings((Segment("Left lung", mask),)))
    assert encode_structure_set(case, CONTOURS, None) == ()


def test_dciodvfy_finds_no_error(tmp_path):
    if shutil.which("dciodvfy") is None:
        pytest.skip("VALIDATOR MISSING: dciodvfy is not installed, so no structure set was held against it")
    the_one(make_case(make_evidence(), make_volume())).write(tmp_path / "rt.dcm")
    told = subprocess.run(["dciodvfy", "-new", tmp_path / "rt.dcm"], capture_output=True, text=True, check=False).stderr
    assert "Error" not in told
    assert "RTStructureSet" in told


def test_a_real_series(shared_data):
    loaded = load_volume(sorted(path for path in (shared_data / "ct_chest_tcga_thick").iterdir() if path.is_file()))
    voxels = loaded.volume.voxels > 150  # bones
    box = np.zeros(voxels.shape, bool)
    box[-3:, 200:300, 200:300] = True
    voxels &= box
    case = make_case(loaded.evidence, loaded.volume, Findings((Segment("Marker front", voxels),)))
    ds = the_one(case).dataset
    index = int(voxels.sum(axis=(1, 2)).argmax())
    uid = loaded.evidence.slices[index].sop_instance_uid
    contours = [
        contour
        for contour in ds.ROIContourSequence[0].ContourSequence
        if contour.ContourImageSequence[0].ReferencedSOPInstanceUID == uid
    ]
    lines = [in_image(contour, loaded.evidence, index) - 200 for contour in contours]
    assert np.array_equal(filled(lines, (100, 100))[0], voxels[index, 200:300, 200:300])
    assert voxels[index].any()
