"""Flat values: every field is found by its name alone, the same in every report, whatever made it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from objects import only
from pydicom.uid import BasicTextSRStorage, EnhancedSRStorage
from readback import dciodvfy_errors
from report_material import EVERYTHING_CARD, PNEUMOTHORAX, everything, everything_case, mammogram_case
from test_encode_text_report import dcmtk

from pacs_ai.encode.reports.values import PRIVATE_SCHEME, encode_values
from pacs_ai.pipeline import Findings, Measurement
from pacs_ai.profiles import Kind

ENHANCED, BASIC_TEXT = only(Kind.VALUES, "enhanced"), only(Kind.VALUES, "basic-text")


def write(case, encoding=ENHANCED):
    (one,) = encode_values(case, encoding, None)
    return one


def fields(ds):
    """Return each private concept -> its item."""
    named = [
        (item.ConceptNameCodeSequence[0], item)
        for item in ds.ContentSequence
        if item.ConceptNameCodeSequence[0].CodingSchemeDesignator == PRIVATE_SCHEME
    ]
    return {name.CodeMeaning: item for name, item in named}


def shown(item):
    if item.ValueType == "NUM":
        return float(item.MeasuredValueSequence[0].NumericValue)
    return item.TextValue if item.ValueType == "TEXT" else item.ConceptCodeSequence[0].CodeMeaning


def codes(ds):
    return {name: item.ConceptNameCodeSequence[0].CodeValue for name, item in fields(ds).items()}


def test_the_enhanced_form_has_numbers_and_codes():
    ds = write(everything_case()).dataset
    assert ds.SOPClassUID == EnhancedSRStorage
    told = {name: shown(item) for name, item in fields(ds).items()}
    assert told["Right lung: Finding"] == "Present"
    assert told["Left kidney: Finding"] == "Absent"
    assert told["Right lung: Volume"] == 2851
    assert told["Left lung: Attenuation Coefficient"] == -852.7
    assert told["Nodule: Number of findings"] == 3
    assert told["Nodule 1: Long Axis"] == 52.68
    assert told["Nodule 1: Mean Attenuation Coefficient"] == 31.5
    assert told["Nodule 1: Malignancy"] == "Suspected"
    assert told["Nodule 1: Malignancy: Certainty of Finding"] == 63
    assert told["Emphysema index"] == 0
    assert told["Pneumothorax"] == "Present"
    assert told["Pneumothorax: Certainty of Finding"] == 91


def test_the_basic_text_form_has_the_same_names_and_texts():
    enhanced, basic = write(everything_case()).dataset, write(everything_case(), BASIC_TEXT).dataset
    assert basic.SOPClassUID == BasicTextSRStorage
    assert codes(basic) == codes(enhanced)
    told = {name: shown(item) for name, item in fields(basic).items()}
    assert told["Right lung: Volume"] == "2851 mL"
    assert told["Nodule 2: Certainty of Finding"] == "50 %"
    assert told["Left kidney: Finding"] == "Absent"
    assert told["Nodule: Number of findings"] == "3"


def test_the_tree_is_flat_and_every_name_is_unique():
    for case in (everything_case(), mammogram_case()):
        ds = write(case).dataset
        assert not [item for item in ds.ContentSequence if item.ValueType == "CONTAINER"]
        names = [
            item.ConceptNameCodeSequence[0].CodeValue
            for item in ds.ContentSequence
            if item.ConceptNameCodeSequence[0].CodingSchemeDesignator == PRIVATE_SCHEME
        ]
        assert len(set(names)) == len(names)
        assert max(map(len, names)) <= 16


def test_a_field_keeps_its_code_whatever_the_value_and_the_version():
    other = replace(
        everything(),
        measurements=tuple(replace(one, value=one.value * 2 + 1) for one in everything().measurements),
        detections=everything().detections[:1],
    )
    before, after = codes(write(everything_case()).dataset), codes(write(everything_case(other, generation=2)).dataset)
    assert {name: before[name] for name in after} == after
    nothing = codes(write(everything_case(Findings())).dataset)
    assert nothing["Right lung: Finding"] == before["Right lung: Finding"]
    assert before["Right lung: Volume"] == "V42FA7A61CF63", (
        "templates have been made with this code: it must not change"
    )


def test_the_meaning_in_the_terms_of_the_standard_stands_below_the_name():
    volume = fields(write(everything_case()).dataset)["Left lung: Volume"]
    equivalent, site = volume.ContentSequence
    assert equivalent.ConceptNameCodeSequence[0].CodeValue == "121050"
    assert equivalent.ConceptCodeSequence[0].CodeValue == "118565006"
    assert site.ConceptNameCodeSequence[0].CodeValue == "363698007"
    assert site.ContentSequence[0].ConceptCodeSequence[0].CodeMeaning == "Left"
    assert volume.MeasuredValueSequence[0].FloatingPointValue == pytest.approx(2065.9609756097575, abs=1e-12)


def test_a_value_that_comes_twice_is_counted():
    score = everything().measurements[-1]
    case = everything_case(Findings(measurements=(score, replace(score, value=7.0))))
    told = {name: shown(item) for name, item in fields(write(case).dataset).items()}
    assert (told["Emphysema index"], told["Emphysema index (2)"]) == (0, 7)


def test_labels_with_values_only_are_neither_present_nor_absent():
    value = Measurement(PNEUMOTHORAX, 3.0, everything().measurements[-1].unit, "Left kidney")
    told = fields(write(everything_case(Findings(measurements=(value,)))).dataset)
    assert "Left kidney: Finding" not in told
    assert "Left kidney: Pneumothorax" in told
    assert "Right kidney: Finding" in told


def test_the_disclaimer_and_the_private_scheme_are_stated():
    ds = write(everything_case()).dataset
    first = next(item for item in ds.ContentSequence if item.RelationshipType == "CONTAINS")
    assert first.TextValue.startswith("For research only, not for clinical use.")
    assert ds.CodingSchemeIdentificationSequence[0].CodingSchemeDesignator == PRIVATE_SCHEME
    assert ds.ConceptNameCodeSequence[0].CodeValue == "18748-4"
    assert EVERYTHING_CARD.name in str(ds)


@pytest.mark.parametrize("encoding", [ENHANCED, BASIC_TEXT], ids=lambda one: one.form)
@pytest.mark.parametrize("case", [everything_case(), mammogram_case(), everything_case(Findings())])
def test_validators_agree(case, encoding, tmp_path):
    path = tmp_path / "sr.dcm"
    write(case, encoding).write(path)
    assert not dciodvfy_errors(path)
    for tool in ("dsrdump", "dsr2html"):
        assert not dcmtk(tool, path).stderr
