"""The one look of `pacs-ai status`: what runs, what waits, what needs a person, and what that person should do."""

from __future__ import annotations

import os
import socket
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from pacs_ai.cli import words
from pacs_ai.states import DeliveryState, JobState, SeriesState

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from datetime import datetime

    from rich.console import Console

    from pacs_ai.cli.session import Session
    from pacs_ai.config import Config
    from pacs_ai.credentials import Worry
    from pacs_ai.store.concerns import Concern
    from pacs_ai.store.database import Connection
    from pacs_ai.store.processes import ProcessView
    from pacs_ai.store.spool import Standing
    from pacs_ai.store.unconfirmed import Unconfirmed
    from pacs_ai.store.views import JobView, SeriesView

KINDS = ("receive", "route", "infer", "deliver")
#: A process of another host that said nothing for so long is taken for dead; those of this host are looked at, and may
#: be amid a long step, those aside that say every few seconds that they live.
_SILENT_SECONDS = 60.0
_HEARD_ALWAYS = ("receive",)
#: A destination that failed so often in a row needs a person; a short interruption mends itself.
_MANY_FAILURES = 3
#: So many of one kind are named one by one.
_NAMED = 5


@dataclass(frozen=True)
class Trouble:
    """What needs a person, and what to do."""

    subject: str
    words: str
    advice: str


@dataclass(frozen=True)
class Destination:
    """How a peer takes results."""

    peer: str
    failures: int
    next_try_at: datetime
    reason: str


@dataclass(frozen=True)
class Disk:
    """Room in the data folder, in bytes and as a share, and the watermark below which nothing is received."""

    free_bytes: int
    free_percent: float
    min_free_gb: float
    min_free_percent: float

    @property
    def is_low(self) -> bool:
        """Whether C-STORE is answered 0xA700."""
        return self.free_bytes < self.min_free_gb * 1e9 or self.free_percent < self.min_free_percent


@dataclass
class Look:
    """All that `status` shows."""

    node: str
    place: str
    counts: Mapping[str, Mapping[str, int]]
    processes: list[ProcessView]
    destinations: list[Destination]
    paused: Mapping[str, datetime]
    broken: Mapping[str, str]
    conflicts: list[SeriesView]
    withheld: list[JobView]
    overdue: list[int]
    late: list[JobView]
    failed: list[JobView]
    disk: Disk | None
    concerns: list[Concern] = field(default_factory=list)
    audit: list[Standing] = field(default_factory=list)
    certificates: list[Worry] = field(default_factory=list)
    aside: tuple[str, str] | None = None
    unconfirmed: Unconfirmed | None = None
    troubles: list[Trouble] = field(default_factory=list)

    def as_table(self) -> dict[str, Any]:
        """Return it for JSON, jobs by number and series by UID."""
        return {
            "healthy": not self.troubles,
            "troubles": self.troubles,
            "node": self.node,
            "configuration": self.place,
            "counts": self.counts,
            "processes": self.processes,
            "destinations": self.destinations,
            "paused": self.paused,
            "broken_pipelines": self.broken,
            "series_in_conflict": [view.series_instance_uid for view in self.conflicts],
            "jobs_withheld": [job.id for job in self.withheld],
            "jobs_overdue": self.overdue,
            "jobs_failed": [job.id for job in self.failed],
            "jobs_of_concern": self.concerns,
            "audit": self.audit,
            "disk": asdict(self.disk) if self.disk else None,
        }


def take(session: Session) -> Look:
    """Look at the node's database and data folder."""
    from pacs_ai import credentials
    from pacs_ai.models.registry import Registry
    from pacs_ai.store import aside

    config = session.config
    with session.reading() as connection:
        look = _read(config, session.place, connection)
    look.certificates = [*credentials.worries(config.tls)]
    look.aside = aside.concern(config)
    look.broken = Registry.of(config).broken
    look.troubles = [*_troubles(config, look)]
    return look


def _read(config: Config, place: str, connection: Connection) -> Look:
    from pacs_ai.audit.auditor import taker_names
    from pacs_ai.store import concerns, processes, spool, unconfirmed, views

    overdue = sorted(views.overdue(connection))
    failed = views.jobs(connection, states=[JobState.FAILED], limit=1000)
    alive = [job_id for job_id in overdue if job_id not in {job.id for job in failed}]
    return Look(
        node=config.node.name,
        place=place,
        counts=views.counts(connection),
        processes=processes.running(connection),
        destinations=[Destination(*row) for row in views.destinations(connection)],
        paused=views.paused(connection),
        broken={},
        conflicts=views.series_in(connection, SeriesState.CONFLICT),
        withheld=views.jobs(connection, states=[JobState.WITHHELD], limit=1000),
        overdue=overdue,
        late=[job for job_id in alive[:_NAMED] for job in views.jobs(connection, job_id=job_id)],
        failed=failed,
        disk=_disk(config),
        concerns=concerns.of_jobs(connection),
        audit=spool.standings(connection, taker_names(config)),
        unconfirmed=unconfirmed.look(connection),
    )


