"""What a reader sees: each kind of result of real images, opened in OHIF, is what was found."""

from __future__ import annotations

import colorsys
from dataclasses import replace

import numpy as np
import pytest
from objects import SEG_AND_SR, encodings_of, only
from PIL import Image
from scipy import ndimage
from viewing import DEADLINE_SECONDS

from pacs_ai.pipeline import Findings, Segment
from pacs_ai.profiles import Kind

pytestmark = pytest.mark.viewer
#: The viewer rounds CIELab to RGB.
COLOUR_TOLERANCE = 3


def key(request):
    return request.node.name


def series_of(memory, one):
    return [found for found in memory["displaySets"] if found["series"] == one.series_instance_uid]


def segmentation_in(memory, kind="Labelmap"):
    """Return the segmentation of a kind as soon as the viewer has drawn it and knows its colours."""
    found = next((one for one in memory["segmentations"] if kind in one["kinds"]), None)
    drawn = memory["viewports"][0]["status"] == "rendered"
    return found if found and drawn and all(segment["colour"] for segment in found["segments"]) else None


def assert_names_and_colours(found, card, findings):
    filled = [segment.label for segment in findings.segments if segment.mask.any()]
    segments = [one for one in found["segments"] if (one["number"], one["label"]) != (0, "Background")]
    assert [(one["number"], one["label"]) for one in segments] == list(enumerate(filled, start=1))
    for one in segments:
        assert one["colour"] == pytest.approx(card.label(one["label"]).colour, abs=COLOUR_TOLERANCE), one["label"]


def assert_painted(viewer, analysed, findings, picture_name):
    """Assert that on its largest slice a voxel of each segment has its colour on the screen."""
    masks = [segment.mask for segment in findings.segments]
    for segment in findings.segments:
        others = np.logical_or.reduce([mask for mask in masks if mask is not segment.mask] or [np.False_])
        mask = segment.mask & ~others
        index = int(mask.sum(axis=(1, 2)).argmax())
        row, column = inner(mask[index])
        viewer.turn(analysed.images[index])
        x, y = viewer.browser("place", point=analysed.place(index, row, column))["place"]
        wanted = hue(analysed.card.label(segment.label).colour)

        def painted(_memory, name=f"{picture_name} {segment.label}", x=x, y=y, wanted=wanted):
            path = viewer.photograph(name)
            with Image.open(path) as picture:
                shown = picture.convert("RGB").getpixel((round(x), round(y)))
            return path if abs((hue(shown) - wanted + 0.5) % 1 - 0.5) < 0.05 else None

        viewer.until(painted, f"{segment.label} in its colour")


def inner(plane):
    """Return a pixel of a mask as far from its edge as any."""
    return np.unravel_index(int(ndimage.distance_transform_edt(plane).argmax()), plane.shape)


def hue(colour):
    return colorsys.rgb_to_hsv(*(value / 255 for value in colour))[0]


def open_segmentation(viewer, analysed, shown, findings, seconds=DEADLINE_SECONDS):
    """Open one segmentation on its source and hold names, colours and every voxel against the findings."""
    viewer.open(shown.study, shown.series)
    viewer.show(shown.only.series_instance_uid)
    found = viewer.until(segmentation_in, "the segmentation", seconds)
    assert_names_and_colours(found, analysed.card, findings)
    assert found["voxels"] == analysed.voxels(findings)


def without_overlap(findings):
    body, lesion = findings.segments
    return Findings((Segment(body.label, body.mask & ~lesion.mask), lesion), findings.measurements)


# Segmentations


def test_overlapping_segments_are_shown_voxel_by_voxel(viewer, chest, request):
    assert (chest.findings.segments[0].mask & chest.findings.segments[1].mask).any()
    shown = chest.shown_as(key(request), only(Kind.SEGMENTATION))
    open_segmentation(viewer, chest, shown, chest.findings)
    viewer.until_drawn("seg overlapping")


def test_a_binary_segmentation_is_shown_in_its_colours(viewer, chest, request):
    findings = without_overlap(chest.findings)
    shown = chest.shown_as(key(request), only(Kind.SEGMENTATION), findings=findings)
    open_segmentation(viewer, chest, shown, findings)
    assert_painted(viewer, chest, findings, "seg binary")


@pytest.mark.nightly
def test_a_label_map_is_shown_in_its_colours(viewer, chest, request):
    findings = without_overlap(chest.findings)
    shown = chest.shown_as(key(request), only(Kind.SEGMENTATION, "labelmap"), findings=findings)
    open_segmentation(viewer, chest, shown, findings)
    assert_painted(viewer, chest, findings, "seg labelmap")


# Reports


def regions_of(item):
    """Yield (image, Graphic Type, points) of every measurement group's first region, from the report itself."""
    for one in item.get("ContentSequence", []):
        if one.ValueType == "CONTAINER" and one.ConceptNameCodeSequence[0].CodeValue == "125007":
            region = next(found for found in one.ContentSequence if found.ValueType == "SCOORD")
            image = region.ContentSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID
            yield image, region.GraphicType, np.reshape(np.asarray(region.GraphicData, float), (-1, 2))
        else:
            yield from regions_of(one)


