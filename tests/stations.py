"""What tests of the stations share: instances to receive, work to enqueue, a clock to set, and the account they give.

`account` asserts what must hold after every story: no state changed without its journal row, one current content per
SOP Instance UID, counts that agree with the rows, one job per work.
"""

from __future__ import annotations

import hashlib
import io
from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import sqlalchemy as sa
from objects import PLAN, SEG_AND_SR
from pydicom import Dataset, FileMetaDataset, dcmwrite
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from pacs_ai import states
from pacs_ai.dicom.arrival import Arrival
from pacs_ai.dicom.attributes import Header
from pacs_ai.states import JobState, SeriesEvent
from pacs_ai.store import outbox, queue, schema
from pacs_ai.store.clock import now
from pacs_ai.store.enqueue import ROUTINE, Address, Source, Work, enqueue
from pacs_ai.store.filling import NewResult
from pacs_ai.store.index import Index, Outcome
from pacs_ai.store.moves import move
from pacs_ai.store.owners import this_process
from pacs_ai.store.schema import Role
from pacs_ai.store.waiting import Backoff

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from pacs_ai.store.database import Database
    from pacs_ai.store.queue import Claim

ME = this_process("test")
#: An owner on this very boot that is no more: no process has the start time 0.
DEAD = ":".join([*ME.split(":")[:2], "1", "0"])
#: An owner of whom nothing can be known from here.
ELSEWHERE = "infer:another-boot:17:4711"
PACS = Address("pacs", "PACS", "127.0.0.1", 104, PLAN)
ARCHIVE = Address("archive", "ARCHIVE", "127.0.0.1", 105, PLAN)


BACKOFF = Backoff(first_seconds=5, longest_seconds=300, give_up_hours=72)


class Clock:
    """A monotonic clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def forward(self, seconds: float) -> None:
        self.now += seconds


class WallClock:
    """Stands in for `datetime` in `pacs_ai.store.clock`: the wall clock, set wrong by `off`, or stopped."""

    def __init__(self) -> None:
        self.off = timedelta()
        self.stopped_at: datetime | None = None

    def now(self, zone: Any) -> datetime:
        return (self.stopped_at or datetime.now(zone)) + self.off

    def stop(self) -> None:
        """Let no time pass any more, save by `forward`."""
        self.stopped_at = datetime.now(UTC)

    def forward(self, **off: float) -> None:
        self.off += timedelta(**off)


def instance_uid(series: str, number: int) -> str:
    return f"1.2.3.{series}.{number}"


class Sender:
    """Brings instances into the index, as a receive process does; `folder` is where their files lie."""

    def __init__(self, database: Database, folder: Path, owner: str = ME) -> None:
        self.folder = folder
        self.folder.mkdir(exist_ok=True)
        self.index = Index(database, self.folder.joinpath, owner)

    def arrival(
        self,
        series: str = "1",
        number: int = 1,
        *,
        assoc: str = "a1",
        study: str = "7",
        content: int = 0,
        uid: str | None = None,
        transfer_syntax_uid: str = ExplicitVRLittleEndian,
        encapsulated: bytes | None = None,
        calling: str = "MODALITY",
        priority: int = 0,
        **attributes: str,
    ) -> Arrival:
        """Write one instance's file and return what the listener would tell of it."""
        ds = Dataset()
        ds.SOPClassUID = CTImageStorage
        ds.SOPInstanceUID = uid or instance_uid(series, number)
        ds.StudyInstanceUID = f"1.2.9.{study}"
        ds.SeriesInstanceUID = f"1.2.3.{series}"
        ds.SeriesNumber = series
        ds.Modality, ds.PatientID, ds.InstanceNumber = "CT", "P1", str(number)
        for keyword, value in attributes.items():
            setattr(ds, keyword, value)
        ds.Rows, ds.Columns, ds.BitsAllocated, ds.BitsStored, ds.HighBit = 2, 2, 16, 16, 15
        ds.SamplesPerPixel, ds.PixelRepresentation, ds.PhotometricInterpretation = 1, 0, "MONOCHROME2"
        ds.PixelData = np.full((2, 2), content, np.uint16).tobytes() if encapsulated is None else encapsulated
        ds["PixelData"].VR = "OW" if encapsulated is None else "OB"
        ds["PixelData"].is_undefined_length = encapsulated is not None
        ds.file_meta = FileMetaDataset()
        ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = (
            CTImageStorage,
            ds.SOPInstanceUID,
        )
        ds.file_meta.TransferSyntaxUID = transfer_syntax_uid
        written = io.BytesIO()
        dcmwrite(written, ds, enforce_file_format=True)
        sha256 = hashlib.sha256(written.getvalue()).hexdigest()
        (self.folder / sha256).write_bytes(written.getvalue())
        values = {e.keyword: str(e.value) for e in ds if e.keyword != "PixelData"}
        return Arrival(
            header=Header(values),
            sha256=sha256,
            size=len(written.getvalue()),
            transfer_syntax_uid=transfer_syntax_uid,
            calling_ae_title=calling,
            called_ae_title="PACS_AI",
            address="127.0.0.1",
            assoc_id=assoc,
            priority=priority,
            received_at=datetime.now(UTC),
        )

    def send(self, series: str = "1", numbers: Iterable[int] = (1,), **fields: Any) -> list[Outcome]:
        """Record instances in one transaction."""
        return self.index.record([self.arrival(series, number, **fields) for number in numbers])

    def end(self, assoc: str = "a1", *, released: bool = True) -> None:
        """End an association."""
        self.index.association_ended(assoc, released)


