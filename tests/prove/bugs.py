"""Known-wrong variants of the node: each is a fault that somebody could make, and a harness that must find it.

They are patched into the process that is to be killed, by name; where a name is gone, the patch breaks loudly. What is
about the disk wraps the calls of `os`, whatever part of the node makes them.
"""

from __future__ import annotations

import os
import stat
import threading
import time
import uuid
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from prove import wrong_delivery

if TYPE_CHECKING:
    from collections.abc import Callable

_LATE_SECONDS = 0.05


@dataclass(frozen=True)
class Bug:
    """A known-wrong variant.

    Parameters
    ----------
    apply
        Makes this process be it.
    words
        What is wrong.
    harness
        The one that must find it: a key of `prove.suite.FINDERS`.
    shows
        By what it must be found, a regular expression: a variant that merely broke proves nothing.
    """

    apply: Callable[[], None]
    words: str
    harness: str
    shows: str


def _acknowledge_first() -> None:
    from pacs_ai.receive.ingest import DurableIngest
    from pacs_ai.store.index import Index

    init, record, ended = DurableIngest.__init__, Index.record, Index.association_ended
    under_way: list[threading.Thread] = []

    def without_segments(ingest: Any, files: Any, *rest: Any, **words: Any) -> None:
        init(ingest, files, *rest, **words | {"ahead": None})  # where they are, Success may come before the commit

    def later(index: Any, arrivals: Any) -> list[Any]:
        def run() -> None:
            time.sleep(_LATE_SECONDS)
            record(index, arrivals)

        under_way.append(threading.Thread(target=run, daemon=True))
        under_way[-1].start()
        return []

    def in_order(index: Any, assoc_id: str, released: bool) -> bool:  # else its rows might come behind its end
        for thread in under_way:
            thread.join()
        return ended(index, assoc_id, released)

    DurableIngest.__init__, Index.record, Index.association_ended = without_segments, later, in_order


def _skip_fsync(is_skipped: Callable[[int], bool]) -> None:
    for name in ("fsync", "fdatasync"):
        real = getattr(os, name)
        setattr(os, name, lambda fd, real=real: None if is_skipped(os.fstat(fd).st_mode) else real(fd))


def _no_file_fsync() -> None:
    _skip_fsync(stat.S_ISREG)


def _no_directory_fsync() -> None:
    _skip_fsync(stat.S_ISDIR)


def _wal_normal() -> None:
    from pacs_ai.store.database import Database

    opened = Database.__init__

    def init(database: Any, url: str) -> None:
        opened(database, url)
        sa.event.listen(database.engine, "connect", lambda raw, _: raw.execute("PRAGMA synchronous=NORMAL"))

    Database.__init__ = init


def _rename_before_fsync() -> None:
    fsync, replace = os.fsync, os.replace
    skipped: set[str] = set()

    def remember(fd: int) -> None:
        if stat.S_ISREG(os.fstat(fd).st_mode):
            skipped.add(str(Path(f"/proc/self/fd/{fd}").readlink()))
        else:
            fsync(fd)

    def rename(source: Any, target: Any, **options: Any) -> None:
        replace(source, target, **options)
        if os.fspath(source) in skipped:
            descriptor = os.open(target, os.O_RDONLY)
            fsync(descriptor)
            os.close(descriptor)

    os.fsync, os.replace, os.rename = remember, rename, rename


def _random_uid() -> None:
    from pacs_ai.encode import provenance

    derive, chance = provenance.derive_uid, uuid.uuid4().hex  # one of its own for each process: each retry
    provenance.derive_uid = lambda *parts: derive(chance, *parts)


def _outbox_outside() -> None:
    from pacs_ai.store import queue

    fill, finish = queue.fill_outbox, queue.finish
    queue.fill_outbox = lambda connection, database, job_id: None

    def later(database: Any, held: Any, results: Any, **words: Any) -> None:
        finish(database, held, results, **words)
        with database.write() as connection:
            fill(connection, database, held.job_id)

    queue.finish = later


def _fence_ignored() -> None:
    from pacs_ai.store import queue

    def require(connection: Any, held: Any) -> None:
        state = connection.execute(sa.select(queue._job.c.state).where(queue._job.c.id == held.job_id)).scalar_one()
        if state != "running":
            raise queue.Lost("not running")

    def is_held(database: Any, held: Any) -> bool:
        return True

    move = queue.move
    queue._require_held, queue.is_held = require, is_held
    queue.move = lambda *arguments, **words: move(*arguments, **{k: v for k, v in words.items() if k != "held"})


