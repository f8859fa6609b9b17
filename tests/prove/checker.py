"""Whether a stopped node kept its promises: its store against the journals of those who spoke with it.

It imports nothing of the node. The numbers are those of the invariants in docs/reliability.md.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections import Counter, defaultdict
from contextlib import closing
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING

import pydicom

from prove.held import Journals, Store

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

_TRANSFERRED = ("sent", "confirmed")
_PAGE = 4096
_FINAL = {"done", "superseded"}
#: In which state a life begins, by its journal's first `before`: a series' first row is that of its first change.
_FIRST = {"series": "receiving", "job": "", "delivery": ""}
#: Tables that a start may change though there is nothing to recover.
_OF_PROCESSES = {"process", "audit_notice", "audit_event", "audit_cursor", "ahead"}
#: Longest recovery, and so much more for each instance: several times what it takes, because machines are busy.
RECOVERY_SECONDS, RECOVERY_SECONDS_EACH = 10.0, 0.005


def violations(folder: Path, journals: Journals, twin: Mapping[str, list[str]] | None = None) -> list[str]:
    """Return every broken promise in words, none where all were kept.

    Parameters
    ----------
    twin
        Series Instance UID -> SOP Instance UIDs of the results that the same images gave without any fault.
    """
    store = Store(folder)
    found = [f"the database is damaged: {words}" for words in store.sound if words != "ok"]
    checks = (
        _acknowledged,
        _drained,
        _nothing_half,
        _once,
        _current_jobs,
        _one_end,
        _peer_has,
        _confirmed,
        _pledged,
        _references,
        _journal,
        _transfers,
    )
    for check in checks:
        found += check(store, journals)
    if twin is not None:
        found += _as_without_faults(store, twin)
    return found


def picture(folder: Path) -> dict[str, str]:
    """Return a digest of each table, of the names of all files, and of what is written ahead, for `recovered`.

    What says only which processes there are, or were, is left out.
    """
    with closing(sqlite3.connect(folder / "pacs_ai.sqlite")) as connection:
        names = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        found = {}
        for name in sorted(set(names) - _OF_PROCESSES):
            where = " WHERE subject <> 'node'" if name == "journal" else ""
            rows = sorted(map(repr, connection.execute(f"SELECT * FROM {name}{where}")))
            found[f"table {name}"] = hashlib.sha256("\n".join(rows).encode()).hexdigest()
    for place in ("files", "scratch"):
        paths = sorted(str(p.relative_to(folder)) for p in (folder / place).rglob("*") if p.is_file())
        found[f"folder {place}"] = hashlib.sha256("\n".join(paths).encode()).hexdigest()
    return found


def recovered(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """I10: to recover what was recovered changes nothing."""
    names = sorted(before.keys() | after.keys())
    return [f"I10 recovered once more, another {n}" for n in names if before.get(n) != after.get(n)]


def in_time(seconds: float, instances: int) -> list[str]:
    """I10: recovery ends in time, by the number of instances that were answered Success and had no rows."""
    limit = RECOVERY_SECONDS + RECOVERY_SECONDS_EACH * instances
    return [f"I10 {instances} instances had rows after {seconds:.1f} s only"] if seconds > limit else []


def _acknowledged(store: Store, journals: Journals) -> Iterator[str]:
    """I1: what was answered Success is in the index and on disk, with the bytes that were sent."""
    rows = defaultdict(list)
    for row in store.rows["instance"]:
        rows[row["sop_instance_uid"]].append(row)
    for ack in {one["uid"]: one for one in journals.lines(journals.acks)}.values():
        there = [row for row in rows[ack["uid"]] if row["role"] == "current"]
        if len(there) != 1:
            yield f"I1 acknowledged, but {len(there)} current rows in the index: {ack['uid']}"
        elif (digest := store.data_set_sha256(there[0]["sha256"])) != ack["sha256"]:
            yield f"I1 acknowledged, but its file is not what was sent ({digest[:24]}): {ack['uid']}"


def _drained(store: Store, journals: Journals) -> Iterator[str]:
    """I1: nothing is only in a segment that was written ahead to: after a stop in order, none begins with a record."""
    ahead = store.folder / "ahead"
    for path in sorted(ahead.iterdir()) if ahead.is_dir() else ():
        if path.suffix:
            yield f"I1 an instance was set aside, and is not in the index: {path.name}"
        elif path.read_bytes()[:_PAGE].strip(b"\0"):
            yield f"I1 a segment still holds records: {path.name}"


def _nothing_half(store: Store, journals: Journals) -> Iterator[str]:
    """I2, I13: no row without its whole file, no file without a row, nothing left behind.

    Only a job that was superseded while its results were written may leave these to retention's next sweep; what bears
    the UID of a result that there is, in other bytes, was not left by such a job: it was encoded twice.
    """
    outdated = {row["study_id"] for row in store.rows["job"] if row["state"] == "superseded"}
    swept = {row["study_instance_uid"] for row in store.rows["study"] if row["id"] in outdated}
    named = {row["sha256"] for name in ("instance", "result") for row in store.rows[name]}
    made = {row["sop_instance_uid"] for row in store.rows["result"]}
    for sha256 in sorted(named):
        if len(digest := store.data_set_sha256(sha256)) != 64:
            yield f"I2 a row's file: {digest}: {sha256}"
    for path in store.files.glob("[0-9a-f][0-9a-f]/*"):
        if hashlib.sha256(path.read_bytes()).hexdigest() != path.name:
            yield f"I2 a file whose bytes are not its name: {path.name}"
        elif path.name not in named and not _was_left(path, swept, made):
            yield f"I13 a file that no row names: {path.name}"
    scratch = store.folder / "scratch"
    left = [p for p in (scratch.glob("*/*") if scratch.is_dir() else ()) if p.is_file()]
    if left:
        yield f"I13 {len(left)} files left in the scratch folder"


def _was_left(path: Path, studies: set[str], made: set[str]) -> bool:
    ds = pydicom.dcmread(path, stop_before_pixels=True)
    return ds.Modality in {"SEG", "SR"} and ds.StudyInstanceUID in studies and ds.SOPInstanceUID not in made


def damaged_names(folder: Path) -> list[str]:
    """I2 at any instant, before any recovery: what bears a digest as its name has these bytes."""
    files = (folder / "files").glob("[0-9a-f][0-9a-f]/*")
    wrong = [path.name for path in files if hashlib.sha256(path.read_bytes()).hexdigest() != path.name]
    return [f"I2 a file whose bytes are not its name: {name}" for name in wrong]


def _once(store: Store, journals: Journals) -> Iterator[str]:
    """I3: one row per instance and content."""
    counts = Counter((row["sop_instance_uid"], row["sha256"]) for row in store.rows["instance"])
    yield from (f"I3 {count} rows of one content: {uid}" for (uid, _), count in counts.items() if count > 1)


def _current_jobs(store: Store, journals: Journals, least: int = 3) -> Iterator[str]:
    """I4: the instances of a series in scope are in exactly one job that counts, and it is done."""
    jobs = {row["id"]: row for row in store.rows["job"]}
    of_series = defaultdict(list)
    for row in store.rows["job_source"]:
        if jobs[row["job_id"]]["state"] != "superseded":
            of_series[row["series_id"]].append((jobs[row["job_id"]], row["revision"]))
    held = Counter(row["series_id"] for row in store.rows["instance"] if row["role"] == "current")
    for row in store.rows["series"]:
        if held[row["id"]] < least:
            continue
        current = of_series[row["id"]]
        if row["state"] != "complete" or len(current) != 1:
            yield f"I4 series {row['id']} with {held[row['id']]} images is {row['state']} and has {len(current)} jobs"
            continue
        job, revision = current[0]
        newest = max(one["revision"] for one in store.rows["instance"] if one["series_id"] == row["id"])
        if job["state"] != "done" or revision < newest:
            yield f"I4 job {job['id']} of series {row['id']} is {job['state']}, revision {revision} of {newest}"


def _one_end(store: Store, journals: Journals) -> Iterator[str]:
    """I5: every job ends once; nothing is begun twice under one fencing number, and these only grow."""
    ends = Counter(row["subject_id"] for row in store.rows["journal"] if row["event"] == "finished")
    begun = Counter(
        row["subject_id"] for row in store.rows["journal"] if (row["subject"], row["event"]) == ("job", "claimed")
    )
    for job in store.rows["job"]:
        if job["state"] not in _FINAL:
            yield f"I5 job {job['id']} is {job['state']} for ever: {job['reason']}"
        if ends[str(job["id"])] > 1:
            yield f"I5 job {job['id']} ended {ends[str(job['id'])]} times"
        if job["fence"] != begun[str(job["id"])]:
            yield f"I9 job {job['id']} has the fencing number {job['fence']} after {begun[str(job['id'])]} claims"
    holder: dict[str, str] = {}
    for row in sorted(store.rows["journal"], key=lambda row: row["id"]):
        if row["subject"] == "job" and row["event"] == "claimed":
            holder[row["subject_id"]] = row["actor"]
        elif row["event"] == "finished" and holder.get(row["subject_id"]) != row["actor"]:
            yield f"I5 job {row['subject_id']} was finished by a worker that did not hold it"
    last: dict[str, int] = {}
    for line in journals.claims.read_text().splitlines() if journals.claims.exists() else ():
        job_id, fence, _ = line.split(maxsplit=2)
        if int(fence) <= last.get(job_id, 0):
            yield f"I5 job {job_id} was begun again under the fencing number {fence}"
        last[job_id] = max(int(fence), last.get(job_id, 0))


def _peer_has(store: Store, journals: Journals) -> Iterator[str]:
    """I6: the destination has each result once, byte for byte what is stored, and nothing else.

    A harness has one destination, to which every result goes: what a job that is done has made is there, whatever the
    node's own tables say of deliveries.
    """
    results = {row["sop_instance_uid"]: row for row in store.rows["result"]}
    kept = defaultdict(set)
    for one in journals.lines(journals.kept):
        kept[one["uid"]].add(one["sha256"])
    for uid, digests in kept.items():
        if uid not in results:
            yield f"I6 the destination has an object that nobody remembers: {uid}"
        elif digests != {store.data_set_sha256(results[uid]["sha256"])}:
            yield f"I6 the destination has other bytes ({len(digests)} contents) than the outbox: {uid}"
    uids = {row["id"]: uid for uid, row in results.items()}
    sent = Counter()
    for row in store.rows["delivery"]:
        if row["state"] in _TRANSFERRED:
            sent[row["job_id"], row["peer"]] += 1
            if uids[row["result_id"]] not in kept:
                yield f"I6 delivery {row['id']} is {row['state']}, and the destination never got it"
    wanted = Counter(row["job_id"] for row in store.rows["result"])
    done = {row["id"] for row in store.rows["job"] if row["state"] == "done"}
    addressed = defaultdict(set)
    for row in store.rows["job_destination"]:
        addressed[row["job_id"]].add(row["peer"])
    for job_id in sorted(done):
        if len(addressed[job_id]) != 1:
            yield f"I6 job {job_id} is done, and goes to {len(addressed[job_id])} destinations"
        for peer in addressed[job_id] or {""}:
            made, gone = wanted[job_id], sent[job_id, peer]
            if not 0 < made == gone:
                yield f"I6 job {job_id} is done with {made} results, {gone} sent"
    for uid, row in results.items():
        if row["job_id"] in done and uid not in kept:
            yield f"I6 job {row['job_id']} is done, and the destination never got {uid}"


def _confirmed(store: Store, journals: Journals) -> Iterator[str]:
    """I8: what is called confirmed, the destination has, with the bytes of the outbox; and all is confirmed.

    The destination commits, or shows what it has: at rest nothing that is wanted is merely sent, least of all what the
    node was told of and answered Success.
    """
    kept = {(one["uid"], one["sha256"]) for one in journals.lines(journals.kept)}
    told = {uid for one in journals.lines(journals.committed) for uid in one["uids"]}
    results = {row["id"]: row for row in store.rows["result"]}
    done = {row["id"] for row in store.rows["job"] if row["state"] == "done"}
    for row in store.rows["delivery"]:
        result = results[row["result_id"]]
        uid = result["sop_instance_uid"]
        has = (uid, store.data_set_sha256(result["sha256"])) in kept
        is_confirmed = row["state"] == "confirmed"
        if not has and (is_confirmed or row["confirmed_at"] is not None):
            yield f"I8 delivery {row['id']} is confirmed, and the destination has not got these bytes"
        if not is_confirmed and result["job_id"] in done:
            words = "and the node was told that it is kept" if uid in told else "though the destination shows it"
            yield f"I8 delivery {row['id']} is {row['state']}, {words}: {row['reason']}"


def _pledged(store: Store, journals: Journals) -> Iterator[str]:
    """I15: who asked the node to keep what it had answered Success, and was answered Success, is told that it does.

    What it keeps is marked, so that retention leaves it alone.
    """
    acked = {one["uid"] for one in journals.lines(journals.acks)}
    marked = {row["sop_instance_uid"] for row in store.rows["instance"] if row["pledged_at"] is not None}
    told = {one["transaction_uid"]: one for one in journals.lines(journals.told)}
    for one in journals.lines(journals.asked):
        if one["transaction_uid"] not in told:
            yield f"I15 the sender asked for storage commitment and was never told: {one['transaction_uid']}"
        elif set(told[one["transaction_uid"]]["kept"]) != set(one["uids"]):
            yield f"I15 the sender was told of other instances than it asked for: {one['transaction_uid']}"
    for one in told.values():
        for uid in acked & set(one["failed"]):
            yield f"I15 the sender was told that what was acknowledged is not kept: {uid}"
        for uid in set(one["kept"]) - marked:
            yield f"I15 the sender was told that it is kept, and it is not marked: {uid}"
    yield from (f"I15 request {row['id']} has no end" for row in store.rows["pledge"] if row["ended_at"] is None)


def _transfers(store: Store, journals: Journals) -> Iterator[str]:
    """I12, I14: of each series as many transfers are counted as were answered at least, and as were tried at most.

    These counts are what the audit trail is made of: one too few is a transfer without its event.
    """
    names = {row["id"]: row["series_instance_uid"] for row in store.rows["series"]}
    series_of = {one["uid"]: one["series"] for one in journals.lines(journals.tries)}
    tried = Counter(one["series"] for one in journals.lines(journals.tries))
    acked = Counter(series_of[one["uid"]] for one in journals.lines(journals.acks))
    counted: Counter[int] = Counter()
    by: set[tuple[str, int]] = set()
    for row in store.rows["association_series"]:
        counted[row["series_id"]] += row["arrivals"]
        by.add((row["assoc_id"], row["series_id"]))
    for row in store.rows["series"]:
        count, name = counted[row["id"]], names[row["id"]]
        if count < acked[name]:
            yield f"I12 {acked[name]} transfers of a series were answered, {count} are counted: {name}"
        if count > tried[name] or row["arrivals"] != count:
            yield f"I14 {tried[name]} transfers of a series were tried, {count} and {row['arrivals']} counted: {name}"
    known = {row["id"] for row in store.rows["association"]}
    for row in store.rows["association"]:
        if row["ended_at"] is None:
            yield f"I12 an association has not ended, so nobody tells what came over it: {row['id']}"
    for row in store.rows["instance"]:
        if row["assoc_id"] not in known or (row["assoc_id"], row["series_id"]) not in by:
            yield f"I12 instance {row['id']} came over an association that nobody remembers"


def _references(store: Store, journals: Journals) -> Iterator[str]:
    """I7: a result names no other patient, and no instance but those that its job read and its own results."""
    series_of, patients = defaultdict(set), {one["uid"]: one["patient"] for one in journals.lines(journals.acks)}
    inside = defaultdict(set)
    for row in store.rows["instance"]:
        inside[row["series_id"]].add(row["sop_instance_uid"])
    for row in store.rows["job_source"]:
        series_of[row["job_id"]] |= inside[row["series_id"]]
    own = defaultdict(set)
    for row in store.rows["result"]:
        own[row["job_id"]].add(row["sop_instance_uid"])
    every = {row["sop_instance_uid"] for row in store.rows["result"]}  # a report cites its predecessor's
    for row in store.rows["result"]:
        if len(store.data_set_sha256(row["sha256"])) != 64:
            continue  # I2 tells of it
        patient, named = _references_in(store.files / row["sha256"][:2] / row["sha256"])
        if strange := named - series_of[row["job_id"]] - every:
            yield f"I7 result {row['id']} names {len(strange)} instances that its job did not read"
        whose = {patients[uid] for uid in named & patients.keys()}
        if whose - {patient}:
            yield f"I7 result {row['id']} is of another patient than its images"


@cache
def _references_in(path: Path) -> tuple[str, frozenset[str]]:
    """Return the patient and the instances that a result names; a path is a digest: it is read once."""
    ds = pydicom.dcmread(path, stop_before_pixels=True)
    named = (str(element.value) for element in ds.iterall() if element.keyword == "ReferencedSOPInstanceUID")
    return str(ds.PatientID), frozenset(named)


def _journal(store: Store, journals: Journals) -> Iterator[str]:
    """I9: every life is told from its beginning, every state follows from the one before it, the last is the row's."""
    lives = defaultdict(list)
    for row in sorted(store.rows["journal"], key=lambda row: row["id"]):
        if row["before"] or row["after"]:  # else it tells of no change
            lives[row["subject"], row["subject_id"]].append(row)
    for subject, first in _FIRST.items():
        for row in store.rows[subject]:
            life = lives.pop((subject, str(row["id"])), [])
            begun = life[0]["before"] if life else row["state"]
            if begun != first:
                yield f"I9 the journal of {subject} {row['id']} has not got its beginning, but {begun}"
            if any(one["before"] != earlier["after"] for earlier, one in pairwise(life)):
                yield f"I9 {subject} {row['id']} changed its state without a journal row"
            if life and life[-1]["after"] != row["state"]:
                yield f"I9 {subject} {row['id']} is {row['state']}, its journal says {life[-1]['after']}"
    yield from (
        f"I9 the journal tells of {subject} {name}, which is not there" for subject, name in lives if subject in _FIRST
    )


def _as_without_faults(store: Store, twin: Mapping[str, list[str]]) -> Iterator[str]:
    """I11: the results that count are those that the same images give when nothing goes wrong."""
    found = results_of(store)
    for series, uids in twin.items():
        if found.get(series, []) != uids:
            yield f"I11 other results than without faults: {series}"


def results_of(store: Store) -> dict[str, list[str]]:
    """Return Series Instance UID -> SOP Instance UIDs of the results of its job that counts."""
    done = {row["id"] for row in store.rows["job"] if row["state"] == "done"}
    names = {row["id"]: row["series_instance_uid"] for row in store.rows["series"]}
    found = {}
    for row in store.rows["job_source"]:
        if row["job_id"] in done:
            mine = [one["sop_instance_uid"] for one in store.rows["result"] if one["job_id"] == row["job_id"]]
            found[names[row["series_id"]]] = sorted(mine)
    return found
