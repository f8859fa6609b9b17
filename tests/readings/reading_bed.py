"""One running node for all readings: each has an AE title of its own, so that none fires on another's study."""

from __future__ import annotations

import tempfile
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pydicom
import pytest
from keeping_peer import KeepingPeer
from running_node import RunningNode, peer_table, until

from pacs_ai.deliver import scu
from pacs_ai.dicom.identifiers import derive_uid
from pacs_ai.errors import PipelineFault, Unavailable, UserError
from pacs_ai.models import install as packages
from pacs_ai.models.package import MODEL, ZOO, read
from pacs_ai.models.registry import Registry
from pacs_ai.states import DeliveryState, JobState, SeriesState
from pacs_ai.testing.samples import CONDITIONS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from pydicom import Dataset

    from pacs_ai.store.views import JobView, ResultView

#: Longest time without an end that a reading is given, on a busy machine.
DEADLINE_SECONDS = 280.0
#: What every reading's results are sent as.
PROFILE: Mapping[str, Any] = {
    "name": "readings",
    "objects": [
        {"kind": "segmentation"},
        {"kind": "report"},
        {"kind": "text-report"},
        {"kind": "derived-images"},
    ],
}
_END = {JobState.DONE, JobState.REFUSED, JobState.FAILED, JobState.WITHHELD}


@dataclass(frozen=True)
class Journey:
    """What came of one study.

    Parameters
    ----------
    job
        The job's row, as the console shows it.
    sent
        The files as they were sent, in this order.
    results
        What was encoded, in the order of delivery.
    objects
        The same as received by the PACS.
    """

    job: JobView
    sent: tuple[Path, ...]
    results: tuple[ResultView, ...]
    objects: tuple[Dataset, ...]

    @property
    def notes(self) -> tuple[str, ...]:
        """What is to be told of the input."""
        return tuple(self.job.findings.get("notes", ()))

    def of(self, kind: str) -> list[Dataset]:
        """Return the objects of a kind, as `ResultView.kind` calls it: SEG, SR, text-report, derived-images."""
        return [ds for one, ds in zip(self.results, self.objects, strict=True) if one.kind == kind]

    def one(self, kind: str) -> Dataset:
        """Return the only object of a kind."""
        (ds,) = self.of(kind)
        return ds

    @property
    def text(self) -> str:
        """The text report."""
        return "\n".join(texts(self.one("text-report")))


def texts(ds: Dataset) -> list[str]:
    """Return every TEXT of a report's content tree, in order."""
    found = [str(ds.TextValue)] if "TextValue" in ds else []
    return found + [line for item in ds.get("ContentSequence", ()) for line in texts(item)]


@dataclass
class ReadingBed:
    """The node with the routes of the readings that can be had here."""

    node: RunningNode
    peer: KeepingPeer
    available: tuple[str, ...]
    reasons: Mapping[str, str]
    _done: dict[tuple[str, frozenset[str]], Journey] = field(default_factory=dict)
    _had: dict[str, str] = field(default_factory=dict)

    def journey(
        self, reading: str, files: Path | Iterable[Path], state: JobState = JobState.DONE, seconds: float = 0
    ) -> Journey:
        """Send a study to the reading, and return what came of it; the same study once more is not sent again.

        Parameters
        ----------
        reading
            Name of the package or pipeline; the test's module names it in ``READINGS``.
        files
            DICOM files, or a folder of them.
        state
            How the job has to end.
        seconds
            Longest time for all of it; 0: `DEADLINE_SECONDS`.
        """
        if reading in self.reasons:
            pytest.skip(f"{reading.upper()} MISSING: {self.reasons[reading]}, so it was not tested here")
        assert reading in self.available, f"name {reading} in READINGS of the test's module"
        given = sorted(files.rglob("*.dcm")) if isinstance(files, Path) and files.is_dir() else _listed(files)
        uids = {path: _identity(path) for path in given}
        key = (reading, frozenset(uids.values()))
        if key not in self._done:
            self._done[key] = self._travel(reading, self._own(reading, given, uids), seconds or DEADLINE_SECONDS)
        found = self._done[key]
        assert found.job.state is state, f"{found.job.state}: {found.job.reason}"
        return found

    def _own(self, reading: str, given: Sequence[Path], uids: Mapping[Path, str]) -> tuple[Path, ...]:
        """Return the files, or copies with UIDs of their own where another reading has had them."""
        owners = {self._had.setdefault(uid, reading) for uid in uids.values()}
        if owners == {reading}:
            return tuple(given)
        folder = Path(tempfile.mkdtemp(prefix=f"{reading}-", dir=self.node.folder.parent))
        return tuple(_renamed(path, folder / f"{number:05d}.dcm", reading) for number, path in enumerate(given))

    def _travel(self, reading: str, sent: tuple[Path, ...], seconds: float) -> Journey:
        before = {job.id for job in self.node.jobs()}
        instances = scu.scan(sent).instances
        remote = scu.Remote(ae_title(reading), "127.0.0.1", self.node.port, "SENDER")
        outcomes = scu.send_files(remote, instances)
        refused = [one.words for one in outcomes if not one.stored]
        assert refused == [], f"{refused[0]}\n{self.node.log()}"
        self.node.acked |= {one.sop_instance_uid for one in outcomes}
        job = until(
            lambda: self._ended(reading, before, sent),
            seconds,
            f"the end of {reading}",
            lambda: self._why(reading),
            every=0.25,
        )
        until(lambda: self._delivered(job), 60.0, f"delivery of {reading}", lambda: self._why(reading))
        sent_uids = {one.sop_instance_uid for one in self.node.deliveries(job.id) if one.state is DeliveryState.SENT}
        results = tuple(one for one in self.node.results(job.id) if one.sop_instance_uid in sent_uids)
        objects = tuple(pydicom.dcmread(self.peer.path(one.sop_instance_uid)) for one in results)
        return Journey(job, sent, results, objects)

    def _ended(self, reading: str, before: set[int], sent: Sequence[Path]) -> JobView | None:
        self.node.answers()
        jobs = [job for job in self.node.jobs() if job.id not in before and job.pipeline == reading]
        if jobs:
            return jobs[-1] if jobs[-1].state in _END else None
        series = self.node.series(str(pydicom.dcmread(sent[0], stop_before_pixels=True).SeriesInstanceUID))
        assert series is None or series.state is not SeriesState.UNROUTED, f"{reading}: {series.reason}"
        return None

    def _delivered(self, job: JobView) -> bool:
        deliveries = self.node.deliveries(job.id)
        failed = [one.reason for one in deliveries if one.state is DeliveryState.FAILED]
        assert failed == [], failed
        ended = {DeliveryState.SENT, DeliveryState.CANCELLED}
        return bool(deliveries) and all(one.state in ended for one in deliveries)

    def _why(self, reading: str) -> str:
        return f"{reading}\n{self.node.summary()}\n{self.node.log()}"