def drawn_by(memory):
    return [
        (one["image"], np.asarray(line["points"]))
        for one in memory["annotations"]
        if one["tool"] == "DICOMSRDisplay"
        for line in one["drawn"]
    ]


def open_report(viewer, shown):
    """Open a report, hold every region that is drawn against it, and return (the regions, the printed values)."""
    report = shown.results[-1]
    viewer.open(shown.study, shown.series)
    viewer.show(report.series_instance_uid)
    written = list(regions_of(report.dataset))
    drawn = viewer.until(lambda memory: len(found := drawn_by(memory)) >= len(written) and found, "every region")
    assert sorted(image for image, _ in drawn) == sorted(image for image, _, _ in written)
    for image, shape, points in written:
        if shape == "POLYLINE":
            alike = [at for one, at in drawn if one == image and at.shape == points.shape]
            assert any(np.allclose(at, points, atol=0.01) for at in alike), (image, points, alike)
    (listed,) = series_of(viewer.look(), report)
    assert all(one["loaded"] for one in listed["measurements"])
    values = [" ".join(label) for one in listed["measurements"] for label in one["labels"]]
    return drawn, values


def assert_around(drawn, image, plane):
    """Assert that one of the regions on that image reaches as far as the mask's largest part, to the pixel's edge."""
    parts, _ = ndimage.label(plane)
    plane = parts == np.bincount(parts.ravel())[1:].argmax() + 1
    rows, columns = np.flatnonzero(plane.any(axis=1)), np.flatnonzero(plane.any(axis=0))
    box = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
    boxes = [[*at.min(axis=0), *at.max(axis=0)] for one, at in drawn if one == image]
    assert any(found == pytest.approx(box, abs=0.51) for found in boxes), (box, boxes)


def test_a_report_is_drawn_on_the_slices_of_the_largest_sections(viewer, chest, request):
    shown = chest.shown_as(key(request), *SEG_AND_SR)
    drawn, values = open_report(viewer, shown)
    for segment in chest.findings.segments:
        index = int(segment.mask.sum(axis=(1, 2)).argmax())
        assert_around(drawn, chest.images[index], segment.mask[index])
    for one in chest.findings.measurements:
        assert any(f"{one.value:.2f} {one.unit.value}" in value for value in values), (one, values)
    viewer.until_drawn("sr report")


@pytest.mark.nightly
def test_a_text_report_can_be_read(viewer, chest, request):
    shown = chest.shown_as(key(request), only(Kind.TEXT_REPORT))
    text = opened_text(viewer, shown)
    assert "not for clinical use" in text
    for one in chest.findings.segments:
        assert one.label in text
    for one in chest.findings.measurements:
        assert f"{one.value:.3g}" in text or f"{one.value:.0f}" in text, (one, text)
    viewer.photograph("sr text")


@pytest.mark.nightly
@pytest.mark.parametrize("form", ["enhanced", "basic-text"])
def test_values_can_be_read(viewer, chest, request, form):
    shown = chest.shown_as(key(request), only(Kind.VALUES, form))
    text = opened_text(viewer, shown)
    assert all(one.label in text for one in chest.findings.segments)
    viewer.photograph(f"sr values {form}")


def opened_text(viewer, shown):
    """Open an object that is text, and return what is to be read in the viewport."""
    viewer.open(shown.study, shown.series)
    viewer.show(shown.only.series_instance_uid)
    return viewer.until(
        lambda _memory: "Language" in (text := viewer.text('[data-cy="viewport-grid"]')) and text, "the text"
    )


# Images


def coloured(path):
    """Return which part of the middle of the picture has a colour."""
    with Image.open(path) as picture:
        width, height = picture.size
        middle = picture.convert("HSV").crop((int(0.3 * width), int(0.2 * height), int(0.9 * width), int(0.9 * height)))
        _, saturation, brightness = np.asarray(middle).transpose(2, 0, 1)
    return float(np.mean((saturation > 100) & (brightness > 60)))


@pytest.mark.parametrize("kind", [Kind.SECONDARY_CAPTURE, Kind.OVERLAY])
@pytest.mark.parametrize("source", ["chest", "radiograph"])
def test_pictures_are_shown_as_images(viewer, request, source, kind):
    analysed = request.getfixturevalue(source)
    frames = len(analysed.images) if kind is Kind.OVERLAY else 1
    shown = analysed.shown_as(key(request), only(kind))
    viewer.open(shown.study, shown.series)
    viewer.show(shown.only.series_instance_uid)
    viewer.until(lambda memory: memory["viewports"][0]["image"] == shown.only.sop_instance_uid, "the picture")
    (listed,) = series_of(viewer.look(), shown.only)
    assert (listed["handler"], listed["frames"]) == ("stack", frames)
    assert coloured(viewer.until_drawn(f"image {kind.value} {source}")) > 0.0005


