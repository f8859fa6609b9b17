"""What the routes want of a study's series: pure, for the router and for `pacs-ai explain`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pacs_ai.dicom.attributes import Header
from pacs_ai.route.rules import Check, SeriesFacts, bind, explain, matches, why_no_source
from pacs_ai.states import SeriesState

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pacs_ai.config import Route
    from pacs_ai.store.views import SeriesView

OPEN = frozenset({SeriesState.RECEIVING, SeriesState.REOPENED})


@dataclass(frozen=True)
class Plan:
    """What one route wants.

    Parameters
    ----------
    verdict
        ``run``: the inputs are there. ``wait``: they may still come. ``no``: the route does not want the series.
    inputs
        Named input -> series, as far as known.
    words
        Why, or what is waited for.
    """

    route: Route
    verdict: Literal["run", "wait", "no"]
    inputs: Mapping[str, SeriesView]
    words: str


def facts_of(view: SeriesView) -> SeriesFacts:
    """Return what the rules may look at."""
    return SeriesFacts(
        header=Header(view.header),
        instances=view.instances,
        calling_ae_title=view.calling_ae_title,
        called_ae_title=view.called_ae_title,
        own_result=view.own_result,
    )


def plans_for(view: SeriesView, study: Sequence[SeriesView], routes: Sequence[Route]) -> list[Plan]:
    """Return what each route wants of a complete series; `study` holds every series of its study, itself too."""
    reason = why_no_source(facts_of(view))
    if reason is not None:
        return [Plan(route, "no", {}, f"never analysed: {reason}") for route in routes]
    return [_single(route, view, study) if route.when else _several(route, view, study) for route in routes]


def _single(route: Route, view: SeriesView, study: Sequence[SeriesView]) -> Plan:
    assert route.when is not None
    failed = [check.words for check in explain(route.when, facts_of(view)) if not check.passed]
    if failed:
        return Plan(route, "no", {}, "; ".join(failed))
    if route.wait_for == "study" and (others := _open_others(view, study)):
        return Plan(route, "wait", {"image": view}, f"waits for {others} other series of the study")
    return Plan(route, "run", {"image": view}, "every condition is met")


def _several(route: Route, view: SeriesView, study: Sequence[SeriesView]) -> Plan:
    wanted = [name for name, when in route.inputs.items() if matches(when, facts_of(view))]
    if not wanted:
        checks = {name: explain(when, facts_of(view)) for name, when in route.inputs.items()}
        return Plan(route, "no", {}, "; ".join(_failed(name, found) for name, found in checks.items()))
    ready = [other for other in study if other.state is SeriesState.COMPLETE or other.id == view.id]
    by_uid = {other.series_instance_uid: other for other in ready}
    binding = bind(route.inputs, [facts_of(other) for other in ready])
    inputs = {name: by_uid[facts.series_instance_uid] for name, facts in binding.chosen.items()}
    if not binding.complete:
        return Plan(route, "wait", inputs, "; ".join(binding.missing.values()))
    if route.wait_for == "study" and (others := _open_others(view, study)):
        return Plan(route, "wait", inputs, f"waits for {others} other series of the study")
    return Plan(route, "run", inputs, "; ".join(("every input is there", *binding.remarks)))


def _failed(name: str, checks: Sequence[Check]) -> str:
    return f"{name}: " + ", ".join(check.words for check in checks if not check.passed)


def _open_others(view: SeriesView, study: Sequence[SeriesView]) -> int:
    return sum(other.state in OPEN and other.id != view.id for other in study)
