"""The router: closes series that have gone quiet and enqueues what the routes want of them, in one transaction."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pacs_ai.errors import Transient
from pacs_ai.log import trace
from pacs_ai.models.registry import Registry
from pacs_ai.route.completeness import Bringer, Verdict, Waits, judge
from pacs_ai.route.plan import OPEN, Plan, plans_for
from pacs_ai.route.works import Works
from pacs_ai.states import SeriesEvent
from pacs_ai.store import completion, holds, outbox, queue, retention, unidentified, views
from pacs_ai.store.clock import now
from pacs_ai.store.coming import Coming
from pacs_ai.store.database import Contended
from pacs_ai.store.enqueue import Work, enqueue, is_covered, lock_study
from pacs_ai.store.moves import move
from pacs_ai.store.owners import Watch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from pacs_ai.config import Config
    from pacs_ai.store.completion import OpenSeries
    from pacs_ai.store.database import Connection, Database
    from pacs_ai.store.files import Files
    from pacs_ai.store.views import SeriesView

_log = logging.getLogger(__name__)

_SWEEP_SECONDS = 5.0
_WAITING_SECONDS = 2.0
#: Between two looks at whether instances are still on their way into rows.
_HELD_SECONDS = 0.25
_RETENTION_SECONDS = 3600.0
#: The first look for what retention may delete comes so long after the start.
_SETTLE_SECONDS = 60.0
#: What one route waits for beside one series: series, its revision, route.
_Wait = tuple[int, int, str]


@dataclass
class _Seen:
    """What this router saw of one open series, and when by its own monotonic clock: no wall clock expires anything."""

    arrivals: int
    since: float
    ended: int
    ended_since: float
    shares: dict[str, tuple[int, float]] = field(default_factory=dict)


class Router:
    """Looks at the open series; `step` completes what is due.

    `rest_seconds` says after a step how long nothing will be due unless something new arrives.

    Parameters
    ----------
    clock
        Monotonic seconds.
    registry
        The pipelines; None: those that the configuration names and that are installed.
    """

    def __init__(
        self,
        config: Config,
        database: Database,
        files: Files,
        owner: str,
        clock: Callable[[], float] = time.monotonic,
        registry: Registry | None = None,
    ) -> None:
        self._config = config
        self._database = database
        self._files = files
        self._owner = owner
        self._clock = clock
        self._works = Works(config, registry or Registry.of(config))
        self._seen: dict[int, _Seen] = {}
        self._waits: dict[_Wait, float] = {}
        self._broken: dict[int, int] = {}  # series that the router breaks on, at so many arrivals
        self._watch = Watch(clock)
        self._coming = Coming(database, clock)
        self._held: dict[int, int] = {}  # series that are complete but for what may be coming, at so many arrivals
        self._on_the_way = ""
        self._last = dict.fromkeys(("sweep", "waiting"), -math.inf)
        self._last["retention"] = clock() - _RETENTION_SECONDS + _SETTLE_SECONDS
        self._peer_quiet = {p.ae_title: p.quiet_seconds for p in config.peer if p.quiet_seconds is not None}
        self.rest_seconds = 1.0

    def step(self) -> bool:
        """Complete every series that is due; False where none was.

        Where the database was away, every series has to be quiet anew: what was received meanwhile has no rows yet.
        """
        try:
            return self._step()
        except Contended:
            raise
        except Transient:
            self._seen = {}
            self._coming.doubt()
            raise

    def _step(self) -> bool:
        self._on_the_way = self._coming.look()
        self._keep_house()
        with self._database.read() as connection:
            open_series = completion.open_series(connection)
        self._seen = {series.id: self._observe(series) for series in open_series}
        verdicts = [(series, self._judge(series)) for series in open_series]
        due = [(series, verdict) for series, verdict in verdicts if verdict.complete and not self._is_broken(series)]
        self.rest_seconds = max(0.02, min([1.0, *(v.again_seconds for _, v in verdicts if not v.complete)]))
        if self._on_the_way:
            self._hold(due)
            return False
        for series, verdict in due:
            try:
                self._complete(series, verdict)
            except Transient:
                raise
            except Exception as error:  # noqa: BLE001 - whatever is odd about one series must not stop the line
                self._set_aside(series, error)
        return bool(due)

    def _hold(self, due: Sequence[tuple[OpenSeries, Verdict]]) -> None:
        """Leave series open that would be complete, and say why where people look."""
        self.rest_seconds = min(self.rest_seconds, _HELD_SECONDS)
        held = {series.id: series.arrivals for series, _ in due}
        news = [one for one in due if self._held.get(one[0].id) != one[0].arrivals]
        self._held = held
        if news:
            with self._database.write() as connection:
                for series, verdict in news:
                    completion.set_reason(connection, series.id, f"{verdict.reason}, but {self._on_the_way}")

    def _keep_house(self) -> None:
        if self._is_time("sweep", _SWEEP_SECONDS):
            queue.sweep(self._database, self._watch, self._owner)
            outbox.sweep(self._database, self._watch, self._owner)
        if self._is_time("waiting", _WAITING_SECONDS):
            self._look_at_waiting()
            self._identify()
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
        elif self._files.sweeper.is_due:
            retention.sweep_again(self._database, self._files)

    def _is_time(self, duty: str, every: float) -> bool:
        if self._clock() - self._last[duty] < every:
            return False
        self._last[duty] = self._clock()
        return True

    def _is_broken(self, series: OpenSeries) -> bool:
        return self._broken.get(series.id) == series.arrivals

    def _set_aside(self, series: OpenSeries, error: Exception) -> None:
        """Leave a series that the router breaks on until more of it arrives, and say so where people look."""
        self._broken[series.id] = series.arrivals
        _log.error("series %d cannot be routed: %s", series.id, trace(error))
        words = f"it cannot be routed: unexpected {type(error).__name__}; the log of the router has the traceback"
        with self._database.write() as connection:
            completion.set_reason(connection, series.id, words)

    # -- when is a series complete?

    def _observe(self, series: OpenSeries) -> _Seen:
        at = self._clock()
        seen = self._seen.get(series.id)
        if seen is None:
            seen = _Seen(series.arrivals, at, series.ended, at)
        if seen.arrivals != series.arrivals:
            seen.arrivals, seen.since = series.arrivals, at
        if seen.ended != series.ended:
            seen.ended, seen.ended_since = series.ended, at
        before = seen.shares
        seen.shares = {}
        for share in series.open_shares:
            arrivals, since = before.get(share.assoc_id, (share.arrivals, at))
            seen.shares[share.assoc_id] = (share.arrivals, since if arrivals == share.arrivals else at)
        return seen

    def _judge(self, series: OpenSeries) -> Verdict:
        at, seen, receive = self._clock(), self._seen[series.id], self._config.receive
        ended = Bringer(is_open=False, released=series.released, ended_seconds=at - seen.ended_since)
        still_open = [
            Bringer(is_open=True, released=False, idle_seconds=at - since) for _, since in seen.shares.values()
        ]
        quiet = self._peer_quiet.get(series.calling_ae_title, receive.quiet_seconds)
        waits = Waits(quiet, receive.released_seconds, receive.idle_association_seconds)
        return judge(series.instances, at - seen.since, [*still_open, *[ended] * series.ended], waits)

    # -- what do the routes want of it?

    def _complete(self, series: OpenSeries, verdict: Verdict) -> None:
        with self._database.write() as connection:
            lock_study(connection, series.study_id)
            if not completion.is_unchanged(connection, series):
                return
            study = views.series_of(connection, series.study_id)
            view = next(v for v in study if v.id == series.id)
            plans = plans_for(view, study, self._config.route)
            wanted = [plan for plan in plans if plan.verdict != "no"]
            waits = [f"{plan.route.title}: {plan.words}" for plan in wanted if plan.verdict == "wait"]
            words = "; ".join([verdict.reason, *waits]) if wanted else _nearest(plans)
            move(
                connection,
                series.id,
                SeriesEvent.QUIET if wanted else SeriesEvent.NO_ROUTE,
                actor=self._owner,
                reason=words,
                completed_at=now(),
                routed_revision=view.revision,
            )
            holds.release_decided(connection, series.id, view.revision, actor=self._owner)
            self._follow_routes(connection, series.study_id, series.id)
        _log.info("series %d %s: %s", series.id, "complete" if wanted else "unrouted", words)

    def _follow_routes(self, connection: Connection, study_id: int, completed: int | None = None) -> None:
        """Enqueue what the routes want of a series that was just completed, and of those that waited for more."""
        study = views.series_of(connection, study_id)
        for view in study:
            if view.state in OPEN or not (view.awaiting or view.id == completed):
                continue
            awaiting = False
            for plan in plans_for(view, study, self._config.route):
                if plan.verdict == "run":
                    self._enqueue(connection, self._works.work(plan, ""))
                elif plan.verdict == "wait" and self._has_waited(view, plan, study):
                    self._enqueue(
                        connection, self._works.work(plan, f"{plan.words} (waited {plan.route.wait_seconds:g} s)")
                    )
                else:
                    awaiting |= plan.verdict == "wait"
            if awaiting != view.awaiting:
                completion.set_awaiting(connection, view.id, awaiting)

    def _look_at_waiting(self) -> None:
        """Refuse what waited longer than its route waits; run what has come to be complete by another router's hand."""
        waits: dict[_Wait, float] = {}
        with self._database.read() as connection:
            due = [
                study_id
                for study_id in completion.awaiting_studies(connection)
                if self._is_due(connection, views.series_of(connection, study_id), waits)
            ]
        self._waits = waits
        for study_id in due:
            with self._database.write() as connection:
                lock_study(connection, study_id)
                self._follow_routes(connection, study_id)

    def _is_due(self, connection: Connection, study: Sequence[SeriesView], waits: dict[_Wait, float]) -> bool:
        """Tell whether anything awaited in the study has come, or waited long enough; note in `waits` since when."""
        due = False
        for view, plan in self._awaited(study):
            key = _wait(view, plan)
            waits[key] = self._waits.setdefault(key, self._clock())
            if plan.verdict == "wait":
                due |= self._has_waited(view, plan, study)
            else:
                due |= not is_covered(connection, self._works.work(plan, ""))
        return due

    def _awaited(self, study: Sequence[SeriesView]) -> Iterator[tuple[SeriesView, Plan]]:
        for view in study:
            if view.awaiting and view.state not in OPEN:
                plans = plans_for(view, study, self._config.route)
                yield from ((view, plan) for plan in plans if plan.verdict != "no")

    def _has_waited(self, view: SeriesView, plan: Plan, study: Sequence[SeriesView]) -> bool:
        """Tell whether the route's time is over; what still arrives may be what is waited for."""
        since = self._waits.get(_wait(view, plan))
        return (
            since is not None
            and not self._on_the_way
            and self._clock() - since >= plan.route.wait_seconds
            and not any(other.state in OPEN for other in study)
        )

    # -- the jobs

    def _enqueue(self, connection: Connection, work: Work) -> None:
        if is_covered(connection, work):
            return
        job_id, is_new = enqueue(connection, self._database, work, actor=self._owner)
        if is_new:
            words = f", refused: {work.refusal}" if work.refusal else ""
            _log.info("job %d: %s by route %s%s", job_id, work.pipeline, work.route, words)

    def _identify(self) -> None:
        """Look at jobs that were refused because their pipeline was disabled, and are tried again."""
        with self._database.read() as connection:
            waiting = unidentified.waiting(connection)
        for job_id, pipeline in waiting:
            found = self._works.identity(pipeline)
            if found.fault:
                unidentified.refuse(self._database, job_id, found.fault, actor=self._owner)
            else:
                unidentified.identify(
                    self._database, job_id, found.version, found.model_digest, found.settings_digest, found.card
                )


def _wait(view: SeriesView, plan: Plan) -> _Wait:
    return view.id, view.revision, plan.route.title


def _nearest(plans: Sequence[Plan]) -> str:
    """Return in words why no route wants the series: the route that failed by the fewest conditions."""
    if not plans:
        return "no [[route]] is configured"
    plan = min(plans, key=lambda p: (p.words.count(";"), len(p.words)))
    return f"no route wants it; nearest is {plan.route.title}: {plan.words}"
