from __future__ import annotations

import pytest
from pydantic import ValidationError
from pydicom import uid
from pydicom.datadict import tag_for_keyword

from pacs_ai.conditions import When
from pacs_ai.dicom.attributes import Header
from pacs_ai.route.rules import (
    SeriesFacts,
    bind,
    explain,
    matches,
    not_indexed,
    why_no_source,
)

CT = str(uid.CTImageStorage)


def series(number: int = 1, instances: int = 120, *, own_result: bool = False, **values: str) -> SeriesFacts:
    header = {
        "SOPClassUID": CT,
        "SOPInstanceUID": f"1.2.{number}.1",
        "StudyInstanceUID": "1.2",
        "SeriesInstanceUID": f"1.2.{number}",
        "SeriesNumber": str(number),
        "Modality": "CT",
        "BodyPartExamined": "CHEST",
        "SeriesDescription": "Thorax Lunge 1.0 I70f",
        "ImageType": "ORIGINAL\\PRIMARY\\AXIAL",
        "SliceThickness": "1.0",
        "ImageOrientationPatient": "1\\0\\0\\0\\1\\0",
        "ConvolutionKernel": "I70f\\3",
    }
    header |= values
    return SeriesFacts(
        Header({keyword: text for keyword, text in header.items() if text}), instances, "SCANNER", "PACS_AI", own_result
    )


def only(when: When, facts: SeriesFacts) -> tuple[bool, str]:
    (check,) = explain(when, facts)
    return check.passed, check.words


def test_the_route_of_the_design_matches_a_chest_ct():
    when = When.model_validate({"modality": "CT", "body_part": ["CHEST", "THORAX"], "min_instances": 40})
    assert matches(when, series())
    assert [check.words for check in explain(when, series())] == [
        "modality is CT",
        "body_part is CHEST",
        "number of images is 120",
    ]
    assert [check.name for check in explain(when, series())] == ["modality", "body_part", "min_instances"]


def test_every_failed_condition_is_said_with_what_was_found():
    when = When.model_validate({"modality": "CT", "body_part": ["CHEST", "THORAX"], "min_instances": 40})
    facts = series(Modality="MR", BodyPartExamined="ABDOMEN", instances=20)
    assert not matches(when, facts)
    assert [check.words for check in explain(when, facts) if not check.passed] == [
        "modality is MR, the route wants CT",
        "body_part is ABDOMEN, the route wants CHEST or THORAX",
        "number of images is 20, the route wants at least 40",
    ]


