"""What routes want of a study's series: run, wait (and for what), or no (and why)."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from pydicom import uid

from pacs_ai.config import Route
from pacs_ai.route.plan import plans_for
from pacs_ai.states import SeriesState
from pacs_ai.store.views import SeriesView

AT = datetime(2026, 1, 1, tzinfo=UTC)


def series(number, state=SeriesState.COMPLETE, *, own_result=False, instances=100, **attributes):
    header = {
        "SOPClassUID": str(uid.MRImageStorage),
        "SeriesInstanceUID": f"1.2.{number}",
        "SeriesNumber": str(number),
        "Modality": "MR",
        **attributes,
    }
    return SeriesView(
        id=number,
        study_id=7,
        study_instance_uid="1.2",
        series_instance_uid=f"1.2.{number}",
        modality="MR",
        header=header,
        state=state,
        revision=1,
        routed_revision=1,
        instances=instances,
        priority=2,
        calling_ae_title="SCANNER",
        called_ae_title="PACS_AI",
        first_received_at=AT,
        last_received_at=AT,
        completed_at=None,
        reason="",
        own_result=own_result,
    )


SINGLE = Route.model_validate({"when": {"modality": "MR"}, "run": "one"})
STUDY = Route.model_validate({"when": {"modality": "MR"}, "run": "one", "wait_for": "study"})
PAIR = Route.model_validate(
    {"inputs": {"t1": {"description": "t1*"}, "flair": {"description": "*flair*"}}, "run": "two"}
)
T1 = series(1, SeriesDescription="T1 mprage")
FLAIR = series(2, SeriesDescription="sag FLAIR")
RECEIVING = SeriesState.RECEIVING


def plan(view, study, route):
    (found,) = plans_for(view, study, [route])
    return found


def inputs(found):
    return {name: view.id for name, view in found.inputs.items()}


def test_a_series_that_meets_every_condition_is_run():
    found = plan(T1, [T1], SINGLE)
    assert (found.verdict, inputs(found), found.words) == ("run", {"image": 1}, "every condition is met")


def test_a_series_that_fails_says_every_condition_that_failed():
    route = Route.model_validate({"when": {"modality": "CT", "min_instances": 200}, "run": "one"})
    found = plan(T1, [T1], route)
    assert found.verdict == "no"
    assert found.words == "modality is MR, the route wants CT; number of images is 100, the route wants at least 200"


@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        ({"SOPClassUID": str(uid.SegmentationStorage)}, "it is a segmentation"),
        ({"SOPClassUID": str(uid.Comprehensive3DSRStorage)}, "it is a structured report"),
        ({"SOPClassUID": str(uid.GrayscaleSoftcopyPresentationStateStorage)}, "it is a presentation state"),
        ({"SOPClassUID": str(uid.KeyObjectSelectionDocumentStorage)}, "it is a key object selection"),
        ({"Modality": "SEG"}, "its Modality is SEG"),
        ({"own_result": True}, "it is this node's own result"),
    ],
)
@pytest.mark.parametrize("route", [SINGLE, PAIR])
def test_results_and_documents_never_trigger_anything(attributes, words, route):
    view = series(3, SeriesDescription="T1 flair", **attributes)
    found = plan(view, [view, T1, FLAIR], route)
    assert (found.verdict, found.words, inputs(found)) == ("no", f"never analysed: {words}", {})


def test_a_route_that_waits_for_the_study_waits_for_what_still_arrives():
    others = [series(2, RECEIVING), series(3, SeriesState.REOPENED), series(4, SeriesState.UNROUTED)]
    found = plan(T1, [T1, *others], STUDY)
    assert (found.verdict, found.words) == ("wait", "waits for 2 other series of the study")
    assert plan(T1, [T1, others[2]], STUDY).verdict == "run"


def test_the_series_itself_counts_as_complete_before_its_row_says_so():
    view = series(1, RECEIVING, SeriesDescription="t1")
    assert plan(view, [view], STUDY).verdict == "run"
    assert inputs(plan(view, [view, FLAIR], PAIR)) == {"t1": 1, "flair": 2}


def test_several_inputs_are_run_when_each_has_its_series():
    found = plan(FLAIR, [T1, FLAIR], PAIR)
    assert (found.verdict, inputs(found), found.words) == ("run", {"t1": 1, "flair": 2}, "every input is there")


def test_several_inputs_wait_for_the_missing_one_in_words():
    found = plan(T1, [T1], PAIR)
    assert (found.verdict, inputs(found)) == ("wait", {"t1": 1})
    assert found.words.startswith("flair missing: no series matches; nearest is series 1: description is T1 mprage")


def test_what_is_still_received_serves_no_input():
    found = plan(T1, [T1, series(2, RECEIVING, SeriesDescription="flair")], PAIR)
    assert found.verdict == "wait"
    conflict = series(2, SeriesState.CONFLICT, SeriesDescription="flair")
    assert plan(T1, [T1, conflict], PAIR).verdict == "wait"


def test_a_series_that_serves_no_input_is_not_wanted():
    found = plan(series(9, SeriesDescription="localizer"), [T1, FLAIR], PAIR)
    assert found.verdict == "no"
    assert found.words.startswith("t1: description is localizer, the route wants t1*; flair: ")


def test_every_route_gets_its_plan_in_the_order_of_the_configuration():
    found = plans_for(T1, [T1], [SINGLE, PAIR])
    assert [(one.route.run, one.verdict) for one in found] == [("one", "run"), ("two", "wait")]