def _disk(config: Config) -> Disk | None:
    try:
        state = os.statvfs(config.store.folder)
    except FileNotFoundError:
        return None
    share = 100 * state.f_bavail / state.f_blocks if state.f_blocks else 0.0
    store = config.store
    return Disk(state.f_bavail * state.f_frsize, share, store.min_free_gb, store.min_free_percent)


# -- what needs a person


def _troubles(config: Config, look: Look) -> Iterator[Trouble]:
    yield from _process_troubles(look)
    if look.disk is None:
        yield Trouble("data folder", f"{config.store.folder} is not there", "mount it, or correct store.folder")
    elif look.disk.is_low:
        yield Trouble(
            "data folder",
            f"{_room(look.disk)}: what peers send is refused (0xA700)",
            "make room, or lower store.min_free_gb and store.min_free_percent",
        )
    if look.aside is not None:
        yield Trouble("data folder", *look.aside)
    for worry in look.certificates:
        yield Trouble("[tls]", worry.words, worry.advice)
    for name, reason in look.broken.items():
        yield Trouble(f"pipeline {name}", f"is broken: {reason}", "see `pacs-ai doctor`")
    yield from _destination_troubles(look)
    if look.unconfirmed is not None:
        yield from _unconfirmed_troubles(config, look.unconfirmed)
    for view in look.conflicts:
        yield Trouble(
            f"series {view.series_instance_uid}",
            f"is in conflict: {view.reason.partition('; decide with')[0]}",
            f"pacs-ai resolve {view.series_instance_uid} --keep first|latest",
        )
    yield from _job_troubles(look)
    for one in look.audit:
        if one.failing_since is not None and words.since(one.failing_since) > _SILENT_SECONDS:
            yield Trouble(
                f"audit {one.taker}",
                f"lacks {words.many(one.waiting, 'event')} since {words.at(one.failing_since)}: {one.problem}",
                "they are kept meanwhile; see pacs-ai doctor",
            )


def _process_troubles(look: Look) -> Iterator[Trouble]:
    missing = [kind for kind in KINDS if not any(process.kind == kind for process in look.processes)]
    if len(missing) == len(KINDS):
        yield Trouble("node", "does not run", "start it: pacs-ai run")
    elif missing:
        yield Trouble("node", f"has no {', '.join(missing)} process", "its log says why; pacs-ai run starts all")
    for process in look.processes:
        silent = words.since(process.seen_at)
        subject, is_here = _process_name(process), process.host == socket.gethostname()
        if silent > _SILENT_SECONDS and (not is_here or process.kind in _HEARD_ALWAYS):
            advice = "look after its disk and its database: it may hang" if is_here else "look after that host"
            yield Trouble(subject, f"was last heard of {words.lasting(silent)} ago", advice)
        elif process.problem:
            what, _, advice = process.problem.rpartition("; ")
            yield Trouble(subject, what, advice)


def _process_name(process: ProcessView) -> str:
    is_here = process.host == socket.gethostname()
    return f"{process.kind} process {process.pid}" if is_here else f"{process.kind} process on {process.host}"


def _destination_troubles(look: Look) -> Iterator[Trouble]:
    for destination in look.destinations:
        if destination.failures >= _MANY_FAILURES:
            yield Trouble(
                f"peer {destination.peer}",
                f"failed {destination.failures} times in a row: {destination.reason}",
                f"tried again at {words.at(destination.next_try_at)}; see pacs-ai echo {destination.peer}",
            )
    held = look.counts["deliveries"].get(DeliveryState.HELD, 0)
    if held:
        yield Trouble(
            words.many(held, "delivery", "deliveries"),
            "held: the peer has the study under another patient",
            "pacs-ai deliveries --state held; then pacs-ai retry --delivery ID, or pacs-ai cancel JOB",
        )
    failed = look.counts["deliveries"].get(DeliveryState.FAILED, 0)
    if failed:
        yield Trouble(
            words.many(failed, "delivery", "deliveries"),
            "failed for good",
            "pacs-ai deliveries --state failed; then pacs-ai retry --delivery ID, or pacs-ai cancel JOB",
        )


def _unconfirmed_troubles(config: Config, found: Unconfirmed) -> Iterator[Trouble]:
    """Yield the peers that confirm nothing, and are to; of one without `commitment` nothing is asked any more."""
    asked = [peer.name for peer in config.peer if peer.commitment]
    missing = found.waiting.keys() - {peer.name for peer in config.peer}
    for name in (name for name in asked if name in found.given_up):
        yield Trouble(
            f"peer {name}",
            f"{_took(*found.given_up[name])}, and was asked for them in vain",
            f"pacs-ai doctor; once it answers, pacs-ai retry --delivery ID; {_to_leave(name)}",
        )
    for name in (name for name in asked if name in found.late):
        yield Trouble(
            f"peer {name}",
            f"{_took(*found.late[name])}, and has not confirmed them within a day",
            f"pacs-ai doctor and the log of deliver say why, and it is asked again by itself; {_to_leave(name)}",
        )
    for name in sorted(missing):
        yield Trouble(
            f"peer {name}",
            f"{_took(*found.waiting[name])}, and cannot be asked whether it keeps them: it is no [[peer]] any more",
            f"put it back under its name, and restart; {_to_leave(name)}",
        )


