"""Pictures say that they are AI, show the findings where they are, and name no patient."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from encode_material import CARD, make_evidence, make_work
from objects import only
from picture_material import PHANTOM, detection, labels, make_case, near, radiographs, validator_errors
from report_material import mammogram_case

from pacs_ai.dicom.evidence import Evidence, FrameReference
from pacs_ai.encode.body_part import copy_body_part, frame_anatomy
from pacs_ai.encode.case import Case
from pacs_ai.encode.pictures import picture
from pacs_ai.encode.pictures.legend import legend, number
from pacs_ai.encode.pictures.montage import page
from pacs_ai.encode.pictures.overlay import encode_overlay
from pacs_ai.encode.pictures.secondary_capture import encode_secondary_capture
from pacs_ai.encode.pictures.summary import encode_summary, make_pdf
from pacs_ai.pipeline import Clearance, Findings, Frame, Frames, Region, Segment, Shape, Volume
from pacs_ai.profiles import FORMS, Kind
from pacs_ai.testing import CORONAL, Phantom

PAGE = only(Kind.SECONDARY_CAPTURE)
MULTI = only(Kind.OVERLAY, "multi-frame")
SINGLE = only(Kind.OVERLAY, "single-frame")
PDF = only(Kind.SUMMARY)
MAKERS = {
    "page": (encode_secondary_capture, PAGE),
    "multi-frame": (encode_overlay, MULTI),
    "single-frame": (encode_overlay, SINGLE),
    "summary": (encode_summary, PDF),
}


def empty(case):
    return replace(case, findings=Findings())


@pytest.mark.parametrize("made", MAKERS)
@pytest.mark.parametrize("given", ["volume", "multi-frame source", "radiographs"])
def test_every_picture_is_valid_and_the_same_twice(made, given, tmp_path):
    encode, encoding = MAKERS[made]
    case = radiographs() if given == "radiographs" else make_case(multiframe=given == "multi-frame source")
    first, second = encode(case, encoding, None), encode(case, encoding, None)
    assert first
    assert [one.sha256 for one in first] == [one.sha256 for one in second]
    assert len({one.sop_instance_uid for one in first}) == len(first)
    ds = first[0].dataset
    assert ds.BurnedInAnnotation == "NO"
    assert ds.ContentQualification == "RESEARCH"
    assert ds.PatientID == case.source.PatientID
    assert not validator_errors(first[0], tmp_path)


@pytest.mark.parametrize("kind", [Kind.SECONDARY_CAPTURE, Kind.OVERLAY])
def test_all_syntaxes_hold_the_same_pixels(kind):
    encode = encode_secondary_capture if kind is Kind.SECONDARY_CAPTURE else encode_overlay
    (form, *_) = FORMS[kind]
    case = make_case()
    arrays = [encode(case, only(kind, form.name, syntax), None)[0].dataset.pixel_array for syntax in form.syntaxes]
    assert all(np.array_equal(arrays[0], other) for other in arrays[1:])


def test_the_warning_depends_on_the_clearance():
    assert picture.warning(CARD) == "AI, not verified, not for clinical use"
    assert picture.warning(replace(CARD, clearance=Clearance.PRODUCT)) == "AI, not verified"
    product = make_work(card=replace(CARD, clearance=Clearance.PRODUCT))
    (made,) = encode_secondary_capture(replace(make_case(), work=product), PAGE, None)
    assert "not for clinical use" not in made.dataset.ImageComments
    assert "AI, not verified" in made.dataset.ImageComments


def test_the_page_cites_every_source_and_shows_the_warning():
    case = make_case()
    (made,) = encode_secondary_capture(case, PAGE, None)
    ds = made.dataset
    cited = {item.ReferencedSOPInstanceUID for item in ds.SourceImageSequence}
    assert cited == {one.sop_instance_uid for one in case.own.slices}
    assert ds.Columns == 1602
    assert near(ds.pixel_array[:90], picture.AMBER).sum() > 300


def test_nothing_found_is_said():
    case = empty(make_case())
    assert [line.name for line in legend(case.findings, CARD, case.given, case.counts)] == ["Nothing found"]
    assert encode_secondary_capture(case, PAGE, None)
    assert encode_summary(case, PDF, None)
    assert encode_overlay(case, MULTI, None) == ()
    (middle,) = encode_overlay(case, SINGLE, None)
    order = list(np.argsort([float(ds.ImagePositionPatient[2]) for ds in case.own.datasets]))
    cited = middle.dataset.SourceImageSequence[0].ReferencedSOPInstanceUID
    assert cited in {case.own.slices[order[place]].sop_instance_uid for place in (5, 6)}


def test_the_overlay_lies_where_its_source_lies():
    case = make_case()
    (made,) = encode_overlay(case, MULTI, None)
    ds = made.dataset
    places = {str(one.SOPInstanceUID): [float(v) for v in one.ImagePositionPatient] for one in case.own.datasets}
    factor = ds.Columns // PHANTOM.columns
    assert factor == 3  # words are not legible on 128 columns
    spacing = np.array([float(value) for value in case.source.PixelSpacing])
    drawn = ds.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing
    assert np.allclose([float(value) for value in drawn], spacing / 3)
    assert ds.NumberOfFrames == len(case.own.slices) == len(ds.PageNumberVector)
    for frame in ds.PerFrameFunctionalGroupsSequence:
        source = frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        there = np.array([float(v) for v in frame.PlanePositionSequence[0].ImagePositionPatient])
        assert np.linalg.norm(there - places[source]) == pytest.approx(np.linalg.norm(spacing) / 3, abs=1e-4)


def test_large_images_keep_their_matrix_and_place():
    case = make_case(replace(PHANTOM, rows=256, columns=256))
    (first, *_) = encode_overlay(case, SINGLE, None)
    ds = first.dataset
    source = next(
        one for one in case.own.datasets
        if one.SOPInstanceUID == ds.SourceImageSequence[0].ReferencedSOPInstanceUID
    )  # fmt: skip
    assert (ds.Rows, ds.Columns) == (256, 256)
    assert ds.ImagePositionPatient == source.ImagePositionPatient
    assert ds.FrameOfReferenceUID == source.FrameOfReferenceUID


def test_single_frames_ascend_along_the_scan():
    case = make_case()
    made = [one.dataset for one in encode_overlay(case, SINGLE, None)]
    assert [ds.InstanceNumber for ds in made] == list(range(1, len(made) + 1))
    heights = [float(ds.ImagePositionPatient[2]) for ds in made]
    assert heights == sorted(heights) or heights == sorted(heights, reverse=True)
    used = {int(index) for row in case.counts for index in np.flatnonzero(row)} | {3, 7}
    assert len(made) == len(used)


def test_multi_frame_sources_are_cited_frame_by_frame():
    case = make_case(multiframe=True)
    (made,) = encode_overlay(case, MULTI, None)
    frames = made.dataset.PerFrameFunctionalGroupsSequence
    numbers = [one.DerivationImageSequence[0].SourceImageSequence[0].ReferencedFrameNumber for one in frames]
    assert sorted(numbers) == list(range(1, len(case.own.slices) + 1))


def test_segments_and_detections_are_drawn_where_they_are():
    case = make_case(replace(PHANTOM, rows=256, columns=256))
    (made,) = encode_overlay(case, only(Kind.OVERLAY, "multi-frame", "ExplicitVRLittleEndian"), None)
    ds = made.dataset
    frames = ds.pixel_array
    by_source = {
        item.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID: n
        for n, item in enumerate(ds.PerFrameFunctionalGroupsSequence)
    }
    index = int(case.counts[0].argmax())
    mask = case.findings.segments[0].mask[index]
    shown = frames[by_source[case.own.slices[index].sop_instance_uid]].astype(int)
    bluish = shown[..., 2] - shown[..., 0] > 30
    assert bluish[mask].mean() > 0.9
    assert bluish[~mask].mean() < 0.05
    shown = frames[by_source[case.own.slices[3].sop_instance_uid]]
    found = np.argwhere(near(shown, (255, 128, 0), 30)[20:80, 30:100])
    assert found.size  # the ellipse around column 60, row 40
    assert abs(found[:, 1].mean() + 30 - 60) < 12


def test_images_of_different_sizes_become_an_object_each():
    made = encode_overlay(radiographs(((300, 240), (200, 260))), MULTI, None)
    assert sorted((one.dataset.Rows, one.dataset.Columns) for one in made) == [(200, 260), (600, 480)]


def test_detections_in_coronal_slices_are_shown_in_them():
    phantom = Phantom(40, 64, 96, orientation=CORONAL)
    findings = Findings(detections=(detection(9),))
    sheet = np.asarray(page(phantom.volume(), findings, CARD, slices=1))
    assert near(sheet[90:-100], (255, 128, 0), 30).sum() > 100


def test_points_lines_and_names_near_the_edge_are_drawn():
    case = radiographs()
    point = np.array([(238.0, 2.0)], np.float32)
    line = np.array([(10, 290), (60, 299)], np.float32)
    found = tuple(
        replace(detection(1), region=region, diameters=None)
        for region in (Region(Shape.POINT, point, 1), Region(Shape.POLYLINE, line, 1), Region(Shape.POINT, point, 1))
    )
    case = replace(case, findings=Findings(detections=found))
    (made,) = encode_overlay(case, SINGLE, None)
    assert near(made.dataset.pixel_array, (255, 128, 0), 30).sum() > 200


def test_probabilities_diameters_and_answers_stand_in_the_legend():
    case = make_case()
    lines = {line.name: dict(line.values) for line in legend(case.findings, CARD, case.given, case.counts)}
    assert lines["Marker front 1"]["Probability"] == "87 %"
    assert lines["Marker front 1"]["Pneumothorax"] == "Present (50 %)"
    column, row = case.volume.spacing[2], case.volume.spacing[1]
    assert lines["Marker front 2"]["Diameters"].startswith(f"{18 * column:.4g}"[:3])
    assert lines["Marker front 2"]["Diameters"].endswith("mm")
    assert row > 0
    assert "Volume" in lines["Right lung"]


def test_what_the_labels_line_says_is_not_said_again_of_its_one_detection():
    case = make_case()
    bare = replace(detection(1), probability=None, diameters=None, measurements=(), classifications=())
    values = (replace(case.findings.measurements[0], label=bare.label),)
    once = legend(Findings(measurements=values, detections=(bare,)), CARD, case.given, case.counts[:0])
    twice = legend(Findings(measurements=values, detections=(bare, bare)), CARD, case.given, case.counts[:0])
    assert [line.name for line in once] == ["Marker front"]
    assert [line.name for line in twice] == ["Marker front", "Marker front 1", "Marker front 2"]


def test_a_volume_is_stated_where_the_pipeline_gave_none():
    case = make_case()
    bare = replace(case.findings, measurements=())
    (line, *_) = legend(bare, CARD, case.given, case.counts)
    ml = case.counts[0].sum() * case.volume.voxel_ml
    assert line.values == (("Volume", f"{ml:.0f} mL"),)


def test_names_that_the_font_lacks_are_explained():
    card = replace(CARD, labels=(replace(CARD.labels[0], name="\u53f3\u80ba"),))
    assert picture.label_name(card, "\u53f3\u80ba") == "?? (Lung)"
    assert picture.readable("Li\u00e8vre \u2265 5 mm\u00b3\n x") == "Li\u00e8vre \u2265 5 mm\u00b3 x"
    assert picture.readable("\u0161\u1ea5") == "\u0161a"


@pytest.mark.parametrize(
    ("part", "side", "expected"),
    [
        ("CHEST", None, (False, ("U", "816094009"))),
        ("LUNG", None, (True, ("U", "816094009"))),
        ("KNEE", "R", (True, ("R", "72696002"))),
        ("KNEE", None, (True, None)),
        (None, None, (True, None)),
    ],
)
def test_laterality_is_there_where_it_must_be(part, side, expected):
    source = make_case().source
    del source.BodyPartExamined
    for keyword, value in (("BodyPartExamined", part), ("Laterality", side)):
        if value is not None:
            setattr(source, keyword, value)
    result = type(source)()
    copy_body_part(result, source)
    item = frame_anatomy(source)
    coded = None if item is None else (item.FrameLaterality, item.AnatomicRegionSequence[0].CodeValue)
    assert ("Laterality" in result, coded) == expected


def test_windows_come_from_the_source_but_lungs_keep_theirs():
    case = make_case()
    plain = replace(CARD, labels=CARD.labels[2:])
    ds = case.source
    ds.WindowCenter, ds.WindowWidth = ["300", "40"], ["1500", "400"]
    stated = picture.stated_window(ds, None)
    assert stated == (300, 1500)
    assert picture.window_of(case.given, plain, 0, stated) == (-450, 1050)
    assert picture.window_of(case.given, CARD, 0, stated) == (-1350, 150)
    assert picture.window_of(case.given, plain, 0) == (-160, 240)
    del ds.WindowWidth
    assert picture.stated_window(ds, None) is None


def test_a_hundred_labels_run_on_to_further_pages():
    card = labels(104)
    voxels = np.zeros((3, 40, 40), np.uint8)
    voxels[1].reshape(-1)[:105] = np.arange(105)
    findings = Findings(tuple(Segment(label.name, voxels, n) for n, label in enumerate(card.labels, 1)))
    given = Volume(voxels.astype(np.int16), np.eye(4), "MR")
    case = make_case()
    case = Case(findings, case.evidence, {"image": given}, make_work(card=card))
    pdf = make_pdf(case)
    assert pdf.count(b"/Type /Page\n") + pdf.count(b"/Type /Page ") >= 2
    assert page(given, findings, card).height < 3000


def test_the_summary_names_nobody_and_holds_a_pdf():
    case = make_case()
    case.source.PatientName = "Lovelace^Augusta"
    (made,) = encode_summary(case, PDF, None)
    ds = made.dataset
    assert ds.MIMETypeOfEncapsulatedDocument == "application/pdf"
    assert ds.EncapsulatedDocument[: ds.EncapsulatedDocumentLength].startswith(b"%PDF-")
    assert ds.EncapsulatedDocument[: ds.EncapsulatedDocumentLength].rstrip().endswith(b"%%EOF")
    assert b"Lovelace" not in ds.EncapsulatedDocument
    assert ds.VerificationFlag == "UNVERIFIED"


def test_images_that_state_other_directions_or_spacing_share_no_object():
    """One object states them once for all its frames."""
    case = mammogram_case()
    sides = [("P\\L", None), ("A\\R", None), ("P\\L", (0.1, 0.1)), ("P\\L", None)]
    images = tuple(
        Frame(np.zeros((300, 300), np.uint16), spacing, {"PatientOrientation": directions})
        for directions, spacing in sides
    )
    datasets = make_evidence().datasets[:4]
    own = Evidence(datasets, tuple(FrameReference(ds.SOPClassUID, ds.SOPInstanceUID) for ds in datasets))
    findings = replace(case.findings, detections=case.findings.detections[:1])
    given = Case.of(findings, {"image": own}, {"image": Frames(images, "MG")}, case.work)
    made = [one.dataset for one in encode_overlay(given, only(Kind.OVERLAY, "multi-frame"), None)]
    assert [(ds.NumberOfFrames, list(ds.PatientOrientation), "PixelSpacing" in ds) for ds in made] == [
        (2, ["P", "L"], False),
        (1, ["A", "R"], False),
        (1, ["P", "L"], True),
    ]


@pytest.mark.parametrize(("value", "written"), [(0.00085, "0.00085"), (-0.003, "-0.003"), (0, "0"), (7.5, "7.50")])
def test_small_values_keep_their_digits(value, written):
    assert number(value) == written
