"""Stories told in order by one thread: receive, route, infer, deliver, so that the k-th call is the same each time."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

from pacs_ai.store import queue
from pacs_ai.store.owners import Watch, this_process

if TYPE_CHECKING:
    from collections.abc import Callable

    from prove.faults import Shim
    from prove.victim import Control, Node

_LIMIT_SECONDS = 60.0


def _until(step: Callable[[], object], done: Callable[[], bool]) -> None:
    limit = time.monotonic() + _LIMIT_SECONDS
    while not done():
        step()
        if time.monotonic() > limit:
            os._exit(72)
        time.sleep(0.002)


def _states(node: Node, table: str) -> list[str]:
    with node.database_for_looking.read() as connection:
        return [row[0] for row in connection.exec_driver_sql(f"SELECT state FROM {table}")]


def whole(node: Node, control: Control, shim: Shim) -> None:
    """Receive until the harness says so, tell the sender what is kept, then route, infer, deliver and confirm once."""
    control.say(port=node.receiver.port)
    wanted = control.hear()
    router, worker, courier = node.router(), node.worker(), node.courier()
    _until(lambda: None, lambda: wanted is None or node.count("instance") >= wanted["instances"])
    node.say_whether_settled()
    _until(courier.step, lambda: wanted is None or node.count("pledge WHERE ended_at IS NOT NULL") >= wanted["asked"])
    _until(router.step, lambda: bool(_states(node, "job")))
    _until(worker.step, lambda: "done" in _states(node, "job"))
    _until(courier.step, lambda: set(_states(node, "delivery")) == {"confirmed"})
    courier.join(_LIMIT_SECONDS)
    control.say(calls=shim.calls)
    control.hear()


def recovered(node: Node, control: Control, shim: Shim) -> None:
    """Give files and rows to what an earlier process had written ahead, and stop in order."""
    control.say(port=node.receiver.port)
    wanted = control.hear()
    _until(node.say_whether_settled, lambda: wanted is None or node.count("instance") >= wanted["instances"])
    node.receiver.stop(1.0)
    node.close()
    control.say(calls=shim.calls)
    control.hear()


def _freeze_before_the_end(control: Control) -> list[int]:
    """Have the worker stand still between the model's end and the outbox, until the harness says so.

    Returns the jobs for which it has done so.
    """
    from prove import victim

    serve = victim.Bench.send

    def freeze(bench: Any, order: Any) -> None:
        serve(bench, order)
        stood.append(order.job_id)
        control.say(frozen=order.job_id)
        control.hear()

    stood: list[int] = []
    victim.Bench.send = freeze
    return stood


def frozen(node: Node, control: Control, shim: Shim) -> None:
    """Claim a job and do it, but stand still before its results are put into the outbox; then go on."""
    stood = _freeze_before_the_end(control)
    router, worker = node.router(), node.worker()
    control.say(port=node.receiver.port)
    control.hear()
    _until(router.step, lambda: bool(_states(node, "job")))
    _until(worker.step, lambda: bool(stood))
    control.say(ended=True)
    control.hear()


def takeover(node: Node, control: Control, shim: Shim) -> None:
    """Take over the job of a worker that stands still, after a short standstill, and stand still as well."""
    stood = _freeze_before_the_end(control)
    worker = node.worker(2)
    control.say(port=node.receiver.port)
    watch, database, me = Watch(standstill_seconds=0.3), node.database(), this_process("sweep")
    _until(lambda: queue.sweep(database, watch, me), lambda: "queued" in _states(node, "job"))
    _until(worker.step, lambda: bool(stood))
    control.say(ended=True)
    control.hear()


def receiving(node: Node, control: Control, shim: Shim) -> None:
    """Only receive, and do what the harness says with the calls."""
    control.say(port=node.receiver.port)
    while (word := control.hear()) is not None:
        control.say(**shim.obey(word))


def routing(node: Node, control: Control, shim: Shim) -> None:
    """Be the router alone, beside a receive process that dies; step as often as the harness says."""
    router = node.router()
    control.say(port=0)
    while (word := control.hear()) is not None:
        for _ in range(word["looks"]):
            router.step()
            time.sleep(0.005)
        control.say(looked=word["looks"])


STORIES = {
    "whole": whole,
    "recovered": recovered,
    "frozen": frozen,
    "takeover": takeover,
    "receiving": receiving,
    "routing": routing,
}
