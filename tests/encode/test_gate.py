"""Each kind of result, tampered with in each way, is refused at the gate; honest ones pass."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import highdicom
import numpy as np
import pytest
from gate_material import (
    all_findings,
    changed,
    every_encoding,
    first_of,
    honest,
    honest_case,
    kinds,
    with_bytes,
    with_uid,
)
from pydicom.uid import generate_uid

from pacs_ai.encode.check import check_results
from pacs_ai.encode.gate.required import ALWAYS, ALWAYS_PRESENT, PRESENT, VALUED
from pacs_ai.errors import Permanent
from pacs_ai.profiles import Kind

KINDS = kinds()
TREES = (Kind.REPORT, Kind.TEXT_REPORT, Kind.VALUES, Kind.KEY_OBJECTS)


def named(encoding):
    return f"{encoding.kind}-{encoding.form}"


def of_kind(*wanted):
    return pytest.mark.parametrize(
        "encoding", [one for one in KINDS if one.kind in wanted or one.details.name in wanted], ids=named
    )


every = pytest.mark.parametrize("encoding", KINDS, ids=named)


def refuse(results, words, case=None):
    with pytest.raises(Permanent, match=words) as refusal:
        check_results(results, case or honest_case())
    return str(refusal.value)


def tampered(encoding, change):
    *before, last = honest(encoding)
    return (*before, change(last))


def set_(keyword, value):
    return lambda ds: setattr(ds, keyword, value)


@pytest.mark.parametrize("encoding", every_encoding(), ids=lambda one: f"{named(one)}-{one.transfer_syntax}")
def test_honest_results_pass(encoding):
    check_results(honest(encoding), honest_case())


@every
@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("PatientID", "OTHER"),
        ("PatientName", "Other^Name"),
        ("PatientBirthDate", "19000101"),
        ("PatientSex", "F"),
        ("IssuerOfPatientID", "ELSEWHERE"),
        ("StudyInstanceUID", "2.25.1"),
        ("StudyDate", "19000101"),
        ("AccessionNumber", "OTHER"),
        ("StudyID", "OTHER"),
    ],
)
def test_another_patient_or_study_is_refused_without_its_value(encoding, keyword, value):
    words = refuse(tampered(encoding, lambda one: changed(one, set_(keyword, value))), keyword)
    assert value not in words


@every
def test_RES_02_a_reference_to_an_instance_that_was_not_read_is_refused(encoding):
    """What `Dataset.decompress()` does to SOP Instance UIDs passes every validator."""
    evidence = honest_case().own
    result = honest(encoding)[-1]
    cited = [ds.SOPInstanceUID for ds in evidence.datasets if ds.SOPInstanceUID.encode() in result.to_bytes()]
    assert cited or encoding.kind in (Kind.SECONDARY_CAPTURE, Kind.SUMMARY)
    if cited:
        foreign = cited[0][:-3] + f"{(int(cited[0][-3:]) + 1) % 1000:03}"
        change = lambda one: with_bytes(one, cited[0].encode(), foreign.encode())  # noqa: E731
        refuse(tampered(encoding, change), "not read|describes|not lie")


@every
def test_a_frame_that_the_source_does_not_have_is_refused(encoding):
    def change(ds):
        reference = next((item for item in ds.iterall() if item.keyword == "ReferencedSOPInstanceUID"), None)
        del reference
        add_frame(ds)

    def add_frame(ds):
        for element in ds:
            if element.VR == "SQ":
                for item in element.value:
                    if "ReferencedSOPInstanceUID" in item:
                        item.ReferencedFrameNumber = 7
                    add_frame(item)

    results = honest(encoding)
    if not results[-1].dataset.SOPClassUID or b"\x08\x00\x55\x11" not in results[-1].to_bytes():
        pytest.skip(f"{encoding.kind} refers to nothing")
    refuse(tampered(encoding, lambda one: changed(one, change)), "frame")


@every
def test_each_required_attribute_is_required(encoding):
    uid = encoding.details.sop_class_uid
    result = honest(encoding)[-1]
    for keyword in {*ALWAYS, *VALUED.get(uid, ())} - {
        "SOPClassUID",
        "SOPInstanceUID",
        "StudyInstanceUID",
        "SeriesInstanceUID",
    }:
        for empty in (
            lambda ds, k=keyword: ds.__delitem__(k),
            lambda ds, k=keyword: setattr(ds, k, [] if ds[k].VR == "SQ" else None),
        ):
            refuse((*honest(encoding)[:-1], changed(result, empty)), keyword)
    for keyword in {*ALWAYS_PRESENT, *PRESENT.get(uid, ())}:
        refuse((*honest(encoding)[:-1], changed(result, lambda ds, k=keyword: ds.__delitem__(k))), keyword)


@every
def test_a_random_uid_is_refused(encoding):
    for keyword in ("SOPInstanceUID", "SeriesInstanceUID"):
        refuse(tampered(encoding, lambda one, k=keyword: with_uid(one, k, generate_uid())), "derive|differently")
    refuse(
        tampered(encoding, lambda one: changed(one, set_("SynchronizationFrameOfReferenceUID", generate_uid()))),
        "neither derived nor received",
    )
    random = generate_uid(prefix=None)  # 2.25, a random UUID
    refuse(
        tampered(encoding, lambda one: changed(one, set_("SynchronizationFrameOfReferenceUID", random))),
        "neither derived nor received",
    )


@every
def test_uids_outside_and_inside_must_agree(encoding):
    refuse(tampered(encoding, lambda one: replace(one, sop_instance_uid="2.25.1")), "inside")
    refuse(tampered(encoding, lambda one: replace(one, transfer_syntax_uid="1.2.840.10008.1.2")), "inside")


@every
def test_MOD_07_the_clearance_is_that_of_the_card(encoding):
    refuse(
        tampered(encoding, lambda one: changed(one, set_("ContentQualification", "PRODUCT"))), "qualified as PRODUCT"
    )
    silent = lambda one: with_bytes(one, b"not for clinical use", b"fit for clinical use")  # noqa: E731
    refuse(tampered(encoding, silent), "does not say that it is not for clinical use")
    refuse(tampered(encoding, lambda one: changed(one, set_("SeriesDescription", "AI: Lungs"))), "does not say")


@every
@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_a_number_that_is_none_is_refused(encoding, number):
    refuse(
        tampered(encoding, lambda one: changed(one, lambda ds: ds.add_new(0x00189073, "FD", number))),
        "not finite in Acquisition Duration",
    )


@every
def test_another_series_number_is_refused(encoding):
    refuse(tampered(encoding, lambda one: changed(one, set_("SeriesNumber", 1))), "Series Number")


@every
def test_bytes_that_end_early_are_refused(encoding):
    *before, result = honest(encoding)
    whole = result.to_bytes()
    for length in (200, 1000, len(result.parts[0]) - 7):
        refuse(
            (*before, replace(result, parts=(whole[:length],))),
            "cannot be read|lacks|inside|less|voxels|qualified|no end",
        )


@of_kind("binary")
def test_any_flipped_bit_of_a_binary_segmentation_is_refused(encoding):
    (seg,) = honest(encoding)
    rng = np.random.default_rng(5)
    for at in rng.integers(0, len(seg.parts[-1]) - 2, 25):
        pixels = bytearray(seg.parts[-1])
        pixels[at] ^= 1 << int(rng.integers(8))
        refuse((replace(seg, parts=(*seg.parts[:-1], pixels)),), "not those that the pipeline returned")


@of_kind(Kind.SEGMENTATION)
def test_a_changed_pixel_is_refused(encoding):
    findings = honest_case().findings
    labels, values = findings.segments[0].voxels.copy(), findings.maps[0].voxels.copy()
    labels[6, 15, 20] = 0 if labels[6, 15, 20] else 1
    values[6, 15, 20] = 1 - values[6, 15, 20]
    other = replace(
        findings,
        segments=tuple(replace(one, voxels=labels) for one in findings.segments),
        maps=(replace(findings.maps[0], voxels=values), findings.maps[1]),
    )
    refuse(honest(encoding), "not those|number of frames|describes", replace(honest_case(), findings=other))


@of_kind(Kind.SEGMENTATION)
def test_a_moved_frame_a_swapped_source_and_another_spacing_are_refused(encoding):
    def move(ds):
        place = first_of(ds.PerFrameFunctionalGroupsSequence[3], "PlanePositionSequence")
        place.ImagePositionPatient = [1.0, *list(place.ImagePositionPatient)[1:]]

    def swap(ds):
        a, b = (
            first_of(ds.PerFrameFunctionalGroupsSequence[n], "DerivationImageSequence", "SourceImageSequence")
            for n in (2, 3)
        )
        a.ReferencedSOPInstanceUID, b.ReferencedSOPInstanceUID = b.ReferencedSOPInstanceUID, a.ReferencedSOPInstanceUID

    def stretch(ds):
        first_of(ds.SharedFunctionalGroupsSequence[0], "PixelMeasuresSequence").PixelSpacing = [1, 1]

    def turn(ds):
        first_of(ds.SharedFunctionalGroupsSequence[0], "PlaneOrientationSequence").ImageOrientationPatient = [
            0,
            1,
            0,
            1,
            0,
            0,
        ]

    def uncited(ds):
        del ds.PerFrameFunctionalGroupsSequence[3].DerivationImageSequence

    def elsewhere(ds):
        ds.FrameOfReferenceUID = "2.25.1"

    for change in (move, swap, stretch, turn, uncited, elsewhere):
        refuse(tampered(encoding, lambda one, c=change: changed(one, c)), "lie|spacing|cites no|FrameOfReference")


@of_kind(Kind.SEGMENTATION)
def test_swapped_segments_are_refused(encoding):
    def swap_labels(ds):
        a, b = ds.SegmentSequence[:2]
        a.SegmentLabel, b.SegmentLabel = b.SegmentLabel, a.SegmentLabel

    def swap_numbers(ds):
        a, b = ds.SegmentSequence[:2]
        a.SegmentNumber, b.SegmentNumber = b.SegmentNumber, a.SegmentNumber

    def another(ds):
        ds.SegmentSequence[0].TrackingUID = "2.25.1"

    for change in (swap_labels, swap_numbers, another):
        refuse(tampered(encoding, lambda one, c=change: changed(one, c)), "describe|not those|derived")


def nodes(ds, value_type):
    for item in ds.get("ContentSequence", ()):
        if item.ValueType == value_type:
            yield item
        yield from nodes(item, value_type)


@of_kind(Kind.REPORT, "enhanced")
def test_a_value_that_was_not_found_is_refused(encoding):
    def change(ds):
        values = [one.MeasuredValueSequence[0] for one in nodes(ds, "NUM")]
        for value in values:
            value.NumericValue = float(value.NumericValue) + 1
            if "FloatingPointValue" in value:
                value.FloatingPointValue = float(value.FloatingPointValue) + 1

    refuse(tampered(encoding, lambda one: changed(one, change)), "value|volume")


@of_kind(Kind.REPORT)
def test_a_report_of_other_volumes_or_segments_is_refused(encoding):
    case = honest_case()
    kept = tuple(one for one in case.findings.measurements if one.concept.meaning != "Volume")
    without = replace(case, findings=replace(case.findings, measurements=kept))

    def lose_a_group(ds):
        for container in nodes(ds, "CONTAINER"):
            if container.ConceptNameCodeSequence[0].CodeValue == "126010":
                del container.ContentSequence[0]

    def swap_tracking(ds):
        found = [one for one in nodes(ds, "UIDREF") if one.ConceptNameCodeSequence[0].CodeValue == "112040"]
        found[0].UID, found[1].UID = found[1].UID, found[0].UID

    for change in (lose_a_group, swap_tracking):
        refuse(tampered(encoding, lambda one, c=change: changed(one, c)), "one group|value|number their")
    check_results(honest(encoding), without)
    smaller = tuple(
        replace(one, voxels=np.where(np.arange(12)[:, None, None] < 6, one.voxels, 0)) for one in case.findings.segments
    )
    fewer = replace(without, findings=replace(without.findings, segments=smaller))
    refuse(honest(encoding)[-1:] if not encoding.cites else honest(encoding), "volume|voxels|not read", fewer)


@of_kind(*TREES)
def test_regions_stay_on_their_image_and_no_report_is_verified(encoding):
    if not list(nodes(honest(encoding)[-1].dataset, "SCOORD")):
        pytest.skip(f"{encoding.kind} draws nothing")

    def leave(ds):
        next(nodes(ds, "SCOORD")).GraphicData[0] = 42.5

    def before(ds):
        next(nodes(ds, "SCOORD")).GraphicData[1] = -1.0

    for change in (leave, before):
        refuse(tampered(encoding, lambda one, c=change: changed(one, c)), "leaves its image")
    refuse(tampered(encoding, lambda one: changed(one, set_("VerificationFlag", "VERIFIED"))), "verified")


def shift(ds):
    """Move everything that has a place by a millimetre."""
    for element in ds:
        if element.keyword == "ImagePositionPatient":
            x, y, z = element.value
            element.value = [x + 1, y, z]
        elif element.VR == "SQ":
            for item in element.value:
                shift(item)


@of_kind("multi-frame", "single-frame", Kind.PARAMETRIC_MAP, Kind.DERIVED_IMAGES)
def test_frames_that_lie_elsewhere_are_refused(encoding):
    refuse(tampered(encoding, lambda one: changed(one, shift)), "does not lie|differ in ImagePosition")


@of_kind("multi-frame", Kind.PARAMETRIC_MAP)
def test_RES_02_a_frame_that_cites_its_neighbour_is_refused(encoding):
    def swap(ds):
        frames = ds.PerFrameFunctionalGroupsSequence
        a, b = (first_of(frames[n], "DerivationImageSequence", "SourceImageSequence") for n in (2, 3))
        a.ReferencedSOPInstanceUID, b.ReferencedSOPInstanceUID = b.ReferencedSOPInstanceUID, a.ReferencedSOPInstanceUID

    refuse(tampered(encoding, lambda one: changed(one, swap)), "does not lie")


@of_kind(Kind.PARAMETRIC_MAP)
def test_a_map_of_other_numbers_is_refused(encoding):
    def change(ds):
        values = np.frombuffer(ds.FloatPixelData, "<f4").copy()
        values[500] += 0.001
        ds.FloatPixelData = values.tobytes()

    refuse(tampered(encoding, lambda one: changed(one, change)), "other numbers")
    refuse((*honest(encoding), honest(encoding)[-1]), "more parametric maps|derive")


@of_kind(Kind.STRUCTURE_SET)
def test_contours_stay_on_their_slice_and_volumes_are_those_of_the_voxels(encoding):
    def contour(ds):
        return first_of(ds, "ROIContourSequence", "ContourSequence")

    def lift(ds):
        one = contour(ds)
        one.ContourData = [value + (1 if n % 3 == 2 else 0) for n, value in enumerate(one.ContourData)]

    def leave(ds):
        one = contour(ds)
        one.ContourData = [value + (900 if n % 3 == 0 else 0) for n, value in enumerate(one.ContourData)]

    def other_slice(ds):
        own = honest_case().own.slices
        cited = first_of(contour(ds), "ContourImageSequence")
        cited.ReferencedSOPInstanceUID = own[
            0 if cited.ReferencedSOPInstanceUID != own[0].sop_instance_uid else 5
        ].sop_instance_uid

    def uncited(ds):
        del contour(ds).ContourImageSequence

    def grow(ds):
        ds.StructureSetROISequence[0].ROIVolume = "1.5"

    def lose(ds):
        del ds.StructureSetROISequence[0]

    for change in (lift, leave, other_slice, uncited, grow, lose):
        refuse(tampered(encoding, lambda one, c=change: changed(one, c)), "contour|region")


@of_kind(Kind.PRESENTATION_STATE)
def test_a_graphic_beyond_its_image_is_refused(encoding):
    def leave(ds):
        graphic = first_of(ds, "GraphicAnnotationSequence", "GraphicObjectSequence")
        graphic.GraphicData = [60.0, *list(graphic.GraphicData)[1:]]

    refuse(tampered(encoding, lambda one: changed(one, leave)), "leaves its image")


def test_all_findings_are_of_every_kind():
    findings = all_findings()
    assert all(getattr(findings, kind) for kind in ("segments", "measurements", "detections", "maps", "images"))


@of_kind(Kind.DERIVED_IMAGES)
def test_derived_images_of_other_values_or_another_kind_are_refused(encoding):
    def change(ds):
        values = np.frombuffer(ds.PixelData, "<u2").copy()
        values[500] += 1
        ds.PixelData = values.tobytes()

    def other_kind(ds):
        ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.4"

    refuse(tampered(encoding, lambda one: changed(one, change)), "other values")
    refuse(tampered(encoding, lambda one: changed(one, other_kind)), "another kind")
    results = honest(encoding)
    refuse((results[1], results[0], *results[2:]), "derive")


@cache
def table_of_the_standard(name):
    return json.loads((Path(highdicom.__file__).parent / "_standard" / f"{name}.json").read_text())


def of_the_standard(sop_class_uid):
    """Root attributes of type 1 and of type 2 in the mandatory modules, as highdicom has them from the Standard."""
    classes, iods, modules = map(table_of_the_standard, ("sop_class_iod_map", "iod_module_map", "module_attribute_map"))
    found = {"1": set(), "2": set()}
    for module in iods[classes[sop_class_uid]]:
        for attribute in modules[module["key"]] if module["usage"] == "M" else ():
            if attribute["path"] == [] and attribute["type"] in found:
                found[attribute["type"]].add(attribute["keyword"])
    return found["1"], found["2"]


#: Of the content tree at every depth, which highdicom's table lists at the root; and of pictures of several frames.
NOT_AT_THE_ROOT = {
    "ReferencedSOPSequence", "TemporalRangeType", "ConceptCodeSequence", "TabulatedValuesSequence", "GraphicData",
    "GraphicType", "ReferencedFrameOfReferenceUID", "MeasuredValueSequence", "FrameIncrementPointer",
}  # fmt: skip


@pytest.mark.parametrize("uid", VALUED)
def test_the_table_asks_for_what_the_standard_asks_for(uid):
    valued, present = of_the_standard(uid)
    conditional = {"FrameOfReferenceUID"}  # of what has a place in the patient
    assert valued - NOT_AT_THE_ROOT - conditional <= {*ALWAYS, *VALUED[uid]}
    assert present - NOT_AT_THE_ROOT <= {*ALWAYS, *ALWAYS_PRESENT, *VALUED[uid], *PRESENT.get(uid, ())}