def _claimed_twice() -> None:
    from pacs_ai.store import queue

    claim = queue.claim

    def again(database: Any, owner: str, pipelines: Any = None) -> Any:
        held = claim(database, owner, pipelines)
        if held is not None:
            return held
        with database.read() as connection:
            row = connection.execute(sa.select(queue._job).where(queue._job.c.state == "running")).first()
            return None if row is None else queue._as_claim(row)

    queue.claim = again


def _never_requeued() -> None:
    from pacs_ai.store import queue

    queue.sweep = lambda database, watch, actor: 0


def _deleted_early() -> None:
    from pacs_ai.infer.worker import Worker

    store = Worker._store

    def careless(worker: Any, held: Any, done: Any) -> Any:
        with worker._database.read() as connection:
            from pacs_ai.store import queue

            for source in queue.source_files(connection, held.job_id):
                worker._files.remove(source.sha256)
        return store(worker, held, done)

    Worker._store = careless


def _success_without_commit() -> None:
    from pacs_ai.errors import Transient
    from pacs_ai.store.index import Index

    record = Index.record

    def hopeful(index: Any, arrivals: Any) -> Any:
        try:
            return record(index, arrivals)
        except Transient:
            return []

    Index.record = hopeful


def _fsync_retried() -> None:
    fsync = os.fsync

    def again(fd: int) -> None:
        try:
            fsync(fd)
        except OSError:
            fsync(fd)  # and the kernel says yes: it has forgotten the pages that it could not write

    os.fsync = again


def _half_files_stay() -> None:
    unlink = os.unlink
    os.unlink = lambda path, **options: None if "/.new/" in os.fspath(path) else unlink(path, **options)


def _aborted_out_of_resources() -> None:
    from pacs_ai.dicom import status
    from pacs_ai.receive.exchange import Exchange

    answer = Exchange._answer

    def abort(exchange: Any, message: Any, told: Any) -> None:
        if told.status & 0xFF00 != status.OUT_OF_RESOURCES or message is not exchange._message:
            answer(exchange, message, told)
            return
        exchange._message = None
        exchange._let_go(message)
        exchange._link.abort()

    Exchange._answer = abort


def _acknowledged_before_the_segment() -> None:
    from pacs_ai.receive.indexing import Indexing
    from pacs_ai.store.ahead import Ahead

    write, add = Ahead._write, Indexing.add

    def first(ahead: Any, batch: Any) -> None:
        for waiting in batch:
            waiting.tell(waiting.place)
        time.sleep(_LATE_SECONDS)
        write(ahead, [replace(waiting, tell=lambda came: None) for waiting in batch])

    def later(indexing: Any, entry: Any) -> None:
        timer = threading.Timer(4 * _LATE_SECONDS, add, (indexing, entry))
        timer.daemon = True
        timer.start()

    Ahead._write, Indexing.add = first, later


def _no_segment_sync() -> None:
    os.fdatasync = lambda fd: None


def _recycled_early() -> None:
    from pacs_ai.receive.indexing import Indexing, Kept
    from pacs_ai.store.ahead import Ahead

    commit, done = Indexing._commit, Ahead.done
    Ahead.done = lambda ahead, places: done(ahead, [])

    def early(indexing: Any, batch: Any) -> None:
        record = indexing._record

        def let_go(*arguments: Any) -> None:
            done(indexing._ahead, [entry.place for entry in batch if isinstance(entry, Kept)])
            indexing._ahead.rest()
            record(*arguments)

        indexing._record = let_go
        try:
            commit(indexing, batch)
        finally:
            indexing._record = record

    Indexing._commit = early


def _last_record_skipped() -> None:
    from pacs_ai.store import segments

    records = segments.records
    segments.records = lambda segment: list(records(segment))[:-1]


class _Anything:
    def __ne__(self, other: object) -> bool:
        return False

    __hash__ = None


def _torn_record_accepted() -> None:
    from pacs_ai.store import segments

    segments._sha256_at = lambda place: _Anything()


def _recorded_twice() -> None:
    from pacs_ai.store.index import Index

    Index.is_recorded = lambda index, name, lap, number: False


def _impatient() -> None:
    from pacs_ai.store.coming import Coming

    Coming.look = lambda coming: ""


def _restless() -> None:
    from pacs_ai.store.index import Index

    opened = Index.__init__

    def init(index: Any, database: Any, path_of: Any, owner: str) -> None:
        opened(index, database, path_of, owner)
        with database.write() as connection:
            connection.execute(sa.text("UPDATE instance SET received_at = received_at + 1"))

    Index.__init__ = init