@dataclass(frozen=True)
class Stations:
    """Looks into the database, and does what the actors do."""

    database: Database

    def rows(self, table: sa.Table, *conditions: Any) -> Sequence[sa.Row[Any]]:
        """Return the rows of a table in the order of their keys: where that is a number, as they came."""
        with self.database.read() as connection:
            return connection.execute(sa.select(table).where(*conditions).order_by(*table.primary_key)).all()

    def series(self, series: str = "1") -> sa.Row[Any]:
        """Return one series."""
        return self.rows(schema.series, schema.series.c.series_instance_uid == f"1.2.3.{series}")[0]

    def make_due(self) -> None:
        """Let every job be due that waits for its time."""
        with self.database.write() as connection:
            connection.execute(sa.update(schema.job).values(due_at=now()))

    def job(self, job_id: int) -> sa.Row[Any]:
        """Return one job."""
        return self.rows(schema.job, schema.job.c.id == job_id)[0]

    def jobs(self) -> list[JobState]:
        """Return the state of every job, in the order in which they came."""
        return [JobState(row.state) for row in self.rows(schema.job)]

    def deliveries(self) -> list[str]:
        """Return the state of every delivery, in the order in which they came."""
        return [row.state for row in self.rows(schema.delivery)]

    def complete(self, series: str = "1") -> Source:
        """Complete a series as the router does, and return it as a job's source."""
        row = self.series(series)
        with self.database.write() as connection:
            move(
                connection,
                row.id,
                SeriesEvent.QUIET,
                actor=ME,
                reason="quiet",
                completed_at=now(),
                routed_revision=row.revision,
            )
        return Source("image", row.id, row.revision)

    def work(self, *sources: Source, pipeline: str = "ct-lung", route: str = "lungs", **fields: Any) -> Work:
        """Return what a route wants of some sources."""
        row = self.rows(schema.series, schema.series.c.id == sources[0].series_id)[0]
        values: dict[str, Any] = {
            "study_id": row.study_id,
            "pipeline": pipeline,
            "pipeline_version": "1",
            "model_digest": "m",
            "settings_digest": "s",
            "sources": sources,
            "priority": ROUTINE,
            "route": route,
            "destinations": (PACS,),
            "overdue_at": datetime.now(UTC) + timedelta(hours=1),
        }
        return Work(**{**values, **fields})

    def enqueue(self, work: Work) -> tuple[int, bool]:
        """Enqueue in a transaction of its own."""
        with self.database.write() as connection:
            return enqueue(connection, self.database, work, actor=ME)

    def claim(self, owner: str = ME) -> Claim:
        """Claim the next job, which must be there."""
        held = queue.claim(self.database, owner)
        assert held is not None, self.jobs()
        return held

    def finish(self, held: Claim, *kinds: str) -> None:
        """Finish a job with a result of each kind."""
        results = [self.result(held, ordinal, kind) for ordinal, kind in enumerate(kinds or ("SEG", "SR"))]
        self.finish_with(held, results, [one.key for one in SEG_AND_SR])

    def finish_with(self, held: Claim, results: Sequence[NewResult], encoded: Sequence[str]) -> None:
        """Finish a job with results, where these encodings were made."""
        said = {"findings": {"lungs": 2}, "timings": {"inferring": 0.5}, "summary": "2 lungs"}
        queue.finish(self.database, held, results, encoded=encoded, **said)

    def result(self, held: Claim, ordinal: int, kind: str) -> NewResult:
        """Return an encoded object of a job."""
        return NewResult(
            kind=kind,
            encoding=next((one.key for one in SEG_AND_SR if one.label == kind), kind),
            study_instance_uid="1.2.9.7",
            series_instance_uid=f"2.25.{held.job_id}",
            sop_instance_uid=f"2.25.{held.job_id}.{ordinal}",
            sop_class_uid="1.2.840.10008.5.1.4.1.1.66.4",
            transfer_syntax_uid=ExplicitVRLittleEndian,
            sha256=hashlib.sha256(f"{held.job_key}{ordinal}".encode()).hexdigest(),
            size=1000,
        )

    def done_job(self, sender: Sender, series: str = "1", numbers: Iterable[int] = (1, 2)) -> int:
        """Receive a series, have it analysed and return the job."""
        sender.send(series, numbers)
        job_id, _ = self.enqueue(self.work(self.complete(series)))
        self.finish(self.claim())
        return job_id

    def deliver_all(self) -> None:
        """Deliver what waits."""
        with self.database.read() as connection:
            peers = outbox.due_peers(connection)
        for peer in peers:
            held = outbox.claim(self.database, peer, ME)
            assert held is not None
            for parcel in held.parcels:
                outbox.accepted(self.database, held, parcel, 0, "Success")
            outbox.put_back(self.database, held, reached=True, reason="", backoff=BACKOFF)

    # Holding to account

    def account(self) -> None:
        """Assert what must hold after any story."""
        self._journal_tells_every_move()
        self._counts_agree()
        sources = defaultdict(list)
        for row in self.rows(schema.job_source):
            sources[row.job_id].append((row.input, row.series_id, row.revision))
        works = [
            (
                *(row.pipeline, row.pipeline_version, row.model_digest, row.settings_digest, row.generation),
                tuple(sorted(sources[row.id])),
            )
            for row in self.rows(schema.job, schema.job.c.state != JobState.SUPERSEDED)
        ]
        assert len(works) == len(set(works)), "the same work stands in two jobs"

    def _journal_tells_every_move(self) -> None:
        moves = defaultdict(list)
        for entry in self.rows(schema.journal):
            if entry.before != entry.after:
                moves[entry.subject, entry.subject_id].append(entry)
        lives: dict[str, tuple[sa.Table, Any, str]] = {
            "series": (schema.series, states.SERIES, "receiving"),
            "job": (schema.job, states.JOB, "queued"),
            "delivery": (schema.delivery, states.DELIVERY, "waiting"),
        }
        for subject, (table, allowed, first) in lives.items():
            legal = {(str(before), str(event), str(after)) for (before, event), after in allowed.items()}
            for row in self.rows(table):
                state = first
                for entry in moves[subject, str(row.id)]:
                    if entry.event != "enqueued":
                        assert entry.before == state, f"{subject} {row.id} changed its state without a journal row"
                        assert (entry.before, entry.event, entry.after) in legal
                        assert entry.reason, f"{subject} {row.id} moved for no reason"
                        assert entry.actor, f"{subject} {row.id} was moved by nobody"
                    state = entry.after
                assert state == row.state, f"{subject} {row.id} is {row.state}, its journal says {state}"

    def _counts_agree(self) -> None:
        instances = self.rows(schema.instance)
        current = [row.sop_instance_uid for row in instances if row.role == Role.CURRENT]
        assert len(current) == len(set(current))
        assert {row.sop_instance_uid for row in instances} == set(current)
        shares = self.rows(schema.association_series)
        for row in self.rows(schema.series):
            own = [one for one in instances if one.series_id == row.id]
            assert row.instances == sum(one.role == Role.CURRENT for one in own), f"series {row.id}"
            assert all(one.revision <= row.routed_revision + 1 for one in own)
            assert row.arrivals == sum(share.arrivals for share in shares if share.series_id == row.id)