@pytest.mark.parametrize(
    ("key", "value", "passed", "words"),
    [
        ("modality", "ct", True, "modality is CT"),
        ("body_part", ["HEAD", "NECK", "PELVIS"], False, "body_part is CHEST, the route wants HEAD, NECK or PELVIS"),
        ("sop_class", "CTImageStorage", True, f"sop_class is {CT}"),
        ("sop_class", "CT Image Storage", True, f"sop_class is {CT}"),
        ("sop_class", CT, True, f"sop_class is {CT}"),
        ("sop_class", ["1.2.3"], False, f"sop_class is {CT}, the route wants 1.2.3"),
        ("description", "*lung*", True, "description is Thorax Lunge 1.0 I70f"),
        ("description", "lung", False, "description is Thorax Lunge 1.0 I70f, the route wants lung"),
        ("description", "/lung|xyz/", True, "description is Thorax Lunge 1.0 I70f"),
        ("description", "/^lung/", False, "description is Thorax Lunge 1.0 I70f, the route wants /^lung/"),
        ("description", "/^thorax.*f$/", True, "description is Thorax Lunge 1.0 I70f"),
        ("description", "Thorax Lunge 1.? I70f", True, "description is Thorax Lunge 1.0 I70f"),
        ("study_description", "*", False, "study_description is missing, the route wants *"),
        ("min_instances", 120, True, "number of images is 120"),
        ("max_instances", 100, False, "number of images is 120, the route wants at most 100"),
        ("min_slice_thickness_mm", 2, False, "slice thickness is 1 mm, the route wants at least 2 mm"),
        ("max_slice_thickness_mm", 3.0, True, "slice thickness is 1 mm"),
        ("orientation", "axial", True, "orientation is axial"),
        ("orientation", ["coronal", "sagittal"], False, "orientation is axial, the route wants coronal or sagittal"),
        ("image_type", ["original", "AXIAL"], True, "image_type is ORIGINAL\\PRIMARY\\AXIAL"),
        ("image_type", ["MPR", "X"], False, "image_type is ORIGINAL\\PRIMARY\\AXIAL, the route wants MPR and X"),
        ("not_image_type", ["LOCALIZER", "DERIVED"], True, "image_type is ORIGINAL\\PRIMARY\\AXIAL"),
        ("not_image_type", "axial", False, "image_type is ORIGINAL\\PRIMARY\\AXIAL, the route wants not axial"),
        ("contrast", False, True, "contrast is not named"),
        ("contrast", True, False, "contrast is not named, the route wants an agent named"),
        ("kernel", "I70*", True, "kernel is I70f\\3"),
        ("kernel", "3", True, "kernel is I70f\\3"),
        ("calling_ae", "SCAN*", True, "calling_ae is SCANNER"),
        ("called_ae", "OTHER", False, "called_ae is PACS_AI, the route wants OTHER"),
        ("attributes", {"BodyPartExamined": "ch*"}, True, "BodyPartExamined is CHEST"),
        ("attributes", {"KVP": "120"}, False, "KVP is missing, the route wants 120"),
        ("patient_age_min_years", 18, False, "patient's age is missing, the route wants at least 18 years"),
        ("manufacturer", "*", False, "manufacturer is missing, the route wants *"),
        ("model", "*", False, "model is missing, the route wants *"),
        ("station", "*", False, "station is missing, the route wants *"),
        ("institution", "*", False, "institution is missing, the route wants *"),
        ("protocol", "*", False, "protocol is missing, the route wants *"),
        ("view", "PA", False, "view is missing, the route wants PA"),
        ("sex", "F", False, "sex is missing, the route wants F"),
        ("laterality", "L", False, "laterality is missing, the route wants L"),
    ],
)  # fmt: skip
def test_each_condition(key: str, value: object, passed: bool, words: str):
    assert only(When.model_validate({key: value}), series()) == (passed, words)


def test_no_condition_matches_anything():
    assert explain(When(), series()) == ()
    assert matches(When(), series())


def test_every_key_is_checked():
    for key in When.model_fields:
        value = {"attributes": {"KVP": "1"}, "orientation": "axial", "sop_class": "1.2", "contrast": True}.get(
            key, 5 if "min" in key or "max" in key else "X"
        )
        (check,) = explain(When.model_validate({key: value}), series())
        assert check.name == (key if key != "attributes" else "KVP")


def test_laterality_of_the_image_counts_before_that_of_the_series():
    facts = series(ImageLaterality="R", Laterality="L")
    assert only(When(laterality=("R",)), facts) == (True, "laterality is R")


def test_contrast_named():
    assert only(When(contrast=True), series(ContrastBolusAgent="Iomeprol")) == (True, "contrast is Iomeprol")
    words = "contrast is Iomeprol, the route wants none named"
    assert only(When(contrast=False), series(ContrastBolusAgent="Iomeprol")) == (False, words)


def test_frames_of_a_multiframe_instance_are_images():
    assert series(instances=1, NumberOfFrames="300").images == 300
    assert series(instances=4).images == 4
    assert series(instances=2, NumberOfFrames="abc").images == 2
    assert series(instances=2, NumberOfFrames="0").images == 2


@pytest.mark.parametrize(
    ("cosines", "orientation"),
    [
        ("1\\0\\0\\0\\1\\0", "axial"),
        ("1\\0\\0\\0\\0\\-1", "coronal"),
        ("0\\1\\0\\0\\0\\-1", "sagittal"),
        ("-1\\0\\0\\0\\-1\\0", "axial"),
        ("1\\0\\0\\0\\0.906\\-0.423", "axial"),  # a gantry tilted by 25 degrees
        ("1\\0\\0\\0\\0.707\\-0.707", "oblique"),
        ("0\\0\\0\\0\\0\\0", "oblique"),
        ("1\\0\\0", ""),
        ("nan\\0\\0\\0\\1\\0", ""),
        ("", ""),
    ],
)
def test_orientation(cosines: str, orientation: str):
    assert series(ImageOrientationPatient=cosines).orientation == orientation


