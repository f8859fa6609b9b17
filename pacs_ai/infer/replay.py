"""Do a finished job again and compare: identical input, model and settings give byte-identical objects on the CPU.

Nothing of the job changes and nothing is sent. What differs is named by its attributes, so that a changed library,
model or device can be told from a fault.
"""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import dataclass
from multiprocessing import Pipe
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydicom import Dataset, config, dcmread

from pacs_ai.errors import UserError
from pacs_ai.infer.child import Bench
from pacs_ai.infer.commission import order_of
from pacs_ai.infer.order import Trouble
from pacs_ai.models.registry import Registry
from pacs_ai.profiles import NOTICES
from pacs_ai.store import queue, views

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pacs_ai.config import Config
    from pacs_ai.store.database import Database
    from pacs_ai.store.files import Files
    from pacs_ai.store.views import ResultView

Verdict = Literal["identical", "different", "not made again", "gone"]


@dataclass(frozen=True)
class Comparison:
    """What became of one object of the job.

    Parameters
    ----------
    verdict
        `not made again`: the configuration no longer asks for it. `gone`: its file is no longer there to compare.
    differences
        Attributes that differ, as "Keyword" or "Sequence > Keyword".
    """

    kind: str
    sop_instance_uid: str
    verdict: Verdict
    differences: tuple[str, ...] = ()


def replay(settings: Config, database: Database, files: Files, job_id: int, device: str) -> tuple[Comparison, ...]:
    """Do a job again and compare each object with the one that was made.

    Parameters
    ----------
    device
        `cpu` for the promise of identical bytes; results state the device, so another one shows there at least.

    Raises
    ------
    UserError
        There is no such job, it has no results, its instances were deleted, or its pipeline is another by now.
    """
    with tempfile.TemporaryDirectory(prefix="pacs-ai-replay-") as scratch:
        with database.read() as connection:
            held = queue.look(connection, job_id)
            made = [one for one in views.results(connection, job_id) if not _is_notice(one)]
            order = order_of(connection, files, settings, held, Path(scratch))
        if not made:
            raise UserError(f"job {job_id} has no results to compare with")
        _check_inputs(job_id, [path for paths in order.inputs.values() for path, _ in paths])
        _check_pipeline(settings, held)
        receiving, sending = Pipe(duplex=False)
        with receiving, sending:
            answer = Bench(settings, device).serve(order, sending)
        if isinstance(answer, Trouble):
            raise UserError(f"job {job_id} cannot be replayed: {answer.words}")
        anew = {file.sop_instance_uid: file.path for file in answer.files}
        return tuple(_compare(one, files.path(one.sha256), anew.get(one.sop_instance_uid)) for one in made)


def _is_notice(result: ResultView) -> bool:
    return result.encoding.partition("/")[0] in NOTICES


def _check_inputs(job_id: int, paths: list[Path]) -> None:
    gone = sum(not path.is_file() for path in paths)
    if gone or not paths:
        raise UserError(f"{gone or 'all'} instances of job {job_id} were deleted by retention; it cannot be replayed")


def _check_pipeline(settings: Config, held: queue.Claim) -> None:
    """Refuse where the pipeline is another by now: that it gives other results would say nothing."""
    registry = Registry.of(settings)
    today = (
        registry.card(held.pipeline).version,
        registry.model_digest(held.pipeline),
        registry.settings_digest(held.pipeline),
    )
    then = (held.pipeline_version, held.model_digest, held.settings_digest)
    for name, before, now in zip(("version", "model", "settings"), then, today, strict=True):
        if before != now:
            raise UserError(
                f"the {name} of pipeline {held.pipeline} changed since job {held.job_id} ran "
                f"({before[:12]} then, {now[:12]} now): other results would say nothing"
            )


def _compare(one: ResultView, old: Path, new: Path | None) -> Comparison:
    if new is None:
        return Comparison(one.kind, one.sop_instance_uid, "not made again")
    if hashlib.sha256(new.read_bytes()).hexdigest() == one.sha256:
        return Comparison(one.kind, one.sop_instance_uid, "identical")
    if not old.is_file():
        return Comparison(one.kind, one.sop_instance_uid, "gone")
    with config.disable_value_validation():
        found = tuple(dict.fromkeys(differences(dcmread(old), dcmread(new))))
    return Comparison(one.kind, one.sop_instance_uid, "different", found or ("encoding of equal values",))


def differences(one: Dataset, other: Dataset, above: str = "") -> Iterator[str]:
    """Yield the names of the attributes that two data sets do not have in common, nested ones with what they lie in."""
    for tag in sorted({*one.keys(), *other.keys()}):
        element = one[tag] if tag in one else other[tag]
        name = above + (element.keyword or str(element.tag))
        if tag not in one or tag not in other:
            yield name
        elif element.VR != "SQ":
            if one[tag].value != other[tag].value:
                yield name
        elif len(one[tag].value) != len(other[tag].value):
            yield name
        else:
            for mine, theirs in zip(one[tag].value, other[tag].value, strict=True):
                yield from differences(mine, theirs, f"{name} > ")
