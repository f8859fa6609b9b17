"""The report says every value, draws each segment, names what was not found, and cites what was read."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from encode_material import (
    CARD,
    DENSITY,
    MARKER,
    SMALL,
    make_evidence,
    make_findings,
    make_multiframe,
    make_volume,
    make_work,
)
from highdicom.sr import srread
from objects import SEG_AND_SR
from pydicom.uid import Comprehensive3DSRStorage

from pacs_ai.encode.case import Case
from pacs_ai.encode.provenance import Predecessor
from pacs_ai.encode.reports.groups import absent_labels, sided
from pacs_ai.encode.reports.outline import MAX_POINTS, MIN_POINTS, mark, outline
from pacs_ai.encode.results import encode
from pacs_ai.pipeline import (
    ANATOMICAL_STRUCTURE,
    HOUNSFIELD_UNIT,
    LEFT,
    MORPHOLOGIC_ABNORMALITY,
    PERCENT,
    VOLUME,
    Card,
    Classification,
    Code,
    Findings,
    Frame,
    Frames,
    Label,
    Measurement,
    Segment,
)
from pacs_ai.testing import LABELS, phantom_truth

LIVER = Code("10200004", "SCT", "Liver")
INDEX = Code("C2348143", "UMLS", "Emphysema index")


def report(findings, evidence=None, **changes):
    evidence = make_evidence() if evidence is None else evidence
    return encode(findings, {"image": evidence}, {"image": make_volume()}, make_work(**changes), SEG_AND_SR)[-1].dataset


def tree(ds):
    """Every content item, depth first."""
    for item in ds.get("ContentSequence", ()):
        yield item
        yield from tree(item)


def named(ds, meaning):
    return [item for item in tree(ds) if item.ConceptNameCodeSequence[0].CodeMeaning == meaning]


def groups(ds):
    return named(ds, "Measurement Group")


def numbers(group):
    return {
        item.ConceptNameCodeSequence[0].CodeMeaning: (
            float(item.MeasuredValueSequence[0].NumericValue),
            item.MeasuredValueSequence[0].MeasurementUnitsCodeSequence[0].CodeValue,
        )
        for item in tree(group)
        if item.ValueType == "NUM"
    }


def test_each_segment_has_a_group_with_its_values_site_and_algorithm():
    findings = make_findings()
    ds = report(findings)
    assert [named(group, "Tracking Identifier")[0].TextValue for group in groups(ds)] == ["Right lung", "Left lung"]
    for group, segment in zip(groups(ds), findings.segments, strict=True):
        expected = {
            one.concept.meaning: (one.value, one.unit.value)
            for one in findings.measurements
            if one.label == segment.label
        }
        assert numbers(group) == {name: (pytest.approx(v, rel=1e-12), u) for name, (v, u) in expected.items()}
        assert named(group, "Finding")[0].ConceptCodeSequence[0].CodeMeaning == "Lung"
        assert named(group, "Finding category")[0].ConceptCodeSequence[0].CodeValue == "123037004"
        side = named(named(group, "Finding Site")[0], "Laterality")[0].ConceptCodeSequence[0].CodeMeaning
        assert side == segment.label.split()[0]
        assert named(group, "Algorithm Version")[0].TextValue == "1.2"
        assert named(group, "Algorithm Family")[0].ConceptCodeSequence[0].CodeValue == "123110"


def test_groups_and_segments_are_tied_by_their_tracking_uids():
    seg, sr = (
        one.dataset
        for one in encode(
            make_findings(), {"image": make_evidence()}, {"image": make_volume()}, make_work(), SEG_AND_SR
        )
    )
    assert [(item.TrackingID, item.TrackingUID) for item in seg.SegmentSequence] == [
        (named(group, "Tracking Identifier")[0].TextValue, named(group, "Tracking Unique Identifier")[0].UID)
        for group in groups(sr)
    ]
    cited = {
        reference.ReferencedSOPInstanceUID
        for study in sr.CurrentRequestedProcedureEvidenceSequence
        for series in study.ReferencedSeriesSequence
        for reference in series.ReferencedSOPSequence
    }
    assert cited == {seg.SOPInstanceUID, *(ds.SOPInstanceUID for ds in make_evidence().datasets)}


def test_the_volume_is_counted_where_the_pipeline_gave_none():
    findings = replace(make_findings(labels=("Left lung",)), measurements=())
    (group,) = groups(report(findings))
    expected = float(findings.segments[0].mask.sum()) * make_volume().voxel_ml
    assert numbers(group) == {"Volume": (pytest.approx(expected, rel=1e-12), "ml")}


def test_every_group_is_drawn_on_a_source_image():
    """A group without image coordinates turns the viewport of some viewers black."""
    findings = replace(
        make_findings(labels=("Left lung",)),
        measurements=(
            Measurement(DENSITY, -700.0, HOUNSFIELD_UNIT, None),
            Measurement(VOLUME, 0.0, Code("ml", "UCUM", "ml"), "Marker front"),
        ),
    )
    ds = report(findings)
    names = [named(group, "Tracking Identifier")[0].TextValue for group in groups(ds)]
    assert names == ["Left lung", "Marker front", "Whole image"]
    sources = {str(source.SOPInstanceUID) for source in make_evidence().datasets}
    for group in groups(ds):
        (region,) = named(group, "Image Region")
        assert region.GraphicType == "POLYLINE"
        (image,) = region.ContentSequence
        assert image.ReferencedSOPSequence[0].ReferencedSOPInstanceUID in sources
        points = np.reshape(region.GraphicData, (-1, 2))
        assert tuple(points[0]) == tuple(points[-1])
    assert numbers(groups(ds)[2]) == {"Attenuation Coefficient": (-700.0, "[hnsf'U]")}


def test_the_outline_is_that_of_the_largest_cross_section():
    segment = make_findings(labels=("Left lung",)).segments[0]
    evidence = make_evidence()
    largest = int(segment.mask.sum(axis=(1, 2)).argmax())
    region = named(report(Findings((segment,)), evidence), "Image Region")[0]
    reference = region.ContentSequence[0].ReferencedSOPSequence[0]
    assert reference.ReferencedSOPInstanceUID == evidence.slices[largest].sop_instance_uid
    points = np.reshape(region.GraphicData, (-1, 2))
    rows, columns = np.nonzero(segment.mask[largest])
    # pixel centres are at +0.5; the contour runs half a pixel outside them
    assert points.min(axis=0) == pytest.approx([columns.min(), rows.min()])
    assert points.max(axis=0) == pytest.approx([columns.max() + 1, rows.max() + 1])


def test_an_outline_on_a_multiframe_image_names_its_frame():
    segment = make_findings(labels=("Left lung",)).segments[0]
    evidence = make_multiframe()
    region = named(report(Findings((segment,)), evidence), "Image Region")[0]
    reference = region.ContentSequence[0].ReferencedSOPSequence[0]
    assert reference.ReferencedFrameNumber == int(segment.mask.sum(axis=(1, 2)).argmax()) + 1


def test_one_pixel_has_an_outline_around_its_centre():
    mask = np.zeros((5, 7), bool)
    mask[2, 3] = True
    points = outline(mask)
    assert np.allclose(points[:-1].mean(axis=0), (3.5, 2.5))
    assert np.allclose(np.ptp(points, axis=0), (1, 1))


def boxed(rows, columns):
    mask = np.zeros((12, 12), bool)
    mask[3 : 3 + rows, 4 : 4 + columns] = True
    return outline(mask)


@pytest.mark.parametrize(
    "points", [boxed(1, 1), boxed(1, 5), boxed(4, 1), boxed(6, 6), mark(30, 41, 0)], ids=lambda one: str(len(one))
)
def test_no_outline_is_taken_for_a_rectangle(points):
    """OHIF takes one of 4 or 5 points for a rectangle and asks whether to go on with it."""
    assert len(points) >= MIN_POINTS
    assert np.array_equal(points[0], points[-1])
    assert np.diff(points, axis=0).any(axis=1).all(), "no point stands twice"


def test_marks_lie_inside_the_image_and_apart():
    strips = [mark(30, 41, place) for place in range(6)]
    for points in strips:
        assert points.min() > 0
        assert points[:, 0].max() < 41 * 0.1, "so that the text at its right is inside too"
        assert points[:, 1].max() < 30
    tops = [float(points[:, 1].min()) for points in strips]
    assert tops == sorted(set(tops))


def test_holes_and_smaller_parts_are_left_out():
    mask = np.zeros((40, 40), bool)
    mask[5:30, 5:30] = True
    mask[10:20, 10:20] = False
    mask[35:38, 35:38] = True
    points = outline(mask)
    assert points.min() == 5
    assert points.max() == 30
    x, y = points[:-1, 0], points[:-1, 1]
    assert abs(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1))) / 2 == pytest.approx(625, abs=1)


def test_an_outline_of_noise_still_fits_an_element_of_64_kib():
    mask = np.zeros((600, 600), bool)
    mask[:, ::2] = True
    mask[0] = True
    points = outline(mask)
    assert len(points) <= MAX_POINTS
    assert points.nbytes < 2**16
    assert tuple(points[0]) == tuple(points[-1])


@pytest.mark.parametrize("segments", [(), (Segment("Left lung", np.zeros((12, 30, 41), np.uint8), 1),)])
def test_RES_05_nothing_found_is_said_in_words_and_codes(segments):
    (one,) = encode(Findings(segments), {"image": make_evidence()}, {"image": make_volume()}, make_work(), SEG_AND_SR)
    ds = one.dataset
    assert one.kind == "SR"
    assert named(ds, "Finding")[0].TextValue == (
        "Nothing found. 12 images analysed. Looked for and absent: Right lung, Left lung, Marker front."
    )
    assert ds.ConceptNameCodeSequence[0].CodeValue != "126000", "viewers show the text of other titles"
    absent = [
        item for item in tree(ds) if item.ValueType == "CODE" and item.ConceptCodeSequence[0].CodeMeaning == "Absent"
    ]
    assert len(absent) == 3


def test_empty_segments_leave_the_segmentation_and_are_named_in_the_report():
    truth = phantom_truth(SMALL)
    empty = Segment("Right lung", np.zeros_like(truth.labels), 1)
    seg, sr = (
        one.dataset
        for one in encode(
            Findings((empty, Segment("Left lung", truth.labels, LABELS["Left lung"]))),
            {"image": make_evidence()}, {"image": make_volume()}, make_work(), SEG_AND_SR)
    )  # fmt: skip
    assert [(item.SegmentNumber, item.SegmentLabel) for item in seg.SegmentSequence] == [(1, "Left lung")]
    assert named(sr, "Finding")[-1].TextValue == "12 images analysed. Looked for and absent: Right lung, Marker front."


def test_the_report_is_complete_unverified_and_says_so():
    ds = report(make_findings())
    assert ds.SOPClassUID == Comprehensive3DSRStorage
    assert (ds.CompletionFlag, ds.VerificationFlag, ds.PreliminaryFlag) == ("COMPLETE", "UNVERIFIED", "PRELIMINARY")
    assert named(ds, "Comment")[0].TextValue.startswith("For research only, not for clinical use.")
    assert ds.ContentTemplateSequence[0].TemplateIdentifier == "1500"
    containers = [ds, *(item for item in tree(ds) if item.ValueType == "CONTAINER")]
    assert {container.ContinuityOfContent for container in containers} == {"SEPARATE"}
    assert all(item.ConceptNameCodeSequence for item in tree(ds))
    assert make_work().device_uid == named(ds, "Device Observer UID")[0].UID
    assert named(ds, "Device Observer Name")[0].TextValue == "node-1"
    assert not named(ds, "Person Observer Name")
    assert named(ds, "Procedure reported")[0].ConceptCodeSequence[0].CodeValue == "25045-6"


def test_replaced_reports_are_cited():
    ds = report(make_findings(), predecessors=(Predecessor("1.2", "1.2.3", Comprehensive3DSRStorage, "1.2.3.4"),))
    (study,) = ds.PredecessorDocumentsSequence
    assert study.StudyInstanceUID == "1.2"
    assert study.ReferencedSeriesSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID == "1.2.3.4"
    assert "PredecessorDocumentsSequence" not in report(make_findings())


def test_sites_and_sides_of_what_is_no_organ():
    labels = (
        Label("Nodule", MORPHOLOGIC_ABNORMALITY, Code("27925004", "SCT", "Nodule"), LEFT),
        Label("Upper lobe", CARD.labels[0].category, CARD.labels[0].type, Code("261183002", "SCT", "Upper")),
        Label("Heart", CARD.labels[0].category, Code("80891009", "SCT", "Heart")),
        Label("Marker", MORPHOLOGIC_ABNORMALITY, MARKER),
    )
    card = Card(**{**vars(CARD), "labels": labels})
    truth = phantom_truth(SMALL)
    found = Findings(tuple(Segment(label.name, truth.labels == n) for n, label in enumerate(labels, 1)))
    nodule, lobe, heart = groups(report(found, card=card))[:3]
    assert not named(nodule, "Finding Site")
    assert named(nodule, "Laterality")[0].ConceptCodeSequence[0].CodeMeaning == "Left"
    assert named(lobe, "Topographical modifier")[0].ConceptCodeSequence[0].CodeMeaning == "Upper"
    assert named(heart, "Finding Site")[0].ConceptCodeSequence[0].CodeMeaning == "Heart"


def test_methods_derivations_and_odd_values_are_kept():
    mean = Code("373098007", "SCT", "Mean")
    values = (0.0, -0.0001234567890123, 123456789.123456789, 1e-30, math.pi)
    measurements = tuple(
        Measurement(replace(INDEX, meaning=f"Index {n}"), value, PERCENT, "Left lung", method=INDEX, derivation=mean)
        for n, value in enumerate(values)
    )
    findings = Findings(make_findings(labels=("Left lung",)).segments, measurements)
    (group,) = groups(report(findings))
    assert [one for one, _ in numbers(group).values()][1:] == pytest.approx(list(values), rel=1e-9)
    assert len(named(group, "Derivation")) == len(named(group, "Measurement Method")) == len(values)


def test_highdicom_finds_every_group(tmp_path):
    encode(make_findings(), {"image": make_evidence()}, {"image": make_volume()}, make_work(), SEG_AND_SR)[1].write(
        tmp_path / "sr"
    )
    found = srread(tmp_path / "sr").content.get_volumetric_roi_measurement_groups()
    assert [group.tracking_identifier for group in found] == ["Right lung", "Left lung"]
    for group in found:
        values = {one.name.meaning: one.value for one in group.get_measurements()}
        expected = {
            one.concept.meaning: one.value
            for one in make_findings().measurements
            if one.label == group.tracking_identifier
        }
        assert values == {name: pytest.approx(value) for name, value in expected.items()}
        assert group.finding_sites[0].laterality.meaning == group.tracking_identifier.split()[0]


def test_every_series_that_was_read_is_evidence():
    flair = make_evidence(type(SMALL)(slices=12, rows=30, columns=41, padded=True))
    prior = make_evidence(type(SMALL)(slices=12, rows=30, columns=41, anatomy="abdomen"), StudyInstanceUID="1.2.3.99")
    evidence = {"t1": make_evidence(), "flair": flair, "prior.t1": prior}
    volumes = dict.fromkeys(evidence, make_volume())
    findings = replace(make_findings(), grid="t1")
    ds = encode(findings, evidence, volumes, make_work(), SEG_AND_SR)[1].dataset
    (current,), (other,) = ds.CurrentRequestedProcedureEvidenceSequence, ds.PertinentOtherEvidenceSequence
    assert {series.SeriesInstanceUID for series in current.ReferencedSeriesSequence} > {
        evidence["t1"].datasets[0].SeriesInstanceUID,
        flair.datasets[0].SeriesInstanceUID,
    }
    assert len(current.ReferencedSeriesSequence) == 3, "t1, flair and the SEG"
    assert other.StudyInstanceUID == "1.2.3.99"


def test_a_positive_answer_about_the_whole_image_is_not_called_absent():
    label = CARD.labels[2]
    found = Findings(classifications=(Classification(label.type, Code("52101004", "SCT", "Present"), 0.9),))
    names = absent_labels(found, np.zeros((0, 0), np.int64), CARD)
    assert label.name not in [one.name for one in names]


def test_what_is_seen_on_images_of_both_sides_has_no_side():
    pixels = np.zeros((4, 4), np.uint8)
    images = tuple(Frame(pixels, None, {"ImageLaterality": side} if side else {}) for side in ("L", "L", "R", ""))
    given, label = Frames(images, "OP"), Label("Vessels", ANATOMICAL_STRUCTURE, LIVER)
    assert sided(label, given, [0, 1]).modifier == LEFT
    assert [sided(label, given, indices).modifier for indices in ([1, 2], [0, 3], [3])] == [None] * 3


LESIONS = tuple(
    Label(f"Liver lesion {number}", MORPHOLOGIC_ABNORMALITY, Code("52988006", "SCT", "Lesion"), LIVER)
    for number in range(1, 5)
)


@pytest.mark.parametrize(("found", "words", "codes"), [(0, "Liver, Liver lesion", 2), (2, "Liver", 1)])
def test_beside_a_lesion_that_was_found_lesions_are_not_called_absent(found, words, codes):
    card = replace(CARD, labels=(Label("Liver", ANATOMICAL_STRUCTURE, LIVER), *LESIONS))
    numbers_of = np.zeros((12, 30, 41), np.uint8)
    numbers_of[5, 3:9, 3:9], numbers_of[5, 15:22, 15:22] = 1, 2
    segments = tuple(Segment(f"Liver lesion {number}", numbers_of, number) for number in range(1, found + 1))
    ds = report(Findings(segments), card=card)
    absent = [
        item for item in tree(ds) if item.ValueType == "CODE" and item.ConceptCodeSequence[0].CodeMeaning == "Absent"
    ]
    assert len(absent) == codes
    assert [item.ConceptNameCodeSequence[0].CodeValue for item in absent][-1] == ("10200004" if found else "52988006")
    assert named(ds, "Finding")[-1 if found else 0].TextValue.endswith(f"Looked for and absent: {words}.")
    sites = [named(group, "Finding Site") for group in groups(ds)]
    assert [[one.ConceptCodeSequence[0].CodeValue for one in site] for site in sites] == [[LIVER.value]] * found


def test_what_lies_on_no_grid_belongs_to_the_study_and_not_to_a_prior():
    given = {"prior": make_volume(), "series": make_volume()}
    case = Case.of(Findings(), dict.fromkeys(given, make_evidence()), given, make_work())
    assert case.findings.grid == "series"