@contextmanager
def running(
    folder: Path, readings: Iterable[str], models: Path, reasons: Mapping[str, str] | None = None
) -> Iterator[ReadingBed]:
    """Start a small PACS and a node with a route for each reading; at the end nothing may be unaccounted for.

    Parameters
    ----------
    folder
        For what the PACS gets, and for the node.
    readings
        Those that are installed.
    models
        Folder of installed packages.
    reasons
        Reading -> why it cannot be had here.
    """
    available = tuple(readings)
    peer = KeepingPeer(folder / "pacs")
    peer.folder.mkdir()
    peer.start()
    node = RunningNode(
        folder / "node",
        peer=[peer_table("pacs", peer.ae_title, peer.port, profile=PROFILE["name"])],
        profile=[PROFILE],
        route=routes(available, Registry(models=models), "pacs"),
        models={"folder": models},
        receive={"ae_titles": [RunningNode.ae_title, *(ae_title(name) for name in available)]},
    )
    try:
        yield ReadingBed(node.start(), peer, available, reasons or {})
        node.account()
    finally:
        node.close()
        peer.stop()


def _listed(files: Path | Iterable[Path]) -> list[Path]:
    return [files] if isinstance(files, Path) else list(files)


def _identity(path: Path) -> str:
    return str(pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["SOPInstanceUID"]).SOPInstanceUID)


def _renamed(path: Path, copy: Path, reading: str) -> Path:
    """Write a copy whose study, series, instance and frame of reference are the reading's own."""
    ds = pydicom.dcmread(path)
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID"):
        if keyword in ds:
            setattr(ds, keyword, derive_uid("reading's own", reading, ds[keyword].value))
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    ds.save_as(copy, enforce_file_format=True)
    return copy


def ae_title(reading: str) -> str:
    """Return the AE title by which a reading is called."""
    return reading.upper()[:16].rstrip("-")


def routes(readings: Iterable[str], registry: Registry, peer: str) -> list[dict[str, Any]]:
    """Return a route for each reading: everything that its AE title is called with."""
    found = []
    for reading in readings:
        inputs, further = registry.card(reading).inputs, CONDITIONS.get(reading, {})
        called: dict[str, Any] = {"called_ae": ae_title(reading)}
        conditions: dict[str, Any]
        if len(inputs) == 1:
            conditions = {"when": {**called, **further.get(next(iter(inputs)), {})}}
        else:
            each = {name: {**called, "modality": list(wanted.modality)} for name, wanted in inputs.items()}
            conditions = {"inputs": {name: {**when, **further.get(name, {})} for name, when in each.items()}}
        found.append(
            {**conditions, "run": reading, "deliver_to": [peer], "report_not_analysed": True, "wait_seconds": 3.0}
        )
    return found


def install(readings: Iterable[str], published: Path, models: Path) -> dict[str, str]:
    """Install what is not complete in the zoo into `models`, from `published` or as the recipe says.

    Returns
    -------
    dict
        Reading -> why it cannot be had.
    """
    reasons: dict[str, str] = {}
    for reading in readings:
        if (ZOO / reading).is_dir() and (reason := install_one(reading, published, models)):
            reasons[reading] = reason
    return reasons


def install_one(reading: str, published: Path, models: Path) -> str:
    """Install one, in place of what an older recipe made; return why that is not possible, else ""."""
    wanted, folder = read(ZOO / reading), models / reading
    stale = folder.is_dir() and (not (folder / MODEL).is_file() or read(folder).sha256 != wanted.sha256)
    reason = ""
    for brought in (published if published.is_dir() else None, None):
        try:
            packages.install(reading, models, lambda _what, _done, _whole: None, brought=brought, force=stale)
        except (UserError, PipelineFault, Unavailable) as error:
            reason = str(error)
        else:
            return ""
    return reason