def _took(count: int, since: datetime) -> str:
    return f"took {words.many(count, 'result')} since {words.at(since)}"


def _to_leave(peer: str) -> str:
    return f"or pacs-ai cancel JOB to leave them so (pacs-ai deliveries --unconfirmed --peer {peer})"


def _job_troubles(look: Look) -> Iterator[Trouble]:
    for job in look.failed[:_NAMED]:
        advice = f"pacs-ai retry {job.id}, or pacs-ai cancel {job.id} to set it aside"
        yield Trouble(f"job {job.id} ({job.pipeline})", f"failed: {job.reason}", advice)
    if len(look.failed) > _NAMED:
        count = look.counts["jobs"].get(JobState.FAILED, 0) - _NAMED
        yield Trouble(words.many(count, "further job"), "failed", "pacs-ai jobs --state failed")
    for concern in look.concerns[:_NAMED]:
        yield Trouble(f"job {concern.job_id} ({concern.pipeline})", concern.words, concern.advice)
    if len(look.concerns) > _NAMED:
        count = len(look.concerns) - _NAMED
        yield Trouble(words.many(count, "further destination"), "lack results or are not told", "pacs-ai status --json")
    for job in look.late:
        yield Trouble(f"job {job.id} ({job.pipeline})", _why_late(job), f"pacs-ai jobs {job.id}")
    further = len(set(look.overdue) - {job.id for job in (*look.late, *look.failed)})
    if further:
        yield Trouble(words.many(further, "further job"), "overdue", "pacs-ai jobs")


def _why_late(job: JobView) -> str:
    if job.state is JobState.DONE:
        return "is overdue: done, but not all of its results were delivered"
    return f"is overdue: {job.state}, {job.reason}"


# -- what people see


def show(look: Look, out: Console) -> None:
    """Print it, what needs a person first."""
    from rich.table import Table
    from rich.text import Text

    verdict = "all is well" if not look.troubles else f"{words.many(len(look.troubles), 'thing')} to look after"
    out.print(Text.assemble((f"{look.node}: ", "bold"), (verdict, "green" if not look.troubles else "bold red")))
    needs = Table.grid(padding=(0, 1))
    for trouble in look.troubles:
        told = Text.assemble((trouble.subject, "bold"), f" {trouble.words}", (f"\n→ {trouble.advice}", "italic"))
        words.rows(needs, [(Text("  !", style="bold red"), told)])
    out.print(needs)
    out.print()
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    words.rows(grid, _lines(look))
    out.print(grid)


def _lines(look: Look) -> Iterator[tuple[str, str]]:
    yield "processes", "\n".join(_process_words(process) for process in look.processes) or "none"
    yield "received", words.many(look.counts["instances"].get("stored", 0), "instance")
    for name, order in (("series", SeriesState), ("jobs", JobState), ("deliveries", DeliveryState)):
        found = look.counts[name]
        yield name, ", ".join(f"{found[state]} {state}" for state in order if found.get(state)) or "none"
    if look.overdue:
        yield "overdue", words.many(len(look.overdue), "job")
    if look.withheld:
        yield "withheld", "; ".join(f"job {job.id}: {job.reason}" for job in look.withheld[:_NAMED])
    for pipeline, moment in look.paused.items():
        yield "paused", f"{pipeline} since {words.at(moment)} (pacs-ai resume {pipeline})"
    yield "peers", "\n".join(_destination_words(one) for one in look.destinations) or "nothing was sent to any yet"
    if look.disk is not None:
        yield "disk", _room(look.disk)
    yield "audit trail", ", ".join(_audit_words(one) for one in look.audit) or "none is kept"
    yield "configured by", look.place


def _process_words(process: ProcessView) -> str:
    where = "" if process.host == socket.gethostname() else f" on {process.host}"
    detail = f" ({process.detail})" if process.detail else ""
    return f"{process.kind}{detail}{where}: process {process.pid}, for {words.lasting(words.since(process.started_at))}"


def _destination_words(one: Destination) -> str:
    if not one.failures:
        return f"{one.peer}: reached"
    reason = f": {one.reason}" if one.failures < _MANY_FAILURES else ""
    times = words.many(one.failures, "failure")
    return f"{one.peer}: {times} in a row, next try {words.at(one.next_try_at)}{reason}"


def _audit_words(one: Standing) -> str:
    return f"{one.taker}: {words.many(one.waiting, 'event')} to come" if one.waiting else f"{one.taker}: has all"


def _room(disk: Disk) -> str:
    mark = f"{disk.min_free_gb:g} GB or {disk.min_free_percent:g} %"
    return f"{words.size(disk.free_bytes)} free ({disk.free_percent:.0f} %); nothing is received below {mark}"