@pytest.mark.parametrize(
    ("values", "years"),
    [
        ({"PatientAge": "045Y"}, 45),
        ({"PatientAge": "018M"}, 1.5),
        ({"PatientAge": "026W"}, 0.498),
        ({"PatientAge": "003D"}, 0.008),
        ({"PatientAge": "45"}, None),
        ({"PatientAge": "", "PatientBirthDate": "19800615", "StudyDate": "20200614"}, 39),
        ({"PatientAge": "", "PatientBirthDate": "19800615", "StudyDate": "20200615"}, 40),
        ({"PatientBirthDate": "19809915", "StudyDate": "20200615"}, None),
        ({"PatientBirthDate": "20300101", "StudyDate": "20200615"}, None),
        ({}, None),
    ],
)
def test_age(values: dict[str, str], years: float | None):
    found = series(**values).age_years
    assert found == (None if years is None else pytest.approx(years, abs=1e-3))


# -- what never triggers


@pytest.mark.parametrize(
    ("sop_class_uid", "reason"),
    [
        (uid.ComprehensiveSRStorage, "it is a structured report"),
        (uid.Comprehensive3DSRStorage, "it is a structured report"),
        (uid.EnhancedSRStorage, "it is a structured report"),
        (uid.XRayRadiationDoseSRStorage, "it is a structured report"),
        (uid.KeyObjectSelectionDocumentStorage, "it is a key object selection"),
        (uid.SegmentationStorage, "it is a segmentation"),
        ("1.2.840.10008.5.1.4.1.1.66.7", "it is a segmentation"),
        (uid.SurfaceSegmentationStorage, "it is a segmentation"),
        (uid.GrayscaleSoftcopyPresentationStateStorage, "it is a presentation state"),
        (uid.ParametricMapStorage, "it is a parametric map"),
        (uid.RealWorldValueMappingStorage, "it is a real world value mapping"),
        (uid.RTStructureSetStorage, "it is an RT structure set"),
        (uid.RTDoseStorage, "it is an RT dose"),
        (uid.RTPlanStorage, "it is an RT plan or treatment record"),
        (uid.EncapsulatedPDFStorage, "it is an encapsulated document"),
        (uid.RawDataStorage, "it is raw data, a registration or fiducials"),
        (uid.SpatialRegistrationStorage, "it is raw data, a registration or fiducials"),
    ],
)
def test_what_is_no_image_never_triggers(sop_class_uid: str, reason: str):
    facts = series(SOPClassUID=str(sop_class_uid))
    assert why_no_source(facts) == reason
    assert not matches(When(), facts)


@pytest.mark.parametrize(
    "sop_class_uid",
    [
        uid.CTImageStorage, uid.EnhancedCTImageStorage, uid.MRImageStorage, uid.EnhancedMRImageStorage,
        uid.DigitalXRayImageStorageForPresentation, uid.DigitalMammographyXRayImageStorageForPresentation,
        uid.UltrasoundImageStorage, uid.SecondaryCaptureImageStorage, uid.PositronEmissionTomographyImageStorage,
        uid.NuclearMedicineImageStorage, uid.RTImageStorage, uid.OphthalmicPhotography8BitImageStorage, "1.3.12.2.1107",
    ],
)  # fmt: skip
def test_images_may_trigger(sop_class_uid: str):
    assert why_no_source(series(SOPClassUID=str(sop_class_uid))) is None


def test_own_results_and_modalities_of_results_never_trigger():
    assert why_no_source(series(own_result=True)) == "it is this node's own result"
    assert why_no_source(series(Modality="SR", SOPClassUID="1.9.9")) == "its Modality is SR"


# -- several inputs


