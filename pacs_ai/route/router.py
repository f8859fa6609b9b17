"""The router: closes series that have gone quiet and enqueues what the routes want of them, in one transaction."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING

from pacs_ai.errors import PacsAiError
from pacs_ai.models.registry import Registry
from pacs_ai.route.completeness import Bringer, Verdict, Waits, judge
from pacs_ai.route.plan import OPEN, Plan, plans_for
from pacs_ai.states import SeriesEvent, SeriesState
from pacs_ai.store import completion, outbox, queue, retention, views
from pacs_ai.store.clock import now
from pacs_ai.store.enqueue import PRIORITY_NAMES, Address, Source, Work, enqueue
from pacs_ai.store.moves import move
from pacs_ai.store.owners import Watch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pacs_ai.config import Config, Route
    from pacs_ai.store.completion import OpenSeries
    from pacs_ai.store.database import Connection, Database
    from pacs_ai.store.files import Files
    from pacs_ai.store.views import SeriesView

_log = logging.getLogger(__name__)

_SWEEP_SECONDS = 5.0
_WAITING_SECONDS = 2.0
_RETENTION_SECONDS = 3600.0
_PRIORITIES = {name: number for number, name in PRIORITY_NAMES.items()}


@dataclass
class _Seen:
    """What this router saw of one open series, and when by its own monotonic clock: no wall clock expires anything."""

    arrivals: int
    since: float
    shares: dict[str, tuple[int, float]] = field(default_factory=dict)
    ended: dict[str, float] = field(default_factory=dict)


class Router:
    """Looks at the open series; `step` completes what is due.

    `rest_seconds` says after a step how long nothing will be due unless something new arrives.
    """

    def __init__(self, config: Config, database: Database, files: Files, owner: str) -> None:
        self._config = config
        self._database = database
        self._files = files
        self._owner = owner
        self._registry = Registry(config.pipeline)
        self._seen: dict[int, _Seen] = {}
        self._pending: dict[tuple[int, str], float] = {}
        self._watch = Watch()
        self._last = dict.fromkeys(("sweep", "waiting", "retention"), 0.0)
        self._last["retention"] = time.monotonic() - _RETENTION_SECONDS + 60.0
        self._peer_quiet = {p.ae_title: p.quiet_seconds for p in config.peer if p.quiet_seconds is not None}
        self.rest_seconds = 1.0

    def step(self) -> bool:
        """Complete every series that is due; False where none was."""
        self._keep_house()
        with self._database.read() as connection:
            open_series = completion.open_series(connection)
        self._seen = {s.id: self._observe(s) for s in open_series}
        verdicts = [(s, self._judge(s)) for s in open_series]
        due = [(s, verdict) for s, verdict in verdicts if verdict.complete]
        self.rest_seconds = max(0.02, min([1.0, *(v.again_seconds for _, v in verdicts if not v.complete)]))
        for series, verdict in due:
            self._complete(series, verdict)
        return bool(due)

    def _keep_house(self) -> None:
        if self._is_time("sweep", _SWEEP_SECONDS):
            queue.sweep(self._database, self._watch, self._owner)
            outbox.sweep(self._database, self._watch, self._owner)
        if self._is_time("waiting", _WAITING_SECONDS):
            self._look_at_waiting()
        if self._is_time("retention", _RETENTION_SECONDS):
            kept = self._config.retention
            count = retention.purge(
                self._database,
                self._files,
                inputs_days=kept.inputs_days,
                unrouted_days=kept.unrouted_days,
                actor=self._owner,
            )
            if count:
                _log.info("retention: %d received instance(s) deleted", count)

    def _is_time(self, duty: str, every: float) -> bool:
        if time.monotonic() - self._last[duty] < every:
            return False
        self._last[duty] = time.monotonic()
        return True

    def _observe(self, series: OpenSeries) -> _Seen:
        at = time.monotonic()
        seen = self._seen.get(series.id)
        if seen is None:
            seen = _Seen(series.arrivals, at)
        elif seen.arrivals != series.arrivals:
            seen.arrivals, seen.since = series.arrivals, at
        for share in series.shares:
            if seen.shares.get(share.assoc_id, (-1, at))[0] != share.arrivals:
                seen.shares[share.assoc_id] = (share.arrivals, at)
            if not share.is_open:
                seen.ended.setdefault(share.assoc_id, at)
        return seen

    def _judge(self, series: OpenSeries) -> Verdict:
        at, seen, receive = time.monotonic(), self._seen[series.id], self._config.receive
        bringers = [
            Bringer(
                is_open=share.is_open,
                released=share.released,
                idle_seconds=at - seen.shares[share.assoc_id][1],
                ended_seconds=at - seen.ended.get(share.assoc_id, at),
            )
            for share in series.shares
        ]
        quiet = self._peer_quiet.get(series.calling_ae_title, receive.quiet_seconds)
        waits = Waits(quiet, receive.released_seconds, receive.idle_association_seconds)
        return judge(series.instances, at - seen.since, bringers, waits)

    def _complete(self, series: OpenSeries, verdict: Verdict) -> None:
        with self._database.write() as connection:
            if not completion.is_unchanged(connection, series):
                return
            study = views.series_of(connection, series.study_id)
            view = next(v for v in study if v.id == series.id)
            plans = plans_for(view, study, self._config.route)
            wanted = [plan for plan in plans if plan.verdict != "no"]
            event = SeriesEvent.QUIET if wanted else SeriesEvent.NO_ROUTE
            words = verdict.reason if wanted else _nearest(plans)
            move(
                connection,
                series.id,
                event,
                actor=self._owner,
                reason=words,
                completed_at=now(),
                routed_revision=view.revision,
            )
            for plan in wanted:
                if plan.verdict == "run":
                    self._enqueue(connection, plan.route, plan.inputs, "")
            self._run_study_routes(connection, series.study_id)
        _log.info("series %d %s: %s", series.id, "complete" if wanted else "unrouted", words)

    def _run_study_routes(self, connection: Connection, study_id: int) -> None:
        """Run what waited for this series: other series of the study whose routes wait for the whole study."""
        study = views.series_of(connection, study_id)
        for view in study:
            if view.state is not SeriesState.COMPLETE:
                continue
            for plan in plans_for(view, study, self._config.route):
                if plan.verdict == "run" and not self._is_covered(connection, plan):
                    self._enqueue(connection, plan.route, plan.inputs, "")

    def _is_covered(self, connection: Connection, plan: Plan) -> bool:
        return completion.is_covered(connection, plan.route.run, plan.route.title, _sources(plan.inputs))

    def _look_at_waiting(self) -> None:
        """Refuse jobs whose further inputs did not come in the route's time; run those whose inputs are there now."""
        with self._database.read() as connection:
            studies = completion.studies_without_job(connection)
        pending: dict[tuple[int, str], float] = {}
        for study_id in studies:
            with self._database.write() as connection:
                study = views.series_of(connection, study_id)
                for plan in self._waiting_plans(study):
                    key = (study_id, plan.route.title)
                    since = pending.setdefault(key, self._pending.get(key, time.monotonic()))
                    if plan.verdict == "run" and not self._is_covered(connection, plan):
                        self._enqueue(connection, plan.route, plan.inputs, "")
                    elif plan.verdict == "wait" and time.monotonic() - since > plan.route.wait_seconds:
                        words = f"{plan.words} (waited {plan.route.wait_seconds:g} s)"
                        self._enqueue(connection, plan.route, plan.inputs, words)
        self._pending = pending

    def _waiting_plans(self, study: Sequence[SeriesView]) -> list[Plan]:
        if any(view.state in OPEN for view in study):
            return []  # what still arrives may be what is waited for
        complete = [view for view in study if view.state is SeriesState.COMPLETE]
        plans = [plan for view in complete for plan in plans_for(view, study, self._config.route)]
        return [plan for plan in plans if plan.verdict != "no" and plan.route.inputs]

    def _enqueue(self, connection: Connection, route: Route, inputs: Mapping[str, SeriesView], refusal: str) -> None:
        try:
            card = self._registry.card(route.run)
            version, digest = card.version, self._registry.model_digest(route.run)
            settings = self._registry.settings_digest(route.run)
            if set(inputs) == {"image"} and len(card.inputs) == 1:
                inputs = dict(zip(card.inputs, inputs.values(), strict=True))
        except PacsAiError as error:
            version = digest = settings = ""
            refusal = refusal or f"pipeline {route.run} is disabled: {error}"
        priority = _PRIORITIES[route.priority] if route.priority else min(v.priority for v in inputs.values())
        peers = [self._config.peer_named(name) for name in route.deliver_to]
        work = Work(
            study_id=next(iter(inputs.values())).study_id,
            pipeline=route.run,
            pipeline_version=version,
            model_digest=digest,
            settings_digest=settings,
            sources=_sources(inputs),
            priority=priority,
            route=route.title,
            destinations=tuple(Address(p.name, p.ae_title, p.host, p.port) for p in peers),
            overdue_at=now() + timedelta(seconds=route.overdue_seconds),
            refusal=refusal,
        )
        job_id, is_new = enqueue(connection, self._database, work, actor=self._owner)
        if is_new:
            _log.info(
                "job %d: %s by route %s%s", job_id, route.run, route.title, f" refused: {refusal}" if refusal else ""
            )


def _sources(inputs: Mapping[str, SeriesView]) -> tuple[Source, ...]:
    return tuple(Source(name, view.id, view.revision) for name, view in sorted(inputs.items()))


def _nearest(plans: Sequence[Plan]) -> str:
    """Return in words why no route wants the series: the route that failed by the fewest conditions."""
    if not plans:
        return "no [[route]] is configured"
    plan = min(plans, key=lambda p: (p.words.count(";"), len(p.words)))
    return f"no route wants it; nearest is {plan.route.title}: {plan.words}"