def _believed_early() -> None:
    from pacs_ai.receive.ingest import DurableIngest

    DurableIngest.is_settled = True


#: Signs are what the checker says of the store; that a node did not come to rest in time may be a busy machine.
_LOST = "I1 acknowledged"
_LOST_OR_DAMAGED = rf"{_LOST}|I2 "

BUGS = {
    "ackfirst": Bug(_acknowledge_first, "Success is answered before the commit", "points", _LOST),
    "nofsync": Bug(_no_file_fsync, "files are not synced", "power", _LOST_OR_DAMAGED),
    "nodirsync": Bug(_no_directory_fsync, "directories are not synced", "power", _LOST_OR_DAMAGED),
    "walnormal": Bug(_wal_normal, "SQLite runs with synchronous=NORMAL", "power", rf"{_LOST}|I12 "),
    "renamefirst": Bug(
        _rename_before_fsync, "a file gets its name before it is synced", "power-points", "I2 a file whose bytes"
    ),
    "randomuid": Bug(_random_uid, "results have other UIDs after each start of the process", "points", "I11 "),
    "outboxlater": Bug(
        _outbox_outside,
        "the outbox is filled in a transaction of its own",
        "points",
        r"I6 job|I8 delivery \d+ is (waiting|sent)",  # the harness may see rest between the two
    ),
    "nofence": Bug(_fence_ignored, "a worker that was asleep may still write", "frozen", "I5 "),
    "claimtwice": Bug(_claimed_twice, "two workers get one job", "calm", "I5 .* begun again"),
    "claimlost": Bug(_never_requeued, "jobs of dead workers stay running", "points", r"I5 job \d+ is running for ever"),
    "reencode": Bug(
        wrong_delivery.encoded_again,
        "a retried delivery sends other bytes",
        "points",
        "I6 the destination has other bytes",
    ),
    "deletedearly": Bug(_deleted_early, "inputs are deleted before the job is done", "points", "I[12] "),
    "sentbefore": Bug(
        wrong_delivery.sent_before, "a delivery is called sent before the peer has it", "points", "I6 .* never got it"
    ),
    "confirmedearly": Bug(
        wrong_delivery.confirmed_early, "a request for commitment is taken for the answer", "rude", "I8 .* has not got"
    ),
    "neverasked": Bug(
        wrong_delivery.never_asked, "no peer is asked to commit to what was sent", "calm", "I8 .* is sent, though"
    ),
    "notedlate": Bug(
        wrong_delivery.noted_late,
        "a request for commitment is answered Success before it is noted",
        "points",
        "I15 the sender asked .* never told",
    ),
    "unmarked": Bug(wrong_delivery.unmarked, "what was committed to may be deleted", "calm", "I15 .* it is not marked"),
    "hasty": Bug(
        wrong_delivery.hasty, "what has no row yet is told to be not kept", "rude", "I15 .* acknowledged is not kept"
    ),
    "nocommit": Bug(
        _success_without_commit, "Success is answered though the commit failed", "errors", "commit .* Success"
    ),
    "fsyncretried": Bug(
        _fsync_retried, "a failed fsync is tried again, and then believed", "errors", "fsync .* Success"
    ),
    "abortfull": Bug(
        _aborted_out_of_resources, "what cannot be stored is aborted, not answered", "errors", "failing .* not answered"
    ),
    "halffiles": Bug(_half_files_stay, "what could not be written stays behind", "errors", "left half written"),
    "aheadack": Bug(
        _acknowledged_before_the_segment,
        "Success is answered before the segment is",
        "written",
        _LOST,
    ),
    "aheadnosync": Bug(_no_segment_sync, "segments are not synced", "power", _LOST),
    "aheadearly": Bug(_recycled_early, "a segment is let go before its rows are committed", "let-go", _LOST),
    "aheadlast": Bug(_last_record_skipped, "recovery skips the last record", "recovery", _LOST),
    "aheadtorn": Bug(
        _torn_record_accepted, "recovery takes a torn record for a whole one", "torn", "I2 a file whose bytes"
    ),
    "restless": Bug(_restless, "each start changes what was there", "calm", "I10 recovered once more"),
    "impatient": Bug(_impatient, "a series does not wait for what a dead receive process had", "late", "I4 .* without"),
    "toosoon": Bug(_believed_early, "a receive process is believed before it has recovered", "late", "I4 .* without"),
    "aheadtwice": Bug(_recorded_twice, "what has its rows is recorded again", "points", "I14 "),
}
