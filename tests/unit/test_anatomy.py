from __future__ import annotations

import json

import pytest
from pydicom.sr._cid_dict import cid_concepts
from pydicom.sr._concepts_dict import concepts

from pacs_ai.models.anatomy import ANATOMY, LESIONS, find, guess_labels, palette
from pacs_ai.pipeline import LEFT, MORPHOLOGIC_ABNORMALITY, RIGHT, Code

#: SNOMED CT concepts that DICOM's context groups do not list (so pydicom's dictionary has no meaning for them).
BEYOND_DICOM = {
    "Auricular appendage",
    "Deep muscle of back",
    "Gluteus maximus muscle",
    "Gluteus medius muscle",
    "Gluteus minimus muscle",
    "Iliopsoas muscle",
    "Myocardium",
    "Portal vein and splenic vein",
    *(
        f"{n} rib"
        for n in "First Second Third Fourth Fifth Sixth Seventh Eighth Ninth Tenth Eleventh Twelfth".split()  # noqa: SIM905
    ),
}


def dihedral(a: int, b: int) -> int:
    """Multiply in the dihedral group of order 10 (Verhoeff's table)."""
    if a < 5:
        return (a + b) % 5 if b < 5 else 5 + (a + b - 5) % 5
    return 5 + (a - 5 - b) % 5 if b < 5 else (a - b) % 5


def verhoeff(number: str) -> int:
    """Zero for a number whose check digit is right (SNOMED CT identifiers end in one)."""
    first = [1, 5, 7, 6, 2, 8, 3, 0, 9, 4]
    check = 0
    for position, digit in enumerate(reversed(number)):
        value = int(digit)
        for _ in range(position % 8):
            value = first[value]
        check = dihedral(check, value)
    return check


def meanings(scheme: str, value: str) -> set[str]:
    return {codes[value][0] for codes in concepts[scheme].values() if value in codes}


@pytest.mark.parametrize("name", sorted(ANATOMY))
def test_every_code_is_a_snomed_concept_with_that_meaning(name):
    value, meaning = ANATOMY[name]
    assert verhoeff(value) == 0
    assert value[-3:-1] == "00", "partition identifier of a concept"
    if meaning in BEYOND_DICOM:
        assert not meanings("SCT", value)
    else:
        assert meaning in meanings("SCT", value)


def test_the_check_digit_sees_a_wrong_digit():
    assert verhoeff("78961009") == 0
    assert verhoeff("78961008") != 0
    assert verhoeff("79861009") != 0


@pytest.mark.parametrize("code", sorted(set(LESIONS.values()), key=lambda code: code.value))
def test_every_lesion_is_of_cid_7159(code):
    keywords = cid_concepts[7159][code.scheme]
    assert any(concepts[code.scheme][keyword].get(code.value, ("",))[0] == code.meaning for keyword in keywords)


def test_no_code_is_used_twice():
    assert len({value for value, _ in ANATOMY.values()}) == len(ANATOMY)


@pytest.mark.parametrize(
    ("name", "value", "modifier"),
    [
        ("kidney_right", "64033007", RIGHT),
        ("Left adrenal gland", "23451007", LEFT),
        ("left lung upper lobe", "45653009", LEFT),
        ("lung_upper_lobe_left", "45653009", LEFT),
        ("lung_middle_lobe_right", "72481006", None),
        ("heart_atrium_left", "82471001", None),
        ("heart_ventricle_right", "53085002", None),
        ("rib_left_1", "48535007", LEFT),
        ("right rib 12", "43993008", RIGHT),
        ("vertebrae_L5", "49668003", None),
        ("iliac_vena_left", "46027005", LEFT),
        ("IVC", "64131007", None),
        ("Portal and Splenic Veins", "110765007", None),
        ("portal_vein_and_splenic_vein", "110765007", None),
        ("urinary_bladder", "89837001", None),
        ("small_bowel", "30315005", None),
    ],
)
def test_names_are_read_in_any_spelling(name, value, modifier):
    label = find(name)
    assert label is not None
    assert (label.type.value, label.modifier, label.name) == (value, modifier, name)


@pytest.mark.parametrize("name", ["", "category 1", "Left Kideny", "left right kidney", "prostate or uterus", "vein"])
def test_an_unknown_name_is_not_coded_by_likeness(name):
    assert find(name) is None


def test_parts_of_a_tumour():
    label = find("Enhancing tumour")
    assert label is not None
    assert label.category == MORPHOLOGIC_ABNORMALITY
    assert label.type == Code("C113842", "NCIt", "Enhancing Lesion")


def test_all_104_structures_of_the_whole_body_bundle(shared_bundles):
    metadata = json.loads((shared_bundles / "wholeBody_ct_segmentation/configs/metadata.json").read_text())
    labels, missing = guess_labels(metadata)
    assert missing == ()
    assert sorted(labels) == list(range(1, 105))
    assert len({(label.type.value, label.modifier) for label in labels.values()}) == 104
    assert len({label.colour for label in labels.values()}) == 104
    for label in labels.values():
        sides = {"left": LEFT, "right": RIGHT}
        for word, code in sides.items():
            if f"_{word}" in label.name:
                assert label.modifier == code or word in label.type.meaning.lower()


def test_missing_names_are_reported_in_order():
    metadata = {
        "network_data_format": {
            "outputs": {"pred": {"channel_def": {"10": "b thing", "0": "background", "2": "a thing", "1": "liver"}}}
        }
    }
    labels, missing = guess_labels(metadata)
    assert list(labels) == [1]
    assert missing == ("a thing", "b thing")
    assert guess_labels({}) == ({}, ())


def test_colours_are_bytes():
    assert all(0 <= part <= 255 for index in range(200) for part in palette(index))
