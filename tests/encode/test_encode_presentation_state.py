"""Presentation states draw each outline on the image it belongs to, in the image's own greys."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from encode_material import CARD, SMALL, make_evidence, make_findings, make_multiframe, make_volume, make_work
from highdicom.color import CIELabColor
from objects import only
from test_encode_structure_set import filled

from pacs_ai.dicom.evidence import Evidence, FrameReference
from pacs_ai.encode.case import Case
from pacs_ai.encode.check import check_results
from pacs_ai.encode.graphics.presentation_state import encode_presentation_state
from pacs_ai.pipeline import Detection, Diameters, Findings, Frame, Frames, Region, Segment, Shape
from pacs_ai.profiles import Kind
from pacs_ai.testing import Phantom

STATE = only(Kind.PRESENTATION_STATE)
ELLIPSE = np.array([[5, 10], [15, 10], [10, 7], [10, 13]], np.float32)
LINES = np.array([[5, 10], [15, 10]], np.float32), np.array([[10, 7], [10, 13]], np.float32)


def make_case(evidence, given, findings):
    return Case.of(findings, {"image": evidence}, {"image": given}, make_work())


def made_of(case):
    made = encode_presentation_state(case, STATE, None)
    check_results(made, case)
    return made


def the_one(case):
    (made,) = made_of(case)
    return made.dataset


def frames_case(findings, sizes=((30, 41), (60, 50), (30, 41)), **changes):
    """Radiographs of different size."""
    datasets = make_evidence(Phantom(len(sizes), 30, 41)).datasets
    for ds, (rows, columns) in zip(datasets, sizes, strict=True):
        ds.Rows, ds.Columns, ds.Modality = rows, columns, "CR"
        for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "FrameOfReferenceUID"):
            delattr(ds, keyword)
        for keyword, value in changes.items():
            setattr(ds, keyword, value)
    slices = tuple(FrameReference(ds.SOPClassUID, ds.SOPInstanceUID) for ds in datasets)
    images = tuple(Frame(np.zeros(size, np.uint16), None) for size in sizes)
    return make_case(Evidence(datasets, slices), Frames(images, "CR"), findings)


def on(*indices, label="Marker front"):
    return tuple(Detection(label, Region(Shape.ELLIPSE, ELLIPSE, index), probability=0.87) for index in indices)


def graphics_of(ds):
    """(SOP Instance UID, frame or None, layer) -> graphic objects."""
    found = {}
    for annotation in ds.GraphicAnnotationSequence:
        (image,) = annotation.ReferencedImageSequence
        frame = image.get("ReferencedFrameNumber")
        key = (image.ReferencedSOPInstanceUID, None if frame is None else int(frame), annotation.GraphicLayer)
        found.setdefault(key, []).extend(annotation.get("GraphicObjectSequence", ()))
    return found


def layers_of(ds):
    return {layer.GraphicLayerDescription.removeprefix("AI: "): layer.GraphicLayer for layer in ds.GraphicLayerSequence}


@pytest.mark.parametrize("make", [make_evidence, make_multiframe])
def test_filled_outlines_are_the_voxels(make):
    evidence = make()
    case = make_case(evidence, make_volume(), make_findings())
    ds = the_one(case)
    found, layers = graphics_of(ds), layers_of(ds)
    for segment, row in case.filled:
        for index in np.flatnonzero(row):
            reference = evidence.slices[index]
            objects = found[reference.sop_instance_uid, reference.frame_number, layers[segment.label]]
            lines = [np.reshape(one.GraphicData, (-1, 2)) for one in objects]
            assert all(np.array_equal(line[0], line[-1]) for line in lines)
            mask = filled([line[:-1] for line in lines], SMALL_SHAPE)[0]
            assert np.array_equal(mask, segment.mask[index])
            assert {one.GraphicAnnotationUnits for one in objects} == {"PIXEL"}


SMALL_SHAPE = (SMALL.rows, SMALL.columns)


def test_holes_are_drawn():
    voxels = np.zeros((12, *SMALL_SHAPE), bool)
    voxels[4, 5:20, 5:20] = True
    voxels[4, 10:12, 10:12] = False
    case = make_case(make_evidence(), make_volume(), Findings((Segment("Left lung", voxels),)))
    (objects,) = [objects for objects in graphics_of(the_one(case)).values() if objects]
    assert len(objects) == 2


def test_only_images_with_findings_are_cited_and_each_says_that_it_is_ai():
    case = make_case(make_evidence(), make_volume(), Findings(detections=on(3, 5)))
    ds = the_one(case)
    cited = [case.own.slices[index].sop_instance_uid for index in (3, 5)]
    (series,) = ds.ReferencedSeriesSequence
    assert [image.ReferencedSOPInstanceUID for image in series.ReferencedImageSequence] == cited
    texts = [
        (annotation.ReferencedImageSequence[0].ReferencedSOPInstanceUID, text.UnformattedTextValue)
        for annotation in ds.GraphicAnnotationSequence
        for text in annotation.get("TextObjectSequence", ())
        if "BoundingBoxAnnotationUnits" in text
    ]
    assert [uid for uid, _ in texts] == cited
    assert {text for _, text in texts} == {"AI, not verified, not for clinical use: Marker front"}
    assert ds.ContentDescription == "AI, not verified, not for clinical use: Lungs"


def test_layers_bear_name_and_colour():
    ds = the_one(make_case(make_evidence(), make_volume(), make_findings()))
    assert [layer.GraphicLayer for layer in ds.GraphicLayerSequence] == ["AI_1", "AI_2", "AI_TEXT"]
    assert [layer.GraphicLayerOrder for layer in ds.GraphicLayerSequence] == [1, 2, 3]
    first = ds.GraphicLayerSequence[0]
    assert first.GraphicLayerDescription == "AI: Right lung"
    assert len(first.GraphicLayerRecommendedDisplayCIELabValue) == 3


def test_what_detections_are_drawn_as():
    detections = (
        Detection("Marker front", Region(Shape.POINT, np.array([[5.5, 6]]), 2)),
        *on(3),
        Detection("Left lung", diameters=Diameters(*LINES, 3), probability=0.5),
    )
    case = make_case(make_evidence(), make_volume(), Findings(detections=detections))
    ds = the_one(case)
    found, layers = graphics_of(ds), layers_of(ds)
    (point,) = found[case.own.slices[2].sop_instance_uid, None, layers["Marker front"]]
    assert (point.GraphicType, list(point.GraphicData)) == ("POINT", [5.5, 6])
    assert "GraphicFilled" not in point
    uid = case.own.slices[3].sop_instance_uid
    (ellipse,) = found[uid, None, layers["Marker front"]]
    assert (ellipse.GraphicType, ellipse.NumberOfGraphicPoints, ellipse.GraphicFilled) == ("ELLIPSE", 4, "N")
    lines = found[uid, None, layers["Left lung"]]
    assert [one.GraphicType for one in lines] == ["POLYLINE", "POLYLINE"]
    texts = [
        text.UnformattedTextValue
        for annotation in ds.GraphicAnnotationSequence
        for text in annotation.get("TextObjectSequence", ())
        if "AnchorPoint" in text
    ]
    assert sorted(texts) == ["Left lung 50 %", "Marker front", "Marker front 87 %"]


def test_images_of_different_size_have_displayed_areas_of_their_own():
    ds = the_one(frames_case(Findings(detections=on(0, 1, 2))))
    areas = {
        tuple(area.DisplayedAreaBottomRightHandCorner): len(area.ReferencedImageSequence)
        for area in ds.DisplayedAreaSelectionSequence
    }
    assert areas == {(41, 30): 2, (50, 60): 1}
    assert ds.DisplayedAreaSelectionSequence[0].PresentationPixelAspectRatio == [1, 1]


def test_segments_of_radiographs_are_drawn_too():
    masks = np.zeros((3, 30, 41), bool)
    masks[1, 4:9, 4:9] = True
    ds = the_one(frames_case(Findings((Segment("Left lung", masks),)), sizes=((30, 41),) * 3))
    assert len(ds.ReferencedSeriesSequence[0].ReferencedImageSequence) == 1


def test_window_and_rescale_are_the_sources():
    evidence = make_evidence(WindowCenter=[40, -600], WindowWidth=[400, 1500])
    ds = the_one(make_case(evidence, make_volume(), Findings(detections=on(3))))
    (voi,) = ds.SoftcopyVOILUTSequence
    assert (voi.WindowCenter, voi.WindowWidth) == (40, 400)
    assert (ds.RescaleIntercept, ds.RescaleSlope) == (-1024, 1)
    assert ds.PresentationLUTShape == "IDENTITY"


def test_a_frame_has_the_window_of_its_own_functional_group():
    evidence = make_multiframe()
    (image,) = evidence.datasets
    for n, group in enumerate(image.PerFrameFunctionalGroupsSequence):
        window = type(image)()
        window.WindowCenter, window.WindowWidth = 100 + n, 200
        group.FrameVOILUTSequence = [window]
    ds = the_one(make_case(evidence, make_volume(), Findings(detections=on(3, 5))))
    assert [voi.WindowCenter for voi in ds.SoftcopyVOILUTSequence] == [103, 105]
    assert [voi.ReferencedImageSequence[0].ReferencedFrameNumber for voi in ds.SoftcopyVOILUTSequence] == [4, 6]


def test_inverted_images_stay_inverted_and_other_greys_get_a_state_of_their_own():
    case = frames_case(Findings(detections=on(0, 1, 2)), PhotometricInterpretation="MONOCHROME1")
    case.own.datasets[1].PhotometricInterpretation = "MONOCHROME2"
    first, second = (made.dataset for made in made_of(case))
    assert (first.PresentationLUTShape, second.PresentationLUTShape) == ("INVERSE", "IDENTITY")
    assert first.SOPInstanceUID != second.SOPInstanceUID
    assert first.SeriesInstanceUID == second.SeriesInstanceUID
    assert (first.InstanceNumber, second.InstanceNumber) == (1, 2)


def test_nothing_for_colour_and_for_nothing_found():
    colour = frames_case(Findings(detections=on(0)), PhotometricInterpretation="RGB")
    assert encode_presentation_state(colour, STATE, None) == ()
    assert encode_presentation_state(make_case(make_evidence(), make_volume(), Findings()), STATE, None) == ()


def test_same_findings_same_bytes():
    findings = replace(make_findings(), detections=on(1, 2))
    first, second = (made_of(make_case(make_evidence(), make_volume(), findings))[0] for _ in range(2))
    assert first.to_bytes() == second.to_bytes()


def test_colours_are_the_cards():
    ds = the_one(make_case(make_evidence(), make_volume(), make_findings()))
    expected = [list(CIELabColor.from_rgb(*label.colour).value) for label in CARD.labels[:2]]
    found = [list(layer.GraphicLayerRecommendedDisplayCIELabValue) for layer in ds.GraphicLayerSequence[:2]]
    assert found == expected


@pytest.mark.parametrize("source", ["volume", "multi-frame", "radiographs"])
def test_validators_find_no_error(tmp_path, source):
    if shutil.which("dciodvfy") is None or not Path("/usr/bin/dcmpschk").exists():
        pytest.skip("VALIDATOR MISSING: dciodvfy or dcmpschk is not installed, so nothing was held against them")
    findings = replace(make_findings(), detections=on(1, 2))
    case = {
        "volume": lambda: make_case(make_evidence(BodyPartExamined="CHEST"), make_volume(), findings),
        "multi-frame": lambda: make_case(make_multiframe(), make_volume(), findings),
        "radiographs": lambda: frames_case(Findings(detections=on(0, 1))),
    }[source]()
    path = tmp_path / "pr.dcm"
    made_of(case)[0].write(path)
    told = subprocess.run(["dciodvfy", "-new", path], capture_output=True, text=True, check=False).stderr
    assert "Error" not in told
    told = subprocess.run(["/usr/bin/dcmpschk", path], capture_output=True, text=True, check=False).stderr
    # dcmtk 3.6.7 takes the offset +0000 of a date and time, which PS3.5 6.2 allows, for an error
    assert set(re.findall(r"Affected attribute: (\w+)", told)) <= {"ContributionDateTime"}
    command = ["/usr/bin/dcmodify", "-nb", "-m", "(0018,a001)[1].(0018,a002)=20260102", path]
    subprocess.run(command, check=True, capture_output=True)
    told = subprocess.run(["/usr/bin/dcmpschk", path], capture_output=True, text=True, check=False).stderr
    assert "Test passed" in told