@pytest.mark.nightly
def test_a_structure_set_is_shown_as_contours(viewer, chest, request):
    shown = chest.shown_as(key(request), only(Kind.STRUCTURE_SET))
    viewer.open(shown.study, shown.series)
    viewer.show(shown.only.series_instance_uid)
    found = viewer.until(lambda memory: segmentation_in(memory, "Contour"), "the contours")
    assert_names_and_colours(found, chest.card, chest.findings)
    for number, segment in enumerate(chest.findings.segments, start=1):
        assert found["contours"][str(number)] >= np.count_nonzero(segment.mask.any(axis=(1, 2)))
    assert coloured(viewer.until_drawn("rtstruct")) > 0.005


@pytest.mark.nightly
def test_a_parametric_map_is_shown_over_the_images(viewer, chest, request):
    (first, *_) = chest.findings.maps
    shown = chest.shown_as(key(request), only(Kind.PARAMETRIC_MAP), findings=replace(Findings(), maps=(first,)))
    viewer.open(shown.study, shown.series)
    viewer.show(shown.only.series_instance_uid)
    volume = viewer.until(
        lambda memory: next((one for one in memory["volumes"] if one["map"] and one["loaded"]), None), "the map"
    )
    slices, rows, columns = first.voxels.shape
    assert volume["dimensions"] == [columns, rows, slices]
    # the viewer keeps what lies between 0 and 1 as percentages
    assert volume["largest"] == pytest.approx(100 * float(first.voxels.max()), rel=1e-6)
    assert volume["sum"] == pytest.approx(100 * float(first.voxels.sum(dtype=np.float64)), rel=1e-4)
    viewer.until_drawn("parametric map")


@pytest.mark.nightly
def test_derived_images_are_a_series_of_their_own(viewer, chest, request):
    shown = chest.shown_as(key(request), only(Kind.DERIVED_IMAGES))
    viewer.open(shown.study, shown.series)
    viewer.show(shown.results[0].series_instance_uid)
    uids = {one.sop_instance_uid for one in shown.results}
    viewer.until(lambda memory: memory["viewports"][0]["image"] in uids, "a derived image")
    (listed,) = series_of(viewer.look(), shown.results[0])
    assert (listed["handler"], listed["frames"]) == ("stack", len(chest.images))
    viewer.until_drawn("derived images")


@pytest.mark.nightly
def test_a_summary_is_shown_as_pdf(viewer, chest, request):
    shown = chest.shown_as(key(request), only(Kind.SUMMARY))
    viewer.open(shown.study, shown.series)
    viewer.show(shown.only.series_instance_uid)
    content = viewer.until(lambda _memory: viewer.browser("document")["start"], "the PDF")
    assert content.startswith("%PDF-")
    (listed,) = series_of(viewer.look(), shown.only)
    assert listed["handler"] == "dicom-pdf"
    viewer.photograph("pdf")


@pytest.mark.nightly
@pytest.mark.parametrize("kind", [Kind.KEY_OBJECTS, Kind.PRESENTATION_STATE])
def test_what_the_viewer_does_not_support_it_lists_and_the_study_still_shows(viewer, chest, request, kind):
    shown = chest.shown_as(key(request), only(kind))
    viewer.open(shown.study, shown.series)
    viewer.display_set(shown.only.series_instance_uid)
    (listed,) = series_of(viewer.look(), shown.only)
    assert listed["unsupported"]
    viewer.until_drawn(f"unsupported {kind.value}")


# Radiographs


@pytest.mark.nightly
@pytest.mark.xfail(strict=True, reason="OHIF 3.13 reads spacing and orientation of every SEG; a radiograph has none")
def test_a_segmentation_of_a_radiograph_is_shown(viewer, radiograph, request):
    shown = radiograph.shown_as(key(request), only(Kind.SEGMENTATION))
    open_segmentation(viewer, radiograph, shown, radiograph.findings, seconds=15)
    assert coloured(viewer.until_drawn("radiograph seg")) > 0.001


def test_a_report_of_a_radiograph_is_drawn_on_it(viewer, radiograph, request):
    shown = radiograph.shown_as(key(request), *SEG_AND_SR)
    drawn, values = open_report(viewer, shown)
    (image,) = radiograph.images
    assert {one for one, _ in drawn} == {image}
    for detection in radiograph.findings.detections:
        assert any(f"{100 * detection.probability:.2f} %" in value for value in values), (detection, values)
    viewer.until_drawn("radiograph sr")


# Whole studies


@pytest.mark.parametrize("profile", ["ohif", pytest.param("archive", marks=pytest.mark.nightly)])
@pytest.mark.parametrize("source", ["chest", "radiograph"])
def test_a_study_with_all_that_a_profile_sends_opens(viewer, request, source, profile):
    analysed = request.getfixturevalue(source)
    shown = analysed.shown_as(key(request), *encodings_of(profile))
    assert len(shown.results) >= 3
    viewer.open(shown.study, shown.series)
    viewer.until_drawn(f"study {source} {profile}")
    listed = {one["series"] for one in viewer.look()["displaySets"]}
    assert set(shown.series) <= listed
