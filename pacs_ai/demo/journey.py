"""One study's journey through the demo's node, followed until nothing more happens to it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from pacs_ai.deliver import scu
from pacs_ai.demo.node import Snapshot
from pacs_ai.errors import Unavailable
from pacs_ai.states import JobState

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pacs_ai.deliver.scu import Outcome, Outgoing
    from pacs_ai.demo.board import Board
    from pacs_ai.demo.node import DemoNode
    from pacs_ai.store.views import JobView

STEPS = ("received", "complete", "inferring", "encoding", "delivered")
STALL_SECONDS = 300.0
_LOOK_SECONDS = 0.1
_IN_WORK = {"loading": 0, "inferring": 1, "encoding": 2}


def wait_for_node(node: DemoNode, board: Board, seconds: float = STALL_SECONDS) -> None:
    """Return once the node answers a C-ECHO; `NodeFailed` where it does not."""
    deadline = time.monotonic() + seconds
    while not node.answers():
        if time.monotonic() > deadline:
            raise node.failure(f"the node did not answer a C-ECHO within {seconds:g} s")
        board.tick()
        time.sleep(_LOOK_SECONDS)


def send(node: DemoNode, instances: Sequence[Outgoing], board: Board) -> int:
    """Send the instances to the node by C-STORE and return how many it stored.

    Raises
    ------
    NodeFailed
        The node stored none.
    """

    def progress(done: int, _total: int, _outcome: Outcome) -> None:
        board.advance("received", done)

    board.begin("received", len(instances))
    begun = time.monotonic()
    outcomes = scu.send_files(node.remote, instances, progress)
    refused = [outcome for outcome in outcomes if not outcome.stored]
    stored = len(outcomes) - len(refused)
    if not stored:
        board.fail("received", f"0/{len(outcomes)}: {refused[0].words}")
        raise node.failure(f"the node stored none of {len(outcomes)} instances: {refused[0].words}")
    size = sum(instance.path.stat().st_size for instance in instances) / 1e6
    words = f"{stored}/{len(outcomes)} instances, {size / max(1e-3, time.monotonic() - begun):.0f} MB/s, on the disk"
    if refused:
        words += f"; {len(refused)} not: {refused[0].words}"
    board.end("received", words)
    return stored


def follow(node: DemoNode, board: Board, stored: int, stall_seconds: float = STALL_SECONDS) -> Snapshot:
    """Show what happens to what was sent, and return the end of it.

    Parameters
    ----------
    node
        The node.
    board
        Has the rows `STEPS`.
    stored
        Instances that the node answered Success for.
    stall_seconds
        Longest time without any change.

    Raises
    ------
    NodeFailed
        The node ended, or nothing changed for so long.
    """
    seen = Snapshot()
    changed = time.monotonic()
    while True:
        node.check()
        now = _look(node, seen)
        if now != seen:
            seen, changed = now, time.monotonic()
            show(now, board)
        if now.settled and now.instances >= stored:
            return now
        if time.monotonic() - changed > stall_seconds:
            raise node.failure(f"nothing happened for {stall_seconds:g} s while {_doing(now)}")
        board.tick()
        time.sleep(_LOOK_SECONDS)


def _look(node: DemoNode, before: Snapshot) -> Snapshot:
    try:
        return node.look()
    except Unavailable:  # a commit is in progress; the next look is in a tenth of a second
        return before


def _doing(now: Snapshot) -> str:
    if len(now.complete) < len(now.series):
        return "waiting for a series to be complete"
    running = [job for job in now.jobs if job.state in {JobState.QUEUED, JobState.RUNNING}]
    if running:
        return f"job {running[0].id} was {running[0].state} ({running[0].reason or 'no reason given'})"
    return "results were on their way: " + (now.deliveries[0].reason if now.deliveries else "none is queued")


def show(now: Snapshot, board: Board) -> None:
    """Bring the rows up to what the node knows."""
    if not now.series:
        return
    _show_complete(now, board)
    if len(now.complete) < len(now.series) or not now.jobs:
        return
    stages = [_stage(job) for job in now.jobs]
    if max(stages) >= _IN_WORK["loading"]:
        board.begin("inferring", words="reading the series" if max(stages) == 0 else "")
    if _IN_WORK["encoding"] in stages:
        board.begin("encoding")
    if min(stages) < len(_IN_WORK):
        return
    if all(job.state is not JobState.DONE for job in now.jobs):
        board.fail("inferring", f"job {now.jobs[0].state}")
        return
    for title, keys in (("inferring", ("loading", "inferring")), ("encoding", ("encoding",))):
        seconds = sum(job.timings.get(key, 0.0) for job in now.jobs for key in keys)
        board.end(title, _timed(now.jobs, keys), seconds)
    _show_delivered(now, board)


def _show_complete(now: Snapshot, board: Board) -> None:
    board.begin("complete", len(now.series), "waiting for more")
    board.advance("complete", len(now.complete))
    if len(now.complete) < len(now.series):
        return
    waits = [(one.completed_at - one.last_received_at).total_seconds() for one in now.series if one.completed_at]
    reasons = list(dict.fromkeys(one.reason for one in now.series if one.reason))
    more = f" (and {len(reasons) - 1} more reasons)" if len(reasons) > 1 else ""
    board.end("complete", (reasons[0] if reasons else "") + more, max(waits, default=None))


def _show_delivered(now: Snapshot, board: Board) -> None:
    board.begin("delivered", len(now.deliveries))
    board.advance("delivered", now.sent)
    if now.sent < len(now.deliveries) or not now.deliveries:
        return
    ends = {job.id: job.finished_at for job in now.jobs}
    waits = [(one.sent_at, ends[one.job_id]) for one in now.deliveries]
    seconds = max(((sent - end).total_seconds() for sent, end in waits if sent and end), default=None)
    kinds = ", ".join(one.kind for one in sorted(now.deliveries, key=lambda one: one.id)[:4])
    board.end("delivered", f"{kinds} to the demo PACS", seconds)


def _stage(job: JobView) -> int:
    """Return how far a job is: -1 queued, 0 to 2 in work, 3 final."""
    if job.state is JobState.QUEUED:
        return -1
    return _IN_WORK.get(job.reason, 0) if job.state is JobState.RUNNING else len(_IN_WORK)


def _timed(jobs: Sequence[JobView], keys: tuple[str, ...]) -> str:
    if len(keys) < 2:
        return ""
    sums = [(key, sum(job.timings.get(key, 0.0) for job in jobs)) for key in keys]
    return ", ".join(f"{key} {seconds:.2f} s" for key, seconds in sums if seconds)
