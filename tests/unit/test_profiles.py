"""Profiles: which objects a destination gets, in which form and order, and what they fall back to."""

from __future__ import annotations

import json

import pytest
from pydicom.uid import AllTransferSyntaxes
from pynetdicom import sop_class

from pacs_ai import config, profiles
from pacs_ai.built_in_profiles import BUILT_IN
from pacs_ai.errors import UserError
from pacs_ai.profiles import FORMS, NOTICES, Kind, Profile, Wanted

EVERY_PLAN = [profiles.plan(profile, 9001) for profile in BUILT_IN.values()]


def refusals(chosen, refused=()):
    """Yield every plan that refusals, in whatever order, can lead to."""
    yield chosen
    for key in profiles.keys(chosen):
        fallen = profiles.fall_back(chosen, key)
        if fallen is not None:
            yield from refusals(fallen)


@pytest.mark.parametrize("name", BUILT_IN)
def test_series_numbers_ascend_in_the_order_of_the_profile(name):
    numbers = [choice.encoding.series_number for choice in profiles.plan(BUILT_IN[name], 4000)]
    assert numbers[0] == 4000
    assert list(dict.fromkeys(numbers)) == sorted(set(numbers))


@pytest.mark.parametrize("name", BUILT_IN)
def test_objects_of_one_series_have_numbers_of_their_own(name):
    encodings = [choice.encoding for choice in profiles.plan(BUILT_IN[name], 9001)]
    assert len({(one.series, one.instance_number) for one in encodings}) == len(encodings)
    for one in encodings:
        for other in encodings:
            if one.series == other.series:
                assert (one.series_number, one.details.modality) == (other.series_number, other.details.modality)


@pytest.mark.parametrize("name", BUILT_IN)
def test_each_object_has_a_series_of_its_own(name):
    """OHIF 3.13 shows one object of a series for each way of showing."""
    encodings = [choice.encoding for choice in profiles.plan(BUILT_IN[name], 9001)]
    assert len({one.series for one in encodings}) == len(encodings)


@pytest.mark.parametrize("name", ["ohif", "slicer", "generic-pacs"])
def test_images_without_a_geometry_get_a_picture_in_place_of_a_segmentation(name):
    chosen = [choice.encoding for choice in profiles.plan(BUILT_IN[name], 9001)]
    assert {one.only for one in chosen if one.kind is Kind.SEGMENTATION} == {"volumes"}
    assert {one.only for one in chosen if one.kind is Kind.OVERLAY} == {"images"}


def test_a_fallback_is_made_of_the_same_inputs():
    for chosen in EVERY_PLAN:
        for choice in chosen:
            if choice.otherwise is not None:
                assert choice.otherwise.encoding.only == choice.encoding.only


@pytest.mark.parametrize("chosen", EVERY_PLAN)
def test_whatever_is_refused_ends_and_was_encoded(chosen):
    made = {one.key for one in profiles.encodings([chosen])}
    for reached in refusals(chosen):
        assert set(profiles.keys(reached)) <= made
        cited = {choice.encoding.cites for choice in reached} - {""}
        assert cited <= set(profiles.keys(reached)), "a report cites a segmentation that the peer does not get"


def test_what_cites_a_refused_segmentation_cites_the_one_in_its_place():
    binary = Wanted(Kind.SEGMENTATION, "binary")
    profile = Profile("new", (Wanted(Kind.SEGMENTATION, "labelmap", otherwise=binary), Wanted(Kind.REPORT)))
    labelmap, report = profiles.plan(profile, 9001)
    assert report.encoding.cites == labelmap.encoding.key
    fallen = profiles.fall_back((labelmap, report), labelmap.encoding.key)
    assert fallen is not None
    assert [choice.encoding.form for choice in fallen] == ["binary", "comprehensive-3d"]
    assert fallen[1].encoding.cites == fallen[0].encoding.key
    assert fallen[1].encoding.key != report.encoding.key, "another report, so another UID"
    assert profiles.fall_back(fallen, fallen[0].encoding.key) is None


def test_a_refusal_of_what_is_not_in_the_plan_changes_nothing():
    assert profiles.fall_back(EVERY_PLAN[0], "another") is None


def test_segmentations_are_encoded_before_what_cites_them():
    for chosen in EVERY_PLAN:
        seen = set()
        for encoding in profiles.encodings([chosen]):
            assert not encoding.cites or encoding.cites in seen
            seen.add(encoding.key)


def test_equal_objects_of_two_destinations_are_encoded_once():
    ohif, slicer = (profiles.plan(BUILT_IN[name], 9001) for name in ("ohif", "slicer"))
    keys = [one.key for one in profiles.encodings([ohif, slicer])]
    assert len(keys) == len(set(keys))
    assert profiles.keys(ohif)[0] == profiles.keys(slicer)[0]


@pytest.mark.parametrize("chosen", EVERY_PLAN)
def test_a_plan_survives_the_database(chosen):
    assert profiles.from_json(json.loads(json.dumps(profiles.to_json(chosen)))) == chosen


@pytest.mark.parametrize("chosen", EVERY_PLAN)
def test_keys_fit_their_column(chosen):
    for encoding in profiles.encodings([chosen]):
        assert len(encoding.key) <= 160
        assert len(encoding.label) <= 32


def test_every_form_names_a_sop_class_and_transfer_syntaxes_that_exist():
    for forms in FORMS.values():
        for form in forms:
            known = {str(value) for name, value in vars(sop_class).items() if not name.startswith("_")}
            assert form.sop_class_uid in {"", *known}
            assert {*form.syntaxes} <= {uid.keyword for uid in AllTransferSyntaxes}


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (
            Wanted(Kind.SEGMENTATION, "vector"),
            "no form 'vector'; there is binary, labelmap, fractional",
        ),
        (Wanted(Kind.SUMMARY, transfer_syntax="RLELossless"), "not written in 'RLELossless'"),
        (Wanted(NOTICES[0]), "is a notice"),
        (Wanted(Kind.REPORT, otherwise=Wanted(Kind.REPORT, "best")), "report has no form 'best'"),
    ],
)
def test_impossible_profiles_are_refused_in_words(wanted, words):
    with pytest.raises(UserError, match=words):
        profiles.plan(Profile("odd", (wanted,)), 1)


PEER = {"name": "pacs", "ae_title": "PACS", "host": "localhost"}


def test_a_file_may_replace_a_built_in_profile():
    table = {"name": "ohif", "objects": [{"kind": "summary"}], "series_number": 77}
    loaded = config.Config.model_validate({"peer": [PEER], "profile": [table]})
    (choice,) = loaded.plan_of(loaded.peer_named("pacs").profile)
    assert (choice.encoding.kind, choice.encoding.series_number) == (Kind.SUMMARY, 77)


@pytest.mark.parametrize(
    ("tables", "words"),
    [
        ({"peer": [{**PEER, "profile": "olif"}]}, r"peer pacs: there is no profile 'olif' \(known: ohif, slicer"),
        ({"profile": [{"name": "p", "objects": []}]}, "at least 1 item"),
        ({"profile": [{"name": "p", "objects": [{"kind": "segmentation", "form": "x"}]}]}, "no form 'x'"),
        ({"profile": [{"name": "p", "objects": [{"kind": "dance"}]}]}, "segmentation"),
        ({"profile": [{"name": "p", "objects": [{"kind": "summary"}]}] * 2}, "p is used twice"),
    ],
)
def test_faults_of_profiles_are_named(tables, words):
    with pytest.raises(ValueError, match=words):
        config.Config.model_validate(tables)