INPUTS = {
    "t1": When(modality=("MR",), description=("*t1*",)),
    "t1c": When(modality=("MR",), description=("*t1*",), contrast=True),
    "flair": When(modality=("MR",), description=("*flair*",)),
}


def mr(number: int, description: str, instances: int = 20, **values: str) -> SeriesFacts:
    return series(number, instances, Modality="MR", SeriesDescription=description, **values)


def test_each_input_gets_its_series():
    study = [mr(1, "ax T1"), mr(2, "ax T1 post", ContrastBolusAgent="Gd"), mr(3, "ax FLAIR"), series(9)]
    binding = bind(INPUTS, study)
    assert binding.complete
    assert {name: facts.words for name, facts in binding.chosen.items()} == {
        "t1": "series 1",
        "t1c": "series 2",
        "flair": "series 3",
    }
    assert binding.remarks == ("t1: series 1 and series 2 match; series 1 was taken, which has 20 images",)


def test_an_input_leaves_its_first_choice_to_one_that_has_no_other():
    study = [mr(1, "ax T1", 10), mr(2, "ax T1 post", 99, ContrastBolusAgent="Gd"), mr(3, "ax FLAIR")]
    assert {name: facts.words for name, facts in bind(INPUTS, study).chosen.items()} == {
        "t1": "series 1",
        "t1c": "series 2",
        "flair": "series 3",
    }


def test_of_several_that_match_the_largest_then_the_lowest_number_is_taken():
    study = [mr(12, "FLAIR", 30), mr(7, "FLAIR", 30), mr(2, "FLAIR", 5)]
    binding = bind({"flair": INPUTS["flair"]}, study)
    assert binding.chosen["flair"].words == "series 7"
    assert binding.remarks == (
        "flair: series 7, series 12 and series 2 match; series 7 was taken, which has 30 images",
    )


def test_what_is_missing_is_said_with_the_nearest_series():
    binding = bind(INPUTS, [mr(1, "ax T1"), mr(2, "ax T1 post", ContrastBolusAgent="Gd"), series(9)])
    assert not binding.complete
    assert binding.missing == {
        "flair": "flair missing: no series matches; nearest is series 1: description is ax T1, the route wants *flair*"
    }


def test_one_series_does_not_serve_two_inputs():
    binding = bind({"a": When(), "b": When()}, [series(1)])
    assert set(binding.chosen) == {"a"}
    assert binding.missing == {"b": "b missing: series 1 serves another input"}


def test_a_study_of_reports_has_nothing_to_bind():
    report = series(SOPClassUID=str(uid.ComprehensiveSRStorage))
    assert bind({"a": When()}, [report]).missing == {"a": "a missing: the study has no images that could be analysed"}


def test_a_series_without_number_is_named_by_its_uid():
    assert series(SeriesNumber="").words == "series 1.2.1"


# -- what the configuration may say


@pytest.mark.parametrize(
    ("conditions", "fault"),
    [
        ({"body_prat": "CHEST"}, "Extra inputs"),
        ({"description": "/(/"}, "no regular expression"),
        ({"description": ""}, "is empty"),
        ({"sop_class": "CT"}, "no SOP class"),
        ({"orientation": "transverse"}, "axial"),
        ({"min_instances": 0}, "greater than or equal to 1"),
        ({"min_instances": 50, "max_instances": 40}, "nothing can match"),
        ({"min_slice_thickness_mm": -1}, "greater than 0"),
        ({"max_slice_thickness_mm": float("nan")}, "finite"),
        ({"attributes": {"sliceThickness": "1"}}, "no DICOM keyword"),
        ({"patient_age_min_years": 70, "patient_age_max_years": 18}, "nothing can match"),
    ],
)
def test_faults_of_conditions_are_said(conditions: dict[str, object], fault: str):
    with pytest.raises(ValidationError, match=fault):
        When.model_validate(conditions)


def test_keywords_that_the_index_does_not_keep_are_named():
    when = When(attributes={"KVP": ("120",), "PatientComments": ("*",)})
    assert not_indexed(when) == ("PatientComments",)
    assert tag_for_keyword("PatientComments")
